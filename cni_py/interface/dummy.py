"""The operation that makes a dummy interface in the container: it has addresses, and what it sends is dropped."""

import errno

from cni_py.interface.child import AddChild

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel


class AddDummy(AddChild):
    """The container's interface, with the MAC address `mac`."""

    mac: bytes
    owned = True
    kind = "dummy"
    hints = {errno.EOPNOTSUPP: "; this kernel has no dummy interfaces (module dummy)"}  # noqa: RUF012
    deed = "create dummy {ifname}"
    line = "container: dummy interface {ifname} ({mac})"

    def make(self, kernel: "Kernel", name: str) -> None:
        kernel.container.add_link("dummy", name, self.mac)
