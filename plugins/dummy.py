"""dummy: an interface of the container that leads nowhere, with addresses from IPAM: for addresses that are the container's own.

    STATUS IPAM
    all others: plugins/child.py

Beyond the Go plugin: the MAC address is the attachment's own, the same at each ADD until the host's next boot; GC. Example
configuration: conf/dummy.conflist.
"""

from cni_py.attachment import delegate
from cni_py.attachment.call import Call, Plugin
from cni_py.errors import InvalidNetworkConfig
from cni_py.interface.dummy import AddDummy
from cni_py.plugins import child
from cni_py.plugins.container import ask_ipam

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.result import Result


def plan_link(call: Call) -> AddDummy:
    """The operation that makes the interface. InvalidNetworkConfig without an IPAM plugin."""
    if not delegate.ipam_type(call):
        raise InvalidNetworkConfig("dummy interface requires an IPAM configuration")
    mac = call.key.mac("container")
    return AddDummy(ifname=call.ifname, mac=mac, netns=call.netns, cookie=call.kernel.container_cookie)


def add(call: Call) -> "Result":
    """Make the interface."""
    return child.connect(call, plan_link(call))


def check(call: Call) -> None:
    """Compare the kernel with what ADD made."""
    child.compare(call, plan_link(call))


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    ask_ipam(call, "STATUS")


PLUGIN = Plugin("dummy", add=add, delete=child.delete, check=check, gc=child.gc, status=status)
