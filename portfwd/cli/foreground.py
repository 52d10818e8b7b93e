"""`portfwd run`: mappings served by this very process, until a signal; no service, no disk, no BPF program."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Callable, Sequence

from portfwd.cli import options
from portfwd.cli.options import Wish
from portfwd.mapping import Mapping
from portfwd.netns.sockets import Places, absent_notes
from portfwd.relay import bind, tentative
from portfwd.relay.following import Following
from portfwd.relay.poller import Poller
from portfwd.relay.publish import SWEEP_S, Relay
from portfwd.service import sticky, store

log = logging.getLogger("portfwd")

Ready = Callable[[Sequence[Mapping], Sequence[str]], None]  # all of them listen; with sentences on what was left out
Ended = Callable[[Sequence[Mapping]], None]  # none of them listens any more


def serve(wish: Wish, drain_s: float, ready: Ready, ended: Ended) -> int:
    """Publish, serve, drain; returns the exit status. PortInUse, PortfwdError."""
    _raise_limit()
    poller = Poller()
    loop = asyncio.SelectorEventLoop(poller)
    places = Places()
    relay = Relay(poller, places, unsteered="the service does that, not `portfwd run`")
    following = Following(loop, relay)
    known = sticky.memory(store.state_dir())
    done: list[Mapping] = []
    try:
        notes: list[str] = []

        def offer(mappings: list[Mapping]) -> None:
            published: list[Mapping] = []
            try:
                for mapping in mappings:
                    notes.extend(following.publish(mapping) if mapping.follow else relay.publish(mapping))
                    published.append(mapping)
            except BaseException:
                withdraw(published)
                raise

        def withdraw(mappings: list[Mapping]) -> None:
            for mapping in mappings:
                relay.remove(mapping.id)

        stop = Stop(relay, following, drain_s)
        loop.add_signal_handler(
            signal.SIGTERM, stop.asked
        )  # from the first client on; SIGINT ends a long search for ports
        had = known.recall(wish.template.sticky) if wish.template.sticky else {}
        done = options.settle(wish, offer, withdraw, had, notes)
        notes += [*sticky.remember(known, done), *absent_notes(places, done), *tentative.notes(done)]
        loop.add_signal_handler(signal.SIGINT, stop.asked)
        left_out = bind.left_out()
        ready([mapping.without(left_out) for mapping in done], notes)
        loop.run_until_complete(_serve(relay, stop))
    finally:
        following.close()
        relay.close()
        ended(done)
        places.close()
        loop.close()
    return 0


class Stop:
    """What signals ask for: the first to drain, the second to end."""

    def __init__(self, relay: Relay, following: Following, drain_s: float) -> None:
        self.relay = relay
        self.following = following
        self.drain_s = drain_s
        self.draining = False
        self.ended = False

    def asked(self) -> None:
        """A signal came."""
        if self.draining:
            self.ended = True
            return
        self.draining = True
        self.following.close()
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
