"""One direction of a TCP connection: its bytes are copied or, while there is bulk, spliced.

Splicing (splice(2)) moves pages from one socket to the other inside the kernel, at about half the processor time of copying them
through this process. A pipe costs two descriptors and up to its size in memory. So a direction borrows one while it moves bulk,
and gives it back when it is quiet.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from portfwd.relay.counters import Counters

PIPE_SIZE = 1 << 20  # bytes: the usual fs.pipe-max-size, beyond which a pipe needs CAP_SYS_RESOURCE
KEPT_MAX = 16  # idle pipes
# What splice(2) says where it cannot be used: sockets without it, a kernel or a seccomp filter that refuses the call.
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)
BUFFER = 1 << 18  # bytes one recv may give; one buffer serves all connections, since nothing stays in it
BULK = 1 << 15  # bytes: after a read of so many more will come, so splice
ROUNDS_MAX = 16  # steps of one direction before other connections have their turn

_buffer = mmap.mmap(-1, BUFFER)  # its pages take memory as they are written to, those of a bytearray at once
_view = memoryview(_buffer)


class Pipe:
    """A pipe, and how many bytes are in it."""

    __slots__ = ("filled", "read", "write")

    def __init__(self, read: int, write: int, filled: int = 0) -> None:
        self.read = read
        self.write = write
        self.filled = filled

    def close(self) -> None:
        """Both ends."""
        os.close(self.read)
        os.close(self.write)

    def drained(self) -> bytes:
        """What is in it, taken out."""
        parts = []
        while self.filled:
            part = os.read(self.read, self.filled)
            self.filled -= len(part)
            parts.append(part)
        return b"".join(parts)


class Pipes:
    """The pipes of a process. `usable` turns False for good when the kernel (or a seccomp filter) refuses splice."""

    __slots__ = ("_idle", "usable")

    def __init__(self) -> None:
        self._idle: list[Pipe] = []
        self.usable = True

    def lend(self) -> Pipe | None:
        """A pipe, or None without splice(2) or descriptors: the direction copies then."""
        if not self.usable:
            return None
        if self._idle:
            return self._idle.pop()
        try:
            read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            # EPERM: all pipes of this user together have fs.pipe-user-pages-soft pages (64 MiB, pipe(7)). The smaller pipe that
            # the kernel made serves as well, in more steps.
            pass
        return Pipe(read, write)

    def take_back(self, pipe: Pipe) -> None:
        """Keep a pipe for the next direction, or close it: one that still holds bytes would mix them into another connection."""
        if pipe.filled or len(self._idle) >= KEPT_MAX:
            pipe.close()
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        """The idle ones."""
        while self._idle:
            self._idle.pop().close()


class Carrier(Protocol):
    """The connection that a direction belongs to."""

    def go_on_later(self) -> None:
        """Call pump() of both directions again in the next round of the event loop: this turn was cut short."""

    def half_ended(self) -> None:
        """One direction has passed on its end."""


class Direction:
    """Moves the bytes of a connection from `src` to `dst`, both non-blocking. `inward`: from the client to the target."""

    __slots__ = (
        "carrier",
        "counters",
        "dst",
        "dst_fd",
        "ended",
        "inward",
        "pending",
        "pipe",
        "pipes",
        "readable",
        "reads_on",
        "src",
        "src_fd",
        "writable",
    )

    def __init__(
        self,
        carrier: Carrier,
        src: socket.socket,
        dst: socket.socket,
        pipes: Pipes,
        counters: Counters,
        *,
        inward: bool,
    ) -> None:
        self.carrier = carrier
        self.src = src
        self.dst = dst
        self.src_fd = src.fileno()
        self.dst_fd = dst.fileno()
        self.pipes = pipes
        self.counters = counters
        self.inward = inward
        self.readable = False
        self.reads_on = (
            False  # src has closed, or sent an urgent byte: a short read does not mean that the queue is empty
        )
        self.writable = True  # until the kernel says otherwise
        self.pending = b""  # what was read and could not be sent
        self.pipe: Pipe | None = None
        self.ended = 0  # 1: src has sent all it will; 2: dst has been told

    def pump(self) -> None:
        """Move what can be moved now, in at most ROUNDS_MAX steps, and ask for another turn if that was not all.

        Each side of each connection gets its turn: a client that sends as fast as it can must not hold up the others.
        OSError ends the connection.
        """
        for _ in range(ROUNDS_MAX):
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
        self.carrier.go_on_later()

    def _receive(self) -> None:
        """Read once and send it on. A full read borrows a pipe: from then on splice(2) moves the bytes."""
        try:
            size = self.src.recv_into(_buffer)
        except BlockingIOError:
            self.readable = False
            return
        if size == 0:
            self.ended = 1
            return
        if size >= BULK and self.pipes.usable:
            self.pipe = self.pipes.lend()
        elif size < BUFFER and not self.reads_on:
            # A short read has emptied the queue, and more bytes are a new edge (epoll(7), question 9): this saves the recv(2)
            # that would say EAGAIN. Not after the peer's end or an urgent byte, which cut a read short with more behind them
            # and make no edge of their own later.
            self.readable = False
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
            self.counters.bytes_in += size
        else:
            self.counters.bytes_out += size

    def _splice(self) -> bool:
        """Fill the pipe or empty it. False: wait for the sockets."""
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
            return self._ask_recv()
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._stop_splicing()
            return True

    def _fill(self, pipe: Pipe) -> bool:
        # SPLICE_F_NONBLOCK is about the pipe alone; that the socket does not block is its own O_NONBLOCK (splice(2)).
        pipe.filled = os.splice(self.src_fd, pipe.write, PIPE_SIZE, flags=os.SPLICE_F_NONBLOCK)
        return pipe.filled > 0 or self._ask_recv()

    def _ask_recv(self) -> bool:
        """Nothing could be spliced. After the peer's end or an urgent byte, recv(2) tells why; otherwise wait for an edge.

        splice(2) returns 0 or EAGAIN for an end, for an urgent byte (which it does not pass) and for an empty queue alike.
        """
        if self.reads_on:
            self.give_back_pipe()
            return True
        self.readable = False
        return False

    def _empty(self, pipe: Pipe) -> bool:
        size = os.splice(pipe.read, self.dst_fd, pipe.filled, flags=os.SPLICE_F_NONBLOCK)
        pipe.filled -= size
        self._count(size)
        self.counters.spliced += size
        return True

    def _stop_splicing(self) -> None:
        """The kernel refuses splice(2): copy from now on, beginning with what is in the pipe."""
        self.pipes.usable = False
        if self.pipe is not None:
            self.pending += self.pipe.drained()
        self.give_back_pipe()

    def give_back_pipe(self) -> None:
        """Copy again, until there is bulk."""
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            self.pipes.take_back(pipe)

    def _pass_on_end(self) -> None:
        if self.ended == 1:
            self.ended = 2
            # Ends this direction alone: the other one may still carry an answer (half-close, RFC 9293 section 3.6).
            self.dst.shutdown(socket.SHUT_WR)
            self.carrier.half_ended()
