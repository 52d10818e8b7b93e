"""rtnetlink: addresses, routes and neighbours of the network namespace that an Rtnl socket (`side`) is in.

As in kernel/rtnl.py a function is one request, a delete that finds nothing returns False, and every other refusal is an
OSError with the kernel's words. Families are 4 and 6, 0 for both.

Sources: rtnetlink(7), Linux include/uapi/linux/{rtnetlink,if_addr,neighbour}.h.
"""

import _struct
import errno

from cni_py.addr import Address
from cni_py.kernel.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    attr,
    attrs,
    iter_attrs,
    nested,
    number,
    u32,
)
from cni_py.kernel.rtnl import wait
from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal, Protocol

    from cni_py.kernel.rtnl import Rtnl

    class RouteLike(Protocol):
        """What add_route needs of a route; cni_py.protocol.result.Route is one."""

        dst: Address
        gw: bytes | None
        mtu: int
        advmss: int
        priority: int
        table: int | None
        scope: int | None


RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22  # rtnetlink.h
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
_AF = {0: 0, 4: 2, 6: 10}  # AF_UNSPEC, AF_INET, AF_INET6

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS, IFA_TARGET_NETNSID = 1, 2, 4, 8, 10  # if_addr.h
IFA_F_TEMPORARY, IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x01, 0x02, 0x08, 0x40
_IFA_F_GIVEN = 0x10 | 0x100 | 0x200 | 0x400  # HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY = 1, 4, 5, 6  # rtnetlink.h
RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH, RTA_CACHEINFO, RTA_TABLE, RTA_VIA = 7, 8, 9, 12, 15, 18
RTA_ENCAP_TYPE, RTA_ENCAP, RTA_NH_ID = 21, 22, 30
RTNH_F_ONLINK = 4
RTAX_MTU, RTAX_ADVMSS = 2, 8
RT_TABLE_COMPAT, RT_TABLE_MAIN = 252, 254
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST, RT_SCOPE_NOWHERE = 0, 253, 254, 255
RTPROT_KERNEL, _RTPROT_BOOT, RTPROT_RA = 2, 3, 9
RTN_UNICAST = 1

NDA_DST, NDA_IFINDEX = 1, 8  # neighbour.h
NUD_INCOMPLETE, NUD_FAILED = 0x01, 0x20

_IFADDRMSG = _struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG = _struct.Struct("=BBBBBBBBI")  # family, dst and src length, tos, table, protocol, scope, type, flags
ROUTE_MIN = _RTMSG.size  # bytes of a route's message without attributes
_NDMSG = _struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_RTNEXTHOP = _struct.Struct("=HBBi")  # length, flags, weight - 1, index


class Addr:
    """An address of an interface as the kernel showed it."""

    __slots__ = ("address", "flags", "index", "scope")
    index: int
    scope: int

    def __init__(self, body: bytes) -> None:
        _, prefixlen, flags, self.scope, self.index = _IFADDRMSG.unpack_from(body)
        found = attrs(body[_IFADDRMSG.size :])
        # Of a point-to-point address IFA_ADDRESS is the other end's; plain IPv6 ones have no IFA_LOCAL. The flags of the
        # header are 8 bits, of which IPv6 has long had more.
        self.address = Address(found.get(IFA_LOCAL) or found[IFA_ADDRESS], prefixlen)
        self.flags = number(found.get(IFA_FLAGS)) or int(flags)

    @property
    def tentative(self) -> bool:
        """Whether duplicate address detection is not over: the address cannot be used yet."""
        return bool(self.flags & IFA_F_TENTATIVE)

    @property
    def dad_failed(self) -> bool:
        """Whether duplicate address detection has found somebody else with the address."""
        return bool(self.flags & IFA_F_DADFAILED)


