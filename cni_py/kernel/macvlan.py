"""Macvlan links: an interface with a MAC address of its own on another interface, its master (ip-link(8)).

Sources: Linux include/uapi/linux/if_link.h, drivers/net/macvlan.c.
"""

from cni_py.kernel.netlink import attr, number, u32
from cni_py.kernel.rtnl import IFLA_LINK, IFLA_NET_NS_FD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.rtnl import Rtnl

MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}  # MACVLAN_MODE_*, if_link.h
IFLA_MACVLAN_MODE, IFLA_MACVLAN_BC_QUEUE_LEN = 1, 7


def add(
    side: "Rtnl", name: str, master: int, mode: str, *, netns_fd: int, mtu: int = 0, mac: bytes = b"", queue: int = 0
) -> None:
    """Add a link, down, on the interface `master` of `side`, in the namespace of `netns_fd`.

    `mtu` 0 is that of the master, `queue` 0 the kernel's length of the queue of broadcasts. In passthru mode the link has
    the MAC address of its master, whatever `mac` is (macvlan_common_newlink()). FileExistsError when the name is taken;
    EINVAL when the master is in passthru mode already, EBUSY when it is a port of something else.
    """
    # IFLA_LINK is looked up in the namespace of the socket, the link is made in that of IFLA_NET_NS_FD: it needs no move.
    data = attr(IFLA_MACVLAN_MODE, u32(MODES[mode]))
    if queue:
        data += attr(IFLA_MACVLAN_BC_QUEUE_LEN, u32(queue))
    given = attr(IFLA_LINK, u32(master)) + attr(IFLA_NET_NS_FD, u32(netns_fd))
    side.add_link("macvlan", name, mac, mtu, data=data, given=given)


def mode_of(side: "Rtnl", index: int) -> str:
    """The mode of a macvlan link; "" when the link is of another kind, or missing."""
    link = side.link(index)
    if link is None or link.kind != "macvlan":
        return ""
    found = number(link.data.get(IFLA_MACVLAN_MODE))
    return next((mode for mode, value in MODES.items() if value == found), "")
