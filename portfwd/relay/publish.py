"""All mappings of one process: published, changed, removed, counted.

    relay = Relay(poller, places, steering=Steering())
    relay.publish(mapping)            listens on all addresses or on none; returns notes for people
    relay.replace(mapping)            other targets and options for the same ports, from the next connection on
    relay.remove(id, drain_s)         stops listening now; running connections may end by themselves
    relay.sweep()                     every SWEEP_S: applies time limits

A range of RANGE_MIN ports or more has one socket per address, to which the kernel steers its ports (steering/lookup.py). Single
ports, shorter ranges, and ranges that the kernel cannot steer have one socket per port. Mapping.steer changes that:

    auto        as above; a range is refused when another program listens on one of its ports
    fallback    one socket per port; a TCP port that another socket holds is steered: a runtime holds ports for its container
    always      steered, even if another program listens there; an error where the kernel cannot
    never       one socket per port
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from portfwd.errors import Lacking, NotFound, PortfwdError, PortInUse, Unfit, Usage
from portfwd.mapping import RANGE_MIN, Mapping, Target, check_use
from portfwd.netns.legs import plain_ip
from portfwd.relay import bind as relay_bind
from portfwd.relay import holders
from portfwd.relay.bind import NoSuchFamily
from portfwd.relay.claims import Claims
from portfwd.relay.listener import Listener
from portfwd.relay.loops import way_back
from portfwd.relay.pump import Pipes
from portfwd.relay.tcp import TcpPort
from portfwd.relay.udp import UdpPort
from portfwd.steering.lookup import Range, Steering

if TYPE_CHECKING:
    from portfwd.netns.sockets import Places
    from portfwd.relay.poller import Poller

log = logging.getLogger("portfwd")

SWEEP_S = 0.25
UNHEARD_MAX = 5  # programs named in `ls`
LOOK_AT_ALL_S = 2.0  # between two rounds over every connection


class Published:
    """One mapping and its server."""

    __slots__ = ("mapping", "server", "steered", "unsteered")

    def __init__(self, mapping: Mapping, server: TcpPort | UdpPort, steered: tuple[str, ...], unsteered: str) -> None:
        self.mapping = mapping
        self.server = server
        self.steered = steered  # the addresses whose ports are steered to one socket
        self.unsteered = unsteered  # why other addresses are not, though it is a long range

    def ways(self) -> dict[str, object]:
        """How the ports are served, and how they would be without steering: fields of `ls` and of its JSON."""
        ports = len(self.mapping.ports)
        sockets = "a socket" if ports == 1 else f"a socket for each of {ports} ports"
        if not self.steered:
            return {"served_by": sockets, **({"no_sk_lookup": self.unsteered} if self.unsteered else {})}
        otherwise = sockets if ports > 1 else "nothing: somebody else holds the port"
        return {"served_by": "sk_lookup", "otherwise": otherwise, "steered": list(self.steered)}


class Relay:
    """See the module. For one thread: that of the event loop with `poller`."""

    def __init__(
        self, poller: Poller, places: Places, *, steering: Steering | None = None, unsteered: str = ""
    ) -> None:
        self.poller = poller
        self.places = places
        self.steering = steering
        self.unsteered = unsteered  # why there is no steering
        self.pipes = Pipes()
        self._published: dict[str, Published] = {}
        self._said: dict[str, str] = {}  # by id, the last logged reason why a mapping is not steered
        self._draining: list[TcpPort | UdpPort] = []
        self._claims = Claims()
        self._next_look = 0.0

    @property
    def mappings(self) -> dict[str, Mapping]:
        """By id, in the order of publishing."""
        return {name: published.mapping for name, published in self._published.items()}

    def publish(self, mapping: Mapping, sockets: Sequence[socket.socket] = ()) -> list[str]:
        """Listen for a mapping, on all its ports or none. Given `sockets` are bound already; they are used, and closed here.

        Returns sentences on addresses that were left out. PortInUse names the holder; Usage when the id is taken.
        """
        if mapping.id in self._published:
            raise Usage(f"there is a mapping {mapping.id} already", "choose another name, or replace it")
        self._refuse(mapping)
        notes: list[str] = []
        bound = Bound(mapping, sockets)
        try:
            self._listen(bound, notes)
            server = self._serve(mapping, bound)
        except BaseException:
            self._unsteer(mapping, bound.steered)
            bound.close()
            raise
        self._published[mapping.id] = Published(mapping, server, tuple(bound.steered), bound.unsteered)
        self._claims.put(mapping)
        self._retain(mapping)
        return notes

    def _refuse(self, mapping: Mapping) -> None:
        """PortInUse when another mapping has a port, or a program listens in a range to be steered; Usage for a loop."""
        held = self._claims.holder(mapping)
        if held is not None:
            other = self._published[held[0]].mapping
            raise PortInUse(f"port {held[1]}/{mapping.protocol} is in use by mapping {other.id}", str(other))
        self._refuse_loop(mapping)
        if mapping.steer == "auto" and self._steers(mapping):
            relay_bind.refuse_held(mapping.protocol, mapping.host_ips, mapping.ports, mapping.owner)

    def move(self, name: str, host_ips: Sequence[str]) -> dict[str, PortfwdError]:
        """Listen on other addresses for a mapping; returns an error for each that cannot be had. NotFound.

        Running connections stay, and listeners on addresses that are both old and new.
        """
        published = self._found(name)
        old, server = published.mapping, published.server
        gone = [ip for ip in old.host_ips if ip not in host_ips]
        self._unsteer(old, [ip for ip in gone if ip in published.steered])
        server.leave(gone)
        steered = [ip for ip in published.steered if ip not in gone]
        refused: dict[str, PortfwdError] = {}
        for ip in host_ips:
            if ip not in old.host_ips:
                bound = Bound(replace(old, host_ips=(ip,)), ())
                try:
                    self._refuse(bound.mapping)
                    self._take(bound, ip)
                    server.listen_on(bound.sockets)
                    steered += bound.steered
                    published.unsteered = bound.unsteered or published.unsteered
                except PortfwdError as error:
                    refused[ip] = error
                except OSError as error:
                    self._unsteer(old, bound.steered)
                    server.leave([ip])
                    bound.close()
                    refused[ip] = Lacking(f"cannot watch the ports of {name} on {ip}", error.strerror or str(error))
        self._claims.take(old)
        published.steered = tuple(steered)
        published.mapping = server.mapping = replace(old, host_ips=tuple(ip for ip in host_ips if ip not in refused))
        self._claims.put(published.mapping)
        return refused

    def _retain(self, changed: Mapping) -> None:
        """Tell `places` which namespaces are in use, if the mapping that came, went or changed names one."""
        if any(target.place for target in changed.targets):
            targets = [target for published in self._published.values() for target in published.mapping.targets]
            self.places.retain({target.place for target in targets if target.place})

    def _refuse_loop(self, mapping: Mapping) -> None:
        """Unfit for a mapping whose connections come back to it: each one would make the next."""
        check_use(mapping)
        way = way_back(mapping, self._having, self._is_here)
        if way:
            through = f", by way of {', '.join(one.id for one in way[1:])}" if way[1:] else ""
            raise Unfit(f"{mapping} leads back to itself{through}", "its target is a port of this host that we serve")

    def _having(self, protocol: str, ports: range) -> list[Mapping]:
        return [self._published[name].mapping for name in self._claims.having(protocol, ports)]

    def _is_here(self, target: Target) -> bool:
        return self.places.means_here(target.place) and relay_bind.is_local(plain_ip(target.address))

    def _take(self, bound: Bound, ip: str) -> None:
        """Bind one socket for all ports of an address, or one per port.

        A link-local address (fe80::1%eth0) is not steered: the program does not compare interfaces.
        """
        if "%" in ip or not self._steers(bound.mapping) or not self._steer(bound, ip):
            bound.bind(ip)

    def _listen(self, bound: Bound, notes: list[str]) -> None:
        """Bind sockets for every address, if need be by steering. PortInUse, PortfwdError."""
        mapping = bound.mapping
        refusal: PortfwdError | None = None
        for ip in mapping.host_ips:
            if bound.has(ip):
                continue
            try:
                self._take(bound, ip)
            except NoSuchFamily as error:
                refusal = error
                notes.append(f"{mapping.span} is not published on [{ip}]: {error.details}")
            except PortInUse:
                if mapping.steer != "fallback" or mapping.protocol != "tcp":
                    raise
                if mapping.owner:
                    relay_bind.refuse_held(mapping.protocol, [ip], mapping.ports, mapping.owner)
                if not self._steer(bound, ip):
                    raise
        if refusal is not None and not bound.sockets:
            raise refusal

    def _steers(self, mapping: Mapping) -> bool:
        return mapping.steer == "always" or (mapping.steer == "auto" and len(mapping.ports) >= RANGE_MIN)

    def _steer(self, bound: Bound, ip: str) -> bool:
        """Steer all ports of an address to one socket. False where the kernel cannot; with `always` Lacking."""
        mapping = bound.mapping
        sock = relay_bind.bind_steered(mapping.protocol, ip, mapping.ports)
        try:
            if self.steering is None:
                raise Lacking("no ports are steered here", self.unsteered)
            self.steering.put(Range(mapping.protocol, ip, mapping.first, mapping.last), sock)
        except Lacking as error:
            sock.close()
            if mapping.steer == "always":
                raise
            bound.unsteered = str(error)
            # once for each reason: a mapping that waits is tried again and again
            if self.steering is not None and self._said.get(mapping.id) != error.details:
                self._said[mapping.id] = error.details
                log.warning("%s: %s", mapping.id, error)
            return False
        except BaseException:
            sock.close()
            raise
        bound.sockets.append((sock, ip, 0))
        bound.steered.append(ip)
        return True

    def _unsteer(self, mapping: Mapping, ips: Iterable[str]) -> None:
        for ip in ips:
            assert self.steering is not None
            try:
                self.steering.take(Range(mapping.protocol, ip, mapping.first, mapping.last))
            except PortfwdError as error:
                log.error("%s: %s", mapping.id, error)

    def _serve(self, mapping: Mapping, bound: Bound) -> TcpPort | UdpPort:
        if mapping.protocol == "tcp":
            ours = [Listener(sock, ip, port) for sock, ip, port in bound.sockets]
            return self.tcp_port(mapping, ours)
        return self.udp_port(mapping, [(sock, port) for sock, _, port in bound.sockets])

    def tcp_port(self, mapping: Mapping, ours: Sequence[Listener]) -> TcpPort:
        """The TCP side of a mapping, with its listeners. Lacking."""
        return TcpPort(mapping, ours, self.places, self.poller, self.pipes)

    def udp_port(self, mapping: Mapping, bound: Sequence[tuple[socket.socket, int]]) -> UdpPort:
        """The UDP side of a mapping, with its sockets and the port of each."""
        return UdpPort(mapping, bound, self.places, self.poller)

    def replace(self, mapping: Mapping) -> None:
        """Give a mapping other targets and options. Usage when its ports or addresses differ; NotFound."""
        published = self._found(mapping.id)
        self._refuse_loop(mapping)
        old = published.mapping
        same = ("protocol", "host_ips", "first", "last", "follow")
        if any(getattr(old, name) != getattr(mapping, name) for name in same):
            raise Usage(f"mapping {mapping.id} has other ports or addresses", "remove it and publish it anew")
        published.mapping = mapping
        published.server.update(mapping)
        self._retain(old)
        self._retain(mapping)

    def remove(self, name: str, drain_s: float = 0.0) -> None:
        """Stop listening for a mapping; its connections are cut after drain_s seconds. NotFound."""
        published = self._found(name)
        del self._published[name]
        self._claims.take(published.mapping)
        self._retain(published.mapping)
        self._unsteer(published.mapping, published.steered)
        self._said.pop(name, None)
        if drain_s > 0:
            published.server.drain(self.poller.now + drain_s)
            self._draining.append(published.server)
        else:
            published.server.close()

    @property
    def published(self) -> list[Published]:
        """All mappings with their servers."""
        return list(self._published.values())

    @property
    def draining_servers(self) -> list[TcpPort | UdpPort]:
        """The servers of removed mappings whose connections still run."""
        return list(self._draining)

    def adopt(self, published: Published) -> None:
        """Take over a mapping of a predecessor: its sockets are in its server, its ranges are steered already."""
        self._published[published.mapping.id] = published
        self._claims.put(published.mapping)

    def adopt_draining(self, server: TcpPort | UdpPort) -> None:
        """Take over the running connections of a mapping that a predecessor had removed."""
        self._draining.append(server)

    def _found(self, name: str) -> Published:
        published = self._published.get(name)
        if published is None:
            raise NotFound(f"there is no mapping {name}")
        return published

    def server(self, name: str) -> TcpPort | UdpPort:
        """The server of a mapping. NotFound."""
        return self._found(name).server

    def stats(self) -> dict[str, dict[str, object]]:
        """By id: the counters, the targets that count as dead, and how the mapping is served."""
        now = self.poller.now
        left_out = relay_bind.left_out()
        return {
            name: {
                **published.server.counters.to_json(),
                "dead_targets": [str(target) for target in published.server.balancer.dead(now)],
                **published.ways(),
                "left_out": [ip for ip in published.mapping.host_ips if ip in left_out],
            }
            for name, published in self._published.items()
        }

    def unheard(self) -> dict[str, list[str]]:
        """By id, the programs that listen on a port of a steered range: they bound it afterwards, and get no clients."""
        ranges = [one for one in self._published.values() if one.steered and len(one.mapping.ports) >= RANGE_MIN]
        found: dict[str, list[str]] = {}
        for one in holders.waiting((each.mapping.protocol, each.mapping.first, each.mapping.last) for each in ranges):
            for each in ranges:
                mapping = each.mapping
                if one.protocol != mapping.protocol or one.port not in mapping.ports:
                    continue
                ip = next((ip for ip in each.steered if holders.in_the_way(one, ip)), "")
                said = found.setdefault(mapping.id, []) if ip else []
                if ip and len(said) < UNHEARD_MAX:
                    said.append(f"{one.port}/{one.protocol} of {holders.describe(one.protocol, ip, one.port)}")
        return found

    @property
    def draining(self) -> int:
        """How many connections of removed mappings still run."""
        return sum(server.counters.active for server in self._draining)

    def sweep(self) -> None:
        """Apply time limits. Call every SWEEP_S seconds."""
        now = self.poller.now
        servers = [published.server for published in self._published.values()] + self._draining
        self.places.tcp_legs.sweep()
        thorough = now >= self._next_look
        if thorough:
            self._next_look = now + LOOK_AT_ALL_S
            self.places.expire(now)
        self._share_descriptors(servers, now)
        for server in servers:
            server.sweep(now)
            if thorough and isinstance(server, TcpPort):
                server.look_at_all(now)
        self._draining = [server for server in self._draining if server.counters.active]

    def _share_descriptors(self, servers: Sequence[TcpPort | UdpPort], now: float) -> None:
        """End UDP flows that are likely over when TCP clients wait for descriptors."""
        starving = [server for server in servers if isinstance(server, TcpPort) and server.starving]
        for server in starving:
            server.starving = False
        for flows in servers if starving else ():
            if isinstance(flows, UdpPort):
                flows.give_up(now)

    def drain(self, drain_s: float) -> None:
        """Remove all mappings; their connections are cut after drain_s seconds."""
        for name in list(self._published):
            self.remove(name, drain_s)

    def close(self) -> None:
        """Remove all mappings and cut all connections."""
        self.drain(0.0)
        for server in self._draining:
            server.close()
        self._draining.clear()
        self.pipes.close()


class Bound:
    """The sockets of a mapping while it is being published."""

    __slots__ = ("mapping", "sockets", "steered", "unsteered")

    def __init__(self, mapping: Mapping, given: Iterable[socket.socket]) -> None:
        self.mapping = mapping
        self.sockets: list[tuple[socket.socket, str, int]] = []  # with its address and port, 0 for a steered one
        self.steered: list[str] = []
        self.unsteered = ""
        for sock in given:
            self._accept(sock)

    def _accept(self, sock: socket.socket) -> None:
        ip, port = sock.getsockname()[:2]
        kind = socket.SOCK_STREAM if self.mapping.protocol == "tcp" else socket.SOCK_DGRAM
        if sock.type != kind or ip not in self.mapping.host_ips or port not in self.mapping.ports:
            raise Usage(f"the socket given is bound to {ip} port {port}, which is not the mapping's", str(self.mapping))
        if kind == socket.SOCK_STREAM:
            relay_bind.listen(sock, ip, port)
        else:
            relay_bind.prepare_udp(sock)
        self.sockets.append((sock, ip, port))

    def has(self, ip: str) -> bool:
        """Whether a socket was given for the address."""
        return any(known == ip for _, known, _ in self.sockets)

    def bind(self, ip: str) -> None:
        """Bind all ports of an address, or none. PortInUse, PortfwdError."""
        make = relay_bind.bind_tcp if self.mapping.protocol == "tcp" else relay_bind.bind_udp
        new: list[tuple[socket.socket, str, int]] = []
        try:
            new.extend((make(ip, port), ip, port) for port in self.mapping.ports)
        except BaseException:
            for sock, _, _ in new:
                sock.close()
            raise
        self.sockets += new

    def close(self) -> None:
        """Close all sockets, the given ones, too."""
        for sock, _, _ in self.sockets:
            sock.close()
