"""CHECK of the bridge plugin: the result of ADD against the kernel, then what ADD makes that no result names."""

from cni_py.addr import mac_text
from cni_py.attachment import records
from cni_py.attachment.call import Call
from cni_py.attachment.engine import listed
from cni_py.errors import CniError
from cni_py.interface.addressing import plan_route
from cni_py.interface.common import AddVeth, checked_routes
from cni_py.kernel import inet, rtnl
from cni_py.plugins import backends
from cni_py.plugins.bridge_conf import BridgeConf
from cni_py.plugins.bridge_plan import plan_bridge, plan_gateway, plan_port
from cni_py.plugins.container import check_interface, checked_result, container_mac, expect, in_result
from cni_py.protocol.result import Interface, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op


def check(call: Call) -> None:
    """CniError with the first difference, in the Go plugin's words where it has them."""
    conf = BridgeConf(call)
    result = checked_result(call)
    by_name = {(interface.name, bool(interface.sandbox)): interface for interface in result.interfaces}
    bridge = by_name.get((conf.bridge, False), Interface(""))
    check_bridge(call, bridge, conf)
    container = in_result(call, result)
    check_interface(call, container, "veth")
    check_veth(call, result, bridge, container)
    check_addresses(call, result)
    if call.key.host_veth in [interface.name for interface in result.interfaces]:  # else the Go plugin made it
        call.check_plan(beyond_the_result(call, conf, result))


def check_bridge(call: Call, bridge: Interface, conf: BridgeConf) -> None:
    """The bridge has the MAC of the result and the promiscuous mode of the configuration."""
    link = expect(call.kernel.host.link(bridge.name) if bridge.name else None, bridge.name)
    if link.kind != "bridge":
        raise CniError(f"Interface {bridge.name} does not have link type of bridge")
    if bridge.mac and bridge.mac != mac_text(link.mac):
        raise CniError(f"Bridge interface {bridge.name} Mac doesn't match: {bridge.mac}", f"it is {mac_text(link.mac)}")
    promisc = bool(link.flags & rtnl.IFF_PROMISC)
    if promisc != conf.promisc:
        configured, current = (str(mode).lower() for mode in (conf.promisc, promisc))  # as the Go plugin says it
        raise CniError(
            f"Bridge interface {bridge.name} configured Promisc Mode {configured} doesn't match current state: {current}"
        )


def check_veth(call: Call, result: Result, bridge: Interface, container: Interface) -> None:
    """One of the result's host interfaces is the peer of the container's and a port of the bridge."""
    host = call.kernel.host
    inside = expect(call.kernel.container.link(container.name), container.name)
    master = expect(host.link(bridge.name), bridge.name)
    for interface in result.interfaces:
        if interface.sandbox or interface.name == bridge.name:
            continue
        link = expect(host.link(interface.name), interface.name)
        if link.kind != "veth" or link.link != inside.index or link.master != master.index:
            continue
        if interface.mac and interface.mac.lower() != mac_text(link.mac):
            raise CniError(f"Interface {interface.name} Mac doesn't match: {interface.mac} not found")
        return
    raise CniError(f"CNI veth created for bridge {bridge.name} was not found")


def check_addresses(call: Call, result: Result) -> None:
    """The container has the addresses and routes of the result, and for each address the route to its subnet."""
    side = call.kernel.container
    link = expect(side.link(call.ifname), call.ifname)
    held = {str(entry.address) for entry in inet.addresses(side, link.index)}
    for ip in result.ips:
        listed = ip.interface is not None and ip.interface < len(result.interfaces)
        if listed and result.interfaces[ip.interface or 0].name != call.ifname:
            continue
        if str(ip.address) not in held:
            raise CniError(f"Failed to match addr {ip.address} on interface {call.ifname}")
        subnet = ip.address.network()
        if subnet == ip.address.host() or (subnet.family == 4 and not any(subnet.packed)):
            continue  # the kernel makes no such route for a /32 or /128, nor for 0.0.0.0/0 (fib_add_ifaddr())
        routes = checked_routes(side, link, subnet.family)
        if not any(route.dst == subnet and route.gw is None for route in routes):
            raise CniError(
                f"Failed to find Gateway for {ip.address} on interface {call.ifname}: the route to its subnet is missing"
            )
    call.check_plan([plan_route(call.ifname, route, result.ips) for route in result.routes])


def beyond_the_result(call: Call, conf: BridgeConf, result: Result) -> "list[Op]":
    """The operations of ADD whose objects no result names: bridge, port, gateway, masquerading."""
    steps = plan_bridge(conf) + plan_port(call.key, conf, made_mac(call, conf)) + plan_gateway(conf, result)
    if conf.masquerade:
        steps += backends.masquerading(call, [ip.address for ip in result.ips], conf.backend)
    return steps


def made_mac(call: Call, conf: BridgeConf) -> bytes:
    """The MAC that ADD gave the container, from the record: the version that did the ADD may have derived another one."""
    record = records.load(call.key, call.plugin)
    for op in listed(record, AddVeth):
        return op.container_mac
    return container_mac(call, conf.mac)
