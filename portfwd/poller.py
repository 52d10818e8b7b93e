"""The event loop's selector, with a short cut: a watched descriptor's callback runs straight from epoll_wait.

asyncio wraps each event in a Handle, queues it and runs it in a context: several times what moving a small message costs.
Connections are therefore watched here, edge-triggered and once for their whole life (epoll(7)); everything else on the loop
(timers, signals, the control socket) works as on any other.

    poller = Poller(); loop = asyncio.SelectorEventLoop(poller)
    poller.watch(fd, EDGE, callback)      callback(events: int); may be called without cause
    poller.soon(callback)                 again in the next round, with events 0: for work cut short for fairness
    poller.forget(fd)                     before the descriptor is closed
    poller.now                            loop.time() of this round
"""

from __future__ import annotations

import os
import select
import selectors
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

READ, WRITE, HANGUP, ERROR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP, select.EPOLLERR
EDGE = READ | WRITE | HANGUP | select.EPOLLET  # a connection
LEVEL = READ  # a listener, or a UDP socket: read in batches, asked again while there is more
EVENTS_MAX = 512  # in one round, so that timers and the control socket are never far

Callback = Callable[[int], None]


class Poller(selectors.EpollSelector):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._watched: dict[int, Callback] = {}
        self._again: list[Callback] = []
        self._epoll = select.epoll.fromfd(os.dup(self.fileno()))  # the same epoll instance: one wait serves both
        self.now = time.monotonic()

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Call back on events of `fd`. OSError ENOSPC when the kernel's limit of watches is reached."""
        self._epoll.register(fd, events)
        self._watched[fd] = callback

    def forget(self, fd: int) -> None:
        """Stop watching. An event of the same round may still be delivered to whoever gets the number next."""
        del self._watched[fd]
        self._epoll.unregister(fd)

    def gone(self, fd: int) -> None:
        """Forget a descriptor that is closed right away, which ends the kernel's part of the watch; harmless for any other."""
        self._watched.pop(fd, None)

    def soon(self, callback: Callback) -> None:
        """Call back in the next round."""
        self._again.append(callback)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Run what is watched; return the rest."""
        if self._again:
            timeout = 0
        wait = -1 if timeout is None else max(0.0, timeout)
        try:
            found = self._epoll.poll(wait, EVENTS_MAX)
        except InterruptedError:
            return []
        self.now = time.monotonic()
        again, self._again = self._again, []
        watched = self._watched
        rest = []
        for fd, events in found:
            callback = watched.get(fd)
            if callback is not None:
                callback(events)
            else:
                rest.append((fd, events))
        for callback in again:
            callback(0)
        return [ready for fd, events in rest if (ready := self._ready(fd, events)) is not None]

    def _ready(self, fd: FileDescriptorLike, events: int) -> tuple[selectors.SelectorKey, int] | None:
        key = self.get_map().get(fd)
        if key is None:
            return None
        mask = (selectors.EVENT_READ if events & ~WRITE else 0) | (selectors.EVENT_WRITE if events & ~READ else 0)
        return key, mask & key.events

    def close(self) -> None:
        self._epoll.close()
        super().close()
