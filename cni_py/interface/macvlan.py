"""The operation that makes a macvlan interface in the container: a MAC address of its own on an interface of the host."""

import errno

from cni_py.attachment.engine import Op
from cni_py.errors import IOFailure, kernel_words, os_error
from cni_py.interface.common import need

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel

MACVLAN_HINTS = {  # macvlan_common_newlink(), macvlan_port_create()
    errno.EINVAL: "; lo can be no master, and one that has an interface in mode passthru takes no other",
    errno.EBUSY: "; a port of a bridge or bond can be no master: use that one instead",
}


class AddMacvlan(Op):
    """The container's interface: a macvlan link on `master`, which is an interface of the host or (`inside`) of the container.

    `mtu` (bytes) and `queue` (broadcasts that may wait) 0 leave the kernel's defaults. The whole link is in the container, so
    undo() has to find its namespace: by `netns` and `cookie`, since a DEL may be given another path or none.
    """

    ifname: str
    master: str
    inside: bool
    mode: str
    mtu: int
    queue: int
    mac: bytes
    netns: str
    cookie: int
    owned = True
    deed = "make the macvlan interface {ifname} on {master}"

    def describe(self) -> str:
        master = f"{self.master} of the {'container' if self.inside else 'host'}"
        options = f", MTU {self.mtu}" * bool(self.mtu) + f", broadcast queue {self.queue}" * bool(self.queue)
        return f"container: macvlan {self.ifname} ({self.mac.hex(':')}) on {master}, mode {self.mode}{options}"

    def apply(self, kernel: "Kernel") -> None:
        from cni_py.kernel import macvlan

        side = kernel.container if self.inside else kernel.host
        # The request is made where the master is, since IFLA_LINK is an index of that namespace. The kernel looks for the new
        # name there, too (EEXIST), although the link is made in the container: an eth0 of the host would be in the way. So the
        # link has a name of ours first, and CNI_IFNAME in the container. A link that is up is not renamed; this one is down.
        made = kernel.key.host_veth
        try:
            macvlan.add(
                side,
                made,
                need(side, self.master).index,
                self.mode,
                netns_fd=kernel.container_fd,
                mtu=self.mtu,
                mac=self.mac,
                queue=self.queue,
            )
        except OSError as error:
            action = f"{self.failure()} in mode {self.mode}"
            raise IOFailure(action, kernel_words(error) + MACVLAN_HINTS.get(error.errno or 0, "")) from error
        link = need(kernel.container, made)
        kernel.container.set_link(link.index, alias=kernel.key.comment)
        try:
            kernel.container.rename_link(link.index, self.ifname)
        except OSError as error:
            raise os_error(f'failed to rename macvlan to "{self.ifname}"', error) from error

    def undo(self, kernel: "Kernel") -> None:
        if not kernel.lives(self.cookie):
            from cni_py.attachment.context import Kernel

            kernel = Kernel(kernel.key, self.netns, hurried=kernel.hurried)
            if not kernel.lives(self.cookie):
                return  # it went with its namespace
        for name in (kernel.key.host_veth, self.ifname):  # the first: an ADD was killed before it renamed the link
            link = kernel.container.link(name)
            if link is None or link.kind != "macvlan":
                continue
            if link.alias.startswith(kernel.key.hex) or name != self.ifname:
                kernel.container.delete_link(link.index)

    def check(self, kernel: "Kernel") -> str | None:
        from cni_py.kernel import macvlan

        master = need(kernel.container if self.inside else kernel.host, self.master)
        link = need(kernel.container, self.ifname)
        if link.kind != "macvlan":
            return f"Container interface {self.ifname} is not of type macvlan"
        mode = macvlan.mode_of(kernel.container, link.index)
        if mode != self.mode:
            return f"Container macvlan mode {mode} is not {self.mode}"
        # On a master that is a macvlan link itself the kernel takes that link's own master (macvlan_common_newlink()).
        if link.link != (master.link if master.kind == "macvlan" else master.index):
            return f"Container interface {self.ifname} is not on {self.master}"
        if self.mtu and link.mtu != self.mtu:
            return f"MTU of {self.ifname} is {link.mtu}, not {self.mtu}"
        return None if link.up else f"Container interface {self.ifname} is down"
