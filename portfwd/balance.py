"""Which of several targets a new connection goes to. Pure: the time is told.

`round-robin` takes turns. `source` sends a client to the same target each time, by rendezvous hashing: a target that goes away
moves its own clients only. One that could not be reached is left out for DEAD_S; then one connection may try it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from portfwd.mapping import Target

DEAD_S = 10.0


class Balancer:
    """The targets of one mapping, and which of them are taken for dead."""

    __slots__ = ("_dead_s", "_dead_until", "_how", "_next", "_targets")

    def __init__(self, targets: Sequence[Target], how: str, *, dead_s: float = DEAD_S) -> None:
        self._targets = tuple(targets)
        self._how = how
        self._dead_s = dead_s
        self._dead_until: dict[Target, float] = {}
        self._next = 0

    def order(self, client: str, now: float) -> list[Target]:
        """All targets, each once, in the order in which to try them; those taken for dead come last."""
        if self._how == "source":
            ordered = sorted(self._targets, key=lambda target: weight(client, target), reverse=True)
        else:
            ordered = [*self._targets[self._next :], *self._targets[: self._next]]
        alive = [target for target in ordered if self._dead_until.get(target, 0.0) <= now]
        for target in alive[:1]:
            if target in self._dead_until:  # one connection tries it; the next ones wait for what comes of that
                self._dead_until[target] = now + self._dead_s
        if self._how != "source" and alive:
            self._next = (self._targets.index(alive[0]) + 1) % len(self._targets)
        return alive + [target for target in ordered if target not in alive]

    def failed(self, target: Target, now: float) -> None:
        """It could not be reached."""
        if target in self._targets:
            self._dead_until[target] = now + self._dead_s

    def worked(self, target: Target) -> None:
        """It was reached."""
        self._dead_until.pop(target, None)

    def dead(self, now: float) -> list[Target]:
        """Those taken for dead."""
        return [target for target in self._targets if self._dead_until.get(target, 0.0) > now]


def weight(client: str, target: Target) -> bytes:
    """How much a client is drawn to a target: the highest has it."""
    return blake2b(f"{client}\0{target}".encode(), digest_size=8).digest()
