"""DEL: which addresses a container that leaves has had, and whether it is gone."""

from cni_py.errors import CniError
from cni_py.protocol.result import addresses_of, known_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.call import Call


def known_addresses(call: "Call") -> set[bytes]:
    """DEL: the addresses of the container's interface, by the result that the runtime remembers, else as they are now.

    Where the container is gone, too, host-local's reservations name them.
    """
    earlier = known_result(call.conf)
    if earlier is not None and earlier.ips:
        return {address.packed for address in addresses_of(earlier, call.ifname)}
    try:
        if not call.kernel.has_container:
            return reserved(call)
        link = call.kernel.container.link(call.ifname)
        if link is None:
            return set()
        from cni_py.kernel.inet import addresses

        return {held.address.packed for held in addresses(call.kernel.container, link.index)}
    except (CniError, OSError):
        return set()


def reserved(call: "Call") -> set[bytes]:
    """What host-local has reserved for the attachment. CniError."""
    from cni_py.addr import parse_ip
    from cni_py.ipam.reservations import Pool, directory_of, is_address

    with Pool(directory_of(call.conf), look=True) as pool:
        names = pool.of_attachment(call.container_id, call.ifname)[1]
    return {parse_ip(name) for name in names if is_address(name)}


def is_gone(call: "Call") -> bool:
    """Whether the container's namespace is: then nothing of it is in use."""
    try:
        return not call.kernel.has_container
    except CniError:
        return False
