"""A listening socket: clients are accepted in batches, and wait in the backlog for a moment while descriptors are lacking."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Protocol

from portfwd.relay import host_only
from portfwd.relay.poller import LEVEL

if TYPE_CHECKING:
    from portfwd.relay.poller import Poller

BATCH = 64  # connections accepted in one go
BACK_OFF_S = 0.1  # without accepting, after accept(2) failed for want of descriptors or memory
# Errors of one connection, which accept(2) passes on: the next client is accepted. Any other error would come again at once.
PASSING = (errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH)


class Taker(Protocol):
    """What serves the clients of a listener."""

    def take_on(self, client: socket.socket, address: tuple[str, int], listener: Listener) -> None:
        """Serve a client that was accepted. The taker closes it. May pause the listener."""

    def lacking(self, why: str) -> None:
        """Take note that clients wait in the backlog for BACK_OFF_S, and why."""


class Listener:
    """See the module. `port` is 0 for a socket to which a range is steered: each client's own socket has the port then."""

    __slots__ = ("_poller", "_taker", "asks", "ip", "paused_until", "port", "sock")

    def __init__(self, sock: socket.socket, ip: str, port: int) -> None:
        self.sock = sock
        self.ip = ip
        self.port = port
        host_only.keep(sock, ip)
        self.asks = host_only.asks(sock, ip, port)  # each client is asked by which interface it came
        self.paused_until = 0.0
        self._poller: Poller | None = None  # while it is watched
        self._taker: Taker | None = None

    def listen(self, poller: Poller, taker: Taker) -> None:
        """Accept clients from now on. OSError ENOSPC when the kernel's limit of watches is reached."""
        poller.watch(self.sock.fileno(), LEVEL, self._accept)
        self._poller = poller
        self._taker = taker
        self.paused_until = 0.0

    def _accept(self, _: int) -> None:
        for _ in range(BATCH):
            if self._taker is None or self.paused_until:
                return
            try:
                client, address = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in PASSING:
                    continue
                # EMFILE, ENFILE, ENOBUFS, ENOMEM: the client stays in the backlog, since accept(2) allocates the descriptor
                # before it takes one out. epoll would report the listener again at once: stop watching it for a moment.
                self._taker.lacking(error.strerror or str(error))
                self.pause()
                return
            client.setblocking(False)
            self._taker.take_on(client, address, self)

    def pause(self) -> None:
        """Accept no clients until resume(): they wait in the backlog."""
        if self._poller is not None:
            self.paused_until = self._poller.now + BACK_OFF_S
            self._poller.forget(self.sock.fileno())
            self._poller = None

    def resume(self, poller: Poller) -> None:
        """Accept clients again, if BACK_OFF_S has passed since pause()."""
        if self.paused_until and poller.now >= self.paused_until and self._taker is not None:
            try:
                self.listen(poller, self._taker)
            except OSError as error:
                self._taker.lacking(error.strerror or str(error))
                self.paused_until = poller.now + BACK_OFF_S

    def close(self) -> None:
        """Close the socket; the kernel resets clients in the backlog."""
        if self._poller is not None:
            self._poller.forget(self.sock.fileno())
        self._poller = self._taker = None
        self.paused_until = 0.0
        self.sock.close()
