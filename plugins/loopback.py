"""loopback: the container's `lo` is up, with 127.0.0.1 and ::1.

    ADD    sets lo up, with which the kernel gives it 127.0.0.1/8 and ::1 -> result [lo], or prevResult
    DEL    sets lo down, where the namespace of the ADD still exists
    CHECK  lo is up
    GC     attachments of this network that the runtime no longer knows
    STATUS always well: it needs nothing

Every namespace has a lo. Only the record of ADD tells whether the one at CNI_NETNS is the attachment's, since the path may lead
to another container's namespace by now. Without a record (the Go plugin keeps none) lo stays as it is, and ends with its
namespace. Example configuration: conf/loopback.conflist.
"""

from cni_py.addr import mac_text
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.attachment.engine import Op
from cni_py.errors import CniError
from cni_py.interface import common
from cni_py.kernel import inet
from cni_py.protocol.result import Interface, IPConfig, Result, prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel

LO = "lo"


class SetLoopbackUp(Op):
    """The container's lo is up. Not owned where it was up before."""

    owned = whole = True
    line = "container: set lo up"

    def apply(self, kernel: "Kernel") -> bool:
        if common.need(kernel.container, LO).up:
            return False
        kernel.container.set_link(LO, up=True)
        return True

    def undo(self, kernel: "Kernel") -> None:
        if kernel.has_container:
            kernel.container.set_link(LO, up=False)


def add(call: Call) -> Result:
    """Set lo up, whatever CNI_IFNAME says. CniError where lo has an address of another network."""
    earlier = prev_result(call.conf)
    link = common.need(call.kernel.container, LO)
    call.begin()
    call.apply([SetLoopbackUp()])
    if earlier is not None:
        return earlier
    result = Result()
    result.interfaces = [Interface(LO, mac_text(link.mac), call.netns)]
    for family in (4, 6):
        addresses = [entry.address for entry in inet.addresses(call.kernel.container, link.index, family)]
        for address in addresses:
            if not is_loopback(address.packed):
                raise CniError(f"loopback interface has a non-loopback address {address}")
        result.ips += [IPConfig(address, interface=0) for address in addresses[:1]]
    return result


def is_loopback(ip: bytes) -> bool:
    """127.0.0.0/8 and ::1 (RFC 1122, RFC 4291)."""
    return ip[0] == 127 if len(ip) == 4 else ip == b"\0" * 15 + b"\x01"


def delete(call: Call) -> None:
    """Set lo down. A namespace that is gone is success."""
    call.finish_delete(call.run_all(Call.undo_recorded))


def check(call: Call) -> None:
    """CniError unless lo is up."""
    if not common.need(call.kernel.container, LO).up:
        raise CniError("loopback interface is down")


def gc(call: Call) -> None:
    """Undo stale attachments by their records."""
    call.finish_delete(collect_garbage(call))


def status(_call: Call) -> None:
    """Always well: an ADD needs nothing that could be missing."""


PLUGIN = Plugin("loopback", add=add, delete=delete, check=check, gc=gc, status=status)
