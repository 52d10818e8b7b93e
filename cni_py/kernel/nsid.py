"""The numbers by which a network namespace knows others: the ids of ip-netns(8), `set` and `list-id`.

A namespace that has a number is found by it whatever keeps it, also where no path leads to it: a socket that was made in it, a
descriptor on its way in a Unix socket, a mount namespace that only a descriptor keeps. The kernel takes the number away as soon
as nothing keeps the namespace (maybe_get_net(), net/core/net_namespace.c), and may give it to another one then. It is not taken
away before, and there is no request for it. By itself the kernel gives a number when it shows a link whose other end, or whose
new place, is in another namespace: so to each that has a veth pair with this one, but not to one with a macvlan on a link here.
Rtnl.give_nsid() gives one.

Sources: Linux include/uapi/linux/net_namespace.h, net/core/net_namespace.c (rtnl_net_newid(), rtnl_net_getid()).
"""

import errno

from cni_py.kernel.netlink import NLM_F_DUMP, attr, u32
from cni_py.kernel.rtnl import (
    RTGENMSG,
    RTM_GETLINK,
    RTM_GETNSID,
    RTM_NEWLINK,
    RTM_NEWNSID,
    Link,
    ifinfomsg,
    name_attr,
    nsid_in,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.rtnl import Rtnl

IFLA_TARGET_NETNSID = 46  # if_link.h, Linux 5.0


def known(side: "Rtnl") -> list[int]:
    """All numbers of namespaces that exist. OSError."""
    answers = side.request(RTM_GETNSID, NLM_F_DUMP, RTGENMSG)
    return [nsid_in(body) for kind, body in answers if kind == RTM_NEWNSID]


def link(side: "Rtnl", number: int, name: str) -> Link | None:
    """A link of the namespace with that number; None if it has none of the name, or does not exist. OSError."""
    try:
        body = ifinfomsg() + attr(IFLA_TARGET_NETNSID, u32(number)) + name_attr(name)
        return Link(side.request(RTM_GETLINK, 0, body)[0][1])
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EINVAL):  # no such link; no such number
            return None
        raise


def links(side: "Rtnl", number: int) -> list[Link]:
    """All links of the namespace with that number. OSError: EINVAL if it does not exist."""
    answers = side.request(RTM_GETLINK, NLM_F_DUMP, ifinfomsg() + attr(IFLA_TARGET_NETNSID, u32(number)))
    return [Link(body) for kind, body in answers if kind == RTM_NEWLINK]