class Route:
    """A route as the kernel showed it, or one next hop of a multipath route."""

    __slots__ = ("advmss", "dst", "gw", "index", "mtu", "priority", "protocol", "scope", "src", "table", "type")
    gw: bytes | None
    protocol: int
    scope: int
    type: int

    def __init__(self, body: bytes) -> None:
        family, prefixlen, _, _, table, self.protocol, self.scope, self.type, _ = _RTMSG.unpack_from(body)
        found = attrs(body[_RTMSG.size :])
        metrics = attrs(found.get(RTA_METRICS, b""))
        self.dst = Address(found.get(RTA_DST, bytes(4 if family == _AF[4] else 16)), prefixlen)
        self.gw = _gateway(found)
        self.src = found.get(RTA_PREFSRC)
        self.index = number(found.get(RTA_OIF))
        self.priority = number(found.get(RTA_PRIORITY))
        self.table: int = number(found[RTA_TABLE]) if RTA_TABLE in found else table
        self.mtu = number(metrics.get(RTAX_MTU))
        self.advmss = number(metrics.get(RTAX_ADVMSS))

    @classmethod
    def each(cls, body: bytes) -> "Iterator[Route]":
        """One for each next hop."""
        hops = attrs(body[_RTMSG.size :]).get(RTA_MULTIPATH, b"")
        if not hops:
            yield cls(body)
        while len(hops) >= _RTNEXTHOP.size:
            length, _, _, index = _RTNEXTHOP.unpack_from(hops)
            route = cls(body)
            route.index = index
            route.gw = _gateway(attrs(hops[_RTNEXTHOP.size : length]))
            yield route
            hops = hops[(length + 3) & ~3 :] if length >= _RTNEXTHOP.size else b""


# Addresses


def addresses(side: "Rtnl", index: int = 0, family: int = 0, *, within: int = -1) -> list[Addr]:
    """The addresses of all interfaces or of one; of both families or of one.

    The kernel picks those of the interface (inet_dump_ifaddr(), strict checking). `within`: the number of another namespace, as
    kernel/nsid has it, whose addresses are meant.
    """
    body = _IFADDRMSG.pack(_AF[family], 0, 0, 0, index)
    if within >= 0:
        body += attr(IFA_TARGET_NETNSID, u32(within))
    found = [Addr(answer) for answer in _dump_ip(side, RTM_GETADDR, body)]
    return [addr for addr in found if index in (0, addr.index) and family in (0, addr.address.family)]


def add_address(
    side: "Rtnl", index: int, address: Address, *, nodad: bool = False, broadcast: bytes | None = None, scope: int = 0
) -> None:
    """FileExistsError when the interface has it. With `nodad` an IPv6 address can be used at once.

    Otherwise it is tentative for a second or longer, and detection begins when the link carries traffic.
    """
    body = _address_body(index, address, scope)
    if broadcast is not None:
        body += attr(IFA_BROADCAST, broadcast)
    if nodad:
        body += attr(IFA_FLAGS, u32(IFA_F_NODAD))
    side.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)


def delete_address(side: "Rtnl", index: int, address: Address) -> bool:
    """False when the interface does not have it, or is not there."""
    body = _address_body(index, address, 0)
    return side.delete(RTM_DELADDR, body, (errno.EADDRNOTAVAIL, errno.ENODEV))


def address_copies(side: "Rtnl", index: int, family: int) -> list[bytes]:
    """The addresses of an interface as the kernel's own messages, to be given to it again with put_address().

    Without those that the kernel makes of others, and that somebody else has.
    """
    found = []
    for answer in _dump_ip(side, RTM_GETADDR, _IFADDRMSG.pack(_AF[family], 0, 0, 0, index)):
        addr = Addr(answer)
        if addr.index == index and not addr.flags & (IFA_F_TEMPORARY | IFA_F_DADFAILED):
            # One that has been found to be unique is not tried again.
            flags = addr.flags & _IFA_F_GIVEN | (0 if addr.tentative else IFA_F_NODAD)
            given = [(name, value) for name, value in iter_attrs(answer[_IFADDRMSG.size :]) if name != IFA_FLAGS]
            head = answer[: _IFADDRMSG.size]
            found.append(head + b"".join(attr(name, value) for name, value in [*given, (IFA_FLAGS, u32(flags))]))
    return found


