"""nft's JSON back into the words that `nft list ruleset` prints, as far as a reader needs them."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from typing import TYPE_CHECKING

from cni_py.explain.values import Json

if TYPE_CHECKING:
    from cni_py.explain.sets import Element

TEXT_MAX = 300
WITHOUT_META = ("iif", "oif", "iifname", "oifname", "mark", "iifgroup", "oifgroup", "skuid", "skgid")


def rule(expressions: list[Json]) -> str:
    """A rule in one line."""
    return clean(" ".join(expression(one) for one in expressions))


def element(one: Element, place: Json) -> str:
    """element tcp . 8080 : 10.88.0.2 . 80 in map any4."""
    name = f" in map {place[1:]}" if isinstance(place, str) else ""
    return clean(f"element {value(one.json)} : {verdict(one.data)}{name}")


def clean(text: str) -> str:
    """Cut to a line that is fit to be read; names and comments may hold anything."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 3] + "..."


def expression(one: Json) -> str:
    """A match or statement."""
    if not isinstance(one, dict) or len(one) != 1:
        return str(one)
    [(key, inner)] = one.items()
    try:
        return _expression(str(key), inner)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError):
        return json_module.dumps(one)


def _expression(key: str, inner: Json) -> str:
    writer = STATEMENTS.get(key)
    if writer is not None:
        return writer(inner)
    return f"{key} {value(inner)}" if inner else key


def _match(inner: Json) -> str:
    operator = {"==": "", "in": "", "!": "! "}.get(inner["op"], f"{inner['op']} ")
    return f"{value(inner['left'])} {operator}{value(inner['right'])}"


def _reject(inner: Json) -> str:
    return f"reject with {inner.get('type')} {inner.get('expr') or ''}".strip() if inner else "reject"


def _limit(inner: Json) -> str:
    return f"limit rate {'over ' if inner.get('inv') else ''}{inner['rate']}/{inner['per']}"


def _log(inner: Json) -> str:
    return f'log prefix "{inner["prefix"]}"' if isinstance(inner, dict) and "prefix" in inner else "log"


def _translation(key: str, inner: Json) -> str:
    if not inner:
        return key
    family = f" {inner['family']}" if "family" in inner else ""
    to = value(inner["addr"]) if "addr" in inner else ""
    port = f":{value(inner['port'])}" if "port" in inner else ""
    return f"{key}{family} to {to}{port}" if to or port else key


def verdict(data: Json) -> str:
    """A verdict, or what else a map has."""
    return expression(data) if isinstance(data, dict) and data.keys() & {"jump", "goto"} else value(data)


def value(one: Json) -> str:
    """What a match compares, and with what."""
    if isinstance(one, bool):
        return "exists" if one else "missing"
    if isinstance(one, list):
        return ",".join(value(part) for part in one)
    if not isinstance(one, dict) or len(one) != 1:
        return str(one)
    [(key, inner)] = one.items()
    words = _value(str(key), inner)
    return words if words is not None else json_module.dumps(one)


def _value(key: str, inner: Json) -> str | None:
    writer = VALUES.get(key)
    if writer is not None:
        return writer(inner)
    if key in ("&", "|", "^", "<<", ">>"):
        return f" {key} ".join(f"({value(part)})" if isinstance(part, list) else value(part) for part in inner)
    if key in ("ct", "socket", "rt", "osf"):
        return " ".join(str(word) for word in (key, inner.get("dir", ""), inner["key"]) if word)
    return key if inner is None else None


def _payload(inner: Json) -> str:
    raw = f"@{inner.get('base')},{inner.get('offset')},{inner.get('len')}"
    return f"{inner['protocol']} {inner['field']}" if "field" in inner else raw


def _meta(inner: Json) -> str:
    return str(inner["key"]) if inner["key"] in WITHOUT_META else f"meta {inner['key']}"


def _fib(inner: Json) -> str:
    flags = inner["flags"] if isinstance(inner["flags"], list) else [inner["flags"]]
    return f"fib {' . '.join(flags)} {inner['result']}"


def _set(inner: Json) -> str:
    return "{ " + ", ".join(_member(part) for part in inner) + " }" if isinstance(inner, list) else value(inner)


def _member(part: Json) -> str:
    return f"{value(part[0])} : {verdict(part[1])}" if isinstance(part, list) and len(part) == 2 else value(part)


STATEMENTS: dict[str, Callable[[Json], str]] = {
    "match": _match,
    "vmap": lambda inner: f"{value(inner['key'])} vmap {value(inner['data'])}",
    "mangle": lambda inner: f"{value(inner['key'])} set {value(inner['value'])}",
    "reject": _reject,
    "set": lambda inner: f"{inner['op']} {inner['set']} {{ {value(inner['elem'])} }}",
    "limit": _limit,
    "log": _log,
    "jump": lambda inner: f"jump {inner['target']}",
    "goto": lambda inner: f"goto {inner['target']}",
    "xt": lambda inner: f"xt {inner['type']} {inner['name']}",
    "counter": lambda _: "counter",
    "dnat": lambda inner: _translation("dnat", inner),
    "snat": lambda inner: _translation("snat", inner),
    "masquerade": lambda inner: _translation("masquerade", inner),
    "redirect": lambda inner: _translation("redirect", inner),
    "tproxy": lambda inner: _translation("tproxy", inner),
}
VALUES: dict[str, Callable[[Json], str]] = {
    "payload": _payload,
    "meta": _meta,
    "fib": _fib,
    "concat": lambda inner: " . ".join(value(part) for part in inner),
    "prefix": lambda inner: f"{inner['addr']}/{inner['len']}",
    "range": lambda inner: "-".join(value(end) for end in inner),
    "set": _set,
    "map": lambda inner: f"{value(inner['key'])} map {value(inner['data'])}",
    "elem": lambda inner: value(inner["val"]),
    "numgen": lambda inner: f"numgen {inner['mode']} mod {inner['mod']}",
}
