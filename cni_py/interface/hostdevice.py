"""The operation that moves a device of the host into the container, and brings it back as it was.

In the container the alias of the device is the name that it has on the host, as the Go plugin leaves it, so that either plugin
brings back what the other has moved. When a namespace ends the kernel deletes virtual devices. Hardware falls back to the
initial namespace, down, with the container's name for it, or dev<index> if that is in use there (default_device_exit_net(),
net/core/dev.c).
"""

import errno

from cni_py.addr import mac_text, parse_address
from cni_py.attachment.engine import Op
from cni_py.errors import CniError, IOFailure, kernel_words, warn
from cni_py.interface.common import broadcast_of
from cni_py.kernel import inet
from cni_py.kernel.rtnl import check_name, wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link, Rtnl

FALL_LIMIT_S = 3.0  # a namespace ends in a work queue (cleanup_net()), some time after its last process
IFA_F_PERMANENT = 0x80  # linux/if_addr.h: without a lifetime, so neither a DHCP client's nor a router advertisement's


class MoveDevice(Op):
    """A device of the host is in the container, called `ifname`. Its other fields say how it was on the host.

    `kind` is "" for hardware; `permanent`, `parent`: see Link. `bridge`: the link of which it was a port, or "". `addresses` are
    those without a lifetime. `settings`: see kernel/linksettings.py.
    """

    name: str
    ifname: str
    netns: str
    cookie: int
    index: int
    kind: str
    mac: bytes
    permanent: bytes
    parent: str
    alias: str
    up: bool
    bridge: str
    addresses: list[str]
    settings: dict[str, str]
    owned = whole = True
    line = "container: device {name} of the host ({mac}) is moved here, and called {ifname}"

    @classmethod
    def translated(cls, fields: "dict[str, object]") -> "dict[str, object]":
        """The version before recorded no settings."""
        return {"settings": {}, **fields}

    def validate(self) -> None:
        try:
            check_name(self.name)
        except OSError as error:
            raise ValueError(f"name is no interface name: {self.name!r}") from error
        for address in self.addresses:
            parse_address(address)

    @property
    def label(self) -> str:
        """For people."""
        return f"device {self.name} ({mac_text(self.mac)}{', ' * bool(self.parent)}{self.parent})"

    def apply(self, kernel: "Kernel") -> None:
        link = self.find(kernel.host, self.name)
        if link is None:
            raise CniError(f"failed to find host device: {self.name} is gone since it was looked up")
        try:
            # One request moves, renames and sets the alias, with all links locked: udev and network managers of the host see a
            # device that goes away, and never another name.
            kernel.host.set_link(link.index, netns_fd=kernel.container_fd, name=self.ifname, alias=self.name)
        except OSError as error:
            hint = f"; an interface {self.ifname} is there" if error.errno == errno.EEXIST else ""
            hint = "; it cannot leave its namespace" if error.errno == errno.EINVAL else hint
            action = f"failed to move link {self.name} to the container"
            raise IOFailure(action, kernel_words(error) + hint) from error

    def is_same(self, link: "Link") -> bool:
        """Whether it is the device. MAC address and alias may have been changed, by the container for example; not both."""
        if (link.kind, link.parent) != (self.kind, self.parent):
            return False
        if self.permanent and self.parent:
            return link.permanent == self.permanent
        return link.alias == self.name or link.mac == self.mac

    def find(self, side: "Rtnl", *names: str) -> "Link | None":
        """The device in a namespace: under one of these names, else by its alias."""
        for name in names:
            link = side.link(name)
            if link is not None and self.is_same(link):
                return link
        return next((link for link in side.links() if link.alias == self.name and self.is_same(link)), None)

    def undo(self, kernel: "Kernel") -> None:
        held = self.home(kernel)
        link = self.find(held.container, self.ifname, self.name) if held is not None else None
        if held is not None and link is not None:
            self.fetch(kernel, held.container, link)
            return
        link = self.find(kernel.host, self.name)
        if link is None and held is None:
            link = self.await_fallen(kernel)
        if link is not None and link.alias == self.name:
            self.put_right(kernel.host, link)
        # Any other alias: it was never moved, or is back already
        if link is None:
            warn(self.lost(held is not None))

    def home(self, kernel: "Kernel") -> "Kernel | None":
        """With the container's namespace of the ADD, also if DEL was given another path or none; None when it is gone."""
        if kernel.lives(self.cookie):
            return kernel
        from cni_py.attachment.context import Kernel

        kernel = Kernel(kernel.key, self.netns, hurried=kernel.hurried)
        return kernel if kernel.lives(self.cookie) else None

    def await_fallen(self, kernel: "Kernel") -> "Link | None":
        """Hardware comes back when its namespace ends, which may be about to happen."""
        if not self.kind:
            wait(lambda: self.find(kernel.host) is not None, FALL_LIMIT_S)
        return self.find(kernel.host)

    def lost(self, lives: bool) -> str:
        """The sentence about a device that is nowhere."""
        if lives:
            return f"{self.label} is neither in the container nor on the host: it was removed, or moved elsewhere"
        if self.kind:
            return f"{self.label} is gone: a virtual device ends with the network namespace that it is in"
        return (
            f"{self.label} is not on the host: it is unplugged, or a network namespace has it that is still in use. When that "
            f"ends the device appears in the initial network namespace as {self.ifname}, with the alias {self.name}"
        )

    def fetch(self, kernel: "Kernel", container: "Rtnl", link: "Link") -> None:
        """Bring the device back from the container. OSError: it is still there.

        It gets its name in the container, where nobody watches, so that on the host it appears with it. The alias goes last:
        while it is there a call that comes after one that was killed knows that work is left.
        """
        name = self.free_name(kernel.host, link.index)
        container.set_link(link.index, up=False)  # no name is changed of a link that is up (before Linux 6.2)
        if container.link(name) is None:
            container.set_link(link.index, name=name)
        container.set_link(link.index, netns_fd=kernel.host_fd, name=name, alias=self.name)
        back = kernel.host.link(name)
        if back is not None:
            self.put_right(kernel.host, back)

    def put_right(self, host: "Rtnl", link: "Link") -> None:
        """Make the device, which is on the host, what it was."""
        name = self.name
        if link.name != name:
            name = self.free_name(host, link.index, link)
            host.set_link(link.index, up=False)
            host.set_link(link.index, name=name)
        self.put_settings(host, name)
        bridge = host.link(self.bridge) if self.bridge else None
        if bridge is not None:
            host.set_link(link.index, master=bridge.index)
        if self.up:
            host.set_link(link.index, up=True)
        self.put_addresses(host, link)
        if name == self.name:
            host.set_link(link.index, alias=self.alias)

    def put_settings(self, host: "Rtnl", name: str) -> None:
        """Give it the MAC address, the MTU and the modes that it had: tuning, or the container, may have set others."""
        from cni_py.kernel import linksettings

        now = linksettings.read(host, name) or {}
        for setting, value in self.settings.items():
            if now.get(setting) == value:
                continue
            try:
                linksettings.write(host, name, setting, value)
            except OSError as error:
                warn(f"{self.label} is back with another {setting} than {value}: {kernel_words(error)}")

    def put_addresses(self, host: "Rtnl", link: "Link") -> None:
        """Give it the addresses that it had, but for those that another interface has by now."""
        taken = {entry.address.packed for entry in inet.addresses(host)} if self.addresses else set()
        for text in self.addresses:
            address = parse_address(text)
            if address.packed in taken:
                continue
            try:
                inet.add_address(host, link.index, address, nodad=False, broadcast=broadcast_of(address))
            except OSError as error:
                if address.family == 4:
                    raise
                # Most likely IPv6 is disabled, which another DEL would not change
                warn(f"{self.label} is back without its address {text}: {kernel_words(error)}")

    def free_name(self, host: "Rtnl", number: int, own: "Link | None" = None) -> str:
        """The device's name on the host, or dev<number>, with a warning, if another than `own` has that by now."""

        def holder_of(name: str) -> "Link | None":
            found = host.link(name)
            return None if found is None or (own is not None and found.index == own.index) else found

        holder = holder_of(self.name)
        if holder is None:
            return self.name
        while holder_of(f"dev{number}") is not None:
            number += 1
        kind = holder.kind or "hardware"
        warn(
            f"{self.label} is called dev{number} on the host, with the alias {self.name}: that name is held by another "
            f"interface ({kind}, MAC {mac_text(holder.mac)}, index {holder.index})"
        )
        return f"dev{number}"

    def check(self, kernel: "Kernel") -> str | None:
        link = kernel.container.link(self.ifname)
        if link is None:
            return f"Container Interface name in prevResult: {self.ifname} not found"
        return None if link.up else f"Container interface {self.ifname} is down"


def described(host: "Rtnl", link: "Link", name: str, ifname: str, netns: str, cookie: int) -> MoveDevice:
    """The operation for a device that is on the host as `link`, and will come back as `name`."""
    from cni_py.kernel import linksettings

    master = host.link(link.master) if link.master else None
    addresses = [
        str(entry.address)
        for entry in inet.addresses(host, link.index)
        if entry.flags & IFA_F_PERMANENT and entry.scope != inet.RT_SCOPE_LINK
    ]
    return MoveDevice(
        name=name,
        ifname=ifname,
        netns=netns,
        cookie=cookie,
        index=link.index,
        kind=link.kind,
        mac=link.mac,
        permanent=link.permanent,
        parent=link.parent,
        alias=link.alias if link.alias != name else "",  # that one is ours
        up=link.up,
        bridge=master.name if master is not None else "",
        addresses=addresses,
        settings=linksettings.read(host, link.name) or {},
    )
