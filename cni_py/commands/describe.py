"""The result of an ADD in words: the addresses, and where the published ports can be reached."""

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
    """A line for each address of the interface and for each published port (SHOWN_PORTS at most)."""
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
        yield f"            and {len(mappings) - SHOWN_PORTS} more ports"


def is_own(result: Result, interface: int | None, ifname: str) -> bool:
    """Whether the address with this index of `interface` is on the container's interface; lo is that of the loopback plugin."""
    if interface is None or not 0 <= interface < len(result.interfaces):
        return True
    return bool(result.interfaces[interface].sandbox) and result.interfaces[interface].name in (ifname, "lo")


def serves_loopback(network: Network) -> bool:
    """Whether NAT serves ports at 127.0.0.1: it needs source NAT, or the answers do not come back through the host."""
    portmaps = [plugin for plugin in network.members if netconf.string(plugin, "type") == "portmap"]
    return all(netconf.boolean(plugin, "snat", True) for plugin in portmaps)


def is_relayed(network: Network) -> bool:
    """Whether portfwd relays the published ports, too: its socket exists, and no portmap has userlandProxy "never"."""
    portmaps = [plugin for plugin in network.members if netconf.string(plugin, "type") == "portmap"]
    asked = all(netconf.string(plugin, "userlandProxy") != "never" for plugin in portmaps)
    return asked and os.path.exists(f"{run_dir()}/portfwd.sock")


@dataclass(frozen=True, slots=True)
class Host:
    """At which addresses the host can be reached, for a container with addresses of `families`."""

    families: set[int]
    addresses: list[Address]  # those that other machines can use
    towards_containers: list[bytes]  # the gateways
    local: bool  # 127.0.0.1 is served
    relayed: bool  # portfwd serves [::1] and the family that the container does not have

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
            families |= {address.family for address in addresses}  # portfwd listens in each family that the host has
        return cls(families, usable, gateways, local or relayed, relayed)

    def answering(self, mapping: Object) -> str:
        """Where a published port can be reached, in words: "answers at ADDRESS:PORT, ..."."""
        port = netconf.integer(mapping, "hostPort")
        text = netconf.string(mapping, "hostIP")
        bound = ipaddress.ip_address(text) if text else None
        families = self.families & {bound.version} if bound is not None else self.families
        if bound is not None and not bound.is_unspecified:
            why = self.unreachable(bound)
            alone = ", only on this host" if bound.is_loopback else ""
            return f"answers nowhere: {why}" if why else f"answers at {endpoint(bound.packed, port)}{alone}"
        where = [endpoint(address.packed, port) for address in self.addresses if address.family in families]
        if 4 in families and self.local:
            where.append(f"{endpoint(bytes((127, 0, 0, 1)), port)} on this host")
        if 6 in families and self.relayed:
            where.append(f"{endpoint(bytes(15) + bytes((1,)), port)} on this host")
        return (
            f"answers at {', '.join(where)}"
            if where
            else "answers nowhere: host and container have no address family in common"
        )

    def unreachable(self, bound: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
        """Why nothing answers at a specific address; "" if something does."""
        if bound.version not in self.families:
            return "the container has no address of that family"
        if bound.is_loopback and bound.version == 6:
            return "" if self.relayed else "NAT cannot serve [::1]; start portfwd, which can"
        if bound.is_loopback:
            return "" if self.local else "portmap has snat: false"
        held = [address.packed for address in self.addresses]
        return "" if bound.packed in (*held, *self.towards_containers) else f"the host has no address {bound}"


def endpoint(ip: bytes, port: int) -> str:
    """ADDRESS:PORT, or [ADDRESS]:PORT for IPv6."""
    return f"{ip_text(ip)}:{port}" if len(ip) == 4 else f"[{ip_text(ip)}]:{port}"
