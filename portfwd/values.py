"""Readers of JSON values, for requests, files and what a predecessor hands over. Pure.

Each raises Usage for a value of another type.
"""

from __future__ import annotations

from collections.abc import Mapping as Object
from typing import Any

from portfwd.errors import Usage

Json = dict[str, object]


def text(raw: Object[str, object], name: str, default: str | None = None) -> str:
    """A field that holds a string."""
    value = raw.get(name, default)
    if not isinstance(value, str):
        raise Usage(f"{name} is a text")
    return value


def texts(raw: Object[str, object], name: str) -> tuple[str, ...]:
    """A field that holds a list of strings; () where it is left out."""
    value = raw.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise Usage(f"{name} is a list of texts")
    return tuple(value)


def integer(raw: Object[str, object], name: str, default: int | None = None) -> int:
    """A field that holds a whole number. JSON's true and false are none, although Python's bool is an int."""
    value = raw.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Usage(f"{name} is a whole number")
    return value


def number(raw: Object[str, object], name: str, default: float | None = None) -> float:
    """A field that holds a number."""
    value = raw.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Usage(f"{name} is a number")
    return float(value)


def flag(raw: Object[str, object], name: str) -> bool:
    """A field that holds true or false; False where it is left out."""
    value = raw.get(name, False)
    if not isinstance(value, bool):
        raise Usage(f"{name} is true or false")
    return value


def items(raw: Object[str, object], name: str) -> list[object]:
    """A field that holds a list."""
    value = raw.get(name)
    if not isinstance(value, list):
        raise Usage(f"{name} is a list")
    return value


def objects(raw: Object[str, object], name: str) -> list[Json]:
    """A field that holds a list of objects."""
    return [obj({name: one}, name) for one in items(raw, name)]


def obj(raw: Object[str, object], name: str) -> Json:
    """A field that holds an object."""
    value = raw.get(name)
    if not isinstance(value, dict):
        raise Usage(f"{name} is an object")
    return value


def row(value: object, *kinds: type) -> list[Any]:
    """The items of a list that has one item of each of these types, in this order."""
    if not isinstance(value, list) or len(value) != len(kinds) or not all(map(isinstance, value, kinds)):
        raise Usage(f"{value!r} is no list of {', '.join(kind.__name__ for kind in kinds)}")
    return value
