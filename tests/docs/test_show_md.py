"""docs/show.md: its pictures are those that are drawn, its tables have every key, its options are those that there are."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import typing
from pathlib import Path

import pytest

from cni_py.commands import show
from cni_py.commands.report import Parser
from cni_py.host import model
from cni_py.show import choice, diff
from cni_py.show.lines import Look, plain_text
from cni_py.show.text import Most, picture
from tests.unit.show import models

DOCUMENT = (Path(__file__).parents[2] / "docs" / "show.md").read_text()
HOST = models.documented()
CLASSES = {
    name: one for name, one in vars(model).items() if inspect.isclass(one) and dataclasses.is_dataclass(one)
}  # fmt: skip


@pytest.mark.parametrize("name", ["whole", "db"])
def test_pictures_are_those_that_are_drawn(name: str) -> None:
    shown = re.findall(rf"<!-- picture: {name} -->\n```\n(.*?)```\n", DOCUMENT, re.DOTALL)
    host = HOST if name == "whole" else choice.only(HOST, name)
    assert shown == [plain_text(picture(host, Look(100), Most(), closely=name != "whole"))]


def test_the_differences_are_those_that_are_told() -> None:
    fixed = [dataclasses.replace(one, up=True, operstate="up") for one in HOST.root.links]
    before = dataclasses.replace(
        HOST,
        namespaces=(dataclasses.replace(HOST.root, links=tuple(fixed)), *HOST.namespaces[1:]),
        findings=HOST.findings[1:],
    )
    after = dataclasses.replace(HOST, ports=tuple(one for one in HOST.ports if one.first != 5432))
    assert [str(one) for one in diff.changes(before, after)] == [
        line for line in DOCUMENT.splitlines() if re.match(r"[-+~] (link|published|finding)", line)
    ]


def value(kind: object) -> str:
    """How a table calls a type of the model."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        several = arguments[-1] is Ellipsis
        return f"array of {value(arguments[0])}" if several else f"[{', '.join(map(value, arguments))}]"
    if isinstance(kind, type) and kind in CLASSES.values():
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    if origin is typing.Literal:
        return "text"
    return {str: "text", int: "number", float: "number", bool: "true or false"}[typing.cast(type, kind)]


@pytest.mark.parametrize("name", CLASSES)
def test_every_key_of_the_model_has_a_row(name: str) -> None:
    section = re.search(rf"^### {name}\n(.*?)^(?:###|##|<!--) ", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert section is not None
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*)\|$", section[1], re.MULTILINE)
    hints = typing.get_type_hints(CLASSES[name])
    expected = [(field.name, value(hints[field.name])) for field in dataclasses.fields(CLASSES[name])]
    assert [(key, kind) for key, kind, _ in rows] == expected
    for field in dataclasses.fields(CLASSES[name]):
        if typing.get_origin(hints[field.name]) is typing.Literal:
            assert all(f'`"{one}"`' in DOCUMENT for one in typing.get_args(hints[field.name]) if one)


def test_every_option_is_documented() -> None:
    top: argparse.ArgumentParser = Parser()
    show.add_parser(top.add_subparsers())
    actions = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    options = {text for action in actions.choices["show"]._actions for text in action.option_strings} - {"-h", "--help"}
    assert {text for text in options if f"`{text}" not in DOCUMENT and f" {text}" not in DOCUMENT} == set()
