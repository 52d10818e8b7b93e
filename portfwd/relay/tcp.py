"""The TCP side of one mapping: its listeners, its connections, who is let in, and to which target a new connection goes."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from portfwd.errors import Lacking
from portfwd.netns.legs import link, plain_ip
from portfwd.relay import host_only, proxyproto
from portfwd.relay.admission import Admission
from portfwd.relay.balance import Balancer
from portfwd.relay.bind import original_destination
from portfwd.relay.connection import QUIET_S, RESET, Connection
from portfwd.relay.counters import Counters, Tally
from portfwd.relay.listener import BACK_OFF_S, Listener

if TYPE_CHECKING:
    from portfwd.mapping import Mapping, Target
    from portfwd.netns.sockets import Places
    from portfwd.relay.poller import Poller
    from portfwd.relay.pump import Pipes

log = logging.getLogger("portfwd")

CONNECTIONS_MAX = 65536  # at a time, of a mapping without a limit of its own
ENDED_LOOK_MAX = 256  # of `ended`, how many are searched for one to cut


class TcpPort:
    """See the module. Lacking when the kernel watches no more listeners."""

    __slots__ = (
        "_said",
        "_tally",
        "admission",
        "balancer",
        "connecting",
        "connections",
        "counters",
        "cut_at",
        "ended",
        "listeners",
        "mapping",
        "pipes",
        "places",
        "poller",
        "starving",
    )

    def __init__(
        self,
        mapping: Mapping,
        listeners: Sequence[Listener],
        places: Places,
        poller: Poller,
        pipes: Pipes,
    ) -> None:
        self.mapping = mapping
        self.listeners = list(listeners)
        self.places = places
        self.poller = poller
        self.pipes = pipes
        self.counters = Counters()
        self.admission = Admission(mapping, CONNECTIONS_MAX)
        self.balancer = Balancer(mapping.targets, mapping.balance)
        # Dicts without values, since a host has thousands of ports: an empty set takes 216 bytes, an empty dict 64.
        self.connections: dict[Connection, None] = {}
        self.connecting: dict[Connection, None] = {}
        self.ended: dict[Connection, None] = {}  # of `connecting`, those whose client has ended its side, oldest first
        self.starving = False  # clients have waited for descriptors since the last sweep of the relay
        self.cut_at = 0.0  # while draining: when what is left is cut
        self._said = 0.0
        self._tally = Tally()
        try:
            for listener in self.listeners:
                listener.listen(poller, self)
        except OSError as error:
            self.stop_listening()
            raise Lacking(f"cannot watch the ports of {mapping}", error.strerror or str(error)) from error

    def take_on(self, client: socket.socket, address: tuple[str, int], listener: Listener) -> None:
        """Serve a client that a listener has accepted, or reset it: the first step of a connection."""
        if listener.asks and not host_only.came_by_lo(client):
            self.counters.refused += 1
            reset(client)
            return
        port = listener.port or client.getsockname()[1]
        if port in self.mapping.ports:
            self.begin(client, address, port)
        else:  # it came to the port that a steered socket is bound to, on loopback: see bind.bind_steered()
            reset(client)

    def lacking(self, why: str) -> None:
        """Take note that clients wait in the backlog, and give back what can be spared."""
        self.counters.errors += 1
        self.counters.starved += 1
        self.pipes.close()  # idle ones: two descriptors each
        self.starving = True
        self._tally.add(f"times that clients had to wait for {BACK_OFF_S:g} s ({why})")

    def out_of_descriptors(self) -> None:
        """Leave clients in the backlog: one was accepted, and no descriptor is left for its target."""
        self.lacking("no descriptor is left for the target's socket")
        for listener in self.listeners:
            listener.pause()

    def say(self, text: str) -> None:
        """Log, at most once per second for the mapping."""
        if self.poller.now >= self._said:
            self._said = self.poller.now + 1.0
            log.warning("%s: %s", self.mapping.id, text)

    def begin(self, client: socket.socket, address: tuple[str, int], port: int) -> None:
        """Admit a client that connected to `port`, and begin to connect it to a target."""
        ip = address[0]
        legs = self.places.tcp_legs.at(address)
        behind = link(legs, asked_for(client)) if legs else None
        if behind is not None and behind.leads_back_to(self):
            self.counters.refused += 1
            self.counters.loops += 1
            reset(client)
            behind.leg.server.came_back(behind.leg.owner, f"port {port}/tcp of mapping {self.mapping.id}")
            return
        if not self._admits(client, ip):
            reset(client)
            return
        self.counters.connections += 1
        connection = Connection(self, client, ip, behind)
        self._enter(connection)
        try:
            self._direct(connection, address, port)
        except Exception as error:  # noqa: BLE001  logged there
            connection.fail(error)

    def _admits(self, client: socket.socket, ip: str) -> bool:
        """Whether the client is allowed, within the limits and still there; it is counted in then."""
        if not self.admission.allows(ip):
            self.counters.refused += 1
            self._tally.add("clients that are not allowed")
            return False
        if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # it was reset while it waited in the backlog
            self.counters.connections += 1
            self.counters.errors += 1
            return False
        if self.admission.enter(ip) or (self._cut_one_that_ended(ip) and self.admission.enter(ip)):
            return True
        self.counters.refused += 1
        self.counters.limited += 1
        self._tally.add(f"clients beyond {self.admission.reached(ip)}")
        return False

    def _cut_one_that_ended(self, ip: str) -> bool:
        """Cut the oldest client that ended its side before a target answered, which may be gone: see connection.py."""
        own = self.admission.at_cap(ip)
        for connection in islice(self.ended, ENDED_LOOK_MAX):
            if not own or connection.client_ip == ip:
                connection.abort()
                return True
        return False

    def came_back(self, owner: object, where: str) -> None:
        """Take the target of `owner`, a connection, for dead: it leads back to this service (netns/legs.py)."""
        if isinstance(owner, Connection) and owner.serving is not None:
            self.target_failed(owner.serving, f"it leads back to {where}")

    def _direct(self, connection: Connection, address: tuple[str, int], port: int) -> None:
        """Choose the order of targets to try, write the PROXY header, and dial."""
        mapping = self.mapping
        if len(mapping.targets) == 1:
            target = mapping.targets[0]
            connection.candidates = [(target, mapping.target_port(target, port))]
        else:
            ordered = self.balancer.order(address[0], self.poller.now)
            connection.candidates = [(target, mapping.target_port(target, port)) for target in ordered]
        if mapping.proxy_protocol:
            here = connection.client.getsockname()[0]
            connection.preface = proxyproto.header(mapping.proxy_protocol, "tcp", address[:2], (here, port))
        connection.dial()

    def _enter(self, connection: Connection) -> None:
        self.counters.active += 1
        self.connections[connection] = None

    def adopt(self, connection: Connection) -> None:
        """Serve a connection that a predecessor accepted, whatever the limits say now."""
        self.admission.admit(connection.client_ip)
        self._enter(connection)

    def dialled(self, connection: Connection) -> None:
        """Note that a connection is no longer connecting to a target."""
        self.connecting.pop(connection, None)
        self.ended.pop(connection, None)

    def left(self, connection: Connection) -> None:
        """Forget a connection that was closed."""
        if connection in self.connections:
            del self.connections[connection]
            self.dialled(connection)
            self.counters.active -= 1
            self.admission.leave(connection.client_ip)

    def target_failed(self, target: Target, why: str) -> None:
        """Take a target for dead, since it could not be reached, and say so in the log."""
        self.balancer.failed(target, self.poller.now)
        self.places.forget(target.place)
        self.say(f"target {target} cannot be reached: {why}")

    def sweep(self, now: float) -> None:
        """Apply short time limits: resume paused listeners, give up connecting, cut what has drained too long."""
        for listener in self.listeners:
            listener.resume(self.poller)
        for connection in [one for one in self.connecting if now >= one.deadline]:
            connection.timed_out()
        self._tally.say(self.mapping.id, now)
        if self.cut_at and now >= self.cut_at:
            for connection in list(self.connections):
                connection.abort()

    def look_at_all(self, now: float) -> None:
        """Look at every connection, seldom: cut those idle for too long; for quiet ones give back pipes and set keepalive."""
        idle_s = self.mapping.idle_s
        for connection in list(self.connections):
            quiet_s = now - connection.active_at
            if idle_s and quiet_s >= idle_s and connection.connected:
                connection.abort()
            elif quiet_s >= QUIET_S:
                connection.rest()
                if not connection.kept_alive:
                    connection.keep_alive()

    def update(self, mapping: Mapping) -> None:
        """Take other targets and options, for connections to come."""
        self.mapping = mapping
        inside = [connection.client_ip for connection in self.connections]
        self.admission = self.admission.successor(mapping, CONNECTIONS_MAX, inside)
        self.balancer = Balancer(mapping.targets, mapping.balance)

    def listen_on(self, bound: Sequence[tuple[socket.socket, str, int]]) -> None:
        """Accept clients of these sockets, too, each with its address and port. OSError; some of them may listen then."""
        for sock, ip, port in bound:
            self.listeners.append(Listener(sock, ip, port))
            self.listeners[-1].listen(self.poller, self)

    def leave(self, ips: Sequence[str]) -> None:
        """Stop listening on these addresses. Running connections stay."""
        for listener in self.listeners:
            if listener.ip in ips:
                listener.close()
        self.listeners = [listener for listener in self.listeners if listener.ip not in ips]

    def stop_listening(self) -> None:
        """Stop listening. The kernel resets clients in the backlog."""
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()

    def drain(self, until: float) -> None:
        """Stop listening, and cut the connections that still run at the time `until`."""
        self.stop_listening()
        self.cut_at = until

    def close(self) -> None:
        """Stop listening, and cut all connections now."""
        self.stop_listening()
        self._tally.say(self.mapping.id, self.poller.now, last=True)
        for connection in list(self.connections):
            connection.cut()


def reset(client: socket.socket) -> None:
    """Close with a reset: the client fails at once, and does not take a refusal for an empty answer."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


def asked_for(client: socket.socket) -> list[tuple[str, int]]:
    """The addresses that a client asked for: that of its socket, and the one before a NAT of this host."""
    ip, port, *_ = client.getsockname()
    original = original_destination(client)
    return [(plain_ip(ip), port), *([original] if original is not None else [])]
