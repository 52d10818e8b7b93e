"""The plan of the bridge plugin: configuration and addresses in, operations out. Pure, but for the MAC of a new bridge.

In the order of ADD:

    plan_bridge     the bridge, before IPAM is asked
    complete        gateways and default routes that IPAM leaves open
    plan            all the rest:
      plan_port         the veth pair, a port of the bridge; before IPAM is asked, where that needs the interface
      (interface/addressing.py: addresses and routes of the container)
      plan_gateway      the host's side: gateway address, forwarding
      (plugins/backends.py: ipMasq)
"""

from cni_py.addr import Address, int_of, ip_of, ip_text, parse_address
from cni_py.attachment.naming import Attachment, derived_mac, vlan_gateway_name
from cni_py.errors import InvalidNetworkConfig
from cni_py.interface import bridge, common
from cni_py.interface.addressing import plan_addresses, plan_route
from cni_py.plugins import backends
from cni_py.plugins.bridge_conf import BridgeConf
from cni_py.protocol.result import Result, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op

CONTAINER = 2  # index of the container's end in result.interfaces; the Go plugins have it there, too


def complete(result: Result, conf: BridgeConf) -> None:
    """Fill in what IPAM leaves open in `result`: the interface of each address, gateways, default routes.

    InvalidNetworkConfig for a gateway of the other family than its address.
    """
    for ip in result.ips:
        ip.interface = CONTAINER
        if conf.gateway and ip.gateway is None:
            ip.gateway = first_address(ip.address)
        if conf.gateway and ip.gateway is not None and len(ip.gateway) != len(ip.address.packed):
            raise InvalidNetworkConfig(
                f"the gateway {ip_text(ip.gateway)} of {ip.address} is of the other family",
                "ipam needs a gateway of the address's own, or none: then the bridge takes the first one of the subnet",
            )
    if not conf.default_gateway:
        return
    for ip in result.ips:
        default = parse_address("0.0.0.0/0" if ip.address.family == 4 else "::/0")
        if not any(route.dst == default and route.gw is not None for route in result.routes):
            result.routes.append(Route(default, ip.gateway))


def first_address(address: Address) -> bytes | None:
    """The gateway where IPAM names none: the subnet's first address after its own; in a /31 or /127 the other address.

    None for the last address of the family, after which there is no other.
    """
    network = address.network().packed
    if address.prefixlen == 8 * len(network) - 1:
        return ip_of(int_of(address.packed) ^ 1, len(network))
    return ip_of(int_of(network) + 1, len(network)) if network.strip(b"\xff") else None


def plan(key: Attachment, conf: BridgeConf, result: Result, container_mac: bytes) -> "list[Op]":
    """The operations that connect the container to the bridge, in order."""
    return plan_port(key, conf, container_mac) + plan_rest(key, conf, result, container_mac)


def plan_up(key: Attachment) -> "list[Op]":
    """An interface that carries packets, though it has no address yet: IPAM asks for one by it."""
    return [common.SetContainerUp(ifname=key.ifname), bridge.WaitForPort(name=key.host_veth)]


def plan_rest(key: Attachment, conf: BridgeConf, result: Result, container_mac: bytes) -> "list[Op]":
    """What comes after the port."""
    veth, ifname = key.host_veth, key.ifname
    if conf.disable_container_interface:
        return []  # the interface stays down, without addresses (see BridgeConf.check_add), and so does the port
    if not result.ips:
        return plan_up(key)
    steps = plan_addresses(ifname, result.ips, dad=conf.dad, announce=True)
    steps += [plan_route(ifname, route, result.ips) for route in result.routes]
    steps += plan_gateway(conf, result)
    if conf.masquerade:
        steps += backends.masquerade([ip.address for ip in result.ips], conf.backend)
    return [*steps, bridge.WaitForPort(name=veth), common.AnnounceAddresses(ifname=ifname, mac=container_mac)]


def plan_port(key: Attachment, conf: BridgeConf, container_mac: bytes) -> "list[Op]":
    """The veth pair, the host's end a port of the bridge."""
    veth = key.host_veth
    steps: list[Op] = [
        common.AddVeth(
            name=veth, ifname=key.ifname, mtu=conf.mtu, host_mac=key.mac("host"), container_mac=container_mac
        ),
        bridge.JoinBridge(name=veth, bridge=conf.bridge, hairpin=conf.hairpin, isolated=conf.isolated),
    ]
    if conf.vlan or conf.trunk:
        steps.append(
            bridge.SetPortVlans(name=veth, vlan=conf.vlan, trunk=conf.trunk, keep_default=conf.keep_default_vlan)
        )
    if conf.mac_spoof_check:
        from cni_py.nftables import spoof_check

        steps += spoof_check.spoof_check(veth, container_mac)
    return steps


def plan_bridge(conf: BridgeConf) -> "list[Op]":
    """The operation that makes the bridge, or finds it."""
    return [
        bridge.EnsureBridge(
            name=conf.bridge,
            mac=bridge_mac(conf.bridge),
            mtu=conf.mtu,
            vlan_filtering=bool(conf.vlan or conf.trunk),
            promisc=conf.promisc,
        )
    ]


def plan_gateway(conf: BridgeConf, result: Result) -> "list[Op]":
    """The host's side: gateway addresses, forwarding, and no neighbour entries of earlier owners of the addresses."""
    name = conf.bridge
    steps: list[Op] = []
    if conf.gateway and conf.vlan:
        from cni_py.interface import vlan_gateway

        name = vlan_gateway_name(conf.bridge, conf.vlan)
        steps.append(vlan_gateway.EnsureVlanGateway(bridge=conf.bridge, vlan=conf.vlan))
    if conf.gateway:
        gateways = [Address(ip.gateway, ip.address.prefixlen) for ip in result.ips if ip.gateway is not None]
        beside = list(dict.fromkeys(str(gateway) for gateway in [*gateways, *conf.range_gateways()]))
        steps += [
            bridge.EnsureGatewayAddress(name=name, address=str(gateway), beside=beside, force=conf.force_address)
            for gateway in gateways
        ]
        steps += [
            bridge.EnsureSubnetRoute(name=name, subnet=str(ip.address.network()))
            for ip in result.ips
            if ip.gateway is not None and bridge.is_link_local(Address(ip.gateway, 0))
        ]
        steps += [common.EnsureForwarding(family=family) for family in sorted({ip.address.family for ip in result.ips})]
    steps += [common.ForgetNeighbour(name=name, ip=ip_text(ip.address.packed)) for ip in result.ips]
    return steps


def bridge_mac(name: str) -> bytes:
    """The MAC of a new bridge. It has one from the start, since a bridge without takes the lowest of its ports."""
    return derived_mac(f"bridge/{name}")
