"""One rule of nftables on one packet: its expressions in turn, with all that may come of those that are open."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cni_py.explain import nat, nft_text, statements
from cni_py.explain.chains import After, Closed, Either, Open, State
from cni_py.explain.evaluation import VERDICTS, Run, name_of
from cni_py.explain.values import Json, Value, bitwise, compare, span

if TYPE_CHECKING:
    from cni_py.explain.chains import Chain, Rule, Walk
    from cni_py.explain.values import Span

BITS_MAX = 128


def run_rule(walk: Walk, chain: Chain, rule: Rule, state: State) -> list[After]:
    """What the rule makes of the packet: a Runner."""
    return expressions(Run(walk, chain, rule), 0, state)


def expressions(run: Run, position: int, state: State) -> list[After]:
    """The expressions from `position` on."""
    if position >= len(run.rule.expressions):
        return [After("next", state)]
    ended: list[After] = []
    for after in _expression(run, run.rule.expressions[position], state):
        ended += expressions(run, position + 1, after.state) if after.control == "go on" else [after]
    return ended


def _expression(run: Run, expression: Json, state: State) -> list[After]:
    if isinstance(expression, Either):
        return either(run, expression, state)
    if isinstance(expression, Open):
        return run.perhaps(state, expression.why)
    if isinstance(expression, Closed) or not isinstance(expression, dict) or len(expression) != 1:
        return run.anything(state, getattr(expression, "why", "an expression that is not known"))
    [(key, inner)] = expression.items()
    handler = HANDLERS.get(key)
    if handler is None:
        return run.anything(state, f"`{name_of(key, inner)}` cannot be evaluated here")
    return handler(run, inner, state)


# Matches


def match(run: Run, inner: Json, state: State) -> list[After]:
    """LEFT OPERATOR RIGHT."""
    if not isinstance(inner, dict):
        return run.perhaps(state, "a match that is not known")
    result, why = matches(run, inner, state)
    if result is None:
        return run.perhaps(state, why)
    return [After("go on" if result else "next", state)]


def matches(run: Run, inner: Json, state: State) -> tuple[bool | None, str]:
    """Whether a match holds; where that is open, None and why."""
    operator, left, right = inner.get("op"), inner.get("left"), inner.get("right")
    if (isinstance(right, dict) and "set" in right) or (isinstance(right, str) and right.startswith("@")):
        return _in_set(run, operator, left, right, state)
    if isinstance(left, dict) and "concat" in left:
        return _in_set(run, operator, left, {"set": [right]}, state)
    value = run.value(left, state)
    if not value.spans:
        return False, ""
    result = _compared(run, operator, value, right, state)
    if value.maybe_absent and result:
        result = None
    return result, value.why or f"`{nft_text.expression({'match': inner})}`"


def _compared(run: Run, operator: Json, value: Value, right: Json, state: State) -> bool | None:
    if isinstance(right, bool) and value.kind == "iface_index":  # fib ... oif exists
        wanted: tuple[Span, ...] | None = ((1, (1 << 32) - 1),) if right else ((0, 0),)
    else:
        found = span(value.kind, right, run.walk.world.indexes)
        if found is None and isinstance(right, dict):
            other = run.value(right, state)
            found = (other.exact, other.exact) if other.exact is not None else None
        wanted = (found,) if found is not None else None
    if wanted is None:
        return None
    if operator in ("==", "!="):
        same = compare(value, wanted)
        return same if operator == "==" or same is None else not same
    low, high = wanted[0]
    if operator in ("in", "!"):  # any of the flags; none of them
        hit = compare(bitwise("&", value, Value(value.kind, ((low, low),))), ((0, 0),))
        return hit if operator == "!" or hit is None else not hit
    spans: dict[Json, tuple[Span, ...]] = {
        "<": ((0, low - 1),),
        ">": ((high + 1, 1 << BITS_MAX),),
        "<=": ((0, low),),
        ">=": ((high, 1 << BITS_MAX),),
    }
    return compare(value, spans[operator]) if isinstance(operator, str) and operator in spans else None


def _in_set(run: Run, operator: Json, left: Json, right: Json, state: State) -> tuple[bool | None, str]:
    if operator not in ("==", "!=", "in"):
        return None, "a comparison with a set"
    found = run.look_up(left, right, state)
    if found.elements == (None,):
        if found.why == "absent":
            return False, ""
        return operator == "!=", ""
    if None in found.elements:
        return None, found.why
    return operator != "!=", ""


def vmap(run: Run, inner: Json, state: State) -> list[After]:
    """`KEY vmap MAP`: the verdict of the element."""
    if not isinstance(inner, dict):
        return run.anything(state, "vmap")
    found = run.look_up(inner.get("key"), inner.get("data"), state)
    ways: dict[str, list[After]] = {}
    for element in found.elements:
        if element is None:
            ways["next"] = [After("next", state)]
        elif isinstance(element.data, dict) and len(element.data) == 1:
            [(key, target)] = element.data.items()
            if key not in VERDICTS:
                return run.anything(state, f"the verdict {str(key)[:40]}")
            ways[str(element.data)] = run.verdict(key, target, state, nft_text.element(element, inner.get("data")))
        else:
            ways["?"] = run.anything(state, found.why or "a map's element that cannot be read")
    flat = [after for each in ways.values() for after in each]
    return run.fork(state, found.why, flat)


def either(run: Run, inner: Either, state: State) -> list[After]:
    """Any of several matches, or none of them."""
    results = [matches(run, one, state) for one in inner.matches]
    found: bool | None = False
    if any(result for result, _ in results):
        found = True
    elif any(result is None for result, _ in results):
        return run.perhaps(state, next(why for result, why in results if result is None))
    return [After("go on" if found != inner.negated else "next", state)]


Handler = Callable[[Run, Json, State], "list[After]"]


def _verdict(key: str) -> Handler:
    return lambda run, inner, state: run.verdict(key, inner, state)


def _translation(kind: str) -> Handler:
    return lambda run, inner, state: nat.translate(run, kind, inner, state)


HANDLERS: dict[str, Handler] = {
    "match": match,
    "vmap": vmap,
    **statements.HANDLERS,
    **{key: _verdict(key) for key in VERDICTS},
    **{key: _translation(key) for key in ("dnat", "snat", "masquerade", "redirect")},
}
