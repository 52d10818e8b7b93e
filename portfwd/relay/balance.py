"""Which of several targets a new connection goes to. Pure: the caller gives the time.

`round-robin` takes turns. `source` sends a client to the same target each time, by rendezvous hashing: when a target goes away,
only its own clients move. A target that could not be reached is tried last for DEAD_S; then one connection tries it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from portfwd.mapping import Target

DEAD_S = 10.0
NONE: dict[Target, str] = {}


class Balancer:
    """The targets of one mapping, and which of them count as dead."""

    __slots__ = ("_dead_s", "_dead_until", "_how", "_names", "_next", "_targets")

    def __init__(self, targets: Sequence[Target], how: str, *, dead_s: float = DEAD_S) -> None:
        self._targets = tuple(dict.fromkeys(targets))  # one that is named twice is one: there are no weights
        self._names = {target: str(target) for target in self._targets} if how == "source" else NONE
        self._how = how
        self._dead_s = dead_s
        self._dead_until: dict[Target, float] = {}
        self._next = 0

    def order(self, client: str, now: float) -> list[Target]:
        """All targets, each once, in the order to try them; dead ones last."""
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
            # This connection tries it. Until it succeeds, the next ones still take the target for dead.
            self._dead_until[alive[0]] = now + self._dead_s
        return alive + dead

    def failed(self, target: Target, now: float) -> None:
        """Count a target as dead for a while: it could not be reached."""
        if target in self._targets:
            self._dead_until[target] = now + self._dead_s

    def worked(self, target: Target) -> None:
        """Count a target as alive: it was reached."""
        self._dead_until.pop(target, None)

    def dead(self, now: float) -> list[Target]:
        """The targets that count as dead."""
        return [target for target in self._targets if self._dead_until.get(target, now) > now]


def weight(client: str, name: str) -> bytes:
    """The weight of a target for a client, 8 bytes: the client goes to the target with the highest."""
    return blake2b(f"{client}\0{name}".encode(), digest_size=8).digest()
