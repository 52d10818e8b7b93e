"""Names of others, made fit to print: in every command by the same function."""

import ast
from pathlib import Path

import pytest

import cni_py
from cni_py.host.printable import plain


@pytest.mark.parametrize(
    ("name", "shown"),
    [("web", "web"), ("größe", "größe"), ("a\x1b[31m\n", "a\\x1b[31m\\n"), ("x\u202ey", "x\\u202ey")],
)
def test_what_is_not_seen_is_escaped(name: str, shown: str) -> None:
    assert plain(name) == shown


def test_bytes_that_are_not_utf_8_can_be_printed() -> None:
    """os.fsdecode() gives halves of surrogate pairs, which no terminal takes."""
    assert plain("veth\udce4").encode() == b"veth\\udce4"


def test_no_other_module_escapes_for_itself() -> None:
    for path in Path(cni_py.__file__).parent.rglob("*.py"):
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        assert "unicode_escape" not in texts or path.name == "printable.py", path
