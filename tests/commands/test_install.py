"""`cni-py install` and `cni-py uninstall`, in temporary directories."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import cni_py
from cni_py.commands import default_network, launchers
from cni_py.commands.main import main
from cni_py.run import MODULES, is_own_launcher
from tests.commands.conftest import Command

HOME = Path(cni_py.__file__).resolve().parent.parent
GO = b"\x7fELF a plugin of somebody else\n"
NOBODY = 65534


def tree(top: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below `top`: path -> mode and content (of a link: where it points)."""
    found = {}
    for path in sorted(top.rglob("*")):
        state = path.lstat()
        text = os.readlink(path).encode() if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(top))] = (state.st_mode, text)
    return found


def answer(executable: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([executable], env=environ, input="", capture_output=True, text=True, timeout=30, check=False)


def put_plugin(bin_dir: Path, name: str, mode: int = 0o755) -> Path:
    bin_dir.mkdir(parents=True, exist_ok=True)
    path = bin_dir / name
    path.write_bytes(GO)
    path.chmod(mode)
    return path


def test_every_plugin_has_a_launcher_that_runs_it(cni_py_command: Command, bin_dir: Path, bytecode: list[Path]) -> None:
    assert cni_py_command("install") == 0
    files = [bin_dir / plugin for plugin in MODULES]
    assert [path.read_bytes() for path in files] == [launchers.launcher(path.name) for path in files]
    assert {path.stat().st_mode for path in files} == {0o100755}
    assert all(is_own_launcher(str(path)) for path in files)
    assert bytecode == [HOME / "cni_py"]
    for path in files:
        done = answer(path, CNI_COMMAND="VERSION")
        assert (done.returncode, done.stderr) == (0, "")
        assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
        assert answer(path).stderr.startswith(
            f"CNI {path.name} plugin v{cni_py.REFERENCE_VERSION}+cni-py.{cni_py.__version__}\n"
        )


def test_the_users_environment_does_not_reach_a_plugin(cni_py_command: Command, bin_dir: Path, tmp_path: Path) -> None:
    cni_py_command("install")
    for name in ("os", "posix", "cni_py", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
        shutil.copy2(tmp_path / f"{name}.py", bin_dir)
    done = answer(bin_dir / "bridge", CNI_COMMAND="VERSION", PYTHONPATH=str(tmp_path), PYTHONHOME="/nowhere")
    assert (done.returncode, done.stderr) == (0, "")


def test_twice_in_a_row_is_harmless(cni_py_command: Command, tmp_path: Path, bin_dir: Path) -> None:
    put_plugin(bin_dir, "bridge")
    assert cni_py_command("install") == 0
    once = tree(tmp_path)
    assert cni_py_command("install") == 0
    assert tree(tmp_path) == once


def test_uninstall_leaves_no_trace(cni_py_command: Command, tmp_path: Path) -> None:
    cni_py_command("install")
    assert cni_py_command("uninstall") == 0
    assert tree(tmp_path) == {}


def test_uninstall_puts_back_the_very_files(cni_py_command: Command, tmp_path: Path, bin_dir: Path) -> None:
    os.chown(put_plugin(bin_dir, "bridge", 0o750), os.getuid(), NOBODY if os.geteuid() == 0 else -1)
    (bin_dir / "portmap").symlink_to("/usr/lib/cni/portmap")
    put_plugin(bin_dir, "vrf")  # one that we have not
    before, inode = tree(tmp_path), (bin_dir / "bridge").stat().st_ino
    assert cni_py_command("install") == 0
    assert (bin_dir / ".cni-py" / "replaced" / "bridge").read_bytes() == GO
    assert not (bin_dir / "portmap").is_symlink()
    assert cni_py_command("uninstall") == 0
    assert tree(tmp_path) == before
    assert (bin_dir / "bridge").stat().st_ino == inode


def test_a_dry_run_tells_and_changes_nothing(
    cni_py_command: Command, tmp_path: Path, bin_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_plugin(bin_dir, "bridge")
    before = tree(tmp_path)
    assert cni_py_command("install", "--dry-run") == 0
    told = capsys.readouterr().out.splitlines()
    assert f"would install {bin_dir}/bridge" in told
    assert f"would keep the replaced bridge in {bin_dir}/.cni-py/replaced" in told
    assert all(line.startswith(("would ", "no container runtime found")) for line in told)
    assert tree(tmp_path) == before
    cni_py_command("install")
    installed = tree(tmp_path)
    assert cni_py_command("uninstall", "--dry-run") == 0
    assert tree(tmp_path) == installed


def test_a_folder_with_two_names_gets_its_plugins_back(
    cni_py_command: Command, bin_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A symbolic link, "..", and another place since the installation: then nothing may be thrown away."""
    put_plugin(bin_dir, "bridge")
    (tmp_path / "link").symlink_to(bin_dir)
    for name in (tmp_path / "link", bin_dir / ".." / "bin"):
        assert cni_py_command("install", "--bin-dir", str(name)) == 0
        assert cni_py_command("uninstall") == 0
        assert (bin_dir / "bridge").read_bytes() == GO
        assert not (bin_dir / ".cni-py").exists()
    cni_py_command("install")
    moved = bin_dir.rename(bin_dir.with_name("moved"))
    for _ in range(2):
        assert cni_py_command("uninstall", "--bin-dir", str(moved)) == 1
        assert f"{moved}/.cni-py is left as it is" in capsys.readouterr().err
    assert (moved / ".cni-py/replaced/bridge").read_bytes() == GO


def test_uninstall_without_a_folder_of_replaced_plugins(cni_py_command: Command, bin_dir: Path, tmp_path: Path) -> None:
    cni_py_command("install")
    (bin_dir / ".cni-py/replaced").rmdir()  # empty: rsync and git leave such a folder out
    assert cni_py_command("uninstall") == 0
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", ["05-mine.conflist", "99-mine.conf", "mine.json"])
def test_no_network_is_added_to_somebodys_own(cni_py_command: Command, conf_dir: Path, name: str) -> None:
    conf_dir.mkdir(parents=True)
    (conf_dir / name).write_text("{}")
    assert cni_py_command("install") == 0
    assert [path.name for path in conf_dir.iterdir()] == [name]
    assert cni_py_command("uninstall") == 0
    assert [path.name for path in conf_dir.iterdir()] == [name]


def test_the_first_network_is_one_that_older_runtimes_know(cni_py_command: Command, conf_dir: Path) -> None:
    conf_dir.mkdir(parents=True)
    (conf_dir / "readme.txt").touch()
    assert cni_py_command("install") == 0
    network = json.loads((conf_dir / default_network.FILE).read_text())
    assert network["cniVersion"] == "1.0.0"
    (chain,) = network["plugins"]
    assert chain["type"] == "chain"
    assert [plugin["type"] for plugin in chain["plugins"]] == ["bridge", "portmap", "firewall", "tuning"]


def test_what_was_changed_since_is_left_and_named(
    cni_py_command: Command, bin_dir: Path, conf_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_plugin(bin_dir, "bridge")
    cni_py_command("install")
    (bin_dir / "bridge").write_bytes(b"a newer one")
    (conf_dir / default_network.FILE).write_text("{}")
    assert cni_py_command("uninstall") == 1
    told = capsys.readouterr().err
    assert f"{bin_dir}/bridge is left as it is: it was changed after the installation" in told
    assert f"{bin_dir}/.cni-py/replaced/bridge" in told
    assert f"{conf_dir}/{default_network.FILE} is left as it is: it was changed after" in told
    assert (bin_dir / "bridge").read_bytes() == b"a newer one"
    assert not (bin_dir / "portmap").exists()
    (bin_dir / "bridge").unlink()
    (conf_dir / default_network.FILE).unlink()
    assert cni_py_command("uninstall") == 0
    assert (bin_dir / "bridge").read_bytes() == GO


def test_a_plugin_that_a_package_brought_meanwhile_is_the_one_that_comes_back(
    cni_py_command: Command, bin_dir: Path
) -> None:
    put_plugin(bin_dir, "bridge")
    cni_py_command("install")
    (bin_dir / "bridge").write_bytes(b"version 2")
    assert cni_py_command("install") == 0
    assert cni_py_command("uninstall") == 0
    assert (bin_dir / "bridge").read_bytes() == b"version 2"


def test_another_environments_launcher_is_replaced_but_not_kept(
    cni_py_command: Command, bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_plugin(bin_dir, "bridge")
    monkeypatch.setattr(sys, "executable", "/old/python")
    cni_py_command("install")
    monkeypatch.undo()
    assert cni_py_command("install") == 0
    assert (bin_dir / "bridge").read_bytes() == launchers.launcher("bridge")
    assert cni_py_command("uninstall") == 0
    assert (bin_dir / "bridge").read_bytes() == GO


class Stopped(BaseException):
    """What ends a command at some step."""


def stopped(monkeypatch: pytest.MonkeyPatch, run: Callable[[], int], step: int) -> bool:
    """Whether `run` was stopped: it is before its change of the file system number `step`."""
    left = [step]

    def stopping(real: Callable[..., None]) -> Callable[..., None]:
        def instead(*arguments: object, **named: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Stopped
            real(*arguments, **named)

        return instead

    with monkeypatch.context() as patch:
        for name in ("replace", "link", "unlink", "rmdir"):
            patch.setattr(os, name, stopping(getattr(os, name)))
        try:
            run()
        except Stopped:
            return True
    return False


def files(top: Path) -> dict[str, tuple[int, bytes]]:
    """Without folders, our notes on them, and files that were being written (no runtime looks at names like theirs)."""
    return {
        path: entry
        for path, entry in tree(top).items()
        if not Path(path).name.startswith((".", "manifest")) and not stat.S_ISDIR(entry[0])
    }


def test_interrupted_anywhere_it_can_be_repeated_and_taken_back(
    cni_py_command: Command, tmp_path: Path, bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_plugin(bin_dir, "bridge")
    (bin_dir / "portmap").symlink_to("bridge")
    before = files(tmp_path)
    cni_py_command("install")
    installed = files(tmp_path)
    cni_py_command("uninstall")
    step = 0
    while stopped(monkeypatch, lambda: cni_py_command("install"), step):
        there = [path.read_bytes() for path in (bin_dir / name for name in MODULES) if path.exists()]
        assert set(there) <= {GO, *map(launchers.launcher, MODULES)}
        assert cni_py_command("install") == 0
        assert files(tmp_path) == installed
        assert cni_py_command("uninstall") == 0
        assert files(tmp_path) == before
        step += 1
    assert step > len(MODULES)
    step = 0
    while stopped(monkeypatch, lambda: cni_py_command("uninstall"), step):
        cni_py_command("uninstall")
        assert files(tmp_path) == before
        cni_py_command("install")
        step += 1
    assert step > len(MODULES)


def test_uninstall_without_install_says_so(
    cni_py_command: Command, bin_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cni_py_command("uninstall") == 1
    assert f"nothing is installed in {bin_dir}" in capsys.readouterr().err


def test_a_damaged_manifest_is_named(
    cni_py_command: Command, bin_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cni_py_command("install")
    (bin_dir / ".cni-py" / "manifest.json").write_text("[]")
    assert cni_py_command("uninstall") == 1
    assert "manifest.json is damaged" in capsys.readouterr().err


def test_a_folder_in_the_place_of_a_plugin_is_an_error(
    cni_py_command: Command, bin_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bin_dir / "bridge").mkdir(parents=True)
    assert cni_py_command("install") == 1
    assert f"{bin_dir}/bridge: Is a directory" in capsys.readouterr().err


def test_without_permission_it_says_what_to_do(
    cni_py_command: Command, bin_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(bin_dir))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    assert cni_py_command("install") == 3
    assert f"{bin_dir}: Permission denied; run this as root, or choose other folders" in capsys.readouterr().err


def test_a_full_disk_is_told_with_the_file(
    cni_py_command: Command, bin_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert cni_py_command("install") == 1
    assert f"{bin_dir}/.cni-py/manifest.json: No space left on device" in capsys.readouterr().err


def test_two_at_once_wait_for_each_other(cni_py_command: Command, bin_dir: Path, tmp_path: Path) -> None:
    put_plugin(bin_dir, "bridge")
    before = tree(tmp_path)
    command = Path(sys.executable).with_name("cni-py")
    folders = ("--launcher=python", "--bin-dir", bin_dir, "--conf-dir", tmp_path / "net.d")
    both = [subprocess.Popen([command, "install", *folders], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert cni_py_command("uninstall") == 0
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["a b", "it's", "x" * 130, "tab\there", "caf\u00e9 \u2603"])
def test_an_interpreter_that_a_first_line_cannot_name(
    cni_py_command: Command, bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    python = tmp_path / name / "python3"
    python.parent.mkdir()
    python.symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", str(python))
    assert cni_py_command("install") == 0
    path = bin_dir / "host-local"
    assert is_own_launcher(str(path))
    done = answer(path, CNI_COMMAND="VERSION")
    assert (done.returncode, done.stderr) == (0, "")
    assert answer(path).stderr.startswith("CNI host-local plugin")


def test_an_interpreter_that_no_script_can_name_is_refused(
    cni_py_command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/a\nb")
    assert cni_py_command("install") == 3
    assert "a script cannot name this interpreter" in capsys.readouterr().err


def test_usage_errors_are_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["install", "--bindir", "/x"])
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main(["install", "--help"])
    assert ended.value.code == 0
    assert "examples:" in capsys.readouterr().out
