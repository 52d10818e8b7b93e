"""A host's model with the look-ups that the walk needs: names for people, who has an address, what publishes a port. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from shlex import quote

from cni_py.explain.promises import recorded
from cni_py.explain.routing import ANY, family_of, network, parsed
from cni_py.host.model import Attachment, Host, Link, Namespace, Port

UPPER = {"macvlan", "macvtap", "ipvlan", "ipvtap", "vlan"}
RUN_NETNS = ("/run/netns/", "/var/run/netns/")


@dataclass(frozen=True, slots=True)
class Place:
    """An interface of a namespace."""

    namespace: Namespace
    link: Link


class World:
    """A host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.root = host.root

    @cached_property
    def _spaces(self) -> dict[str, Namespace]:
        return {one.key: one for one in reversed(self.host.namespaces)}

    @cached_property
    def _links(self) -> dict[tuple[str, str], Link]:
        return {(one.key, link.name): link for one in self.host.namespaces for link in one.links}

    @cached_property
    def _by_index(self) -> dict[tuple[str, int], Link]:
        return {(one.key, link.index): link for one in self.host.namespaces for link in one.links}

    @cached_property
    def _having(self) -> dict[str, list[Place]]:
        found: dict[str, list[Place]] = {}
        for namespace in self.host.namespaces:
            for link in namespace.links:
                for one in link.addresses:
                    found.setdefault(one.address, []).append(Place(namespace, link))
        return found

    @cached_property
    def _sysctls(self) -> dict[str, dict[str, str]]:
        return {one.key: dict(one.sysctls) for one in self.host.namespaces}

    @cached_property
    def _attachments(self) -> dict[str, list[Attachment]]:
        found: dict[str, list[Attachment]] = {}
        for one in self.host.attachments:
            if one.namespace:
                found.setdefault(one.namespace, []).append(one)
        return found

    def is_host(self, namespace: Namespace) -> bool:
        return namespace.key == self.root.key

    def namespace(self, key: str) -> Namespace | None:
        return self._spaces.get(key)

    def link(self, namespace: Namespace, name: str) -> Link | None:
        return self._links.get((namespace.key, name))

    def peer(self, namespace: Namespace, link: Link) -> Place | None:
        """The other end of a veth pair, if it is in the model."""
        space = self._spaces.get(link.peer_namespace) if link.kind == "veth" else None
        other = self._by_index.get((space.key, link.peer_index)) if space else None
        return Place(space, other) if space and other else None

    def has_upper(self, namespace: Namespace, link: Link) -> bool:
        """Whether interfaces of the kind macvlan and the like are on the link: on its LAN, beside the host."""
        return (namespace.key, link.index) in self._parents

    @cached_property
    def _parents(self) -> set[tuple[str, int]]:
        found = [link for one in self.host.namespaces for link in one.links if link.kind in UPPER]
        return {(link.peer_namespace, link.peer_index) for link in found}

    def having(self, address: str) -> list[Place]:
        """The interfaces that have an address; loopback addresses are nobody's."""
        return [] if parsed(address).is_loopback else self._having.get(address, [])

    def ports_of(self, namespace: Namespace, bridge: str) -> list[Link]:
        return [link for link in namespace.links if link.master == bridge]

    def sysctl(self, namespace: Namespace, name: str) -> str | None:
        """None if it was not read, or does not exist."""
        return self._sysctls[namespace.key].get(name)

    def setting(self, namespace: Namespace, family: int, link: str, key: str) -> str | None:
        """net.ipvN.conf.LINK.KEY."""
        dotted = link.replace(".", "/")  # as sysctl(8) writes the names of links
        return self.sysctl(namespace, f"net.ipv{family}.conf.{dotted}.{key}")

    def maximum(self, namespace: Namespace, link: str, key: str) -> int:
        """The larger one of net.ipv4.conf.{all,LINK}.KEY (IN_DEV_MAXCONF, IN_DEV_ORCONF); 0 if neither was read."""
        values = (self.setting(namespace, 4, name, key) for name in ("all", link))
        return max((int(value) for value in values if value and value.isdigit()), default=0)

    # Names for people

    def attachments(self, namespace: Namespace) -> list[Attachment]:
        return self._attachments.get(namespace.key, [])

    def container_id(self, namespace: Namespace) -> str:
        """The id of the container whose namespace it is; "" if nobody says."""
        known = [one.container_id for one in self.attachments(namespace)]
        pids = {process.pid for process in namespace.processes}
        known += [one.id for one in self.host.containers if one.pid and one.pid in pids]
        known += [process.container_id for process in namespace.processes if process.container_id]
        return known[0] if known else ""

    def name_of(self, container_id: str) -> str:
        """The name that a runtime has for a container; else its id, the first 12 characters of a long one."""
        for one in self.host.containers:
            if one.id == container_id and one.name:
                return one.name
        return container_id[:12] if len(container_id) >= 32 else container_id

    def label(self, namespace: Namespace) -> str:
        """ "this host", "container web", "namespace /run/netns/x"."""
        if self.is_host(namespace):
            return "this host"
        container_id = self.container_id(namespace)
        if container_id:
            return f"container {self.name_of(container_id)}"
        if namespace.names:
            return f"namespace {os.path.basename(namespace.names[0])}"
        if namespace.processes:
            first = namespace.processes[0]
            return f"namespace of {first.name} ({first.pid})"
        return f"namespace {namespace.key}"

    def at(self, namespace: Namespace) -> str:
        """The prefix of a command that is to run in the namespace; "" for this host's."""
        if self.is_host(namespace):
            return ""
        for name in namespace.names:
            for folder in RUN_NETNS:
                if name.startswith(folder):
                    return f"ip netns exec {quote(name.removeprefix(folder))} "
        if namespace.names:
            return f"nsenter --net={quote(namespace.names[0])} "
        if namespace.processes:
            return f"nsenter --net=/proc/{namespace.processes[0].pid}/ns/net "
        return ""

    # Publication

    @cached_property
    def _ports(self) -> list[Port]:
        return [*self.host.ports, *recorded(self.host.attachments, self.host.ports)]

    def publications(self, protocol: str, port: int) -> list[Port]:
        """What publishes a port of this host, on whatever address."""
        return [one for one in self._ports if one.protocol == protocol and one.first <= port <= one.last]

    def gaps(self, word: str) -> list[str]:
        """Sentences on what could not be looked at, of those that contain the word."""
        return [one.what for one in self.host.gaps if word in f"{one.subject} {one.what}".lower()]

    def container_links(self) -> Iterator[str]:
        """The names of the host's links that lead to containers: bridges with container ports, and ends of veth pairs."""
        known = {name for one in self.host.attachments for name in (*one.host_links, one.bridge)}
        for link in self.root.links:
            place = self.peer(self.root, link)
            leads = place is not None and bool(self.container_id(place.namespace))
            if link.name in known or leads or link.source not in ("", "other"):
                yield link.name
                if link.master and link.kind == "veth":
                    yield link.master


def serves(port: Port, address: str) -> bool:
    """Whether a publication is one for this address of the host."""
    return port.host_address == address or port.host_address == ANY[family_of(address)]


def target_of(port: Port, number: int) -> tuple[str, int]:
    """Where host port `number` leads: address ("" if a relay enters the namespace) and port."""
    return port.target, port.target_port + number - port.first


def allowed(port: Port, client: str) -> bool:
    """Whether the list of allowed clients has the address. An empty list has all."""
    networks = [network(one) for one in port.allow]
    return not networks or any(parsed(client) in one for one in networks)


def with_port(address: str, port: int) -> str:
    """192.0.2.1:80, [2001:db8::1]:80; the address alone without a port."""
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
