"""What a hook of netfilter does with a packet, by all tables of a namespace: `decide` and `decide_frame`. Pure.

Kernel traps that are followed here:

- `accept` ends the evaluation of its own base chain alone: chains of a later priority still see the packet. `drop` is final.
- nat chains of all tables of a family are called from one place, at -100 (destination) and 100 (source), in the order of their
  own priorities, for the first packet of a connection alone, until one of them has translated it.
- A packet that this host sends to itself has been translated on its way out: nat chains are not asked on its way in.
- Before conntrack (-200) `ct state` is invalid, and every other `ct` expression ends its rule.
- The order of chains of equal priority is that of their making, the newest first, which a listing does not tell for certain:
  both orders are tried, and where they differ the answer is "assumed".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from cni_py.explain import iptables_save
from cni_py.explain.chains import After, Chain, State, TooMuch, Walk
from cni_py.explain.fields import World
from cni_py.explain.owners import policy_owner
from cni_py.explain.packet import Outcome, Step
from cni_py.explain.rules import run_rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.explain.chains import Table
    from cni_py.explain.packet import Hook, Packet, Verdict
    from cni_py.host.model import Namespace

CONNTRACK = -200  # NF_IP_PRI_CONNTRACK
NAT_PRIORITY = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}
IP_FAMILIES = {4: ("inet", "ip"), 6: ("inet", "ip6")}


def decide(namespace: Namespace, hook: Hook, packet: Packet) -> Outcome:
    """What the hook does with an IP packet, by nftables and iptables. Never raises: what cannot be told is "unknown"."""
    families = ("netdev", "inet") if hook == "ingress" else IP_FAMILIES.get(packet.family, ())
    return _decide(namespace, hook, packet, families)


def decide_frame(namespace: Namespace, hook: Hook, packet: Packet) -> Outcome:
    """What a bridge's hook does with the frame (family bridge): from `bridge_in` to `bridge_out`."""
    return _decide(namespace, hook, packet, ("bridge",))


def _decide(namespace: Namespace, hook: Hook, packet: Packet, families: tuple[str, ...]) -> Outcome:
    tables, problem = iptables_save.combined(namespace.nftables, namespace.iptables)
    if problem:
        return _unknown(packet, problem)
    chains = [
        chain
        for table in tables
        if not table.dormant and table.family in families
        for chain in _hooked(table, hook, packet)
    ]
    world = _world(namespace)
    first = _run(world, hook, packet, _stages(chains, hook, newest_first=True))
    if len({_place(chain, hook) for chain in chains}) == len(chains):
        return first
    second = _run(world, hook, packet, _stages(chains, hook, newest_first=False))
    if (first.verdict, first.packet, first.nat) == (second.verdict, second.packet, second.nat) or not first.steps:
        return first
    why = "chains of equal priority: which of them comes first is not known"
    last = replace(first.steps[-1], certainty="assumed", why=why)
    return replace(first, steps=(*first.steps[:-1], last), certainty="assumed")


def _world(namespace: Namespace) -> World:
    return World(
        namespace,
        {link.name: link.index for link in namespace.links},
        {link.name: link for link in namespace.links},
    )


def _hooked(table: Table, hook: Hook, packet: Packet) -> Iterable[Chain]:
    for chain in table.chains.values():
        here = not chain.devices or packet.iif in chain.devices or packet.bridge_in in chain.devices
        if chain.hook == hook and (here or hook != "ingress"):
            yield chain


def _place(chain: Chain, hook: Hook) -> tuple[int, int]:
    """When a chain is called: nat chains together, in their own order."""
    if chain.kind == "nat":
        return NAT_PRIORITY.get(hook, chain.priority), chain.priority
    return chain.priority, 0


@dataclass(frozen=True, slots=True)
class Stage:
    """Chains that are called at one priority: one, or all nat chains."""

    priority: int
    nat: bool
    chains: tuple[Chain, ...]


def _stages(chains: list[Chain], hook: Hook, *, newest_first: bool) -> list[Stage]:
    sign = -1 if newest_first else 1
    ordered = sorted(chains, key=lambda chain: (_place(chain, hook), sign * chain.table.handle, sign * chain.handle))
    stages: list[Stage] = []
    for priority, group in groupby(ordered, key=lambda chain: _place(chain, hook)[0]):
        members = list(group)
        nat = tuple(chain for chain in members if chain.kind == "nat")
        others = [Stage(priority, False, (chain,)) for chain in members if chain.kind != "nat"]
        together = [Stage(priority, True, nat)] if nat else []
        stages += [*together, *others] if newest_first else [*others, *together]
    return stages


def _run(world: World, hook: Hook, packet: Packet, stages: list[Stage]) -> Outcome:
    """The packet through all stages, by all branches that are open."""
    walk = Walk(world, hook, run_rule)
    live: dict[State, State] = {(start := State(packet)): start}
    ended: list[After] = []
    try:
        for stage in stages:
            walk.tracked = is_tracked(hook, packet, stage.priority)
            passed: dict[State, State] = {}
            for state in live.values():
                for after in _through(walk, stage, state):
                    if after.control == "accept":
                        passed.setdefault(after.state, after.state)
                    else:
                        ended.append(after)
            live = passed
    except TooMuch as problem:
        return _unknown(packet, str(problem))
    return outcome(packet, [*ended, *(After("accept", state) for state in live.values())])


