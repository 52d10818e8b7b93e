"""What is counted per mapping, for `portfwd stats`."""

from __future__ import annotations


class Counters:
    """Totals since the mapping was published; `active` is now. Client to target is `in`."""

    __slots__ = (
        "active",
        "bytes_in",
        "bytes_out",
        "connections",
        "dropped",
        "errors",
        "failed",
        "loops",
        "refused",
        "spliced",
    )

    def __init__(self) -> None:
        self.connections = 0  # accepted, or UDP flows begun
        self.active = 0
        self.refused = 0  # by the allow list or a limit, or for a loop
        self.loops = 0  # of those refused, or dropped: came back from a socket of our own
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
