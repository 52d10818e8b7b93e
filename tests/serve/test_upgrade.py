"""The package changes while the service runs: no call fails, and the service loads the new one by itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import Lab
from runtime import ALL, Plugins

import cni_py
from tests.serve.test_calls import ENVIRONMENT, LOOPBACK
from tests.warm import Warm, wait_until

RUN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from cni_py.commands.main import main; sys.exit(main())"


@dataclass
class Copy:
    """An installation of its own."""

    home: Path
    plugins: Plugins

    @classmethod
    def make(cls, folder: Path) -> Copy:
        shutil.copytree(Path(cni_py.__file__).parent, folder / "home/cni_py")
        words = ["install", "--launcher=native", "--bin-dir", str(folder / "bin"), "--conf-dir", str(folder / "net.d")]
        subprocess.run([*command(folder / "home"), *words], check=True, timeout=60, capture_output=True)
        return cls(folder / "home", Plugins("ours", folder / "bin", ALL))

    def replace(self, name: str, text: str) -> None:
        """As installers do it: a new file in place of the old one."""
        path = self.home / "cni_py" / name
        new = path.with_suffix(".new")
        new.write_text(text)
        os.replace(new, path)


def command(home: Path) -> list[str]:
    return [sys.executable, "-c", RUN, str(home)]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy.make(tmp_path)


@pytest.fixture
def service(host: Lab, copy: Copy) -> Iterator[Warm]:
    with Warm(host, (*command(copy.home), "serve")) as warm:
        yield warm


def call(host: Lab, copy: Copy) -> None:
    environ = {**ENVIRONMENT, "CNI_PATH": "/"}
    done = host["host"].run([str(copy.plugins.directory / "loopback")], env=environ, input=json.dumps(LOOPBACK))
    assert (done.returncode, done.stderr) == (0, "")


def test_an_upgrade_breaks_no_call(host: Lab, copy: Copy, service: Warm) -> None:
    pid = service.ask()["pid"]
    call(host, copy)
    assert counted(service) == 1
    # Half of it, in what this plugin does not need: the service cannot begin anew before we have looked, however slow we are
    whole = (copy.home / "cni_py/ports/flows.py").read_text()
    copy.replace("ports/flows.py", "this is half a")
    call(host, copy)  # direct
    assert counted(service) == 1
    assert service.ask()["refused"] == {"the package has changed": 1}
    copy.replace("ports/flows.py", whole)
    copy.replace("errors.py", (copy.home / "cni_py/errors.py").read_text() + "# of the next version\n")
    wait_until(lambda: counted(service) == 0, "it has not begun anew")
    assert service.ask()["pid"] == pid
    call(host, copy)
    assert counted(service) == 1


def test_a_package_that_cannot_be_loaded_does_not_end_the_service(host: Lab, copy: Copy, service: Warm) -> None:
    """Half an upgrade, in what this plugin does not need."""
    whole = (copy.home / "cni_py/ports/flows.py").read_text()
    copy.replace("ports/flows.py", "this is half a")
    service.signal("HUP")
    call(host, copy)
    assert service.ask()["refused"] == {"the package has changed": 1}
    copy.replace("ports/flows.py", whole)
    service.signal("HUP")
    wait_until(lambda: service.ask().get("refused") == {}, "it has not begun anew")
    call(host, copy)
    assert counted(service) == 1
    service.signal("TERM")
    assert f"the package in {copy.home} cannot be loaded" in service.ended()


def counted(service: Warm) -> int:
    """Calls that it has run; -1 when it does not answer."""
    status = service.ask()
    return sum(row["calls"] for row in status["calls"]) if status else -1
