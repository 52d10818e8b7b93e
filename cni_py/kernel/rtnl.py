"""rtnetlink: links, bridge ports, addresses, routes and neighbours of one network namespace.

Nothing here decides or retries: a method is one request. What a delete does not find is answered with False; every other
refusal is an OSError with the kernel's words. Families are 4 and 6, 0 for both.

Sources: rtnetlink(7), Linux include/uapi/linux/{rtnetlink,if_link,if_addr,if_bridge,veth,neighbour}.h.
"""

import _struct
import errno
import os
import time

from cni_py.addr import Address
from cni_py.kernel.netlink import (
    NETLINK_ROUTE,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    Socket,
    attr,
    attrs,
    nested,
)
from cni_py.kernel.netns import Enter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Literal, Protocol

    class RouteLike(Protocol):
        """What add_route needs of a route; cni_py.protocol.result.Route is one."""

        dst: Address
        gw: bytes | None
        mtu: int
        advmss: int
        priority: int
        table: int | None
        scope: int | None


RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19  # rtnetlink.h
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_DELNEIGH = 29

AF_BRIDGE = 7
_AF = {0: 0, 4: 2, 6: 10}

IFNAME_MAX = 15  # bytes; IFNAMSIZ of if.h without the NUL
IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFF_PROMISC = 0x100
OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")  # IF_OPER_*, RFC 2863

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 3, 4, 5  # if_link.h
IFLA_MASTER, IFLA_PROTINFO, IFLA_OPERSTATE, IFLA_LINKINFO = 10, 12, 16, 18
IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_EXT_MASK = 20, 26, 28, 29
IFLA_PROMISCUITY, IFLA_LINK_NETNSID = 30, 37
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BR_VLAN_FILTERING = 7
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33  # MODE is hairpin
VETH_INFO_PEER = 1
_RTEXT_FILTER_SKIP_STATS = 1 << 3

IFLA_BRIDGE_VLAN_INFO = 2  # if_bridge.h
VID_MAX = 4094  # IEEE 802.1Q
BRIDGE_VLAN_INFO_PVID, BRIDGE_VLAN_INFO_UNTAGGED = 1 << 1, 1 << 2
BRIDGE_VLAN_INFO_RANGE_BEGIN, BRIDGE_VLAN_INFO_RANGE_END = 1 << 3, 1 << 4

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8  # if_addr.h
IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x02, 0x08, 0x40

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY = 1, 4, 5, 6  # rtnetlink.h
RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 7, 8, 9, 15, 18
RTAX_MTU, RTAX_ADVMSS = 2, 8
RT_TABLE_COMPAT, RT_TABLE_MAIN = 252, 254
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST, RT_SCOPE_NOWHERE = 0, 253, 254, 255
_RTPROT_BOOT = 3
_RTN_UNICAST = 1

NDA_DST = 1

_IFINFOMSG = _struct.Struct("=BxHiII")  # family, hardware type, index, flags, mask of flags to change
_IFADDRMSG = _struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_RTMSG = _struct.Struct("=BBBBBBBBI")  # family, dst and src length, tos, table, protocol, scope, type, flags
_NDMSG = _struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_RTNEXTHOP = _struct.Struct("=HBBi")  # length, flags, weight - 1, index
_U16 = _struct.Struct("=H")
_U32 = _struct.Struct("=I")
_I32 = _struct.Struct("=i")
_VLAN_INFO = _struct.Struct("=HH")  # flags, VLAN ID

_SLEEPS_S = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02)
_LONG_SLEEP_S = 0.05


