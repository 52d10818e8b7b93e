"""Pipes for splice(2): lent to a direction of a connection while it has bulk to move, and used again.

Splicing moves pages from one socket to the other inside the kernel, at about half the processor time of copying them through
this process. A pipe costs two descriptors and up to its size in memory, so that only what is in flow has one.
"""

from __future__ import annotations

import errno
import fcntl
import os

SIZE = 1 << 20  # bytes; /proc/sys/fs/pipe-max-size
FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
KEPT_MAX = 16  # idle pipes
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)


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
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, SIZE)
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
