"""A container that leaves (DEL): which addresses its interface had, and whether its namespace is gone.

Rules and elements of nftables and iptables are found by these addresses when no record lists them.
"""

from cni_py.errors import CniError
from cni_py.protocol.result import addresses_of, known_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.call import Call


def known_addresses(call: "Call") -> set[bytes]:
    """The addresses (4 or 16 bytes) of the container's interface; empty when they cannot be learnt.

    The first source that there is: prevResult, then the interface itself, or, where the namespace is gone,
    host-local's reservations.
    """
    earlier = known_result(call.conf)
    if earlier is not None and earlier.ips:
        return {address.packed for address in addresses_of(earlier, call.ifname)}
    try:
        if not call.kernel.has_container:
            from cni_py.ipam.reservations import reserved

            return reserved(call.conf, call.container_id, call.ifname)
        from cni_py.kernel import inet

        link = call.kernel.container.link(call.ifname)
        held = inet.addresses(call.kernel.container, link.index) if link is not None else []
    except (CniError, OSError):
        return set()
    return {entry.address.packed for entry in held}


def is_gone(call: "Call") -> bool:
    """Whether the container's namespace no longer exists. False where that cannot be told (CNI_NETNS is another file)."""
    try:
        return not call.kernel.has_container
    except CniError:
        return False
