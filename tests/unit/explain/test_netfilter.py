"""What decide() says beside the verdict: steps, owners, and what it cannot tell. For verdicts: test_netfilter_kernel.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni_py.explain.chains import Chain, Rule, Table
from cni_py.explain.netfilter import decide
from cni_py.explain.owners import owner_of, policy_owner
from cni_py.explain.packet import Outcome, Packet
from cni_py.host.model import Link, Namespace, Route

PACKET = Packet(4, "tcp", "192.0.2.9", 0, "192.0.2.1", 8080, iif="lan0", oif="cni0")
ACCEPT, DROP = {"accept": None}, {"drop": None}
LIMIT = {"limit": {"rate": 1, "per": "second"}}
PORT = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8080}}
XT = {"xt": {"type": "match", "name": "recent"}}


def dnat(to: Any) -> Any:
    return {"dnat": {"family": "ip", "addr": to}}


def table(
    *rules: list[Any], name: str = "t", hook: str = "forward", prio: int = 0, kind: str = "filter", number: int = 1
) -> list[Any]:
    """A table with one base chain; the rules have the handles 10, 11, ..."""
    where = {"family": "ip", "table": name}
    chain = {"name": "c", "handle": 1, "hook": hook, "type": kind, "prio": prio, "policy": "accept"}
    listed = [{"rule": {**where, "chain": "c", "handle": 10 + n, "expr": one}} for n, one in enumerate(rules)]
    return [{"table": {"family": "ip", "name": name, "handle": number}}, {"chain": {**where, **chain}}, *listed]


def ask(objects: list[Any], hook: str = "forward", iptables: tuple[tuple[str, str], ...] = ()) -> Outcome:
    namespace = Namespace("net:[1]", nftables=json.dumps({"nftables": objects}), iptables=iptables)
    return decide(namespace, hook, PACKET)  # type: ignore[arg-type]


def test_an_expression_that_is_not_evaluated_is_named() -> None:
    outcome = ask(table([PORT], [PORT, XT, DROP], [ACCEPT]))
    assert (outcome.verdict, outcome.certainty) == ("unknown", "unknown")
    step = outcome.deciding
    assert step is not None
    assert (step.handle, step.certainty) == (11, "unknown")
    assert "xt match recent" in step.why
    assert step.text == "tcp dport 8080 xt match recent drop"
    assert {one.verdict for one in outcome.alternatives} == {"accept", "drop"}


def test_what_makes_no_difference_is_no_doubt() -> None:
    outcome = ask(table([LIMIT, ACCEPT], [XT, {"log": None}]))
    assert (outcome.verdict, outcome.certainty) == ("accept", "checked")
    assert ask(table([LIMIT, DROP], [{"reject": None}])).verdict == "drop"


def test_many_doubts_that_come_to_nothing_cost_nothing() -> None:
    assert ask(table(*([LIMIT, {"counter": None}] for _ in range(3000)), [DROP])).verdict == "drop"


def test_a_mark_that_may_be_another_is_not_known() -> None:
    mark = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 5}}
    asks = {"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 5}}
    outcome = ask(table([LIMIT, mark]))
    assert outcome.verdict == "accept"
    assert outcome.packet.unsure == {"mark"}
    assert ask(table([LIMIT, mark], [asks, DROP])).verdict == "unknown"


def test_the_element_of_a_map_is_the_step() -> None:
    key = {"concat": [{"meta": {"key": "l4proto"}}, {"payload": {"protocol": "th", "field": "dport"}}]}
    elements = [[{"elem": {"val": {"concat": ["tcp", 8080]}, "comment": "x"}}, {"concat": ["10.88.0.2", 80]}]]
    named = {
        "map": {"family": "ip", "name": "any4", "table": "cni_py", "map": "ipv4_addr . inet_service", "elem": elements}
    }
    rule = [dnat({"map": {"key": key, "data": "@any4"}})]
    outcome = ask([*table(rule, name="cni_py", hook="prerouting", kind="nat"), named], "prerouting")
    assert (outcome.nat, outcome.packet.destination, outcome.packet.destination_port) == ("dnat", "10.88.0.2", 80)
    assert (outcome.packet.original_destination, outcome.packet.original_port) == ("192.0.2.1", 8080)
    step = outcome.deciding
    assert step is not None
    assert step.text == "element tcp . 8080 : 10.88.0.2 . 80 in map any4"
    assert (step.effect, step.owner, step.table) == ("dnat to 10.88.0.2:80", "cni-py", "ip cni_py")


def test_one_of_several_targets_is_unknown_and_each_is_told() -> None:
    to = {
        "map": {
            "key": {"numgen": {"mode": "random", "mod": 2, "offset": 0}},
            "data": {"set": [[0, "10.0.0.1"], [1, "10.0.0.2"]]},
        }
    }
    outcome = ask(table([dnat(to)], hook="prerouting", kind="nat"), "prerouting")
    assert outcome.verdict == "unknown"
    assert {one.packet.destination for one in outcome.alternatives} == {"10.0.0.1", "10.0.0.2"}


@pytest.mark.parametrize("targets", [("10.0.0.1", "10.0.0.1"), ("10.0.0.1", "10.0.0.2")])
def test_of_equal_priority_the_newest_comes_first_as_far_as_is_known(targets: tuple[str, str]) -> None:
    objects: list[Any] = []
    for number, to in enumerate(targets):
        objects += table([dnat(to)], name=f"t{number}", hook="prerouting", kind="nat", prio=-100, number=number)
    outcome = ask(objects, "prerouting")
    assert outcome.packet.destination == targets[1]
    assert outcome.certainty == ("checked" if targets[0] == targets[1] else "assumed")
    assert bool(outcome.steps[-1].why) is (targets[0] != targets[1])


def test_rules_of_iptables_are_told_in_its_words_with_the_kernels_handles() -> None:
    saved = (
        "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -p udp -j ACCEPT\n"
        '[5:60] -A FORWARD -p tcp -m comment --comment "a b" -j DROP\nCOMMIT\n'
    )
    listed = table([XT, ACCEPT], [XT, DROP], name="filter")
    listed[1]["chain"]["name"] = listed[2]["rule"]["chain"] = listed[3]["rule"]["chain"] = "FORWARD"
    step = ask(listed, iptables=(("iptables-nft", saved),)).deciding
    assert step is not None
    assert (step.backend, step.table, step.chain, step.handle) == (
        "iptables",
        "ip filter (iptables-nft)",
        "FORWARD",
        11,
    )
    assert step.text == '-A FORWARD -p tcp -m comment --comment "a b" -j DROP'
    without = ask(listed)
    assert without.verdict == "unknown"
    other = saved.replace("-A FORWARD -p udp -j ACCEPT\n", "")  # not all that is there: iptables-save cannot print it
    assert ask(listed, iptables=(("iptables-nft", other),)).verdict == "unknown"


@pytest.mark.parametrize(
    ("left", "operator", "right"),
    [
        ({"&": [{"ct": {"key": "status"}}, "dnat"]}, "==", 0),
        ({"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, {"|": ["syn", "ack"]}]}, "==", "syn"),
        ({"|": [{"meta": {"key": "mark"}}, 1, 2, 4]}, "==", 7),
        ({"fib": {"flags": ["daddr"], "result": "check"}}, "==", True),
    ],
)
def test_forms_of_newer_nft(left: Any, operator: str, right: Any) -> None:
    objects = table([{"match": {"op": operator, "left": left, "right": right}}, DROP])
    links = (Link(2, "lan0", "veth", "", 1500, True, "up"),)
    routes = (Route(4, 254, "0.0.0.0/0", link="lan0"),)
    namespace = Namespace("net:[1]", links=links, routes=routes, nftables=json.dumps({"nftables": objects}))
    assert decide(namespace, "forward", PACKET).verdict == "drop"


def test_a_ruleset_that_was_not_read_is_unknown() -> None:
    outcome = decide(Namespace("net:[1]"), "forward", PACKET)
    assert outcome.verdict == "unknown"
    assert outcome.deciding is not None
    assert "could not be read" in outcome.deciding.why


def test_a_dormant_table_is_passed_over() -> None:
    objects = table([DROP])
    objects[0]["table"]["flags"] = "dormant"
    assert ask(objects).verdict == "accept"


@pytest.mark.parametrize(
    ("backend", "name", "chain", "rule", "owner"),
    [
        ("nftables", "cni_py", "published4", Rule([]), "cni-py"),
        ("nftables", "cni_hostport", "hostports", Rule([]), "the Go plugins"),
        ("nftables", "netavark", "POSTROUTING", Rule([]), "podman (netavark)"),
        ("nftables", "nm-shared-eth0", "filter_forward", Rule([]), "NetworkManager"),
        ("iptables", "nat", "CNI-HOSTPORT-DNAT", Rule([]), "the CNI plugins"),
        ("iptables", "nat", "DOCKER", Rule([]), "Docker"),
        ("iptables", "filter", "FORWARD", Rule([{"jump": {"target": "ts-forward"}}]), "Tailscale"),
        ("iptables", "filter", "KUBE-POD-FW-ABC", Rule([]), "kube-router"),
        ("iptables", "filter", "KUBE-FORWARD", Rule([]), "kube-proxy"),
        ("iptables", "filter", "FORWARD", Rule([ACCEPT], comment="flanneld forward"), "flannel"),
        ("iptables", "filter", "FORWARD", Rule([DROP], comment="mine"), ""),
        ("iptables", "firewalld", "x", Rule([]), ""),
    ],
)
def test_owners(backend: str, name: str, chain: str, rule: Rule, owner: str) -> None:
    assert owner_of(Table(backend, "ip", name, name), chain, rule) == owner


@pytest.mark.parametrize(
    ("chains", "chain", "owner"),
    [
        (("DOCKER", "DOCKER-USER"), "FORWARD", "Docker"),
        (("DOCKER", "ufw-before-forward"), "FORWARD", "ufw or Docker"),
        (("DOCKER", "ufw-before-forward"), "INPUT", "ufw"),
        (("DOCKER",), "INPUT", ""),
        ((), "FORWARD", ""),
    ],
)
def test_owners_of_policies(chains: tuple[str, ...], chain: str, owner: str) -> None:
    of = Table("iptables", "ip", "filter", "ip filter (iptables-legacy)")
    of.chains = {name: Chain(of, name) for name in (*chains, chain)}
    of.chains[chain].policy = "drop"
    assert policy_owner(of.chains[chain]) == owner


@pytest.mark.parametrize(("hops", "verdict"), [(1, "unknown"), (64, "accept")])
def test_a_packet_that_may_go_no_further_is_a_doubt(hops: int, verdict: str) -> None:
    field = {"payload": {"protocol": "ip", "field": "ttl"}}
    assert ask(table([{"mangle": {"key": field, "value": hops}}])).verdict == verdict
    saved = f"*mangle\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j TTL --ttl-set {hops}\nCOMMIT\n"
    assert ask([], iptables=(("iptables-legacy", saved),)).verdict == verdict
