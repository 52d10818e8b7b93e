"""Why a route or an address is missing, and the command that puts it back."""

from __future__ import annotations

from cni_py.explain import routing, segment
from cni_py.explain.packet import Packet
from cni_py.explain.way import Trail
from cni_py.explain.world import World
from cni_py.host.model import Link, Namespace


def mend_route(world: World, namespace: Namespace, packet: Packet) -> str:
    """The command that makes a route which lacks."""
    at, six = world.at(namespace), "-6 " if packet.family == 6 else ""
    if not world.is_host(namespace):
        gateway = gateway_for(world, namespace, packet.family)
        return f"{at}ip {six}route add default via {gateway}"
    owner = next(iter(world.having(packet.destination)), None)
    bridge = bridge_of(world, owner.namespace, owner.link) if owner else ""
    return f"ip {six}route add {packet.destination} dev {bridge or 'BRIDGE'}   # or: cni-py restore"


def gateway_for(world: World, namespace: Namespace, family: int) -> str:
    """The address of the bridge that a container is on; "GATEWAY" if there is none."""
    for link in namespace.links:
        place = world.peer(namespace, link)
        bridge = world.link(place.namespace, place.link.master) if place and place.link.master else None
        for one in (bridge or (place.link if place else None) or link).addresses if place else ():
            if routing.family_of(one.address) == family and one.scope == "global":
                return one.address
    return "GATEWAY"


def bridge_of(world: World, namespace: Namespace, link: Link) -> str:
    """The name of the host's link that leads to a container's: the bridge, or its end of the pair."""
    place = world.peer(namespace, link)
    return (place.link.master or place.link.name) if place else ""


def check_own_port(world: World, trail: Trail, namespace: Namespace, link: Link, address: str) -> None:
    """Whether a container's link leads to another bridge than the one with the address. Stopped if so."""
    other = world.peer(namespace, link)
    for place in world.having(address):
        if other is None or place.link.kind != "bridge" or place.namespace.key != other.namespace.key:
            continue
        if other.link.master != place.link.name:
            segment.enter(world, trail, other.namespace)
            now = f"a port of {other.link.master}" if other.link.master else "no port of any bridge"
            what = f"{other.link.name} is {now}; {address} is looked for, which {place.link.name} has"
            words = {"link": other.link.name, "bridge": place.link.name}
            trail.fails("not-in-bridge", what, f"{other.link.name}: {now}", **words)  # type: ignore[arg-type]


def nobody(world: World, trail: Trail, namespace: Namespace, link: Link, address: str) -> None:
    """Say why nobody on the link has an address. Stopped."""
    check_own_port(world, trail, namespace, link, address)
    for place in world.having(address):
        label, name = world.label(place.namespace), place.link.name
        state = next((one for one in place.link.addresses if one.address == address), None)
        if state is not None and routing.UNUSABLE & set(state.flags):
            segment.enter(world, trail, place.namespace)
            what = f"{address} of {name} is {', '.join(state.flags)}"
            trail.fails("address-unusable", what, link=name)
        if not place.link.up:
            segment.enter(world, trail, place.namespace)
            trail.fails("link-down", f"{name}, which has {address}, is down", link=name)
        other = world.peer(place.namespace, place.link)
        if other is None or other.namespace.key != namespace.key or link.kind != "bridge":
            continue
        if other.link.master != link.name:
            now = f"a port of {other.link.master}" if other.link.master else "no port of any bridge"
            what = f"{other.link.name}, which leads to {label}, is {now}; {address} is looked for on {link.name}"
            trail.fails("not-in-bridge", what, f"{other.link.name}: {now}", link=other.link.name, bridge=link.name)
    what = f"no interface on {link.name} has {address}"
    if any(one.gateway == address for one in namespace.routes if one.gateway) and not world.is_host(namespace):
        ours = any(one.source == "cni-py" for one in world.attachments(namespace))
        bridge = bridge_of(world, namespace, link) or "BRIDGE"
        mend = "cni-py restore" if ours else f"ip addr add {address}/PREFIX dev {bridge}"
        trail.fails("address-missing", what, cause="the host has lost the gateway's address", mend=mend)
    trail.fails("address-missing", what, mend=mend_address(world, address))


def mend_address(world: World, address: str) -> str:
    for one in world.host.attachments:
        if any(each.partition("/")[0] == address for each in one.addresses):
            full = next(each for each in one.addresses if each.partition("/")[0] == address)
            namespace = world.namespace(one.namespace)
            if namespace is not None:
                return f"{world.at(namespace)}ip addr add {full} dev {one.ifname}"
            return f"the container of {one.network}/{one.container_id} is gone: cni-py gc, and make it again"
    return "cni-py gc   # removes what a gone container left"
