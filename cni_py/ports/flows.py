"""Tracked UDP flows of a published port: forgotten when it is published and when it is withdrawn."""

from cni_py.errors import CniError, warn
from cni_py.ports.mapping import ByPort, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.attachment.context import Kernel
    from cni_py.kernel.conntrack import Flow


def forget_flows(kernel: "Kernel", mappings: "Sequence[Mapping]", *, added: bool) -> None:
    """Forget the UDP flows that would go on as if the mappings had not been added, or not removed.

    That is a help, not a condition: what fails is said on stderr. Where many attachments' ports are put back in one transaction
    it comes behind that, for all of them together (`kernel.flows`): the next packet would make the flow anew.
    """
    if kernel.flows is not None:
        kernel.flows += [(mapping, added) for mapping in mappings]
        return
    for family in (4, 6):
        concerned = [mapping for mapping in mappings if mapping.protocol == "udp" and mapping.family == family]
        if concerned:
            try:
                _forget_flows(kernel, concerned, added=added)
            except (OSError, CniError) as error:
                warn(f"cannot look through the tracked UDP flows: {error}")


def _forget_flows(kernel: "Kernel", mappings: "Sequence[Mapping]", *, added: bool) -> None:
    from cni_py.kernel.conntrack import forget_udp

    by_port = ByPort(mappings)
    own: set[bytes] = set()

    def wrong(flow: "Flow") -> bool:
        found = [one for one in by_port.having("udp", flow.dst_port) if one.host_ip in (None, flow.dst)]
        if not found:
            return False
        mapping = min(found, key=lambda one: one.host_ip is None)  # one of the very address before one of any
        if not added:
            return flow.replier == mapping.container_ip
        if not own:
            from cni_py.kernel.inet import addresses

            own.update(entry.address.packed for entry in addresses(kernel.host))
        if mapping.share and flow.replier not in own and flow.replier != flow.dst:
            return False  # another container that has the port too
        # a flow to an address that is not the host's is merely forwarded: not ours
        return flow.replier != mapping.container_ip and (flow.dst in own or flow.dst[:1] == b"\x7f")

    ports = {port for mapping in mappings for port in mapping.ports}
    forget_udp(kernel.nft.socket(), len(mappings[0].container_ip), ports, wrong)
