"""`cni-py install --launcher`: compiled executables, and what stands in for them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cni_py import warm
from cni_py.commands import launchers, native
from cni_py.run import MODULES, is_own_launcher, launcher_text
from tests.commands.conftest import Command
from tests.commands.test_install import GO, answer, put_plugin, tree

# What they do where a service is: tests/serve.


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)


def put_compiler(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "cc").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "cc").chmod(0o755)
    return folder


def test_compiled_executables_do_as_those_in_python(cni_py_command: Command, bin_dir: Path, tmp_path: Path) -> None:
    put_plugin(bin_dir, "bridge")
    before = tree(tmp_path)
    assert cni_py_command("install", "--launcher=native") == 0
    once = tree(tmp_path)
    assert cni_py_command("install", "--launcher=native") == 0
    assert tree(tmp_path) == once
    for name in MODULES:
        path, script = bin_dir / name, bin_dir / ".cni-py/scripts" / name
        assert path.read_bytes().startswith(b"\x7fELF")
        assert is_own_launcher(str(path))
        assert launcher_text(str(path)) == script.read_bytes() == launchers.launcher(name)
    for environ in ({"CNI_COMMAND": "VERSION"}, {"CNI_COMMAND": "ADD"}, {}):
        ours, theirs = (answer(each / "host-local", **environ) for each in (bin_dir, bin_dir / ".cni-py/scripts"))
        assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert cni_py_command("install") == 0  # and back
    assert is_own_launcher(str(bin_dir / "bridge"))
    assert (bin_dir / "bridge").read_bytes() == launchers.launcher("bridge")
    assert cni_py_command("uninstall") == 0
    assert tree(tmp_path) == before


def test_a_compiled_executable_under_other_names(cni_py_command: Command, bin_dir: Path, tmp_path: Path) -> None:
    cni_py_command("install", "--launcher=native")
    shutil.copy2(bin_dir / "bridge", tmp_path / "vendor-bridge")
    shutil.copy2(bin_dir / "bridge", tmp_path / "loopback")
    (tmp_path / "tuning").symlink_to(bin_dir / "bridge")
    for name, plugin in (("vendor-bridge", "bridge"), ("loopback", "loopback"), ("tuning", "tuning")):
        assert answer(tmp_path / name).stderr.startswith(f"CNI {plugin} plugin")
    (tmp_path / "portmap").write_bytes(GO)
    assert not is_own_launcher(str(tmp_path / "portmap"))


def test_a_compiled_executable_whose_interpreter_or_script_is_gone(
    cni_py_command: Command, bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    monkeypatch.setattr(native, "interpreter", lambda: str(python))
    monkeypatch.setattr(native, "_built", native._built.__wrapped__)
    python.symlink_to(launchers.interpreter())
    assert cni_py_command("install", "--launcher=native") == 0
    shutil.rmtree(bin_dir / ".cni-py/scripts")
    for lost in (bin_dir / ".cni-py/scripts", python):
        done = answer(bin_dir / "bridge", CNI_COMMAND="ADD")
        assert (done.returncode, done.stderr) == (1, "")
        error = json.loads(done.stdout)
        assert error["code"] == 999
        assert str(lost) in error["msg"]
        python.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        (None, "there is no C compiler (cc, gcc, clang)"),
        ("echo no stdio.h >&2; exit 1", "cc ended with 1: no stdio.h"),
        (
            'while [ "$1" != -o ]; do shift; done; echo "#!/bin/sh" >"$2"; chmod +x "$2"',
            "the compiled executable answers b''",
        ),
        ('while [ "$1" != -o ]; do shift; done; echo >"$2"', "/bridge: Exec format error"),
    ],
    ids=["none", "broken", "wrong", "no program"],
)
def test_without_a_compiler_that_works_they_are_in_python(
    cni_py_command: Command,
    bin_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compiler: str | None,
    why: str,
) -> None:
    folder = put_compiler(tmp_path / "path", compiler) if compiler else tmp_path
    monkeypatch.setenv("PATH", f"{folder}:{tmp_path}")
    monkeypatch.setattr(native, "COMPILERS", ("cc",) if compiler else native.COMPILERS)
    monkeypatch.setattr(native, "_built", native._built.__wrapped__)
    if compiler and "echo" in compiler:
        for name in ("sh", "chmod"):
            (folder / name).symlink_to(f"/bin/{name}")
    assert cni_py_command("install", "--launcher=auto") == 0
    told = capsys.readouterr().out
    assert "place executables in Python: " in told
    assert why in told
    assert (bin_dir / "bridge").read_bytes() == launchers.launcher("bridge")
    assert cni_py_command("install", "--launcher=native") == 3
    assert "no executable can be compiled: " in capsys.readouterr().err


def test_both_kinds_speak_alike() -> None:
    program, _ = native.program(native.NATIVE)
    assert warm.LOST in program
    assert warm.MAGIC in program
    assert f"BEGIN_S {warm.BEGIN_S:g}\n" in native.SOURCE.read_text()
    assert int(native.SOURCE.read_text().partition("FIELDS_SIZE ")[2].split()[0]) == native.FIELDS_SIZE


def test_the_compiler_has_nothing_to_complain_about(tmp_path: Path) -> None:
    words = ["cc", "-Wall", "-Wextra", "-Werror", "-O2", "-o", str(tmp_path / "launcher"), str(native.SOURCE)]
    subprocess.run(words, check=True, timeout=60)
