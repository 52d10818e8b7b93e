"""The result of an ADD for people: addresses, and where published ports answer."""

import ipaddress
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cni_py.addr import Address, ip_text
from cni_py.files import run_dir
from cni_py.kernel import inet
from cni_py.kernel.rtnl import Rtnl
from cni_py.protocol import netconf
from cni_py.protocol.conflist import Network
from cni_py.protocol.gojson import Object
from cni_py.protocol.result import IPConfig, Result

SHOWN_PORTS = 8


def described(network: Network, ifname: str, capability_args: Object, result: Result) -> Iterator[str]:
    """What the container has now, and where its ports answer."""
    own = [ip for ip in result.ips if is_own(result, ip.interface, ifname)]
    for ip in own:
        gateway = f", gateway {ip_text(ip.gateway)}" if ip.gateway is not None else ""
        yield f"  address   {ip.address}{gateway}"
    mappings = result.port_mappings or netconf.objects(capability_args, "portMappings")
    host = None
    if mappings:
        addresses = [entry.address for entry in inet.addresses(Rtnl())]
        host = Host.of(own, addresses, serves_loopback(network), relayed=is_relayed(network))
    for mapping in mappings[:SHOWN_PORTS]:
        assert host is not None
        name = f"{netconf.integer(mapping, 'hostPort')}/{netconf.string(mapping, 'protocol')}"
        yield f"  port      {name} leads to {netconf.integer(mapping, 'containerPort')}; {host.answering(mapping)}"
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


def is_relayed(network: Network) -> bool:
    """Whether portfwd has the published ports, too: it runs, and portmap is not told to leave it alone."""
    portmaps = [plugin for plugin in network.plugins if netconf.string(plugin, "type") == "portmap"]
    asked = all(netconf.string(plugin, "userlandProxy") != "never" for plugin in portmaps)
    return asked and os.path.exists(f"{run_dir()}/portfwd.sock")


@dataclass(frozen=True, slots=True)
class Host:
    """Where the host can be reached, for a container with addresses of `families`."""

    families: set[int]
    addresses: list[Address]  # those that others can use
    towards_containers: list[bytes]
    local: bool  # serves 127.0.0.1
    relayed: bool  # by portfwd, too, which serves [::1] and the family the container lacks

    @classmethod
    def of(cls, ips: Sequence[IPConfig], addresses: Sequence[Address], local: bool, *, relayed: bool = False) -> "Host":
        """From the container's addresses and the host's own."""
        gateways = [ip.gateway for ip in ips if ip.gateway is not None]
        usable = []
        for address in addresses:
            ip = ipaddress.ip_address(address.packed)
            if not (ip.is_loopback or ip.is_link_local or address.packed in gateways):
                usable.append(address)
        families = {ip.address.family for ip in ips}
        if families and relayed:
            families |= {address.family for address in addresses}  # an IPv6 listener takes a host that has IPv6
        return cls(families, usable, gateways, local or relayed, relayed)

    def answering(self, mapping: Object) -> str:
        """Where a published port can be reached, in words."""
        port = netconf.integer(mapping, "hostPort")
        text = netconf.string(mapping, "hostIP")
        bound = ipaddress.ip_address(text) if text else None
        families = self.families & {bound.version} if bound is not None else self.families
        if bound is not None and not bound.is_unspecified:
            why = self.unreachable(bound)
            alone = ", on this host alone" if bound.is_loopback else ""
            return f"answers nowhere: {why}" if why else f"answers at {endpoint(bound.packed, port)}{alone}"
        where = [endpoint(address.packed, port) for address in self.addresses if address.family in families]
        if 4 in families and self.local:
            where.append(f"{endpoint(bytes((127, 0, 0, 1)), port)} on this host")
        if 6 in families and self.relayed:
            where.append(f"{endpoint(bytes(15) + bytes((1,)), port)} on this host")
        return f"answers at {', '.join(where)}" if where else "answers nowhere: no address that it could"

    def unreachable(self, bound: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
        """Why nothing answers at a specific address; "" when something does."""
        if bound.version not in self.families:
            return "the container has no address of that family"
        if bound.is_loopback and bound.version == 6:
            return "" if self.relayed else "NAT cannot serve [::1]; portfwd does where it runs"
        if bound.is_loopback:
            return "" if self.local else "portmap has snat turned off"
        held = [address.packed for address in self.addresses]
        return "" if bound.packed in (*held, *self.towards_containers) else f"the host has no address {bound}"


def endpoint(ip: bytes, port: int) -> str:
    """ADDRESS:PORT."""
    return f"{ip_text(ip)}:{port}" if len(ip) == 4 else f"[{ip_text(ip)}]:{port}"
