"""The counters of a mapping, for `portfwd stats`, and the tally of turned-away clients, for the log."""

from __future__ import annotations

import logging

log = logging.getLogger("portfwd")

SAY_S = 60.0  # between two lines of a mapping's tally in the log


class Counters:
    """Totals since the mapping was published; `active` is the present number. `in` is from client to target."""

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
        """Add a predecessor's totals. Not `active`: who adopts a connection counts it."""
        for name in set(self.__slots__) - {"active"}:
            setattr(self, name, getattr(self, name) + int(earlier.get(name, 0)))


class Tally:
    """How often clients were turned away, by reason, until it is logged: the first time at once, then every SAY_S."""

    __slots__ = ("_counted", "_said")

    def __init__(self) -> None:
        self._counted: dict[str, int] = {}
        self._said = float("-inf")

    def add(self, reason: str) -> None:
        """Count one. `reason` follows the number in a sentence."""
        self._counted[reason] = self._counted.get(reason, 0) + 1

    def due(self, now: float, *, last: bool = False) -> str:
        """The text to log now, "12 clients beyond the limit, 3 flows ...", or "". Counting starts anew after a text."""
        if not self._counted or (now < self._said + SAY_S and not last):
            return ""
        text = ", ".join(f"{count} {reason}" for reason, count in self._counted.items())
        self._counted.clear()
        self._said = now
        return text

    def say(self, name: str, now: float, *, last: bool = False) -> None:
        """Log the tally of a mapping, if it is due."""
        if text := self.due(now, last=last):
            log.warning("%s: turned away: %s", name, text)
