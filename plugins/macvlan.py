"""macvlan: an interface with a MAC address of its own on an interface of the host, with addresses from IPAM.

    ADD    plan -> apply -> IPAM -> addresses and routes -> result [container]
    DEL    what the record lists, the container's interface, IPAM; what is gone already is success
    CHECK  IPAM, the result of ADD against the kernel, then the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows
    STATUS IPAM, and whether the master is there

Beyond the Go plugin: MAC addresses are ours and no two alike, the DNS settings of IPAM reach the result, an ADD that fails takes
the interface back. Example configuration: conf/macvlan.conflist.
"""

from cni_py.addr import interface_mac, mac_text
from cni_py.attachment import delegate
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable
from cni_py.interface import common
from cni_py.interface.addressing import plan_addresses, plan_route
from cni_py.interface.macvlan import AddMacvlan
from cni_py.kernel import inet
from cni_py.kernel.macvlan import MODES
from cni_py.kernel.rtnl import IFF_LOOPBACK
from cni_py.plugins.container import (
    check_interface,
    collect_addresses,
    delete_interface,
    examine_ipam,
    in_result,
    prefer_own_dns,
    refuse_existing,
    release_addresses,
)
from cni_py.protocol.netconf import boolean, child, integer, parse_cni_args, string
from cni_py.protocol.result import Interface, Result, prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op
    from cni_py.kernel.rtnl import Link, Rtnl

QUEUE_MAX = (1 << 32) - 1


class MacvlanConf:
    """What the plugin was asked for."""

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
        """What DEL does not need to know."""
        if self.mode not in MODES:
            raise InvalidNetworkConfig(f'unknown macvlan mode: "{self.mode}", there are {", ".join(sorted(MODES))}')

    def container_mac(self, call: Call) -> bytes:
        """The MAC asked for (runtimeConfig.mac, else MAC in CNI_ARGS, else `mac`), or ours."""
        args = parse_cni_args(call.args, ("MAC",)).get("MAC", "")
        runtime = child(call.conf.raw, "runtimeConfig")
        wanted = (string(runtime, "mac") if runtime is not None else "") or args or self.mac
        try:
            return interface_mac(wanted) if wanted else call.key.mac("container")
        except ValueError as error:
            raise InvalidNetworkConfig(
                f"{call.ifname} cannot have the MAC address that was asked for: {error}"
            ) from None


def add(call: Call) -> Result:
    """Connect the container."""
    conf = MacvlanConf(call)
    link = plan_link(call, conf)
    refuse_existing(call, f'failed to rename macvlan to "{call.ifname}": file exists')
    examine_ipam(call)
    if call.begin():
        release_addresses(call)
    call.apply([link])  # before IPAM: a link that cannot be should not cost an address
    result = Result()
    if delegate.ipam_type(call):
        result = delegate.ipam_add(call)
        if not result.ips:
            raise CniError("IPAM plugin returned missing IP config: its result has no address")
    for ip in result.ips:
        ip.interface = 0
    call.apply(plan(call.ifname, result))
    made = call.kernel.container.link(call.ifname)  # in passthru mode it has the MAC of its master
    result.interfaces = [Interface(call.ifname, mac_text(made.mac if made is not None else link.mac), call.netns)]
    prefer_own_dns(call, result)
    return result


def plan_link(call: Call, conf: MacvlanConf) -> AddMacvlan:
    """The interface, its configuration checked against the master."""
    conf.check_mode()
    mac = conf.container_mac(call)
    master = master_of(call.kernel.container if conf.inside else call.kernel.host, conf)
    if not 0 <= conf.mtu <= master.mtu:
        raise InvalidNetworkConfig(f"invalid MTU {conf.mtu}, must be [0, master MTU({master.mtu})]")
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
    """The interface named, or the one of the default route: of IPv4 if there is one, with the smallest metric."""
    if conf.master:
        link = side.link(conf.master)
        if link is None:
            where = "container" if conf.inside else "host"
            raise InvalidNetworkConfig(f"Link not found: the {where} has no interface {conf.master} (master)")
        return link
    for family in (4, 6):
        defaults = [route for route in inet.routes(side, 0, family) if route.dst.prefixlen == 0 and route.index]
        for route in sorted(defaults, key=lambda route: route.priority):
            link = side.link(route.index)
            if link is not None and not link.flags & IFF_LOOPBACK:
                return link
    raise InvalidNetworkConfig(
        'no default route interface found: without "master" the interface of the default route is taken'
    )


def plan(ifname: str, result: Result) -> "list[Op]":
    """Addresses and routes of the container. Others are on the network: duplicates are looked for, the addresses announced."""
    if not result.ips:
        return [common.SetContainerUp(ifname=ifname)]
    steps = plan_addresses(ifname, result.ips, dad=None, announce=True)
    return steps + [plan_route(ifname, route, result.ips) for route in result.routes]


def delete(call: Call) -> None:
    """Disconnect the container, with whatever is still there to go by."""
    call.finish_delete(call.run_all(Call.undo_recorded, delete_interface, release_addresses))


def check(call: Call) -> None:
    """Compare; the first difference is the error."""
    conf = MacvlanConf(call)
    link = plan_link(call, conf)
    if delegate.ipam_type(call):
        delegate.ipam(call, "CHECK")
    result = prev_result(call.conf)
    if result is None:
        raise InvalidNetworkConfig("Required prevResult missing")
    container = in_result(call, result)
    check_interface(call, container, "macvlan")
    call.check_plan([link])
    own = (None, result.interfaces.index(container))
    result.ips = [ip for ip in result.ips if ip.interface in own]
    call.check_plan(plan(call.ifname, result))


def gc(call: Call) -> None:
    """Take away what stale attachments left, here and in IPAM."""
    call.finish_delete(collect_garbage(call) + call.run_all(collect_addresses))


def status(call: Call) -> None:
    """Whether an ADD can be served now. A master inside the container is that container's affair."""
    conf = MacvlanConf(call)
    try:
        conf.check_mode()
        if not conf.inside:
            master_of(call.kernel.host, conf)
    except CniError as error:
        raise PluginNotAvailable(error.msg, error.details) from error
    if delegate.ipam_type(call):
        delegate.ipam(call, "STATUS")


PLUGIN = Plugin("macvlan", add=add, delete=delete, check=check, gc=gc, status=status)
