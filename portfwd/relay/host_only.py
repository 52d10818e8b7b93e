"""Listeners on 127.0.0.0/8 mean this host alone, whatever net.ipv4.conf.*.route_localnet lets in by other interfaces.

The kernel drops what comes for ::1 by any interface but lo (ipv6_rcv()), and for 127/8 unless route_localnet is set there. So an
IPv4 listener is bound to lo, too: what comes otherwise finds no socket. (One on ::1 is not: it could not answer clients on this
host that use another address of theirs.) Since Linux 5.7 that takes no privilege. Where it cannot be done, and for sockets on a
wildcard that clients of 127/8 are led to, the interface that a client came by is asked for when it comes.
"""

from __future__ import annotations

import socket
import struct

LO = b"lo\0"
LO_INDEX = 1  # LOOPBACK_IFINDEX, include/net/net_namespace.h: in every namespace
IFNAME_SIZE = 16  # IFNAMSIZ, linux/if.h
IP_PKTINFO, IP_PKTOPTIONS = 8, 9  # linux/in.h; the second tells of the packet that completed a TCP connection
CMSG_DATA = socket.CMSG_LEN(0)  # where data begins behind struct cmsghdr, whose last eight bytes are level and type
OPTIONS_SIZE = 256


def is_for_host(ip: str) -> bool:
    """Whether an address is one that the kernel may let others reach, and that we do not."""
    return ip.startswith("127.")


def keep(sock: socket.socket, ip: str) -> None:
    """Let a socket of ours on such an address be found by this host alone, if the kernel permits."""
    if is_for_host(ip) and not is_kept(sock):
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LO)
        except OSError:  # before Linux 5.7, without CAP_NET_RAW: see asks()
            return


def is_kept(sock: socket.socket) -> bool:
    """Whether it is bound to an interface."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, IFNAME_SIZE))


def asks(sock: socket.socket, ip: str, port: int) -> bool:
    """Whether clients of such a socket are to be asked where they came from. One without a `port` is led to, from anywhere."""
    return is_for_host(ip) and not (port and is_kept(sock))


def came_by_lo(client: socket.socket) -> bool:
    """Whether an accepted connection came from this host; False when the kernel does not tell."""
    try:
        client.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        told = client.getsockopt(socket.IPPROTO_IP, IP_PKTOPTIONS, OPTIONS_SIZE)
    except OSError:
        return False
    if len(told) < CMSG_DATA + 4 or struct.unpack_from("=ii", told, CMSG_DATA - 8) != (socket.IPPROTO_IP, IP_PKTINFO):
        return False
    return bool(struct.unpack_from("=i", told, CMSG_DATA)[0] == LO_INDEX)  # struct in_pktinfo: the index first
