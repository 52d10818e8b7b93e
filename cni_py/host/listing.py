"""`nft -j list ruleset`, read: elements of maps, and the rules that translate addresses. Pure; libnftables-json(5).

The text may be of another host, or damaged: what is not understood is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Table = tuple[str, str]  # family and name: ("inet", "cni_py")
PORT_PROTOCOLS = ("tcp", "udp", "sctp")


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set or map: `key` has a part for each type; the value of a map is likewise, or ("jump", chain)."""

    key: tuple[Any, ...]
    value: tuple[Any, ...] = ()
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule; `expressions` as in the JSON."""

    table: Table
    chain: str
    handle: int
    expressions: tuple[Any, ...]
    comment: str = ""

    @property
    def place(self) -> str:
        """Where it is, as nft(8) names it: "ip nat DOCKER handle 7"."""
        return f"{' '.join(self.table)} {self.chain} handle {self.handle}"


@dataclass(slots=True)
class Listing:
    """What a ruleset has."""

    tables: list[Table] = field(default_factory=list)
    sets: dict[tuple[Table, str], list[Element]] = field(default_factory=dict)  # and maps
    chains: set[tuple[Table, str]] = field(default_factory=set)
    rules: list[Rule] = field(default_factory=list)

    def elements(self, table: Table, name: str) -> list[Element]:
        """Those of a set or map; none if it is not there."""
        return self.sets.get((table, name), [])

    def names(self, table: Table) -> tuple[list[str], list[str], list[str]]:
        """Of a table: its chains, the chain of each rule, its sets and maps."""
        return (
            [name for home, name in self.chains if home == table],
            [rule.chain for rule in self.rules if rule.table == table],
            [name for home, name in self.sets if home == table],
        )


def parse(text: str) -> Listing:
    """The ruleset in a text; an empty one when it is none."""
    found = Listing()
    try:
        document = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        document = {}
    entries = document.get("nftables") if isinstance(document, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        for kind, body in entry.items() if isinstance(entry, dict) else ():
            if isinstance(body, dict):
                _enter(found, kind, body)
    return found


def _enter(found: Listing, kind: str, body: dict[str, Any]) -> None:
    name = str(body.get("name", ""))
    table = (str(body.get("family", "")), name if kind == "table" else str(body.get("table", "")))
    if kind == "table":
        found.tables.append(table)
    elif kind in ("set", "map"):
        elements = body.get("elem")
        found.sets[table, name] = [_element(one, kind) for one in elements] if isinstance(elements, list) else []
    elif kind == "chain":
        found.chains.add((table, name))
    elif kind == "rule":
        expressions, handle = body.get("expr"), body.get("handle")
        found.rules.append(
            Rule(
                table,
                str(body.get("chain", "")),
                handle if isinstance(handle, int) else 0,
                tuple(expressions) if isinstance(expressions, list) else (),
                str(body.get("comment", "")),
            )
        )


def _element(raw: Any, kind: str) -> Element:
    key, value = (raw[0], raw[1]) if kind == "map" and isinstance(raw, list) and len(raw) == 2 else (raw, None)
    comment = ""
    if isinstance(key, dict) and isinstance(key.get("elem"), dict):
        comment = str(key["elem"].get("comment", ""))
        key = key["elem"].get("val")
    return Element(parts(key), parts(value), comment)


def parts(value: Any) -> tuple[Any, ...]:
    """A key or value as its parts: texts and numbers, ("range", first, last), ("prefix", address, length).

    A verdict is ("jump", chain).
    """
    if value is None:
        return ()
    if isinstance(value, dict):
        if isinstance(value.get("concat"), list):
            return tuple(_part(one) for one in value["concat"])
        for verdict in ("jump", "goto"):
            if isinstance(value.get(verdict), dict):
                return ("jump", str(value[verdict].get("target", "")))
    return (_part(value),)


def _part(value: Any) -> Any:
    if isinstance(value, dict):
        prefix, span = value.get("prefix"), value.get("range")
        if isinstance(prefix, dict):
            return ("prefix", str(prefix.get("addr", "")), prefix.get("len", 0))
        if isinstance(span, list) and len(span) == 2:
            return ("range", span[0], span[1])
        return json.dumps(value, sort_keys=True)
    return value


@dataclass(frozen=True, slots=True)
class Matches:
    """What a rule asks of a packet, as far as it is understood here; `other` when it asks for more."""

    protocol: str = ""
    sources: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()  # destination ports, first and last
    other: bool = False


def matches(rule: Rule) -> Matches:
    """The addresses, protocol and ports that a rule compares with values."""
    protocol = ""
    found: dict[str, list[Any]] = {"saddr": [], "daddr": [], "dport": []}
    other = False
    for expression in rule.expressions:
        match = expression.get("match") if isinstance(expression, dict) else None
        if not isinstance(match, dict):
            continue
        payload, meta = (_inner(match.get("left"), name) for name in ("payload", "meta"))
        values = _values(match.get("right")) if match.get("op") in ("==", "in") else None
        if payload.get("field") in found and values is not None:
            found[str(payload["field"])] += values
            if payload.get("protocol") in PORT_PROTOCOLS:
                protocol = str(payload["protocol"])
        elif meta.get("key") == "l4proto" and values and values[0] in PORT_PROTOCOLS:
            protocol = str(values[0])
        else:
            other = True
    ports = tuple(filter(None, map(_span, found["dport"])))
    return Matches(protocol, _texts(found["saddr"]), _texts(found["daddr"]), ports, other)


def _inner(value: Any, name: str) -> dict[str, Any]:
    inner = value.get(name) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def _values(right: Any) -> list[Any] | None:
    """The values that a match compares with; None for the name of a set."""
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        return [_part(one) for one in right["set"]]
    if isinstance(right, str) and right.startswith("@"):
        return None
    return [_part(right)]


def _span(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, tuple) and value[0] == "range" and all(isinstance(end, int) for end in value[1:]):
        return value[1], value[2]
    return None


def _texts(values: list[Any]) -> tuple[str, ...]:
    """Addresses as texts: 192.0.2.1, 192.0.2.0/24, 192.0.2.1-192.0.2.9."""
    found = []
    for value in values:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, tuple):
            found.append(f"{value[1]}{'/' if value[0] == 'prefix' else '-'}{value[2]}")
    return tuple(found)


def statements(listing: Listing, name: str) -> Iterator[tuple[Rule, Any]]:
    """The rules that have a statement of that name ("dnat", "masquerade"), each with what is inside."""
    for rule in listing.rules:
        for expression in rule.expressions:
            if isinstance(expression, dict) and name in expression:
                yield rule, expression[name]
