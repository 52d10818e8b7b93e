"""ipvlan: an interface with the MAC address of its master, an interface of the host, and addresses from IPAM.

    STATUS IPAM; that the master is there and the mode is one
    all others: plugins/child.py

Behind another plugin (prevResult) and without `ipam` it takes the addresses of that plugin's result, and its master is the
one interface of that result unless `master` names another. Beyond the Go plugin: IPAM's DNS settings reach the result; an ADD
that fails removes the interface; GC. Example configuration: conf/ipvlan.conflist.
"""

from cni_py.attachment import delegate
from cni_py.attachment.call import Call, Plugin
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable
from cni_py.interface.ipvlan import MODES, AddIpvlan
from cni_py.plugins import child
from cni_py.plugins.container import ask_ipam
from cni_py.protocol.netconf import boolean, integer, string
from cni_py.protocol.result import prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.rtnl import Link, Rtnl
    from cni_py.protocol.result import Result


class IpvlanConf:
    """The keys of the configuration; "" and 0 where nothing is asked for."""

    __slots__ = ("inside", "master", "mode", "mtu")

    def __init__(self, call: Call) -> None:
        raw = call.conf.raw
        self.master = string(raw, "master")
        self.mode = string(raw, "mode") or "l2"
        self.mtu = integer(raw, "mtu")
        self.inside = boolean(raw, "linkInContainer")

    def check_mode(self) -> None:
        """InvalidNetworkConfig for an unknown mode, which a DEL passes over."""
        if self.mode not in MODES:
            raise InvalidNetworkConfig(f'unknown ipvlan mode: "{self.mode}", there are {", ".join(MODES)}')


def add(call: Call) -> "Result":
    """Connect the container."""
    earlier = prev_result(call.conf)
    given = earlier if earlier is not None and earlier.ips and not delegate.ipam_type(call) else None
    if given is None and not delegate.ipam_type(call):
        raise InvalidNetworkConfig("ipvlan needs addresses: an ipam, or a plugin before it whose result has some")
    if given is not None:
        given.form = None  # not passed on as it was read: the interfaces and the DNS settings are others
    return child.connect(call, plan_link(call, IpvlanConf(call), earlier), given)


def plan_link(call: Call, conf: IpvlanConf, earlier: "Result | None") -> AddIpvlan:
    """The operation that makes the interface. InvalidNetworkConfig for a mode, master or MTU that cannot be."""
    conf.check_mode()
    master = master_of(call.kernel.container if conf.inside else call.kernel.host, conf, earlier)
    child.check_mtu(conf.mtu, master)
    return AddIpvlan(
        ifname=call.ifname,
        master=master.name,
        inside=conf.inside,
        mode=conf.mode,
        mtu=conf.mtu,
        netns=call.netns,
        cookie=call.kernel.container_cookie,
    )


def master_of(side: "Rtnl", conf: IpvlanConf, earlier: "Result | None") -> "Link":
    """The master: the interface named, else that of the result before, else that of the default route. InvalidNetworkConfig."""
    if conf.master:
        return child.named_master(side, conf.master, conf.inside)
    if earlier is None:
        return child.default_master(side)
    names = [interface.name for interface in earlier.interfaces]
    if len(names) != 1 or not names[0]:
        raise InvalidNetworkConfig(
            "chained master failure. PrevResult lacks a single named interface",
            f'it names {", ".join(names) or "none"}; "master" says which one to take',
        )
    return child.named_master(side, names[0], conf.inside)


def check(call: Call) -> None:
    """Compare the kernel with what ADD made. Without `master` its master is not compared: the result before it is gone."""
    conf = IpvlanConf(call)
    if not conf.master and (recorded := child.recorded(call, AddIpvlan)) is not None:
        conf.master = recorded.master
    child.compare(call, plan_link(call, conf, None))


def status(call: Call) -> None:
    """Whether an ADD can be served now. A master in the container is not looked for: STATUS has no container."""
    conf = IpvlanConf(call)
    try:
        conf.check_mode()
        if conf.master and not conf.inside:
            child.named_master(call.kernel.host, conf.master, conf.inside)
    except CniError as error:
        raise PluginNotAvailable(error.msg, error.details) from error
    ask_ipam(call, "STATUS")


PLUGIN = Plugin("ipvlan", add=add, delete=child.delete, check=check, gc=child.gc, status=status)
