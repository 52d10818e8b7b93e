"""Statements of nftables that are no verdict: marks, header fields, tracking, sets; and iptables' modules by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from cni_py.explain import evaluation, nat
from cni_py.explain.chains import After, State
from cni_py.explain.values import Json, Value

if TYPE_CHECKING:
    from cni_py.explain.evaluation import Run

NO_EFFECT = {"counter", "log", "comment", "dup", "reset", "last", "secmark", "ct helper", "ct timeout"}
NO_EFFECT |= {"ct expectation", "tcp option"}
OPEN = {"limit", "quota", "ct count", "connlimit"}  # match or not, as what came before has it
WITHOUT_EFFECT = {("meta", "priority"), ("meta", "nftrace"), ("meta", "secmark"), ("ct", "label"), ("ct", "event")}
WITHOUT_EFFECT |= {("ct", "helper"), ("ct", "secmark")}


def mangle(run: Run, inner: Json, state: State) -> list[After]:
    """KEY set VALUE."""
    if not isinstance(inner, dict) or not isinstance(key := inner.get("key"), dict) or len(key) != 1:
        return run.anything(state, "a statement that is not known")
    [(what, field)] = key.items()
    name = field.get("key", field.get("field")) if isinstance(field, dict) else ""
    value = run.value(inner.get("value"), state)
    if not value.spans:
        return [After("next", state)]
    if value.maybe_absent:
        changed = _set(run, what, name, value, state, inner)
        return run.fork(state, value.why, [*changed, After("next", state)])
    return _set(run, what, name, value, state, inner)


def _set(run: Run, what: str, name: Json, value: Value, state: State, inner: Json) -> list[After]:
    packet = state.packet
    if what in ("meta", "ct") and name == "mark":
        field = "mark" if what == "meta" else "ct_mark"
        if what == "ct" and (not run.walk.tracked or packet.ct_state in ("untracked", "invalid")):
            return [After("go on", state)]
        return [After("go on", marked(run, state, field, value))]
    if (what, name) == ("meta", "pkttype"):
        return [After("go on", replace(state, packet=replace(packet, unsure=packet.unsure | {"pkttype"})))]
    if (what, name) in WITHOUT_EFFECT or what in ("tcp option", "ip option", "exthdr"):
        return [After("go on", state)]
    if what == "payload" and isinstance(name, str):
        return nat.rewritten(run, name, inner.get("key"), inner.get("value"), state)
    return run.anything(state, f"`{what} {name} set`")


def marked(run: Run, state: State, field: str, value: Value) -> State:
    """The packet with another mark; one that is not known is noted as such."""
    packet, exact = state.packet, value.exact
    said = "mark" if field == "mark" else "ct mark"
    if exact is None:
        packet = replace(packet, unsure=packet.unsure | {field})
        effect = f"{said} unknown"
    else:
        exact &= 0xFFFFFFFF
        packet = replace(packet, unsure=packet.unsure - {field})
        packet = replace(packet, mark=exact) if field == "mark" else replace(packet, ct_mark=exact)
        effect = f"{said} {exact:#x}"
    return replace(state, packet=packet).with_step(run.step(effect))


def notrack(run: Run, _: Json, state: State) -> list[After]:
    """`notrack`: without effect once conntrack has seen the packet."""
    if run.walk.tracked or state.packet.ct_state == "untracked":
        return [After("go on", state)]
    packet = replace(state.packet, ct_state="untracked")
    return [After("go on", replace(state, packet=packet).with_step(run.step("notrack")))]


def update(run: Run, inner: Json, state: State) -> list[After]:
    """`add @SET { ... }`: an element more, unless the set is full; with `limit` and the like also a match."""
    if not isinstance(inner, dict):
        return run.anything(state, "a statement that is not known")
    name = str(inner.get("set", inner.get("map")))
    after = replace(state, touched=state.touched | {name})
    statements = inner.get("stmt", [])
    asks = isinstance(statements, list) and any(isinstance(one, dict) and OPEN & one.keys() for one in statements)
    named = run.chain.table.sets.get(name[1:])
    elements = named.get("elem", []) if isinstance(named, dict) else []
    size = named.get("size") if isinstance(named, dict) else None
    full = isinstance(size, int) and isinstance(elements, list) and len(elements) >= size
    if asks or full or named is None:
        why = f"`{inner.get('op')} {name}` depends on what came before"
        return run.fork(state, why, [After("go on", after), After("next", after)])
    return [After("go on", after)]


def flow(run: Run, _: Json, state: State) -> list[After]:
    """`flow add`: of a connection that is not confirmed yet the rule ends here."""
    if state.packet.ct_state == "new":
        return [After("next", state)]
    return run.perhaps(state, "`flow add`")


def xt(run: Run, inner: Json, state: State) -> list[After]:
    """A match or target of iptables, of which nft's JSON has the name alone."""
    name = evaluation.name_of("xt", inner)
    if isinstance(inner, dict) and inner.get("type") == "match":
        if inner.get("name") == "comment":
            return [After("go on", state)]
        return run.perhaps(state, f"`{name}`: nft's JSON does not say what it asks for")
    if isinstance(inner, dict) and inner.get("name") in ("LOG", "NFLOG", "TCPMSS", "CHECKSUM", "TRACE"):
        return [After("go on", state)]
    if isinstance(inner, dict) and inner.get("name") == "REJECT":
        return run.verdict("reject", None, state)
    return run.anything(state, f"`{name}`: nft's JSON does not say what it does")


def nothing(_: Run, __: Json, state: State) -> list[After]:
    """What changes nothing that is followed here: the next expression."""
    return [After("go on", state)]


def _depends(key: str) -> Callable[[Run, Json, State], list[After]]:
    return lambda run, _, state: run.perhaps(state, f"`{key}` depends on what came before")


HANDLERS: dict[str, Callable[[Run, Json, State], list[After]]] = {
    **dict.fromkeys(NO_EFFECT, nothing),
    **{key: _depends(key) for key in OPEN},
    "mangle": mangle,
    "notrack": notrack,
    "set": update,
    "map": update,
    "flow": flow,
    "xt": xt,
}
