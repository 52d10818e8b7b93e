"""One namespace, seen from inside: links, addresses, routes, rules, neighbours, forwarding tables, sockets, sysctls, rulesets."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cni_py.host import dumps, interfaces, routing, rulesets, sockets, sysctls
from cni_py.host.model import Namespace, Socket
from cni_py.kernel.netlink import NETLINK_ROUTE
from cni_py.kernel.netlink import Socket as Netlink
from cni_py.kernel.netns import Enter

SO_NETNS_COOKIE = 71  # asm-generic/socket.h, since Linux 5.14
NOT_THERE = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT)  # a kernel without bridges, or without IPv6
T = TypeVar("T")


@dataclass(slots=True)
class Seen:
    """A namespace, and what needs others to be complete: the sockets have no owners yet, peers abroad are numbers."""

    namespace: Namespace
    sockets: list[Socket]
    abroad: dict[int, int]  # the kernel's number here for the other end's namespace, by index of the link
    host_number: int  # that of the host's namespace, -1 for none
    gaps: list[str] = field(default_factory=list)


def look(key: str, host_fd: int, fd: int | None = None) -> Seen:
    """What is in the namespace of a descriptor. OSError when it cannot be entered.

    None: in that of this thread, which is not entered: setns(2) needs rights even for that.
    """
    with Enter(fd) if fd is not None else contextlib.nullcontext():
        rtnl = Netlink(NETLINK_ROUTE)
        try:
            return _look(key, rtnl, host_fd)
        finally:
            rtnl.close()


def number_of(fd: int, other: int) -> int:
    """The number that the namespace of `fd` has for that of `other`; -1 for none. OSError."""
    with Enter(fd):
        rtnl = Netlink(NETLINK_ROUTE)
        try:
            return dumps.number_of(rtnl, other)
        finally:
            rtnl.close()


def _look(key: str, rtnl: Netlink, host_fd: int) -> Seen:
    gaps: list[str] = []

    def asked(what: str, kind: dumps.Kind, **options: int) -> list[Any]:
        """The messages of a dump; none, and a gap, when the kernel refuses."""
        return _tried(what, lambda: dumps.dump(rtnl, kind, **options), gaps)

    messages = asked("links", dumps.LINKS, mask=dumps.SKIP_STATS)
    bridged = any(_is_bridge(one) for one in messages)
    addresses = interfaces.addresses(asked("addresses", dumps.ADDRESSES))
    members = asked("VLANs", dumps.LINKS, family=dumps.AF_BRIDGE, mask=dumps.BRVLAN) if bridged else []
    links, abroad = interfaces.links(messages, addresses, interfaces.vlans(members))
    names = {one.index: one.name for one in links}
    table = asked("forwarding tables", dumps.NEIGHBOURS, family=dumps.AF_BRIDGE) if bridged else []
    filters = rulesets.collect()
    namespace = Namespace(
        key,
        cookie=cookie(),
        links=tuple(links),
        routes=tuple(routing.routes(asked("routes", dumps.ROUTES), names)),
        rules=tuple(routing.rules(asked("routing rules", dumps.RULES))),
        neighbours=tuple(routing.neighbours(asked("neighbours", dumps.NEIGHBOURS), names)),
        fdb=tuple(interfaces.fdb(table, links)),
        sysctls=tuple(sysctls.collect(names.values())),
        nftables=filters.nftables,
        iptables=filters.iptables,
    )
    numbers = _tried("", lambda: [dumps.number_of(rtnl, host_fd)], []) if abroad else []
    return Seen(namespace, sockets.collect(names), abroad, max(numbers, default=-1), gaps + list(filters.gaps))


def _tried(what: str, ask: Callable[[], Iterable[T]], gaps: list[str]) -> list[T]:
    try:
        return list(ask())
    except OSError as error:
        if error.errno not in NOT_THERE:
            gaps.append(f"{what} cannot be read: {error.strerror}")
        return []


def _is_bridge(message: Any) -> bool:
    return dumps.text(message.get_attr("IFLA_LINKINFO"), "IFLA_INFO_KIND") == "bridge"


def cookie() -> int:
    """The kernel's number of this thread's namespace, never used twice in one boot; 0 where it has none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError:
            return 0
