"""macspoofchk: frames with another source than the container's are dropped."""

from cni_py.addr import mac_text
from cni_py.attachment.engine import Op
from cni_py.kernel.nf_tables import BRIDGE, Element, concat, ifname_key
from cni_py.nftables.elements import put, take

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel


def spoof_check(host_veth: str, mac: bytes) -> list[Op]:
    """What bridge's macspoofchk needs."""
    return [CheckSource(name=host_veth, mac=mac)]


class CheckSource(Op):
    """Frames from the container with another MAC than its own are dropped.

    Those to link-local groups (LLDP) come by no chain of the bridge family, and the bridge would still learn from them that
    the MAC of another container is here (br_handle_frame(), net/bridge/br_input.c): it is told not to.
    """

    name: str
    mac: bytes
    nft_family = BRIDGE
    owned = True
    restorable = True
    line = "host: nft: frames from {name} are dropped unless their source is {mac}"
    deed = "check the source of frames from {name} (nftables)"

    def elements(self, kernel: "Kernel") -> tuple[tuple[str, Element], ...]:
        """The set and the element in it, the permission first."""
        name = ifname_key(self.name)
        return (
            ("spoof_allowed", Element(concat(name, self.mac), None, kernel.key.comment)),
            ("spoof_checked", Element(name, None, kernel.key.comment)),
        )

    def apply(self, kernel: "Kernel") -> bool:
        new = [put(kernel, set_name, element, family=BRIDGE) for set_name, element in self.elements(kernel)]
        port = kernel.host.link(self.name)
        if port is not None and port.slave_kind == "bridge":
            from cni_py.kernel import linksettings

            linksettings.stop_link_local_learning(kernel.host, port.master)
        return any(new)

    def undo(self, kernel: "Kernel") -> None:
        for set_name, element in reversed(self.elements(kernel)):
            take(kernel, set_name, element.key, BRIDGE)

    def check(self, kernel: "Kernel") -> str | None:
        for set_name, element in self.elements(kernel):
            if not kernel.nft.get(set_name, (element.key,), BRIDGE):
                return f"nftables set {set_name} of table bridge cni_py has lost {self.name} {mac_text(self.mac)}"
        return None
