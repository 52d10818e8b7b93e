"""The way from an interface to the next address on its link: veth pairs, bridges and their ports, neighbour entries.

No effects but on the trail. What a bridge decides: net/bridge/br_forward.c (should_deliver), br_vlan.c, br_input.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cni_py.explain.routing import UNUSABLE, family_of
from cni_py.explain.way import Trail
from cni_py.explain.world import Place, World
from cni_py.host.model import Link, Namespace, Neighbour

FIXED = {"permanent", "noarp"}  # states of a neighbour entry that the kernel never asks again about
USELESS = {"failed", "incomplete"}  # states of a neighbour entry whose address is asked for again with the next packet
SILENT = 8  # value of arp_ignore: ip-sysctl in the kernel's documentation
CARRIER = {"lowerlayerdown", "down", "notpresent"}


@dataclass(frozen=True, slots=True)
class End:
    """An interface that hears what another sends: its namespace's IP stack gets the packet."""

    place: Place
    switch: Namespace | None = None  # where the bridge between them is
    bridge: Link | None = None
    port_in: Link | None = None  # by which the bridge gets the frame; None if the bridge's own namespace sends
    port_out: Link | None = None  # None if the bridge's own namespace receives


def enter(world: World, trail: Trail, namespace: Namespace) -> None:
    """The hops that follow happen in this namespace."""
    trail.where, trail.at = world.label(namespace), world.at(namespace)


def ends(world: World, namespace: Namespace, link: Link) -> Iterator[End]:
    """The interfaces at the other ends of a link, across one bridge."""
    if link.kind == "bridge":
        yield from _beyond(world, namespace, link, None)
        return
    place = world.peer(namespace, link)
    if place is None:
        return
    bridge = world.link(place.namespace, place.link.master) if place.link.master else None
    if bridge is not None and bridge.kind == "bridge":
        yield End(Place(place.namespace, bridge), place.namespace, bridge, place.link, None)
        yield from _beyond(world, place.namespace, bridge, place.link)
    else:
        yield End(place)


def _beyond(world: World, switch: Namespace, bridge: Link, port_in: Link | None) -> Iterator[End]:
    for port in world.ports_of(switch, bridge.name):
        place = world.peer(switch, port)
        if place is not None:
            yield End(place, switch, bridge, port_in, port)


def answers(world: World, end: End, address: str) -> bool:
    """Whether the namespace of an end answers ARP or NDP for an address at that interface.

    ARP: for every address of the namespace, unless arp_ignore says otherwise (arp_process, net/ipv4/arp.c); NDP: for those of the
    interface (ndisc_recv_ns, net/ipv6/ndisc.c). Proxies answer for what they have a route to: here for everything.
    """
    namespace, link = end.place.namespace, end.place.link
    family = family_of(address)
    if _has(link, address):
        return True
    if family == 6:
        return world.setting(namespace, 6, link.name, "proxy_ndp") == "1"
    if world.maximum(namespace, link.name, "proxy_arp"):
        return True
    elsewhere = any(_has(other, address) for other in namespace.links if other.up)
    return elsewhere and world.maximum(namespace, link.name, "arp_ignore") == 0


def _has(link: Link, address: str) -> bool:
    return any(one.address == address and not UNUSABLE & set(one.flags) for one in link.addresses)


def neighbour_entry(namespace: Namespace, link: str, address: str) -> Neighbour | None:
    return next((one for one in namespace.neighbours if one.link == link and one.address == address), None)


def has_strangers(world: World, namespace: Namespace, link: Link) -> bool:
    """Whether there are other machines, or interfaces that are not in the model, at a link."""
    if link.kind == "bridge":
        return any(has_strangers(world, namespace, port) for port in world.ports_of(namespace, link.name))
    if link.kind != "veth" or world.has_upper(namespace, link):
        return True
    place = world.peer(namespace, link)
    if place is None:
        # A pair whose other end's namespace is gone is gone, too: this one is in a namespace that was not looked at.
        return True
    bridge = world.link(place.namespace, place.link.master) if place.link.master else None
    if bridge is None or bridge.name == link.name:
        return False
    others = (port for port in world.ports_of(place.namespace, bridge.name) if port.index != place.link.index)
    return any(port.kind != "veth" or world.peer(place.namespace, port) is None for port in others)


