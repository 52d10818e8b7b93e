"""A packet at a hook of netfilter: what the evaluator decides, as a hop; and what connection tracking does to an answer.

The first packet of a connection passes the NAT chains, and the pair "as it came, as it left" is kept. The answer is translated by
that pair: its destination after prerouting (output), its source after postrouting (input).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cni_py.explain import netfilter
from cni_py.explain.advice import mend_for
from cni_py.explain.packet import Hook, Outcome, Packet, Step
from cni_py.explain.way import Stopped, Trail
from cni_py.explain.world import World, with_port
from cni_py.host.model import Namespace

LOOKED_AT = 6  # steps that are evidence; `--detailed` shows all


@dataclass(frozen=True, slots=True)
class Tracked:
    """A connection in a namespace: its first packet as it came there, and as it left."""

    namespace: str  # key
    came: Packet
    left: Packet


@dataclass(slots=True)
class Hooks:
    """The hooks of all namespaces, for one client's connection."""

    world: World
    trail: Trail
    tracked: list[Tracked] = field(default_factory=list)
    target: tuple[str, int] = ("", 0)  # where the published port leads, for advice

    def seen(self, namespace: Namespace, packet: Packet) -> Tracked | None:
        """The connection that an answer belongs to, before or after it was translated back."""
        for one in self.tracked:
            came, left = one.came, one.left
            to = {(left.source, left.source_port), (came.source, came.source_port)}
            of = {(left.destination, left.destination_port), (came.destination, came.destination_port)}
            if (
                one.namespace == namespace.key
                and (packet.destination, packet.destination_port) in to
                and (packet.source, packet.source_port) in of
            ):
                return one
        return None

    def track(self, namespace: Namespace, came: Packet, left: Packet) -> None:
        """Note a connection; the first note of it counts."""
        if not self.trail.back and not any(one.namespace == namespace.key and one.came == came for one in self.tracked):
            self.tracked.append(Tracked(namespace.key, came, left))

    def run(self, namespace: Namespace, hook: Hook, packet: Packet) -> Packet:
        """The packet as it leaves the hook. Stopped when a rule drops it, or when its translation cannot be evaluated."""
        if not namespace.nftables and not namespace.iptables:
            self._unread(namespace)
            return packet
        outcome = netfilter.decide(namespace, hook, self._in_conntrack(namespace, packet))
        if outcome.verdict in ("drop", "reject"):
            self._dropped(namespace, hook, outcome)
        if outcome.verdict in ("unknown", "queue") or outcome.certainty == "unknown":
            self._unknown(hook, outcome)
            return self._if_it_passes(outcome)
        if outcome.nat:
            return self._translated(hook, outcome)
        self._rewritten(hook, packet, outcome)
        if outcome.steps:
            self._passed(hook, outcome)
        return outcome.packet

    def _in_conntrack(self, namespace: Namespace, packet: Packet) -> Packet:
        """An answer with the state that conntrack has of its connection; without one TCP's is invalid."""
        if not self.trail.back:
            return packet
        found = self.seen(namespace, packet)
        if found is None:
            return replace(packet, ct_state="invalid" if packet.protocol == "tcp" else "new")
        came, left = found.came, found.left
        status = {"dnat"} if came.destination != left.destination else set()
        status |= {"snat"} if came.source != left.source else set()
        return replace(packet, ct_state="established", ct_status=frozenset(status), ct_mark=left.ct_mark)

    def _unread(self, namespace: Namespace) -> None:
        """Rules that could not be read: this host's decide where the packet goes, a container's whether it arrives. Stopped."""
        what = f"the rules of {self.trail.where} could not be read"
        if self.world.is_host(namespace):
            self.trail.fails("not-seen", what, *self.world.gaps("nftables"))
        if not any(hop.code == "not-seen" and hop.where == self.trail.where for hop in self.trail.hops):
            self.trail.doubts("not-seen", what, *self.world.gaps("nftables"))

    def _if_it_passes(self, outcome: Outcome) -> Packet:
        """The packet as it goes on where a doubtful rule lets it pass. Stopped if there are several ways to go on."""
        passing = {one.packet for one in outcome.alternatives if one.verdict == "accept"}
        if len(passing) != 1 or any(one.verdict in ("unknown", "queue") for one in outcome.alternatives):
            raise Stopped
        return passing.pop()

    def frame(self, switch: Namespace, hook: Hook, packet: Packet) -> None:
        """The rules of the family bridge, about a frame between two ports of a bridge. Stopped."""
        if not switch.nftables:
            return
        outcome = netfilter.decide_frame(switch, hook, self._in_conntrack(switch, packet))
        if outcome.verdict in ("drop", "reject"):
            step = outcome.deciding
            evidence = (step_text(step),) if step else ()
            place = f"chain {step.chain} of {step.table}" if step else "a rule"
            words = {"steps": outcome.steps, "mend": mend_for(step, hook, packet)}
            self.trail.fails("filtered-bridge", f"{place} drops the frame", *evidence, **words)  # type: ignore[arg-type]
        if outcome.verdict != "accept":
            self._unknown(hook, outcome)

    def _rewritten(self, hook: Hook, before: Packet, outcome: Outcome) -> None:
        """Addresses that a rule writes (`ip daddr set`) conntrack does not know: the answer fits no connection. Stopped."""
        after = outcome.packet
        if (before.source, before.source_port, before.destination, before.destination_port) == (
            after.source, after.source_port, after.destination, after.destination_port
        ):  # fmt: skip
            return
        steps = tuple(step_text(step) for step in outcome.steps if " set " in step.effect)
        what = f"{hook}: a rule writes another address or port, and what becomes of the answer is not known"
        self.trail.doubts("rule-unknown", what, *steps, steps=outcome.steps)
        raise Stopped

    def _passed(self, hook: Hook, outcome: Outcome) -> None:
        accepting = [step for step in outcome.steps if step.effect.startswith(("accept", "policy"))]
        evidence = tuple(step_text(step) for step in accepting[-1:])
        what = f"the rules of {hook} let it pass"
        self.trail.passes("hook", what, *evidence, steps=outcome.steps, certainty=outcome.certainty)

    def _translated(self, hook: Hook, outcome: Outcome) -> Packet:
        after = outcome.packet
        steps = [step for step in outcome.steps if is_nat(step)]
        evidence = tuple(step_text(step) for step in steps[-2:] or outcome.steps[-1:])
        if outcome.nat in ("snat", "masquerade"):
            what = "its source becomes the address of the interface it leaves by (masquerade)"
            if after.source:
                what = f"its source becomes {after.source}"
        else:
            what = f"its destination becomes {with_port(after.destination, after.destination_port)}"
        owner = next((step.owner for step in reversed(steps or list(outcome.steps)) if step.owner), "")
        said = f", by {owner}" if owner else ""
        text = f"{hook}: {what}{said}"
        self.trail.passes("translated", text, *evidence, steps=outcome.steps, certainty=outcome.certainty)
        return after

    def _unknown(self, hook: Hook, outcome: Outcome) -> None:
        doubtful = [step for step in outcome.steps if step.certainty == "unknown"] or list(outcome.steps[-1:])
        why = next((step.why for step in doubtful if step.why), "")
        if outcome.verdict == "queue":
            why = why or "a program decides about queued packets"
        evidence = tuple(step_text(step) for step in doubtful[:LOOKED_AT])
        what = f"{hook}: a rule cannot be evaluated" + (f": {why}" if why else "")
        self.trail.doubts("rule-unknown", what, *evidence, steps=outcome.steps)

    def _dropped(self, namespace: Namespace, hook: Hook, outcome: Outcome) -> None:
        step = outcome.deciding
        evidence = (step_text(step),) if step else ()
        verb = "rejects" if outcome.verdict == "reject" else "drops"
        who = f"{step.owner}: " if step and step.owner else ""
        where = f"chain {step.chain} of {step.table}" if step else "a rule"
        what = f"{who}{where} {verb} it ({hook})"
        if self.world.is_host(namespace):
            mend = mend_for(step, hook, outcome.packet, answer=self.trail.back)
            code = f"filtered-{hook}"
        else:
            mend, code = "", "container-firewall"
        self.trail.fails(code, what, *evidence, steps=outcome.steps, mend=mend)

    def dnat_back(self, namespace: Namespace, packet: Packet) -> Packet:
        """An answer after prerouting or output: its destination is again the client's own address."""
        found = self.seen(namespace, packet)
        if found is None or found.came.source == found.left.source:
            return packet
        original = found.came
        what = f"connection tracking gives it back the destination {original.source}"
        self.trail.passes("restored", what)
        return replace(packet, destination=original.source, destination_port=original.source_port)


def is_nat(step: Step) -> bool:
    """Whether a step translates."""
    return step.effect.startswith(("dnat", "snat", "masquerade", "redirect"))


def step_text(step: Step) -> str:
    """A rule with its place: "inet cni_py published4 handle 12: dnat ip to ... -> dnat to 192.0.2.2:80"."""
    handle = f" handle {step.handle}" if step.handle else ""
    place = f"{step.table} {step.chain}{handle}"
    effect = f" -> {step.effect}" if step.effect and step.effect != step.text else ""
    return f"{place}: {step.text}{effect}" if step.text else f"{place}{effect}"
