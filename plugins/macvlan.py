"""macvlan: an interface with a MAC address of its own on an interface of the host, with addresses from IPAM.

    STATUS IPAM; that the master is there and the mode is one
    all others: plugins/child.py

What ADD makes, in this order, all of it in the container:

    the macvlan link on its master
    (addresses reserved by IPAM)
    sysctls and addresses, the interface up, routes; with IPv6 it waits for duplicate address detection

Beyond the Go plugin: each attachment has a MAC address of its own, the same at each ADD until the host's next boot; IPAM's DNS
settings reach the result; an ADD that fails removes the interface. Example configuration: conf/macvlan.conflist.
"""

from cni_py.attachment.call import Call, Plugin
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable
from cni_py.interface.macvlan import AddMacvlan
from cni_py.kernel.macvlan import MODES
from cni_py.plugins import child
from cni_py.plugins.container import ask_ipam, container_mac
from cni_py.protocol.netconf import boolean, integer, parse_cni_args, string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.rtnl import Link, Rtnl
    from cni_py.protocol.result import Result

QUEUE_MAX = (1 << 32) - 1


class MacvlanConf:
    """The keys of the configuration; "" and 0 where nothing is asked for. `queue`: broadcasts that may wait (bcqueuelen)."""

    __slots__ = ("inside", "mac", "master", "mode", "mtu", "queue")

    def __init__(self, call: Call) -> None:
        raw = call.conf.raw
        self.master = string(raw, "master")
        self.mode = string(raw, "mode") or "bridge"
        self.mtu = integer(raw, "mtu")
        self.queue = integer(raw, "bcqueuelen")
        self.mac = string(raw, "mac")
        self.inside = boolean(raw, "linkInContainer")
        if not 0 <= self.queue <= QUEUE_MAX:
            raise InvalidNetworkConfig(f"bcqueuelen {self.queue} is not between 0 and {QUEUE_MAX}")

    def check_mode(self) -> None:
        """InvalidNetworkConfig for an unknown mode, which a DEL passes over."""
        if self.mode not in MODES:
            raise InvalidNetworkConfig(f'unknown macvlan mode: "{self.mode}", there are {", ".join(sorted(MODES))}')

    def requested_mac(self, call: Call) -> str:
        """The MAC asked for: runtimeConfig.mac, else MAC in CNI_ARGS, else `mac`, else ""."""
        args = parse_cni_args(call.args, ("MAC",)).get("MAC", "")
        runtime = call.conf.runtime_config
        return (string(runtime, "mac") if runtime is not None else "") or args or self.mac


def add(call: Call) -> "Result":
    """Connect the container."""
    return child.connect(call, plan_link(call, MacvlanConf(call)))


def plan_link(call: Call, conf: MacvlanConf) -> AddMacvlan:
    """The operation that makes the interface. InvalidNetworkConfig for a mode, MAC, master or MTU that cannot be."""
    conf.check_mode()
    mac = container_mac(call, conf.requested_mac(call))
    master = master_of(call.kernel.container if conf.inside else call.kernel.host, conf)
    child.check_mtu(conf.mtu, master)
    return AddMacvlan(
        ifname=call.ifname,
        master=master.name,
        inside=conf.inside,
        mode=conf.mode,
        mtu=conf.mtu,
        queue=conf.queue,
        mac=mac,
        netns=call.netns,
        cookie=call.kernel.container_cookie,
    )


def master_of(side: "Rtnl", conf: MacvlanConf) -> "Link":
    """The master: the interface named, else that of the default route. InvalidNetworkConfig where there is none."""
    return child.named_master(side, conf.master, conf.inside) if conf.master else child.default_master(side)


def check(call: Call) -> None:
    """Compare the kernel with what ADD made. Without `master` it is that of ADD: the default route may have changed."""
    conf = MacvlanConf(call)
    if not conf.master and (recorded := child.recorded(call, AddMacvlan)) is not None:
        conf.master = recorded.master
    child.compare(call, plan_link(call, conf))


def status(call: Call) -> None:
    """Whether an ADD can be served now. A master in the container is not looked for: STATUS has no container."""
    conf = MacvlanConf(call)
    try:
        conf.check_mode()
        if not conf.inside:
            master_of(call.kernel.host, conf)
    except CniError as error:
        raise PluginNotAvailable(error.msg, error.details) from error
    ask_ipam(call, "STATUS")


PLUGIN = Plugin("macvlan", add=add, delete=child.delete, check=check, gc=child.gc, status=status)
