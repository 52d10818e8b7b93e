"""Macvlan links: an interface with a MAC address of its own on another interface, its master (ip-link(8)).

Sources: Linux include/uapi/linux/if_link.h, drivers/net/macvlan.c.
"""

import _struct
import errno

from cni_py.kernel import rtnl
from cni_py.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, attr, attrs, nested

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.rtnl import Rtnl

MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}  # MACVLAN_MODE_*, if_link.h
IFLA_MACVLAN_MODE, IFLA_MACVLAN_BC_QUEUE_LEN = 1, 7
_IFINFOMSG = _struct.Struct("=BxHiII")  # family, hardware type, index, flags, mask of flags to change


def add(
    side: "Rtnl", name: str, master: int, mode: str, *, netns_fd: int, mtu: int = 0, mac: bytes = b"", queue: int = 0
) -> None:
    """A link, down, on the interface `master` of `side`, in the namespace of `netns_fd`. FileExistsError: the name is taken.

    `mtu` 0 is that of the master, `queue` 0 the kernel's length of the queue of broadcasts. In passthru mode the link has
    the MAC address of its master, whatever `mac` is.
    """
    data = attr(IFLA_MACVLAN_MODE, _struct.pack("=I", MODES[mode]))
    if queue:
        data += attr(IFLA_MACVLAN_BC_QUEUE_LEN, _struct.pack("=I", queue))
    given = [(rtnl.IFLA_IFNAME, rtnl.check_name(name) + b"\0"), (rtnl.IFLA_LINK, _struct.pack("=I", master))]
    given.append((rtnl.IFLA_NET_NS_FD, _struct.pack("=I", netns_fd)))
    if mac:
        given.append((rtnl.IFLA_ADDRESS, mac))
    if mtu:
        given.append((rtnl.IFLA_MTU, _struct.pack("=I", mtu)))
    info = nested(rtnl.IFLA_LINKINFO, attr(rtnl.IFLA_INFO_KIND, b"macvlan\0"), nested(rtnl.IFLA_INFO_DATA, data))
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + b"".join(attr(kind, value) for kind, value in given) + info
    side.request(rtnl.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def mode_of(side: "Rtnl", index: int) -> str:
    """The mode of a macvlan link; "" when it is none, or is not there."""
    try:
        answer = side.request(rtnl.RTM_GETLINK, 0, _IFINFOMSG.pack(0, 0, index, 0, 0))[0][1]
    except OSError as error:
        if error.errno == errno.ENODEV:
            return ""
        raise
    info = attrs(attrs(answer[_IFINFOMSG.size :]).get(rtnl.IFLA_LINKINFO, b""))
    if info.get(rtnl.IFLA_INFO_KIND) != b"macvlan\0":
        return ""
    number = int.from_bytes(attrs(info.get(rtnl.IFLA_INFO_DATA, b"")).get(IFLA_MACVLAN_MODE, b""), "little")
    return next((mode for mode, value in MODES.items() if value == number), "")
