"""What macvlan, ipvlan, vlan, dummy and tap share: the interface that they make lies in the container as a whole.

ADD    the interface, IPAM, then addresses, the interface up, routes -> result [container's interface]
DEL    undoes the record; the container's interface, IPAM; whatever is gone already is success
CHECK  IPAM, the result of ADD against the kernel, then the plan of ADD against the kernel
GC     attachments of this network that the runtime no longer knows
"""

from cni_py.addr import mac_text
from cni_py.attachment import records
from cni_py.attachment.call import Call
from cni_py.attachment.engine import listed
from cni_py.errors import CniError, InvalidNetworkConfig
from cni_py.interface import common
from cni_py.interface.addressing import plan_addresses, plan_route
from cni_py.kernel import inet
from cni_py.kernel.rtnl import IFF_LOOPBACK
from cni_py.plugins.container import (
    check_interface,
    checked_result,
    collect,
    delete_interface,
    detach,
    examine_ipam,
    in_result,
    ipam_result,
    ips_of,
    prefer_own_dns,
    refuse_existing,
    release_addresses,
)
from cni_py.protocol.result import Interface, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeVar

    from cni_py.attachment.engine import Op
    from cni_py.interface.child import AddChild
    from cni_py.kernel.rtnl import Link, Rtnl

    AnyChild = TypeVar("AnyChild", bound=AddChild)


def connect(
    call: Call,
    link: "AddChild",
    given: Result | None = None,
    *,
    more: "Sequence[Op]" = (),
    dad: bool | None = None,
) -> Result:
    """ADD: make the link, do `more` with it, and give it the addresses of IPAM, or those that are `given`. `dad`: plan()."""
    refuse_existing(call, CniError(f'failed to rename {call.plugin} to "{call.ifname}": file exists'))
    if given is None:
        examine_ipam(call)
    if call.begin():
        release_addresses(call)
    call.apply([link, *more])  # before IPAM: a link that cannot be made should not cost an address
    result = given or ipam_result(call)
    for ip in result.ips:
        ip.interface = 0
    call.apply(plan(call.ifname, result, dad))
    made = call.kernel.container.link(call.ifname)  # asked, since some have the MAC of their master
    result.interfaces = [Interface(call.ifname, mac_text(made.mac) if made is not None else "", call.netns)]
    prefer_own_dns(call, result)
    return result


def plan(ifname: str, result: Result, dad: bool | None) -> "list[Op]":
    """The operations for addresses and routes of the container. Without addresses the interface is only set up.

    Strangers are on the network: by default (`dad` None) duplicates are detected as the container is set to, and the
    neighbours are told the new MAC.
    """
    if not result.ips:
        return [common.SetContainerUp(ifname=ifname)]
    steps = plan_addresses(ifname, result.ips, dad=dad, announce=True)
    return steps + [plan_route(ifname, route, result.ips) for route in result.routes]


def named_master(side: "Rtnl", name: str, inside: bool) -> "Link":
    """The interface of that name. InvalidNetworkConfig where there is none."""
    link = side.link(name)
    if link is None:
        where = "container" if inside else "host"
        raise InvalidNetworkConfig(f"Link not found: the {where} has no interface {name} (master)")
    return link


def default_master(side: "Rtnl") -> "Link":
    """The interface of the default route, of IPv4 before IPv6, the smallest metric first.

    InvalidNetworkConfig where there is none.
    """
    for family in (4, 6):
        defaults = [route for route in inet.routes(side, 0, family) if route.dst.prefixlen == 0 and route.index]
        for route in sorted(defaults, key=lambda route: route.priority):
            link = side.link(route.index)
            if link is not None and not link.flags & IFF_LOOPBACK:
                return link
    raise InvalidNetworkConfig(
        'no default route interface found: without "master" the interface of the default route is taken'
    )


def check_mtu(mtu: int, master: "Link") -> None:
    """InvalidNetworkConfig for an MTU that the master cannot carry."""
    if not 0 <= mtu <= master.mtu:
        raise InvalidNetworkConfig(f"invalid MTU {mtu}, must be [0, master MTU({master.mtu})]")


def recorded(call: Call, kind: "type[AnyChild]") -> "AnyChild | None":
    """The operation that made the interface, by the record of ADD."""
    return next(iter(listed(records.load(call.key, call.plugin), kind)), None)


def compare(call: Call, link: "AddChild", *, more: "Sequence[Op]" = (), dad: bool | None = None) -> None:
    """CHECK: CniError with the first difference, in the Go plugins' words where they have them."""
    result = checked_result(call)
    container = in_result(call, result)
    check_interface(call, container, link.kind)
    call.check_plan([link, *more])
    result.ips = ips_of(result, container)
    call.check_plan(plan(call.ifname, result, dad))


def delete(call: Call) -> None:
    """Disconnect the container. Each step is tried, whatever is left to go by."""
    detach(call, Call.undo_recorded, delete_interface)


def gc(call: Call) -> None:
    """Undo stale attachments by their records, then in IPAM. (What a lost record leaves is all in the container.)"""
    collect(call)
