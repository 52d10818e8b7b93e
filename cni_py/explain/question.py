"""What `cni-py explain` is asked: a port of this host or of a container, and for which client. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

PROTOCOLS = ("tcp", "udp", "sctp")
PORT_MAX = 65535


@dataclass(frozen=True, slots=True)
class Question:
    """A port; `address` is "" for the addresses that each kind of client uses."""

    protocol: str
    port: int
    address: str = ""

    def __str__(self) -> str:
        place = f"[{self.address}]:" if ":" in self.address else f"{self.address}:" if self.address else ""
        return f"{place}{self.port}/{self.protocol}"


def parse(text: str) -> Question:
    """PORT, ADDRESS:PORT or [ADDRESS]:PORT, with /udp or /sctp if it is not TCP. ValueError with a sentence."""
    place, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise ValueError(f'{text}: the protocol is one of {", ".join(PROTOCOLS)}, not "{protocol}"')
    address, colon, number = place.rpartition(":")
    if not (number.isascii() and number.isdecimal() and len(number) <= 5 and 1 <= int(number) <= PORT_MAX):
        raise ValueError(f'{text}: "{number}" is not a port between 1 and {PORT_MAX}')
    if colon:
        address = _address(text, address)
    return Question(protocol, int(number), address)


def unmapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """As text. ::ffff:192.0.2.1, as servers that listen on [::] log their clients, is IPv4: so the kernel sends it."""
    return str(getattr(address, "ipv4_mapped", None) or address)


def _address(text: str, written: str) -> str:
    """The address in its usual form; an IPv6 address stands in brackets, and "any" is left out. ValueError."""
    in_brackets = written.startswith("[") and written.endswith("]")
    inner = written[1:-1] if in_brackets else written
    try:
        address = ipaddress.ip_address(inner.partition("%")[0])
    except ValueError:
        raise ValueError(f'{text}: "{inner}" is not an IP address') from None
    if in_brackets != (address.version == 6):
        raise ValueError(f"{text}: write [ADDRESS]:PORT for IPv6, ADDRESS:PORT for IPv4")
    if address.is_unspecified:
        raise ValueError(f"{text}: write the port alone for all addresses of this host")
    return unmapped(address)