def address_in(body: bytes) -> Address:
    """The address of such a message. ValueError when it is none."""
    if len(body) < _IFADDRMSG.size or IFA_ADDRESS not in attrs(body[_IFADDRMSG.size :]):
        raise ValueError(f"not an address: {body.hex()}")
    return Addr(body).address


def put_address(side: "Rtnl", body: bytes) -> None:
    """FileExistsError when the interface has it."""
    side.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)


# Routes


def routes(side: "Rtnl", index: int = 0, family: int = 0, table: int = RT_TABLE_MAIN) -> list[Route]:
    """The routes out of one interface or all, in one table or (0) all of them."""
    found: list[Route] = []
    for answer in _route_answers(side, index, family, table):
        found += Route.each(answer)
    return [route for route in found if index in (0, route.index)]


def _route_answers(side: "Rtnl", index: int, family: int, table: int) -> list[bytes]:
    """The answers to routes(), among them multipath routes that go out of the interface with one of their hops."""
    # Each family is asked for by itself: where one of them lacks the table, its dump alone fails (inet_dump_fib()).
    given = attr(RTA_OIF, u32(index)) if index else b""
    given += attr(RTA_TABLE, u32(table)) if table else b""
    found: list[bytes] = []
    for wanted in (family,) if family else (4, 6):
        body = _RTMSG.pack(_AF[wanted], 0, 0, 0, 0, 0, 0, 0, 0) + given
        try:
            answers = _dump_ip(side, RTM_GETROUTE, body)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                continue  # no such table; no such family in this kernel
            raise
        found += [answer for answer in answers if answer[0] == _AF[wanted]]
    return found


def add_route(
    side: "Rtnl", route: "RouteLike", index: int, *, beside: "Literal['', 'before', 'after']" = "", src: bytes = b""
) -> None:
    """FileExistsError when there is a route to the same destination with the same metric.

    `beside` allows another one, which then comes `before` or `after` those that are there (ip route prepend, append),
    and FileExistsError means that this very route is there. IPv4 uses the first; IPv6 makes one multipath route of
    them. Table main, scope universe and priority 0 unless told otherwise, as the Go plugins have it. `src` is the
    address that packets to there come from, where nothing else says so.
    """
    # Without NLM_F_EXCL and NLM_F_APPEND, fib_table_insert() puts an IPv4 route in front of its equals; fib6_add_rt2node()
    # adds a next hop with or without APPEND. NLM_F_REPLACE is never used: the route replaced may be somebody else's.
    flags = NLM_F_CREATE | {"": NLM_F_EXCL, "before": 0, "after": NLM_F_APPEND}[beside]
    side.request(RTM_NEWROUTE, flags, new_route(route, index, src))


def new_route(route: "RouteLike", index: int, src: bytes = b"") -> bytes:
    """The message for add_route() and put_copy()."""
    scope = RT_SCOPE_UNIVERSE if route.scope is None else route.scope
    body = _route_body(route, index, _RTPROT_BOOT, scope, RTN_UNICAST) + (attr(RTA_PREFSRC, src) if src else b"")
    metrics = ((RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss))
    given = [attr(kind, u32(value)) for kind, value in metrics if value]
    return body + (nested(RTA_METRICS, *given) if given else b"")


def delete_route(side: "Rtnl", route: "RouteLike", index: int) -> bool:
    """False when there is none."""
    # Protocol and type 0, and scope NOWHERE, are those of any route (fib_table_delete()); scope 0 would be `universe`.
    scope = RT_SCOPE_NOWHERE if route.scope is None else route.scope
    return side.delete(RTM_DELROUTE, _route_body(route, index, 0, scope, 0), (errno.ESRCH, errno.ENODEV))


