"""Routes, routing rules and neighbours of a namespace: from the messages that pyroute2 decodes, to values of the model.

Sources of the numbers: Linux include/uapi/linux/{rtnetlink,fib_rules,neighbour}.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cni_py.host.dumps import text
from cni_py.host.interfaces import SCOPES
from cni_py.host.model import Neighbour, Route, Rule

FAMILIES = {2: 4, 10: 6}  # AF_INET, AF_INET6
KINDS = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable",
         8: "prohibit", 9: "throw", 10: "nat"}  # RTN_*  # fmt: skip
PROTOCOLS = {
    1: "redirect",
    2: "kernel",
    3: "boot",
    4: "static",
    9: "ra",
    16: "dhcp",
    186: "bgp",
    188: "ospf",
}  # RTPROT_*
ACTIONS = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}  # FR_ACT_*
FIB_RULE_INVERT = 0x2
NO_SUPPRESSION = (None, 0xFFFFFFFF, -1)  # all bits
STATES = {0x01: "incomplete", 0x02: "reachable", 0x04: "stale", 0x08: "delay", 0x10: "probe", 0x20: "failed",
          0x40: "noarp", 0x80: "permanent"}  # NUD_*  # fmt: skip
ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104  not bound to
RTM_F_CLONED = 0x200  # an entry of the cache of exceptions (redirects, path MTU), not a route
# Attributes of a rule that the model holds, or that decide nothing.
RULE_ATTRIBUTES = frozenset(
    ("FRA_TABLE", "FRA_PRIORITY", "FRA_SRC", "FRA_DST", "FRA_IIFNAME", "FRA_OIFNAME", "FRA_FWMARK", "FRA_FWMASK",
     "FRA_PROTOCOL", "FRA_SUPPRESS_PREFIXLEN", "FRA_SUPPRESS_IFGROUP", "FRA_PAD")
)  # fmt: skip


def routes(messages: Iterable[Any], names: Mapping[int, str]) -> Iterator[Route]:
    """The routes; of one with several next hops the first."""
    for one in messages:
        family = FAMILIES.get(one["family"])
        if family is None or one["flags"] & RTM_F_CLONED:
            continue
        hop = (one.get_attr("RTA_MULTIPATH") or [None])[0]
        part = hop if hop is not None else one
        via = part.get_attr("RTA_VIA")
        gateway = part.get_attr("RTA_GATEWAY") or (via["addr"] if via else "")
        index = hop["oif"] if hop is not None else one.get_attr("RTA_OIF") or 0
        yield Route(
            family=family,
            table=one.get_attr("RTA_TABLE") or one["table"],
            destination=f"{one.get_attr('RTA_DST') or ANY[family]}/{one['dst_len']}",
            kind=KINDS.get(one["type"], str(one["type"])),
            gateway=gateway,
            link=names.get(index, ""),
            source=one.get_attr("RTA_PREFSRC") or "",
            scope=SCOPES.get(one["scope"], str(one["scope"])),
            metric=one.get_attr("RTA_PRIORITY") or 0,
            protocol=PROTOCOLS.get(one["proto"], str(one["proto"])),
        )


def rules(messages: Iterable[Any]) -> Iterator[Rule]:
    """The rules of IPv4 and IPv6; those of multicast routing are left out."""
    for one in messages:
        family = FAMILIES.get(one["family"])
        if family is None:
            continue
        yield Rule(
            family=family,
            priority=one.get_attr("FRA_PRIORITY") or 0,
            action=ACTIONS.get(one["action"], str(one["action"])),
            table=one.get_attr("FRA_TABLE") or one["table"],
            source=_prefix(one.get_attr("FRA_SRC"), one["src_len"]),
            destination=_prefix(one.get_attr("FRA_DST"), one["dst_len"]),
            iif=text(one, "FRA_IIFNAME"),
            oif=text(one, "FRA_OIFNAME"),
            mark=one.get_attr("FRA_FWMARK") or 0,
            mask=one.get_attr("FRA_FWMASK") or 0,
            other=_has_more(one),
            inverted=bool(one["flags"] & FIB_RULE_INVERT),
            suppress=_shortest(one.get_attr("FRA_SUPPRESS_PREFIXLEN")),
        )


def _prefix(address: str | None, length: int) -> str:
    return f"{address}/{length}" if address else ""


def _has_more(one: Any) -> bool:
    """Whether a rule has conditions, or an effect, that the model does not hold."""
    if one["tos"] or one["action"] == 2:
        return True
    # l3mdev, user ids, ports, protocols, tunnels are not among the known.
    groups = one.get_attr("FRA_SUPPRESS_IFGROUP") not in NO_SUPPRESSION
    return groups or any(attribute[0] not in RULE_ATTRIBUTES for attribute in one["attrs"])


def _shortest(length: int | None) -> int:
    return -1 if length in NO_SUPPRESSION or length is None else length


def neighbours(messages: Iterable[Any], names: Mapping[int, str]) -> Iterator[Neighbour]:
    """The entries of ARP and NDP, without those that stand for groups and need no resolution."""
    for one in messages:
        state = STATES.get(one["state"], str(one["state"]))
        if one["family"] not in FAMILIES or state == "noarp":
            continue
        link = names.get(one["ifindex"], "")
        yield Neighbour(one.get_attr("NDA_DST") or "", one.get_attr("NDA_LLADDR") or "", link, state)
