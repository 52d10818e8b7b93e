"""Launchers under other names, and launchers whose environment is gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab import Lab

import cni_py
from cni_py.commands import launchers
from cni_py.run import MODULES, is_own_launcher
from tests.commands.conftest import Command

HOME = Path(cni_py.__file__).resolve().parent.parent
OLD = "#!{python} -IS\nimport sys\nsys.path.append({home!r})\nfrom cni_py.run import main\nmain()\n"  # of 0.1.0


def run(executable: Path, conf: object = None, **environ: str) -> subprocess.CompletedProcess[str]:
    text = "" if conf is None else json.dumps(conf)
    return subprocess.run(
        [executable], env=environ, input=text, capture_output=True, text=True, timeout=30, check=False
    )


def old_launcher(path: Path, home: Path = HOME) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OLD.format(python=sys.executable, home=str(home)))
    path.chmod(0o755)
    return path


def status_of(executable: Path, bin_dir: Path) -> subprocess.CompletedProcess[str]:
    """STATUS with the configuration of a network that asks nothing of the host."""
    conf = {"cniVersion": "1.1.0", "name": "n", "type": executable.name, "ipam": {"type": "static"}}
    return run(executable, conf, CNI_COMMAND="STATUS", CNI_PATH=str(bin_dir))


@pytest.mark.parametrize("plugin", sorted(MODULES))
def test_a_copy_under_a_name_of_its_own_is_the_same_plugin(
    cni_py_command: Command, bin_dir: Path, plugin: str, tmp_path: Path
) -> None:
    cni_py_command("install")
    copy = tmp_path / f"vendor-{plugin}"
    shutil.copy2(bin_dir / plugin, copy)
    linked = tmp_path / f"linked-{plugin}"
    linked.symlink_to(bin_dir / plugin)
    to_a_link = tmp_path / "another"
    to_a_link.symlink_to(linked.name)
    for executable in (copy, linked, to_a_link):
        assert run(executable).stderr == run(bin_dir / plugin).stderr
        assert run(executable, CNI_COMMAND="VERSION").stdout == run(bin_dir / plugin, CNI_COMMAND="VERSION").stdout
        assert status_of(executable, bin_dir).stdout == status_of(bin_dir / plugin, bin_dir).stdout


def test_a_name_of_ours_goes_before_what_the_text_says(cni_py_command: Command, bin_dir: Path, tmp_path: Path) -> None:
    """Some installations copy or link one executable under all names."""
    cni_py_command("install")
    shutil.copy2(bin_dir / "bridge", tmp_path / "loopback")
    (tmp_path / "tuning").symlink_to(bin_dir / "bridge")
    assert run(tmp_path / "loopback").stderr.startswith("CNI loopback plugin")
    assert run(tmp_path / "tuning").stderr.startswith("CNI tuning plugin")


def test_a_launcher_of_the_version_before_works_and_is_recognised(
    cni_py_command: Command, bin_dir: Path, tmp_path: Path
) -> None:
    path = old_launcher(bin_dir / "portmap")
    assert is_own_launcher(str(path))
    assert run(path).stderr.startswith("CNI portmap plugin")
    link = tmp_path / "vendor-portmap"
    link.symlink_to(path)
    assert run(link).stderr.startswith("CNI portmap plugin")
    assert cni_py_command("install") == 0
    assert path.read_bytes() == launchers.launcher("portmap")
    assert not (bin_dir / ".cni-py/replaced/portmap").exists()  # it was ours


@pytest.mark.parametrize("verb", ["ADD", "DEL", "STATUS", "GC"])
def test_a_copy_of_an_old_launcher_says_plainly_what_is_wrong(tmp_path: Path, verb: str) -> None:
    path = old_launcher(tmp_path / "vendor-bridge")
    netns = {"CNI_CONTAINERID": "c", "CNI_NETNS": "/nowhere", "CNI_IFNAME": "eth0", "CNI_PATH": str(tmp_path)}
    done = run(path, {"cniVersion": "1.1.0", "name": "n", "type": "vendor-bridge"}, CNI_COMMAND=verb, **netns)
    assert done.returncode == 1
    assert '"vendor-bridge" does not tell which plugin it is' in json.loads(done.stdout)["msg"]
    assert "Traceback" not in done.stderr


def test_a_launcher_reads_the_settings_with_the_yaml_beside_the_package(lab: Lab, our_bin_dir: Path) -> None:
    """Without site (-S), and without the distribution's."""
    hidden = "mkdir -p /usr/lib/python3/dist-packages; mount -t tmpfs lab /usr/lib/python3/dist-packages"
    settings = "mkdir -p /etc/cni-py; echo 'backend: none' >/etc/cni-py/config.yaml"
    lab["host"].run(["sh", "-ec", f"{hidden}; {settings}"], check=True)
    conf = {"cniVersion": "1.1.0", "name": "n", "type": "portmap", "capabilities": {"portMappings": True}}
    environ = {"CNI_COMMAND": "STATUS", "CNI_PATH": str(our_bin_dir)}
    done = lab["host"].run([str(our_bin_dir / "portmap")], env=environ, input=json.dumps(conf))
    assert "/etc/cni-py/config.yaml, line 1: backend is one of" in json.loads(done.stdout)["msg"]