def route_to(side: "Rtnl", ip: bytes) -> Route | None:
    """The route that a packet of this host to `ip` would take; None when there is none."""
    head = _RTMSG.pack(_AF[4 if len(ip) == 4 else 6], 8 * len(ip), 0, 0, 0, 0, 0, 0, 0)
    try:
        answers = side.request(RTM_GETROUTE, 0, head + attr(RTA_DST, ip))
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ESRCH):
            return None
        raise
    return Route(answers[0][1])


# Copies of routes: the kernel's own messages, with all that a route has, known to us or not


def copies(side: "Rtnl", index: int, table: int = RT_TABLE_MAIN) -> list[bytes]:
    """The routes of one table out of one interface, to be put into another table with put_copy().

    Of an IPv6 multipath route, which the kernel makes of equal routes of several interfaces, the hops out of this one: each is
    a route by itself (fib6_add_rt2node()). An IPv4 multipath route is one whole that somebody has made, and left out.
    """
    found: list[bytes] = []
    for answer in _route_answers(side, index, 0, table):
        if RTA_MULTIPATH not in attrs(answer[_RTMSG.size :]):
            found.append(_copy(answer))
        elif answer[0] == _AF[6]:
            found += [_copy(_one_hop(answer, route)) for route in Route.each(answer)]
    return [body for body in found if Route(body).index == index or RTA_NH_ID in attrs(body[_RTMSG.size :])]


def put_copy(side: "Rtnl", body: bytes, table: int) -> None:
    """FileExistsError when this very route is in the table; another one to the same destination may be."""
    side.request(RTM_NEWROUTE, NLM_F_CREATE, _in_table(body, table))


def delete_copy(side: "Rtnl", body: bytes, table: int) -> bool:
    """False when there is no such route."""
    return side.delete(RTM_DELROUTE, _in_table(body, table), (errno.ESRCH, errno.ENODEV))


def _copy(body: bytes) -> bytes:
    """The message without what the kernel shows but does not take."""
    family, dst, src, tos, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    given = list(iter_attrs(body[_RTMSG.size :]))
    left_out = {RTA_CACHEINFO}
    if any(name == RTA_NH_ID for name, _ in given):  # it stands for these, and the kernel takes no two (fib_get_nhs())
        left_out |= {RTA_OIF, RTA_GATEWAY, RTA_VIA, RTA_MULTIPATH, RTA_ENCAP_TYPE, RTA_ENCAP}
    head = _RTMSG.pack(family, dst, src, tos, table, protocol, scope, kind, flags & RTNH_F_ONLINK)
    return head + b"".join(attr(name, value) for name, value in given if name not in left_out)


def _one_hop(body: bytes, hop: Route) -> bytes:
    """The message of a multipath route, as that of one of its hops."""
    given = [(name, value) for name, value in iter_attrs(body[_RTMSG.size :]) if name != RTA_MULTIPATH]
    given.append((RTA_OIF, u32(hop.index)))
    if hop.gw is not None:
        given.append((RTA_GATEWAY, hop.gw))
    return body[: _RTMSG.size] + b"".join(attr(name, value) for name, value in given)


def _in_table(body: bytes, table: int) -> bytes:
    family, dst, src, tos, _, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    given = [(name, value) for name, value in iter_attrs(body[_RTMSG.size :]) if name != RTA_TABLE]
    head = _RTMSG.pack(family, dst, src, tos, _small(table), protocol, scope, kind, flags)
    return head + b"".join(attr(name, value) for name, value in [*given, (RTA_TABLE, u32(table))])


# Neighbours


def delete_neighbour(side: "Rtnl", index: int, ip: bytes) -> bool:
    """Delete the neighbour entry (the MAC address) of `ip`. False when there is none."""
    body = _NDMSG.pack(_AF[4 if len(ip) == 4 else 6], index, 0, 0, 0) + attr(NDA_DST, ip)
    return side.delete(RTM_DELNEIGH, body, (errno.ENOENT, errno.ENODEV, errno.ESRCH))


