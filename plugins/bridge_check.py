"""CHECK of the bridge plugin: what the result of ADD says, against what is there."""

from cni_py.addr import mac_text
from cni_py.attachment import delegate, records
from cni_py.attachment.call import Call
from cni_py.attachment.engine import listed
from cni_py.errors import CniError, InvalidNetworkConfig
from cni_py.interface.addressing import plan_route
from cni_py.interface.common import AddVeth
from cni_py.kernel import rtnl
from cni_py.plugins import backends
from cni_py.plugins.bridge_conf import BridgeConf
from cni_py.plugins.bridge_plan import plan_bridge, plan_gateway, plan_port
from cni_py.plugins.container import check_interface, expect, in_result
from cni_py.protocol.result import Interface, Result, prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op


def check(call: Call) -> None:
    """Compare; the first difference is the error, in the words clients know."""
    conf = BridgeConf(call)
    if conf.has_ipam:
        delegate.ipam(call, "CHECK")
    result = prev_result(call.conf)
    if result is None:
        raise InvalidNetworkConfig("Required prevResult missing")
    by_name = {(interface.name, bool(interface.sandbox)): interface for interface in result.interfaces}
    bridge = by_name.get((conf.bridge, False), Interface(""))
    check_bridge(call, bridge, conf)
    container = in_result(call, result)
    check_interface(call, container, "veth")
    check_veth(call, result, bridge, container)
    check_addresses(call, result)
    if call.key.host_veth in [interface.name for interface in result.interfaces]:  # of our making
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
        raise CniError(
            f"Bridge interface {bridge.name} configured Promisc Mode {conf.promisc} doesn't match current state: {promisc}"
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
    """The addresses and routes of the result are there, each address with the route to its subnet if that has others."""
    side = call.kernel.container
    index = expect(side.link(call.ifname), call.ifname).index
    held = {str(entry.address) for entry in side.addresses(index)}
    routes = side.routes(index)
    for ip in result.ips:
        if (
            ip.interface is not None
            and ip.interface < len(result.interfaces)
            and (result.interfaces[ip.interface].name != call.ifname)
        ):
            continue
        if str(ip.address) not in held:
            raise CniError(f"Failed to match addr {ip.address} on interface {call.ifname}")
        subnet = ip.address.network()
        if subnet == ip.address.host() or (subnet.family == 4 and not any(subnet.packed)):
            continue  # the kernel makes no route for an IPv4 /32, nor for 0.0.0.0/0 (fib_add_ifaddr())
        if not any(route.dst == subnet and route.gw is None for route in routes):
            raise CniError(
                f"Failed to find Gateway for {ip.address} on interface {call.ifname}: the route to its subnet is missing"
            )
    call.check_plan([plan_route(call.ifname, route, result.ips) for route in result.routes])


def beyond_the_result(call: Call, conf: BridgeConf, result: Result) -> "list[Op]":
    """What ADD makes that no result names."""
    steps = plan_bridge(conf) + plan_port(call.key, conf, made_mac(call, conf)) + plan_gateway(conf, result)
    if conf.masquerade:
        steps += backends.masquerading(call, [ip.address for ip in result.ips], conf.backend)
    return steps


def made_mac(call: Call, conf: BridgeConf) -> bytes:
    """The MAC that ADD gave the container, as recorded: another version of ours may have derived another one."""
    record = records.load(call.key, call.plugin)
    for op in listed(record, AddVeth):
        return op.container_mac
    return conf.container_mac(call)
