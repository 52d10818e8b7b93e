"""The result of an ADD for people: addresses, and where published ports answer."""

import ipaddress
from collections.abc import Iterator

from cni_py import netconf
from cni_py.addr import Address, ip_text
from cni_py.conflist import Network
from cni_py.jsontext import Object
from cni_py.kernel.rtnl import Rtnl
from cni_py.result import Result

SHOWN_PORTS = 8


def described(network: Network, ifname: str, capability_args: Object, result: Result) -> Iterator[str]:
    """What the container has now, and where its ports answer."""
    own = [ip for ip in result.ips if is_own(result, ip.interface, ifname)]
    for ip in own:
        gateway = f", gateway {ip_text(ip.gateway)}" if ip.gateway is not None else ""
        yield f"  address   {ip.address}{gateway}"
    mappings = netconf.objects(capability_args, "portMappings")
    families = {ip.address.family for ip in own}
    local = serves_loopback(network)
    host = host_addresses({ip.gateway for ip in own}) if mappings else []
    for mapping in mappings[:SHOWN_PORTS]:
        name = f"{netconf.integer(mapping, 'hostPort')}/{netconf.string(mapping, 'protocol')}"
        yield f"  port      {name} leads to {netconf.integer(mapping, 'containerPort')}; {answering(mapping, families, host, local)}"
    if len(mappings) > SHOWN_PORTS:
        yield f"            and {len(mappings) - SHOWN_PORTS} ports more"


def is_own(result: Result, interface: int | None, ifname: str) -> bool:
    """Whether an address is on the container's interface."""
    if interface is None or not 0 <= interface < len(result.interfaces):
        return True
    return bool(result.interfaces[interface].sandbox) and result.interfaces[interface].name in (ifname, "lo")


def serves_loopback(network: Network) -> bool:
    """Whether a port answers at 127.0.0.1: the answer must come back through the host, which takes source NAT."""
    portmaps = [plugin for plugin in network.plugins if netconf.string(plugin, "type") == "portmap"]
    return all(netconf.boolean(plugin, "snat", True) for plugin in portmaps)


def host_addresses(gateways: set[bytes | None]) -> list[Address]:
    """The host's addresses that others can use, but for those towards these containers."""
    found = [entry.address for entry in Rtnl().addresses()]
    usable = []
    for address in found:
        ip = ipaddress.ip_address(address.packed)
        if not (ip.is_loopback or ip.is_link_local or address.packed in gateways):
            usable.append(address)
    return usable


def answering(mapping: Object, families: set[int], host: list[Address], local: bool) -> str:
    """Where a published port can be reached, in words."""
    port = netconf.integer(mapping, "hostPort")
    text = netconf.string(mapping, "hostIP")
    bound = ipaddress.ip_address(text) if text else None
    if bound is not None:
        families = families & {bound.version}
    if bound is not None and not bound.is_unspecified:
        if not families:
            return "answers nowhere: the container has no address of that family"
        if bound.is_loopback and (bound.version == 6 or not local):
            return "answers nowhere: " + ("NAT cannot serve [::1]" if local else "portmap has snat turned off")
        return f"answers at {endpoint(bound.packed, port)}" + (", on this host alone" if bound.is_loopback else "")
    where = [endpoint(address.packed, port) for address in host if address.family in families]
    if 4 in families and local:
        where.append(f"{endpoint(bytes((127, 0, 0, 1)), port)} on this host")
    return f"answers at {', '.join(where)}" if where else "answers nowhere: no address that it could"


def endpoint(ip: bytes, port: int) -> str:
    """ADDRESS:PORT."""
    return f"{ip_text(ip)}:{port}" if len(ip) == 4 else f"[{ip_text(ip)}]:{port}"
