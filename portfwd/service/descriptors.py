"""Descriptors that are kept for commands: clients may hold all the others, and `portfwd rm` must still work.

    0 ──────────────── data ────────── listeners ────── commands
    connections, flows │ what a publish │ what a command needs for a moment:
    pipes, namespaces  │ keeps           │ its own connection, a file, a look into /proc

The kernel gives a new descriptor the lowest free number and refuses one that is not below the soft RLIMIT_NOFILE
(getrlimit(2)), so that limit is the fence: it stands at `data`, and is raised while a command is served.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

SHARE = 8  # of the descriptors that the process may have, one in so many is kept
RESERVE_MAX = 512
UNLIMITED = 1 << 30  # fs.nr_open is far below


class Descriptors:
    """The fence. `most`: the hard limit, unless a test says otherwise."""

    __slots__ = ("_now", "commands", "data", "listeners")

    def __init__(self, most: int = 0) -> None:
        found = most or resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.commands = UNLIMITED if found == resource.RLIM_INFINITY else found
        kept = min(RESERVE_MAX, self.commands // SHARE)
        self.data = self.commands - kept
        self.listeners = self.commands - kept // 2
        self._now = self.commands
        self._fence(self.commands)

    def _fence(self, soft: int) -> None:
        self._now = soft
        with contextlib.suppress(
            OSError, ValueError
        ):  # fs.nr_open was lowered below the hard limit: then there is no fence
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    def lower(self) -> None:
        """Keep back what commands need: clients are served from now on."""
        self._fence(self.data)

    def for_commands(self) -> contextlib.AbstractContextManager[None]:
        """Allow all descriptors, for what is closed again soon."""
        return self._raised(self.commands)

    def for_listeners(self) -> contextlib.AbstractContextManager[None]:
        """Allow what a mapping may keep; the rest stays free for commands."""
        return self._raised(self.listeners)

    @contextlib.contextmanager
    def _raised(self, soft: int) -> Iterator[None]:
        before = self._now
        self._fence(soft)
        try:
            yield
        finally:
            self._fence(before)