def find(world: World, trail: Trail, namespace: Namespace, link: Link, address: str) -> End | None:
    """The end that gets a packet for the next address; None: somebody outside of the model may have it. Stopped."""
    check_link(world, trail, namespace, link)
    there = list(ends(world, namespace, link))
    entry = neighbour_entry(namespace, link.name, address)
    owners = [end for end in there if answers(world, end, address)]
    if entry is not None and entry.mac:
        if entry.state in FIXED:
            return _by_mac(world, trail, namespace, link, entry, there, owners)
        known = [end for end in owners if end.place.link.mac == entry.mac]
        if owners and not known and entry.state not in USELESS:
            what = f"{address} has now the MAC address {owners[0].place.link.mac}; the kernel asks again within seconds"
            trail.doubts("neighbour-wrong", what, _entry_text(entry), address=address, link=link.name)
        owners = known or owners
    _check_asking(world, trail, namespace, link, address)
    usable = [end for end in owners if _is_usable(end)]
    chosen = usable or owners
    if chosen:
        found = chosen[0]
        if (
            len({(end.place.namespace.key, end.place.link.index) for end in chosen if end.place.link.kind != "bridge"})
            > 1
        ):
            who = " and ".join(f"{end.place.link.name} of {world.label(end.place.namespace)}" for end in chosen)
            trail.doubts("address-twice", f"{address} belongs to {who}: who answers first gets the packets")
        _check_answering(world, trail, found, address)
        what = f"{address} is {found.place.link.name} of {world.label(found.place.namespace)} ({found.place.link.mac})"
        trail.passes("neighbour", what, *([_entry_text(entry)] if entry and entry.mac else []))
        return found
    return None


def _check_asking(world: World, trail: Trail, namespace: Namespace, link: Link, address: str) -> None:
    """An interface with IFF_NOARP asks for nobody: its frames have its own MAC address as destination (arp_constructor()).

    Rules of the family arp are not evaluated: where some drop, nobody can say.
    """
    if "noarp" in link.flags and link.kind in ("bridge", "veth"):
        mend = f"{world.at(namespace)}ip link set {link.name} arp on"
        trail.fails("arp-off", f"{link.name} does not ask for the MAC address of {address}", mend=mend)
    drops = '"family": "arp"' in namespace.nftables and '"drop"' in namespace.nftables
    if family_of(address) == 4 and drops and not _is_known(namespace, link, address):
        trail.doubts("rule-unknown", f"{world.label(namespace)} has rules about ARP, which are not evaluated")


def _is_known(namespace: Namespace, link: Link, address: str) -> bool:
    entry = neighbour_entry(namespace, link.name, address)
    return entry is not None and entry.state == "reachable"


def _check_answering(world: World, trail: Trail, end: End, address: str) -> None:
    """What keeps the other end from answering ARP (arp_rcv(), arp_ignore())."""
    link, namespace = end.place.link, end.place.namespace
    if family_of(address) != 4:
        return
    whose = f"{link.name} of {world.label(namespace)}"
    if "noarp" in link.flags:
        mend = f"{world.at(namespace)}ip link set {link.name} arp on"
        trail.fails("arp-off", f"{whose} does not answer who asks for {address}", mend=mend)
    if world.maximum(namespace, link.name, "arp_ignore") == SILENT:
        mend = f"{world.at(namespace)}sysctl -w net.ipv4.conf.{link.name}.arp_ignore=0"
        trail.fails("arp-off", f"{whose} does not answer who asks for {address} (arp_ignore 8)", mend=mend)


def _is_usable(end: End) -> bool:
    return end.place.link.up and (end.port_out is None or end.port_out.up)


def _entry_text(entry: Neighbour) -> str:
    return f"{entry.address} dev {entry.link} lladdr {entry.mac} {entry.state.upper()}"


def _by_mac(
    world: World,
    trail: Trail,
    namespace: Namespace,
    link: Link,
    entry: Neighbour,
    there: list[End],
    owners: list[End],
) -> End | None:
    """The end with the MAC address of a fixed neighbour entry. Stopped if that is not the one with the address."""
    found = next((end for end in (*owners, *there) if end.place.link.mac == entry.mac), None)
    if found is not None and (not owners or found in owners):
        trail.passes("neighbour", f"{entry.address} has the MAC address {entry.mac}", _entry_text(entry))
        return found
    if not owners and has_strangers(world, namespace, link):
        return None
    real = f"; {entry.address} is at {owners[0].place.link.mac}" if owners else ""
    whose = f"of {world.label(found.place.namespace)}" if found else "of nobody on this link"
    what = f"the entry for {entry.address} has the MAC address {entry.mac}, that {whose}{real}"
    return trail.fails("neighbour-wrong", what, _entry_text(entry), address=entry.address, link=link.name)


