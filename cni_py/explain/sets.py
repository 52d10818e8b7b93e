"""Sets and maps: named ones and those written in a rule. Which elements a key meets."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from cni_py.explain.values import Json, Span, Value, compare, span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONDITIONS = ("limit", "quota", "ct count", "last")  # of an element: it matches only while they do
MEMBERS_MAX = 64  # more that may meet a key are not looked at one by one


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set or map."""

    key: tuple[Span, ...]  # of each part of the key
    data: Json  # of a map
    json: Json  # the key, as nft has it
    condition: str = ""  # what it also asks for


@dataclass(slots=True)
class Index:
    """The elements of a set, to be looked up by keys of certain kinds."""

    points: dict[tuple[int, ...], Element] = field(default_factory=dict)
    ranges: list[Element] = field(default_factory=list)
    otherwise: Element | None = None  # the catch-all element
    unread: str = ""  # an element that could not be read: it may be any

    @property
    def elements(self) -> list[Element]:
        """All but the catch-all."""
        return [*self.points.values(), *self.ranges]


@dataclass(frozen=True, slots=True)
class Found:
    """What a lookup gives: the element, or each that it may be. None among them: it may be none."""

    elements: tuple[Element | None, ...]
    why: str = ""  # where there are several, or the one is not certain


def build(elements: Json, kinds: Sequence[str], indexes: Mapping[str, int]) -> Index:
    """Read elements, as nft's JSON has them: KEY or [KEY, DATA]."""
    index = Index()
    for one in elements if isinstance(elements, list) else []:
        json, data = one if isinstance(one, list) and len(one) == 2 and _is_mapping(one) else (one, None)
        inner = json.get("elem") if isinstance(json, dict) else None
        value = inner.get("val") if isinstance(inner, dict) else json
        condition = next((name for name in CONDITIONS if isinstance(inner, dict) and name in inner), "")
        if value == "*":
            index.otherwise = Element((), data, value, condition)
            continue
        key = _key(value, kinds, indexes)
        if key is None:
            index.unread = index.unread or f"the element {str(value)[:80]}"
            continue
        element = Element(key, data, value, condition)
        if all(low == high for low, high in key) and not condition:
            index.points[tuple(low for low, _ in key)] = element
        else:
            index.ranges.append(element)
    return index


def _is_mapping(pair: list[Json]) -> bool:
    """Whether [A, B] is an element of a map; in a set a list would be flags."""
    return isinstance(pair[1], dict | str | int | list) and not (isinstance(pair[0], list))


def _key(value: Json, kinds: Sequence[str], indexes: Mapping[str, int]) -> tuple[Span, ...] | None:
    parts = value["concat"] if isinstance(value, dict) and isinstance(value.get("concat"), list) else [value]
    if len(parts) != len(kinds):
        return None
    found = [span(kind, part, indexes) for kind, part in zip(kinds, parts, strict=True)]
    return tuple(one for one in found if one is not None) if None not in found else None


def look_up(index: Index, key: Sequence[Value]) -> Found:
    """The element that a key meets. Where a part of the key is open: all that it may meet."""
    why = next((value.why for value in key if value.exact is None), "")
    exact = [value.exact for value in key]
    known = tuple(one for one in exact if one is not None)
    if len(known) == len(key) and (point := index.points.get(known)) is not None:
        return Found((point,))
    candidates: list[Element | None] = []
    for element in index.ranges if len(known) == len(key) else chain(index.points.values(), index.ranges):
        met = _meets(element, key)
        if met:  # elements do not overlap, so it can be no other
            return _certain(element)
        if met is None:
            candidates.append(element)
        if len(candidates) > MEMBERS_MAX:
            break
    if index.unread:
        candidates.append(Element((), None, index.unread))
    if not index.unread and _cover(candidates, key):
        return Found(tuple(candidates), why)
    return Found((*candidates, index.otherwise), why or index.unread)


def _cover(candidates: Sequence[Element | None], key: Sequence[Value]) -> bool:
    """Whether the key meets one of them in any case: a number below 60 meets one of 60 elements."""
    [open_part, *more] = [n for n, value in enumerate(key) if value.exact is None] or [0]
    if more or key[open_part].maybe_absent or any(one is None or one.condition for one in candidates):
        return False
    merged: list[Span] = []
    for low, high in sorted(one.key[open_part] for one in candidates if one is not None):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return bool(compare(key[open_part], tuple(merged)))


def _certain(element: Element) -> Found:
    """An element that is met: a condition of its own ends the rule when it does not hold."""
    return Found((element, None), f"the element's `{element.condition}`") if element.condition else Found((element,))


def _meets(element: Element, key: Sequence[Value]) -> bool | None:
    """Whether an element meets the key; None when that is open."""
    result: bool | None = True
    for value, part in zip(key, element.key, strict=True):
        met = compare(value, (part,))
        if met is False:
            return False
        result = result and met
    return result
