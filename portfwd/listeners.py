"""Sockets that clients find: one per address and port, or one per address for a range whose ports are steered to it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Sequence

from portfwd import holders
from portfwd.errors import Lacking, PortfwdError, PortInUse
from portfwd.mapping import ANY
from portfwd.tcp import set_keepalive

BACKLOG = 4096  # at most net.core.somaxconn
IP_PKTINFO = 8  # linux/in.h; the socket module does not name it
IP_RECVORIGDSTADDR, IPV6_RECVORIGDSTADDR = 20, 74  # linux/in.h, linux/in6.h
LOOPBACK = ("127.0.0.1", "::1")
TRIED = 64  # ports for the socket of a UDP range
NO_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)  # IPv6 is not in the kernel, or switched off here


def family_of(ip: str) -> socket.AddressFamily:
    """AF_INET or AF_INET6."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def bind_tcp(ip: str, port: int) -> socket.socket:
    """A listening socket; what it accepts inherits TCP_NODELAY and keepalive. PortInUse, PortfwdError."""
    sock = _bound(ip, port, socket.SOCK_STREAM)
    try:
        listen(sock, ip, port)
    except PortfwdError:
        sock.close()
        raise
    return sock


def listen(sock: socket.socket, ip: str, port: int) -> None:
    """The same with a bound socket that somebody else may have made."""
    sock.setblocking(False)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        set_keepalive(sock)
        sock.listen(BACKLOG)
    except OSError as error:
        raise _failure("tcp", ip, port, error) from error


def bind_udp(ip: str, port: int) -> socket.socket:
    """A socket that tells which address a datagram came for (ip(7) IP_PKTINFO, ipv6(7) IPV6_RECVPKTINFO)."""
    sock = _bound(ip, port, socket.SOCK_DGRAM)
    prepare_udp(sock)
    return sock


def prepare_udp(sock: socket.socket) -> None:
    """For a bound socket that somebody else made."""
    sock.setblocking(False)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def bind_steered(protocol: str, ip: str, ports: range) -> socket.socket:
    """A socket for a range of an address. PortInUse for UDP alone, when sockets with a peer have the first ports.

    It has the first port, so that ss(8) shows it and others see the conflict. Where that is somebody's, which is no matter for
    what is steered, TCP takes a port of the loopback, by which nobody is served, and UDP the next, which answers can leave from.
    """
    if protocol == "tcp":
        try:
            return bind_tcp(ip, ports[0])
        except PortInUse:
            return bind_tcp(LOOPBACK[":" in ip], 0)
    for port in ports[:TRIED]:
        with contextlib.suppress(PortInUse):
            return tell_port(bind_udp(ip, port))
    raise _failure(protocol, ip, ports[0], OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))


def tell_port(sock: socket.socket) -> socket.socket:
    """The same UDP socket, which tells from now on which port a datagram came for."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVORIGDSTADDR, 1)
    return sock


def _bound(ip: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = family_of(ip)
    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
    try:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise _failure(protocol, ip, port, error) from error
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:  # a restart need not wait for TIME_WAIT; for UDP it would let two have one port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((ip, port))
    except OSError as error:
        sock.close()
        raise _failure(protocol, ip, port, error) from error
    return sock


def refuse_held(protocol: str, ips: Sequence[str], ports: range, owner: str = "") -> None:
    """PortInUse for a port of a range that somebody waits on: steering would take their clients.

    What a container's runtime holds for the container of an attachment (`owner`) is not in its way.
    """
    first, last = ports[0], ports[-1]
    found = holders.waiting([(protocol, first, last)])
    if not owner:
        found += holders.bound(protocol, first, last)
    pairs = [(one, ip) for one in found for ip in ips if holders.in_the_way(one, ip)]
    if pairs and owner:
        foreign = holders.foreign([one for one, _ in pairs], owner)
        pairs = [(one, ip) for one, ip in pairs if one in foreign]
    if pairs:
        one, ip = pairs[0]
        raise _failure(protocol, ip, one.port, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))


class NoSuchFamily(PortfwdError):
    """This host has no such address family."""


def _failure(protocol: str, ip: str, port: int, error: OSError) -> PortfwdError:
    where = f"port {port}/{protocol} on {f'[{ip}]' if ':' in ip else ip}"
    if error.errno == errno.EADDRINUSE:
        return PortInUse(f"{where} is in use by {holders.describe(protocol, ip, port)}")
    if error.errno in NO_FAMILY and ip in ANY:
        return NoSuchFamily(f"cannot listen on {where}", error.strerror or str(error))
    if error.errno == errno.EADDRNOTAVAIL:
        return PortfwdError(f"cannot listen on {where}", "no interface of this host has that address")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Lacking(f"cannot listen on {where}", "ports below net.ipv4.ip_unprivileged_port_start need root")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Lacking(f"cannot listen on {where}", "no descriptor is left: raise LimitNOFILE, or use a range")
    return PortfwdError(f"cannot listen on {where}", error.strerror or str(error))


def is_local(ip: str) -> bool:
    """Whether an address is one of this host's own: only then it can be bound."""
    try:
        with socket.socket(family_of(ip), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.bind((ip, 0))
    except OSError:
        return False
    return True
