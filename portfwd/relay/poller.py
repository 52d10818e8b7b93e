"""The event loop's selector, with a short cut: callbacks of watched descriptors run straight from epoll_wait(2).

asyncio wraps each event in a Handle, queues it and runs it in a context, which costs several times as much as moving a small
message. So connections are watched here, edge-triggered and once for their whole life (epoll(7)). Timers, signals and the control
socket work as on any other asyncio loop.

    poller = Poller(); loop = asyncio.SelectorEventLoop(poller)
    poller.watch(fd, EDGE, callback)      calls callback(events: int), sometimes without cause
    poller.soon(callback)                 calls it in the next round, with events 0: for work cut short for fairness
    poller.forget(fd)                     before the descriptor is closed
    poller.now                            loop.time() of this round

When a callback raises, the error is logged and its descriptor is not watched for FAULT_S. Other descriptors are served on.
"""

from __future__ import annotations

import logging
import os
import select
import selectors
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

log = logging.getLogger("portfwd")

# HANGUP: the peer has ended its side (FIN), while the other direction may go on. EPOLLHUP (both are over) and EPOLLERR are always
# reported, asked for or not.
READ, WRITE, HANGUP, ERROR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP, select.EPOLLERR
URGENT = select.EPOLLPRI  # tcp(7): reads end before an urgent byte
EDGE = READ | WRITE | HANGUP | URGENT | select.EPOLLET  # a connection
LEVEL = READ  # a listener, or a UDP socket: read in batches, asked again while there is more
EVENTS_MAX = 512  # of one round, so that timers and the control socket do not wait long
FAULT_S = 1.0  # how long a descriptor is not watched after its callback has raised: it would be reported again at once

Callback = Callable[[int], None]


class Poller(selectors.EpollSelector):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._watched: dict[int, Callback] = {}
        self._levels: dict[int, int] = {}  # the events of those that are not watched for EDGE
        self._again: dict[Callback, None] = {}  # each once, however often it asked
        self._resting: list[tuple[float, int, Callback]] = []  # until when
        self._logged = 0.0
        # The same epoll instance as the base class has, so that one wait serves both. A dup(2), since each object closes its own.
        self._epoll = select.epoll.fromfd(os.dup(self.fileno()))
        self.now = time.monotonic()

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Call back on events of `fd`. OSError ENOSPC when the kernel's limit of watches is reached."""
        self._epoll.register(fd, events)
        self._watched[fd] = callback
        if events != EDGE:
            self._levels[fd] = events

    def forget(self, fd: int) -> None:
        """Stop watching."""
        del self._watched[fd]
        self._levels.pop(fd, None)
        self._epoll.unregister(fd)

    def gone(self, fd: int) -> None:
        """Forget a descriptor that is closed right away, which ends the kernel's watch. Harmless for one that is not watched."""
        self._watched.pop(fd, None)

    def soon(self, callback: Callback) -> None:
        """Call back in the next round."""
        self._again[callback] = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Run the callbacks of watched descriptors; return the events of the others, as selectors.BaseSelector has it."""
        if self._resting:
            timeout = self._wake(timeout)
        if self._again:
            timeout = 0
        wait = -1 if timeout is None else max(0.0, timeout)
        try:
            found = self._epoll.poll(wait, EVENTS_MAX)
        except InterruptedError:
            return []
        self.now = time.monotonic()
        again, self._again = self._again, {}
        watched = self._watched
        rest = []
        # The callback of each event is looked up before any callback runs: one may close a descriptor whose event is still to
        # come, and a new socket may get its number.
        for fd, events, callback in [(fd, events, watched.get(fd)) for fd, events in found]:
            if callback is None:
                rest.append((fd, events))
            elif watched.get(fd) is callback:
                try:
                    callback(events)
                except Exception as error:  # noqa: BLE001  logged there
                    self._failed(error)
                    self._rest(fd, callback)
        for callback in again:
            try:
                callback(0)
            except Exception as error:  # noqa: BLE001  logged there
                self._failed(error)
        return [ready for fd, events in rest if (ready := self._ready(fd, events)) is not None]

    def _failed(self, error: Exception) -> None:
        """Log an error of portfwd itself, at most one in FAULT_S."""
        if self.now >= self._logged:
            self._logged = self.now + FAULT_S
            log.error("an error of portfwd itself; please report it", exc_info=error)

    def _rest(self, fd: int, callback: Callback) -> None:
        """Stop watching a descriptor for a while, unless it is another socket's by now."""
        if self._watched.get(fd) is callback:
            self._epoll.modify(fd, 0)
            self._resting.append((self.now + FAULT_S, fd, callback))

    def _wake(self, timeout: float | None) -> float:
        """Watch again the descriptors that have rested long enough; returns how long the next round may wait, in seconds."""
        now = time.monotonic()
        for until, fd, callback in self._resting:
            if until <= now and self._watched.get(fd) is callback:
                self._epoll.modify(fd, self._levels.get(fd, EDGE))  # reports anew what there is
        self._resting = [one for one in self._resting if one[0] > now]
        return FAULT_S if timeout is None else min(timeout, FAULT_S)

    def _ready(self, fd: FileDescriptorLike, events: int) -> tuple[selectors.SelectorKey, int] | None:
        key = self.get_map().get(fd)
        if key is None:
            return None
        mask = (selectors.EVENT_READ if events & ~WRITE else 0) | (selectors.EVENT_WRITE if events & ~READ else 0)
        return key, mask & key.events

    def close(self) -> None:
        self._epoll.close()
        super().close()
