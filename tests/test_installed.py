"""The tests are about the installed wheel, not the checkout: what is forgotten in packaging must be missed."""

import os
import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import cni_py
from tests.clients import fetch_debs, nerdctl_rootless
from tests.kernels import emulator

ROOT = Path(__file__).parent.parent


def test_the_package_under_test_is_the_installed_one() -> None:
    in_place = Path(cni_py.__file__).is_relative_to(ROOT / "cni_py")
    if in_place and not os.environ.get("CI"):
        pytest.skip("the checkout is tested in place, while it is being changed")
    assert not in_place
    assert metadata.version("cni-py") == cni_py.__version__


def test_the_package_brings_what_its_commands_need() -> None:
    """And README names each of them with its reason."""
    needed = {
        line.split(">")[0].split("<")[0].lower() for line in metadata.requires("cni-py") or () if "extra ==" not in line
    }
    assert needed == {"jsonschema", "pyroute2", "pyyaml", "rich", "shtab"}
    reasons = (ROOT / "README.md").read_text().partition("## Dependencies")[2].lower()
    assert all(f"| {name}" in reasons or f", {name} |" in reasons for name in needed)


def test_readme_names_what_the_tests_unpack() -> None:
    reasons = (ROOT / "README.md").read_text().partition("## Dependencies")[2]
    named = set(re.findall(r"[a-z][a-z0-9.-]+", reasons))
    wanted = {*fetch_debs.PACKAGES, fetch_debs.BROWSER[0], *nerdctl_rootless.PACKAGES, *emulator.PROGRAMS.values()}
    assert wanted <= named


def test_the_wheel_brings_its_configurations() -> None:
    for folder, pattern in (("", "*.conflist"), ("schemas", "*.json")):
        conf = resources.files("cni_py.conf")
        names = {entry.name for entry in (conf.joinpath(folder) if folder else conf).iterdir()}
        assert {path.name for path in (ROOT / "conf" / folder).glob(pattern)} <= names


def test_the_wheel_brings_the_parts_of_the_page() -> None:
    names = {entry.name for entry in resources.files("cni_py.show").iterdir()}
    assert {"page.html", "page.css", "page.js", "drawing.css"} <= names


@pytest.mark.parametrize("command", ["cni-py", "cni-py-exec", "portfwd"])
def test_the_commands_explain_themselves(command: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name(command), "--help"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {command}")
    assert "exit status" in done.stdout.lower()
