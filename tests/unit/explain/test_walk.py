"""Ways through models that are built here: what the lab of tests/commands/test_explain.py cannot have or force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cni_py.host.model import Address, FdbEntry, Host, Namespace, Neighbour, Route, Rule, Socket, Vlan
from tests.unit.explain.models import DB, NOTHING, WEB, code, explained, host, relayed, routes, ruleset, way, with_port
from tests.unit.host.worlds import link, with_attachment, with_container, with_link, with_root

PVID = (Vlan(1, True, True),)


def vlans(web: tuple[Vlan, ...], bridge: tuple[Vlan, ...] = PVID) -> Host:
    return with_link(with_link(host(), "cni0", vlan_filtering=True, vlans=bridge), WEB, vlans=web)


def in_container(**changes: object) -> Host:
    return with_container(host(), 1, **changes)


def eth0(**changes: object) -> Host:
    web = host().namespaces[1]
    return in_container(links=tuple(replace(one, **changes) if one.name == "eth0" else one for one in web.links))  # type: ignore[arg-type]


def loop() -> Host:
    """Two namespaces, each of which thinks that the other has the way to 203.0.113.1."""
    web, db = host().namespaces[1:]
    on = (("net.ipv4.ip_forward", "1"),)
    ways = [(web, "192.0.2.3"), (db, "192.0.2.2")]
    inner = [
        replace(one, routes=(Route(4, 254, "0.0.0.0/0", gateway=to, link="eth0"),), sysctls=on) for one, to in ways
    ]
    root = replace(host().root, routes=(*routes(), Route(4, 254, "203.0.113.0/24", gateway="192.0.2.3", link="cni0")))
    return replace(host(), namespaces=(root, *inner))


def gone() -> Host:
    """The published container and its namespace are gone; the bridge has a port to the LAN."""
    model = host()
    root = replace(model.root, links=(*model.root.links, link(20, "lan1", master="cni0")))
    return replace(model, namespaces=(root, model.namespaces[2]))


BROKEN: dict[str, tuple[Callable[[], Host], str]] = {
    "healthy": (host, "answers"),
    "same VLAN": (lambda: vlans(PVID), "answers"),
    "other VLAN": (lambda: vlans((Vlan(7, True, True),)), "vlan"),
    "no VLAN on the port": (lambda: vlans(()), "vlan"),
    "the bridge itself is in no VLAN": (lambda: vlans(PVID, ()), "vlan"),
    "learnt at another port": (
        lambda: with_root(host(), fdb=(FdbEntry("02:00:00:00:00:02", DB, "cni0"),)), "fdb-wrong"),
    "learnt at its port": (lambda: with_root(host(), fdb=(FdbEntry("02:00:00:00:00:02", WEB, "cni0"),)), "answers"),
    "listening": (lambda: with_link(host(), WEB, stp_state="listening"), "stp-blocked"),
    "failed neighbour": (lambda: with_root(host(), neighbours=(Neighbour("192.0.2.2", "", "cni0", "failed"),)), "answers"),
    "duplicate address": (lambda: eth0(addresses=(Address("192.0.2.2", 24, flags=("dadfailed",)),)), "address-unusable"),
    "no carrier": (lambda: with_link(host(), WEB, operstate="lowerlayerdown"), "no-carrier"),
    "container's link down": (lambda: eth0(up=False), "link-down"),
    "rules of the host not read": (lambda: with_root(host(), nftables=""), "not-seen"),
    "rules of the container not read": (lambda: in_container(nftables=""), "not-seen"),
    "rules that are no rules": (lambda: with_root(host(), nftables="{"), "rule-unknown"),
    "ip_forward not read": (lambda: with_root(host(), sysctls=()), "not-seen"),
    "policy routing by what is not in the model": (
        lambda: with_root(host(), rules=(Rule(4, 0, "lookup", 255), Rule(4, 9, "lookup", 254, other=True))), "route-unknown"),
    "blocked": (lambda: with_root(host(), routes=(*routes(), Route(4, 254, "192.0.2.2/32", "unreachable"))), "route-blocked"),
    "behind a gateway": (
        lambda: with_root(host(), routes=(*routes(), Route(4, 254, "192.0.2.2/32", gateway="198.51.100.9", link="lan0"))),
        "route-elsewhere"),
    "loose rp_filter": (
        lambda: with_root(host(), sysctls=(*host().root.sysctls, ("net.ipv4.conf.all.rp_filter", "2"))), "answers"),
    "another machine has it": (gone, "outside"),
    "listens by IPv6 on both": (
        lambda: in_container(sockets=(Socket("tcp", "::", 80, pid=9, program="nginx"),)), "answers"),
    "listens by IPv6 alone": (
        lambda: in_container(sockets=(Socket("tcp", "::", 80, True, pid=9, program="nginx"),)), "listens-on-other-family"),
    "listens on an address": (
        lambda: in_container(sockets=(Socket("tcp", "192.0.2.99", 80, pid=9, program="nginx"),)), "listens-on-other-address"),
    "listens on a link": (
        lambda: in_container(sockets=(Socket("tcp", "0.0.0.0", 80, link="eth9", pid=9),)), "listens-on-other-address"),
    "another protocol": (lambda: in_container(sockets=(Socket("udp", "0.0.0.0", 80),)), "nothing-listens"),
    "dead": (lambda: in_container(sockets=(), processes=(), process_count=0), "container-dead"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_the_hop_that_fails(name: str) -> None:
    model, expected = BROKEN[name]
    assert code(model()) == expected


UNDECIDED = {"not-seen", "rule-unknown", "route-unknown", "outside", "fdb-wrong"}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_seen_is_no_failure(name: str) -> None:
    model, expected = BROKEN[name]
    wanted = "answers" if expected == "answers" else "unknown" if expected in UNDECIDED else "fails"
    assert way(model()).verdict == wanted


def test_a_packet_that_goes_round_is_given_up() -> None:
    (found,) = explained(loop(), "203.0.113.1:80", "host").ways
    assert found.deciding is not None
    assert (found.verdict, found.deciding.code) == ("unknown", "too-many-hops")


RELAY = Socket("tcp", "0.0.0.0", 8080, pid=5, program="docker-proxy")
HELD = Socket("tcp", "0.0.0.0", 8080, pid=6, program="nginx")


@pytest.mark.parametrize(
    ("sockets", "expected"), [((RELAY,), "answers"), ((), "relay-not-running"), ((HELD,), "port-taken")]
)
def test_a_relay(sockets: tuple[Socket, ...], expected: str) -> None:
    model = with_root(relayed(host()), sockets=sockets)
    assert code(model) == expected
    if expected == "answers":
        assert way(model).sees == "192.0.2.1"  # the relay's own address


def test_masquerading_takes_the_links_address_and_not_the_one_that_the_route_prefers() -> None:
    model = with_root(host(), routes=(*routes(), Route(4, 254, "192.0.2.2/32", link="cni0", source="198.51.100.1")))
    assert way(model, "loopback").sees == "192.0.2.1"


def macvlan() -> Host:
    """A container on lan0's LAN, and a firewall that forwards nothing. lan0 leads to a namespace, as in a lab."""
    outer = Namespace(
        "net:[9]", links=(link(2, "eth0", "veth", Address("198.51.100.7", 24), peer_namespace=host().root.key),)
    )
    model = with_link(host(), "lan0", kind="veth", peer_namespace=outer.key, peer_index=2)
    index = next(one.index for one in model.root.links if one.name == "lan0")
    upper = link(2, "eth0", "macvlan", Address("198.51.100.100", 24), peer_index=index, peer_namespace=model.root.key)
    drop = {"family": "ip", "table": "t", "name": "f", "handle": 90, "type": "filter", "hook": "forward", "prio": 0}
    root = replace(model.root, nftables=ruleset({"chain": drop | {"policy": "drop"}}))
    inner = replace(model.namespaces[1], links=(upper,))
    return replace(model, namespaces=(root, inner, *model.namespaces[2:], outer))


