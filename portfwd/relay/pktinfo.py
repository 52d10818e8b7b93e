"""The address and port of the host that a datagram came to, and how to send an answer from that address. Pure.

A UDP socket on a wildcard address serves all addresses of the host. Without these messages an answer would leave from the
address that the routes suggest, and a client that asked another one would drop it.

ip(7) IP_PKTINFO, IP_RECVORIGDSTADDR, ipv6(7) IPV6_PKTINFO
"""

from __future__ import annotations

import struct
import sys
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6, IPV6_PKTINFO, inet_ntop
from typing import TypeAlias

Address: TypeAlias = "tuple[str, int] | tuple[str, int, int, int]"  # the latter IPv6: flow label, scope id
Control: TypeAlias = "list[tuple[int, int, bytes]]"

IP_PKTINFO = 8  # linux/in.h; the socket module does not name it
IP_ORIGDSTADDR, IPV6_ORIGDSTADDR = 20, 74  # linux/in.h, linux/in6.h
LINK_LOCAL, MULTICAST = 0xFE, 0xFF  # first bytes of IPv6 addresses that mean nothing without an interface


def local_of(control: Control, client: Address) -> bytes:
    """The address that a datagram came to: 4 or 16 bytes, 20 with the interface's index where IPv6 needs it; b"" if not told."""
    for level, kind, data in control:
        if level == IPPROTO_IP and kind == IP_PKTINFO:  # struct in_pktinfo: index, address to answer from, header's
            return data[4:8]
        if level == IPPROTO_IPV6 and kind == IPV6_PKTINFO:  # struct in6_pktinfo: address, index
            scoped = data[0] >= LINK_LOCAL or (len(client) == 4 and client[3])
            return data if scoped else data[:16]
    return b""


def interface_of(control: Control) -> int:
    """The index of the interface that an IPv4 datagram came by; 0 if not told."""
    for level, kind, data in control:
        if level == IPPROTO_IP and kind == IP_PKTINFO:
            return int.from_bytes(data[:4], sys.byteorder)
    return 0


def port_of(control: Control) -> int:
    """The port that a datagram came to, of a socket that bind.tell_port() has prepared; 0 if not told."""
    for level, kind, data in control:
        # struct sockaddr_in, sockaddr_in6
        if (level, kind) in (
            (IPPROTO_IP, IP_ORIGDSTADDR),
            (IPPROTO_IPV6, IPV6_ORIGDSTADDR),
        ):
            return int.from_bytes(data[2:4], "big")
    return 0


def reply_control(local: bytes) -> Control:
    """The control message with which sendmsg(2) sends from the address `local`, as local_of() gives it."""
    match len(local):
        case 4:
            return [(IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4s", 0, local, bytes(4)))]
        case 16:
            return [(IPPROTO_IPV6, IPV6_PKTINFO, local + bytes(4))]
        case 20:  # a multicast group cannot be a source: the kernel chooses an address of that interface
            source = bytes(16) if local[0] == MULTICAST else local[:16]
            return [(IPPROTO_IPV6, IPV6_PKTINFO, source + local[16:])]
    return []


def text_of(local: bytes) -> str:
    """The address in text form, "" for none."""
    if not any(local[:16]):
        return ""
    return inet_ntop(AF_INET if len(local) == 4 else AF_INET6, local[:16])
