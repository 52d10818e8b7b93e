"""Descriptors kept for commands: when clients hold all the others, `portfwd rm` must still work.

    0 ──────────────── data ────────── listeners ────── commands
    connections, flows │ what a publish │ what a command needs for a moment:
    pipes, namespaces  │ keeps open      │ its own connection, files, /proc

The kernel gives a new descriptor the lowest free number, and refuses one that is not below the soft RLIMIT_NOFILE (getrlimit(2)).
So that limit serves as the fence: it stands at `data`, and is raised while a command is carried out.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

SHARE = 8  # one in so many of the process's descriptors is kept for commands
RESERVE_MAX = 512
UNLIMITED = 1 << 30  # fs.nr_open is far below


class Descriptors:
    """The fence. `most`: the number of descriptors of the process, 0 for the hard limit."""

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
        # fs.nr_open may have been lowered below the hard limit: the call fails then, and there is no fence.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    def lower(self) -> None:
        """Keep back the descriptors of commands, from now on."""
        self._fence(self.data)

    def for_commands(self) -> contextlib.AbstractContextManager[None]:
        """Allow all descriptors, for those that are closed again soon."""
        return self._raised(self.commands)

    def for_listeners(self) -> contextlib.AbstractContextManager[None]:
        """Allow the descriptors that mappings may keep; the rest stays free for commands."""
        return self._raised(self.listeners)

    @contextlib.contextmanager
    def _raised(self, soft: int) -> Iterator[None]:
        before = self._now
        self._fence(soft)
        try:
            yield
        finally:
            self._fence(before)
