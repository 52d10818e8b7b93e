"""Tables and chains as values, and a packet's way through a chain, by all branches that are open.

What a rule that cannot be evaluated may do is followed on every branch. Branches that meet again in the same state are one, so
that a doubt which changes nothing is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.explain.fields import World
    from cni_py.explain.packet import Hook, Packet, Step
    from cni_py.explain.values import Json

DEPTH_MAX = 20  # NFT_JUMP_STACK_SIZE is 16
EVALUATIONS_MAX = 200_000
BRANCHES_MAX = 256
FINAL = ("accept", "drop", "reject", "queue", "unknown")


@dataclass(slots=True)
class Table:
    """A table of nftables, or of iptables."""

    backend: str  # "nftables", "iptables"
    family: str
    name: str
    label: str  # as a step names it: "inet cni_py", "ip filter (iptables-nft)"
    handle: int = 0
    dormant: bool = False
    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, Json] = field(default_factory=dict)
    cache: dict[tuple[str, tuple[str, ...]], object] = field(default_factory=dict)  # of sets that were read


@dataclass(slots=True)
class Rule:
    """A rule: expressions as nft's JSON has them; what iptables says is translated into these (iptables_rules.py)."""

    expressions: list[Json]
    handle: int = 0
    words: str = ""  # of iptables; nft's are made when they are needed
    comment: str = ""


@dataclass(slots=True)
class Chain:
    """A chain; one that is hooked has a hook."""

    table: Table
    name: str
    rules: list[Rule] = field(default_factory=list)
    hook: str = ""
    kind: str = "filter"  # "nat", "route"
    priority: int = 0
    policy: str = "accept"
    handle: int = 0
    devices: tuple[str, ...] = ()  # of the hooks `ingress` and `egress`


@dataclass(frozen=True, slots=True)
class Either:
    """What iptables has and nft's JSON has not: any of several matches, or none of them."""

    matches: tuple[Json, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Open:
    """A match of iptables that cannot be evaluated."""

    why: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A target of iptables that cannot be followed."""

    why: str


@dataclass(frozen=True, slots=True)
class Doubt:
    """A branch that was taken: which of so many, and how many steps there were before."""

    step: Step
    before: int
    branches: frozenset[int]
    of: int


@dataclass(frozen=True, slots=True)
class State:
    """A packet on its way through the chains of a hook."""

    packet: Packet
    nat: str = ""
    translated: bool = False  # this hook's translation has been decided: no other nat chain is asked
    touched: frozenset[str] = frozenset()  # sets that a rule has added to, or taken from
    steps: tuple[Step, ...] = field(default=(), compare=False)
    doubts: tuple[Doubt, ...] = field(default=(), compare=False)

    def with_step(self, step: Step) -> State:
        """The same, one step on."""
        return replace(self, steps=(*self.steps, step))

    def in_doubt(self, step: Step, branch: int, of: int) -> State:
        """One of several branches."""
        return replace(self, doubts=(*self.doubts, Doubt(step, len(self.steps), frozenset((branch,)), of)))


@dataclass(frozen=True, slots=True)
class After:
    """What a rule, or a chain, makes of a packet: the next rule, a verdict, or another chain."""

    control: str  # "next", "return", "jump", "goto", or one of FINAL
    state: State
    target: str = ""


class Runner(Protocol):
    """Runs one rule: rules.py."""

    def __call__(self, walk: Walk, chain: Chain, rule: Rule, state: State) -> Iterable[After]: ...


class TooMuch(Exception):
    """The ruleset is too large, or too deep, to be followed."""


@dataclass(slots=True)
class Walk:
    """A packet's way through the chains of one hook."""

    world: World
    hook: Hook
    run: Runner
    tracked: bool = True  # conntrack has looked at the packet: not before its own priority
    evaluations: int = 0

    def chain(self, chain: Chain, start: State, depth: int = 0) -> list[After]:
        """All ways through a chain: verdicts, and `return` from its end or by a rule. TooMuch."""
        if depth > DEPTH_MAX:
            raise TooMuch(f"chains lead into each other more than {DEPTH_MAX} deep")
        ended: dict[tuple[str, State], After] = {}
        live = {start: start}
        for rule in chain.rules:
            following: dict[State, State] = {}
            for state in live.values():
                self._rule(chain, rule, state, depth, following, ended)
            live = following
            if not live:
                break
        for state in live.values():
            _end(ended, After("return", state))
        return list(ended.values())

    def _rule(
        self,
        chain: Chain,
        rule: Rule,
        state: State,
        depth: int,
        following: dict[State, State],
        ended: dict[tuple[str, State], After],
    ) -> None:
        self.evaluations += 1
        if self.evaluations > EVALUATIONS_MAX or len(following) + len(ended) > BRANCHES_MAX:
            raise TooMuch("the ruleset has more branches than can be followed")
        for after in self.run(self, chain, rule, state):
            if after.control == "next":
                _go_on(following, after.state)
            elif after.control in ("jump", "goto"):
                for one in self._into(chain, after, depth):
                    if one.control == "return" and after.control == "jump":
                        _go_on(following, one.state)
                    else:
                        _end(ended, one)
            else:
                _end(ended, after)

    def _into(self, chain: Chain, after: After, depth: int) -> list[After]:
        target = chain.table.chains.get(after.target)
        if target is None:
            raise TooMuch(f"the chain {after.target!r} is not in the ruleset")
        return self.chain(target, after.state, depth + 1)


def _go_on(states: dict[State, State], state: State) -> None:
    there = states.get(state)
    states[state] = state if there is None else merged(there, state)


def _end(ended: dict[tuple[str, State], After], after: After) -> None:
    key = (after.control, after.state)
    there = ended.get(key)
    ended[key] = after if there is None else replace(after, state=merged(there.state, after.state))


def merged(first: State, second: State) -> State:
    """Two branches that have come to the same: where they are all branches of a doubt, it is none."""
    kept = first if len(first.steps) <= len(second.steps) else second
    one, other = first.doubts, second.doubts
    if not one or not other:
        return replace(kept, doubts=())
    if one[:-1] == other[:-1] and one[-1].step == other[-1].step:
        branches = one[-1].branches | other[-1].branches
        last = (replace(one[-1], branches=branches),) if len(branches) < one[-1].of else ()
        return replace(kept, doubts=(*one[:-1], *last))
    return replace(kept, doubts=min(one, other, key=len))
