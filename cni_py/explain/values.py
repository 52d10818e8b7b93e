"""What an expression of a rule yields: spans of integers, as the kernel compares them, and how JSON's words are read as such.

A value that is known is one number. One that is not (a client's source port, a random number) is the spans that it must lie in,
and a comparison with it may be true, false or open. A name of an interface is the number that its 16 bytes make, so that "eth*"
is a span, too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Any
Span = tuple[int, int]

PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipv6-icmp": 58,
    "icmpv6": 58,
    "ospf": 89,
    "comp": 108,
    "vrrp": 112,
    "sctp": 132,
    "udplite": 136,
    "mptcp": 262,
}
ETHERTYPES = {"ip": 0x800, "arp": 0x806, "ip6": 0x86DD, "vlan": 0x8100, "8021q": 0x8100, "8021ad": 0x88A8}
STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}  # NF_CT_STATE_BIT
STATUS = {"expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32, "dying": 512}
FIB_TYPES = {  # RTN_*, linux/rtnetlink.h
    "unspec": 0,
    "unicast": 1,
    "local": 2,
    "broadcast": 3,
    "anycast": 4,
    "multicast": 5,
    "blackhole": 6,
    "unreachable": 7,
    "prohibit": 8,
    "throw": 9,
    "nat": 10,
    "xresolve": 11,
}
TCP_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128}
PACKET_TYPES = {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3}
DSCP = {
    **{f"cs{n}": n * 8 for n in range(8)},
    **{f"af{n}{m}": n * 8 + m * 2 for n in range(1, 5) for m in range(1, 4)},
    "be": 0,
    "ef": 46,
    "va": 44,
    "lephb": 1,
}
ICMP = {
    "echo-reply": 0,
    "destination-unreachable": 3,
    "source-quench": 4,
    "redirect": 5,
    "echo-request": 8,
    "router-advertisement": 9,
    "router-solicitation": 10,
    "time-exceeded": 11,
    "parameter-problem": 12,
    "timestamp-request": 13,
    "timestamp-reply": 14,
    "info-request": 15,
    "info-reply": 16,
    "address-mask-request": 17,
    "address-mask-reply": 18,
}
ICMPV6 = {
    "destination-unreachable": 1,
    "packet-too-big": 2,
    "time-exceeded": 3,
    "parameter-problem": 4,
    "echo-request": 128,
    "echo-reply": 129,
    "mld-listener-query": 130,
    "mld-listener-report": 131,
    "mld-listener-done": 132,
    "mld-listener-reduction": 132,
    "nd-router-solicit": 133,
    "nd-router-advert": 134,
    "nd-neighbor-solicit": 135,
    "nd-neighbor-advert": 136,
    "nd-redirect": 137,
    "router-renumbering": 138,
    "ind-neighbor-solicit": 141,
    "ind-neighbor-advert": 142,
    "mld2-listener-report": 143,
}
SYMBOLS: dict[str, Mapping[str, int]] = {
    "inet_proto": PROTOCOLS,
    "ether_type": ETHERTYPES,
    "nf_proto": {"ipv4": 2, "ip": 2, "ipv6": 10, "ip6": 10},
    "ct_state": STATES,
    "ct_status": STATUS,
    "ct_dir": {"original": 0, "reply": 1},
    "fib_addrtype": FIB_TYPES,
    "tcp_flag": TCP_FLAGS,
    "pkt_type": PACKET_TYPES,
    "dscp": DSCP,
    "icmp_type": ICMP,
    "icmpv6_type": ICMPV6,
    "boolean": {"exists": 1, "missing": 0},
}
OTHER_WIDTH = 256  # bits; more than any field has
WIDTHS = {"ipv4_addr": 32, "ipv6_addr": 128, "ether_addr": 48, "ifname": 128, "ifkind": 128, "iface_index": 32}
WIDTHS |= {"mark": 32, "inet_proto": 8, "inet_service": 16, "ct_state": 7, "ct_status": 16, "ct_dir": 1, "dscp": 6}
WIDTHS |= {"fib_addrtype": 4, "tcp_flag": 8, "pkt_type": 3, "icmp_type": 8, "icmpv6_type": 8, "ether_type": 16}
NAME_BYTES = 16


@dataclass(frozen=True, slots=True)
class Value:
    """What was loaded. No spans: nothing, and the rule does not match. `maybe_absent`: that may be so."""

    kind: str
    spans: tuple[Span, ...]
    why: str = ""  # of a value that is not one number: which expression, and what it would need
    maybe_absent: bool = False

    @property
    def exact(self) -> int | None:
        """The number, when it is known."""
        low, high = self.spans[0] if len(self.spans) == 1 else (0, 1)
        return low if low == high and not self.maybe_absent else None


def number(kind: str, value: int) -> Value:
    """A value that is known."""
    return Value(kind, ((value, value),))


def one_of(kind: str, values: list[int], why: str) -> Value:
    """A value that is one of several."""
    return Value(kind, tuple((value, value) for value in sorted(set(values))), why)


def unknown(kind: str, why: str, *, maybe_absent: bool = False) -> Value:
    """Any value of that kind."""
    return Value(kind, ((0, (1 << WIDTHS.get(kind, OTHER_WIDTH)) - 1),), why, maybe_absent)


def absent(kind: str = "") -> Value:
    """Nothing: the packet has no such thing."""
    return Value(kind, ())


def name_number(name: str) -> int:
    """An interface's name, as nf_tables compares it."""
    return int.from_bytes(name.encode("utf-8", "surrogateescape")[:NAME_BYTES].ljust(NAME_BYTES, b"\0"), "big")


