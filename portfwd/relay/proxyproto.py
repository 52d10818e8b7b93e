"""The header that tells a target who its client is: the PROXY protocol of HAProxy, versions 1 and 2. Pure.

Sections 2.1 and 2.2 of its specification (doc/proxy-protocol.txt in HAProxy's sources).
"""

from __future__ import annotations

import ipaddress

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
VERSION_AND_COMMAND = b"\x21"  # version 2, PROXY
FAMILIES = {4: 0x10, 6: 0x20}
TRANSPORTS = {"tcp": 1, "udp": 2}  # STREAM, DGRAM

End = tuple[str, int]


def header(version: int, protocol: str, client: End, host: End) -> bytes:
    """The bytes to send before anything else (UDP: before each datagram). A mixed pair of addresses becomes IPv6."""
    source, destination = plain(client[0]), plain(host[0])
    if source.version != destination.version:
        source, destination = mapped(source), mapped(destination)
    if version == 1:
        ends = f"{written(source)} {written(destination)} {client[1]} {host[1]}"
        return f"PROXY TCP{source.version} {ends}\r\n".encode()
    body = source.packed + destination.packed + client[1].to_bytes(2, "big") + host[1].to_bytes(2, "big")
    kind = bytes((FAMILIES[source.version] | TRANSPORTS[protocol],))
    return SIGNATURE + VERSION_AND_COMMAND + kind + len(body).to_bytes(2, "big") + body


def plain(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address without its interface; an IPv4-mapped IPv6 one as IPv4."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def mapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv6Address:
    """An IPv4 address as an IPv4-mapped IPv6 one (::ffff:192.0.2.1); an IPv6 one as it is."""
    return ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed) if address.version == 4 else address


def written(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """As version 1 wants it: IPv6 in hexadecimal groups only. Python 3.13 would write ::ffff:192.0.2.1 with dots."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return f"::ffff:{address.packed[12:14].hex().lstrip('0') or '0'}:{address.packed[14:].hex().lstrip('0') or '0'}"
    return str(address)
