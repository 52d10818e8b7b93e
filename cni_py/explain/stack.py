"""The IP stacks of a host's namespaces: what they send, receive, forward and deliver. The trail gets a hop for each decision.

The order is the kernel's: net/ipv4/ip_input.c, route.c (ip_route_input_slow), fib_frontend.c (fib_validate_source), ip_forward.c,
ip_output.c; net/ipv6/ip6_input.c, ip6_output.c; net/bridge/br_netfilter_hooks.c.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cni_py.explain import absence, checks, routing, segment
from cni_py.explain.hooks import Hooks
from cni_py.explain.packet import Hook, Packet
from cni_py.explain.routing import Found
from cni_py.explain.segment import End
from cni_py.explain.way import Trail
from cni_py.explain.world import World, with_port
from cni_py.host.model import Link, Namespace, Route

BLOCKING = {"blackhole", "unreachable", "prohibit"}
BRIDGE_CALLS = {4: "net.bridge.bridge-nf-call-iptables", 6: "net.bridge.bridge-nf-call-ip6tables"}


@dataclass(frozen=True, slots=True)
class Arrival:
    """A packet that a namespace delivers to its own programs."""

    namespace: Namespace
    packet: Packet


@dataclass(frozen=True, slots=True)
class Departure:
    """A packet that leaves the model by a link."""

    namespace: Namespace
    link: Link
    packet: Packet


Outcome = Arrival | Departure


def fresh(packet: Packet) -> Packet:
    """The packet as another namespace gets it: without what belongs to the sender's conntrack, marks and links."""
    nothing: frozenset[str] = frozenset()
    own = {"mark": 0, "ct_mark": 0, "ct_status": nothing, "original_destination": "", "original_port": 0}
    return replace(packet, iif="", oif="", bridge_in="", bridge_out="", **own)  # type: ignore[arg-type]  # of the right types