class Link:
    """A network interface as the kernel showed it.

    `master` and `link` (of a veth: its peer) are indexes, 0 for none; `netns_id` says which namespace `link` is in, -1 for
    this one. `hairpin` and `isolated` are those of a bridge port.
    """

    __slots__ = (
        "alias", "flags", "hairpin", "index", "isolated", "kind", "link", "mac", "master", "mtu", "name", "netns_id",
        "operstate", "promiscuity", "slave_kind", "vlan_filtering",
    )  # fmt: skip
    index: int
    flags: int

    def __init__(self, body: bytes) -> None:
        _, _, self.index, self.flags, _ = _IFINFOMSG.unpack_from(body)
        found = attrs(body[_IFINFOMSG.size :])
        info = attrs(found.get(IFLA_LINKINFO, b""))
        data, port = attrs(info.get(IFLA_INFO_DATA, b"")), attrs(info.get(IFLA_INFO_SLAVE_DATA, b""))
        self.name = _text(found.get(IFLA_IFNAME))
        self.mac = found.get(IFLA_ADDRESS, b"")
        self.mtu = _number(found.get(IFLA_MTU))
        self.operstate = OPERSTATES[_number(found.get(IFLA_OPERSTATE))]
        self.master = _number(found.get(IFLA_MASTER))
        self.link = _number(found.get(IFLA_LINK))
        self.netns_id = int(_I32.unpack(found[IFLA_LINK_NETNSID])[0]) if IFLA_LINK_NETNSID in found else -1
        self.alias = _text(found.get(IFLA_IFALIAS))
        self.promiscuity = _number(found.get(IFLA_PROMISCUITY))
        self.kind = _text(info.get(IFLA_INFO_KIND))
        self.slave_kind = _text(info.get(IFLA_INFO_SLAVE_KIND))
        is_port = self.slave_kind == "bridge"
        self.hairpin = is_port and port.get(IFLA_BRPORT_MODE) == b"\1"
        self.isolated = is_port and port.get(IFLA_BRPORT_ISOLATED) == b"\1"
        self.vlan_filtering = self.kind == "bridge" and data.get(IFLA_BR_VLAN_FILTERING) == b"\1"

    @property
    def up(self) -> bool:
        """Whether it is set up; whether it carries traffic too is `operstate`."""
        return bool(self.flags & IFF_UP)


class Addr:
    """An address of an interface as the kernel showed it."""

    __slots__ = ("address", "flags", "index", "scope")
    index: int
    scope: int

    def __init__(self, body: bytes) -> None:
        _, prefixlen, flags, self.scope, self.index = _IFADDRMSG.unpack_from(body)
        found = attrs(body[_IFADDRMSG.size :])
        # Of a point-to-point address IFA_ADDRESS is the other end's; plain IPv6 ones have no IFA_LOCAL.
        self.address = Address(found.get(IFA_LOCAL) or found[IFA_ADDRESS], prefixlen)
        self.flags = _number(found.get(IFA_FLAGS)) or int(flags)

    @property
    def tentative(self) -> bool:
        """Duplicate address detection is not over: the address cannot be used yet."""
        return bool(self.flags & IFA_F_TENTATIVE)

    @property
    def dad_failed(self) -> bool:
        """Somebody else has the address."""
        return bool(self.flags & IFA_F_DADFAILED)


class Route:
    """A route (of several next hops: one of them) as the kernel showed it."""

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
        self.index = _number(found.get(RTA_OIF))
        self.priority = _number(found.get(RTA_PRIORITY))
        self.table: int = _number(found[RTA_TABLE]) if RTA_TABLE in found else table
        self.mtu = _number(metrics.get(RTAX_MTU))
        self.advmss = _number(metrics.get(RTAX_ADVMSS))

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


