"""`portfwd run`: this process serves the mappings itself, until a signal: no service, no stored mappings, no BPF program."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from portfwd.cli import options
from portfwd.cli.options import Wish
from portfwd.mapping import Mapping
from portfwd.netns.sockets import absent_notes
from portfwd.relay import bind, tentative
from portfwd.relay.following import Following
from portfwd.relay.runtime import Runtime, raise_limit
from portfwd.service import sticky, store

Ready = Callable[[Sequence[Mapping], Sequence[str]], None]  # called when all mappings listen, with notes for people
Ended = Callable[[Sequence[Mapping]], None]  # called when none of them listens any more


def serve(wish: Wish, drain_s: float, ready: Ready, ended: Ended) -> int:
    """Publish, serve until a signal, drain; returns the exit status. PortInUse, PortfwdError."""
    raise_limit()
    runtime = Runtime(unsteered="the service does that, not `portfwd run`")
    relay, loop = runtime.relay, runtime.loop
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

        def stop() -> None:
            following.close()
            runtime.stop(drain_s)

        # SIGTERM drains from the first client on; SIGINT still interrupts a long search for ports.
        loop.add_signal_handler(signal.SIGTERM, stop)
        had = known.recall(wish.template.sticky) if wish.template.sticky else {}
        done = options.settle(wish, offer, withdraw, had, notes)
        notes += [*sticky.remember(known, done), *absent_notes(runtime.places, done), *tentative.notes(done)]
        loop.add_signal_handler(signal.SIGINT, stop)
        left_out = bind.left_out()
        ready([mapping.without(left_out) for mapping in done], notes)
        runtime.run()
    finally:
        following.close()
        relay.close()
        ended(done)
        runtime.close()
    return 0
