"""A saved model may hold anything: rulesets that no kernel has printed give an outcome, never a traceback."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni_py.explain.netfilter import decide, decide_frame
from cni_py.explain.packet import Hook, Packet, Verdict
from cni_py.host.model import Address, Link, Namespace, Route, Rule

LOOKS_FOR_NEW = "CNI_PY_FUZZ" in os.environ  # make fuzz
EXAMPLES = 1000 if LOOKS_FOR_NEW else 40
LISTING = json.loads((Path(__file__).parent / "programs/expressions.json").read_text())["nftables"]
WORDS = [
    "",
    "*",
    "@s",
    "@none",
    "eth*",
    "tcp",
    "ip",
    "1.2.3.4",
    "::1",
    "::ffff:1.2.3.4",
    "0x",
    "-1",
    "\x1b[31m",
    "goto",
    "f",
]
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.sampled_from(WORDS), st.floats()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["prefix", "range", "set", "concat", "elem", "val", "map", "key", "&", "meta", "jump"]),
            inner,
            max_size=2,
        ),
    ),
    max_leaves=6,
)
PACKETS = (
    Packet(4, "tcp", "192.0.2.9", 0, "192.0.2.1", 8080, iif="lan0", oif="cni0"),
    Packet(6, "udp", "2001:db8::9", 5000, "", 0, oif="cni0", ct_state="established", mark=7),
    Packet(4, "sctp", "", 1, "no address", 99999, iif="gone", bridge_in="web0", bridge_out="db0", ct_state="odd"),
    Packet(9, "odd", "1.2.3.4", 1, "1.2.3.4", 1, iif="lo", unsure=frozenset({"mark", "saddr", "destination_port"})),
)
SAVED = [
    "-A FORWARD",
    "-m",
    "--dport",
    "80",
    "!",
    "-j",
    "DNAT",
    "--to-destination",
    "[::1",
    ":",
    "/",
    "a/b",
    "-p",
    "tcp",
    "mark",
    "--mark",
]
SAVED += [
    "0x1/",
    "-s",
    "1.2.3.4/99",
    "conntrack",
    "--ctstate",
    "NEW,",
    "set",
    "*filter",
    ":FORWARD",
    "DROP",
    "\n",
    '"',
    "[0:0]",
    "-g",
    "X",
]


def world(nftables: str, iptables: tuple[tuple[str, str], ...] = ()) -> Namespace:
    """A namespace of which not all is well formed."""
    links = (
        Link(1, "lo", "", "", 65536, True, "up"),
        Link(2, "lan0", "veth", "", 1500, True, "up", addresses=(Address("192.0.2.1", 24), Address("odd", 1))),
    )
    routes = (
        Route(4, 255, "192.0.2.1/32", "local", link="lan0"),
        Route(4, 254, "odd"),
        Route(6, 254, "::/0", link="gone"),
    )
    return Namespace(
        "net:[1]",
        links=links,
        routes=routes,
        rules=(Rule(4, 1, "lookup", 254, mark=1, mask=1),),
        nftables=nftables,
        iptables=iptables,
    )


def ask(namespace: Namespace, hooks: tuple[Hook, ...] = get_args(Hook)) -> None:
    """Every hook gives an outcome, and one that is unknown says why."""
    for hook in hooks:
        for packet in PACKETS:
            for outcome in (decide(namespace, hook, packet), decide_frame(namespace, hook, packet)):
                assert outcome.verdict in get_args(Verdict)
                if outcome.verdict == "unknown":
                    assert outcome.certainty == "unknown"
                    assert outcome.deciding is not None
                    assert outcome.deciding.why
                assert all(step.text.isprintable() for step in outcome.steps)


def places(json_value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: what holds it, and its key."""
    found = []
    items = (
        json_value.items()
        if isinstance(json_value, dict)
        else enumerate(json_value)
        if isinstance(json_value, list)
        else ()
    )
    for key, inner in items:
        found += [(json_value, key), *places(inner)]
    return found


def test_every_expression_gives_an_outcome() -> None:
    """As the only rule of a chain that every packet passes."""
    others = [one for one in LISTING if "rule" not in one]
    for one in LISTING:
        if "rule" in one and one["rule"]["chain"] in ("f", "p"):
            moved = {"rule": {**one["rule"], "chain": "f"}}
            ask(world(json.dumps({"nftables": [*others, moved]})), ("forward",))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=not LOOKS_FOR_NEW, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_listing_gives_an_outcome(data: st.DataObject) -> None:
    objects = copy.deepcopy([one for one in LISTING if "rule" not in one])
    rules = [one for one in LISTING if "rule" in one]
    objects += copy.deepcopy(data.draw(st.lists(st.sampled_from(rules), min_size=1, max_size=3)))
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(places(objects[-4:])))
        holder[key] = data.draw(JUNK)
    ask(world(json.dumps({"nftables": objects})))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"nftables": 5}', '{"nftables": [5, {}, {"rule": 1}, {"a": {}, "b": {}}]}', "[" * 99999]
)
def test_what_is_no_listing_is_unknown_or_empty(text: str) -> None:
    ask(world(text))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=not LOOKS_FOR_NEW)
@given(st.lists(st.sampled_from(SAVED), max_size=20).map(" ".join))
def test_damaged_rules_of_iptables_give_an_outcome(text: str) -> None:
    ask(
        world(
            '{"nftables": []}',
            (("iptables-legacy", f"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD {text}\nCOMMIT\n"), ("odd", text)),
        )
    )


def test_a_loop_of_chains_is_unknown() -> None:
    chain = {"chain": {"family": "inet", "table": "t", "name": "c", "hook": "forward", "type": "filter", "prio": 0}}
    rule = {"rule": {"family": "inet", "table": "t", "chain": "c", "expr": [{"jump": {"target": "c"}}]}}
    outcome = decide(world(json.dumps({"nftables": [chain, rule]})), "forward", PACKETS[0])
    assert outcome.verdict == "unknown"
