"""The evaluation of one rule: what its expressions yield, what they look up, and what may come of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cni_py.explain import fields, nft_text, sets
from cni_py.explain.chains import After, State
from cni_py.explain.fields import View
from cni_py.explain.owners import owner_of
from cni_py.explain.packet import Step
from cni_py.explain.values import Json, Value, bitwise, span, unknown

if TYPE_CHECKING:
    from cni_py.explain.chains import Chain, Rule, Walk
    from cni_py.explain.packet import Packet
    from cni_py.explain.sets import Found
    from cni_py.explain.values import Span

VERDICTS = ("accept", "drop", "return", "continue", "jump", "goto", "queue", "reject")
OPERATORS = ("&", "|", "^", "<<", ">>")


class Run:
    """The evaluation of one rule."""

    __slots__ = ("chain", "rule", "walk")

    def __init__(self, walk: Walk, chain: Chain, rule: Rule) -> None:
        self.walk = walk
        self.chain = chain
        self.rule = rule

    # What may come of it

    def step(self, effect: str, *, why: str = "", element: str = "") -> Step:
        """What this rule does."""
        table = self.chain.table
        return Step(
            table.backend,
            table.label,
            self.chain.name,
            self.rule.handle,
            element or self.rule.words or nft_text.rule(self.rule.expressions),
            effect,
            owner_of(table, self.chain.name, self.rule),
            "unknown" if why else "checked",
            why,
        )

    def perhaps(self, state: State, why: str) -> list[After]:
        """It matches, or it does not."""
        return self.fork(state, why, [After("go on", state), After("next", state)])

    def anything(self, state: State, why: str) -> list[After]:
        """Nothing can be said about the packet after this."""
        return [After("unknown", state.with_step(self.step("unknown", why=why)))]

    def fork(self, state: State, why: str, ways: Sequence[After]) -> list[After]:
        """Several ways, one of which is taken."""
        if len(ways) == 1:
            return list(ways)
        step = self.step("unknown", why=why)
        return [replace(way, state=way.state.in_doubt(step, n, len(ways))) for n, way in enumerate(ways)]

    def verdict(self, key: str, inner: Json, state: State, element: str = "") -> list[After]:
        """A verdict, of the rule or of a map's element."""
        if key == "continue":
            return [After("go on", state)]
        if key == "return":
            return [After("return", state)]
        if key in ("jump", "goto"):
            target = str(inner.get("target")) if isinstance(inner, dict) else ""
            return [After(key, state.with_step(self.step(f"{key} {target}", element=element)), target)]
        if key == "queue":
            step = self.step("queue", why="a program decides", element=element)
            return [After("queue", state.with_step(step))]
        if key == "reject" and not _is_rejected(inner, state.packet):
            return [After("next", state)]
        return [After(key, state.with_step(self.step(key, element=element)))]

    # Values

    def view(self, state: State) -> View:
        """The packet as this chain sees it."""
        walk = self.walk
        return View(walk.world, walk.hook, self.chain.table.family, state.packet, walk.tracked)

    def value(self, json: Json, state: State) -> Value:
        """What an expression yields. A constant has no kind here."""
        if isinstance(json, bool | int):
            return Value("", ((int(json), int(json)),))
        if not isinstance(json, dict) or len(json) != 1:
            return unknown("", "an expression that is not known")
        [(key, inner)] = json.items()
        if key in OPERATORS and isinstance(inner, list) and len(inner) > 1:
            result = self.value(inner[0], state)
            for operand in inner[1:]:  # newer nft has a | b | c in one list
                result = self._bitwise(key, result, operand, state)
            return result
        if key == "map" and isinstance(inner, dict):
            return self._mapped(inner, state)
        if key in ("numgen", "jhash", "symhash"):
            return fields.number_of(key, inner)
        load = LOADERS.get(key)
        return load(self.view(state), inner) if load else unknown("", f"`{name_of(key, inner)}`", maybe_absent=True)

    def _bitwise(self, operator: str, left: Value, operand: Json, state: State) -> Value:
        if not left.spans:
            return left
        if isinstance(operand, dict) and not operand.keys() & {"prefix", "range", "|"}:
            return bitwise(operator, left, self.value(operand, state))
        right = span(left.kind, operand, self.walk.world.indexes)
        if right is None or right[0] != right[1]:
            return unknown(left.kind, f"the operand of {operator}", maybe_absent=left.maybe_absent)
        return bitwise(operator, left, Value(left.kind, (right,)))

    def _mapped(self, inner: Json, state: State) -> Value:
        """`KEY map MAP` of a number."""
        found = self.look_up(inner.get("key"), inner.get("data"), state)
        kind = self.data_kind(inner.get("data"))
        spans: list[Span] = []
        for element in found.elements:
            one = span(kind, element.data, self.walk.world.indexes) if element is not None else None
            if element is not None and one is None:
                return unknown(kind, found.why or "the data of a map's element", maybe_absent=True)
            spans += [one] if one is not None and one not in spans else []
        return Value(kind, tuple(spans), found.why, maybe_absent=None in found.elements and bool(spans))

    def data_kind(self, data: Json) -> str:
        """The kind of a named map's data."""
        named = self.chain.table.sets.get(data[1:]) if isinstance(data, str) else None
        kind = named.get("map") if isinstance(named, dict) else None
        return kind if isinstance(kind, str) else ""

    def look_up(self, key: Json, data: Json, state: State) -> Found:
        """The elements of a set or map that a key meets."""
        parts = key["concat"] if isinstance(key, dict) and isinstance(key.get("concat"), list) else [key]
        values = [self.value(part, state) for part in parts]
        if any(not value.spans for value in values):
            return sets.Found((None,), "absent")
        index = self.index(data, tuple(value.kind for value in values))
        if index is None:
            return sets.Found((sets.Element((), None, None), None), f"the set {str(data)[:80]} is not in the ruleset")
        found = sets.look_up(index, values)
        name = data if isinstance(data, str) else ""
        if name in state.touched and found.elements == (None,):
            return sets.Found((sets.Element((), None, name), None), f"a rule before changes the set {name}")
        if any(value.maybe_absent for value in values) and None not in found.elements:
            why = next(value.why for value in values if value.maybe_absent)
            return sets.Found((*found.elements, None), why)
        return found

    def index(self, data: Json, kinds: tuple[str, ...]) -> sets.Index | None:
        """The elements of a set that is named, or written in the rule; read once."""
        table = self.chain.table
        if isinstance(data, str):
            named = table.sets.get(data[1:]) if data.startswith("@") else None
            if named is None:
                return None
            elements, place = named.get("elem", []), str(data)
        elif isinstance(data, dict) and isinstance(data.get("set"), list):
            elements, place = data["set"], f"#{id(data)}"
        else:
            return None
        kept = table.cache.get((place, kinds))
        if not isinstance(kept, sets.Index):
            kept = table.cache[place, kinds] = sets.build(elements, kinds, self.walk.world.indexes)
        return kept


def _is_rejected(inner: Json, packet: Packet) -> bool:
    """nft's listing leaves out `meta nfproto ipv4` in front of `reject with icmp`, which implies it; so for the others."""
    kind = inner.get("type") if isinstance(inner, dict) else ""
    implied = {"icmp": packet.family == 4, "icmpv6": packet.family == 6, "tcp reset": packet.protocol == "tcp"}
    return implied.get(kind, True) if isinstance(kind, str) else True


def name_of(key: str, inner: Json) -> str:
    """An expression in a few words."""
    if key == "xt" and isinstance(inner, dict):
        return f"xt {inner.get('type')} {inner.get('name')}"
    return str(key)[:40]


LOADERS: dict[str, Callable[[View, Json], Value]] = {
    "payload": fields.payload,
    "meta": lambda view, inner: fields.meta(view, str(inner.get("key")) if isinstance(inner, dict) else ""),
    "ct": fields.conntrack,
    "fib": fields.routing,
    "socket": fields.socket,
}
