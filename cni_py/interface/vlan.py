"""The operation that makes a VLAN interface in the container: the frames of one VLAN of its master, without their tag.

Source: Linux include/uapi/linux/if_link.h, net/8021q/vlan_netlink.c.
"""

import errno
import sys

from cni_py.interface.child import AddOnMaster
from cni_py.kernel.netlink import attr, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link

IFLA_VLAN_ID = 1


class AddVlan(AddOnMaster):
    """The container's interface: VLAN `vlan` of `master`."""

    vlan: int
    owned = True
    kind = "vlan"
    hints = {  # noqa: RUF012  vlan_newlink(), vlan_check_real_dev()
        errno.EEXIST: "; a master has one interface for each VLAN, in whatever namespace it is",
        errno.EOPNOTSUPP: "; this kernel has no VLAN interfaces (module 8021q), or the master takes none",
    }
    deed = "create vlan {vlan} of {master}"

    def describe(self) -> str:
        return self.told(f"VLAN interface {self.ifname}", VLAN=str(self.vlan), MTU=self.mtu)

    def make(self, kernel: "Kernel", name: str) -> None:
        self.add(kernel, name, attr(IFLA_VLAN_ID, self.vlan.to_bytes(2, sys.byteorder)))

    def difference(self, kernel: "Kernel", link: "Link") -> str | None:
        found = number(link.data.get(IFLA_VLAN_ID))
        if found != self.vlan:
            return f"Container vlan is {found}, not {self.vlan}"
        return super().difference(kernel, link)
