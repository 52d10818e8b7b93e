"""Traced packets as journeys: each packet, the hooked chains that it passes, and the rules that it meets there. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cni_py.explain import nft_text, owners
from cni_py.explain.chains import Chain, Table
from cni_py.explain.iptables_save import combined
from cni_py.explain.marking import ASKED, Wanted
from cni_py.explain.tracing import Event, Flow, Headers
from cni_py.explain.way import Verdict, Way
from cni_py.host.model import Namespace

DEPTH_MAX = 16  # NFT_JUMP_STACK_SIZE
OUTCOMES: dict[str, Verdict] = {"answered": "answers", "refused": "fails", "dropped": "fails", "unreachable": "fails"}


@dataclass(frozen=True, slots=True)
class Met:
    """A rule that a packet met, or a chain's policy."""

    chain: str
    handle: int  # 0 for a policy
    text: str  # the rule's words; "" for a policy, and for a rule that was made meanwhile
    verdict: str  # "jump CNI-HOSTPORT", "policy accept"
    owner: str  # who made it, as far as names tell
    depth: int  # 0 in the hooked chain itself


@dataclass(slots=True)
class Passage:
    """A packet's way through a hooked chain and those that this one calls."""

    hook: str
    table: str  # "ip nat (iptables-nft)"
    chain: str
    iif: str  # names of interfaces, "" for none
    oif: str
    headers: Headers | None
    met: list[Met] = field(default_factory=list)


@dataclass(slots=True)
class Journey:
    """A packet, from where it was marked."""

    headers: Headers
    asks: bool  # it goes to the port; else it is an answer
    passages: list[Passage] = field(default_factory=list)
    began: str = ""  # family and hook where it was marked
    repeated: int = 0  # how often it was sent again

    @property
    def dropped(self) -> Passage | None:
        """Where it ended, if a rule or policy dropped it."""
        last = self.passages[-1] if self.passages else None
        return last if last and last.met and last.met[-1].verdict.endswith("drop") else None


@dataclass(frozen=True, slots=True)
class Trace:
    """What was seen of one attempt, or of the packets that were waited for."""

    journeys: tuple[Journey, ...]
    flows: tuple[Flow, ...]
    lost: bool = False  # the kernel had more to say than its buffer holds
    cut: bool = False  # so had this program


@dataclass(slots=True)
class _Reader:
    """Puts events together. The kernel's number of a packet is used again for a later one: headers tell them apart."""

    tables: dict[tuple[str, str], Table]
    links: dict[int, str]
    own: str
    wanted: Wanted
    journeys: list[Journey] = field(default_factory=list)
    now: dict[int, Journey | None] = field(default_factory=dict)  # None: a repetition, which is not told
    stacks: dict[int, list[str]] = field(default_factory=dict)  # chains that were called

    def take(self, event: Event) -> None:
        if event.table == self.own and not marks(event):
            return  # our chains for other packets
        table = self.tables.get((event.family, event.table))
        chain = table.chains.get(event.chain) if table else None
        hook = event.chain.partition("_")[2] if event.table == self.own else chain.hook if chain else ""
        if event.headers is not None:
            self._passes(event, hook, event.headers)
        journey = self.now.get(event.id)
        if journey is None or event.table == self.own:
            return
        if event.headers is not None or not journey.passages:
            label = table.label if table else f"{event.family} {event.table}"
            iif, oif = (self._link(index) for index in (event.iif, event.oif))
            journey.passages.append(Passage(hook, label, event.chain, iif, oif, event.headers))
            self.stacks[event.id] = [event.chain]
        journey.passages[-1].met.append(self._met(event, table, chain))

    def _passes(self, event: Event, hook: str, seen: Headers) -> None:
        """A hooked chain begins: of the same packet as before, of one sent again, or of another one."""
        journey = self.now.get(event.id)
        if journey is not None and _same(journey.headers, seen) and not (event.table == self.own and journey.passages):
            return
        known = next((one for one in reversed(self.journeys) if _same(one.headers, seen) and seen.flags), None)
        if known is None:
            asks = event.chain.startswith(ASKED) if event.table == self.own else self._asks(seen)
            journey = Journey(seen, asks, began=f"{event.family} {hook}")
            self.journeys.append(journey)
            self.now[event.id] = journey
        elif f"{event.family} {hook}" == known.began and event.table == self.own and known.passages:
            known.repeated += 1
            self.now[event.id] = None
        elif event.id not in self.now or self.now[event.id] is not None:
            self.now[event.id] = known

    def _asks(self, seen: Headers) -> bool:
        return seen.ends.destination_port == self.wanted.port

    def _link(self, index: int) -> str:
        return self.links.get(index, f"interface {index}") if index else ""

    def _met(self, event: Event, table: Table | None, chain: Chain | None) -> Met:
        stack = self.stacks.setdefault(event.id, [event.chain])
        while event.chain in stack and stack[-1] != event.chain:
            stack.pop()
        depth = min(len(stack) - 1, DEPTH_MAX)
        if event.verdict in ("jump", "goto") and event.target:
            stack.append(event.target)
        verdict = f"{event.verdict} {event.target}".strip()
        if event.kind == "policy":
            verdict = f"policy {event.verdict}"
        elif not event.handle:
            verdict = "end"  # of the chain
        rule = (
            next((one for one in chain.rules if one.handle == event.handle), None) if chain and event.handle else None
        )
        words = (rule.words or nft_text.rule(rule.expressions)) if rule else ""
        owner = owners.owner_of(table, event.chain, rule) if table else ""
        if table and chain and event.kind == "policy":
            owner = owners.policy_owner(chain)
        return Met(event.chain, event.handle, words, verdict, owner, depth)


