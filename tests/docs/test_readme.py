"""README's "Use it", pasted line by line on a host that has nothing of ours.

The host is a lab's: /opt and what belongs to CNI are its own, so that nothing of this machine changes. Two things are given
to it that a machine has and a lab has not: the wheels that pip would fetch from PyPI, and an apt-get that only looks whether the
packages which README names are there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import snapshot
from lab import Lab

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PASTE_S = 180
APT_GET = """\
#!/bin/sh -eu
[ "$*" = update ] && exit
[ "$1 $2" = "install -y" ]
shift 2
/usr/bin/dpkg-query --show "$@"
"""
# What is typed may use these alone: the packages that README names, and Debian's smallest system (no kill, no ps)
MINIMAL = ("bash", "sh", "python3", "ip", "nft", "curl", "rm", "sleep", "ls", "mkdir", "cat", "xargs")
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
NEEDED = ("setuptools", "wheel", *SETUP["options"]["install_requires"].split())  # to build the package, and with it


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def lines() -> list[str]:
    """What is to be typed: the indented blocks of "Use it", in their order."""
    return re.findall(r"^ {4}(.*)$", section("Use it"), re.MULTILINE)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    words = ["-m", "pip", "--disable-pip-version-check", "-qq", "download", "--dest", str(folder), *NEEDED]
    subprocess.run([sys.executable, *words], check=True, timeout=PASTE_S)
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "tests", "bench")
    shutil.copytree(ROOT, folder, ignore=ignored, symlinks=True)
    return folder


def test_use_it_can_be_pasted_and_leaves_a_clean_machine(lab: Lab, tmp_path: Path, clone: Path, wheels: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "apt-get").write_text(APT_GET)
    (programs / "apt-get").chmod(0o755)
    for name in MINIMAL:
        found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
        assert found, f"{name} is missing on this machine"
        (programs / name).write_text(f'#!/bin/sh\nexec {found} "$@"\n')
        (programs / name).chmod(0o755)
    empty = "mount -t tmpfs lab /opt; rmdir /var/lib/cni-py || true"  # a lab's folders, where a fresh machine has none
    lab["host"].run(["sh", "-ec", empty], check=True)
    environ = {
        "HOME": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CACHE_DIR": str(tmp_path / "cache"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    lab["host"].run(["sh", "-c", "rmdir /var/lib/cni"])  # purge takes the folder when it is empty, whoever made it
    before = lab.snapshot("host")
    text = "\n".join(
        [
            "set -eux",
            f"PATH={programs}",
            "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT",
            f"cd {clone}",
            *lines(),
            "ls /opt",
        ]
    )
    done = lab["host"].run(["bash", "-c", text], env=environ, timeout_s=PASTE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("<title>Directory listing for /</title>") == 3
    assert "everything is as ADD made it" in done.stdout
    assert done.stdout.endswith("as it was before\n"), done.stdout  # and /opt is empty
    assert snapshot.difference(before, lab.snapshot("host")) == ""


def test_it_is_all_there() -> None:
    """What the test above relies on: that the blocks were found, in an order that can be run."""
    typed = "\n".join(lines())
    order = (
        "venv /opt/cni-py",
        "bin/pip install .",
        "\ncni-py install",
        "--plan",
        "http.server",
        "CHECK",
        "DEL",
        "netns delete",
    )
    positions = [typed.index(word) for word in (*order, "uninstall --purge", "rm -r /opt/cni-py")]
    assert positions == sorted(positions)


def test_the_settings_that_readme_names_for_runtimes_are_those_that_install_knows() -> None:
    """Folders in README's table are folders that runtimes.py expects, so that neither is forgotten."""
    from cni_py.commands import runtimes

    known = {*runtimes.DEFAULT, *runtimes.DEBIAN, *runtimes.NERDCTL, *runtimes.PODMAN}
    table = section("Use it").partition("### Where runtimes look")[2].partition("\n### ")[0]
    named = set(re.findall(r"(/(?:opt|usr)[\w./-]*/cni(?:/bin)?)(?![\w-])", table))
    assert {"/opt/cni/bin", "/usr/lib/cni", "/usr/local/libexec/cni"} <= named <= known


@pytest.mark.parametrize("command", re.findall(r"`cni-py ([a-z]+[^`]*)`", README))
def test_every_command_that_readme_names_is_one(command: str) -> None:
    from cni_py.commands.main import parser
    from cni_py.commands.manual import subcommands

    known = subcommands(parser())
    name, *options = command.split()
    assert name in known, f"README names `cni-py {command}`"
    # A command's name alone may stand for it; with options it is to be one that can be typed
    if options:
        parser().parse_args(command.split())


def test_nothing_of_the_machine_is_in_readme() -> None:
    assert os.fspath(ROOT) not in README