class Rtnl:
    """A socket that speaks rtnetlink in one network namespace: that of `netns_fd`, or the process's own."""

    __slots__ = ("_cookie", "_socket")

    def __init__(self, netns_fd: int | None = None) -> None:
        self._cookie = -1
        if netns_fd is None:
            self._socket = Socket(NETLINK_ROUTE)
        else:
            with Enter(netns_fd):  # a socket stays in the namespace it was made in
                self._socket = Socket(NETLINK_ROUTE)

    def close(self) -> None:
        """A second call is harmless."""
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        """One rtnetlink request: see netlink.Socket.request."""
        return self._socket.request(kind, flags, body)

    def _dump_ip(self, kind: int, body: bytes) -> list[bytes]:
        """The IPv4 and IPv6 entries of a dump: a kernel without one of the families answers with all it has."""
        return [answer for _, answer in self.request(kind, NLM_F_DUMP, body) if answer[0] in (_AF[4], _AF[6])]

    def delete(self, kind: int, body: bytes, absent: tuple[int, ...]) -> bool:
        """A request whose failure with one of the errors `absent` means that there was nothing to delete."""
        try:
            self.request(kind, 0, body)
        except OSError as error:
            if error.errno in absent:
                return False
            raise
        return True

    @property
    def cookie(self) -> int:
        """The kernel's number of the namespace, never used twice in one boot; 0 before Linux 5.14."""
        if self._cookie < 0:
            self._cookie = self._socket.netns_cookie()
        return self._cookie

    # Links

    def link(self, link: int | str) -> Link | None:
        """The link with this index or name (an alternative name, too); None when there is none, or cannot be."""
        try:
            index, name = _which(link)
            body = _IFINFOMSG.pack(0, 0, index, 0, 0) + name + attr(IFLA_EXT_MASK, _U32.pack(_RTEXT_FILTER_SKIP_STATS))
            answers = self.request(RTM_GETLINK, 0, body)
        except OSError as error:
            if error.errno == errno.ENODEV or (error.errno == errno.EINVAL and isinstance(link, str)):
                return None
            raise
        return Link(answers[0][1])

    def links(self, master: int = 0) -> list[Link]:
        """All links, or the ports of one bridge."""
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + attr(IFLA_EXT_MASK, _U32.pack(_RTEXT_FILTER_SKIP_STATS))
        if master:
            body += attr(IFLA_MASTER, _u32(master))
        found = [Link(answer) for kind, answer in self.request(RTM_GETLINK, NLM_F_DUMP, body) if kind == RTM_NEWLINK]
        return [link for link in found if master in (0, link.master)]

    def add_bridge(self, name: str, mac: bytes = b"", mtu: int = 0, *, vlan_filtering: bool = False) -> None:
        """FileExistsError when the name is taken."""
        kind = attr(IFLA_INFO_KIND, b"bridge\0")
        data = nested(IFLA_INFO_DATA, attr(IFLA_BR_VLAN_FILTERING, b"\1")) if vlan_filtering else b""
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + _new_link(name, mac, mtu) + nested(IFLA_LINKINFO, kind, data)
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)

    def add_veth(
        self,
        name: str,
        peer: str,
        *,
        peer_netns_fd: int | None = None,
        mtu: int = 0,
        mac: bytes = b"",
        peer_mac: bytes = b"",
        alias: str = "",
    ) -> None:
        """A pair, both ends down: `name` here, `peer` in the namespace of `peer_netns_fd` (None: here), all in one request.

        FileExistsError when either name is taken. An alias (of `name`) takes a second request, since the kernel ignores
        one in the first; if that fails the pair is deleted again.
        """
        there = _new_link(peer, peer_mac, mtu)
        if peer_netns_fd is not None:
            there += attr(IFLA_NET_NS_FD, _u32(peer_netns_fd))
        empty = _IFINFOMSG.pack(0, 0, 0, 0, 0)
        data = nested(IFLA_INFO_DATA, attr(VETH_INFO_PEER, empty + there))
        info = nested(IFLA_LINKINFO, attr(IFLA_INFO_KIND, b"veth\0"), data)
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, empty + _new_link(name, mac, mtu) + info)
        if alias:
            try:
                self.set_link(name, alias=alias)
            except BaseException:
                self.delete_link(name)
                raise

    def delete_link(self, link: int | str) -> bool:
        """Delete a link, a veth with its peer. False when there was none."""
        index, name = _which(link)
        return self.delete(RTM_DELLINK, _IFINFOMSG.pack(0, 0, index, 0, 0) + name, (errno.ENODEV,))

    def set_link(
        self,
        link: int | str,
        *,
        up: bool | None = None,
        promisc: bool | None = None,
        mtu: int | None = None,
        mac: bytes | None = None,
        master: int | None = None,
        alias: str | None = None,
        netns_fd: int | None = None,
    ) -> None:
        """Change what is given, in one request. `master` 0 takes a port out of its bridge."""
        index, which = _which(link)
        flags = change = 0
        for bit, wanted in ((IFF_UP, up), (IFF_PROMISC, promisc)):
            if wanted is not None:
                change |= bit
                flags |= bit if wanted else 0
        values = (
            (IFLA_MTU, None if mtu is None else _u32(mtu)),
            (IFLA_ADDRESS, mac),
            (IFLA_MASTER, None if master is None else _u32(master)),
            (IFLA_IFALIAS, None if alias is None else os.fsencode(alias)),
            (IFLA_NET_NS_FD, None if netns_fd is None else _u32(netns_fd)),
        )
        given = b"".join(attr(kind, value) for kind, value in values if value is not None)
        self.request(RTM_SETLINK, 0, _IFINFOMSG.pack(0, 0, index, flags, change) + which + given)

    def rename_link(self, index: int, name: str) -> None:
        """FileExistsError when the name is taken."""
        self.request(RTM_SETLINK, 0, _IFINFOMSG.pack(0, 0, index, 0, 0) + _which(name)[1])

    # Bridge ports

    def set_bridge_port(self, index: int, *, hairpin: bool | None = None, isolated: bool | None = None) -> None:
        """`hairpin`: frames may leave by the port they came from; `isolated`: no frames from one isolated port to another."""
        values = ((IFLA_BRPORT_MODE, hairpin), (IFLA_BRPORT_ISOLATED, isolated))
        given = [attr(kind, bytes([value])) for kind, value in values if value is not None]
        body = _IFINFOMSG.pack(AF_BRIDGE, 0, index, 0, 0) + nested(IFLA_PROTINFO, *given)
        self.request(RTM_SETLINK, 0, body)

    def add_vlan(
        self, index: int, vid: int, last: int | None = None, *, pvid: bool = False, untagged: bool = False
    ) -> None:
        """Let the VLANs `vid` to `last` (both included) through a bridge port; what is there already stays."""
        flags = (BRIDGE_VLAN_INFO_PVID if pvid else 0) | (BRIDGE_VLAN_INFO_UNTAGGED if untagged else 0)
        self.request(RTM_SETLINK, 0, _vlan_body(index, flags, vid, last))

    def delete_vlan(self, index: int, vid: int, last: int | None = None) -> None:
        """Close a bridge port to the VLANs `vid` to `last`; 1 to VID_MAX is all of them. Those it does not carry are no error."""
        self.request(RTM_DELLINK, 0, _vlan_body(index, 0, vid, last))

    # Addresses

    def addresses(self, index: int = 0, family: int = 0) -> list[Addr]:
        """The addresses of all interfaces or of one; of both families or of one."""
        body = _IFADDRMSG.pack(_AF[family], 0, 0, 0, index)
        found = [Addr(answer) for answer in self._dump_ip(RTM_GETADDR, body)]
        return [addr for addr in found if index in (0, addr.index) and family in (0, addr.address.family)]

    def add_address(
        self, index: int, address: Address, *, nodad: bool = False, broadcast: bytes | None = None, scope: int = 0
    ) -> None:
        """FileExistsError when the interface has it. With `nodad` an IPv6 address can be used at once."""
        body = _address_body(index, address, scope)
        if broadcast is not None:
            body += attr(IFA_BROADCAST, broadcast)
        if nodad:
            body += attr(IFA_FLAGS, _U32.pack(IFA_F_NODAD))
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)

    def delete_address(self, index: int, address: Address) -> bool:
        """False when the interface does not have it, or is not there."""
        body = _address_body(index, address, 0)
        return self.delete(RTM_DELADDR, body, (errno.EADDRNOTAVAIL, errno.ENODEV))

    # Routes

    def routes(self, index: int = 0, family: int = 0, table: int = RT_TABLE_MAIN) -> list[Route]:
        """The routes out of one interface or all, in one table or (0) all of them."""
        given = attr(RTA_OIF, _u32(index)) if index else b""
        given += attr(RTA_TABLE, _u32(table)) if table else b""
        found: list[Route] = []
        for wanted in (family,) if family else (4, 6):
            body = _RTMSG.pack(_AF[wanted], 0, 0, 0, 0, 0, 0, 0, 0) + given
            try:
                answers = self._dump_ip(RTM_GETROUTE, body)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                    continue  # no such table; no such family
                raise
            for answer in answers:
                found += Route.each(answer) if answer[0] == _AF[wanted] else ()
        return [route for route in found if index in (0, route.index)]

    def add_route(
        self, route: "RouteLike", index: int, *, beside: "Literal['', 'before', 'after']" = "", src: bytes = b""
    ) -> None:
        """FileExistsError when there is a route to the same destination with the same metric.

        `beside` allows another one, which then comes `before` or `after` those that are there (ip route prepend, append),
        and FileExistsError means that this very route is there. IPv4 uses the first; IPv6 makes one multipath route of
        them. Table main, scope universe and priority 0 unless told otherwise, as the Go plugins have it. `src` is the
        address that packets to there come from, where nothing else says so.
        """
        # Without NLM_F_EXCL and NLM_F_APPEND, fib_table_insert() puts an IPv4 route in front of its equals.
        flags = NLM_F_CREATE | {"": NLM_F_EXCL, "before": 0, "after": NLM_F_APPEND}[beside]
        scope = RT_SCOPE_UNIVERSE if route.scope is None else route.scope
        body = _route_body(route, index, _RTPROT_BOOT, scope, _RTN_UNICAST) + (attr(RTA_PREFSRC, src) if src else b"")
        metrics = ((RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss))
        given = [attr(kind, _u32(value)) for kind, value in metrics if value]
        self.request(RTM_NEWROUTE, flags, body + (nested(RTA_METRICS, *given) if given else b""))

    def delete_route(self, route: "RouteLike", index: int) -> bool:
        """False when there is none."""
        scope = RT_SCOPE_NOWHERE if route.scope is None else route.scope  # NOWHERE: of any scope
        return self.delete(RTM_DELROUTE, _route_body(route, index, 0, scope, 0), (errno.ESRCH, errno.ENODEV))

    # Neighbours

    def delete_neighbour(self, index: int, ip: bytes) -> bool:
        """Forget which MAC address `ip` has. False when that was not known."""
        body = _NDMSG.pack(_AF[4 if len(ip) == 4 else 6], index, 0, 0, 0) + attr(NDA_DST, ip)
        return self.delete(RTM_DELNEIGH, body, (errno.ENOENT, errno.ENODEV, errno.ESRCH))

    # Waiting

    def wait_up(self, link: int | str, limit_s: float) -> bool:
        """Wait until the link carries traffic (operstate up). False when it does not within the limit, or is gone."""

        def carries_traffic() -> bool | None:
            found = self.link(link)
            return None if found is None else found.operstate == "up"

        return _wait(carries_traffic, limit_s)

    def wait_addresses(self, index: int, limit_s: float) -> None:
        """Wait until duplicate address detection is over for every IPv6 address of the interface.

        OSError EADDRINUSE when an address turns out to be somebody else's; ETIMEDOUT when the limit is reached although
        the link carries traffic (without that detection does not even begin).
        """

        def settled() -> bool:
            found = self.addresses(index, 6)
            failed = [str(addr.address) for addr in found if addr.dad_failed]
            if failed:
                raise OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}: {failed[0]} in DADFAILED state")
            return not any(addr.tentative for addr in found)

        if _wait(settled, limit_s):
            return
        link = self.link(index)
        if link is not None and link.operstate == "up":
            raise OSError(errno.ETIMEDOUT, f"IPv6 addresses of {link.name} still tentative after {limit_s:g} s")


