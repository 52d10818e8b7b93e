"""Whom `--from` means: a kind of client, a container, or an address, with a port or without one. Pure."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from cni_py.explain import clients
from cni_py.explain.clients import FAMILIES, Client
from cni_py.explain.question import PORT_MAX, Question, unmapped
from cni_py.explain.routing import family_of, parsed
from cni_py.explain.world import World
from cni_py.host.model import Link, Namespace, Port

NAMED = clients.KINDS[:-1]


class Unknown(Exception):
    """`--from` names nobody: a sentence."""


def asked(world: World, question: Question, ports: list[Port], text: str) -> list[Client]:
    """The clients that `--from` means: a kind, a container, or an address. Unknown."""
    everyone = list(clients.everybody(world, question, ports))
    if text in NAMED:
        found = [one for one in everyone if one.kind == text]
        if not found:
            raise Unknown(f"this host has no client of the kind {text} for port {question}")
        return found
    target = clients.target_namespace(world, question, ports)
    namespace = container_named(world, text)
    if namespace is not None:
        return [
            clients.inside(world, "itself" if namespace is target else "address", namespace, destination)
            for destination in _destinations(world, question, target)
            if any(clients.own_address(link, family_of(destination)) for link in namespace.links) or question.address
        ]
    address, port = _address_and_port(text)
    return [replace(_with_address(world, question, target, address), source_port=port)]


def _address_and_port(text: str) -> tuple[str, int]:
    """ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT. Unknown."""
    host, _, number = text.rpartition(":")
    for written, port in ((text, "0"), (host, number)):
        bare = written[1:-1] if written.startswith("[") and written.endswith("]") else written
        with contextlib.suppress(ValueError):
            if port.isascii() and port.isdecimal() and int(port) <= PORT_MAX:
                return unmapped(parsed(bare)), int(port)
    raise Unknown(f'"{text}" is no container, no address, and none of {", ".join(NAMED)}')


def _destinations(world: World, question: Question, target: Namespace | None) -> list[str]:
    found = (
        [question.address] if question.address else [clients.host_address(world, family, target) for family in FAMILIES]
    )
    return [one for one in found if one]


def container_named(world: World, text: str) -> Namespace | None:
    """The namespace of a container by its name, id, a unique beginning of that, or the name or path of its namespace."""
    names: dict[str, Namespace] = {}
    ids: dict[str, Namespace] = {}
    for namespace in world.host.namespaces:
        if world.is_host(namespace):
            continue
        container_id = world.container_id(namespace)
        if container_id:
            ids[container_id] = names[container_id] = names[world.name_of(container_id)] = namespace
        for name in namespace.names:
            names.setdefault(name, namespace)
            names.setdefault(name.rpartition("/")[2], namespace)
        names.setdefault(namespace.key, namespace)
    if text in names:
        return names[text]
    beginning = [one for container_id, one in ids.items() if text and container_id.startswith(text)]
    return beginning[0] if len(beginning) == 1 else None


def _with_address(world: World, question: Question, target: Namespace | None, address: str) -> Client:
    """The client with an address: a container's, this host's, or another machine's. Unknown."""
    family = family_of(address)
    if question.address and family_of(question.address) != family:
        raise Unknown(f"{address} cannot connect to {question.address}: one is IPv4, the other IPv6")
    if parsed(address).is_loopback:
        destination = question.address or address
        return Client("loopback", "this host", family, destination, address, world.root)
    destination = question.address or clients.host_address(world, family, target)
    if not destination:
        raise Unknown(f"this host has no IPv{family} address that {address} could connect to")
    for place in world.having(address):
        outside = clients.lan_link(world, family)
        peer = world.peer(world.root, outside) if outside else None
        if peer is None or peer.namespace.key != place.namespace.key:
            label = world.label(place.namespace)
            kind = "host" if world.is_host(place.namespace) else "address"
            return Client(kind, label, family, destination, address, place.namespace)
    link = incoming(world, address, destination)
    if link is None:
        raise Unknown(f"{address} cannot reach this host by IPv{family}: no interface leads to other machines")
    return Client("address", "another machine", family, destination, address, None, link.name)


def incoming(world: World, source: str, destination: str) -> Link | None:
    """The link by which another machine's packets come: the one with the address that they are sent to, else the LAN's."""
    inner = set(world.container_links())
    for link in world.root.links:
        if link.name not in inner and any(one.address == destination for one in link.addresses):
            return link
    return clients.lan_link(world, family_of(source))