def marks(event: Event) -> bool:
    """Whether an event of the marking table is a rule: all of them mark."""
    return event.kind == "rule" and event.handle > 0


def _same(one: Headers, other: Headers) -> bool:
    """Whether headers are of one packet, which may have been translated meanwhile."""
    return (one.protocol, one.flags, one.sequence) == (other.protocol, other.flags, other.sequence)


def read(events: Iterable[Event | Flow], space: Namespace, own: str, wanted: Wanted) -> Trace:
    """What came, in its order. `space` is the namespace where it happened, as it was before; `own` the marking table."""
    tables, _ = combined(space.nftables, space.iptables)
    named = {(one.family, one.name): one for one in tables if not one.label.endswith("-legacy)")}
    reader = _Reader(named, {link.index: link.name for link in space.links}, own, wanted)
    flows = []
    for one in events:
        if isinstance(one, Event):
            reader.take(one)
        else:
            flows.append(one)
    return Trace(tuple(reader.journeys), tuple(flows))


def unseen(space: Namespace) -> Iterator[str]:
    """Sentences on the rules of a namespace that no trace shows."""
    tables, _ = combined(space.nftables, space.iptables)
    legacy = sorted({one.label for one in tables if one.label.endswith("-legacy)") and any(_rules(one))})
    if legacy:
        yield f"rules of iptables-legacy are not traced: {', '.join(legacy)}"
    early = sorted({one.label for one in tables for chain in one.chains.values() if chain.hook == "ingress"})
    if early:
        yield f"the packet is marked after the hook ingress, so that its rules are not traced: {', '.join(early)}"


def _rules(table: Table) -> Iterator[bool]:
    return (bool(chain.rules) or chain.policy == "drop" for chain in table.chains.values())


def is_tracked(space: Namespace) -> bool:
    """Whether conntrack is in use there: something translates addresses."""
    tables, _ = combined(space.nftables, space.iptables)
    return any(chain.kind == "nat" and chain.hook for table in tables for chain in table.chains.values())


def outcome(trace: Trace) -> str:
    """What became of the packet: "answered", "refused", "dropped", "silent"; "" without any; "seen" for several clients'."""
    asked = [one for one in trace.journeys if one.asks]
    if len({one.headers.ends for one in asked}) != 1:
        return "seen" if asked else ""
    answers = [one.headers for one in trace.journeys if not one.asks]
    if any("rst" in one.flags for one in answers):
        return "refused"
    if any(one.dropped for one in trace.journeys):
        return "dropped"
    return "answered" if answers or any("answered" in flow.status for flow in trace.flows) else "silent"


def compared(way: Way, trace: Trace, result: str) -> tuple[bool | None, str]:
    """Whether explain computed what happened (None: that cannot be said), and a sentence."""
    code = f" [{way.deciding.code}]" if way.deciding else ""
    computed = f"explain computed: {way.verdict}{code}"
    if way.verdict == "unknown":
        return None, f"explain cannot say{code}; this is what happened: {result}"
    happened = OUTCOMES.get(result) or (None if way.packet.protocol == "udp" else "fails")
    if happened is None:
        return None, f"{computed}; nothing can be said against it: a server need not answer what was sent"
    place = next((one.dropped for one in trace.journeys if one.dropped), None)
    if happened == way.verdict == "fails" and place and way.deciding and way.deciding.code != filtered(place):
        return False, f"the trace does not agree: dropped in {place.table} {place.chain}, but {computed}"
    if happened != way.verdict:
        return False, f"the trace does not agree: {result}, but {computed}"
    return True, f"the trace agrees with what {computed}"


def filtered(place: Passage) -> str:
    """explain's code of a drop."""
    return "filtered-bridge" if place.table.startswith("bridge ") else f"filtered-{place.hook}"