def _wait(settled: "Callable[[], bool | None]", limit_s: float) -> bool:
    """Probe at growing intervals until `settled` (None: it never will be) or until the limit."""
    end = time.monotonic() + limit_s
    attempt = 0
    while not (answer := settled()):
        left = end - time.monotonic()
        if answer is None or left <= 0:
            return False
        time.sleep(min(left, _SLEEPS_S[attempt] if attempt < len(_SLEEPS_S) else _LONG_SLEEP_S))
        attempt += 1
    return True


def check_name(name: str) -> bytes:
    """The bytes of an interface name; OSError EINVAL when it cannot be one (dev_valid_name() in net/core/dev.c)."""
    raw = os.fsencode(name)
    bad = not 1 <= len(raw) <= IFNAME_MAX or name in (".", "..") or len(raw.split()) != 1 or raw != raw.strip()
    if bad or any(byte in b"/:%\0" for byte in raw):  # "veth%d" would be taken as a pattern
        raise OSError(errno.EINVAL, f"not an interface name: {name!r}")
    return raw


def _which(link: int | str) -> tuple[int, bytes]:
    """An interface by index or name: the header's index and the attribute, one of them empty."""
    if isinstance(link, str):
        return 0, attr(IFLA_IFNAME, check_name(link) + b"\0")
    if link <= 0:
        raise OSError(errno.EINVAL, f"not an interface index: {link}")
    return link, b""


