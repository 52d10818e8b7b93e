"""One TCP connection: a client's socket, a target's socket, and the two directions between them.

    listener.py  accepts ─→ tcp.py  admits ─→ dial(): connect to a target ─→ pump.py  moves bytes each way ─→ close()

A connection has no task and no future: its two sockets are watched edge-triggered for their whole life (poller.py), and a small
message costs one recv(2) and one send(2). The end of one direction is passed on by shutdown(2) while the other goes on
(half-close, RFC 9293 section 3.6). A reset is passed on as a reset.

A client that ends its side before a target has answered has either closed or waits for an answer (`nc -N`): TCP does not tell
which. So the dial goes on, but when a limit is reached such a client is the first to be cut. A client that resets is gone.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from cni_py.errors import CniError
from portfwd.errors import PortfwdError
from portfwd.relay.bind import set_keepalive
from portfwd.relay.poller import EDGE, ERROR, HANGUP, READ, URGENT, WRITE
from portfwd.relay.pump import Direction

if TYPE_CHECKING:
    from portfwd.mapping import Target
    from portfwd.netns.legs import Leg, Link
    from portfwd.relay.tcp import TcpPort

log = logging.getLogger("portfwd")

QUIET_S = 5.0  # without traffic: pipes are given back, and the target gets keepalive probes (four calls, so not before)
# struct linger, on with 0 seconds: close(2) drops what is unsent and sends RST in place of FIN (socket(7)), so that the peer does
# not take what it got for all there was, and no socket stays behind in FIN-WAIT or TIME-WAIT.
RESET = struct.pack("ii", 1, 0)


class Connection:
    """See the module. `target` is None until connect(2) has begun; `up` and `down` are None until it has succeeded."""

    __slots__ = (
        "active_at",
        "behind",
        "candidates",
        "client",
        "client_ip",
        "connected",
        "deadline",
        "down",
        "early",
        "kept_alive",
        "leg",
        "preface",
        "server",
        "serving",
        "target",
        "up",
    )

    def __init__(self, server: TcpPort, client: socket.socket, client_ip: str, behind: Link | None = None) -> None:
        self.server = server
        self.client = client
        self.client_ip = client_ip
        self.behind = behind  # set when the client is a socket of this service: see netns/legs.py
        self.leg: Leg | None = None
        self.target: socket.socket | None = None
        self.serving: Target | None = None
        self.candidates: list[tuple[Target, int]] = []  # still to be tried, each with the port
        self.preface = b""  # the PROXY protocol's header
        self.connected = False
        self.early = 0  # events of the client before there is a target: edges are reported once
        self.kept_alive = False
        self.active_at = server.poller.now
        self.deadline = 0.0  # of connect(2)
        self.up: Direction | None = None  # from the client to the target
        self.down: Direction | None = None  # from the target to the client

    def dial(self) -> None:
        """Begin to connect to the next candidate; cut the client off when there is none.

        OSError (ENOSPC) when the kernel watches no more sockets: fs.epoll.max_user_watches.
        """
        if self.deadline == 0.0:  # the first of this connection
            self.server.poller.watch(self.client.fileno(), EDGE, self.on_client)
        while self.candidates:
            self.serving, number = self.candidates.pop(0)
            try:
                if self._connect(self.serving, number):
                    return
            except (PortfwdError, CniError) as error:
                self._dial_failed(str(error))
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):  # not the target's fault: the next one would fail, too
                    self.server.out_of_descriptors()
                    break
                self._dial_failed(error.strerror or str(error))
        self.server.counters.failed += 1
        self.cut()

    def _connect(self, target: Target, number: int) -> bool:
        """Begin connect(2) to a port of a target. False when it failed at once. OSError, PortfwdError."""
        family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
        self.target = self.server.places.socket(target.place, family, socket.SOCK_STREAM)
        self.target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        result = self.target.connect_ex((target.address, number))
        if result not in (0, errno.EINPROGRESS):
            self._dial_failed(os.strerror(result))
            return False
        places = self.server.places
        asked = (target.address, number)
        self.leg = places.tcp_legs.add(
            self.target, self.server, self, self.behind, asked, here=places.is_here(target.place)
        )
        self.deadline = self.server.poller.now + self.server.mapping.connect_timeout_s
        self.server.poller.watch(self.target.fileno(), EDGE, self.on_target)
        self.server.connecting[self] = None
        self._note_end()
        return True

    def _dial_failed(self, why: str) -> None:
        if self.serving is not None:
            self.server.target_failed(self.serving, why)
        if self.target is not None:
            self._close_target()

    def _close_target(self) -> None:
        assert self.target is not None
        self.server.dialled(self)
        self.server.poller.gone(self.target.fileno())
        self.target.close()
        self.target = None
        if self.leg is not None:
            self.server.places.tcp_legs.forget(self.leg, linger=True)
            self.leg = None

    def timed_out(self) -> None:
        """connect(2) took longer than connect_timeout_s."""
        try:
            self._dial_failed("it does not answer")
            self.dial()
        except Exception as error:  # noqa: BLE001  logged there
            self.fail(error)

    def on_target(self, events: int) -> None:
        """The target's socket has events."""
        try:
            if self.connected:
                self._on_events(events, self.down, self.up)
            elif self.target is not None and events:
                self._on_connected(events, self.target)
        except Exception as error:  # noqa: BLE001  logged there
            self.fail(error)

    def _on_connected(self, events: int, target: socket.socket) -> None:
        # The outcome of a non-blocking connect(2) is in SO_ERROR, connect(2) EINPROGRESS.
        failed = target.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & ERROR else 0
        if failed:
            self._dial_failed(os.strerror(failed))
            self.dial()
            return
        if not events & WRITE:
            return
        self.server.dialled(self)
        if self.serving is not None:
            self.server.balancer.worked(self.serving)
        up = self._join(target)
        up.pending = self.preface  # goes out before anything of the client's
        self._on_events(events, self.down, up)
        self._on_events(self.early, self.up, self.down)

    def _join(self, target: socket.socket) -> Direction:
        """Make the two directions between the sockets; returns the one to the target."""
        self.connected = True
        pipes, counters = self.server.pipes, self.server.counters
        self.up = Direction(self, self.client, target, pipes, counters, inward=True)
        self.down = Direction(self, target, self.client, pipes, counters, inward=False)
        return self.up

    def resume(self, target: socket.socket, serving: Target | None, *, connected: bool) -> None:
        """Go on with what a predecessor began. A new watch reports what is pending as new edges, so that nothing is missed."""
        self.target = target
        self.serving = serving
        self._note_leg(target)
        self.server.poller.watch(target.fileno(), EDGE, self.on_target)
        self.server.poller.watch(self.client.fileno(), EDGE, self.on_client)
        self.deadline = self.server.poller.now + self.server.mapping.connect_timeout_s
        if connected:
            self._join(target)
        else:
            self.server.connecting[self] = None

    def _note_leg(self, target: socket.socket) -> None:
        try:
            ip, number, *_ = target.getpeername()
        except OSError:  # not connected yet
            asked = None
        else:
            asked = (ip, number)
        places = self.server.places
        here = self.serving is not None and places.means_here(self.serving.place)
        with suppress(OSError):
            self.leg = places.tcp_legs.add(target, self.server, self, None, asked, here=here)

    def on_client(self, events: int) -> None:
        """The client's socket has events."""
        try:
            if self.connected:
                self._on_events(events, self.up, self.down)
            elif events & ERROR:
                self.abort()
            else:
                self.early |= events
                self._note_end()
        except Exception as error:  # noqa: BLE001  logged there
            self.fail(error)

    def _note_end(self) -> None:
        """Remember a client that has ended its side before a target has answered: see the module."""
        if self.early & HANGUP:
            self.server.ended[self] = None

    def _on_events(self, events: int, out: Direction | None, back: Direction | None) -> None:
        """Pump after events of a socket: `out` reads from it, `back` writes to it. OSError ends the connection."""
        if out is None or back is None:  # closed by an event before this one
            return
        self.active_at = self.server.poller.now
        if events & ~(READ | WRITE):
            out.reads_on = True
            if events & URGENT:
                # Pass an urgent byte on in its place in the stream, like any other: the relay cannot know when the target wants
                # to read it out of turn.
                out.src.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if events & ~WRITE:
            out.readable = True
            out.pump()  # also before a reset is passed on: what the peer sent before it goes first, as far as it can now
        if events & ERROR and self.up is not None:
            self.abort()
            return
        if events & WRITE and not back.writable:
            back.writable = True
            back.pump()
        elif self.up is not None and self.up.pending and not self.up.ended:
            self.up.pump()  # the PROXY protocol's header: nothing of the client's may have come to send it with

    def go_on_later(self) -> None:
        """Pump again in the next round: others have their turn first."""
        self.server.poller.soon(self.go_on)

    def go_on(self, _: int) -> None:
        """Pump both directions; the events are none."""
        try:
            for direction in (self.up, self.down):
                if direction is not None:
                    direction.pump()
        except Exception as error:  # noqa: BLE001  logged there
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End this connection, and nothing else, for an error. One that is no OSError is a fault of portfwd, and is logged."""
        if not isinstance(error, OSError):
            log.error("%s: an error of portfwd itself; please report it", self.server.mapping.id, exc_info=error)
        self.abort()

    def half_ended(self) -> None:
        """One direction has passed on its end; when both have, close."""
        if self.up is not None and self.down is not None and self.up.ended == self.down.ended == 2:
            self.close()

    def abort(self) -> None:
        """Count an error and pass it on to both sides as a reset."""
        self.server.counters.errors += 1
        self.cut()

    def cut(self) -> None:
        """Close both sides with a reset: see RESET."""
        for side in (self.client, self.target):
            if side is not None:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close()

    def close(self) -> None:
        """Close both sides."""
        for direction in (self.up, self.down):
            if direction is not None:
                direction.give_back_pipe()
        self.server.poller.gone(self.client.fileno())
        self.up = self.down = None
        if self.target is not None:
            self._close_target()
        self.client.close()
        self.server.left(self)

    def keep_alive(self) -> None:
        """Have the kernel probe a silent target. The client's socket inherits its keepalive from the listener (bind.py)."""
        self.kept_alive = True
        if self.target is not None:
            set_keepalive(self.target)

    def rest(self) -> None:
        """Give back empty pipes: nothing flows."""
        for direction in (self.up, self.down):
            if direction is not None and direction.pipe is not None and not direction.pipe.filled:
                direction.give_back_pipe()
