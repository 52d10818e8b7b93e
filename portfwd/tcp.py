"""TCP connections: a client's socket and a target's, and what flows between them.

    accept ─→ admitted? ─→ connect to a target ─→ bytes both ways, each way until its end ─→ close
                           a client that resets meanwhile is gone, and the dial with it

No task, future or pipe belongs to a connection: its two sockets are watched edge-triggered (poller.py), a small message costs one
recv(2) and one send(2). A read that fills BULK at once begins to splice (splice.py). The end of one direction is passed on
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
from portfwd import splice
from portfwd.errors import PortfwdError
from portfwd.poller import EDGE, ERROR, HANGUP, READ, URGENT, WRITE

if TYPE_CHECKING:
    from portfwd.loops import Leg, Link
    from portfwd.mapping import Target
    from portfwd.port import TcpPort
    from portfwd.splice import Pipe

log = logging.getLogger("portfwd")

BUFFER = 1 << 18  # bytes one recv may give; one buffer serves all connections, since nothing stays in it
BULK = 1 << 15  # a read of so many bytes: more will come, so splice
ROUNDS_MAX = 16  # of reading in one go, before others have their turn
QUIET_S = 5.0  # after so long without traffic a pipe is given back, and keepalive probes are worth their three calls
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 15, 4
RESET = struct.pack("ii", 1, 0)  # struct linger: close sends RST instead of FIN, socket(7)

_buffer = bytearray(BUFFER)
_view = memoryview(_buffer)


class Half:
    """One direction of a connection: from `src` to `dst`."""

    __slots__ = (
        "connection",
        "dst",
        "dst_fd",
        "ended",
        "inward",
        "pending",
        "pipe",
        "readable",
        "reads_on",
        "src",
        "src_fd",
        "writable",
    )

    def __init__(self, connection: Connection, src: socket.socket, dst: socket.socket, *, inward: bool) -> None:
        self.connection = connection
        self.src = src
        self.dst = dst
        self.src_fd = src.fileno()
        self.dst_fd = dst.fileno()
        self.inward = inward  # from the client to the target
        self.readable = False
        self.reads_on = False  # src has closed, or sent an urgent byte: a short read is not the end of what there is
        self.writable = True  # until the kernel says otherwise
        self.pending = b""  # what was read and could not be sent
        self.pipe: Pipe | None = None
        self.ended = 0  # 1: src has sent all it will; 2: dst has been told

    def pump(self) -> None:
        """Move what can be moved now, up to ROUNDS_MAX reads. OSError ends the connection."""
        rounds = ROUNDS_MAX
        while rounds:
            if self.pipe is not None:
                if not self._splice():
                    return
            elif self.pending:
                if not self._send(self.pending):
                    return
            elif self.ended:
                self._pass_on_end()
                return
            elif not self.readable:
                return
            else:
                self._receive()
            rounds -= 1
        self.connection.port.poller.soon(self.connection.go_on)

    def _receive(self) -> None:
        try:
            size = self.src.recv_into(_buffer)
        except BlockingIOError:
            self.readable = False
            return
        if size == 0:
            self.ended = 1
            return
        if size >= BULK and self.connection.port.pipes.usable:
            self.pipe = self.connection.port.pipes.lend()
        elif size < BUFFER and not self.reads_on:
            self.readable = False  # a short read has emptied the queue; more to come is a new edge, epoll(7)
        self._send(_view[:size])

    def _send(self, data: bytes | memoryview) -> bool:
        """Send; keep what does not go. False: wait until the socket is writable."""
        sent = 0
        if self.writable:
            try:
                sent = self.dst.send(data)
            except BlockingIOError:
                self.writable = False
        self._count(sent)
        if sent < len(data):
            self.writable = False
            self.pending = bytes(data[sent:])
            return False
        self.pending = b""
        return True

    def _count(self, size: int) -> None:
        if self.inward:
            self.connection.port.counters.bytes_in += size
        else:
            self.connection.port.counters.bytes_out += size

    def _splice(self) -> bool:
        """One step by way of the pipe. False: wait for the sockets."""
        pipe = self.pipe
        assert pipe is not None
        if self.pending:
            return self._send(self.pending)
        try:
            if pipe.filled:
                return self.writable and self._empty(pipe)
            return self.readable and self._fill(pipe)
        except BlockingIOError:
            if pipe.filled:
                self.writable = False
                return False
            return self._only_recv_knows()
        except OSError as error:
            if error.errno not in splice.UNSUPPORTED:
                raise
            self._stop_splicing()
            return True

    def _fill(self, pipe: Pipe) -> bool:
        pipe.filled = os.splice(self.src_fd, pipe.write, splice.SIZE, flags=splice.FLAGS)
        return pipe.filled > 0 or self._only_recv_knows()

    def _only_recv_knows(self) -> bool:
        """Nothing could be spliced: there is nothing now, or nothing any more, or an urgent byte, which splice does not pass."""
        if self.reads_on:
            self.give_back_pipe()
            return True
        self.readable = False
        return False

    def _empty(self, pipe: Pipe) -> bool:
        size = os.splice(pipe.read, self.dst_fd, pipe.filled, flags=splice.FLAGS)
        pipe.filled -= size
        self._count(size)
        self.connection.port.counters.spliced += size
        return True

    def _stop_splicing(self) -> None:
        """The kernel does not splice for us: copy from now on."""
        self.connection.port.pipes.usable = False
        if self.pipe is not None:
            self.pending += self.pipe.drained()
        self.give_back_pipe()

    def give_back_pipe(self) -> None:
        """Copy again, until there is bulk."""
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            self.connection.port.pipes.take_back(pipe)

    def _pass_on_end(self) -> None:
        if self.ended == 1:
            self.ended = 2
            self.dst.shutdown(socket.SHUT_WR)
            self.connection.half_ended()


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


def set_keepalive(sock: socket.socket) -> None:
    """Probes after KEEPALIVE_IDLE_S of silence, tcp(7)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
