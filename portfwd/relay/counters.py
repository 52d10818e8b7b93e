"""What is counted per mapping, for `portfwd stats`, and what of it is said in the log now and then."""

from __future__ import annotations

import logging

log = logging.getLogger("portfwd")

SAY_S = 60.0  # between two lines on what a mapping turns away


class Counters:
    """Totals since the mapping was published; `active` is now. Client to target is `in`."""

    __slots__ = (
        "active",
        "bytes_in",
        "bytes_out",
        "connections",
        "dropped",
        "errors",
        "evicted",
        "failed",
        "limited",
        "loops",
        "refused",
        "spliced",
        "starved",
    )

    def __init__(self) -> None:
        self.connections = 0  # accepted, or UDP flows begun
        self.active = 0
        self.refused = 0  # by the allow list or a limit, or for a loop
        self.limited = 0  # of those: by a limit
        self.loops = 0  # of those refused, or dropped: came back from a socket of our own
        self.evicted = 0  # UDP flows that ended early, for newer ones
        self.starved = 0  # times that descriptors ran out
        self.failed = 0  # no target could be reached
        self.errors = 0  # cut by a reset, a time limit or an error
        self.bytes_in = 0
        self.bytes_out = 0
        self.spliced = 0  # of both: bytes that never left the kernel
        self.dropped = 0  # UDP datagrams

    def to_json(self) -> dict[str, int]:
        """All of them by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def add(self, earlier: dict[str, int]) -> None:
        """Go on from what a predecessor counted; what is active is counted by whoever adopts it."""
        for name in set(self.__slots__) - {"active"}:
            setattr(self, name, getattr(self, name) + int(earlier.get(name, 0)))


class Tally:
    """What is turned away, by reason, until it is said: at once the first time, then every SAY_S."""

    __slots__ = ("_counted", "_said")

    def __init__(self) -> None:
        self._counted: dict[str, int] = {}
        self._said = float("-inf")

    def add(self, reason: str) -> None:
        """`reason` follows the number in a sentence."""
        self._counted[reason] = self._counted.get(reason, 0) + 1

    def due(self, now: float, *, last: bool = False) -> str:
        """What is to be said now: "12 clients beyond the limit, 3 flows ..."; "" for nothing. Starts anew then."""
        if not self._counted or (now < self._said + SAY_S and not last):
            return ""
        text = ", ".join(f"{count} {reason}" for reason, count in self._counted.items())
        self._counted.clear()
        self._said = now
        return text

    def say(self, name: str, now: float, *, last: bool = False) -> None:
        """Log what is due of a mapping."""
        if text := self.due(now, last=last):
            log.warning("%s: turned away: %s", name, text)
