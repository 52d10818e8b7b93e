"""Listeners on 127.0.0.0/8 serve this host alone, whatever net.ipv4.conf.*.route_localnet lets in by other interfaces.

The kernel drops packets to ::1 that arrive by another interface than lo (ipv6_rcv()), and packets to 127/8 unless route_localnet
is set there. So an IPv4 listener is also bound to lo (SO_BINDTODEVICE, without privilege since Linux 5.7): other packets find no
socket. One on ::1 is not, since it could not answer clients of this host that use another source address. Where binding fails,
and for steered sockets, which get packets from anywhere, each client is asked by which interface it came.
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
    """Whether only this host may reach the address, and the kernel alone does not make sure of that."""
    return ip.startswith("127.")


def keep(sock: socket.socket, ip: str) -> None:
    """Bind a socket on 127/8 to lo, if the kernel permits."""
    if is_for_host(ip) and not is_kept(sock):
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LO)
        except OSError:  # before Linux 5.7, without CAP_NET_RAW: see asks()
            return


def is_kept(sock: socket.socket) -> bool:
    """Whether it is bound to an interface."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, IFNAME_SIZE))


def asks(sock: socket.socket, ip: str, port: int) -> bool:
    """Whether each client of the socket has to be asked by which interface it came. `port` is 0 for a steered socket."""
    return is_for_host(ip) and not (port and is_kept(sock))


def came_by_lo(client: socket.socket) -> bool:
    """Whether an accepted connection came by lo, from this host; False when the kernel does not tell."""
    try:
        # IP_PKTOPTIONS gives a TCP socket the control messages of the packet that completed its handshake (do_ip_getsockopt()).
        client.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        told = client.getsockopt(socket.IPPROTO_IP, IP_PKTOPTIONS, OPTIONS_SIZE)
    except OSError:
        return False
    if len(told) < CMSG_DATA + 4 or struct.unpack_from("=ii", told, CMSG_DATA - 8) != (socket.IPPROTO_IP, IP_PKTINFO):
        return False
    return bool(struct.unpack_from("=i", told, CMSG_DATA)[0] == LO_INDEX)  # struct in_pktinfo: the index first
