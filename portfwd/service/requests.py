"""The requests of the control socket, read and checked. Pure.

    {"verb": "publish", "mappings": [...], "replace": false, "may_fail": false, "must_exist": false}
    {"verb": "remove", "ids": [...], "drain_s": 10.0}     or "owner": "attachment <hex>" in place of the ids
    {"verb": "list"}, {"verb": "stats"}, {"verb": "reload"}, {"verb": "handover", "version": 1}
    {"verb": "sticky", "name": "web"}       the ports remembered under a name, by container port: {"80/tcp": 40123}

A mapping's id may be "" (the service chooses one), and its owner "pid" (the process that asks).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from collections.abc import Mapping as Object
from dataclasses import dataclass

from portfwd.errors import PortfwdError, Usage
from portfwd.mapping import Mapping, is_name
from portfwd.values import flag, integer, texts

LINE_MAX = 1 << 20  # bytes of a request; 4,000 mappings
DRAIN_S_MAX = 10.0**6
OWNER = re.compile(r"attachment [0-9a-f]{16}|pid|pid [0-9]{1,10} [0-9]{1,20}")
ASKER = "pid"  # the owner that stands for the process that asks
FIELDS = {
    "publish": {"mappings", "replace", "may_fail", "must_exist"},
    "remove": {"ids", "owner", "drain_s"},
    "list": set[str](),
    "stats": set[str](),
    "sticky": {"name"},
    "reload": set[str](),
    "handover": {"version"},
}


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish all mappings or none; with `may_fail` those that can be published.

    With `must_exist` the namespaces of targets have to exist now; without it they may come later.
    """

    mappings: tuple[Mapping, ...]
    replace: bool
    may_fail: bool
    must_exist: bool = False


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove mappings by id, all of which must exist, or all mappings of an owner."""

    ids: tuple[str, ...]
    owner: str
    drain_s: float


@dataclass(frozen=True, slots=True)
class Listing:
    """List all mappings with their state."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Tell the counters of the service and of each mapping."""


@dataclass(frozen=True, slots=True)
class Sticky:
    """Tell the ports that are remembered under a name."""

    name: str


@dataclass(frozen=True, slots=True)
class Reload:
    """Start a successor."""


@dataclass(frozen=True, slots=True)
class Handover:
    """A successor asks for all sockets and their state."""

    version: int


Request = Publish | Remove | Listing | Stats | Sticky | Reload | Handover


def parse(line: bytes, new_id: Callable[[], str]) -> Request:
    """Read a request from one line. Usage for anything else."""
    raw = decode(line)
    verb = raw.get("verb")
    if not isinstance(verb, str) or verb not in FIELDS:
        raise Usage(f"unknown verb {_shown(verb)}", ", ".join(FIELDS))
    if unknown := sorted(raw.keys() - FIELDS[verb] - {"verb"}):
        raise Usage(f"{verb} has no field {', '.join(map(_shown, unknown))}", ", ".join(sorted(FIELDS[verb])) or "none")
    match verb:
        case "publish":
            return _publish(raw, new_id)
        case "remove":
            return _remove(raw)
        case "list":
            return Listing()
        case "stats":
            return Stats()
        case "sticky":
            return _sticky(raw)
        case "reload":
            return Reload()
        case _:
            return _handover(raw)


def decode(line: bytes) -> dict[str, object]:
    """The JSON object of a line. Usage."""
    try:
        found = json.loads(line.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Usage("a request is one JSON object on a line", str(error)) from None
    if not isinstance(found, dict):
        raise Usage("a request is one JSON object on a line")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _publish(raw: Object[str, object], new_id: Callable[[], str]) -> Publish:
    given = raw.get("mappings")
    if not isinstance(given, list) or not given:
        raise Usage("mappings is a list of at least one object")
    mappings = []
    for one in given:
        mapping = Mapping.from_json({**one, "id": new_id()} if isinstance(one, dict) and one.get("id") == "" else one)
        if mapping.owner and not OWNER.fullmatch(mapping.owner):
            raise Usage(
                f"{_shown(mapping.owner)} cannot own a mapping", "attachment HEX, pid, pid PID START-TIME or nothing"
            )
        mappings.append(mapping)
    flags = (flag(raw, name) for name in ("replace", "may_fail", "must_exist"))
    return Publish(tuple(mappings), *flags)


def _remove(raw: Object[str, object]) -> Remove:
    ids, owner, drain_s = raw.get("ids"), raw.get("owner"), raw.get("drain_s", 0.0)
    if (ids is None) == (owner is None):
        raise Usage("remove takes ids or an owner, one of them")
    if owner is not None and (not isinstance(owner, str) or not OWNER.fullmatch(owner)):
        raise Usage("owner is a text", "attachment HEX or pid PID START-TIME")
    if isinstance(drain_s, bool) or not isinstance(drain_s, int | float) or not 0 <= drain_s <= DRAIN_S_MAX:
        raise Usage("drain_s is a number of seconds", f"0 to {DRAIN_S_MAX:g}")
    return Remove(tuple(dict.fromkeys(texts(raw, "ids") if ids is not None else ())), owner or "", float(drain_s))


def _sticky(raw: Object[str, object]) -> Sticky:
    name = raw.get("name")
    if not isinstance(name, str) or not is_name(name):
        raise Usage(f"{_shown(name)} cannot be the name of a sticky port")
    return Sticky(name)


def _handover(raw: Object[str, object]) -> Handover:
    return Handover(integer(raw, "version"))


def _shown(value: object) -> str:
    """Any value as a short text on one line, for an error."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def failure(error: PortfwdError) -> dict[str, object]:
    """An error as an answer."""
    return {"ok": False, "error": {"kind": error.kind, "msg": error.msg, "details": error.details}}
