"""The tests are about the installed wheel, not the checkout: what is forgotten in packaging must be missed."""

import os
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import cni_py

ROOT = Path(__file__).parent.parent


def test_the_package_under_test_is_the_installed_one() -> None:
    in_place = Path(cni_py.__file__).is_relative_to(ROOT / "cni_py")
    if in_place and not os.environ.get("CI"):
        pytest.skip("the checkout is tested in place, while it is being changed")
    assert not in_place
    assert metadata.version("cni-py") == cni_py.__version__


def test_the_package_brings_what_reads_the_settings_file() -> None:
    needed = [line for line in metadata.requires("cni-py") or () if "extra ==" not in line]
    assert [line.split(">")[0].split("<")[0].lower() for line in needed] == ["pyyaml"]


def test_the_wheel_brings_its_configurations() -> None:
    names = {entry.name for entry in resources.files("cni_py.conf").iterdir()}
    assert {path.name for path in (ROOT / "conf").glob("*.conflist")} <= names


@pytest.mark.parametrize("command", ["cni-py", "cni-py-exec", "portfwd"])
def test_the_commands_explain_themselves(command: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name(command), "--help"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {command}")
    assert "exit status" in done.stdout.lower()
