"""TCP connections: a client's socket and a target's, and what flows between them.

    accept ─→ admitted? ─→ connect to a target ─→ bytes both ways, each way until its end ─→ close
                           a client that resets meanwhile is gone, and the dial with it

No task, future or pipe belongs to a connection: its two sockets are watched edge-triggered (poller.py), a small message costs one
recv(2) and one send(2). A read that fills BULK at once begins to splice (pump.py). The end of one direction is passed on
by shutdown(2) while the other goes on (half-close, RFC 9293 section 3.6); a reset is passed on as a reset. A client that ends its
side before a target has answered has closed, or waits for the answer (`nc -N`): which of them, TCP does not tell. So the dial
goes on, but where a limit is reached such a client is the first to make room.
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
from portfwd.relay.pump import Half

if TYPE_CHECKING:
    from portfwd.mapping import Target
    from portfwd.netns.legs import Leg, Link
    from portfwd.relay.tcp import TcpPort

log = logging.getLogger("portfwd")

QUIET_S = 5.0  # after so long without traffic a pipe is given back, and keepalive probes are worth their three calls
RESET = struct.pack("ii", 1, 0)  # struct linger: close sends RST instead of FIN, socket(7)


class Connection:
    """A client and its target. `target` is None until connect(2) has been begun."""

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
        "port",
        "preface",
        "serving",
        "target",
        "up",
    )

    def __init__(self, port: TcpPort, client: socket.socket, client_ip: str, behind: Link | None = None) -> None:
        self.port = port
        self.client = client
        self.client_ip = client_ip
        self.behind = behind  # the client is a connection of our own
        self.leg: Leg | None = None
        self.target: socket.socket | None = None
        self.serving: Target | None = None
        self.candidates: list[tuple[Target, int]] = []  # still to be tried, each with the port
        self.preface = b""  # the PROXY protocol's header
        self.connected = False
        self.early = 0  # events of the client until there is a target
        self.kept_alive = False
        self.active_at = port.poller.now
        self.deadline = 0.0  # of connect(2)
        self.up: Half | None = None
        self.down: Half | None = None

    def dial(self) -> None:
        """Begin to connect to the next candidate; without one the client is cut off. OSError when the kernel watches no more."""
        if self.deadline == 0.0:  # the first
            self.port.poller.watch(self.client.fileno(), EDGE, self.on_client)
        while self.candidates:
            self.serving, number = self.candidates.pop(0)
            try:
                if self._connect(self.serving, number):
                    return
            except (PortfwdError, CniError) as error:
                self._dial_failed(str(error))
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):  # no fault of any target's
                    self.port.out_of_descriptors()
                    break
                self._dial_failed(error.strerror or str(error))
        self.port.counters.failed += 1
        self.cut()

    def _connect(self, target: Target, number: int) -> bool:
        family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
        self.target = self.port.places.socket(target.place, family, socket.SOCK_STREAM)
        self.target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        result = self.target.connect_ex((target.address, number))
        if result not in (0, errno.EINPROGRESS):
            self._dial_failed(os.strerror(result))
            return False
        places = self.port.places
        asked = (target.address, number)
        self.leg = places.tcp_legs.add(
            self.target, self.port, self, self.behind, asked, here=places.is_here(target.place)
        )
        self.deadline = self.port.poller.now + self.port.mapping.connect_timeout_s
        self.port.poller.watch(self.target.fileno(), EDGE, self.on_target)
        self.port.connecting.add(self)
        self._note_end()
        return True

    def _dial_failed(self, why: str) -> None:
        if self.serving is not None:
            self.port.target_failed(self.serving, why)
        if self.target is not None:
            self._close_target()

    def _close_target(self) -> None:
        assert self.target is not None
        self.port.dialled(self)
        self.port.poller.gone(self.target.fileno())
        self.target.close()
        self.target = None
        if self.leg is not None:
            self.port.places.tcp_legs.forget(self.leg, linger=True)
            self.leg = None

    def timed_out(self) -> None:
        """connect(2) took too long."""
        try:
            self._dial_failed("it does not answer")
            self.dial()
        except Exception as error:  # noqa: BLE001  logged there
            self.fail(error)

    def on_target(self, events: int) -> None:
        """Something happened at the target's socket."""
        try:
            if self.connected:
                self._on_events(events, self.down, self.up)
            elif self.target is not None and events:
                self._on_connected(events, self.target)
        except Exception as error:  # noqa: BLE001  logged there
            self.fail(error)

    def _on_connected(self, events: int, target: socket.socket) -> None:
        failed = target.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & ERROR else 0
        if failed:
            self._dial_failed(os.strerror(failed))
            self.dial()
            return
        if not events & WRITE:
            return
        self.port.dialled(self)
        if self.serving is not None:
            self.port.balancer.worked(self.serving)
        up = self._join(target)
        up.pending = self.preface
        self._on_events(events, self.down, up)
        self._on_events(self.early, self.up, self.down)

    def _join(self, target: socket.socket) -> Half:
        """Make the two directions; returns the one to the target."""
        self.connected = True
        self.up = Half(self, self.client, target, inward=True)
        self.down = Half(self, target, self.client, inward=False)
        return self.up

    def resume(self, target: socket.socket, serving: Target | None, *, connected: bool) -> None:
        """Go on with what a predecessor began; edges are seen anew, since the watch is."""
        self.target = target
        self.serving = serving
        self._note_leg(target)
        self.port.poller.watch(target.fileno(), EDGE, self.on_target)
        self.port.poller.watch(self.client.fileno(), EDGE, self.on_client)
        self.deadline = self.port.poller.now + self.port.mapping.connect_timeout_s
        if connected:
            self._join(target)
        else:
            self.port.connecting.add(self)

    def _note_leg(self, target: socket.socket) -> None:
        try:
            ip, number, *_ = target.getpeername()
        except OSError:  # not connected yet
            asked = None
        else:
            asked = (ip, number)
        places = self.port.places
        here = self.serving is not None and places.means_here(self.serving.place)
        with suppress(OSError):
            self.leg = places.tcp_legs.add(target, self.port, self, None, asked, here=here)

    def on_client(self, events: int) -> None:
        """Something happened at the client's socket."""
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
        """A client that has ended its side waits for an answer, or is gone."""
        if self.early & HANGUP:
            self.port.ended[self] = None

    def _on_events(self, events: int, out: Half | None, back: Half | None) -> None:
        """`out` is read from the socket that has events, `back` is written to it. OSError ends the connection."""
        if out is None or back is None:  # it is closed
            return
        self.active_at = self.port.poller.now
        if events & ~(READ | WRITE):
            out.reads_on = True
            if events & URGENT:  # like any other byte: it cannot be told when the target shall have it out of turn
                out.src.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if events & ~WRITE:
            out.readable = True
            out.pump()  # of a reset, too: what came before it goes first, as far as it is taken now
        if events & ERROR and self.up is not None:
            self.abort()
            return
        if events & WRITE and not back.writable:
            back.writable = True
            back.pump()
        elif self.up is not None and self.up.pending and not self.up.ended:
            self.up.pump()

    def go_on(self, _: int) -> None:
        """A turn was cut short for others' sake."""
        try:
            for half in (self.up, self.down):
                if half is not None:
                    half.pump()
        except Exception as error:  # noqa: BLE001  logged there
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """An error ends this connection, and nothing else; one that is not the network's is a fault of ours."""
        if not isinstance(error, OSError):
            log.error("%s: an error of portfwd itself; please report it", self.port.mapping.id, exc_info=error)
        self.abort()

    def half_ended(self) -> None:
        """One direction is through; when both are, so is the connection."""
        if self.up is not None and self.down is not None and self.up.ended == self.down.ended == 2:
            self.close()

    def abort(self) -> None:
        """A reset or an error on one side is passed on to the other."""
        self.port.counters.errors += 1
        self.cut()

    def cut(self) -> None:
        """Close both sides with a reset: neither shall take what it got for the whole."""
        for side in (self.client, self.target):
            if side is not None:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close()

    def close(self) -> None:
        """Close both sides."""
        for half in (self.up, self.down):
            if half is not None:
                half.give_back_pipe()
        self.port.poller.gone(self.client.fileno())
        self.up = self.down = None
        if self.target is not None:
            self._close_target()
        self.client.close()
        self.port.left(self)

    def keep_alive(self) -> None:
        """Ask a silent target now and then whether it is still there; a client's socket inherits that from the listener."""
        self.kept_alive = True
        if self.target is not None:
            set_keepalive(self.target)

    def rest(self) -> None:
        """Nothing flows: give back what only flow needs."""
        for half in (self.up, self.down):
            if half is not None and half.pipe is not None and not half.pipe.filled:
                half.give_back_pipe()