def cross(world: World, trail: Trail, end: End) -> None:
    """The checks of a bridge between two ports, and of the receiving interface. Stopped."""
    if end.bridge is not None and end.switch is not None:
        enter(world, trail, end.switch)
        for port in (end.port_in, end.port_out):
            if port is not None:
                _check_port(world, trail, end.switch, port)
        _check_pair(trail, end)
        _check_vlans(trail, end)
        _check_fdb(trail, end)
        if end.port_out is not None:
            came = f" from {end.port_in.name}" if end.port_in else ""
            trail.passes("bridged", f"bridge {end.bridge.name} hands it{came} to its port {end.port_out.name}")
    enter(world, trail, end.place.namespace)
    check_link(world, trail, end.place.namespace, end.place.link)


def check_link(world: World, trail: Trail, namespace: Namespace, link: Link) -> None:
    """Whether an interface sends and receives. Stopped."""
    if not link.up:
        trail.fails("link-down", f"{link.name} is down", f"{link.name}: state DOWN", link=link.name)
    if link.kind == "veth" and link.operstate in CARRIER:
        place = world.peer(namespace, link)
        mend, other = "", "its other end"
        if place is not None:
            other = f"{place.link.name} of {world.label(place.namespace)}"
            mend = f"{world.at(place.namespace)}ip link set {place.link.name} up"
        what = f"{link.name} has no carrier: {other} is down"
        trail.fails("no-carrier", what, f"{link.name}: operstate {link.operstate}", mend=mend)


def _check_port(world: World, trail: Trail, switch: Namespace, port: Link) -> None:
    check_link(world, trail, switch, port)
    if port.stp_state and port.stp_state != "forwarding":
        evidence = f"{port.name}: state {port.stp_state}"
        trail.fails("stp-blocked", f"bridge port {port.name} is {port.stp_state}", evidence, link=port.name)


def _check_pair(trail: Trail, end: End) -> None:
    """What a bridge refuses between two ports."""
    one, other = end.port_in, end.port_out
    if one is None or other is None:
        return
    if one.index == other.index and not one.hairpin:
        trail.fails("hairpin-off", f"the frame would leave by {one.name}, by which it came", link=one.name)
    if one.isolated and other.isolated and one.index != other.index:
        what = f"the bridge ports {one.name} and {other.name} are both isolated"
        trail.fails("isolated", what, f"{one.name}: isolated on", f"{other.name}: isolated on", link=other.name)


def _check_vlans(trail: Trail, end: End) -> None:
    """A VLAN that the frame has where it enters the bridge, and that the port by which it leaves has too."""
    bridge = end.bridge
    if bridge is None or not bridge.vlan_filtering:
        return
    first, last = end.port_in or bridge, end.port_out or bridge
    vid = next((vlan.vid for vlan in first.vlans if vlan.pvid), 0)
    if vid and any(vlan.vid == vid for vlan in last.vlans):
        return
    wrong = last if vid else first
    has = ", ".join(str(vlan.vid) for vlan in wrong.vlans) or "none"
    wanted = f"the frame is in VLAN {vid}" if vid else "frames without a tag belong to no VLAN there (no pvid)"
    what = f"{wrong.name} of bridge {bridge.name} has the VLANs {has}; {wanted}"
    trail.fails("vlan", what, f"bridge vlan show dev {wrong.name}: {has}", link=wrong.name, vid=str(vid or 1))


def _check_fdb(trail: Trail, end: End) -> None:
    """An entry that sends the receiver's MAC address elsewhere.

    A permanent one is the bridge's own: what came by a port stays here (br_handle_frame_finish), what the bridge itself sends
    leaves by the entry's port (br_dev_xmit). One that is not may be learnt anew, or made by hand: the model does not tell.
    """
    if end.switch is None or end.bridge is None or end.port_out is None:
        return
    mac, right = end.place.link.mac, end.port_out.name
    for entry in end.switch.fdb:
        if entry.mac != mac or entry.bridge != end.bridge.name or (entry.port == right and not entry.permanent):
            continue
        text = f"{mac} dev {entry.port} master {entry.bridge}{' permanent' if entry.permanent else ''}"
        if not entry.permanent:
            what = f"the bridge has learnt {mac} at {entry.port}, but it is behind {right} now"
            trail.doubts("fdb-wrong", what, text, mac=mac, link=entry.port)
        elif end.port_in is not None:
            trail.fails("fdb-wrong", f"the bridge takes frames to {mac} for its own", text, mac=mac, link=entry.port)
        elif entry.port != right:
            what = f"the bridge sends {mac} to {entry.port}, but it is behind {right}"
            trail.fails("fdb-wrong", what, text, mac=mac, link=entry.port)
