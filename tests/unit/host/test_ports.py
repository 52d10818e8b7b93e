"""Published ports and masquerading as the rulesets of various programs have them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_py.attachment.naming import Attachment as Key
from cni_py.host import iptables_ports, listing, nftables_ports, owners, publishing
from cni_py.host.model import Address, Attachment, Masquerade, Namespace, Port, Process
from cni_py.iptables.tool import Rules
from tests.unit.host import worlds

C1, C2 = Key("lab", "c1", "eth0"), Key("gonet", "c2", "eth0")
ATTACHED = [
    Attachment("lab", "c1", "eth0", C1.hex, "/run/netns/c1", addresses=("192.0.2.2/24", "2001:db8::2/64")),
    Attachment("gonet", "c2", "eth0", C2.hex, "/run/netns/c2", addresses=("192.0.4.2/24",), source="go"),
]
DOCKERS = Namespace(
    "net:[5]",
    processes=(Process(9, "nginx", "d" * 64),),
    links=(worlds.loopback(), worlds.link(2, "eth0", "veth", Address("172.17.0.2", 16))),
)
OWNERS = owners.of(ATTACHED, [DOCKERS])


def entry(kind: str, table: str, **body: Any) -> dict[str, Any]:
    family, name = table.split(" ")
    return {kind: {"family": family, "table": name, **body}}


def key(*parts: Any, comment: str = C1.comment) -> dict[str, Any]:
    return {"elem": {"val": {"concat": list(parts)} if len(parts) > 1 else parts[0], "comment": comment}}


def target(*parts: Any) -> Any:
    return {"concat": list(parts)}


def chain(table: str, name: str, *expressions: Any, comment: str = "") -> dict[str, Any]:
    return entry("rule", table, chain=name, handle=7, expr=list(expressions), comment=comment)


def match(protocol: str, field: str, right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}}


def nft_ports(*entries: dict[str, Any]) -> list[Port]:
    return list(nftables_ports.ports(listing.parse(json.dumps({"nftables": entries})), OWNERS))


def short(port: Port) -> tuple[Any, ...]:
    span = str(port.first) if port.first == port.last else f"{port.first}-{port.last}"
    at = f"{port.host_address} {span}/{port.protocol}"
    return at, f"{port.target} {port.target_port}", port.source, port.container_id


@pytest.mark.parametrize(
    ("name", "element", "expected"),
    [
        ("any4", [key("tcp", 8080), target("192.0.2.2", 80)], ("0.0.0.0 8080/tcp", "192.0.2.2 80", "cni-py", "c1")),
        ("any6", [key("udp", 53), target("2001:db8::2", 53)], (":: 53/udp", "2001:db8::2 53", "cni-py", "c1")),
        (
            "specific4",
            [key("198.51.100.1", "tcp", 8080), target("192.0.2.2", 80)],
            ("198.51.100.1 8080/tcp", "192.0.2.2 80", "cni-py", "c1"),
        ),
        (
            "range4_tcp",
            [key({"range": [20000, 20099]}), "192.0.2.2"],
            ("0.0.0.0 20000-20099/tcp", "192.0.2.2 20000", "cni-py", "c1"),
        ),
        # The record says whose an element is; its comment may be of an earlier holder.
        (
            "any4",
            [key("tcp", 80, comment=C2.comment), target("192.0.2.2", 80)],
            ("0.0.0.0 80/tcp", "192.0.2.2 80", "cni-py", "c1"),
        ),
        (
            "any4",
            [key("tcp", 80, comment=C1.comment), target("192.0.2.99", 80)],
            ("0.0.0.0 80/tcp", "192.0.2.99 80", "cni-py", "c1"),
        ),
        (
            "any4",
            [key("tcp", 80, comment=Key("lab", "gone", "eth0").comment), target("192.0.2.99", 80)],
            ("0.0.0.0 80/tcp", "192.0.2.99 80", "cni-py", "gone"),
        ),
    ],
)
def test_our_maps(name: str, element: list[Any], expected: tuple[Any, ...]) -> None:
    (port,) = nft_ports(entry("map", "inet cni_py", name=name, elem=[element]))
    assert short(port) == expected
    assert (port.way, port.backend, port.place, port.allow) == ("nat", "nftables", f"inet cni_py {name}", ())


def test_conditions_are_the_clients_that_they_let_in() -> None:
    name = "4_0123456789ab"
    rule = chain(
        "inet cni_py",
        f"conditions{name}",
        match("ip", "saddr", {"set": ["203.0.113.7", {"prefix": {"addr": "198.51.100.0", "len": 24}}]}),
        {"dnat": {"family": "ip", "addr": {"map": {}}}},
    )
    elements = [[key("tcp", 8080), target("192.0.2.2", 80)]]
    verdicts = [[key("tcp", 8080), {"jump": {"target": f"conditions{name}"}}]]
    (port,) = nft_ports(
        entry("map", "inet cni_py", name=f"any{name}", elem=elements),
        entry("map", "inet cni_py", name="conditional_any4", elem=verdicts),
        entry("map", "inet cni_py", name="claims4", elem=[[key("tcp", 8080), 0]]),
        rule,
    )
    assert port.allow == ("203.0.113.7", "198.51.100.0/24")
    assert short(port) == ("0.0.0.0 8080/tcp", "192.0.2.2 80", "cni-py", "c1")


def test_shared_ports_are_there_once_for_each_member() -> None:
    slots = [[key(slot, "tcp", 80), target(f"192.0.2.{2 + slot % 2}", 80)] for slot in range(60)]
    found = nft_ports(entry("map", "inet cni_py", name="shared_any4", elem=slots))
    assert [(one.target, one.shared) for one in found] == [("192.0.2.2", True), ("192.0.2.3", True)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            chain(
                "ip cni_hostport",
                "hostports",
                match("tcp", "dport", 8083),
                {"dnat": {"addr": "192.0.4.2", "port": 80}},
                comment="c2",
            ),
            ("0.0.0.0 8083/tcp", "192.0.4.2 80", "go", "c2"),
        ),
        (
            chain(
                "ip cni_hostport",
                "hostip_hostports",
                match("ip", "daddr", "198.51.100.1"),
                match("tcp", "dport", 8083),
                {"dnat": {"addr": "192.0.4.9", "port": 80}},
                comment="unknown",
            ),
            ("198.51.100.1 8083/tcp", "192.0.4.9 80", "go", "unknown"),
        ),
        (
            chain(
                "inet netavark",
                "nv_dnat",
                match("udp", "dport", {"range": [5000, 5009]}),
                {"dnat": {"family": "ip", "addr": "10.88.0.2", "port": 53}},
            ),
            ("0.0.0.0 5000-5009/udp", "10.88.0.2 53", "podman", ""),
        ),
        (
            chain(
                "ip docker-bridges",
                "nat",
                {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}},
                match("th", "dport", 8080),
                {"dnat": {"addr": "172.17.0.2", "port": 80}},
            ),
            ("0.0.0.0 8080/tcp", "172.17.0.2 80", "docker", "d" * 64),
        ),
        (
            chain("inet mine", "pre", match("tcp", "dport", 25), {"dnat": {"family": "ip6", "addr": "2001:db8::9"}}),
            (":: 25/tcp", "2001:db8::9 25", "other", ""),
        ),
    ],
)
def test_rules_of_others_in_nftables(rule: dict[str, Any], expected: tuple[Any, ...]) -> None:
    (port,) = nft_ports(rule)
    assert short(port) == expected


@pytest.mark.parametrize(
    "rule",
    [
        chain(
            "ip nat", "DOCKER", match("tcp", "dport", 80), {"dnat": {"addr": "172.17.0.2", "port": 80}}
        ),  # iptables-nft
        chain("ip mine", "pre", match("tcp", "dport", "@ports"), {"dnat": {"addr": "172.17.0.2"}}),
        chain("ip mine", "pre", {"dnat": {"addr": "172.17.0.2"}}),
        chain("ip mine", "pre", match("tcp", "dport", 80), {"dnat": {"addr": {"map": {"key": {}, "data": "@m"}}}}),
        chain("ip mine", "pre", match("tcp", "dport", 80), {"dnat": None}),
    ],
)
def test_rules_that_publish_no_port_for_an_address(rule: dict[str, Any]) -> None:
    assert nft_ports(rule) == []


def test_node_ports_of_kubernetes() -> None:
    elements = [[{"concat": ["tcp", 30080]}, {"goto": {"target": "external-ABC-default/web"}}]]
    (port,) = nft_ports(entry("map", "ip kube-proxy", name="service-nodeports", elem=elements))
    assert (port.source, port.first, port.target, port.place) == (
        "kubernetes",
        30080,
        "",
        "ip kube-proxy external-ABC-default/web",
    )


def test_masquerading_in_nftables() -> None:
    rule = chain("inet cni_plugins_masquerade", "masq_checks", match("ip", "saddr", "192.0.4.2"), {"masquerade": None})
    elements = [[key("192.0.2.2"), {"jump": {"target": "outside_192.0.2.0_24"}}]]
    text = json.dumps({"nftables": [entry("map", "inet cni_py", name="masquerade4", elem=elements), rule]})
    assert list(nftables_ports.masquerades(listing.parse(text), OWNERS)) == [
        Masquerade("192.0.2.2", "cni-py", "nftables", "lab", "c1", "eth0"),
        Masquerade("192.0.4.2", "go", "nftables", "gonet", "c2", "eth0"),
    ]


IPTABLES = """\
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:NETAVARK-DN-1D8721804F16F - [0:0]
:CNI-DN-abc - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-0123 - [0:0]
-A PREROUTING -p tcp -m tcp --dport 2222 -j REDIRECT --to-ports 22
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"other\\" id: \\"c9\\"" -m multiport --dports 8084 -j CNI-DN-abc
-A CNI-DN-abc -p tcp -m tcp --dport 8084 -j DNAT --to-destination 192.0.2.77:80
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A DOCKER -d 127.0.0.1/32 ! -i docker0 -p udp -m udp --dport 53 -j DNAT --to-destination 172.17.0.2:5353
-A NETAVARK-DN-1D8721804F16F -s 203.0.113.0/24 -p tcp -m tcp --dport 8000:8010 -j DNAT --to-destination 10.88.0.2:80-90/8000
-A PREROUTING -p tcp -m multiport --dports 25,587:588 -j DNAT --to-destination 192.0.4.2
-A PREROUTING -p tcp -m tcp ! --dport 26 -j DNAT --to-destination 192.0.4.2
-A PREROUTING -p tcp -m tcp --dport 70000 -j DNAT --to-destination 192.0.4.2
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/web" -m tcp --dport 30080 -j KUBE-EXT-ABC
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 192.0.4.2/32 -m comment --comment "name: \\"gonet\\" id: \\"c2\\"" -j CNI-0123
-A CNI-0123 ! -d 224.0.0.0/4 -j MASQUERADE
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
"""


def test_iptables_of_everybody() -> None:
    rules = Rules(4, IPTABLES)
    assert {(*short(one), one.place, one.allow) for one in iptables_ports.ports(rules, OWNERS)} == {
        ("0.0.0.0 8084/tcp", "192.0.2.77 80", "go", "c9", "CNI-DN-abc", ()),
        ("0.0.0.0 8080/tcp", "172.17.0.2 80", "docker", "d" * 64, "DOCKER", ()),
        ("127.0.0.1 53/udp", "172.17.0.2 5353", "docker", "d" * 64, "DOCKER", ()),
        ("0.0.0.0 8000-8010/tcp", "10.88.0.2 80", "podman", "", "NETAVARK-DN-1D8721804F16F", ("203.0.113.0/24",)),
        ("0.0.0.0 25/tcp", "192.0.4.2 25", "other", "c2", "PREROUTING", ()),
        ("0.0.0.0 587-588/tcp", "192.0.4.2 587", "other", "c2", "PREROUTING", ()),
        ("0.0.0.0 30080/tcp", " 0", "kubernetes", "", "KUBE-NODEPORTS default/web", ()),
    }
    assert list(iptables_ports.masquerades(rules, OWNERS)) == [
        Masquerade("172.17.0.0/16", "docker", "iptables"),
        Masquerade("192.0.4.2", "go", "iptables", "gonet", "c2", "eth0"),
    ]


@pytest.mark.parametrize("lost", ["--dst-type LOCAL -j CNI-HOSTPORT-DNAT", "--dports 8084 -j CNI-DN-abc"])
def test_a_chain_of_a_container_to_which_nothing_leads(lost: str) -> None:
    """Somebody flushed PREROUTING, or the chain of all entries."""
    kept = "".join(line for line in IPTABLES.splitlines(keepends=True) if not line.endswith(f"{lost}\n"))
    assert kept != IPTABLES
    assert 8084 not in [one.first for one in iptables_ports.ports(Rules(4, kept), OWNERS)]


def test_targets_in_ipv6() -> None:
    text = "*nat\n:D - [0:0]\n-A D -p tcp -m tcp --dport 80 -j DNAT --to-destination [2001:db8::2]:81\n"
    text += "-A D -d 2001:db8:1::1/128 -p tcp -m tcp --dport 82 -j DNAT --to-destination 2001:db8::2\nCOMMIT\n"
    ((_, rules),) = iptables_ports.parse([("ip6tables-nft", text)])
    found = [short(one)[:2] for one in iptables_ports.ports(rules, OWNERS)]
    assert found == [(":: 80/tcp", "2001:db8::2 81"), ("2001:db8:1::1 82/tcp", "2001:db8::2 82")]


def test_a_table_that_iptables_cannot_read_is_left_out() -> None:
    text = "# Table `nat' is incompatible, use 'nft' tool.\n"
    assert iptables_ports.parse([("iptables-nft", text)]) == []


def port(first: int, last: int = 0, **changes: Any) -> Port:
    values = {"target": "192.0.2.2", "target_port": 80, "way": "nat", "place": "map", **changes}
    return Port("tcp", values.pop("host_address", "0.0.0.0"), first, last or first, **values)


def test_nat_and_a_relay_of_one_port_are_one() -> None:
    relay = port(8080, way="relay", place="relay a")
    six = port(8080, way="relay", host_address="::", place="relay a")
    assert publishing.merged([port(8080)], [relay, six]) == (port(8080, way="both", place="map, relay a"), six)


def test_a_relay_of_several_ports_is_left_where_nat_does_not_have_all() -> None:
    relay = port(9000, 9002, way="relay", place="relay a")
    both = [port(number, way="both", place="map, relay a") for number in range(9000, 9003)]
    assert publishing.merged([port(number) for number in range(9000, 9003)], [relay]) == tuple(both)
    assert publishing.merged([port(9000)], [relay]) == (both[0], relay)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["cni_py", "inet", "any4", "nat"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["table", "map", "rule", "elem", "val", "concat", "name", "family", "expr", "match", "left", "right",
                         "payload", "dnat", "addr", "port", "range", "prefix", "set", "op", "jump", "field", "protocol"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(json_values, max_size=4))
def test_no_ruleset_is_a_traceback(entries: list[Any]) -> None:
    ruleset = listing.parse(json.dumps({"nftables": entries}))
    list(nftables_ports.ports(ruleset, OWNERS))
    list(nftables_ports.masquerades(ruleset, OWNERS))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nftables": 7}', '{"nftables": [7, {"rule": 3}]}'])
def test_what_is_no_ruleset_is_empty(text: str) -> None:
    assert listing.parse(text) == listing.Listing()
