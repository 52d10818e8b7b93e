"""`portfwd run`: mappings served by this very process, until a signal; no service, no disk, no BPF program."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Callable, Sequence

from portfwd import options
from portfwd.mapping import Mapping
from portfwd.options import Wish
from portfwd.places import Places, absent_notes
from portfwd.poller import Poller
from portfwd.relay import SWEEP_S, Relay

log = logging.getLogger("portfwd")

Ready = Callable[[Sequence[Mapping], Sequence[str]], None]  # all of them listen; with sentences on what was left out


def serve(wish: Wish, drain_s: float, ready: Ready) -> int:
    """Publish, serve, drain; returns the exit status. PortInUse, PortfwdError."""
    _raise_limit()
    poller = Poller()
    loop = asyncio.SelectorEventLoop(poller)
    places = Places()
    relay = Relay(poller, places, unsteered="the service does that, not `portfwd run`")
    try:
        notes: list[str] = []

        def offer(mappings: list[Mapping]) -> None:
            done: list[Mapping] = []
            try:
                for mapping in mappings:
                    notes.extend(relay.publish(mapping))
                    done.append(mapping)
            except BaseException:
                withdraw(done)
                raise

        def withdraw(mappings: list[Mapping]) -> None:
            for mapping in mappings:
                relay.remove(mapping.id)

        done = options.settle(wish, offer, withdraw)
        notes += absent_notes(places, done)
        stop = Stop(relay, drain_s)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.asked)
        ready(done, notes)
        loop.run_until_complete(_serve(relay, stop))
    finally:
        relay.close()
        places.close()
        loop.close()
    return 0


class Stop:
    """What signals ask for: the first to drain, the second to end."""

    def __init__(self, relay: Relay, drain_s: float) -> None:
        self.relay = relay
        self.drain_s = drain_s
        self.draining = False
        self.ended = False

    def asked(self) -> None:
        """A signal came."""
        if self.draining:
            self.ended = True
            return
        self.draining = True
        self.relay.drain(self.drain_s)
        if self.relay.draining:
            log.info("no new connections; %d running ones get %g s", self.relay.draining, self.drain_s)
        else:
            self.ended = True


async def _serve(relay: Relay, stop: Stop) -> None:
    while not stop.ended:
        await asyncio.sleep(SWEEP_S)
        relay.sweep()
        if stop.draining and not relay.draining:
            break


def _raise_limit() -> None:
    """As many descriptors as we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
