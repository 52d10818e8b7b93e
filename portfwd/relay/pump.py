"""One direction of a TCP connection: copied or, while there is bulk, spliced.

Splicing (splice(2)) moves pages from one socket to the other inside the kernel, at about half the processor time of copying them
through this process. A pipe costs two descriptors and up to its size in memory, so that only what is in flow has one: pipes are
lent to a direction, and used again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from portfwd.relay.connection import Connection

PIPE_SIZE = 1 << 20  # bytes; /proc/sys/fs/pipe-max-size
SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
KEPT_MAX = 16  # idle pipes
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)
BUFFER = 1 << 18  # bytes one recv may give; one buffer serves all connections, since nothing stays in it
BULK = 1 << 15  # a read of so many bytes: more will come, so splice
ROUNDS_MAX = 16  # of reading in one go, before others have their turn

_buffer = bytearray(BUFFER)
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
        """A pipe, or None where there are no descriptors left: copying works then as well."""
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
        except OSError:  # the user's share of pipe pages is used up (pipe(7)): 64 KiB will do
            pass
        return Pipe(read, write)

    def take_back(self, pipe: Pipe) -> None:
        """One that its direction does not need any more; one with something in it is of no use to others."""
        if pipe.filled or len(self._idle) >= KEPT_MAX:
            pipe.close()
        else:
            self._idle.append(pipe)

    def close(self) -> None:
        """The idle ones."""
        while self._idle:
            self._idle.pop().close()


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
            if error.errno not in UNSUPPORTED:
                raise
            self._stop_splicing()
            return True

    def _fill(self, pipe: Pipe) -> bool:
        pipe.filled = os.splice(self.src_fd, pipe.write, PIPE_SIZE, flags=SPLICE_FLAGS)
        return pipe.filled > 0 or self._only_recv_knows()

    def _only_recv_knows(self) -> bool:
        """Nothing could be spliced: there is nothing now, or nothing any more, or an urgent byte, which splice does not pass."""
        if self.reads_on:
            self.give_back_pipe()
            return True
        self.readable = False
        return False

    def _empty(self, pipe: Pipe) -> bool:
        size = os.splice(pipe.read, self.dst_fd, pipe.filled, flags=SPLICE_FLAGS)
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
