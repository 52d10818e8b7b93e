"""The image of the modules: what it is used for, and that a call is right whatever has become of it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import cni_py
from cni_py.commands import images

HERE = Path(cni_py.__file__).resolve().parent
WATCH = Path(__file__).with_name("watch_imports.py")
INSTALL = "import sys; from cni_py.commands.main import main; sys.exit(main())"
ATTEMPTS = 2
pytestmark = pytest.mark.xdist_group("image")  # one copy of the package for all


@dataclass(frozen=True)
class Site:
    """A copy of the package, and the plugins that were installed from it."""

    home: Path

    @property
    def package(self) -> Path:
        return self.home / "cni_py"

    @property
    def image(self) -> Path:
        (found,) = self.package.glob("__pycache__/*.image")
        return found

    def command(self, *words: str) -> subprocess.Popen[str]:
        if words == ("install",):
            words = ("install", "--launcher=python")
        folders = ["--bin-dir", str(self.home / "bin"), "--conf-dir", str(self.home / "net.d")]
        return subprocess.Popen(
            [sys.executable, "-c", INSTALL, *words, *folders],
            env={**os.environ, "PYTHONPATH": str(self.home)},
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> str:
        process = self.command(*words)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        return stdout

    def call(self, plugin: str = "bridge", shell: str = 'exec "$0"') -> Called:
        """STATUS of a network that asks nothing of the host, by a launcher that tells what it opened and imported."""
        first, rest = (self.home / "bin" / plugin).read_text().split("\n", 1)
        copy = self.home / plugin
        copy.write_text(f"{first}\nexec(open({str(WATCH)!r}).read())\n{rest}")
        copy.chmod(0o755)
        conf = {"cniVersion": "1.1.0", "name": "n", "type": plugin, "bridge": "nowhere0", "ipam": {"type": "static"}}
        environ = {"CNI_COMMAND": "STATUS", "CNI_PATH": str(self.home / "bin"), "REPORT": str(self.home / "report")}
        done = subprocess.run(
            ["sh", "-c", shell, str(copy)],
            env=environ,
            input=json.dumps(conf),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        report = ast.literal_eval((self.home / "report").read_text())
        opened = [str(Path(path).relative_to(self.package)) for path in report["opened"] if "cni_py/" in path]
        return Called(done.returncode, done.stdout, done.stderr, opened, report["modules"])


@dataclass(frozen=True)
class Called:
    """What a call answered; which files of the package it read as modules; the modules with their attributes."""

    status: int
    stdout: str
    stderr: str
    opened: list[str]
    modules: dict[str, tuple[object, ...]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site(tmp_path_factory.mktemp("site"))
    shutil.copytree(HERE, site.package, ignore=shutil.ignore_patterns("__pycache__"))
    site.run("install")
    return site


@pytest.fixture
def site(installed: Site, tmp_path: Path) -> Iterator[Site]:
    """As it was installed, also after a test that has changed it."""
    shutil.copytree(installed.package, tmp_path / "kept")
    yield installed
    shutil.rmtree(installed.package)
    shutil.copytree(tmp_path / "kept", installed.package)


def test_a_call_reads_its_modules_from_the_image_alone(site: Site) -> None:
    called = site.call()
    assert (called.status, called.stdout) == (0, "")
    assert len(called.modules) > 30
    assert called.opened == []


def test_modules_are_as_python_would_have_made_them(site: Site) -> None:
    called = site.call()
    site.image.unlink()
    plain = site.call()
    assert len(plain.opened) == len(plain.modules) == len(called.modules)
    assert called.modules == plain.modules


@pytest.mark.parametrize("what", ["its time", "its size"])
def test_a_module_whose_source_has_changed_is_read_from_it(site: Site, what: str) -> None:
    path = site.package / "plugins/bridge.py"
    before = path.stat()
    text = path.read_text()
    changed = text.replace("is not None and link.kind !=", "is     None or  link.kind !=")
    assert changed != text
    path.write_text(changed + ("" if what == "its time" else "\n"))
    if what == "its size":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size == before.st_size) == (what == "its time")
    called = site.call()
    assert called.status == 1
    assert "already exists but is not a bridge" in called.stdout
    assert {name.replace("__pycache__/", "").partition(".")[0] for name in called.opened} == {"plugins/bridge"}


@pytest.mark.parametrize("package", ["", "kernel", "plugins"])
def test_a_package_whose_text_has_changed_is_read_from_it(site: Site, package: str) -> None:
    path = site.package / package / "__init__.py"
    path.write_text(path.read_text() + "\nNEW = 1\n")
    called = site.call()
    assert (called.status, called.stdout, called.stderr) == (0, "", "")
    assert {Path(name).name.partition(".")[0] for name in called.opened} == {"__init__"}


def test_an_upgrade_without_an_installation_runs_the_new_sources(site: Site) -> None:
    """As pip does it: all files are new, and a module has gone with all imports of it, for another of a new name."""
    for path in site.package.rglob("*.py"):
        path.write_text(path.read_text().replace("cni_py.sha ", "cni_py.digests "))
    (site.package / "sha.py").rename(site.package / "digests.py")
    called = site.call()
    assert (called.status, called.stdout, called.stderr) == (0, "", "")
    assert "cni_py.digests" in called.modules
    assert "cni_py.sha" not in called.modules
    assert len(called.opened) > len(called.modules)  # each source, for its .pyc is of another time
    site.run("install")
    assert site.call().opened == []


def truncate(image: Path) -> None:
    os.truncate(image, image.stat().st_size // 2)


def empty(image: Path) -> None:
    os.truncate(image, 0)


def of_another_interpreter(image: Path) -> None:
    data = image.read_bytes()
    image.write_bytes(bytes((data[0] + 1,)) + data[1:])


def spoil_head(image: Path) -> None:
    data = image.read_bytes()
    image.write_bytes(data[:12] + b"\xff" * 4096 + data[4108:])


def spoil_modules(image: Path) -> None:
    data, head = image.read_bytes(), images.HEAD_MAX
    image.write_bytes(data[:head] + b"\xff" * (len(data) - head))


def let_the_group_write(image: Path) -> None:
    image.chmod(0o664)


def give_away(image: Path) -> None:
    os.chown(image, 12345, -1)


def make_a_folder(image: Path) -> None:
    image.unlink()
    image.mkdir()


HARM = [
    truncate,
    empty,
    of_another_interpreter,
    spoil_head,
    spoil_modules,
    let_the_group_write,
    give_away,
    make_a_folder,
    Path.unlink,
]


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_without_an_image_that_can_be_used_a_call_does_the_same(site: Site, harm: Callable[[Path], None]) -> None:
    harm(site.image)
    called = site.call()
    assert (called.status, called.stdout, called.stderr) == (0, "", "")
    assert len(called.opened) > 10


def test_an_image_is_not_taken_for_a_stream_that_is_closed(site: Site) -> None:
    called = site.call(shell='exec "$0" <&-')
    assert called.status == 1
    assert "cannot read the network configuration from stdin" in called.stdout


def test_two_installations_at_once_leave_one_whole_image(site: Site) -> None:
    for _ in range(ATTEMPTS):
        processes = [site.command("install"), site.command("install")]
        while any(process.poll() is None for process in processes):
            assert site.call().status == 0
        for process in processes:
            _, stderr = process.communicate()
            assert process.returncode == 0, stderr
    assert site.call().opened == []
    assert [path.name for path in site.image.parent.iterdir() if ".image" in path.name] == [site.image.name]


def test_install_and_uninstall_say_what_they_do_with_it(site: Site) -> None:
    image = site.image
    assert f"write {image}" in site.run("install")
    assert f"would remove {image}" in site.run("uninstall", "--dry-run")
    assert image.exists()
    assert f"remove {image}" in site.run("uninstall")
    assert not image.exists()
    site.run("install")
