"""`cni-py install` and `uninstall` in temporary directories, away from what this machine has; the host of `cni-py-exec`."""

from __future__ import annotations

import compileall
import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Lab
from runtime import Plugins

from cni_py import files
from cni_py.commands import images, runtimes
from cni_py.commands.main import main
from tests.commands.hand import NETWORK, Hand

Command = Callable[..., int]
IMAGE = functools.cache(images.made)  # the same each time


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    return tmp_path / "opt" / "cni" / "bin"


@pytest.fixture
def conf_dir(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "net.d"


@pytest.fixture
def bytecode(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that would have been compiled: once for all tests is enough, and pip has done it. So is one image."""
    folders: list[Path] = []
    monkeypatch.setattr(compileall, "compile_dir", lambda folder, quiet: folders.append(folder))
    monkeypatch.setattr(images, "made", IMAGE)
    return folders


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the file system in which runtimes are looked for, empty; attachment records are below it, too."""
    root = tmp_path_factory.mktemp("host")
    monkeypatch.setattr(runtimes, "ROOT", root)
    monkeypatch.setattr(files, "run_dir", lambda: str(root / "run/cni-py"))
    return root


@pytest.fixture
def cni_py_command(bin_dir: Path, conf_dir: Path, bytecode: list[Path], host: Path) -> Command:
    """cni_py_command("install", ...) -> exit status. What is installed is in Python, unless the options say otherwise."""

    def run(command: str, *options: str) -> int:
        kind = ["--launcher=python"] if command == "install" else []
        return main([command, "--bin-dir", str(bin_dir), "--conf-dir", str(conf_dir), *kind, *options])

    return run


@pytest.fixture
def hand(lab: Lab, plugins: Plugins, tmp_path: Path) -> Hand:
    network = {"cniVersion": plugins.versions[-1], **NETWORK}
    conf = tmp_path / "lab.conflist"
    conf.write_text(json.dumps(network))
    hand = Hand(lab, plugins.whose, plugins.directory, conf, network)
    hand.write("/etc/cni/net.d/50-lab.conflist", json.dumps(network))
    return hand