def forget_unresolved(side: "Rtnl", index: int) -> None:
    """Delete the neighbour entries of an interface that wait for an answer: the next packet asks anew, and at once.

    What waits is asked again only after a second (net.ipv4.neigh.*.retrans_time_ms).
    """
    body = _NDMSG.pack(0, 0, 0, 0, 0) + attr(NDA_IFINDEX, u32(index))
    for answer in _dump_ip(side, RTM_GETNEIGH, body):
        _, at, state, _, _ = _NDMSG.unpack_from(answer)
        ip = attrs(answer[_NDMSG.size :]).get(NDA_DST)
        if at == index and ip and state & (NUD_INCOMPLETE | NUD_FAILED):
            delete_neighbour(side, index, ip)


def wait_addresses(side: "Rtnl", index: int, limit_s: float) -> None:
    """Wait until duplicate address detection is over for every IPv6 address of the interface.

    OSError EADDRINUSE when somebody else has an address; ETIMEDOUT when the limit is reached although the link carries
    traffic (without that detection does not even begin).
    """

    def settled() -> bool:
        found = addresses(side, index, 6)
        failed = [str(addr.address) for addr in found if addr.dad_failed]
        if failed:
            raise OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}: {failed[0]} in DADFAILED state")
        return not any(addr.tentative for addr in found)

    if wait(settled, limit_s):
        return
    link = side.link(index)
    if link is not None and link.operstate == "up":
        raise OSError(errno.ETIMEDOUT, f"IPv6 addresses of {link.name} still tentative after {limit_s:g} s")


def _dump_ip(side: "Rtnl", kind: int, body: bytes) -> list[bytes]:
    """The IPv4 and IPv6 entries of a dump.

    For a family that the kernel does not have, it dumps those of all that it has (rtnetlink_rcv_msg()).
    """
    return [answer for _, answer in side.request(kind, NLM_F_DUMP, body) if answer[0] in (_AF[4], _AF[6])]


def _address_body(index: int, address: Address, scope: int) -> bytes:
    header = _IFADDRMSG.pack(_AF[address.family], address.prefixlen, 0, scope, index)
    return header + attr(IFA_LOCAL, address.packed) + attr(IFA_ADDRESS, address.packed)


def _route_body(route: "RouteLike", index: int, protocol: int, scope: int, kind: int) -> bytes:
    dst, gw = route.dst, route.gw
    if gw is not None and len(gw) != len(dst.packed):
        raise OSError(errno.EINVAL, f"gateway of another family than the destination {dst}")
    if not 0 <= scope <= RT_SCOPE_NOWHERE:
        raise OSError(errno.ERANGE, f"not a route's scope: {scope}")
    table = RT_TABLE_MAIN if route.table is None else route.table
    body = _RTMSG.pack(_AF[dst.family], dst.prefixlen, 0, 0, _small(table), protocol, scope, kind, 0)
    if dst.prefixlen:
        body += attr(RTA_DST, dst.packed)
    if gw is not None:
        body += attr(RTA_GATEWAY, gw)
    if route.priority:
        body += attr(RTA_PRIORITY, u32(route.priority))
    return body + attr(RTA_TABLE, u32(table)) + attr(RTA_OIF, u32(index))


def _small(table: int) -> int:
    """The table for the header. RTA_TABLE counts; the byte cannot hold 256 and more, and cut off they would be another's."""
    return table if table < 256 else RT_TABLE_COMPAT


def _gateway(found: dict[int, bytes]) -> bytes | None:
    """The next hop's address; RTA_VIA (an IPv6 router of an IPv4 route) has two bytes of family before it."""
    via = found.get(RTA_VIA)
    return via[2:] if via else found.get(RTA_GATEWAY)
