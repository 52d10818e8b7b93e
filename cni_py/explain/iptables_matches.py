"""The matches of iptables' extensions, in the expressions of nft's JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cni_py.explain.chains import Either
from cni_py.explain.values import STATES, Json

FULL_MARK = 0xFFFFFFFF
NEVER = Either(())
TCP_FLAGS = ["fin", "syn", "rst", "psh", "ack", "urg"]
PHYSDEV = {
    "--physdev-is-bridged": "physdev-out",
    "--physdev-is-in": "physdev-in",
    "--physdev-is-out": "physdev-out",
}


class Unclear(Exception):
    """Words that have no such form."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a match or target."""

    name: str
    negated: bool
    words: list[str]

    @property
    def word(self) -> str:
        """The one word. ValueError when there are more, or none."""
        [word] = self.words
        return word


@dataclass(slots=True)
class Part:
    """A match or target with its options."""

    name: str
    options: list[Option] = field(default_factory=list)

    def has(self, *names: str) -> bool:
        """Whether one of these options is given."""
        return any(option.name in names for option in self.options)


@dataclass(frozen=True, slots=True)
class About:
    """What else of the rule an option depends on."""

    ip: str  # "ip" or "ip6"
    protocol: str


Reader = Callable[[Option, About], list[Json]]


def equal(left: Json, right: Json, negated: bool = False) -> Json:
    """left == right, or !=."""
    return {"match": {"op": "!=" if negated else "==", "left": left, "right": right}}


def meta(key: str) -> Json:
    """`meta KEY`."""
    return {"meta": {"key": key}}


def payload(protocol: str, name: str) -> Json:
    """A header's field."""
    return {"payload": {"protocol": protocol, "field": name}}


def ct(key: str, direction: str = "") -> Json:
    """`ct KEY`."""
    return {"ct": {"key": key, **({"dir": direction} if direction else {})}}


def interface(name: str) -> str:
    """iptables' eth+ is nft's eth*."""
    return name[:-1] + "*" if name.endswith("+") else name


def network(text: str, left: Json, negated: bool) -> list[Json]:
    """An address with a prefix length, or a mask."""
    address, _, mask = text.partition("/")
    if not mask:
        return [equal(left, address, negated)]
    if not mask.isdigit():
        return [equal({"&": [left, mask]}, address, negated)]
    if mask == "0":
        return [NEVER] if negated else []
    return [equal(left, {"prefix": {"addr": address, "len": int(mask)}}, negated)]


def ports(text: str) -> Json:
    """80, or 80:90."""
    first, colon, last = text.partition(":")
    return {"range": [int(first or 0), int(last or 65535)]} if colon else int(first)


def mark(text: str) -> tuple[int, int]:
    """0x1/0xff: value and mask."""
    value, slash, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if slash else FULL_MARK


def general(option: Option, about: About) -> list[Json]:
    """-p, -s, -d, -i, -o, -f."""
    if option.name == "-f":
        return [] if option.negated else [NEVER]  # a later fragment
    word = option.word
    if option.name == "-p":
        number = int(word) if word.isdigit() else word
        return [equal(meta("l4proto"), number, option.negated)] if word != "all" else []
    if option.name in ("-i", "-o"):
        key = meta("iifname" if option.name == "-i" else "oifname")
        if word == "+":
            return [NEVER] if option.negated else []
        return [equal(key, interface(word), option.negated)]
    if option.name in ("-s", "-d"):
        return network(word, payload(about.ip, "saddr" if option.name == "-s" else "daddr"), option.negated)
    raise Unclear


def extension(part: Part, about: About) -> list[Json]:
    """-m NAME with its options. Unclear, ValueError, KeyError for what is not understood."""
    if part.name == "rpfilter":
        return _reverse_path(part)
    return [expression for option in part.options for expression in EXTENSIONS[part.name](option, about)]


def _transport(option: Option, about: About) -> list[Json]:
    if option.name in ("--dport", "--sport"):
        return [equal(payload(about.protocol, option.name[2:]), ports(option.word), option.negated)]
    if option.name == "--tcp-flags":
        read = [TCP_FLAGS if one == "ALL" else [] if one == "NONE" else one.lower().split(",") for one in option.words]
        return [equal({"&": [payload("tcp", "flags"), read[0]]}, read[1], option.negated)]
    raise Unclear


def _icmp(option: Option, about: About) -> list[Json]:
    field = payload("icmp" if about.ip == "ip" else "icmpv6", "type")
    if option.word == "any":
        raise Unclear
    return [equal(field, int(option.word.partition("/")[0]), option.negated)]


