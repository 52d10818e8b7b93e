"""Descriptors in messages of Unix sockets (SCM_RIGHTS, unix(7))."""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence

MOST = 253  # descriptors of one message: SCM_MAX_FD, include/net/scm.h

Ancillary = list[tuple[int, int, "array.array[int]"]]


def message(descriptors: Sequence[int]) -> Ancillary:
    """The ancillary data of sendmsg(2) that passes them; none for no descriptors, which sendmsg(2) would refuse (EINVAL)."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []


def receive(sock: socket.socket, size: int, most: int = MOST) -> tuple[bytes, list[int], bool]:
    """Up to `size` bytes, the descriptors that came with them (close-on-exec), and whether the kernel left some out. OSError.

    It leaves out those beyond `most`, and those for which this process has no number below RLIMIT_NOFILE: recvmsg(2) does not
    fail then, it sets MSG_CTRUNC. The caller owns the ones that arrived.
    """
    data, ancillary, flags, _ = sock.recvmsg(size, socket.CMSG_SPACE(4 * most), socket.MSG_CMSG_CLOEXEC)
    found = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            # Python cuts the last message at the end of the buffer: only whole descriptors count.
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return data, list(found), bool(flags & socket.MSG_CTRUNC)
