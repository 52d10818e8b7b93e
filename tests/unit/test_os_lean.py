"""os_lean: that plugins find all of `os` that they use in it, and that it is the same."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from cni_py import os_lean
from tests.house import ROOT

LATE = {"fdopen", "expanduser"}  # for a closed stderr, and for hostPort 0 without root
PATHS = [
    "/",
    "//",
    "",
    "a",
    "a/",
    "/a",
    "/a/b",
    "/a//b",
    "a/b/",
    "/etc",
    "/etc/passwd",
    "/proc/self/exe",
    "/nowhere",
    "a\0b",
]


def users() -> list[Path]:
    found = [path for top in ("cni_py", "plugins") for path in (ROOT / top).rglob("*.py")]
    return [path for path in found if "from cni_py.lean import os" in path.read_text()]


def test_what_plugins_use_is_there() -> None:
    """The standard module is loaded for the rest, which would cost each call 1 ms."""
    paths = users()
    assert len(paths) > 20
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or node.attr in LATE:
                continue
            if isinstance(node.value, ast.Name) and node.value.id == "os":
                assert node.attr in vars(os_lean), f"{path}: os.{node.attr}"
            if ast.unparse(node.value) == "os.path":
                assert node.attr in vars(os_lean.path), f"{path}: os.path.{node.attr}"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["exists", "lexists", "isdir", "isfile", "basename", "dirname", "expanduser"])
def test_paths_are_judged_alike(name: str, path: str) -> None:
    assert getattr(os_lean.path, name)(path) == getattr(os.path, name)(path)


def test_texts_and_the_rest_are_the_same(tmp_path: Path) -> None:
    for name in ("a", "ü", "a\udcffb", b"\xff/b", b"x"):
        assert os_lean.fsencode(name) == os.fsencode(name)
        assert os_lean.fsdecode(name) == os.fsdecode(name)
    assert os_lean.path.samestat(os.stat("/"), os.stat("/.")) is True
    assert os_lean.path.samestat(os.stat("/"), os.stat(tmp_path)) is False
    assert os_lean.SEEK_SET == os.SEEK_SET
    assert os_lean.open is os.open
    assert os_lean.fdopen is os.fdopen
    assert type(os_lean.environ) is dict
