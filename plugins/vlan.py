"""vlan: the frames of one VLAN of an interface of the host, as an interface of the container, with addresses from IPAM.

    STATUS IPAM; that the master is there
    all others: plugins/child.py

Beyond the Go plugin: IPAM's DNS settings reach the result; an ADD that fails removes the interface; a DEL works when the master
is gone; GC. Example configuration: conf/vlan.conflist.
"""

from cni_py.attachment import delegate
from cni_py.attachment.call import Call, Plugin
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable
from cni_py.interface.vlan import AddVlan
from cni_py.plugins import child
from cni_py.plugins.container import ask_ipam
from cni_py.protocol.netconf import boolean, integer, string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.result import Result

VLAN_MAX = 4094  # 4095 is reserved: IEEE 802.1Q, table 9-2


class VlanConf:
    """The keys of the configuration."""

    __slots__ = ("inside", "master", "mtu", "vlan")

    def __init__(self, call: Call) -> None:
        raw = call.conf.raw
        self.master = string(raw, "master")
        self.vlan = integer(raw, "vlanId")
        self.mtu = integer(raw, "mtu")
        self.inside = boolean(raw, "linkInContainer")

    def check(self) -> None:
        """InvalidNetworkConfig for what no ADD can do, and a DEL passes over."""
        if not self.master:
            raise InvalidNetworkConfig(
                '"master" field is required. It specifies the host interface name to create the VLAN for'
            )
        if not 0 <= self.vlan <= VLAN_MAX:
            raise InvalidNetworkConfig(f"invalid VLAN ID {self.vlan} (must be between 0 and {VLAN_MAX} inclusive)")


def add(call: Call) -> "Result":
    """Connect the container."""
    link = plan_link(call)
    if not delegate.ipam_type(call):
        raise InvalidNetworkConfig("vlan needs addresses: an ipam")
    return child.connect(call, link)


def plan_link(call: Call) -> AddVlan:
    """The operation that makes the interface. InvalidNetworkConfig for a VLAN, master or MTU that cannot be."""
    conf = VlanConf(call)
    conf.check()
    side = call.kernel.container if conf.inside else call.kernel.host
    child.check_mtu(conf.mtu, child.named_master(side, conf.master, conf.inside))
    return AddVlan(
        ifname=call.ifname,
        master=conf.master,
        inside=conf.inside,
        vlan=conf.vlan,
        mtu=conf.mtu,
        netns=call.netns,
        cookie=call.kernel.container_cookie,
    )


def check(call: Call) -> None:
    """Compare the kernel with what ADD made."""
    child.compare(call, plan_link(call))


def status(call: Call) -> None:
    """Whether an ADD can be served now. A master in the container is not looked for: STATUS has no container."""
    conf = VlanConf(call)
    try:
        conf.check()
        if not conf.inside:
            child.named_master(call.kernel.host, conf.master, conf.inside)
    except CniError as error:
        raise PluginNotAvailable(error.msg, error.details) from error
    ask_ipam(call, "STATUS")


PLUGIN = Plugin("vlan", add=add, delete=child.delete, check=check, gc=child.gc, status=status)
