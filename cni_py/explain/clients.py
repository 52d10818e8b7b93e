"""The kinds of clients of a port, and where their first packet begins. Pure.

lan         another machine, by the address that this host has on its LAN
host        a program of this host, by the same address
loopback    a program of this host, by 127.0.0.1 or [::1]
neighbour   a container on the published one's bridge
other-bridge  a container on another bridge
itself      the published container
address     any other address: `--from ADDRESS`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cni_py.explain import routing
from cni_py.explain.delivery import listening
from cni_py.explain.packet import Packet
from cni_py.explain.promises import OPTIONAL
from cni_py.explain.question import Question
from cni_py.explain.routing import family_of, parsed
from cni_py.explain.world import World, allowed, serves
from cni_py.host.model import Link, Namespace, Port

KINDS = ("lan", "host", "loopback", "neighbour", "other-bridge", "itself", "address")
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
FAMILIES = (4, 6)
SPARE = 50  # the number of a machine on a LAN of which no neighbour is known: .50, ::32


@dataclass(frozen=True, slots=True)
class Client:
    """Who connects to which address. `namespace` None: another machine, whose packets come by `iif`."""

    kind: str
    label: str
    family: int
    destination: str
    source: str  # "" if it cannot be told before the walk
    namespace: Namespace | None = None
    iif: str = ""
    source_port: int = 0  # 0: a new one


def bridge_of(world: World, namespace: Namespace) -> str:
    """The bridge of this host that a namespace belongs to, by its addresses, else by its link; "" for none."""
    own = [one for link in namespace.links for one in link.addresses if one.scope == "global"]
    for bridge in world.root.links:
        for net in bridge.addresses if bridge.kind == "bridge" else ():
            if net.scope == "global" and any(routing.within(one.address, f"{net.address}/{net.prefix}") for one in own):
                return bridge.name
    for link in namespace.links:
        place = world.peer(namespace, link)
        if place is not None and world.is_host(place.namespace) and place.link.master:
            return place.link.master
    return next((one.bridge for one in world.attachments(namespace) if one.bridge), "")


def target_namespace(world: World, question: Question, ports: list[Port]) -> Namespace | None:
    """The namespace of the container that the port leads to."""
    for port in ports:
        entered = world.namespace(port.namespace) if port.namespace else None
        if entered is not None and not world.is_host(entered):
            return entered
        for one in world.host.attachments:
            found = world.namespace(one.namespace) if one.namespace else None
            if one.container_id == port.container_id and port.container_id and found is not None:
                return found
    for address in [question.address] + [port.target for port in ports]:
        for place in world.having(address) if address else []:
            if not world.is_host(place.namespace):
                return place.namespace
    return None


def lan_link(world: World, family: int) -> Link | None:
    """The link of this host to other machines: that of the default route, else the first with an address of its own."""
    inner = set(world.container_links())

    def fits(link: Link) -> bool:
        return link.name not in inner and "loopback" not in link.flags and bool(own_address(link, family))

    defaults = [one.link for one in world.root.routes if one.family == family and one.destination.endswith("/0")]
    for name in defaults:
        link = world.link(world.root, name)
        if link is not None and fits(link):
            return link
    return next((link for link in world.root.links if fits(link)), None)


def own_address(link: Link | None, family: int) -> str:
    """The first global address of a link."""
    addresses = link.addresses if link else ()
    return next((one.address for one in addresses if family_of(one.address) == family and one.scope == "global"), "")


def machine_on(world: World, link: Link, family: int) -> str:
    """The address of a machine on the LAN: one that this host knows, else one that could be there."""
    place = world.peer(world.root, link)
    if place is not None and own_address(place.link, family):
        return own_address(place.link, family)
    one = next(one for one in link.addresses if family_of(one.address) == family and one.scope == "global")
    net = routing.network(f"{one.address}/{one.prefix}")
    gateways = {route.gateway for route in world.root.routes}
    for entry in world.root.neighbours:
        fits = entry.link == link.name and entry.mac and family_of(entry.address) == family
        if fits and entry.address not in gateways and parsed(entry.address) in net:
            return entry.address
    if net.num_addresses <= SPARE + 1:
        return str(net.network_address + (0 if one.address != str(net.network_address) else 1))
    return str(net.network_address + (SPARE if str(net.network_address + SPARE) != one.address else SPARE + 1))


def host_address(world: World, family: int, target: Namespace | None) -> str:
    """The address by which clients know this host: that on the LAN, else that of the container's bridge."""
    found = own_address(lan_link(world, family), family)
    if not found and target is not None:
        found = own_address(world.link(world.root, bridge_of(world, target)), family)
    return found or next((own_address(link, family) for link in world.root.links if own_address(link, family)), "")


