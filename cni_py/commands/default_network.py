"""The network that `cni-py install` writes: conf/cni-py.conflist, as far as this host can have it.

IPv6 is switched off        no IPv6 range and route
there are other networks    only when it was asked for, in a file that runtimes read last: they take the first for their own
a subnet is used already    named, and left to the operator
"""

import ipaddress
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from cni_py.addr import Address
from cni_py.errors import CniError
from cni_py.kernel import inet, sysctl
from cni_py.kernel.rtnl import Rtnl
from cni_py.protocol import conflist
from cni_py.protocol.conflist import Network
from cni_py.protocol.gojson import Object

NAME = "cni-py"
BRIDGE = "cni-py0"
FILE = "10-cni-py.conflist"
LAST_FILES = (
    "99-cni-py.conflist",
    "zz-cni-py.conflist",
    "~~~-cni-py.conflist",
)  # beside others: the first that is read last
SUFFIXES = (".conf", ".conflist", ".json")  # what libcni takes for a configuration
RT_TABLE_LOCAL = 255  # linux/rtnetlink.h
DEFAULT_LIKE = (
    4  # bits: shorter prefixes are default routes, whole (0) or in halves (1) as VPNs have them, or IPv6's 2000::/3
)

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


def text(*, ipv6: bool) -> bytes:
    """The configuration list."""
    written = resources.files("cni_py.conf").joinpath("cni-py.conflist").read_bytes()
    if ipv6:
        return written
    network = json.loads(written)
    ipam = network["plugins"][0]["ipam"]
    ipam["ranges"] = [ranges for ranges in ipam["ranges"] if ":" not in ranges[0]["subnet"]]
    ipam["routes"] = [route for route in ipam["routes"] if ":" not in route["dst"]]
    return (json.dumps(network, indent=2) + "\n").encode()


def ipv6_is_on() -> bool:
    """Whether a new interface of this host may have IPv6 addresses."""
    try:
        return all(sysctl.read(f"ipv6/conf/{which}/disable_ipv6") == "0" for which in ("all", "default"))
    except OSError:  # ipv6.disable=1, or no such module
        return False


def files(folder: Path) -> list[Path]:
    """The configurations of a folder, in the order in which runtimes read them."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.is_dir())


def read(paths: list[Path]) -> tuple[list[Network], list[str]]:
    """The networks of files, and what is wrong with the others."""
    found, wrong = [], []
    for path in paths:
        try:
            found.append(conflist.read(path))
        except CniError as error:
            wrong.append(str(error))
    return found, wrong


def place(folder: Path) -> Path:
    """Where to write it: no network that is there may lose its place as the first."""
    others = [path.name for path in files(folder)]
    if not others:
        return folder / FILE
    return folder / next((name for name in LAST_FILES if name > others[-1]), LAST_FILES[-1])


def overlaps(ours: Network, others: list[Network]) -> Iterator[str]:
    """What uses addresses of our network's subnets, in words: another network, or an address or route of the host."""
    used = [*((subnet, f"network {other.name} ({other.source})") for other in others for subnet in subnets(other))]
    for subnet in subnets(ours):
        for taken, whose in (*used, *of_host(bridges(ours))):
            if taken.version == subnet.version and taken.overlaps(subnet):
                yield f"{subnet} of network {ours.name} overlaps with {taken} of {whose}"


def subnets(network: Network) -> list[Subnet]:
    """The subnets that a network's host-local gives addresses of. What is no subnet is the plugin's to refuse."""
    found = []
    for plugin in network.plugins:
        ipam = plugin.get("ipam")
        sets = as_list(ipam.get("ranges")) if isinstance(ipam, Object) else []
        for entry in (ipam, *(entry for ranges in sets for entry in as_list(ranges))):
            stated = entry.get("subnet") if isinstance(entry, Object) else None
            try:
                found.append(ipaddress.ip_network(str(stated or ""), strict=False))
            except ValueError:
                continue
    return found


def as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def bridges(network: Network) -> set[str]:
    """The bridges of a network."""
    names = (plugin.get("bridge") for plugin in network.plugins)
    return {name for name in names if isinstance(name, str)}


def of_host(own: set[str]) -> list[tuple[Subnet, str]]:
    """Subnets of the host's addresses and routes, but for those of our own bridges, with the interface's name."""
    host = Rtnl()
    try:
        names = {link.index: link.name for link in host.links()}
        addresses = [(entry.index, entry.address) for entry in inet.addresses(host)]
        routes = [
            (route.index, route.dst)
            for route in inet.routes(host, table=0)
            if route.table != RT_TABLE_LOCAL and route.dst.prefixlen >= DEFAULT_LIKE
        ]
    except OSError:  # a sandbox without netlink: nothing can be told
        return []
    finally:
        host.close()
    found: dict[tuple[Subnet, str], None] = {}
    for index, address in (*addresses, *routes):
        name = names.get(index, "")
        if name not in own:
            found[subnet_of(address), f"{name}, an interface of this host" if name else "a route of this host"] = None
    return list(found)


def subnet_of(address: Address) -> Subnet:
    return ipaddress.ip_network(str(address), strict=False)