@pytest.mark.parametrize("kind", ["lan", "host"])
def test_a_macvlan_is_on_the_lan_itself(kind: str) -> None:
    """Other machines reach it past this host, whose rules do not see their packets."""
    found = way(macvlan(), kind, "198.51.100.100:80")
    assert (found.verdict, found.deciding and found.deciding.code) == ("unknown", "outside")


def test_addresses_that_a_rule_writes_are_a_doubt() -> None:
    """The answer fits no connection: conntrack has seen the other address."""
    own = {"family": "ip", "table": "t"}
    chain = {"name": "m", "handle": 90, "type": "filter", "hook": "prerouting", "prio": -150, "policy": "accept"}
    to = {"mangle": {"key": {"payload": {"protocol": "ip", "field": "daddr"}}, "value": "192.0.2.2"}}
    model = with_root(
        host(), nftables=ruleset({"chain": own | chain}, {"rule": own | {"chain": "m", "handle": 91, "expr": [to]}})
    )
    assert code(model) == "rule-unknown"


def test_a_relay_into_a_namespace_that_is_gone() -> None:
    model = with_root(with_port(relayed(host()), target=""), sockets=(RELAY,))
    assert code(model) == "answers"
    assert code(replace(model, namespaces=(model.root, model.namespaces[2]), attachments=())) == "relay-target-gone"
    nameless = with_port(model, container_id="", namespace=model.namespaces[1].key)
    assert code(nameless) == "answers"
    assert code(with_port(nameless, namespace="net:[1]")) == "relay-target-gone"


def test_a_container_asks_itself_by_the_families_that_it_was_given() -> None:
    """One that has lost its address is told so; one that never had any is no client."""
    lan = (Address("198.51.100.1", 24), Address("2001:db8:1::1", 64))
    model = with_link(host(), "lan0", addresses=lan)
    asking = {one.family for one in explained(model).ways if one.kind == "itself"}
    given = with_attachment(model, addresses=("192.0.2.2/24", "2001:db8:42::2/64"))
    assert (asking, {one.family for one in explained(given).ways if one.kind == "itself"}) == ({4}, {4, 6})


def test_a_holder_of_the_port_that_never_answers_is_no_server() -> None:
    """podman's monitor binds the port and leaves it to NAT, whose rule is gone here."""
    model = with_root(host(), nftables=NOTHING, sockets=(replace(HELD, program="conmon"),))
    assert code(model) == "element-missing"


def test_clients_that_are_not_promised_anything_do_not_count() -> None:
    """[::1] has no address of the container's family; the allow list leaves out the LAN."""
    model = with_port(host(), allow=("192.0.2.0/24",))
    model = with_root(model, nftables=NOTHING)
    found = {one.kind: one for one in explained(model).ways if one.family == 4}
    assert (found["lan"].promised, found["neighbour"].promised) == (False, True)
    assert found["lan"].deciding is not None
    assert found["lan"].deciding.code == "not-allowed"


def test_a_port_that_nobody_publishes_names_what_is_near() -> None:
    found = way(host(), text="80")
    assert found.deciding is not None
    assert found.deciding.code == "not-published"
    assert found.deciding.evidence == ("8080/tcp leads to port 80 of container web",)