def _multiport(option: Option, _: About) -> list[Json]:
    members = {"set": [ports(one) for one in option.word.split(",")]}
    fields = {"--dports": ["dport"], "--sports": ["sport"], "--ports": ["sport", "dport"]}[option.name]
    return [Either(tuple(equal(payload("th", one), members)["match"] for one in fields), option.negated)]


def _conntrack(option: Option, about: About) -> list[Json]:
    word = option.word
    if option.name in ("--ctstate", "--state"):
        return [_state(word, option.negated)]
    if option.name == "--ctstatus":
        wanted = [one.lower().replace("_", "-") for one in word.split(",")]
        return [Either(({"op": "in", "left": ct("status"), "right": wanted},), option.negated)]
    if option.name in ("--ctorigsrc", "--ctorigdst"):
        field = "saddr" if option.name.endswith("src") else "daddr"
        return network(word, ct(f"{about.ip} {field}", "original"), option.negated)
    if option.name in ("--ctorigsrcport", "--ctorigdstport"):
        field = "proto-src" if "src" in option.name else "proto-dst"
        return [equal(ct(field, "original"), ports(word), option.negated)]
    if option.name == "--ctdir":
        return [equal(ct("direction"), word.lower(), option.negated)]
    if option.name == "--ctproto":
        return [equal(ct("protocol"), int(word) if word.isdigit() else word, option.negated)]
    raise Unclear


def _state(text: str, negated: bool) -> Either:
    """States, and whether the connection is translated: any of them."""
    names = text.lower().split(",")
    translated = [name for name in names if name in ("dnat", "snat")]
    states = [name for name in names if name not in translated]
    if not set(states) <= STATES.keys():
        raise Unclear
    wanted = [{"op": "in", "left": ct("state"), "right": states}] if states else []
    wanted += [{"op": "in", "left": ct("status"), "right": translated}] if translated else []
    return Either(tuple(wanted), negated)


def _mark_of(left: Json) -> Reader:
    def read(option: Option, _: About) -> list[Json]:
        if option.name != "--mark":
            raise Unclear
        value, mask = mark(option.word)
        return [equal({"&": [left, mask]} if mask != FULL_MARK else left, value, option.negated)]

    return read


def _address_type(option: Option, about: About) -> list[Json]:
    if option.name not in ("--dst-type", "--src-type"):
        raise Unclear  # --limit-iface-in changes what the others mean
    types = option.word.lower().split(",")
    if about.ip == "ip6" and types != ["local"]:
        raise Unclear  # the other types are read from the address there
    field = {"fib": {"result": "type", "flags": ["daddr" if option.name == "--dst-type" else "saddr"]}}
    return [equal(field, {"set": types}, option.negated)]


def _physdev(option: Option, _: About) -> list[Json]:
    """Where the packet came by no bridge, the names are empty."""
    if option.name in ("--physdev-in", "--physdev-out"):
        return [equal(meta(option.name[2:]), interface(option.word), option.negated)]
    return [equal(meta(PHYSDEV[option.name]), "", not option.negated)]


def _mac(option: Option, _: About) -> list[Json]:
    return [equal(payload("ether", "saddr"), option.word.lower(), option.negated)]


def _address_range(option: Option, about: About) -> list[Json]:
    field = {"--src-range": "saddr", "--dst-range": "daddr"}[option.name]
    first, _, last = option.word.partition("-")
    return [equal(payload(about.ip, field), {"range": [first, last or first]}, option.negated)]


def _packet_type(option: Option, _: About) -> list[Json]:
    return [equal(meta("pkttype"), option.word.lower(), option.negated)]


def _reverse_path(part: Part) -> list[Json]:
    """Whether the way back leads to where the packet came from."""
    if part.has("--loose", "--accept-local"):
        raise Unclear
    flags = ["saddr", "mark", "iif"] if part.has("--validmark") else ["saddr", "iif"]
    return [equal({"fib": {"result": "oif", "flags": flags}}, not part.has("--invert"))]


EXTENSIONS: dict[str, Reader] = {
    **dict.fromkeys(("tcp", "udp", "sctp", "dccp", "udplite"), _transport),
    **dict.fromkeys(("icmp", "icmp6", "ipv6-icmp"), _icmp),
    **dict.fromkeys(("conntrack", "state"), _conntrack),
    "multiport": _multiport,
    "mark": _mark_of(meta("mark")),
    "connmark": _mark_of(ct("mark")),
    "addrtype": _address_type,
    "physdev": _physdev,
    "mac": _mac,
    "iprange": _address_range,
    "pkttype": _packet_type,
}
