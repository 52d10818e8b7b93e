"""What the drawing holds, before it has coordinates: bars (bridges, parents of macvlan), members below them, ports, uplinks.

Each has the id of its object on the page (show/objects.py), so that a click on it finds the details. Values alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["bridge", "routed", "parent", "apart", "nowhere"]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of text in a box."""

    text: str
    style: str = "code"  # "code", "plain", "dim", "error", "warning", "note"


@dataclass(frozen=True, slots=True)
class Way:
    """A published port on its way from the host's edge to a member."""

    id: str
    chip: str  # "8080/tcp"
    label: str  # "NAT → :80"
    way: str  # "nat", "relay", "both"; "more" for those that are left out
    local: bool = False  # for clients on this host alone
    level: str = ""
    full: str = ""  # all that is known, as a tooltip


@dataclass(frozen=True, slots=True)
class Member:
    """A namespace (or what is left of one) below a bar."""

    id: str
    title: str
    rows: tuple[Row, ...]
    tag: str = ""  # "docker", "dead", "also above"
    level: str = ""
    strange: bool = False
    gone: bool = False
    outer: str = ""  # name of the wire's end on the host
    inner: str = ""  # ... and in the namespace
    wire_id: str = ""
    wire_level: str = ""
    ways: tuple[Way, ...] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """What members hang on."""

    id: str
    kind: Kind
    title: str
    about: tuple[Row, ...]
    members: tuple[Member, ...]
    level: str = ""
    strange: bool = False
    masquerade: str = ""  # sentence; "" for none
    masquerade_id: str = ""


@dataclass(frozen=True, slots=True)
class Nic:
    """An interface of the host that leads out."""

    id: str
    name: str
    rows: tuple[Row, ...]
    level: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """The whole drawing."""

    title: str
    rows: tuple[Row, ...]  # about the host
    nics: tuple[Nic, ...]
    publisher: Member | None  # portfwd
    bars: tuple[Bar, ...]
    level: str = ""
