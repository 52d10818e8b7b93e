"""The TCP side of one mapping: its listeners, its connections, and where a new one goes."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from portfwd import proxyproto
from portfwd.admission import Admission
from portfwd.balance import Balancer
from portfwd.counters import Counters
from portfwd.poller import LEVEL
from portfwd.tcp import QUIET_S, RESET, Connection

if TYPE_CHECKING:
    from portfwd.mapping import Mapping, Target
    from portfwd.places import Places
    from portfwd.poller import Poller
    from portfwd.splice import Pipes

log = logging.getLogger("portfwd")

BATCH = 64  # connections accepted in one go
CONNECTIONS_MAX = 65536  # of a mapping at a time, where it names no limit
BACK_OFF_S = 0.1  # after accept(2) failed for want of something
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(slots=True)
class Listener:
    """A listening socket; `port` is 0 for one that a redirect rule feeds."""

    sock: socket.socket
    ip: str
    port: int
    paused_until: float = 0.0


class TcpPort:
    """See the module. `listeners` are its own; the redirect listener of the whole process calls begin()."""

    def __init__(
        self, mapping: Mapping, listeners: Sequence[Listener], places: Places, poller: Poller, pipes: Pipes
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
        self.cut_at = 0.0  # while draining: when what is left is cut
        self._said = 0.0
        for listener in self.listeners:
            self._listen(listener)

    def _listen(self, listener: Listener) -> None:
        self.poller.watch(listener.sock.fileno(), LEVEL, partial(self._accept, listener))

    def _accept(self, listener: Listener, _: int) -> None:
        sock = listener.sock
        for _ in range(BATCH):
            try:
                client, address = sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._pause(listener, error)
                    return
                continue  # that one connection is lost: ECONNABORTED, EPROTO and others, accept(2)
            client.setblocking(False)
            self.begin(client, address, listener.port)

    def _pause(self, listener: Listener, error: OSError) -> None:
        """Leave further clients in the backlog for a moment; sweep() listens again."""
        self.counters.errors += 1
        self.say(f"cannot accept connections: {error.strerror}; trying again every {BACK_OFF_S:g} s")
        self.poller.forget(listener.sock.fileno())
        listener.paused_until = self.poller.now + BACK_OFF_S

    def out_of_descriptors(self) -> None:
        """A client was accepted whose target's socket cannot be made: leave the next ones in the backlog."""
        for listener in self.listeners:
            if not listener.paused_until:
                self._pause(listener, OSError(errno.EMFILE, "no descriptor is left for the target's socket"))

    def say(self, text: str) -> None:
        """Log, at most once per second for the mapping."""
        if self.poller.now >= self._said:
            self._said = self.poller.now + 1.0
            log.warning("%s: %s", self.mapping.id, text)

    def begin(self, client: socket.socket, address: tuple[str, int], port: int, host_ip: str = "") -> None:
        """Take on a client who connected to `port`, of `host_ip` if that is known already."""
        ip = address[0]
        if not self.admission.allows(ip) or not self.admission.enter(ip):
            self.counters.refused += 1
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            return
        self.counters.connections += 1
        connection = Connection(self, client, ip)
        self._enter(connection)
        mapping = self.mapping
        if len(mapping.targets) == 1:
            target = mapping.targets[0]
            connection.candidates = [(target, mapping.target_port(target, port))]
        else:
            ordered = self.balancer.order(ip, self.poller.now)
            connection.candidates = [(target, mapping.target_port(target, port)) for target in ordered]
        if mapping.proxy_protocol:
            here = host_ip or client.getsockname()[0]
            connection.preface = proxyproto.header(mapping.proxy_protocol, "tcp", address[:2], (here, port))
        connection.dial()

    def _enter(self, connection: Connection) -> None:
        self.counters.active += 1
        self.connections.add(connection)

    def adopt(self, connection: Connection) -> None:
        """Take on a connection that a predecessor accepted, whatever the limits now say."""
        self.admission.enter(connection.client_ip)
        self._enter(connection)

    def left(self, connection: Connection) -> None:
        """A connection has been closed."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.connecting.discard(connection)
            self.counters.active -= 1
            self.admission.leave(connection.client_ip)

    def target_failed(self, target: Target, why: str) -> None:
        """A connection to it could not be made."""
        self.balancer.failed(target, self.poller.now)
        self.places.forget(target.place)
        self.say(f"target {target} cannot be reached: {why}")

    def target_worked(self, target: Target) -> None:
        """A connection to it was made."""
        if len(self.mapping.targets) > 1:
            self.balancer.worked(target)

    def sweep(self, now: float) -> None:
        """What time has brought: listen again, give up connecting, cut what is idle or drained too long."""
        for listener in self.listeners:
            if listener.paused_until and now >= listener.paused_until:
                listener.paused_until = 0.0
                self._listen(listener)
        for connection in [one for one in self.connecting if now >= one.deadline]:
            connection.timed_out()
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
        self.admission = self.admission.successor(mapping, CONNECTIONS_MAX)
        self.balancer = Balancer(mapping.targets, mapping.balance)

    def stop_listening(self) -> None:
        """Refuse new connections; those in the backlog are reset by the kernel."""
        for listener in self.listeners:
            if not listener.paused_until:
                self.poller.forget(listener.sock.fileno())
            listener.sock.close()
        self.listeners.clear()

    def drain(self, until: float) -> None:
        """No new connections; running ones may end by themselves until then."""
        self.stop_listening()
        self.cut_at = until

    def close(self) -> None:
        """Everything, at once."""
        self.stop_listening()
        for connection in list(self.connections):
            connection.cut()
