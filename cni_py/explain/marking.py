"""Which packets are traced: the rules of a table of our own that mark them, in nft's language. Pure.

Of TCP, these are the first packet of a connection and what answers it. Chains that the kernel passes before ours are not in a
trace: those of the hook ingress, and those at a priority below FIRST.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST, TRACKED = -399, -199  # priorities: just after defragmentation, and just after conntrack (linux/netfilter_ipv4.h)
LIMIT = "limit rate 50/second burst 50 packets "  # for each rule that waits for others' packets
ASKED, ANSWERED = "asked_", "answered_"  # how our chains are named, with the hook
SYN, ANSWER = "tcp flags & (fin|syn|rst|ack) == syn ", "tcp flags & (syn|rst) != 0 "


@dataclass(frozen=True, slots=True)
class Wanted:
    """Packets to a port. What is empty or 0 does not matter. Addresses are in their usual form: they go into nft's language."""

    protocol: str  # "tcp", "udp", "sctp"
    port: int
    sources: tuple[str, ...] = ()
    source_port: int = 0
    destination: str = ""
    iif: int = 0  # index of the interface by which they come; then none of this host's own
    limited: bool = False


def ruleset(table: str, wanted: Wanted, *, owner: bool, tracked: bool, bridges: bool) -> str:
    """The table. `tracked`: conntrack is in use, and tells answers; a rule that asks it would start it.

    `owner`: the kernel removes the table when the program's socket closes (since Linux 5.12). `bridges`: there are rules of the
    family bridge, so that frames are traced before a bridge hands them on.
    """
    lines = _table("inet", table, owner)
    answers = _tracked(wanted) if tracked else _answers(wanted)
    for hook in ("prerouting", "output"):
        if hook == "prerouting" or not wanted.iif:
            lines += _chain("inet", table, ASKED + hook, hook, FIRST, _asked(wanted))
        lines += _chain("inet", table, ANSWERED + hook, hook, TRACKED if tracked else FIRST, answers)
    if bridges and not wanted.iif:
        lines += _table("bridge", table, owner)
        lines += _chain("bridge", table, ASKED + "prerouting", "prerouting", FIRST, _asked(wanted))
    return "\n".join(lines)


def removal(table: str, *, bridges: bool) -> str:
    """The commands that delete it."""
    families = ("inet", "bridge") if bridges else ("inet",)
    return "\n".join(f"delete table {family} {table}" for family in families)


def _table(family: str, table: str, owner: bool) -> list[str]:
    return [f"add table {family} {table}" + (" { flags owner; }" if owner else "")]


def _chain(family: str, table: str, name: str, hook: str, priority: int, rules: list[str]) -> list[str]:
    return [
        f"add chain {family} {table} {name} {{ type filter hook {hook} priority {priority}; }}",
        *(f"add rule {family} {table} {name} {rule}meta nftrace set 1" for rule in rules),
    ]


def _asked(wanted: Wanted) -> list[str]:
    came = f"iif {wanted.iif} " if wanted.iif else ""
    ports = _number(wanted.protocol, "sport", wanted.source_port) + f"{wanted.protocol} dport {wanted.port} "
    to = _address("daddr", wanted.destination)
    return [came + _address("saddr", one) + to + ports + _some(wanted, SYN) for one in wanted.sources or ("",)]


def _answers(wanted: Wanted) -> list[str]:
    ports = f"{wanted.protocol} sport {wanted.port} " + _number(wanted.protocol, "dport", wanted.source_port)
    by = _address("saddr", wanted.destination)
    return [by + _address("daddr", one) + ports + _some(wanted, ANSWER) for one in wanted.sources or ("",)]


def _tracked(wanted: Wanted) -> list[str]:
    """The answers of translated connections have other addresses and ports."""
    ports = _number("ct original", "proto-src", wanted.source_port) + f"ct original proto-dst {wanted.port} "
    return [f"meta l4proto {wanted.protocol} ct direction reply {ports}" + _some(wanted, ANSWER)]


def _some(wanted: Wanted, flags: str) -> str:
    return (flags if wanted.protocol == "tcp" else "") + (LIMIT if wanted.limited else "")


def _number(protocol: str, name: str, value: int) -> str:
    return f"{protocol} {name} {value} " if value else ""


def _address(name: str, value: str) -> str:
    family = "ip6" if ":" in value else "ip"
    return f"{family} {name} {value} " if value else ""
