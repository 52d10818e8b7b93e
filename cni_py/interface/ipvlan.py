"""The operation that makes an ipvlan interface in the container: it shares the MAC address of its master.

Source: Linux include/uapi/linux/if_link.h, drivers/net/ipvlan/ipvlan_main.c.
"""

import errno
import sys

from cni_py.interface.child import AddOnMaster
from cni_py.kernel.netlink import attr, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link

MODES = {"l2": 0, "l3": 1, "l3s": 2}  # IPVLAN_MODE_*, if_link.h
IFLA_IPVLAN_MODE = 1


class AddIpvlan(AddOnMaster):
    """The container's interface: an ipvlan link on `master`."""

    mode: str
    owned = True
    kind = "ipvlan"
    hints = {  # noqa: RUF012  ipvlan_link_new(), ipvlan_set_port_mode()
        errno.EOPNOTSUPP: "; this kernel has no ipvlan (module ipvlan)",
        errno.EINVAL: "; lo can be no master",
        errno.EBUSY: "; the master has macvlan interfaces, or is a port of a bridge or bond",
    }
    deed = "make the ipvlan interface {ifname} on {master} in mode {mode}"

    def describe(self) -> str:
        return self.told(f"ipvlan {self.ifname}", mode=self.mode, MTU=self.mtu)

    def make(self, kernel: "Kernel", name: str) -> None:
        self.add(kernel, name, attr(IFLA_IPVLAN_MODE, MODES[self.mode].to_bytes(2, sys.byteorder)))

    def difference(self, kernel: "Kernel", link: "Link") -> str | None:
        mode = next((name for name, value in MODES.items() if value == number(link.data.get(IFLA_IPVLAN_MODE))), "")
        if mode != self.mode:
            return f"Container ipvlan mode {mode} is not {self.mode}"
        return super().difference(kernel, link)
