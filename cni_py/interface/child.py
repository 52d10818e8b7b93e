"""Operations that make an interface which lies in the container as a whole, mostly on a master: what macvlan, ipvlan, vlan,
dummy and tap share."""

from cni_py.attachment.engine import Op
from cni_py.errors import IOFailure, kernel_words, os_error
from cni_py.interface.common import need
from cni_py.kernel.netlink import attr, u32
from cni_py.kernel.rtnl import IFLA_LINK, IFLA_NET_NS_FD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link, Rtnl


class AddChild(Op):
    """The container's interface. Nothing of it is on the host, so undo() has to find its namespace: by `netns` and `cookie`,
    since a DEL may be given another path or none.
    """

    ifname: str
    netns: str
    cookie: int
    whole = True
    kind = ""  # of link, as ip-link(8) has it
    hints = dict[int, str]()  # noqa: RUF012  what an errno of the kernel means here; no annotation, which would be a field

    def make(self, kernel: "Kernel", name: str) -> None:
        """Make the link, down, in the container. OSError."""
        raise NotImplementedError

    def difference(self, _kernel: "Kernel", _link: "Link") -> str | None:
        """A sentence for the first difference of a link of that kind from what make() made."""
        return None

    def other_mtu(self, kernel: "Kernel", link: "Link", mtu: int) -> str | None:
        """The same for the MTU, in bytes; 0: any. One that tuning has set behind this plugin is compared by its CHECK."""
        if mtu in (0, link.mtu):
            return None
        from cni_py.interface import tuning

        return None if tuning.sets(kernel.key, "mtu") else f"MTU of {self.ifname} is {link.mtu}, not {mtu}"

    def apply(self, kernel: "Kernel") -> None:
        # A request with a master is made where the master is, since IFLA_LINK is an index of that namespace. The kernel looks
        # for the new name there, too (EEXIST), although the link is made in the container: an eth0 of the host would be in the
        # way. So the link has a name of ours first, and CNI_IFNAME in the container. A link that is up is not renamed; this
        # one is down.
        made = kernel.key.host_veth
        try:
            self.make(kernel, made)
        except OSError as error:
            raise IOFailure(self.failure(), kernel_words(error) + self.hints.get(error.errno or 0, "")) from error
        link = need(kernel.container, made)
        kernel.container.set_link(link.index, alias=kernel.key.comment)
        try:
            kernel.container.set_link(link.index, name=self.ifname)
        except OSError as error:
            raise os_error(f'failed to rename {self.kind} to "{self.ifname}"', error) from error

    def undo(self, kernel: "Kernel") -> None:
        if not kernel.lives(self.cookie):
            from cni_py.attachment.context import Kernel

            kernel = Kernel(kernel.key, self.netns, hurried=kernel.hurried)
            if not kernel.lives(self.cookie):
                return  # it went with its namespace
        for name in (kernel.key.host_veth, self.ifname):  # the first: an ADD was killed before it renamed the link
            link = kernel.container.link(name)
            if link is None or link.kind != self.kind:
                continue
            if link.alias.startswith(kernel.key.hex) or name != self.ifname:
                kernel.container.delete_link(link.index)

    def check(self, kernel: "Kernel") -> str | None:
        link = need(kernel.container, self.ifname)
        if link.kind != self.kind:
            return f"Container interface {self.ifname} is not of type {self.kind}"
        found = self.difference(kernel, link)
        return found or (None if link.up else f"Container interface {self.ifname} is down")


class AddOnMaster(AddChild):
    """The same on `master`, an interface of the host or (`inside`) of the container.

    `mtu` (bytes) 0 leaves the kernel's default.
    """

    master: str
    inside: bool
    mtu: int

    def side(self, kernel: "Kernel") -> "Rtnl":
        """Where the master is."""
        return kernel.container if self.inside else kernel.host

    def add(self, kernel: "Kernel", name: str, data: bytes) -> None:
        """Request the link with the attributes of its kind (IFLA_INFO_DATA). OSError."""
        side = self.side(kernel)
        given = attr(IFLA_LINK, u32(need(side, self.master).index)) + attr(IFLA_NET_NS_FD, u32(kernel.container_fd))
        side.add_link(self.kind, name, b"", self.mtu, data=data, given=given)

    def told(self, what: str, **options: object) -> str:
        """The operation in words: `what` on the master, and those of the options that are not 0."""
        more = "".join(f", {name.replace('_', ' ')} {value}" for name, value in options.items() if value)
        return f"container: {what} on {self.master} of the {'container' if self.inside else 'host'}{more}"

    def difference(self, kernel: "Kernel", link: "Link") -> str | None:
        master = need(self.side(kernel), self.master)
        # On a master that is itself a link of that kind the kernel may take that link's own master
        if link.link not in (master.index, master.link if master.kind == self.kind else master.index):
            return f"Container interface {self.ifname} is not on {self.master}"
        return self.other_mtu(kernel, link, self.mtu)