def compare(value: Value, spans: tuple[Span, ...]) -> bool | None:
    """Whether the value lies in the spans; None when that is open."""
    inside = [any(low <= first and last <= high for low, high in spans) for first, last in value.spans]
    if inside and all(inside):
        return True
    meets = any(first <= high and low <= last for first, last in value.spans for low, high in spans)
    return None if meets else False


def bitwise(operator: str, value: Value, operand: Value) -> Value:
    """value OPERATOR operand, for the operators of nft."""
    operations = {
        "&": lambda a, b: a & b,
        "|": lambda a, b: a | b,
        "^": lambda a, b: a ^ b,
        "<<": lambda a, b: (a << min(b, 128)) & ((1 << WIDTHS.get(value.kind, OTHER_WIDTH)) - 1),
        ">>": lambda a, b: a >> min(b, 128),
    }
    if not value.spans or not operand.spans:
        return absent(value.kind)
    why = value.why or operand.why
    points = all(low == high for low, high in (*value.spans, *operand.spans))
    if points and len(value.spans) * len(operand.spans) <= 64:
        found = [operations[operator](a, b) for a, _ in value.spans for b, _ in operand.spans]
        return Value(
            value.kind, tuple((one, one) for one in sorted(set(found))), why, value.maybe_absent or operand.maybe_absent
        )
    result = unknown(value.kind, why, maybe_absent=value.maybe_absent or operand.maybe_absent)
    if operator == "&" and (mask := operand.exact) is not None:
        return Value(value.kind, ((0, mask),), why, result.maybe_absent)
    return result


def span(kind: str, json: Json, indexes: Mapping[str, int]) -> Span | None:
    """What a word, number, range, prefix or list of flags of nft's JSON means for that kind; None when it cannot be read.

    `indexes`: of the links, by name.
    """
    if isinstance(json, int):
        return (int(json), int(json))
    if isinstance(json, str):
        return _word(kind, json, indexes)
    if isinstance(json, list):
        return _flags(kind, json, indexes)
    if not isinstance(json, dict) or len(json) != 1:
        return None
    [(key, inner)] = json.items()
    if key == "range" and isinstance(inner, list) and len(inner) == 2:
        ends = [span(kind, end, indexes) for end in inner]
        return (ends[0][0], ends[1][1]) if ends[0] is not None and ends[1] is not None else None
    if key == "|" and isinstance(inner, list):
        return _flags(kind, inner, indexes)
    return _structured(kind, key, inner, indexes) if isinstance(inner, dict) else None


def _structured(kind: str, key: str, inner: Mapping[str, Json], indexes: Mapping[str, int]) -> Span | None:
    if key == "prefix":
        return _prefix(kind, inner)
    return span(kind, inner.get("val"), indexes) if key == "elem" else None


def _word(kind: str, word: str, indexes: Mapping[str, int]) -> Span | None:
    known = SYMBOLS.get(kind, {}).get(word)
    if known is not None:
        return (known, known)
    if kind in ("ifname", "ifkind"):
        if not word.endswith("*"):
            return (name_number(word), name_number(word))
        if word.endswith("\\*"):
            return (name_number(word[:-2] + "*"), name_number(word[:-2] + "*"))
        start = word[:-1].encode("utf-8", "surrogateescape")[:NAME_BYTES]
        return (
            int.from_bytes(start.ljust(NAME_BYTES, b"\0"), "big"),
            int.from_bytes(start.ljust(NAME_BYTES, b"\xff"), "big"),
        )
    if kind == "iface_index" and word in indexes:
        return (indexes[word], indexes[word])
    try:
        found = _parse(kind, word)
    except ValueError:
        return None
    return (found, found)


def _parse(kind: str, word: str) -> int:
    if kind == "ipv4_addr":
        return int(ipaddress.IPv4Address(word))
    if kind == "ipv6_addr":
        return int(ipaddress.IPv6Address(word))
    if kind == "ether_addr":
        digits = word.split(":")
        if len(digits) != 6:
            raise ValueError
        return int.from_bytes(bytes(int(one, 16) for one in digits), "big")
    return int(word, 0)


def _flags(kind: str, words: list[Json], indexes: Mapping[str, int]) -> Span | None:
    total = 0
    for word in words:
        one = span(kind, word, indexes)
        if one is None or one[0] != one[1]:
            return None
        total |= one[0]
    return (total, total)


def _prefix(kind: str, prefix: Mapping[str, Json]) -> Span | None:
    width, length = WIDTHS.get(kind, 0), prefix.get("len")
    start = span(kind, prefix.get("addr"), {})
    if start is None or not isinstance(length, int) or not 0 <= length <= width:
        return None
    hosts = (1 << (width - length)) - 1
    return (start[0] & ~hosts, start[0] | hosts)
