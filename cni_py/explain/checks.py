"""What the kernel checks beside rules and routes: martians, reverse path, forwarding, route_localnet, tracked flows."""

from __future__ import annotations

from cni_py.explain import routing, segment
from cni_py.explain.absence import bridge_of
from cni_py.explain.packet import Packet
from cni_py.explain.routing import Found
from cni_py.explain.way import Trail
from cni_py.explain.world import World, with_port
from cni_py.host.model import Namespace

CLOSED = {"TIME_WAIT", "CLOSE"}  # a SYN begins such a TCP connection anew (nf_conntrack_proto_tcp.c)
STRICT, LOOSE = 1, 2  # values of rp_filter


def check_loopback_source(world: World, trail: Trail, namespace: Namespace, packet: Packet) -> None:
    """__mkroute_output() (net/ipv4/route.c): 127/8 leaves by no other link than lo, without route_localnet."""
    if packet.family == 4 and packet.oif != "lo" and routing.is_loopback(packet.source):
        check_localnet(world, trail, namespace, packet.oif, f"{packet.source} may not leave by {packet.oif}")


def check_localnet(world: World, trail: Trail, namespace: Namespace, link: str, what: str) -> None:
    if not world.maximum(namespace, link, "route_localnet"):
        trail.fails("route-localnet-off", what, f"net.ipv4.conf.{link}.route_localnet = 0", link=link)


def check_martian(world: World, trail: Trail, namespace: Namespace, packet: Packet) -> None:
    """ip_route_input_slow(): loopback addresses on a wire."""
    iif = packet.iif
    if iif == "lo":
        return
    if packet.family == 4 and routing.is_loopback(packet.destination):
        check_localnet(
            world, trail, namespace, iif, f"{packet.destination} came by {iif}, which may not carry 127.0.0.0/8"
        )
    for one in (packet.source, packet.destination):
        allowed = packet.family == 4 and world.maximum(namespace, iif, "route_localnet")
        if one and routing.is_loopback(one) and not allowed:
            which = "source" if one == packet.source else "destination"
            trail.fails("martian", f"its {which} {one} is a loopback address, and it came by {iif}")


def check_source(world: World, trail: Trail, namespace: Namespace, packet: Packet) -> None:
    """fib_validate_source(): own addresses, and reverse path filtering. IPv4 only."""
    iif, source = packet.iif, packet.source
    if packet.family != 4 or iif == "lo" or not source:
        return
    mark = packet.mark if world.maximum(namespace, iif, "src_valid_mark") else 0
    found = routing.lookup(namespace, source, source=packet.destination, iif=iif, mark=mark)
    route = found.route
    if route is not None and route.kind == "local":
        if not world.maximum(namespace, iif, "accept_local") and not routing.is_loopback(source):
            what = f"its source {source} is an address of {world.label(namespace)} itself, but it came by {iif}"
            trail.fails("martian", what, found.text)
        return
    mode = world.maximum(namespace, iif, "rp_filter")
    strict = mode == STRICT and (route is None or route.link != iif)
    if not strict and not (mode == LOOSE and route is None):
        return
    if found.doubt:
        trail.doubts("route-unknown", found.doubt, destination=source)
        return
    what = f"it came by {iif}, but the route back to {source} is: {found.text}"
    evidence = f"rp_filter of {iif} is {mode}"
    trail.fails("rp-filter", what, evidence, found.text, link=iif, source=source)


def check_forwarding(world: World, trail: Trail, namespace: Namespace, packet: Packet) -> None:
    """IN_DEV_FORWARD of the link that it came by; IPv6: devconf_all->forwarding (ip6_forward)."""
    if packet.family == 4:
        of_link = world.setting(namespace, 4, packet.iif, "forwarding")
        name = "net.ipv4.ip_forward"
        value = of_link or world.sysctl(namespace, name)
        if of_link == "0" and world.sysctl(namespace, name) == "1":
            name = f"net.ipv4.conf.{packet.iif}.forwarding"
    else:
        name = "net.ipv6.conf.all.forwarding"
        value = world.sysctl(namespace, name)
    if value is None:
        trail.doubts("not-seen", f"{name} could not be read")
    elif value == "0":
        trail.fails("forwarding-off", f"{name} is 0: it is not forwarded", f"{name} = 0", sysctl=name)


def check_elsewhere(world: World, trail: Trail, namespace: Namespace, packet: Packet, found: Found) -> None:
    """A route that leads away from a container of this host that has the address."""
    route = found.route
    if trail.back or route is None or not world.is_host(namespace):
        return
    places = world.having(packet.destination)
    expected = {bridge_of(world, place.namespace, place.link) for place in places} - {""}
    links = {link.name for link in namespace.links}
    if expected & links and route.link not in expected:
        link = world.link(namespace, route.link)
        if route.gateway or (link is not None and segment.has_strangers(world, namespace, link)):
            towards = min(expected & links)
            what = f"{packet.destination} is behind {towards}, but the route leads out by {route.link}"
            six = "-6 " if packet.family == 6 else ""
            mend = f"ip {six}route add {packet.destination} dev {towards}   # or: cni-py restore"
            trail.fails("route-elsewhere", what, found.text, mend=mend)


def check_flows(trail: Trail, namespace: Namespace, packet: Packet, after: Packet) -> None:
    """What a tracked flow has been told to do is done with its packets, whatever the rules say now.

    It is decided for a client that has a port of its own. One that takes a new port begins a new flow.
    """
    if trail.back:
        return
    asked = (packet.protocol, packet.source, packet.destination, packet.destination_port)
    for flow in namespace.flows:
        led = (flow.reply_source, flow.reply_source_port)
        same = (flow.protocol, flow.source, flow.destination, flow.destination_port) == asked
        over = flow.state in CLOSED or led == (after.destination, after.destination_port)
        if not same or over or packet.source_port not in (0, flow.source_port):
            continue
        who = with_port(flow.source, flow.source_port)
        text = f"{flow.protocol} {who} -> {with_port(*asked[2:])}: led to {with_port(*led)}"
        now = with_port(after.destination, after.destination_port)
        if packet.source_port:
            what = f"its tracked flow leads to {with_port(*led)}; new flows go to {now}"
            port = str(flow.destination_port)
            words = {"protocol": flow.protocol, "source": flow.source, "port": port}
            trail.fails("flow-elsewhere", what, text, **words)  # type: ignore[arg-type]
        if packet.protocol == "udp":
            what = f"a new flow begins; an earlier one still leads to {with_port(*led)} (see --from {who})"
            trail.passes("flow", what, text, certainty="assumed")
            return
