"""The text of `nft -j list ruleset` as tables and chains."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING

from cni_py.explain.chains import Chain, Rule, Table

if TYPE_CHECKING:
    from cni_py.explain.values import Json

Key = tuple[str, str]  # family and name


def read(text: str) -> tuple[dict[Key, Table], str]:
    """The tables, and why they could not be read."""
    try:
        objects = json_module.loads(text)["nftables"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}, "nft's JSON could not be read"
    if not isinstance(objects, list):
        return {}, "nft's JSON could not be read"
    tables: dict[Key, Table] = {}
    for one in objects:
        if isinstance(one, dict) and len(one) == 1:
            [(kind, inner)] = one.items()
            if isinstance(inner, dict):
                _take(tables, kind, inner)
    return tables, ""


def _take(tables: dict[Key, Table], kind: str, inner: Json) -> None:
    if kind not in ("table", "chain", "rule", "set", "map"):
        return
    family, name = str(inner.get("family")), str(inner.get("name" if kind == "table" else "table"))
    table = tables.get((family, name))
    if table is None:
        table = tables[family, name] = Table("nftables", family, name, f"{family} {name}")
    if kind == "table":
        table.handle = _int(inner.get("handle"))
        table.dormant = "dormant" in str(inner.get("flags", ""))
    elif kind == "chain":
        chain = _chain(table, str(inner.get("name")))
        chain.hook, chain.kind = str(inner.get("hook", "")), str(inner.get("type", "filter"))
        chain.priority, chain.policy = _int(inner.get("prio")), str(inner.get("policy", "accept"))
        chain.handle = _int(inner.get("handle"))
        devices = inner.get("dev", [])
        chain.devices = tuple(str(one) for one in (devices if isinstance(devices, list) else [devices]))
    elif kind == "rule":
        expressions = inner.get("expr")
        rule = Rule(expressions if isinstance(expressions, list) else [None], _int(inner.get("handle")))
        rule.comment = str(inner.get("comment", ""))
        _chain(table, str(inner.get("chain"))).rules.append(rule)
    else:
        table.sets[str(inner.get("name"))] = inner


def _chain(table: Table, name: str) -> Chain:
    return table.chains.setdefault(name, Chain(table, name))


def _int(value: Json) -> int:
    return value if isinstance(value, int) else 0
