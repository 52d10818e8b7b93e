"""A small process that forks for a large one.

To fork pytest, which has all tests in memory, takes 12 ms of processor time: most of it for page tables, and for the pages that
either side then writes to. To fork what pytest was at its start takes a quarter. So a copy is made at the start, by
node.open_nursery(). It is sent texts and descriptors, and does with them what it was made for, in children of its own.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable, Sequence

TEXT_MAX = 1 << 16  # a datagram must fit into the socket's buffer
DESCRIPTORS_MAX = 8


class Nursery:
    """The other end of the small process."""

    def __init__(self, born: Callable[[bytes, Sequence[int]], None]) -> None:
        """Fork it. It calls `born` for each text, which forks a child and returns at once."""
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            self.sock.close()
            _serve(theirs, born)
        theirs.close()

    def send(self, text: bytes, descriptors: Sequence[int]) -> None:
        """Have a child made for a text of at most TEXT_MAX bytes. OSError when the small process is gone."""
        socket.send_fds(self.sock, [text], list(descriptors))


def _serve(sock: socket.socket, born: Callable[[bytes, Sequence[int]], None]) -> None:
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # it ends with the large process
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for its children: the kernel removes them
        gc.freeze()
        while True:
            text, descriptors, _, _ = socket.recv_fds(sock, TEXT_MAX, DESCRIPTORS_MAX)
            if not text:
                break
            with contextlib.suppress(Exception):  # the reader of its answer sees that there is none
                born(text, descriptors)
            for fd in descriptors:
                os.close(fd)
    finally:
        os._exit(0)
