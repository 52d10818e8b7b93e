"""What a rule of iptables does, in the statements of nft's JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.explain.chains import Closed
from cni_py.explain.iptables_matches import FULL_MARK, Unclear, ct, mark, meta
from cni_py.explain.nat import HOPS_ENOUGH

if TYPE_CHECKING:
    from cni_py.explain.iptables_matches import About, Part
    from cni_py.explain.values import Json

VERDICTS = {
    "ACCEPT": "accept",
    "DROP": "drop",
    "RETURN": "return",
    "REJECT": "reject",
    "QUEUE": "queue",
    "NFQUEUE": "queue",
}
PASSED_ON = {  # targets after which the next rule follows, and which change nothing that is followed here
    *("LOG", "NFLOG", "ULOG", "TRACE", "AUDIT", "TCPMSS", "CHECKSUM", "CLASSIFY", "DSCP", "TOS", "ECN"),
    *("LED", "SECMARK", "CONNSECMARK", "RATEEST", "IDLETIMER", "TCPOPTSTRIP", "TEE", "SET", "NFACCT"),
}
NAT = {"DNAT": "dnat", "SNAT": "snat", "MASQUERADE": "masquerade", "REDIRECT": "redirect"}
ZONES = ("--zone", "--zone-orig", "--zone-reply")
IGNORED = ("--random", "--random-fully", "--persistent")


def target(part: Part, about: About, *, goto: bool) -> list[Json]:
    """-j NAME, or -g NAME, with its options."""
    name = part.name
    if goto:
        return [{"goto": {"target": name}}]
    if name in VERDICTS:
        return [{VERDICTS[name]: None}]
    if name in PASSED_ON:
        return []
    try:
        return _statement(part, about)
    except (Unclear, ValueError, IndexError):
        return [Closed(f"`-j {name}` cannot be evaluated here")]


def _statement(part: Part, about: About) -> list[Json]:
    name = part.name
    if name in NAT:
        return [{NAT[name]: _translation(part, about)}]
    if name in ("MARK", "CONNMARK"):
        return [_marking(part, meta("mark") if name == "MARK" else ct("mark"))]
    if name == "NOTRACK" or (name == "CT" and part.has("--notrack")):
        return [{"notrack": None}]
    if name in ("TTL", "HL"):
        return _hops_left(part)
    if name == "CT" and not part.has(*ZONES):
        return []
    if part.options or name == "CT":
        raise Unclear
    return [{"jump": {"target": name}}]


def _hops_left(part: Part) -> list[Json]:
    """How far the packet may still go: far enough, or Unclear."""
    [option] = part.options
    far = option.name.endswith("-inc") or (option.name.endswith("-set") and int(option.word) >= HOPS_ENOUGH)
    if not far:
        raise Unclear
    return []


def _translation(part: Part, about: About) -> Json:
    found: dict[str, Json] = {"family": about.ip}
    for option in part.options:
        if option.name in ("--to-destination", "--to-source"):
            found |= _place(option.word)
        elif option.name == "--to-ports":
            found["port"] = _ports(option.word)
        elif option.name not in IGNORED:
            raise Unclear
    return found


def _place(text: str) -> dict[str, Json]:
    """10.88.0.2:80, [fd00::2]:80-90, 10.0.0.1-10.0.0.9, :80."""
    address, port = text, ""
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    found: dict[str, Json] = {}
    if address:
        first, dash, last = address.partition("-")
        found["addr"] = {"range": [first, last]} if dash else address
    if port:
        found["port"] = _ports(port)
    return found


def _ports(text: str) -> Json:
    """80, 80-90. A range with a base, 80-90/8080, shifts the port: Unclear."""
    if "/" in text:
        raise Unclear
    first, dash, last = text.partition("-")
    return {"range": [int(first), int(last)]} if dash else int(first)


def _marking(part: Part, key: Json) -> Json:
    """new = (old & ~mask) ^ value (xt_mark.c, xt_connmark.c)."""
    masks = {option.name: int(option.word, 0) for option in part.options if option.name in ("--nfmask", "--ctmask")}
    packet, connection = masks.get("--nfmask", FULL_MARK), masks.get("--ctmask", FULL_MARK)
    if part.has("--save-mark"):
        return _changed(ct("mark"), connection, {"&": [meta("mark"), packet]})
    if part.has("--restore-mark"):
        return _changed(meta("mark"), packet, {"&": [ct("mark"), connection]})
    [option] = part.options
    value, mask = mark(option.word)
    if option.name != "--set-xmark":
        raise Unclear
    return _changed(key, mask, value)


def _changed(key: Json, mask: int, value: Json) -> Json:
    return {"mangle": {"key": key, "value": {"^": [{"&": [key, mask ^ FULL_MARK]}, value]}}}