def first_source(namespace: Namespace, destination: str) -> str:
    """The address that a program of the namespace sends from; "" if it has none, or no route."""
    route = routing.lookup(namespace, destination).route
    return routing.source_for(namespace, route, destination) if route else ""


def inside(world: World, kind: str, namespace: Namespace, destination: str, label: str = "") -> Client:
    """A program of a namespace as a client."""
    source = first_source(namespace, destination)
    name = label or world.label(namespace)
    return Client(kind, name, family_of(destination), destination, source, namespace)


def everybody(world: World, question: Question, ports: list[Port]) -> Iterator[Client]:
    """One client of each kind and family that there is."""
    target = target_namespace(world, question, ports)
    for family in FAMILIES:
        if question.address and family_of(question.address) != family:
            continue
        yield from _lan(world, question, family)
        destination = question.address or host_address(world, family, target)
        if question.address and parsed(question.address).is_loopback:
            yield inside(world, "loopback", world.root, question.address)
            continue
        if destination:
            yield inside(world, "host", world.root, destination)
        if not question.address:
            yield inside(world, "loopback", world.root, LOOPBACK[family])
        if destination and target is not None:
            yield from _containers(world, target, destination)


def _lan(world: World, question: Question, family: int) -> Iterator[Client]:
    link = lan_link(world, family)
    if link is None or (question.address and parsed(question.address).is_loopback):
        return
    address = machine_on(world, link, family)
    destination = question.address or own_address(link, family)
    yield Client("lan", "another machine", family, destination, address, None, link.name)


def _containers(world: World, target: Namespace, destination: str) -> Iterator[Client]:
    """A neighbour, one of another bridge, and the container itself; those with an address of the family, or that lost it."""
    family = family_of(destination)
    bridge = bridge_of(world, target)
    others = [one for one in world.host.namespaces if one.key != target.key and not world.is_host(one)]
    near = [one for one in others if bridge and bridge_of(world, one) == bridge]
    far = [one for one in others if bridge_of(world, one) not in ("", bridge)]
    for kind, found in (("neighbour", near), ("other-bridge", far), ("itself", [target])):
        able = [one for one in found if any(own_address(link, family) for link in one.links)]
        if kind == "itself" and not able and _had_address(world, target, family):
            able = [target]
        for namespace in sorted(able, key=world.label)[:1]:
            yield inside(world, kind, namespace, destination)


def _had_address(world: World, namespace: Namespace, family: int) -> bool:
    """Whether an ADD gave the container an address of the family. Without one it cannot ask by the family, and is no client."""
    return any(
        family_of(text.partition("/")[0]) == family for one in world.attachments(namespace) for text in one.addresses
    )


def is_promised(world: World, client: Client, question: Question, ports: list[Port]) -> bool:
    """Whether the publication promises to serve a client.

    It does if the port is published on the address that the client asks, and the list of allowed clients, if any, has it; NAT
    promises nothing to [::1] and link-local addresses. Without a publication: if a program of this host listens for it, or if the
    address is a container's own.
    """
    fitting = [one for one in ports if serves(one, client.destination) and one.place != OPTIONAL]
    if fitting:
        return any(_reaches(one, client) for one in fitting)
    if ports:
        return False
    if any(not world.is_host(place.namespace) for place in world.having(client.destination)):
        return True
    packet = Packet(client.family, question.protocol, client.source, 0, client.destination, question.port)
    return listening(world.root, packet, "lo") is not None


def _reaches(port: Port, client: Client) -> bool:
    peculiar = parsed(client.destination)
    if port.way == "nat" and (client.destination == "::1" or peculiar.is_link_local):
        return False
    return not client.source or allowed(port, client.source)
