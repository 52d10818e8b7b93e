"""From a question to the ways of its clients: there, through a relay where there is one, and back. Pure.

    explain(host, question)               one client of each kind and family
    explain(host, question, "lan")        those that --from means

The verdict of a client is `answers` if its packet reaches a program of the published container, and the answer comes back from
the address that the client asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cni_py.explain import clients, delivery, routing, whom
from cni_py.explain.absence import bridge_of
from cni_py.explain.clients import Client
from cni_py.explain.packet import Packet
from cni_py.explain.question import Question
from cni_py.explain.stack import Arrival, Departure, Stack
from cni_py.explain.way import Stopped, Trail, Verdict, Way, verdict_of
from cni_py.explain.world import World, serves, target_of, with_port
from cni_py.host.model import Host, Namespace, Port

LEGS_MAX = 4  # relays in a row


@dataclass(frozen=True, slots=True)
class Explained:
    """The answer to a question."""

    question: Question
    ports: tuple[Port, ...]  # what publishes it
    ways: tuple[Way, ...]
    asked: str  # "" for everybody
    verdict: Verdict  # of the clients that count: see judged()
    shown: Way | None  # the one that is told hop by hop


def explain(host: Host, question: Question, asked: str = "") -> Explained:
    """Follow the packets. whom.Unknown if `asked` names nobody."""
    world = World(host)
    ports = relevant(world, question)
    who = whom.asked(world, question, ports, asked) if asked else list(clients.everybody(world, question, ports))
    ways = tuple(follow(world, question, ports, client) for client in who)
    counted = judged(ways)
    return Explained(question, tuple(ports), ways, asked, verdict(counted), shown(counted or ways))


def relevant(world: World, question: Question) -> list[Port]:
    """The publications of the port; those on the asked address alone, if any are."""
    found = world.publications(question.protocol, question.port)
    if (
        any(not world.is_host(place.namespace) for place in world.having(question.address))
        if question.address
        else False
    ):
        return []
    return found


def judged(ways: tuple[Way, ...]) -> tuple[Way, ...]:
    """The ways that decide about the verdict: of the clients whom the publication promises to serve; all, if it promises none."""
    return tuple(way for way in ways if way.promised) or ways


def verdict(ways: tuple[Way, ...]) -> Verdict:
    """ "answers" if every way does."""
    found = {way.verdict for way in ways}
    if not found:
        return "fails"
    return "fails" if "fails" in found else "unknown" if "unknown" in found else "answers"


def shown(ways: tuple[Way, ...]) -> Way | None:
    """The first way that fails, else the first unknown one, else the first."""
    for wanted in ("fails", "unknown", "answers"):
        for way in ways:
            if way.verdict == wanted:
                return way
    return None


def follow(world: World, question: Question, ports: list[Port], client: Client) -> Way:
    """The way of one client."""
    trail = Trail(words={"port": str(question.port), "protocol": question.protocol})
    source = client.source, client.source_port
    packet = Packet(client.family, question.protocol, *source, client.destination, question.port)
    served = ""
    try:
        served = _connect(world, trail, packet, client, question, ports)
    except Stopped:
        pass
    return Way(
        client.kind,
        client.family,
        client.label,
        packet,
        clients.is_promised(world, client, question, ports),
        verdict_of(trail.hops),
        tuple(trail.hops),
        trail.source,
        served,
    )


def _connect(world: World, trail: Trail, packet: Packet, client: Client, question: Question, ports: list[Port]) -> str:
    """There and back. The label of the namespace that answers. Stopped."""
    outside = client.source if client.namespace is None else ""
    stack = Stack(world, trail, outside)
    stack.hooks.target = _target(ports, question)
    if client.namespace is None:
        trail.where = "the network"
        to = with_port(packet.destination, packet.destination_port)
        trail.passes("sent", f"{packet.source} sends to {to}; it comes by {client.iif}", certainty="assumed")
        _passing_by(world, trail, packet, client.iif)
        reached = stack.receive(world.root, packet, client.iif)
    else:
        reached = stack.send(client.namespace, packet)
    served = _served(world, trail, reached, client, question, ports)
    assert isinstance(reached, Arrival)
    _answer(world, trail, stack, reached, packet, client)
    return served


def _passing_by(world: World, trail: Trail, packet: Packet, iif: str) -> None:
    """Whether other machines reach the address past this host: on their own link (a macvlan, a machine). Stopped."""
    route = routing.lookup(world.root, packet.destination, source=packet.source, iif=iif).route
    if route is None or route.kind != "unicast" or route.gateway or route.link != iif:
        return
    if not any(bridge_of(world, place.namespace, place.link) for place in world.having(packet.destination)):
        trail.fails("outside", f"{packet.destination} is on the link of {iif}: other machines reach it past this host")


def _target(ports: list[Port], question: Question) -> tuple[str, int]:
    return target_of(ports[0], question.port) if ports else ("", 0)


def _served(
    world: World,
    trail: Trail,
    reached: Arrival | Departure,
    client: Client,
    question: Question,
    ports: list[Port],
    depth: int = 0,
) -> str:
    """The program that gets the packet, behind relays if need be: the label of its namespace. Stopped."""
    if isinstance(reached, Departure):
        what = f"the packet to {reached.packet.destination} leaves this host by {reached.link.name}"
        trail.fails("outside", what)
    namespace, packet = reached.namespace, reached.packet
    if not world.is_host(namespace):
        delivery.in_container(world, trail, namespace, packet, _port_for(packet, ports))
        trail.source = packet.source
        return world.label(namespace)
    leg = delivery.on_host(world, trail, packet, packet.source or client.source, question, ports)
    if leg is None:
        trail.source = packet.source
        return world.label(namespace)
    if depth >= LEGS_MAX:
        trail.fails("too-many-hops", "relays lead to each other")
    return _relayed(world, trail, leg, packet, client, question, ports, depth)


def _relayed(
    world: World,
    trail: Trail,
    leg: delivery.RelayLeg,
    packet: Packet,
    client: Client,
    question: Question,
    ports: list[Port],
    depth: int,
) -> str:
    """The connection that a relay makes, there and back."""
    family = 6 if ":" in leg.address else 4
    second = Packet(family, packet.protocol, "", 0, leg.address, leg.port)
    stack = Stack(world, trail)
    reached = stack.send(leg.namespace, second)
    served = _served(world, trail, reached, client, question, ports, depth + 1)
    assert isinstance(reached, Arrival)
    first = next(one.came for one in stack.hooks.tracked if one.namespace == leg.namespace.key)
    inner = replace(client, namespace=leg.namespace, source=first.source)
    _answer(world, trail, stack, reached, replace(second, source=first.source), inner)
    trail.back = False
    return served


def _port_for(packet: Packet, ports: list[Port]) -> Port | None:
    """The publication whose target a packet has reached."""
    return next((one for one in ports if not one.target or one.target == packet.destination), None)


def _answer(world: World, trail: Trail, stack: Stack, reached: Arrival, asked: Packet, client: Client) -> None:
    """The way back of the first answer. Stopped."""
    trail.back = True
    request = reached.packet
    reply = Packet(
        request.family,
        request.protocol,
        request.destination,
        request.destination_port,
        request.source,
        request.source_port,
        ct_state="established",
        unsure=frozenset({"destination_port"}),
    )
    ended = stack.send(reached.namespace, reply)
    packet = ended.packet
    to = client.source or asked.source
    if isinstance(ended, Departure):
        if client.namespace is not None or not world.is_host(ended.namespace):
            trail.fails("outside", f"the answer to {packet.destination} leaves by {ended.link.name}")
        trail.passes("left", f"the answer leaves by {ended.link.name}", certainty="assumed")
    elif client.namespace is not None and not _is_at(ended, client.namespace):
        what = f"the answer to {packet.destination} ends in {world.label(ended.namespace)}"
        trail.fails("address-moved", what)
    if (packet.source, packet.source_port) != (asked.destination, asked.destination_port):
        came = with_port(packet.source, packet.source_port)
        want = with_port(asked.destination, asked.destination_port)
        trail.fails("answer-bypasses", f"the answer comes from {came}, but {to or 'the client'} asked {want}")
    trail.where = client.label
    trail.passes("answered", f"the answer comes from {with_port(packet.source, packet.source_port)}")


def _is_at(ended: Arrival, namespace: Namespace) -> bool:
    return ended.namespace.key == namespace.key


def fitting(ports: list[Port], address: str) -> list[Port]:
    """The publications on an address."""
    return [one for one in ports if serves(one, address)]
