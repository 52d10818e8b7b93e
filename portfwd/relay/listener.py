"""A listening socket: clients are accepted in batches, and left in the backlog for a moment while something is lacking."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Protocol

from portfwd.relay import host_only
from portfwd.relay.poller import LEVEL

if TYPE_CHECKING:
    from portfwd.relay.poller import Poller

BATCH = 64  # connections accepted in one go
BACK_OFF_S = 0.1  # after accept(2) failed for want of something
# That one connection is lost, or none, accept(2); whatever else it says, it will say again at once.
PASSING = (errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH)


class Taker(Protocol):
    """Who takes clients on."""

    def take_on(self, client: socket.socket, address: tuple[str, int], listener: Listener) -> None:
        """A client that has been accepted; it is the taker's to close. May pause the listener."""

    def lacking(self, why: str) -> None:
        """Clients wait; they are accepted again after BACK_OFF_S."""


class Listener:
    """See the module. `port` is 0 for a socket to which a range is steered: then that of a client's socket tells."""

    __slots__ = ("_poller", "_taker", "asks", "ip", "paused_until", "port", "sock")

    def __init__(self, sock: socket.socket, ip: str, port: int) -> None:
        self.sock = sock
        self.ip = ip
        self.port = port
        host_only.keep(sock, ip)
        self.asks = host_only.asks(sock, ip, port)  # clients from elsewhere may find it
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
                self._taker.lacking(error.strerror or str(error))
                self.pause()
                return
            client.setblocking(False)
            self._taker.take_on(client, address, self)

    def pause(self) -> None:
        """Leave further clients in the backlog until resume()."""
        if self._poller is not None:
            self.paused_until = self._poller.now + BACK_OFF_S
            self._poller.forget(self.sock.fileno())
            self._poller = None

    def resume(self, poller: Poller) -> None:
        """Listen again, if it is time."""
        if self.paused_until and poller.now >= self.paused_until and self._taker is not None:
            try:
                self.listen(poller, self._taker)
            except OSError as error:
                self._taker.lacking(error.strerror or str(error))
                self.paused_until = poller.now + BACK_OFF_S

    def close(self) -> None:
        """Listen no more."""
        if self._poller is not None:
            self._poller.forget(self.sock.fileno())
        self._poller = self._taker = None
        self.paused_until = 0.0
        self.sock.close()
