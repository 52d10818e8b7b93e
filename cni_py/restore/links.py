"""The host's links in one picture, and what is put back on them: a bridge, its addresses, the ports of living containers.

The records list what an ADD makes sure of on links that attachments share, or on a part of its own. Each such operation is
applied again where something of it is missing, with three exceptions, since what somebody has put in its place is a wish:

    a port that is in another bridge                       stays there
    an address of the gateway's subnet in its place        stays alone
    an interface of a container that is gone               only an ADD makes it
"""

from cni_py.addr import parse_address
from cni_py.attachment.engine import Op
from cni_py.errors import CniError
from cni_py.interface.bridge import (
    EnsureBridge,
    EnsureGatewayAddress,
    EnsureSubnetRoute,
    JoinBridge,
    SetPortVlans,
    shares_subnet,
)
from cni_py.interface.ptp import AddPeer
from cni_py.interface.vlan_gateway import EnsureVlanGateway
from cni_py.kernel import inet, rtnl
from cni_py.kernel.rtnl import Link, Rtnl
from cni_py.nftables.spoof_check import CheckSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni_py.attachment.context import Kernel

OF_BRIDGE = EnsureBridge.__name__
OF_PORTS = (JoinBridge.__name__, SetPortVlans.__name__)
OF_ADDRESSES = (
    AddPeer.__name__,
)  # of the attachment alone; the others are on what attachments share, and the same for many
FORWARDS_S = 1.0  # a new bridge with ports, whose carrier is seen to by a work queue (linkwatch_event())


class Picture(Rtnl):
    """All links as one dump showed them; one that is changed here, or was not there, is asked for again."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int | str, Link] = {}
        for link in self.links():
            self._seen[link.index] = self._seen[link.name] = link

    def link(self, link: int | str) -> Link | None:
        found = self._seen.get(link)
        if found is None:
            found = super().link(link)
            if found is not None:
                self._seen[found.index] = self._seen[found.name] = found
        return found

    def _forget(self, link: int | str) -> None:
        seen = self._seen.pop(link, None)
        if seen is not None:
            self._seen.pop(seen.index, None)
            self._seen.pop(seen.name, None)

    def set_link(self, link: int | str, **values: "Any") -> None:
        self._forget(link)
        super().set_link(link, **values)

    def set_bridge_port(self, index: int, *, hairpin: bool | None = None, isolated: bool | None = None) -> None:
        self._forget(index)
        super().set_bridge_port(index, hairpin=hairpin, isolated=isolated)


class Touched:
    """What was put back on links, by name: operations that cannot be checked are then applied again."""

    __slots__ = ("links", "seen")

    def __init__(self) -> None:
        self.links: set[str] = set()
        self.seen: set[str] = set()  # operations on what attachments share, which were looked at

    def is_new(self, fields: object) -> bool:
        """Whether an operation of a record, which may be in those of many attachments, was not looked at yet."""
        text = str(fields)
        if text in self.seen:
            return False
        self.seen.add(text)
        return True


def lost(op: Op, kernel: "Kernel", touched: Touched) -> Op | None:  # noqa: PLR0911  one for each class
    """The operation to apply, if what it makes sure of is lost and may be put back. OSError, CniError."""
    if isinstance(op, EnsureBridge):
        found = kernel.host.link(op.name)
        if found is None:
            _check_renamed(op, kernel)
        return op if found is None or op.check(kernel) else None
    if isinstance(op, JoinBridge):
        return op if _port_is_lost(op, kernel) else None
    if isinstance(op, SetPortVlans):
        return op if op.name in touched.links else None
    if isinstance(op, CheckSource):  # it also tells the bridge what not to learn
        port = kernel.host.link(op.name)
        return op if op.name in touched.links and port is not None and port.master else None
    if isinstance(op, EnsureGatewayAddress):
        return _lost_address(op, kernel, touched)
    if isinstance(op, EnsureSubnetRoute):
        return op if op.name in touched.links and kernel.host.link(op.name) is not None else None
    if isinstance(op, EnsureVlanGateway | AddPeer):
        name = op.bridge if isinstance(op, EnsureVlanGateway) else op.name
        if kernel.host.link(name) is None:
            return None
        there = not isinstance(op, EnsureVlanGateway) or kernel.host.link(op.gateway) is not None
        return op if not there or op.check(kernel) else None
    return None


def note(op: Op, touched: Touched) -> None:
    """Note what an operation that was applied has touched."""
    if isinstance(op, EnsureVlanGateway):
        touched.links.add(op.gateway)
    else:
        touched.links.add(str(getattr(op, "name", "")))


def _check_renamed(op: EnsureBridge, kernel: "Kernel") -> None:
    """CniError for a bridge that has another name now: a second one would have the addresses of the first, and no ports."""
    for link in kernel.host.links():
        if link.kind == "bridge" and link.mac == op.mac:
            way = f"ip link set {link.name} down; ip link set {link.name} name {op.name}; cni-py restore"
            raise CniError(f"bridge {op.name} is called {link.name} now", f"to name it as before: {way}")


def _port_is_lost(op: JoinBridge, kernel: "Kernel") -> bool:
    bridge, port = kernel.host.link(op.bridge), kernel.host.link(op.name)
    if bridge is None or port is None or not port.alias.startswith(kernel.key.hex):
        return False
    return port.master in (0, bridge.index) and op.check(kernel) is not None


def _forwards(host: Rtnl, index: int) -> bool:
    """Whether the bridge carries traffic; one without ports never will."""
    link = Rtnl.link(host, index)
    return link is None or link.operstate == "up" or not host.links(index)


def _lost_address(op: EnsureGatewayAddress, kernel: "Kernel", touched: Touched) -> EnsureGatewayAddress | None:
    """With `force` as far as addresses of other subnets go: what was beside it at the ADD may be there now."""
    link = kernel.host.link(op.name)
    if link is None or op.check(kernel) is None:
        return None
    wanted = parse_address(op.address)
    held = [entry.address for entry in inet.addresses(kernel.host, link.index, wanted.family)]
    if any(shares_subnet(address, wanted) for address in held):
        return None
    if op.name in touched.links and link.kind == "bridge":
        rtnl.wait(lambda: _forwards(kernel.host, link.index), FORWARDS_S)
    return EnsureGatewayAddress(name=op.name, address=op.address, beside=op.beside, force=True)
