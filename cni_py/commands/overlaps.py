"""Subnets that somebody else has already: an interface or a route of the host, or another network of the folder."""

import ipaddress
from collections.abc import Iterable, Sequence
from pathlib import Path

from cni_py.addr import Address
from cni_py.errors import CniError
from cni_py.kernel import inet
from cni_py.kernel.rtnl import Link, Rtnl
from cni_py.protocol import conflist, netconf
from cni_py.protocol.conflist import Network
from cni_py.protocol.gojson import Object

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
OWN_SUBNET = ("bridge", "ptp")  # plugins whose subnet is the host's own; macvlan's is that of the network it joins
SHORTEST = 4  # prefix length of a route that says something about a subnet: VPNs replace the default route by two of /1


def of_network(network: Network, conf_dir: str | Path) -> list[str]:
    """The sentences for a network's own subnets, of which one bridge of the host's is the network's itself."""
    own = {netconf.string(plugin, "bridge", "cni0") for plugin in network.plugins if plugin.get("type") == "bridge"}
    return overlaps(subnets_of(network), conf_dir, network.name, own)


def overlaps(
    subnets: Iterable[Subnet], conf_dir: str | Path, exclude: str = "", own_links: Iterable[str] = ()
) -> list[str]:
    """A sentence for each thing of the host, or other network in `conf_dir`, that overlaps with one of the subnets.

    `exclude`: the network that the subnets are of; `own_links`: its interfaces on the host, such as its bridge.
    """
    wanted = list(subnets)
    if not wanted:
        return []
    held = [*of_host(own_links), *of_others(conf_dir, exclude)]
    found = []
    for one in wanted:
        for other, what in held:
            if one.version == other.version and one.overlaps(other):
                found.append(
                    f"the subnet {one} overlaps with {other}, which {what}: one of the two will not be reached"
                )
    return list(dict.fromkeys(found))


def of_host(own_links: Iterable[str] = ()) -> list[tuple[Subnet, str]]:
    """What the host's addresses and routes lead to, and whose it is. Container interfaces of ours are left out."""
    side = Rtnl()
    links = {link.index: link for link in side.links()}
    skipped = set(own_links)
    found: list[tuple[Subnet, str]] = []
    for entry in inet.addresses(side):
        link = links.get(entry.index)
        if link is None or is_ours(link.name, link.alias, skipped) or is_peer(link, entry.address):
            continue
        subnet = ipaddress.ip_network(str(entry.address), strict=False)
        if not (subnet.is_loopback or subnet.is_link_local):
            found.append((subnet, f"interface {link.name} of the host has"))
    for family in (4, 6):
        for route in inet.routes(side, 0, family):
            link = links.get(route.index)
            if route.dst.prefixlen < SHORTEST or link is None or is_ours(link.name, link.alias, skipped):
                continue
            if is_peer(link, route.dst):
                continue
            subnet = ipaddress.ip_network(str(route.dst), strict=False)
            if subnet.is_link_local or subnet.is_multicast or subnet.is_loopback:
                continue
            if subnet not in [known for known, _ in found]:
                found.append((subnet, f"the host has a route to through {link.name}"))
    return found


def is_ours(name: str, alias: str, own: set[str]) -> bool:
    """Whether a link is the network's own bridge (or its VLAN's), or belongs to an attachment."""
    hexdigits, _, label = alias.partition(" ")
    attached = len(hexdigits) == 16 and label.count("/") == 2
    return attached or name in own or name.rpartition(".")[0] in own


def is_peer(link: Link, address: Address) -> bool:
    """Whether it is the host's end of a container's pair, with an address and a route of their own each (ptp)."""
    return link.kind == "veth" and address.prefixlen == 8 * len(address.packed)


def of_others(conf_dir: str | Path, exclude: str) -> list[tuple[Subnet, str]]:
    """The subnets of the other networks in the folder; a file that cannot be read has none."""
    found: list[tuple[Subnet, str]] = []
    for file in conflist.files(conf_dir):
        try:
            network = conflist.read(file)
        except CniError:
            continue
        if network.name != exclude:
            found += [(subnet, f"network {network.name} has ({file})") for subnet in subnets_of(network)]
    return found


def subnets_of(network: Network) -> list[Subnet]:
    """The subnets that host-local gives addresses from, in the order of the configuration."""
    found = []
    for plugin in network.plugins:
        if plugin.get("type") not in OWN_SUBNET:
            continue
        try:
            ipam = netconf.child(plugin, "ipam") or Object()
            texts = [netconf.string(entry, "subnet") for entry in _ranges(ipam)]
        except CniError:
            continue  # of a wrong type: the plugin says so
        for text in filter(None, texts):
            try:
                found.append(ipaddress.ip_network(text, strict=False))
            except ValueError:
                continue
    return list(dict.fromkeys(found))


def _ranges(ipam: Object) -> Sequence[Object]:
    if netconf.string(ipam, "type") != "host-local":
        return []
    sets = [netconf.as_objects(group, "ranges") for group in netconf.values(ipam, "ranges") or ()]
    return [ipam, *(entry for group in sets for entry in group)]
