"""Sockets that clients find: one per address and port, or one per address for a range whose ports are steered to it."""

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

BACKLOG = 4096  # at most net.core.somaxconn
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
        if port:  # one without a port of its own serves what is led to it from elsewhere
            host_only.keep(sock, ip)
        tentative.bind(sock, _sockaddr(sock, ip, port))
    except OSError as error:
        sock.close()
        raise _failure(protocol, ip, port, error) from error
    return sock


def _sockaddr(sock: socket.socket, ip: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """For bind(2): the interface behind an address is the fourth field, which Python sets to 0 otherwise. OSError."""
    address, _, interface = ip.partition("%")
    if not interface:
        return address, port
    # if_nametoindex(3) needs a descriptor of its own, and does not tell when there is none
    answer = fcntl.ioctl(sock, SIOCGIFINDEX, struct.pack("16si20x", os.fsencode(interface)[:15], 0))
    return address, port, 0, int(struct.unpack_from("i", answer, 16)[0])


def refuse_held(protocol: str, ips: Sequence[str], ports: range, owner: str = "") -> None:
    """PortInUse for a port of a range that somebody waits on: steering would take their clients.

    What a container's runtime holds for the container of an attachment (`owner`) is not in its way.
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
    """The wildcards at which nobody finds us now: ::, where the kernel has no IPv6, or it is switched off and has no address."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
        with open(IF_INET6, "rb") as file:
            is_on = bool(file.read(1))
    except OSError as error:
        is_on = error.errno not in (errno.EAFNOSUPPORT, errno.ENOENT)
    return () if is_on else (ANY[1],)


class NoSuchFamily(PortfwdError):
    """This host has no such address family."""


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
    """Whether a connection to an address stays on this host, by its routes: net.ipv4.ip_nonlocal_bind lets one bind any."""
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
    """Where the client wanted to go before a NAT of this host led it here; None when there was none."""
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
