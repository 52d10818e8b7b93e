"""The operation that makes a tap interface in the container: a program, a virtual machine's, has its other end.

Source: Linux include/uapi/linux/if_tun.h, drivers/net/tun.c; Documentation/networking/tuntap.rst.
"""

import errno
import fcntl

from cni_py.attachment.engine import Op
from cni_py.errors import CniError, IOFailure, kernel_words
from cni_py.interface.child import AddChild
from cni_py.interface.common import need
from cni_py.kernel.netns import Enter
from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link

DEVICE = "/dev/net/tun"
TUNSETIFF, TUNSETPERSIST, TUNSETOWNER, TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
IFREQ = 40  # sizeof(struct ifreq)
NAME = 16  # IFNAMSIZ
IDS = 1 << 32


class AddTap(AddChild):
    """The container's interface: a persistent tap. `owner` and `group` -1: who has CAP_NET_ADMIN may open it. `mtu` 0: 1500."""

    mtu: int
    mac: bytes
    owner: int
    group: int
    multi_queue: bool
    owned = True
    kind = "tun"
    hints = {  # noqa: RUF012  as they come from open(2) and ioctl(2)
        errno.ENOENT: f"; there is no {DEVICE}: the module tun, or the device in a container's /dev",
        errno.EPERM: f"; {DEVICE} may be closed to this control group",
    }
    deed = "make the tap interface {ifname}"

    def validate(self) -> None:
        if not (-1 <= self.owner < IDS and -1 <= self.group < IDS):
            raise ValueError("no owner or group")

    def describe(self) -> str:
        options = f", MTU {self.mtu}" * bool(self.mtu) + ", several queues" * self.multi_queue
        options += f", owner {self.owner}" * (self.owner >= 0) + f", group {self.group}" * (self.group >= 0)
        return f"container: tap {self.ifname} ({self.mac.hex(':')}){options}"

    def flags(self) -> int:
        """Of TUNSETIFF. The Go plugin asks for the header of virtio where it does not leave the work to `ip tuntap`."""
        header = IFF_VNET_HDR if self.owner >= 0 and self.group >= 0 else 0
        return IFF_TAP | IFF_NO_PI | header | (IFF_MULTI_QUEUE if self.multi_queue else 0)

    def make(self, kernel: "Kernel", name: str) -> None:
        # A tap is made in the namespace of whoever opens the device (tun_chr_open()), and ends with the descriptor unless it
        # is made persistent: an ADD that is killed in between leaves nothing.
        with Enter(kernel.container_fd):
            fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            request = os.fsencode(name).ljust(NAME, b"\0") + self.flags().to_bytes(2, "little")
            fcntl.ioctl(fd, TUNSETIFF, request.ljust(IFREQ, b"\0"))
            for number, value in ((TUNSETOWNER, self.owner), (TUNSETGROUP, self.group)):
                if value >= 0:
                    fcntl.ioctl(fd, number, value)
            fcntl.ioctl(fd, TUNSETPERSIST, 1)
        finally:
            os.close(fd)
        kernel.container.set_link(name, mtu=self.mtu or None, mac=self.mac)

    def difference(self, kernel: "Kernel", link: "Link") -> str | None:
        return self.other_mtu(kernel, link, self.mtu)


class JoinContainerBridge(Op):
    """The container's interface is a port of a bridge of the container."""

    ifname: str
    bridge: str
    line = "container: make {ifname} a port of bridge {bridge}"

    def apply(self, kernel: "Kernel") -> None:
        bridge = kernel.container.link(self.bridge)
        if bridge is None:
            raise CniError(f"failed to get bridge {self.bridge}: Link not found", "it is looked for in the container")
        try:
            kernel.container.set_link(need(kernel.container, self.ifname).index, master=bridge.index)
        except OSError as error:
            action = f"failed to set tap {self.ifname} as a port of bridge {self.bridge}"
            raise IOFailure(action, kernel_words(error)) from error

    def check(self, kernel: "Kernel") -> str | None:
        bridge = kernel.container.link(self.bridge)
        if bridge is None or need(kernel.container, self.ifname).master != bridge.index:
            return f"{self.ifname} is not a port of bridge {self.bridge} in the container"
        return None
