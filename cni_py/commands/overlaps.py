"""Subnets of a network that something else uses already: an interface or a route of this host, or another network."""

import ipaddress
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from cni_py.addr import Address
from cni_py.errors import CniError
from cni_py.kernel import inet
from cni_py.kernel.rtnl import Link, Rtnl
from cni_py.protocol import conflist, netconf
from cni_py.protocol.conflist import Network
from cni_py.protocol.gojson import Object

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
ON_THE_HOST = ("bridge", "ptp")  # plugins whose subnet exists on this host alone; macvlan's is that of the LAN it joins
RT_TABLE_LOCAL = 255  # linux/rtnetlink.h: the host's own addresses, which are looked at as addresses
SHORTEST = 4  # prefix length; shorter are default routes: /0, two halves of /1 as VPNs have them, IPv6's 2000::/3


def of_network(network: Network, conf_dir: str | Path) -> list[str]:
    """A sentence for each overlap of a subnet of `network` with one of the host or of another network in `conf_dir`.

    The network's own bridge may have the subnet's addresses and routes.
    """
    subnets = [one for plugin in network.members if plugin.get("type") in ON_THE_HOST for one in subnets_of(plugin)]
    if not subnets:
        return []
    used = [*of_host(bridges(network)), *of_others(conf_dir, network.name)]
    found = (
        f"subnet {one} of network {network.name} overlaps with {other} of {owner}"
        for one in subnets
        for other, owner in used
        if one.version == other.version and one.overlaps(other)
    )
    return list(dict.fromkeys(found))


def of_host(own: set[str]) -> list[tuple[Subnet, str]]:
    """The subnets of the host's addresses and routes, each with its owner in words.

    Left out: interfaces in `own`, interfaces of attachments, default routes. Empty where netlink is refused (a sandbox).
    """
    try:
        with closing(Rtnl()) as host:
            links = {link.index: link for link in host.links()}
            entries = [(entry.index, entry.address, False) for entry in inet.addresses(host)]
            entries += [(one.index, one.dst, True) for one in inet.routes(host, table=0) if one.table != RT_TABLE_LOCAL]
    except OSError:
        return []
    found: dict[Subnet, str] = {}
    for index, address, is_route in entries:
        link = links.get(index)  # None: a route without an interface (unreachable, blackhole)
        subnet = ipaddress.ip_network(str(address), strict=False)
        if (
            subnet.is_loopback
            or subnet.is_link_local
            or subnet.is_multicast
            or (is_route and subnet.prefixlen < SHORTEST)
        ):
            continue
        if link is None:
            found.setdefault(subnet, "a route of this host")
        elif not (is_ours(link.name, link.alias, own) or is_peer(link, address)):
            found.setdefault(subnet, f"{link.name}, an interface of this host")
    return list(found.items())


def is_ours(name: str, alias: str, own: set[str]) -> bool:
    """Whether a link is the network's own bridge (or a VLAN of it), or belongs to an attachment, as its alias shows."""
    hexdigits, _, label = alias.partition(" ")
    attached = len(hexdigits) == 16 and label.count("/") == 2
    return attached or name in own or name.rpartition(".")[0] in own


def is_peer(link: Link, address: Address) -> bool:
    """Whether it is the host's end of a container's pair, with an address and a route of their own each (ptp)."""
    return link.kind == "veth" and address.prefixlen == 8 * len(address.packed)


def of_others(conf_dir: str | Path, exclude: str) -> list[tuple[Subnet, str]]:
    """The subnets of all networks in the folder but `exclude`; a file that cannot be read has none."""
    found: list[tuple[Subnet, str]] = []
    for file in conflist.files(conf_dir):
        try:
            network = conflist.read(file)
        except CniError:
            continue
        if network.name != exclude:
            owner = f"network {network.name} ({file})"
            found += [(subnet, owner) for plugin in network.members for subnet in subnets_of(plugin)]
    return found


def bridges(network: Network) -> set[str]:
    """The names of a network's bridges."""
    names = (plugin.get("bridge", "cni0") for plugin in network.members if plugin.get("type") == "bridge")
    return {name for name in names if isinstance(name, str)}


def subnets_of(plugin: Object) -> list[Subnet]:
    """The subnets that a plugin's host-local gives addresses from. The plugin itself refuses what is no subnet."""
    try:
        ipam = netconf.child(plugin, "ipam") or Object()
        texts = [netconf.string(entry, "subnet") for entry in _ranges(ipam)]
    except CniError:
        return []
    found = []
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
