"""The bridge plugin's gateway in a VLAN: a veth pair of the host, one end a port of the bridge in that VLAN.

The other end, `<bridge>.<vlan>`, has the gateway's address. The address cannot be on the bridge itself, which is in another
VLAN than the container's port.
"""

from cni_py.attachment.engine import Op
from cni_py.attachment.naming import fitting_name, vlan_gateway_name
from cni_py.errors import CniError
from cni_py.interface.common import need
from cni_py.kernel import rtnl, vlans

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link


class EnsureVlanGateway(Op):
    """`<bridge>.<vlan>` is up, and its peer is a port of the bridge in that VLAN.

    The interface is set up last, so that one that is up is complete: an ADD that finds it down, left by one that was killed or
    made by one beside it, does all the steps again. So it does where the peer is no port any more, since the bridge was made
    anew, or not in the VLAN any more.
    """

    bridge: str
    vlan: int
    restorable = True
    deed = "make the gateway's interface for VLAN {vlan} of bridge {bridge}"

    def describe(self) -> str:
        return f"host: veth {self.gateway} whose peer is a port of {self.bridge} in VLAN {self.vlan}"

    @property
    def gateway(self) -> str:
        """The interface's name."""
        return vlan_gateway_name(self.bridge, self.vlan)

    def apply(self, kernel: "Kernel") -> bool:
        link = kernel.host.link(self.gateway)
        bridge = need(kernel.host, self.bridge)
        if link is not None and link.up:
            port = self._refuse_strangers(kernel, link)
            if port is None or self._difference(kernel, port, bridge) is None:
                return False
        if link is None:
            peer = fitting_name(f"{self.gateway}p", "vp", self.bridge, self.vlan)
            try:
                kernel.host.add_veth(self.gateway, peer, peer_netns_fd=kernel.host_fd, mtu=bridge.mtu)
            except FileExistsError as error:
                # Another ADD may have made it since we looked. If not, the name of the peer is somebody else's.
                if kernel.host.link(self.gateway) is None:
                    raise CniError(f"cannot make {self.gateway}, the gateway's interface: {peer} exists") from error
            link = need(kernel.host, self.gateway)
        port = self._refuse_strangers(kernel, link)
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
        port = self._port(kernel, link)
        return self._difference(kernel, port, kernel.host.link(self.bridge)) if port is not None else None

    def _difference(self, kernel: "Kernel", port: "Link", bridge: "Link | None") -> str | None:
        """What is not right with the peer, in a sentence."""
        if bridge is None or port.master != bridge.index:
            return f"{port.name}, the peer of {self.gateway}, is not a port of bridge {self.bridge}"
        if not port.up:
            return f"{port.name}, the peer of {self.gateway}, is down"
        found = vlans.of_port(kernel.host, port.index)
        if found is None or found.get(self.vlan) == vlans.OWN:
            return None  # the Go plugin leaves it in the default VLAN, too, if it was told to
        return f"{port.name}, the peer of {self.gateway}, is in other VLANs: {vlans.shown(found)}"

    def _port(self, kernel: "Kernel", link: "Link") -> "Link | None":
        """The peer, found by its index, since the Go plugin gives it a random name. None for another kind of interface."""
        # With a netns_id the index is one of another namespace.
        return kernel.host.link(link.link) if link.kind == "veth" and link.link and link.netns_id < 0 else None

    def _refuse_strangers(self, kernel: "Kernel", link: "Link") -> "Link | None":
        """The peer of the interface, as _port() has it. CniError when it is a port of another bridge."""
        port = self._port(kernel, link)
        master = kernel.host.link(port.master) if port is not None and port.master else None
        if master is not None and master.name != self.bridge:
            raise CniError(
                f"{self.gateway} is not the gateway's interface of bridge {self.bridge} but of {master.name}",
                f"delete {self.gateway} or choose another bridge or vlan",
            )
        return port
