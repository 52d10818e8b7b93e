"""Which UDP flows there are, and which has to go: a bounded table, least recently used out first. Pure.

The table never closes anything: what leaves it is returned, and the caller ends it. Time comes in and never runs backwards.
A client at its cap loses its own least recently used flow, not the new one: a resolver that takes a new source port for every
question would otherwise be shut out until its old flows expire.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

FLOWS_MAX = 1024  # per mapping; a flow is a descriptor, and processes often have no more than that by default
IDLE_S = 90.0  # docker-proxy's; the kernel's nf_conntrack_udp_timeout_stream is 120


class Flow:
    """What the table needs to know of a flow: its key, whose it is and when it was last used."""

    __slots__ = ("active", "key", "owner")

    def __init__(self, key: Hashable, owner: str, now: float) -> None:
        self.key = key
        self.owner = owner  # what the cap per client counts by: the client's address
        self.active = now


F = TypeVar("F", bound=Flow)


class FlowTable(Generic[F]):
    """At most `limit` flows, at most `limit_per_client` of one owner (0: no such cap)."""

    def __init__(self, limit: int = FLOWS_MAX, limit_per_client: int = 0, idle_s: float = IDLE_S) -> None:
        self.limit = limit
        self.limit_per_client = limit_per_client
        self.idle_s = idle_s
        self._flows: OrderedDict[Hashable, F] = OrderedDict()  # least recently used first
        self._owned: dict[str, OrderedDict[Hashable, F]] = {}  # the same per owner; kept only where there is such a cap

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[F]:
        """Least recently used first."""
        return iter(self._flows.values())

    def get(self, key: Hashable) -> F | None:
        """The flow, without touching it."""
        return self._flows.get(key)

    def touch(self, flow: F, now: float) -> None:
        """It was used."""
        flow.active = now
        self._flows.move_to_end(flow.key)
        if self.limit_per_client:
            self._owned[flow.owner].move_to_end(flow.key)

    def add(self, flow: F) -> list[F]:
        """Put in a flow whose key is new, and return those that left for it."""
        gone = self._make_room(flow.owner)
        self._flows[flow.key] = flow
        if self.limit_per_client:
            self._owned.setdefault(flow.owner, OrderedDict())[flow.key] = flow
        return gone

    def _make_room(self, owner: str) -> list[F]:
        owned = self._owned.get(owner)
        if owned is not None and len(owned) >= self.limit_per_client:
            own = next(iter(owned.values()))
            self.remove(own)
            return [own]
        if len(self._flows) >= self.limit and (oldest := self.pop_oldest()) is not None:
            return [oldest]
        return []

    def remove(self, flow: F) -> None:
        """Take out a flow that is in the table."""
        del self._flows[flow.key]
        if self.limit_per_client:
            owned = self._owned[flow.owner]
            del owned[flow.key]
            if not owned:
                del self._owned[flow.owner]

    def pop_oldest(self) -> F | None:
        """Remove the least recently used flow and return it; None when there is none."""
        flow = next(iter(self._flows.values()), None)
        if flow is not None:
            self.remove(flow)
        return flow

    def expire(self, now: float) -> list[F]:
        """Remove the flows idle since now - idle_s and return them, oldest first."""
        gone: list[F] = []
        for flow in self._flows.values():
            if flow.active > now - self.idle_s:
                break
            gone.append(flow)
        for flow in gone:
            self.remove(flow)
        return gone

    def resize(self, limit: int, limit_per_client: int, idle_s: float) -> list[F]:
        """Change the bounds; return what no longer has a place, oldest first."""
        flows = list(self)
        self.limit, self.limit_per_client, self.idle_s = limit, limit_per_client, idle_s
        self._flows.clear()
        self._owned.clear()
        gone: list[F] = []
        for flow in flows:
            gone += self.add(flow)
        return gone

    def clear(self) -> list[F]:
        """Remove all and return them, oldest first."""
        flows = list(self)
        self._flows.clear()
        self._owned.clear()
        return flows
