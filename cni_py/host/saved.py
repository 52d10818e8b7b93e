"""A model as JSON, and back: the names are those of the fields in host/model.py. Pure, but for read() and write()."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import typing
from typing import Any, cast

from cni_py import files
from cni_py.host.model import SCHEMA, Host

SIZE_MAX = 1 << 30  # bytes that are read of a saved model
TIME_MAX = 253_402_300_799  # seconds since 1970: the last of the year 9999, which datetime can show
SHOWN_MAX = 64  # characters of a wrong value that an error repeats


class Unreadable(Exception):
    """Not a model of a host: a sentence."""


def to_json(value: object) -> Any:
    """Dataclasses become objects, tuples arrays; pairs of texts (sysctls, iptables) stay arrays of two."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(one) for one in value]
    return value


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    """Names and types. Evaluating the annotations anew for each object would take three quarters of the time."""
    return typing.get_type_hints(kind)


def from_json(kind: Any, raw: Any, where: str = "host") -> Any:
    """The value of type `kind` that `raw` says. Unknown fields are left out: a later version wrote them. Unreadable."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(raw, dict):
            raise Unreadable(f"{where} is not an object")
        known = {
            name: from_json(hint, raw[name], f"{where}.{name}")
            for name, hint in _fields(cast(type, kind)).items()
            if name in raw
        }
        try:
            return cast(type, kind)(**known)
        except TypeError as error:
            raise Unreadable(f"{where}: {error}") from error
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(raw, list):
            raise Unreadable(f"{where} is not an array")
        kinds = [arguments[0]] * len(raw) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(raw):
            raise Unreadable(f"{where} has {len(raw)} members, not {len(kinds)}")
        return tuple(
            from_json(one, part, f"{where}[{n}]") for n, (one, part) in enumerate(zip(kinds, raw, strict=True))
        )
    return _plain(kind, origin, arguments, raw, where)


# Asked for each kind once: it evaluates the annotations of a class, which are texts, and a model has thousands of objects.


def _plain(kind: Any, origin: Any, arguments: tuple[Any, ...], raw: Any, where: str) -> Any:
    if origin is typing.Literal:
        if raw not in arguments:
            raise Unreadable(f"{where} is {repr(raw)[:SHOWN_MAX]}, not one of {', '.join(map(repr, arguments))}")
        return raw
    if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        if not 0 <= raw <= TIME_MAX:  # false of NaN, too
            raise Unreadable(f"{where} is {str(raw)[:SHOWN_MAX]}, not a time")
        return float(raw)
    if not isinstance(raw, kind) or (kind is int and isinstance(raw, bool)):
        raise Unreadable(f"{where} is {type(raw).__name__}, not {kind.__name__}")
    return raw


def dumps(host: Host) -> str:
    """The model as JSON, a line for each value, so that a diff can be read."""
    return json.dumps(to_json(host), indent=1) + "\n"


def loads(text: str) -> Host:
    """The model in a text. Unreadable."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise Unreadable(f"not a host saved by `cni-py show --snapshot` (schema {SCHEMA})")
    host: Host = from_json(Host, raw)
    if not host.namespaces:
        raise Unreadable("host.namespaces is empty: the first is the host's own")
    return host


def read(path: str) -> Host:
    """The model in a file; "-" is stdin. Unreadable, OSError."""
    with open(0 if path == "-" else path, encoding="utf-8", closefd=path != "-") as file:
        try:
            text = file.read(SIZE_MAX)
        except UnicodeDecodeError as error:
            raise Unreadable(f"not UTF-8: {error.reason}") from error
    return loads(text)


def write(path: str, host: Host) -> None:
    """Save it, for its owner alone: it tells addresses and processes of the host. OSError.

    A device or a pipe is written to: only a file is replaced.
    """
    text = dumps(host).encode()
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as file:
            file.write(text)
    else:
        files.write(os.path.realpath(path), text)
