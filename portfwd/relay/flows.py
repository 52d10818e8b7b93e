"""A bounded table of UDP flows, which chooses the flow to end for a new one. Pure.

The table closes nothing: it returns the flows that leave it, and the caller ends them. The caller gives the time, which never
runs backwards.

A full table makes room as conntrack does (early_drop() in nf_conntrack_core.c): ending a flow in its middle is worse than
refusing a new one, and a sender with forged sources can begin any number of flows. The first of these that there is goes, the
least recently used of its kind:

    question      QUESTION_S idle: its client has not spoken again after an answer, TALKS_S or more after its first word
    flow          HELD_S idle, of any kind: as long as conntrack keeps what is no conversation (nf_conntrack_udp_timeout)
    question      of any age

If there is none, the new flow is refused. A client at its own limit loses its own least recently used flow: a resolver that takes
a new source port for every question would otherwise be shut out until its old flows expire.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

# per mapping, unless descriptors are few; a flow takes 1 KiB here and 3 to 7 KiB in the kernel (measured)
FLOWS_MAX = 16384
TALKS_S = 2.0  # as conntrack's nf_conntrack_udp_packet() has it
QUESTION_S = 5.0  # what resolvers wait for an answer
HELD_S = 30.0
IDLE_S = 90.0  # docker-proxy's; the kernel's nf_conntrack_udp_timeout_stream is 120


def most(limit: int, descriptors: int) -> int:
    """How many flows a mapping may have: its own limit, else FLOWS_MAX, but no more than half of the descriptors."""
    return limit or min(FLOWS_MAX, max(1, descriptors // 2))


class Flow:
    """A flow as the table sees it: its key, its client and when it was last used."""

    __slots__ = ("active", "begun", "key", "owner", "talks")

    def __init__(self, key: Hashable, owner: str, now: float) -> None:
        self.key = key
        self.owner = owner  # the client's address, by which the limit per client counts
        self.active = now
        self.begun = now
        self.talks = False  # a conversation: see the module


F = TypeVar("F", bound=Flow)


class FlowTable(Generic[F]):
    """At most `limit` flows, at most `limit_per_client` of one owner (0: no such limit)."""

    def __init__(self, limit: int = FLOWS_MAX, limit_per_client: int = 0, idle_s: float = IDLE_S) -> None:
        self.limit = limit
        self.limit_per_client = limit_per_client
        self.idle_s = idle_s
        self._flows: OrderedDict[Hashable, F] = OrderedDict()  # least recently used first
        self._questions: OrderedDict[Hashable, F] = OrderedDict()  # those that are no conversation, in the same order
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
        """Note that a flow was used."""
        flow.active = now
        self._flows.move_to_end(flow.key)
        if not flow.talks:
            self._questions.move_to_end(flow.key)
        if self.limit_per_client:
            self._owned[flow.owner].move_to_end(flow.key)

    def talks(self, flow: F, now: float) -> None:
        """Note that a flow's client spoke again after an answer: TALKS_S after its first word that makes it a conversation."""
        if now - flow.begun >= TALKS_S:
            flow.talks = True
            del self._questions[flow.key]

    def bounds(self) -> str:
        """The limits, for people."""
        each = f" or {self.limit_per_client} of a client" if self.limit_per_client else ""
        return f"the limit of {self.limit} flows{each}"

    def is_full(self, owner: str, now: float) -> bool:
        """Whether a new flow has to be refused: no place is free, and no flow may go for it."""
        return len(self._flows) >= self.limit and not self._at_cap(owner) and self.expendable(now) is None

    def expendable(self, now: float) -> F | None:
        """The flow to end first, if any may end."""
        return self.silent(now) or next(iter(self._questions.values()), None)

    def silent(self, now: float) -> F | None:
        """A flow that is most likely over: an old question, or a flow idle for HELD_S."""
        question = next(iter(self._questions.values()), None)
        if question is not None and question.active <= now - QUESTION_S:
            return question
        oldest = next(iter(self._flows.values()), None)
        return oldest if oldest is not None and oldest.active <= now - HELD_S else None

    def _at_cap(self, owner: str) -> bool:
        return bool(self.limit_per_client) and len(self._owned.get(owner, ())) >= self.limit_per_client

    def add(self, flow: F) -> list[F]:
        """Add a flow with a new key; returns the flows that had to leave for it."""
        gone = self._make_room(flow.owner, flow.active)
        self._flows[flow.key] = flow
        if not flow.talks:
            self._questions[flow.key] = flow
        if self.limit_per_client:
            self._owned.setdefault(flow.owner, OrderedDict())[flow.key] = flow
        return gone

    def _make_room(self, owner: str, now: float) -> list[F]:
        if self._at_cap(owner):
            gone = next(iter(self._owned[owner].values()))
        elif len(self._flows) >= self.limit:
            gone = self.expendable(now) or next(iter(self._flows.values()))
        else:
            return []
        self.remove(gone)
        return [gone]

    def remove(self, flow: F) -> None:
        """Remove a flow that is in the table."""
        del self._flows[flow.key]
        if not flow.talks:
            del self._questions[flow.key]
        if self.limit_per_client:
            owned = self._owned[flow.owner]
            del owned[flow.key]
            if not owned:
                del self._owned[flow.owner]

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
        """Change the limits; returns the flows that no longer have a place, oldest first."""
        flows = list(self)
        self.limit, self.limit_per_client, self.idle_s = limit, limit_per_client, idle_s
        self._forget_all()
        gone: list[F] = []
        for flow in flows:
            gone += self.add(flow)
        return gone

    def _forget_all(self) -> None:
        self._flows.clear()
        self._questions.clear()
        self._owned.clear()
