"""The topology of a lab in YAML: segments, and nodes with interfaces, routes, sysctls and services.

    segments: [lan]                          an Ethernet each
    nodes:
      host:
        role: host | client | router | container
        interfaces: {lan0: {segment: lan, addresses: [198.51.100.1/24], mac: 02:00:00:00:00:01, mtu: 1500}}
        routes: [{dst: 0.0.0.0/0, gw: 198.51.100.254}]
        sysctls: {net.ipv4.ip_forward: 1}
        services: [{port: 80, protocol: tcp}]

There is one host at most; containers are namespaces it sees below its /run/netns. Addresses are of the documentation
ranges (RFC 5737, RFC 3849), so that nothing in a lab can be taken for something real.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTATION = [
    ipaddress.ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]
ROLES = ("host", "client", "router", "container")


class TopologyError(ValueError):
    """The file is not a topology, or one that cannot be built."""


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    segment: str
    addresses: tuple[str, ...]  # with prefix length
    mac: str = ""
    mtu: int = 1500  # bytes

    def __post_init__(self) -> None:
        for text in self.addresses:
            address = ipaddress.ip_interface(text).ip
            if not any(address in network for network in DOCUMENTATION if network.version == address.version):
                raise TopologyError(f"{text} on {self.name} is not in a documentation range")


@dataclass(frozen=True, slots=True)
class Route:
    dst: str
    gw: str


@dataclass(frozen=True, slots=True)
class Service:
    port: int
    protocol: str = "tcp"
    address: str = ""  # every address


@dataclass(frozen=True, slots=True)
class NodeSpec:
    name: str
    role: str
    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    services: tuple[Service, ...] = ()


@dataclass(frozen=True, slots=True)
class Topology:
    segments: tuple[str, ...]
    nodes: tuple[NodeSpec, ...]

    @classmethod
    def read(cls, path: Path) -> Topology:
        return cls.parse(path.read_text(encoding="utf-8"))

    @classmethod
    def parse(cls, text: str) -> Topology:
        try:
            document = yaml.safe_load(text)
            nodes = tuple(node_spec(name, body) for name, body in document["nodes"].items())
            topology = cls(tuple(document.get("segments", ())), nodes)
        except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise TopologyError(f"not a topology: {error!r}") from error
        topology.check()
        return topology

    def check(self) -> None:
        """TopologyError for an unknown role or segment, or a second host."""
        for node in self.nodes:
            if node.role not in ROLES:
                raise TopologyError(f"{node.name}: unknown role {node.role!r}; the roles are {', '.join(ROLES)}")
            for interface in node.interfaces:
                if interface.segment not in self.segments:
                    raise TopologyError(f"{node.name}/{interface.name}: unknown segment {interface.segment!r}")
        if sum(node.role == "host" for node in self.nodes) > 1:
            raise TopologyError("more than one host")

    def ends(self, segment: str) -> list[tuple[str, Interface]]:
        """The interfaces on a segment, each with the name of its node."""
        return [(node.name, end) for node in self.nodes for end in node.interfaces if end.segment == segment]


def node_spec(name: str, body: dict[str, object]) -> NodeSpec:
    return NodeSpec(
        name,
        str(body["role"]),
        tuple(interface(ifname, options) for ifname, options in mapping(name, body, "interfaces").items()),
        tuple(Route(str(row["dst"]), str(row["gw"])) for row in rows(name, body, "routes")),
        {key: str(value) for key, value in mapping(name, body, "sysctls").items()},
        tuple(service(row) for row in rows(name, body, "services")),
    )


def interface(ifname: str, options: dict[str, Any]) -> Interface:
    addresses = tuple(options.get("addresses", ()))
    return Interface(ifname, options["segment"], addresses, options.get("mac", ""), options.get("mtu", 1500))


def service(row: dict[str, Any]) -> Service:
    return Service(int(row["port"]), row.get("protocol", "tcp"), row.get("address", ""))


def rows(name: str, body: dict[str, object], key: str) -> list[dict[str, Any]]:
    found = body.get(key, [])
    if not isinstance(found, list):
        raise TopologyError(f"{name}: {key} is not a list")
    return found


def mapping(name: str, body: dict[str, object], key: str) -> dict[str, Any]:
    found = body.get(key, {})
    if not isinstance(found, dict):
        raise TopologyError(f"{name}: {key} is not a mapping")
    return found