def environment(folder: Path) -> Path:
    """A virtual environment with the package in it; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    site = next(folder.glob("lib/python3*/site-packages"))
    shutil.copytree(HOME / "cni_py", site / "cni_py", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "bin" / "python"


def installed_by(python: Path, folder: Path) -> Path:
    """The bridge launcher that the environment of an interpreter installs."""
    command = "import sys; from cni_py.commands.main import main; sys.exit(main())"
    words = ["install", "--launcher=python", "--bin-dir", str(folder / "bin"), "--conf-dir", str(folder / "net.d")]
    subprocess.run([python, "-I", "-c", command, *words], check=True, timeout=60, capture_output=True)
    return folder / "bin" / "bridge"


def uninstall_package(home: Path) -> None:
    shutil.rmtree(next(home.glob("lib/python3*/site-packages/cni_py")))


def move(home: Path) -> None:
    home.rename(home.with_name("moved"))


def damage(home: Path) -> None:
    next(home.glob("lib/python3*/site-packages/cni_py/run.py")).write_text("from cni_py import nothing_of_this_name\n")


@pytest.mark.parametrize("lose", [uninstall_package, move, shutil.rmtree, damage])
@pytest.mark.parametrize("verb", ["VERSION", "ADD", "DEL"])
def test_a_lost_environment_is_an_error_object_that_names_it(tmp_path: Path, verb: str, lose: object) -> None:
    home = tmp_path / "venv"
    bridge = installed_by(environment(home), tmp_path)
    assert run(bridge, CNI_COMMAND="VERSION").returncode == 0
    assert callable(lose)
    lose(home)
    done = run(bridge, {}, CNI_COMMAND=verb)
    assert (done.returncode, done.stderr) == (1, "")
    error = json.loads(done.stdout)
    assert error["code"] == 999
    assert "bridge" in error["msg"]
    assert str(home) in error["details"]
    assert "cni-py install" in error["details"]


def test_half_a_package_is_an_error_object_that_names_it(tmp_path: Path) -> None:
    """An upgrade or a removal that was interrupted."""
    home = tmp_path / "venv"
    bridge = installed_by(environment(home), tmp_path)
    shutil.rmtree(next(home.glob("lib/python3*/site-packages/cni_py/plugins")))
    done = run(bridge, {"cniVersion": "1.1.0", "name": "n"}, CNI_COMMAND="STATUS", CNI_PATH="/nowhere")
    assert (done.returncode, done.stderr) == (1, "")
    error = json.loads(done.stdout)
    assert "No module named 'cni_py.plugins'" in error["msg"]
    assert str(home) in error["details"]


def test_the_first_line_names_no_link_of_the_environment(tmp_path: Path) -> None:
    """An upgrade of the distribution's Python, or a move of the environment, then leaves the interpreter where it is."""
    home = tmp_path / "venv"
    first = installed_by(environment(home), tmp_path).read_text().partition("\n")[0]
    assert str(home) not in first
    assert os.access(first.removeprefix("#!").removesuffix(" -IS"), os.X_OK)


def test_an_environment_with_an_interpreter_of_its_own_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "bin" / "python3"
    own.parent.mkdir()
    shutil.copy2(os.path.realpath(sys.executable), own)
    (tmp_path / "bin" / "python").symlink_to("python3")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert launchers.interpreter() == str(own)


@pytest.mark.parametrize("name", ["a b", "it's", 'quo"te'])
def test_an_interpreter_that_is_gone_is_named_where_a_shell_starts_it(
    cni_py_command: Command, bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    python = tmp_path / name / "with a blank" / "python3"
    python.parent.mkdir(parents=True)
    python.symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", str(python))
    cni_py_command("install")
    assert run(bin_dir / "bridge", CNI_COMMAND="VERSION", PATH=os.defpath).returncode == 0
    python.unlink()
    done = run(bin_dir / "bridge", CNI_COMMAND="VERSION", PATH=os.defpath)
    assert (done.returncode, done.stderr) == (1, "")
    assert str(python) in json.loads(done.stdout)["msg"]
