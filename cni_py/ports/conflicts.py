"""Who may have a host port: decided here for nftables, iptables and portfwd. Pure, but for records and namespaces.

Two mappings conflict as two sockets do, bind(2): see meet(). The holder of a port is one of these, see standing():

    FREE    it is gone: no record, or its network namespace is not there any more. What it holds is removed
    OWN     another attachment of the same container, for which runtimes give all its networks the same mappings: the holder
            serves the port, and the new attachment takes it over when the holder is DELeted (successors)
    TAKEN   another container that may be alive: error 110, see refusal()

Who holds a port is found in the nftables maps (claims), in iptables' chains (by_iptables) and in portfwd's list (relay).
Programs of the host are a subject of their own: host_listeners.
"""

from cni_py.attachment import holders
from cni_py.errors import PortInUse
from cni_py.ports.mapping import Mapping, bracketed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.attachment.records import Record

FREE, OWN, TAKEN = "free", "own", "taken"
ENDING_S = 0.5  # to wait for a holder that may be ending


def standing(known: "Sequence[Record | None]", container_id: str) -> str:
    """What the records of a port's holder mean for a container that wants the port: FREE, OWN or TAKEN."""
    alive = [record for record in known if record is not None and not holders.is_dead(record, ENDING_S)]
    if not alive:
        return FREE
    return OWN if alive[0].key.container_id == container_id else TAKEN


def refusal(wanted: Mapping, port: int, holder: str, more: str = "") -> PortInUse:
    """The error for a port of a mapping that `holder` (words for people) has."""
    address = bracketed(wanted.host_ip or bytes(len(wanted.container_ip)))
    return PortInUse(f"host port {port}/{wanted.protocol} is in use by {holder}", f"wanted on {address}:{port}{more}")


def meet(one: Mapping, other: Mapping) -> bool:
    """Whether two mappings have a port in common, as bind(2) sees it: any address conflicts with each of its family."""
    same = one.protocol == other.protocol and one.family == other.family
    ports = one.first <= other.last and other.first <= one.last
    return same and ports and (one.host_ip is None or other.host_ip in (None, one.host_ip))
