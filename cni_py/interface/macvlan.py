"""The operation that makes a macvlan interface in the container: a MAC address of its own on an interface of the host."""

import errno

from cni_py.interface.child import AddOnMaster
from cni_py.interface.common import need

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link


class AddMacvlan(AddOnMaster):
    """The container's interface: a macvlan link on `master`.

    `mtu` (bytes) and `queue` (broadcasts that may wait) 0 leave the kernel's defaults.
    """

    mode: str
    queue: int
    mac: bytes
    owned = True
    kind = "macvlan"
    hints = {  # noqa: RUF012  macvlan_common_newlink(), macvlan_port_create()
        errno.EINVAL: "; lo can be no master, and one that has an interface in mode passthru takes no other",
        errno.EBUSY: "; a port of a bridge or bond can be no master: use that one instead",
    }
    deed = "make the macvlan interface {ifname} on {master} in mode {mode}"

    def describe(self) -> str:
        what = f"macvlan {self.ifname} ({self.mac.hex(':')})"
        return self.told(what, mode=self.mode, MTU=self.mtu, broadcast_queue=self.queue)

    def make(self, kernel: "Kernel", name: str) -> None:
        from cni_py.kernel import macvlan

        side = self.side(kernel)
        master = need(side, self.master).index
        macvlan.add(
            side,
            name,
            master,
            self.mode,
            netns_fd=kernel.container_fd,
            mtu=self.mtu,
            mac=self.mac,
            queue=self.queue,
        )

    def difference(self, kernel: "Kernel", link: "Link") -> str | None:
        from cni_py.kernel import macvlan

        mode = macvlan.mode_of(kernel.container, link.index)
        if mode != self.mode:
            return f"Container macvlan mode {mode} is not {self.mode}"
        return super().difference(kernel, link)
