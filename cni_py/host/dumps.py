"""Dumps of rtnetlink, decoded by pyroute2.

They are asked for by kernel/netlink.Socket: it repeats a dump that changes of the kernel's tables have cut
(NLM_F_DUMP_INTR), and costs a third of an IPRoute object, of which each namespace would need one.

Sources: rtnetlink(7), Linux include/uapi/linux/{rtnetlink,if_link,net_namespace}.h.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from typing import Any

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cni_py.kernel.netlink import NLM_F_DUMP, Socket, attr, attrs, u32

# The request; its header but for the family, which is the first byte; what decodes an answer.
Kind = tuple[int, int, Any]
LINKS: Kind = (18, 16, ifinfmsg)  # RTM_GETLINK, struct ifinfomsg
ADDRESSES: Kind = (22, 8, ifaddrmsg)  # RTM_GETADDR, struct ifaddrmsg
ROUTES: Kind = (26, 12, rtmsg)  # RTM_GETROUTE, struct rtmsg
NEIGHBOURS: Kind = (30, 12, ndmsg)  # RTM_GETNEIGH, struct ndmsg
RULES: Kind = (34, 12, fibmsg)  # RTM_GETRULE, struct fib_rule_hdr
AF_BRIDGE = 7
IFLA_EXT_MASK = 29
BRVLAN, SKIP_STATS = 1 << 1, 1 << 3  # RTEXT_FILTER_*; statistics are those of every processor
RTM_GETNSID = 90
NETNSA_NSID, NETNSA_FD = 1, 3
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr


def dump(socket: Socket, kind: Kind, *, family: int = 0, mask: int = 0) -> Iterator[Any]:
    """The messages of a dump. `mask`: IFLA_EXT_MASK, of links. OSError."""
    number, length, message = kind
    body = bytes((family,)) + bytes(length - 1) + (attr(IFLA_EXT_MASK, u32(mask)) if mask else b"")
    for answer, payload in socket.request(number, NLM_F_DUMP, body):
        found = message(HEADER.pack(HEADER.size + len(payload), answer, 0, 0, 0) + payload)
        found.decode()
        yield found


def text(message: Any, name: str) -> str:
    """An attribute as text, "" without it: pyroute2 gives bytes where it is not UTF-8, which names of links need not be."""
    value = message.get_attr(name) if hasattr(message, "get_attr") else None
    return os.fsdecode(value.rstrip(b"\0")) if isinstance(value, bytes) else value or ""


def number_of(socket: Socket, fd: int) -> int:
    """The number that the socket's namespace has for that of a descriptor; -1 for none. OSError.

    A namespace gets a number when a link is shown that leads to it; RTM_GETNSID gives none.
    """
    for _, payload in socket.request(RTM_GETNSID, 0, bytes(4) + attr(NETNSA_FD, u32(fd))):
        return int.from_bytes(attrs(payload[4:]).get(NETNSA_NSID, b"\xff" * 4), sys.byteorder, signed=True)
    return -1
