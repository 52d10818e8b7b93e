"""What every process that relays has: an event loop, the namespaces it connects from, its mappings, and a way to end.

The service, `portfwd run` and a portfwd-docker-proxy without a service have one Runtime each.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING

from portfwd.netns.sockets import Places
from portfwd.relay.poller import Poller
from portfwd.relay.publish import SWEEP_S, Relay

if TYPE_CHECKING:
    from portfwd.steering.lookup import Steering

log = logging.getLogger("portfwd")

FAULTS_MAX = 10  # errors of our own in FAULTS_S that are survived: each may have cost a connection
FAULTS_S = 60.0


class Runtime:
    """See the module. `unsteered` says why there is no `steering`."""

    def __init__(self, steering: Steering | None = None, unsteered: str = "") -> None:
        self.poller = Poller()
        self.loop = asyncio.SelectorEventLoop(self.poller)
        self.places = Places()
        self.relay = Relay(self.poller, self.places, steering=steering, unsteered=unsteered)
        self.stopping = self._ended = False
        self._faults: list[float] = []  # when errors of our own escaped, in the loop's time

    def every(self, seconds: float, work: Callable[[], None]) -> None:
        """Call `work` after so many seconds, and again and again."""

        def again() -> None:
            self.loop.call_later(seconds, again)
            work()

        self.loop.call_later(seconds, again)

    def run(self) -> None:
        """Relay until end(), or until the last connection has ended after stop()."""
        self.every(SWEEP_S, self._sweep)
        while not self._ended:
            try:
                self.loop.run_forever()
            except Exception as error:  # of the poller itself: callbacks' errors are logged by their caller
                now = self.loop.time()
                self._faults = [when for when in self._faults if now - when < FAULTS_S] + [now]
                log.error("an error of portfwd itself; please report it", exc_info=error)
                if len(self._faults) > FAULTS_MAX:
                    raise

    def _sweep(self) -> None:
        self.relay.sweep()
        if self.stopping and not self.relay.draining:
            self.end()

    def stop(self, drain_s: float) -> None:
        """Accept no more clients, and end when the running connections have ended: they get `drain_s` seconds. Again: end now."""
        if self.stopping:
            self.end()
            return
        self.stopping = True
        self.relay.drain(drain_s)
        if self.relay.draining:
            log.info("no new connections; %d running ones get %g s", self.relay.draining, drain_s)
        else:
            self.end()

    def end(self) -> None:
        """Return from run()."""
        self._ended = True
        self.loop.stop()

    def close(self) -> None:
        """Cut all connections and close everything."""
        self.relay.close()
        self.places.close()
        self.loop.close()


def raise_limit() -> None:
    """Allow this process as many descriptors as it may have: a connection takes two, or more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
