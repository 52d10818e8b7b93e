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

    __slots__ = ("_dead_s", "_dead_until", "_how", "_names", "_next", "_targets")

    def __init__(self, targets: Sequence[Target], how: str, *, dead_s: float = DEAD_S) -> None:
        self._targets = tuple(dict.fromkeys(targets))  # one that is named twice is one: there are no weights
        self._names = {target: str(target) for target in self._targets}
        self._how = how
        self._dead_s = dead_s
        self._dead_until: dict[Target, float] = {}
        self._next = 0

    def order(self, client: str, now: float) -> list[Target]:
        """All targets, each once, in the order in which to try them; those taken for dead come last."""
        ordered = self._by_client(client) if self._how == "source" else self._by_turn()
        if self._dead_until:
            ordered = self._dead_last(ordered, now)
        if self._how != "source":
            self._next = (self._targets.index(ordered[0]) + 1) % len(self._targets)
        return ordered

    def _by_client(self, client: str) -> list[Target]:
        names = self._names
        return sorted(self._targets, key=lambda target: weight(client, names[target]), reverse=True)

    def _by_turn(self) -> list[Target]:
        return [*self._targets[self._next :], *self._targets[: self._next]]

    def _dead_last(self, ordered: Sequence[Target], now: float) -> list[Target]:
        alive: list[Target] = []
        dead: list[Target] = []
        for target in ordered:
            (alive if self._dead_until.get(target, now) <= now else dead).append(target)
        if alive and alive[0] in self._dead_until:
            # This connection tries it; the next ones wait for what comes of that.
            self._dead_until[alive[0]] = now + self._dead_s
        return alive + dead

    def failed(self, target: Target, now: float) -> None:
        """It could not be reached."""
        if target in self._names:
            self._dead_until[target] = now + self._dead_s

    def worked(self, target: Target) -> None:
        """It was reached."""
        self._dead_until.pop(target, None)

    def dead(self, now: float) -> list[Target]:
        """Those taken for dead."""
        return [target for target in self._targets if self._dead_until.get(target, now) > now]


def weight(client: str, name: str) -> bytes:
    """How much a client is drawn to the target of that name: the highest has it."""
    return blake2b(f"{client}\0{name}".encode(), digest_size=8).digest()
