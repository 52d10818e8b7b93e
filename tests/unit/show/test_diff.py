"""What differs between two models, in sentences."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from cni_py.host import saved
from cni_py.host.model import Address, Finding, Host, Link, Neighbour, Process, Route
from cni_py.show.diff import changes
from tests.unit.show import models

LONE = models.lone()


def root(host: Host, **fields: object) -> Host:
    """With other values in the host's own namespace."""
    return dataclasses.replace(host, namespaces=(dataclasses.replace(host.root, **fields), *host.namespaces[1:]))  # type: ignore[arg-type]


def with_link(name: str, change: Callable[[Link], Link]) -> Host:
    return root(LONE, links=tuple(change(one) if one.name == name else one for one in LONE.root.links))


def ruleset(rules: int, packets: int, elements: list[str]) -> str:
    counter = {"counter": {"packets": packets, "bytes": 0}}
    entries: list[object] = [
        {"chain": {"family": "inet", "table": "t", "name": "c", "policy": "drop", "handle": 1}},
        *(
            {"rule": {"family": "inet", "table": "t", "chain": "c", "handle": n, "expr": [counter]}}
            for n in range(rules)
        ),
        {"map": {"family": "inet", "table": "t", "name": "m", "elem": [[one, 80] for one in elements]}},
    ]
    return json.dumps({"nftables": entries})


def iptables(*rules: str) -> tuple[tuple[str, str], ...]:
    return (("iptables-legacy", "\n".join(["# Generated now", "*filter", ":INPUT ACCEPT [1:2]", *rules, "COMMIT"])),)


def lost_container(host: Host) -> Host:
    return dataclasses.replace(host, namespaces=host.namespaces[:1])


CASES: dict[str, tuple[Host, Host, list[str]]] = {
    "link down": (
        LONE,
        with_link("eth0", lambda one: dataclasses.replace(one, up=False)),
        ["~ link eth0: state down, was up"],
    ),
    "out of its bridge": (
        LONE,
        with_link("veth00000001", lambda one: dataclasses.replace(one, master="")),
        ["~ link veth00000001: in bridge none, was cni-py0"],
    ),
    "address": (
        LONE,
        with_link(
            "eth0", lambda one: dataclasses.replace(one, addresses=(*one.addresses[1:], Address("192.0.2.5", 24)))
        ),
        ["- address 198.51.100.1/24 on eth0", "+ address 192.0.2.5/24 on eth0"],
    ),
    "a link with its address is one change": (
        LONE,
        root(LONE, links=(*LONE.root.links, models.link(77, "wg0", "wireguard", ["192.0.2.9/32"]))),
        ["+ link wg0: wireguard, state up, 192.0.2.9/32"],
    ),
    "route": (
        LONE,
        root(LONE, routes=(Route(4, 254, "192.0.2.0/24", kind="blackhole"), *LONE.root.routes)),
        ["+ route blackhole 192.0.2.0/24"],
    ),
    "a namespace with all that is in it is one change": (
        LONE,
        lost_container(LONE),
        ["- namespace web: at /run/netns/cni-1"],
    ),
    "port": (
        LONE,
        dataclasses.replace(LONE, ports=(dataclasses.replace(LONE.ports[0], allow=("192.0.2.0/24",)),)),
        ["~ published port 0.0.0.0:8080/tcp: NAT, only for 192.0.2.0/24, was NAT"],
    ),
    "two ports with one name": (
        LONE,
        dataclasses.replace(LONE, ports=LONE.ports * 2),
        ["+ published port 0.0.0.0:8080/tcp: to 10.88.0.2:80, of web, NAT"],
    ),
    "record": (
        LONE,
        dataclasses.replace(LONE, attachments=()),
        [
            "- attachment cni-py/web/eth0: 10.88.0.2/24, by veth00000001, bridge cni-py0, holder alive, plugins bridge, "
            "host-local, portmap, firewall"
        ],
    ),
    "finding": (
        LONE,
        dataclasses.replace(LONE, findings=(Finding("error", "link-down", "link eth0", "it is down"),)),
        ["+ finding link-down of link eth0: it is down"],
    ),
    "sysctl": (
        root(LONE, sysctls=(("net.ipv4.ip_forward", "1"),)),
        root(LONE, sysctls=(("net.ipv4.ip_forward", "0"),)),
        ["~ sysctl net.ipv4.ip_forward: 0, was 1"],
    ),
    "nftables": (
        root(LONE, nftables=ruleset(2, 5, ["a"])),
        root(LONE, nftables=ruleset(3, 9, ["b"])),
        ["~ nftables chain inet t c: rules 3, was 2", '~ nftables map inet t m: elements ["b", 80], was ["a", 80]'],
    ),
    "iptables": (
        root(LONE, iptables=iptables("-A INPUT -j DROP")),
        root(LONE, iptables=iptables("-A INPUT -j ACCEPT")),
        [
            "- iptables-legacy rule INPUT -j DROP of table filter",
            "+ iptables-legacy rule INPUT -j ACCEPT of table filter",
        ],
    ),
    "what changes all the time": (
        root(LONE, nftables=ruleset(2, 5, ["a"]), neighbours=()),
        dataclasses.replace(
            root(
                LONE,
                nftables=ruleset(2, 6, ["a"]),
                neighbours=(Neighbour("192.0.2.1", "", "eth0", "stale"),),
                processes=(Process(7, "ps"),),
            ),
            taken=0.0,
        ),
        [],
    ),
    "what is no ruleset": (root(LONE, nftables='{"nftables": [{"rule": 5}]}'), LONE, []),
}


@pytest.mark.parametrize("name", CASES)
def test_sentences(name: str) -> None:
    before, after, expected = CASES[name]
    assert [str(one) for one in changes(before, after)] == expected


@pytest.mark.parametrize("host", [models.lone(), models.example(), models.crowd()], ids=("lone", "example", "crowd"))
def test_a_saved_host_differs_in_nothing(host: Host) -> None:
    assert changes(host, saved.loads(saved.dumps(host))) == []


def test_there_and_back_is_the_same_with_other_signs() -> None:
    there, back = changes(LONE, models.example()), changes(models.example(), LONE)
    turned = {"appeared": "vanished", "vanished": "appeared", "changed": "changed"}
    assert {(one.what, one.name, one.kind) for one in there} == {(one.what, one.name, turned[one.kind]) for one in back}
    assert len({(one.what, one.name) for one in there}) == len(there)
