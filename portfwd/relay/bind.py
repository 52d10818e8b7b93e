"""The listening sockets of mappings: one per address and port, or one per address for a range that is steered to it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import closing

from cni_py.kernel.netlink import NETLINK_ROUTE, attr
from cni_py.kernel.netlink import Socket as Netlink
from portfwd.errors import Lacking, PortfwdError, PortInUse
from portfwd.follow import unscoped
from portfwd.mapping import ANY
from portfwd.relay import holders, host_only, tentative

BACKLOG = 4096  # clients that wait for accept(2); the kernel cuts it to net.core.somaxconn without a word, listen(2)
SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST in linux/netfilter_ipv6/ip6_tables.h is the same
IPPROTO_IPV6 = 41
SIOCGIFINDEX = 0x8933  # linux/sockios.h, netdevice(7)
IP_PKTINFO = 8  # linux/in.h; the socket module does not name it
IP_RECVORIGDSTADDR, IPV6_RECVORIGDSTADDR = 20, 74  # linux/in.h, linux/in6.h
RTM_GETROUTE, RTA_DST, RTM_TYPE, RTN_LOCAL = 26, 1, 7, 2  # linux/rtnetlink.h; the third is the place in struct rtmsg
IF_INET6 = "/proc/thread-self/net/if_inet6"  # proc_net(5): the IPv6 addresses of this namespace
LOOPBACK = ("127.0.0.1", "::1")
TRIED = 64  # ports for the socket of a UDP range
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 15, 4


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
    """Listen on a bound socket, which another program may have made. PortInUse, PortfwdError."""
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
    """Have a bound UDP socket, which another program may have made, tell the address that each datagram came to."""
    sock.setblocking(False)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def bind_steered(protocol: str, ip: str, ports: range) -> socket.socket:
    """A socket to which a range of an address can be steered. PortfwdError; PortInUse, for UDP, when TRIED ports are taken.

    It is bound to the first port, so that ss(8) shows it and bind(2) of others fails. Where another program has that port, which
    does not matter for steered packets, a TCP socket takes any port of loopback, on which no client is served. A UDP socket takes
    the next port, since answers leave from it.
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
    """Have a UDP socket tell the port, too, that each datagram came to: a steered one's is not the socket's own."""
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
            # Otherwise a socket on :: takes IPv4 clients, too, and conflicts with the mapping's own one on 0.0.0.0.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            # A restart need not wait for connections in TIME-WAIT. Two listeners still conflict on Linux. Not for UDP: there two
            # sockets could have one port, and SO_REUSEPORT would share clients with another program of this user.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if port:  # one on any port of loopback serves clients that are steered to it, from other interfaces
            host_only.keep(sock, ip)
        tentative.bind(sock, _sockaddr(sock, ip, port))
    except OSError as error:
        sock.close()
        raise _failure(protocol, ip, port, error) from error
    return sock


def _sockaddr(sock: socket.socket, ip: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """The address for bind(2), an IPv6 one with the index of the interface behind it (fe80::1%eth0). OSError."""
    address, _, interface = ip.partition("%")
    if not interface:
        return address, port
    # The socket at hand serves the ioctl: if_nametoindex(3) opens one of its own, and says "no such interface" when it cannot.
    answer = fcntl.ioctl(sock, SIOCGIFINDEX, struct.pack("16si20x", os.fsencode(interface)[:15], 0))
    return address, port, 0, int(struct.unpack_from("i", answer, 16)[0])


def refuse_held(protocol: str, ips: Sequence[str], ports: range, owner: str = "") -> None:
    """PortInUse when another program listens on a port of a range: steering would take its clients.

    Sockets with which a runtime keeps ports for the container of an attachment (`owner`) do not count.
    """
    first, last = ports[0], ports[-1]
    found = holders.waiting([(protocol, first, last)])
    if not owner:
        found += holders.bound(protocol, first, last)
    pairs = [(one, ip) for one in found for ip in ips if holders.in_the_way(one, unscoped(ip))]
    if pairs and owner:
        foreign = holders.foreign([one for one, _ in pairs], owner)
        pairs = [(one, ip) for one, ip in pairs if one in foreign]
    if pairs:
        one, ip = pairs[0]
        raise _failure(protocol, ip, one.port, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))


def left_out() -> tuple[str, ...]:
    """The wildcard addresses that no client can reach now: ::, where the kernel has no IPv6 or it is switched off."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
        with open(IF_INET6, "rb") as file:
            is_on = bool(file.read(1))
    except OSError as error:
        is_on = error.errno not in (errno.EAFNOSUPPORT, errno.ENOENT)
    return () if is_on else (ANY[1],)


class NoSuchFamily(PortfwdError):
    """The kernel has no such address family, or it is switched off."""


def _failure(protocol: str, ip: str, port: int, error: OSError) -> PortfwdError:
    where = f"port {port}/{protocol} on {f'[{ip}]' if ':' in ip else ip}"
    if error.errno == errno.EADDRINUSE:
        return PortInUse(f"{where} is in use by {holders.describe(protocol, unscoped(ip), port)}")
    if error.errno == errno.EAFNOSUPPORT or (error.errno == errno.EADDRNOTAVAIL and ip in ANY):
        return NoSuchFamily(f"cannot listen on {where}", f"this host has no IPv{6 if ':' in ip else 4}")
    if error.errno == errno.EADDRNOTAVAIL and tentative.is_duplicate(unscoped(ip)):
        why = (
            "an interface of this host has that address, and so has another machine on its link (duplicate, dadfailed)"
        )
        return PortfwdError(f"cannot listen on {where}", why)
    if error.errno == errno.EADDRNOTAVAIL:
        return PortfwdError(f"cannot listen on {where}", "no interface of this host has that address")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Lacking(f"cannot listen on {where}", "ports below net.ipv4.ip_unprivileged_port_start need root")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Lacking(f"cannot listen on {where}", "no descriptor is left: raise LimitNOFILE, or use a range")
    return PortfwdError(f"cannot listen on {where}", error.strerror or str(error))


def is_local(ip: str) -> bool:
    """Whether an address is this host's, by its routes. Not by trying bind(2): net.ipv4.ip_nonlocal_bind allows any."""
    packed = socket.inet_pton(family_of(ip), ip)
    if not any(packed):
        return True
    request = bytes((family_of(ip), 8 * len(packed))) + bytes(10)  # struct rtmsg, linux/rtnetlink.h
    try:
        with closing(Netlink(NETLINK_ROUTE)) as routes:
            answers = routes.request(RTM_GETROUTE, 0, request + attr(RTA_DST, packed))
    except OSError:  # no route, no such family
        return False
    return bool(answers) and answers[0][1][RTM_TYPE] == RTN_LOCAL


def original_destination(sock: socket.socket) -> tuple[str, int] | None:
    """The address that a client asked for before a NAT of this host (conntrack) changed it; None without one."""
    try:
        if sock.family == socket.AF_INET6:
            raw = sock.getsockopt(IPPROTO_IPV6, SO_ORIGINAL_DST, 28)  # struct sockaddr_in6
            return socket.inet_ntop(socket.AF_INET6, raw[8:24]), int(struct.unpack("!H", raw[2:4])[0])
        raw = sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)  # struct sockaddr_in
        return socket.inet_ntop(socket.AF_INET, raw[4:8]), int(struct.unpack("!H", raw[2:4])[0])
    except OSError:
        return None


def set_keepalive(sock: socket.socket) -> None:
    """Probes after KEEPALIVE_IDLE_S of silence, tcp(7)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