def is_tracked(hook: Hook, packet: Packet, priority: int) -> bool:
    """Whether conntrack has seen the packet at that priority. What the host sent to itself it has seen on the way out."""
    if hook == "ingress":
        return False
    return hook not in ("prerouting", "output") or priority > CONNTRACK or packet.iif == "lo"


def _through(walk: Walk, stage: Stage, state: State) -> list[After]:
    """A stage's chains in turn. Nat chains are asked for a new connection alone, until one has translated it."""
    if stage.nat and not asks_nat(walk.hook, state.packet):
        return [After("accept", state)]
    live, ended = [state], []
    for chain in stage.chains:
        passed = []
        for one in live:
            for after in _into(walk, chain, one):
                done = _policy(chain, after)
                if done.control == "accept" and not (stage.nat and done.state.translated):
                    passed.append(done.state)
                else:
                    ended.append(done)
        live = passed
    return [*ended, *(After("accept", one) for one in live)]


def _into(walk: Walk, chain: Chain, state: State) -> list[After]:
    """A base chain. nft 1.0.6 does not tell which device an ingress chain is at: perhaps another one."""
    if walk.hook != "ingress" or chain.devices:
        return walk.chain(chain, state)
    why = "nft's listing does not tell which device the chain is at"
    step = Step("nftables", chain.table.label, chain.name, effect="unknown", certainty="unknown", why=why)
    return [*walk.chain(chain, state.in_doubt(step, 0, 2)), After("return", state.in_doubt(step, 1, 2))]


def asks_nat(hook: Hook, packet: Packet) -> bool:
    """Whether nat chains are asked at all."""
    return packet.ct_state in ("new", "related") and not (packet.iif == "lo" and hook in ("prerouting", "input"))


def _policy(chain: Chain, after: After) -> After:
    """A base chain's end."""
    if after.control != "return":
        return after
    table, policy = chain.table, chain.policy
    known = policy in ("accept", "drop")
    step = Step(table.backend, table.label, chain.name, effect=f"policy {policy}", owner=policy_owner(chain))
    if not known:
        step = replace(step, certainty="unknown", why=f"the policy {policy!r}")
    return After(policy if known else "unknown", after.state.with_step(step))


# What it comes to


def outcome(packet: Packet, ways: list[After]) -> Outcome:
    """The outcome of all branches: one, where they agree."""
    found: dict[tuple[object, ...], Outcome] = {}
    for after in ways:
        one = _outcome(after)
        key = (one.verdict,) if one.verdict in ("drop", "reject") else (one.verdict, one.packet, one.nat)
        found.setdefault(key, one)
    outcomes = list(found.values())
    if len(outcomes) == 1:
        return outcomes[0]
    if all(one.verdict in ("drop", "reject") for one in outcomes):
        return outcomes[0]
    joined = _joined(outcomes)
    if joined is not None:
        return joined
    return Outcome("unknown", packet, _to_the_doubt(ways, outcomes), "unknown", alternatives=tuple(outcomes))


def _to_the_doubt(ways: list[After], outcomes: list[Outcome]) -> tuple[Step, ...]:
    """The steps up to what cannot be evaluated, on a branch on which the packet does not pass if there is one."""
    failing = [after.state for after in ways if after.state.doubts and after.control != "accept"]
    for state in (*failing, *(after.state for after in ways if after.state.doubts)):
        doubt = state.doubts[-1]
        return (*state.steps[: doubt.before], doubt.step)
    return next((one.steps for one in outcomes if one.verdict == "unknown"), outcomes[0].steps)


def _outcome(after: After) -> Outcome:
    verdicts: dict[str, Verdict] = {"accept": "accept", "drop": "drop", "reject": "reject", "queue": "queue"}
    verdict = verdicts.get(after.control, "unknown")
    state = after.state
    certainty = "unknown" if verdict in ("unknown", "queue") else "checked"
    return Outcome(
        verdict, state.packet, state.steps, "unknown" if certainty == "unknown" else "checked", nat=state.nat
    )


def _joined(outcomes: list[Outcome]) -> Outcome | None:
    """All accept, and differ in marks alone: these are not known then."""
    first = outcomes[0]
    unsure = frozenset(name for one in outcomes for name in one.packet.unsure)
    for name in ("mark", "ct_mark"):
        if len({getattr(one.packet, name) for one in outcomes}) > 1:
            unsure |= {name}
    plain = {(one.verdict, one.nat, replace(one.packet, mark=0, ct_mark=0, unsure=unsure)) for one in outcomes}
    if len(plain) != 1 or first.verdict != "accept":
        return None
    return replace(first, packet=replace(first.packet, unsure=unsure))


def _unknown(packet: Packet, why: str) -> Outcome:
    step = Step("nftables", "", "", effect="unknown", certainty="unknown", why=why)
    return Outcome("unknown", packet, (step,), "unknown")
