"""The bridge plugin's gateway in a VLAN: a veth pair of the host, one end a port of the bridge in that VLAN.

The other end, `<bridge>.<vlan>`, has the gateway's address. The address cannot be on the bridge itself, which is in another
VLAN than the container's port.
"""

from cni_py.attachment.engine import Op
from cni_py.errors import CniError
from cni_py.interface.common import need
from cni_py.kernel import rtnl
from cni_py.lean import os
from cni_py.sha import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link


def vlan_gateway_name(bridge: str, vlan: int) -> str:
    """The name of the host's interface in a VLAN of a bridge: the Go plugin's, `<bridge>.<vlan>`, if that is short enough."""
    return _fitting(f"{bridge}.{vlan}", "vg", bridge, vlan)


def _fitting(name: str, prefix: str, bridge: str, vlan: int) -> str:
    """`name`; where it is too long one with a hash of the bridge's name. (Cut off, two bridges could have the same.)"""
    if len(os.fsencode(name)) <= rtnl.IFNAME_MAX:
        return name
    return f"{prefix}{sha256(os.fsencode(bridge)).hexdigest()[:8]}.{vlan}"


class EnsureVlanGateway(Op):
    """`<bridge>.<vlan>` is up, and its peer is a port of the bridge in that VLAN.

    The interface is set up last, so that one that is up is complete: an ADD that finds it down, left by one that was killed or
    made by one beside it, does all the steps again.
    """

    bridge: str
    vlan: int
    deed = "make the gateway's interface for VLAN {vlan} of bridge {bridge}"

    def describe(self) -> str:
        return f"host: veth {self.gateway} whose peer is a port of {self.bridge} in VLAN {self.vlan}"

    @property
    def gateway(self) -> str:
        """The interface's name."""
        return vlan_gateway_name(self.bridge, self.vlan)

    def apply(self, kernel: "Kernel") -> bool:
        link = kernel.host.link(self.gateway)
        if link is not None and link.up:
            self._refuse_strangers(kernel, link)
            return False
        bridge = need(kernel.host, self.bridge)
        if link is None:
            peer = _fitting(f"{self.gateway}p", "vp", self.bridge, self.vlan)
            try:
                kernel.host.add_veth(self.gateway, peer, peer_netns_fd=kernel.host_fd, mtu=bridge.mtu)
            except FileExistsError as error:
                # Another ADD may have made it since we looked. If not, the name of the peer is somebody else's.
                if kernel.host.link(self.gateway) is None:
                    raise CniError(f"cannot make {self.gateway}, the gateway's interface: {peer} exists") from error
            link = need(kernel.host, self.gateway)
        self._refuse_strangers(kernel, link)
        port = self._port(kernel, link)
        if port is not None:
            kernel.host.set_link(port.index, master=bridge.index, up=True)
            kernel.host.delete_vlan(port.index, 1, rtnl.VID_MAX)
            kernel.host.add_vlan(port.index, self.vlan, pvid=True, untagged=True)
        kernel.host.set_link(link.index, up=True)
        return True

    def check(self, kernel: "Kernel") -> str | None:
        link = need(kernel.host, self.gateway)
        if not link.up:
            return f"{self.gateway}, the gateway's interface, is down"
        port, bridge = self._port(kernel, link), kernel.host.link(self.bridge)
        if port is not None and (bridge is None or port.master != bridge.index):
            return f"{port.name}, the peer of {self.gateway}, is not a port of bridge {self.bridge}"
        return None

    def _port(self, kernel: "Kernel", link: "Link") -> "Link | None":
        """The peer, found by its index, since the Go plugin gives it a random name. None for another kind of interface."""
        # With a netns_id the index is one of another namespace.
        return kernel.host.link(link.link) if link.kind == "veth" and link.link and link.netns_id < 0 else None

    def _refuse_strangers(self, kernel: "Kernel", link: "Link") -> None:
        """CniError when the peer of the interface is a port of another bridge."""
        port = self._port(kernel, link)
        master = kernel.host.link(port.master) if port is not None and port.master else None
        if master is not None and master.name != self.bridge:
            raise CniError(
                f"{self.gateway} is not the gateway's interface of bridge {self.bridge} but of {master.name}",
                f"delete {self.gateway} or choose another bridge or vlan",
            )
