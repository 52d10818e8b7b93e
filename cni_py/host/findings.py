"""The codes of findings: a closed list, with the level and the meaning of each. docs/findings.md has the same table.

"not-seen" stands in `Host.gaps` alone: something could not be looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cni_py.host.model import Finding, Host, Level

CODES: Mapping[str, tuple[Level, str]] = {
    "table-missing": ("error", "the nftables table of cni-py is gone, and records say that it has rules: somebody flushed it"),
    "table-incomplete": ("error", "a table of cni-py lost chains, rules or sets that its attachments share"),
    "rules-lost": ("error", "rules of an attachment, which its record names, are not in the packet filter"),
    "link-missing": ("error", "the host's interface of an attachment does not exist"),
    "link-down": ("error", "an interface that a container depends on is set down"),
    "bridge-missing": ("error", "the bridge of a network does not exist, and containers are in the network"),
    "port-without-bridge": ("error", "the host's end of a container's interface is in no bridge, and its network has one"),
    "gateway-missing": ("error", "no interface of the host has the address that containers send their packets to"),
    "forwarding-off": ("error", "the host forwards no packets of a family, and containers need that"),
    "duplicate-address": ("error", "two interfaces have the same address"),
    "dad-failed": ("error", "duplicate address detection found somebody else with an IPv6 address: it cannot be used"),
    "reservation-missing": ("error", "an address that a container has is not reserved: it may be given to another"),
    "pool-full": ("error", "every address of a range is reserved: the next container gets none"),
    "network-unreadable": ("error", "a network's configuration cannot be loaded"),
    "portfwd-not-running": ("error", "portfwd does not run, and a port that NAT cannot serve needs it"),
    "relay-problem": ("warning", "portfwd says that a mapping does not work as it should"),
    "relay-missing": ("warning", "portfwd runs, and does not have a mapping that an attachment's record names"),
    "host-address-missing": ("warning", "a port is published on an address that no interface of the host has"),
    "target-missing": ("warning", "a port leads to an address that no container has"),
    "port-claimed-twice": ("warning", "two rules lead the same port of the host to different containers: one is never used"),
    "listener-shadowed": ("warning", "a program of the host listens on a port that leads to a container"),
    "listens-on-loopback": ("warning", "in the container the port is heard on the loopback alone: no client gets there"),
    "attachment-dead": ("warning", "a container is gone, and what was made for it is not"),
    "add-unfinished": ("warning", "an ADD did not come to its end: a part of what it makes may be there"),
    "orphan-link": ("warning", "an interface carries the mark of cni-py, and no record speaks of it"),
    "orphan-port": ("warning", "a published port belongs to a container that no record speaks of"),
    "address-leaked": ("warning", "addresses are reserved for containers that are gone"),
    "pool-nearly-full": ("warning", "more than 90 % of the addresses of a range are reserved"),
    "foreign-port": ("note", "a bridge of a network has a port that belongs to no attachment"),
    "nothing-listens": ("note", "nothing in the container listens on the port that a published port leads to"),
    "not-seen": ("note", "something could not be looked at"),
}  # fmt: skip
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
SHOWN_MAX = 5  # of a list in a sentence
RECORDS = "the attachment records"  # how the gap begins when they could not be read


def finding(code: str, subject: str, what: str, *, why: str = "", do: str = "") -> Finding:
    """A finding with the level of its code."""
    return Finding(CODES[code][0], code, subject, what, why, do)


def unread(host: Host, what: str) -> bool:
    """Whether a gap speaks of `what`: then its absence proves nothing."""
    return any(what in gap.what for gap in host.gaps)


def by_level(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first; those of a level in the order of the table."""
    order = {code: place for place, code in enumerate(CODES)}
    return tuple(sorted(found, key=lambda one: (LEVELS.index(one.level), order[one.code], one.subject)))


def some(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are: "c1, c2 and 7 more"."""
    listed = list(dict.fromkeys(names))
    more = len(listed) - SHOWN_MAX
    shown = ", ".join(listed[:SHOWN_MAX])
    return f"{shown} and {more} more" if more > 0 else shown