def _new_link(name: str, mac: bytes, mtu: int) -> bytes:
    """Name, MAC address and MTU (0: the kernel's default) of a link to be made."""
    given = _which(name)[1]
    if mac:
        given += attr(IFLA_ADDRESS, mac)
    return given + attr(IFLA_MTU, _u32(mtu)) if mtu else given


def _vlan_body(index: int, flags: int, vid: int, last: int | None) -> bytes:
    if not 1 <= vid <= (last or vid) <= VID_MAX:
        raise OSError(errno.ERANGE, f"not VLAN IDs: {vid} to {last or vid}")
    if last is None or last == vid:
        vlans = [_VLAN_INFO.pack(flags, vid)]
    else:
        vlans = [
            _VLAN_INFO.pack(flags | BRIDGE_VLAN_INFO_RANGE_BEGIN, vid),
            _VLAN_INFO.pack(flags | BRIDGE_VLAN_INFO_RANGE_END, last),
        ]
    header = _IFINFOMSG.pack(AF_BRIDGE, 0, index, 0, 0)
    return header + nested(IFLA_AF_SPEC, *(attr(IFLA_BRIDGE_VLAN_INFO, vlan) for vlan in vlans))


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
    small = table if table < 256 else RT_TABLE_COMPAT
    body = _RTMSG.pack(_AF[dst.family], dst.prefixlen, 0, 0, small, protocol, scope, kind, 0)
    if dst.prefixlen:
        body += attr(RTA_DST, dst.packed)
    if gw is not None:
        body += attr(RTA_GATEWAY, gw)
    if route.priority:
        body += attr(RTA_PRIORITY, _u32(route.priority))
    return body + attr(RTA_TABLE, _u32(table)) + attr(RTA_OIF, _u32(index))


def _gateway(found: dict[int, bytes]) -> bytes | None:
    """The next hop's address; RTA_VIA (an IPv6 router of an IPv4 route) has two bytes of family before it."""
    via = found.get(RTA_VIA)
    return via[2:] if via else found.get(RTA_GATEWAY)


def _u32(value: int) -> bytes:
    if not 0 <= value < 1 << 32:
        raise OSError(errno.ERANGE, f"{os.strerror(errno.ERANGE)}: {value}")
    return _U32.pack(value)


def _number(payload: bytes | None) -> int:
    return int.from_bytes(payload or b"", "little")


def _text(payload: bytes | None) -> str:
    return os.fsdecode((payload or b"").rstrip(b"\0"))
