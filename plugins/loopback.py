"""loopback: the container's `lo` is up, with 127.0.0.1 and ::1.

    ADD    lo up; the result names it, or is the one of the plugin before
    DEL    lo down, where the namespace of the ADD still exists
    CHECK  lo is up
    GC     attachments of this network that the runtime no longer knows

Needs no IPAM, and STATUS has nothing to miss. Example: conf/loopback.conflist.

Every namespace has a lo, so nothing but the record of ADD tells whether the one at CNI_NETNS is the attachment's: a path that
was used again leads to somebody else's. Without a record (the Go plugin keeps none) lo stays as it is and ends with its
namespace.
"""

from cni_py.addr import mac_text
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.attachment.engine import Op
from cni_py.errors import CniError
from cni_py.interface import common
from cni_py.kernel import inet, rtnl
from cni_py.protocol.result import Interface, IPConfig, Result, prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel

LO = "lo"


class SetLoopbackUp(Op):
    """lo is up, and with it 127.0.0.1 and ::1."""

    owned = True
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
    """CNI_IFNAME is not looked at: the interface is always lo."""
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
    """Down again; no namespace is as good as down."""
    call.finish_delete(call.run_all(Call.undo_recorded))


def check(call: Call) -> None:
    """lo must be up."""
    if not common.need(call.kernel.container, LO).flags & rtnl.IFF_UP:
        raise CniError("loopback interface is down")


def gc(call: Call) -> None:
    """Take away what stale attachments left."""
    call.finish_delete(collect_garbage(call))


def status(_call: Call) -> None:
    """Nothing can be lacking."""


PLUGIN = Plugin("loopback", add=add, delete=delete, check=check, gc=gc, status=status)
