"""macvlan: an interface with a MAC address of its own on an interface of the host, with addresses from IPAM.

    ADD    the interface, IPAM, then the plan -> result [container's interface]
    DEL    undoes the record; the container's interface, IPAM; whatever is gone already is success
    CHECK  IPAM, the result of ADD against the kernel, then the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows
    STATUS IPAM; that the master is there and the mode is one

What ADD makes, in this order, all of it in the container:

    the macvlan link on its master
    (addresses reserved by IPAM)
    sysctls and addresses, the interface up, routes; with IPv6 it waits for duplicate address detection

Beyond the Go plugin: each attachment has a MAC address of its own, the same at each ADD until the host's next boot; IPAM's DNS
settings reach the result; an ADD that fails removes the interface. Example configuration: conf/macvlan.conflist.
"""

from cni_py.addr import mac_text
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable
from cni_py.interface import common
from cni_py.interface.addressing import plan_addresses, plan_route
from cni_py.interface.macvlan import AddMacvlan
from cni_py.kernel import inet
from cni_py.kernel.macvlan import MODES
from cni_py.kernel.rtnl import IFF_LOOPBACK
from cni_py.plugins.container import (
    ask_ipam,
    check_interface,
    checked_result,
    collect_addresses,
    container_mac,
    delete_interface,
    examine_ipam,
    in_result,
    ipam_result,
    ips_of,
    prefer_own_dns,
    refuse_existing,
    release_addresses,
)
from cni_py.protocol.netconf import boolean, integer, parse_cni_args, string
from cni_py.protocol.result import Interface, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op
    from cni_py.kernel.rtnl import Link, Rtnl

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


def add(call: Call) -> Result:
    """Connect the container."""
    conf = MacvlanConf(call)
    link = plan_link(call, conf)
    refuse_existing(call, CniError(f'failed to rename macvlan to "{call.ifname}": file exists'))
    examine_ipam(call)
    if call.begin():
        release_addresses(call)
    call.apply([link])  # before IPAM: a link that cannot be made should not cost an address
    result = ipam_result(call)
    for ip in result.ips:
        ip.interface = 0
    call.apply(plan(call.ifname, result))
    made = call.kernel.container.link(call.ifname)  # asked, since in passthru mode it has the MAC of its master
    result.interfaces = [Interface(call.ifname, mac_text(made.mac if made is not None else link.mac), call.netns)]
    prefer_own_dns(call, result)
    return result


def plan_link(call: Call, conf: MacvlanConf) -> AddMacvlan:
    """The operation that makes the interface. InvalidNetworkConfig for a mode, MAC, master or MTU that cannot be."""
    conf.check_mode()
    mac = container_mac(call, conf.requested_mac(call))
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
    """The master: the interface named, else that of the default route, of IPv4 before IPv6, the smallest metric first.

    InvalidNetworkConfig where there is none.
    """
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
    """The operations for addresses and routes of the container. Without addresses the interface is only set up."""
    if not result.ips:
        return [common.SetContainerUp(ifname=ifname)]
    # Strangers are on the network: detect duplicates as the container is set to, and tell the neighbours the new MAC.
    steps = plan_addresses(ifname, result.ips, dad=None, announce=True)
    return steps + [plan_route(ifname, route, result.ips) for route in result.routes]


def delete(call: Call) -> None:
    """Disconnect the container. Each step is tried, whatever is left to go by."""
    call.finish_delete(call.run_all(Call.undo_recorded, delete_interface, release_addresses))


def check(call: Call) -> None:
    """CniError with the first difference, in the Go plugin's words where it has them."""
    conf = MacvlanConf(call)
    link = plan_link(call, conf)
    result = checked_result(call)
    container = in_result(call, result)
    check_interface(call, container, "macvlan")
    call.check_plan([link])
    result.ips = ips_of(result, container)
    call.check_plan(plan(call.ifname, result))


def gc(call: Call) -> None:
    """Undo stale attachments by their records, then in IPAM. (What a lost record leaves is all in the container.)"""
    call.finish_delete(collect_garbage(call) + call.run_all(collect_addresses))


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


PLUGIN = Plugin("macvlan", add=add, delete=delete, check=check, gc=gc, status=status)
