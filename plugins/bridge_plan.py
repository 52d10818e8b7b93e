"""What the bridge plugin decides, by value: configuration and addresses in, operations out."""

from cni_py import ops
from cni_py.addr import Address, int_of, ip_of, ip_text, parse_address
from cni_py.plugins.bridge_conf import BridgeConf
from cni_py.records import Attachment, derived_mac
from cni_py.result import IPConfig, Result, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.engine import Op

CONTAINER = 2  # the container's place in result.interfaces, which firewall and runtimes rely on


def complete(result: Result, conf: BridgeConf) -> None:
    """Fill in what IPAM leaves open: the interface of each address, gateways, default routes."""
    for ip in result.ips:
        ip.interface = CONTAINER
        if conf.gateway and ip.gateway is None:
            network = ip.address.network().packed
            ip.gateway = ip_of(int_of(network) + 1, len(network))
    if not conf.default_gateway:
        return
    for ip in result.ips:
        default = parse_address("0.0.0.0/0" if ip.address.family == 4 else "::/0")
        if not any(route.dst == default and route.gw is not None for route in result.routes):
            result.routes.append(Route(default, ip.gateway))


def plan(key: Attachment, conf: BridgeConf, result: Result, container_mac: bytes) -> "list[Op]":
    """Everything that connects the container to the bridge, in order."""
    veth, ifname = key.host_veth, key.ifname
    steps = plan_port(key, conf, container_mac)
    if result.ips:
        steps += plan_addresses(ifname, conf, result)
        steps += plan_gateway(conf, result)
        if conf.masquerade:
            from cni_py import nftops

            steps += nftops.masquerade([ip.address for ip in result.ips])
    elif not conf.disable_container_interface:
        steps.append(ops.SetContainerUp(ifname=ifname))
    if not conf.disable_container_interface:
        steps.append(ops.WaitForPort(name=veth))
    if result.ips:
        steps.append(ops.AnnounceAddresses(ifname=ifname, mac=container_mac))
    return steps


def plan_port(key: Attachment, conf: BridgeConf, container_mac: bytes) -> "list[Op]":
    """The pair of links, its host end a port of the bridge."""
    veth = key.host_veth
    steps: list[Op] = [
        ops.AddVeth(name=veth, ifname=key.ifname, mtu=conf.mtu, host_mac=key.mac("host"), container_mac=container_mac),
        ops.JoinBridge(name=veth, bridge=conf.bridge, hairpin=conf.hairpin, isolated=conf.isolated),
    ]
    if conf.vlan or conf.trunk:
        steps.append(ops.SetPortVlans(name=veth, vlan=conf.vlan, trunk=conf.trunk, keep_default=conf.keep_default_vlan))
    if conf.mac_spoof_check:
        from cni_py import nftops

        steps += nftops.spoof_check(veth, container_mac)
    return steps


def plan_bridge(conf: BridgeConf) -> "list[Op]":
    """The bridge itself."""
    return [
        ops.EnsureBridge(
            name=conf.bridge,
            mac=bridge_mac(conf.bridge),
            mtu=conf.mtu,
            vlan_filtering=bool(conf.vlan or conf.trunk),
            promisc=conf.promisc,
        )
    ]


def plan_addresses(ifname: str, conf: BridgeConf, result: Result) -> "list[Op]":
    """Addresses and routes inside the container.

    arp_notify and ndisc_notify make the kernel announce the addresses (see AnnounceAddresses), so that nobody keeps sending
    to the container that had them before.
    """
    has_ipv6 = any(ip.address.family == 6 for ip in result.ips)
    steps: list[Op] = []
    if has_ipv6:
        steps += [
            sysctl(f"ipv6/conf/{ifname}/disable_ipv6", "0", optional=False),
            sysctl(f"ipv6/conf/{ifname}/keep_addr_on_down", "1", optional=True),
            sysctl(f"ipv6/conf/{ifname}/accept_dad", "1" if conf.dad else "0"),
            sysctl(f"ipv6/conf/{ifname}/ndisc_notify", "1"),
        ]
        if conf.dad:
            steps.append(sysctl(f"ipv6/conf/{ifname}/enhanced_dad", "1"))
    steps.append(sysctl(f"ipv4/conf/{ifname}/arp_notify", "1"))
    steps += [ops.AddAddress(ifname=ifname, address=str(ip.address), dad=conf.dad) for ip in result.ips]
    steps.append(ops.SetContainerUp(ifname=ifname))
    if has_ipv6 and conf.dad:
        steps.append(ops.WaitForAddresses(ifname=ifname))
    return steps + [plan_route(ifname, route, result.ips) for route in result.routes]


def sysctl(key: str, value: str, *, optional: bool = True) -> ops.SetContainerSysctl:
    """One sysctl of the container."""
    return ops.SetContainerSysctl(key=key, value=value, optional=optional)


def plan_route(ifname: str, route: Route, ips: list[IPConfig]) -> ops.AddRoute:
    """A route of the result; without a gw of its own it goes through the first gateway of its family."""
    gateways = [ip.gateway for ip in ips if ip.gateway is not None and len(ip.gateway) == len(route.dst.packed)]
    gw = route.gw if route.gw is not None else (gateways[0] if gateways else None)
    return ops.AddRoute(
        ifname=ifname,
        dst=str(route.dst),
        gw=ip_text(gw) if gw is not None else "",
        mtu=route.mtu,
        advmss=route.advmss,
        priority=route.priority,
        table=-1 if route.table is None else route.table,
        scope=-1 if route.scope is None else route.scope,
    )


def plan_gateway(conf: BridgeConf, result: Result) -> "list[Op]":
    """The host's side of the network: gateway addresses, forwarding, no memory of earlier owners of the addresses."""
    name = conf.bridge
    steps: list[Op] = []
    if conf.gateway:
        if conf.vlan:
            name = f"{conf.bridge}.{conf.vlan}"
            steps.append(ops.EnsureVlanGateway(bridge=conf.bridge, vlan=conf.vlan))
        for ip in result.ips:
            if ip.gateway is not None:
                gateway = str(Address(ip.gateway, ip.address.prefixlen))
                steps.append(ops.EnsureGatewayAddress(name=name, address=gateway, force=conf.force_address))
        steps += [ops.EnsureForwarding(family=family) for family in sorted({ip.address.family for ip in result.ips})]
    steps += [ops.ForgetNeighbour(name=name, ip=ip_text(ip.address.packed)) for ip in result.ips]
    return steps


def bridge_mac(name: str) -> bytes:
    """The MAC a new bridge gets: fixed from the start, so that it never follows its ports."""
    return derived_mac(f"bridge/{name}")
