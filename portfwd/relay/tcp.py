"""The TCP side of one mapping: its listeners, its connections, and where a new one goes."""

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

CONNECTIONS_MAX = 65536  # of a mapping at a time, where it names no limit
ENDED_LOOK_MAX = 256  # connections among which one that can make room is looked for


class TcpPort:
    """See the module. Lacking when the kernel watches no more listeners."""

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
        self.connections: set[Connection] = set()
        self.connecting: set[Connection] = set()
        self.ended: dict[Connection, None] = {}  # of those: whose client has ended its side, in that order
        self.starving = False  # clients have had to wait since this was last looked at
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
        """A client of one of its listeners."""
        if listener.asks and not host_only.came_by_lo(client):
            self.counters.refused += 1
            reset(client)
            return
        port = listener.port or client.getsockname()[1]
        if port in self.mapping.ports:
            self.begin(client, address, port)
        else:  # it came by the port that the socket has itself (bind.bind_steered)
            reset(client)

    def lacking(self, why: str) -> None:
        """Clients wait in the backlog."""
        self.counters.errors += 1
        self.counters.starved += 1
        self.pipes.close()  # those that are kept for the next bulk: two descriptors each
        self.starving = True
        self._tally.add(f"times that clients had to wait for {BACK_OFF_S:g} s ({why})")

    def out_of_descriptors(self) -> None:
        """A client was accepted whose target's socket cannot be made: leave the next ones in the backlog."""
        self.lacking("no descriptor is left for the target's socket")
        for listener in self.listeners:
            listener.pause()

    def say(self, text: str) -> None:
        """Log, at most once per second for the mapping."""
        if self.poller.now >= self._said:
            self._said = self.poller.now + 1.0
            log.warning("%s: %s", self.mapping.id, text)

    def begin(self, client: socket.socket, address: tuple[str, int], port: int) -> None:
        """Take on a client who connected to `port`."""
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
        """Whether the allow list and the limits let a client in, that is still there; it counts from then on."""
        if not self.admission.allows(ip):
            self.counters.refused += 1
            self._tally.add("clients that are not allowed")
            return False
        if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # it reset while it waited in the backlog
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
        """Make room: a client that has ended its side before a target answered may wait for an answer, or be gone."""
        own = self.admission.at_cap(ip)
        for connection in islice(self.ended, ENDED_LOOK_MAX):
            if not own or connection.client_ip == ip:
                connection.abort()
                return True
        return False

    def came_back(self, owner: object, where: str) -> None:
        """The target of a connection of ours is this service: see netns/legs.py."""
        if isinstance(owner, Connection) and owner.serving is not None:
            self.target_failed(owner.serving, f"it leads back to {where}")

    def _direct(self, connection: Connection, address: tuple[str, int], port: int) -> None:
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
        self.connections.add(connection)

    def adopt(self, connection: Connection) -> None:
        """Take on a connection that a predecessor accepted, whatever the limits now say."""
        self.admission.admit(connection.client_ip)
        self._enter(connection)

    def dialled(self, connection: Connection) -> None:
        """It is connecting no longer."""
        self.connecting.discard(connection)
        self.ended.pop(connection, None)

    def left(self, connection: Connection) -> None:
        """A connection has been closed."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.dialled(connection)
            self.counters.active -= 1
            self.admission.leave(connection.client_ip)

    def target_failed(self, target: Target, why: str) -> None:
        """A connection to it could not be made."""
        self.balancer.failed(target, self.poller.now)
        self.places.forget(target.place)
        self.say(f"target {target} cannot be reached: {why}")

    def sweep(self, now: float) -> None:
        """What time has brought: listen again, give up connecting, cut what is idle or drained too long."""
        for listener in self.listeners:
            listener.resume(self.poller)
        for connection in [one for one in self.connecting if now >= one.deadline]:
            connection.timed_out()
        self._tally.say(self.mapping.id, now)
        if self.cut_at and now >= self.cut_at:
            for connection in list(self.connections):
                connection.abort()

    def look_at_all(self, now: float) -> None:
        """The same for what needs a look at every connection, and seldom."""
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
        """Other targets and options for connections to come."""
        self.mapping = mapping
        inside = [connection.client_ip for connection in self.connections]
        self.admission = self.admission.successor(mapping, CONNECTIONS_MAX, inside)
        self.balancer = Balancer(mapping.targets, mapping.balance)

    def listen_on(self, bound: Sequence[tuple[socket.socket, str, int]]) -> None:
        """Accept clients of these sockets, too, each with its address and port. OSError; then of some of them."""
        for sock, ip, port in bound:
            self.listeners.append(Listener(sock, ip, port))
            self.listeners[-1].listen(self.poller, self)

    def leave(self, ips: Sequence[str]) -> None:
        """Accept no more clients on these addresses; those that were accepted stay."""
        for listener in self.listeners:
            if listener.ip in ips:
                listener.close()
        self.listeners = [listener for listener in self.listeners if listener.ip not in ips]

    def stop_listening(self) -> None:
        """Refuse new connections; those in the backlog are reset by the kernel."""
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()

    def drain(self, until: float) -> None:
        """No new connections; running ones may end by themselves until then."""
        self.stop_listening()
        self.cut_at = until

    def close(self) -> None:
        """Everything, at once."""
        self.stop_listening()
        self._tally.say(self.mapping.id, self.poller.now, last=True)
        for connection in list(self.connections):
            connection.cut()


def reset(client: socket.socket) -> None:
    """Close with a reset, so that nothing of the client's waits for anything."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


def asked_for(client: socket.socket) -> list[tuple[str, int]]:
    """Where an accepted client wanted to go: our address, and the one before a NAT of this host."""
    ip, port, *_ = client.getsockname()
    original = original_destination(client)
    return [(plain_ip(ip), port), *([original] if original is not None else [])]