class Stack:
    """The way of the packets of one connection."""

    def __init__(self, world: World, trail: Trail, outside: str = "") -> None:
        self.world = world
        self.trail = trail
        self.hooks = Hooks(world, trail)
        self.outside = outside  # address of a client that is another machine

    def enter(self, namespace: Namespace) -> None:
        """The hops that follow happen in this namespace."""
        segment.enter(self.world, self.trail, namespace)

    # Sending

    def send(self, namespace: Namespace, packet: Packet) -> Outcome:
        """What a program of the namespace sends, to where it ends. Stopped."""
        self.enter(namespace)
        first = packet
        found = self._route(namespace, packet, "")
        route = found.route
        assert route is not None
        source = packet.source or routing.source_for(namespace, route, packet.destination)
        if not source:
            family = f"IPv{packet.family}"
            self.trail.fails("source-missing", f"it has no {family} address to send from", found.text, link=route.link)
        oif = "lo" if route.kind == "local" else route.link
        packet = first = replace(packet, source=source, oif=oif)
        if not self.trail.back:
            what = f"sends to {with_port(packet.destination, packet.destination_port)} from {source}"
            self.trail.passes("sent", what, found.text)
        else:
            what = f"answers {with_port(packet.destination, packet.destination_port)}"
            self.trail.passes("routed", what, found.text)
        packet = self.hooks.run(namespace, "output", packet)
        checks.check_flows(self.trail, namespace, first, packet)
        packet = self._back(namespace, packet, first)
        if (packet.destination, packet.mark) != (first.destination, first.mark):
            found = self._route(namespace, packet, "")
            assert found.route is not None
            packet = replace(packet, oif="lo" if found.route.kind == "local" else found.route.link)
            self.trail.passes("routed", f"to {packet.destination} by {packet.oif}", found.text)
            checks.check_elsewhere(self.world, self.trail, namespace, packet, found)
        checks.check_loopback_source(self.world, self.trail, namespace, packet)
        return self._leave(namespace, first, packet, found)

    def _back(self, namespace: Namespace, packet: Packet, first: Packet) -> Packet:
        return self.hooks.dnat_back(namespace, packet) if self.trail.back else packet

    def _route(self, namespace: Namespace, packet: Packet, iif: str) -> Found:
        """The route of a packet. Stopped if there is none."""
        found = routing.lookup(namespace, packet.destination, source=packet.source, iif=iif, mark=packet.mark)
        if found.doubt:
            self.trail.fails("route-unknown", found.doubt, found.text, destination=packet.destination)
        route = found.route
        if route is None:
            what = f"there is no route to {packet.destination}"
            self.trail.fails("no-route", what, mend=absence.mend_route(self.world, namespace, packet))
        if route.kind in BLOCKING:
            text = found.text if found.rule is None or found.rule.action == "lookup" else f"rule {found.rule.priority}"
            what = f"{text} blocks {packet.destination}"
            self.trail.fails("route-blocked", what, found.text, route=f"{route.kind} {route.destination}")
        return found

    def _leave(self, namespace: Namespace, came: Packet, packet: Packet, found: Found) -> Outcome:
        """Postrouting, then the link. `came`: the packet as the namespace first saw it."""
        if packet.oif == "lo":
            after = self._postrouting(namespace, packet, found.route)
            self.hooks.track(namespace, came, after)
            return self.receive(namespace, replace(after, oif=""), "lo", looped=came)
        packet = self._postrouting(namespace, packet, found.route)
        self.hooks.track(namespace, came, packet)
        link = self.world.link(namespace, packet.oif)
        if link is None:
            self.trail.fails("not-seen", f"the model has no link {packet.oif}")
        assert found.route is not None
        gateway = found.route.gateway
        return self._transmit(namespace, link, gateway or packet.destination, packet)

    def _postrouting(self, namespace: Namespace, packet: Packet, route: Route | None) -> Packet:
        before = packet
        packet = self.hooks.run(namespace, "postrouting", packet)
        if not packet.source:
            packet = replace(packet, source=self._masqueraded(namespace, packet, route))
            self.trail.passes("translated", f"its source becomes {packet.source}")
        if self.trail.back:
            packet = self._source_back(namespace, before, packet)
        return packet

    def _masqueraded(self, namespace: Namespace, packet: Packet, route: Route | None) -> str:
        """nf_nat_masquerade_ipv4(): the address of the link that it leaves by, towards the next hop of the packet's route."""
        towards = Route(packet.family, 0, "", gateway=route.gateway if route else "", link=packet.oif)
        source = routing.masquerade_source(namespace, towards, packet.destination)
        if not source:
            self.trail.fails("source-missing", f"{packet.oif} has no address to masquerade with", link=packet.oif)
        return source

    def _source_back(self, namespace: Namespace, before: Packet, packet: Packet) -> Packet:
        """An answer's source becomes the address that the client asked, where this namespace had changed that."""
        for one in self.hooks.tracked:
            left = one.left
            if (
                one.namespace == namespace.key
                and (left.destination, left.destination_port) == (before.source, before.source_port)
                and one.came.source == before.destination
                and (one.came.destination, one.came.destination_port) != (before.source, before.source_port)
            ):
                asked = one.came
                what = f"its source is again {with_port(asked.destination, asked.destination_port)}"
                self.trail.passes("restored", f"connection tracking: {what}")
                return replace(packet, source=asked.destination, source_port=asked.destination_port)
        return packet

    # Links

    def _transmit(self, namespace: Namespace, link: Link, next_address: str, packet: Packet) -> Outcome:
        """Out by a link to the next address. Stopped, or where it ends."""
        if self.trail.back and packet.destination == self.outside and self.world.is_host(namespace):
            segment.check_link(self.world, self.trail, namespace, link)
            return Departure(namespace, link, packet)
        end = segment.find(self.world, self.trail, namespace, link, next_address)
        if end is None:
            if not segment.has_strangers(self.world, namespace, link):
                absence.nobody(self.world, self.trail, namespace, link, next_address)
            return Departure(namespace, link, packet)
        return self._arrive(end, packet, next_address)

    def _arrive(self, end: End, packet: Packet, next_address: str) -> Outcome:
        """At an end of the link, across a bridge or not; br_netfilter may show the frame to the IP hooks on the way."""
        switch, bridge = end.switch, end.bridge
        filtered = (
            switch is not None
            and end.port_in is not None
            and self.world.sysctl(switch, BRIDGE_CALLS[packet.family]) == "1"
        )
        if not filtered or switch is None or bridge is None:
            self._cross(end, packet)
            return self.receive(end.place.namespace, fresh(packet), end.place.link.name)
        return self._bridged(end, switch, bridge, packet, next_address)

    def _bridged(self, end: End, switch: Namespace, bridge: Link, packet: Packet, next_address: str) -> Outcome:
        """br_nf_pre_routing(): the IP hooks of the bridge's namespace see the frame.

        A packet for the namespace that DNAT sends to an address on the same bridge is bridged at once, from port to port
        (br_nf_pre_routing_finish, bridged_dnat).
        """
        assert end.port_in is not None
        if end.port_out is None:
            self._cross(end, packet)
        self.enter(switch)
        came = replace(fresh(packet), iif=bridge.name, bridge_in=end.port_in.name)
        after = self.hooks.run(switch, "prerouting", came)
        after = self._back(switch, after, came)
        if after.destination != came.destination and self._stays(switch, bridge, after):
            return self._redirected(switch, bridge, end, came, after)
        if end.port_out is None or after.destination != came.destination:
            return self._routed(switch, came, replace(after, bridge_in=""))
        return self._from_port_to_port(end, switch, bridge, came, after)

    def _stays(self, switch: Namespace, bridge: Link, packet: Packet) -> bool:
        """Whether a packet whose destination has changed goes on to a port of the same bridge: the routing tables are asked as
        for every packet, with all that IPv4 checks then (ip_route_input); what they refuse the IP stack gets. Stopped."""
        found = routing.lookup(switch, packet.destination, source=packet.source, iif=bridge.name, mark=packet.mark)
        route = found.route
        if found.doubt or route is None or route.link != bridge.name or route.kind != "unicast":
            return False
        checks.check_martian(self.world, self.trail, switch, packet)
        checks.check_source(self.world, self.trail, switch, packet)
        if packet.family == 4:
            checks.check_forwarding(self.world, self.trail, switch, packet)
        return True

    def _redirected(self, switch: Namespace, bridge: Link, end: End, came: Packet, after: Packet) -> Outcome:
        """DNAT to an address on the bridge that the frame came by."""
        owners = [
            one
            for one in segment.ends(self.world, switch, bridge)
            if segment.answers(self.world, one, after.destination)
        ]
        if not owners:
            absence.nobody(self.world, self.trail, switch, bridge, after.destination)
        found = replace(owners[0], port_in=end.port_in)
        return self._from_port_to_port(found, switch, bridge, came, after)

    def _from_port_to_port(self, end: End, switch: Namespace, bridge: Link, came: Packet, packet: Packet) -> Outcome:
        assert end.port_out is not None
        packet = replace(packet, iif=bridge.name, oif=bridge.name, bridge_out=end.port_out.name)
        packet = self.hooks.run(switch, "forward", packet)
        packet = self._postrouting(switch, packet, None)
        self.hooks.track(switch, came, packet)
        self._cross(end, packet)
        return self.receive(end.place.namespace, fresh(packet), end.place.link.name)

    def _cross(self, end: End, packet: Packet) -> None:
        """Across a bridge, past the rules of the family bridge. Stopped."""
        if end.switch is not None and end.bridge is not None:
            self.enter(end.switch)
            if end.port_in is not None:
                self.hooks.run(end.switch, "ingress", replace(packet, iif=end.port_in.name))
            sender = self.world.peer(end.switch, end.port_in) if end.port_in else None
            frame = replace(
                packet,
                bridge_in=end.port_in.name if end.port_in else "",
                bridge_out=end.port_out.name if end.port_out else "",
                source_mac=sender.link.mac if sender else end.bridge.mac,
            )
            first: Hook = "prerouting" if end.port_in else "output"
            last: tuple[Hook, ...] = ("input",) if end.port_out is None else ("forward", "postrouting")
            for hook in (first, *(last if end.port_in else ("postrouting",))):
                self.hooks.frame(end.switch, hook, frame)
        segment.cross(self.world, self.trail, end)

    # Receiving

    def receive(self, namespace: Namespace, packet: Packet, iif: str, looped: Packet | None = None) -> Outcome:
        """In by a link. `looped`: the namespace sent it to itself; conntrack has seen it, as this packet, and NAT is done."""
        self.enter(namespace)
        came = looped or replace(packet, iif=iif)
        packet = replace(packet, iif=iif)
        if looped is None:
            packet = self.hooks.run(namespace, "ingress", packet)
        after = self.hooks.run(namespace, "prerouting", packet)
        checks.check_flows(self.trail, namespace, packet, after)
        if looped is not None:
            after = replace(after, destination=packet.destination, destination_port=packet.destination_port)
        after = self._back(namespace, after, packet)
        return self._routed(namespace, came, after)

    def _routed(self, namespace: Namespace, came: Packet, packet: Packet) -> Outcome:
        """The decision of the routing tables about what was received."""
        iif = packet.iif
        checks.check_martian(self.world, self.trail, namespace, packet)
        found = self._route(namespace, packet, iif)
        route = found.route
        assert route is not None
        checks.check_source(self.world, self.trail, namespace, packet)
        if route.kind == "local":
            return self._deliver(namespace, came, packet)
        checks.check_forwarding(self.world, self.trail, namespace, packet)
        packet = replace(packet, oif=route.link)
        self.trail.passes("routed", f"to {packet.destination} by {route.link}", found.text)
        checks.check_elsewhere(self.world, self.trail, namespace, packet, found)
        packet = self.hooks.run(namespace, "forward", packet)
        return self._leave(namespace, came, packet, found)

    def _deliver(self, namespace: Namespace, came: Packet, packet: Packet) -> Arrival:
        what = f"{packet.destination} is an address of {self.world.label(namespace)}"
        self.trail.passes("local", what)
        before = packet
        packet = self.hooks.run(namespace, "input", packet)
        if self.trail.back:
            packet = self._source_back(namespace, before, packet)
        self.hooks.track(namespace, came, packet)
        return Arrival(namespace, packet)
