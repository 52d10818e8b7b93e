"""Findings: each code is found in a host in which one thing is wrong, and a healthy host has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cni_py.firewalld.sources import BindSource
from cni_py.host.findings import CODES, RECORDS, finding
from cni_py.host.health import findings
from cni_py.host.model import Address, Host, Port, Relay, Route, Socket
from cni_py.nftables.ruleset import LAYOUT
from tests.unit.host import worlds
from tests.unit.host.worlds import TAKEN, WEB, healthy, with_attachment, with_container, with_link, with_root

DOCUMENT = Path(__file__).parents[3] / "docs/findings.md"
EVERYWHERE = "0.0.0.0"


def without_port(host: Host) -> Host:
    return replace(host, ports=())


def port(host: Host, **changes: object) -> Host:
    return replace(host, ports=(replace(host.ports[0], **changes),))  # type: ignore[arg-type]


def more_ports(host: Host, *ports: Port) -> Host:
    return replace(host, ports=(*host.ports, *ports))


def reservations(host: Host, **changes: object) -> Host:
    return replace(host, pools=(replace(host.pools[0], **changes),))  # type: ignore[arg-type]


def held(host: Host, **changes: object) -> Host:
    first, *others = host.pools[0].reservations
    return reservations(host, reservations=(replace(first, **changes), *others))  # type: ignore[arg-type]


def crowded(host: Host) -> Host:
    """19 of 20 addresses are taken."""
    first = host.pools[0].reservations[0]
    taken = tuple(replace(first, address=f"192.0.2.{number}") for number in range(2, 21))
    return reservations(host, ranges=("192.0.2.2-192.0.2.21",), sizes=(20,), reservations=taken)


def relay(**changes: str) -> Relay:
    values = {"id": f"portmap-{WEB.hex}-0", "listen": "[::1]:8080/tcp", "target": "192.0.2.2:80", **changes}
    return Relay(**values)  # type: ignore[arg-type]


def with_relay(host: Host) -> Host:
    """web's record names a mapping of portfwd."""
    own = host.attachments[0].operations
    return with_attachment(host, operations=(*own, worlds.operation("portmap", worlds.relayed())))


def foreign(host: Host) -> Host:
    return with_root(host, links=(*host.root.links, worlds.link(20, "tap0", "tun", master="cni0")))


def without_links(host: Host, *names: str) -> Host:
    return with_root(host, links=tuple(link for link in host.root.links if link.name not in names))


def without_bridge(host: Host) -> Host:
    links = [replace(link, master="") for link in host.root.links if link.name != "cni0"]
    lan = links[1]
    links[1] = replace(lan, addresses=(*lan.addresses, Address("192.0.2.1", 24)))
    return with_root(host, links=tuple(links))


CASES: dict[str, Callable[[Host], Host]] = {
    "table-missing": lambda host: with_root(
        replace(without_port(host), masquerades=()), nftables=worlds.nftables(without="inet")
    ),
    "table-incomplete": lambda host: with_root(host, nftables=worlds.nftables(layout=LAYOUT)),
    "rules-lost": without_port,
    "link-missing": lambda host: without_links(host, WEB.host_veth),
    "link-down": lambda host: with_link(host, "cni0", up=False),
    "bridge-missing": without_bridge,
    "port-without-bridge": lambda host: with_link(host, WEB.host_veth, master=""),
    "gateway-missing": lambda host: with_link(host, "cni0", addresses=()),
    "forwarding-off": lambda host: with_root(host, sysctls=(("net.ipv4.ip_forward", "0"),)),
    "duplicate-address": lambda host: with_link(host, "lan0", addresses=(Address("192.0.2.2", 24),)),
    "dad-failed": lambda host: with_link(
        host, "lan0", addresses=(Address("2001:db8::1", 64, flags=("tentative", "dadfailed")),)
    ),
    "reservation-missing": lambda host: reservations(host, reservations=host.pools[0].reservations[1:]),
    "pool-full": lambda host: reservations(host, ranges=("192.0.2.1-192.0.2.3",), sizes=(2,)),
    "pool-nearly-full": crowded,
    "network-unreadable": lambda host: replace(host, networks=(replace(host.networks[0], problem="not JSON"),)),
    "portfwd-not-running": with_relay,
    "relay-problem": lambda host: replace(
        with_relay(host), portfwd="running 0.1.0", relays=(relay(problem="no answer from 192.0.2.2:80"),)
    ),
    "relay-missing": lambda host: replace(with_relay(host), portfwd="running 0.1.0"),
    "host-address-missing": lambda host: more_ports(host, replace(host.ports[0], host_address="203.0.113.1")),
    "target-missing": lambda host: more_ports(
        host, replace(host.ports[0], first=81, last=81, target="192.0.2.99", source="docker")
    ),
    "port-claimed-twice": lambda host: more_ports(
        host, replace(host.ports[0], target="192.0.2.3", container_id="db", place="DOCKER")
    ),
    "listener-shadowed": lambda host: with_root(
        host, sockets=(Socket("tcp", "198.51.100.1", 8080, pid=7, program="httpd"),)
    ),
    "listens-on-loopback": lambda host: with_container(host, 1, sockets=(Socket("tcp", "127.0.0.1", 80),)),
    "attachment-dead": lambda host: with_attachment(host, live="dead", reason="its network namespace is gone"),
    "add-unfinished": lambda host: with_attachment(host, unfinished=True),
    "orphan-link": lambda host: replace(host, attachments=host.attachments[:1], masquerades=host.masquerades[:1]),
    "orphan-port": lambda host: more_ports(
        host, replace(host.ports[0], first=81, last=81, target="192.0.2.3", container_id="gone")
    ),
    "address-leaked": lambda host: held(host, live="dead"),
    "foreign-port": foreign,
    "nothing-listens": lambda host: with_container(host, 1, sockets=()),
}


def codes(host: Host) -> set[str]:
    return {one.code for one in findings(host)}


def test_an_address_that_is_reserved_by_hand_is_given_back_by_hand() -> None:
    (one,) = findings(CASES["reservation-missing"](healthy()))
    for act in ("reserve", "release"):
        assert f"cni-py ipam {act} 192.0.2.2 --network lab" in one.do


def test_a_healthy_host_has_no_findings() -> None:
    assert findings(healthy()) == ()


@pytest.mark.parametrize("code", CASES)
def test_each_code_is_found_alone(code: str) -> None:
    found = findings(CASES[code](healthy()))
    assert {one.code for one in found} == {code}, found
    assert all(one.level == CODES[one.code][0] and one.subject and one.what for one in found)


def test_every_code_has_a_case() -> None:
    assert CASES.keys() == CODES.keys() - {"not-seen"}  # of gaps alone


def test_the_document_has_the_table() -> None:
    lines = [f"| `{code}` | {level} | {meaning} |" for code, (level, meaning) in CODES.items()]
    assert "\n".join(lines) in DOCUMENT.read_text()


def test_errors_come_first() -> None:
    host = with_link(with_container(healthy(), 1, sockets=()), "cni0", up=False)
    assert [one.level for one in findings(host)] == ["error", "note"]


def test_an_unknown_code_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        finding("made-up", "link lo", "it is up")


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("guarded4", "protection of 192.0.2.2"),
        ("policed", "the policy of cni0"),
        ("spoof_checked", "the source check of"),
        ("isolated", "the isolation of"),
    ],
)
def test_elements_of_sets_are_missed(lost: str, words: str) -> None:
    (one,) = findings(with_root(healthy(), nftables=worlds.nftables(without=lost)))
    assert one.code == "rules-lost"
    assert words in one.what


def of_firewalld(*sources: str) -> Host:
    """The healthy host with firewalld's rules for these sources, of which web's address should be one."""
    bound = worlds.operation("firewall", BindSource(source="192.0.2.2/32", zone="trusted"))
    web = healthy().attachments[0]
    ruleset = json.loads(worlds.nftables())
    table = {"family": "inet", "table": "firewalld"}
    ruleset["nftables"].append({"table": {"family": "inet", "name": "firewalld"}})
    for source in sources:
        match = {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": source}
        go = {"goto": {"target": "filter_FWD_trusted"}}
        ruleset["nftables"].append({"rule": {**table, "chain": "zones", "handle": 7, "expr": [{"match": match}, go]}})
    host = with_root(healthy(), nftables=json.dumps(ruleset))
    return replace(host, attachments=(replace(web, operations=(*web.operations, bound)), *host.attachments[1:]))


def test_a_source_that_firewalld_forgot_is_missed() -> None:
    assert findings(of_firewalld("192.0.2.3", "192.0.2.2")) == ()
    (one,) = findings(of_firewalld("192.0.2.3"))
    assert (one.code, one.do) == ("rules-lost", "cni-py restore")
    assert "192.0.2.2/32 in firewalld's zone trusted" in one.what
    assert findings(with_root(of_firewalld(), nftables=worlds.nftables())) == ()  # firewalld does not run


def test_masquerading_is_missed() -> None:
    (one,) = findings(replace(healthy(), masquerades=healthy().masquerades[1:]))
    assert (one.code, one.subject) == ("rules-lost", "container web")
    assert "masquerading of 192.0.2.2" in one.what


def test_nothing_is_missed_of_a_ruleset_that_was_not_read() -> None:
    assert findings(with_root(without_port(replace(healthy(), masquerades=())), nftables="")) == ()


def test_nobody_is_an_orphan_while_records_are_not_seen() -> None:
    host = replace(CASES["orphan-port"](CASES["orphan-link"](healthy())), attachments=())
    gap = finding("not-seen", "host", f"{RECORDS} in /run/cni-py/attachments cannot be read")
    assert codes(host) == {"orphan-link", "orphan-port"}
    assert codes(replace(host, gaps=(gap,))) == set()


def test_the_dead_are_missed_nothing() -> None:
    """What was made for a container that is gone may be gone, too."""
    host = without_links(with_attachment(without_port(healthy()), live="dead"), WEB.host_veth)
    assert codes(host) == {"attachment-dead"}


def test_a_router_behind_the_bridge_may_be_the_gateway() -> None:
    host = with_link(healthy(), "cni0", addresses=())
    assert codes(with_link(host, "lan0", master="cni0")) == {"foreign-port"}


def test_a_gateway_comes_back_to_the_bridge_also_where_the_port_has_left_it() -> None:
    host = with_attachment(with_link(healthy(), "cni0", addresses=()), bridge="")
    assert {one.do for one in findings(host) if one.code == "gateway-missing"} == {
        "ip address add 192.0.2.1/24 dev cni0"
    }
    ptp = with_attachment(host, network="other", plugins=("ptp",))
    assert "cni-py restore" in [one.do for one in findings(ptp) if one.code == "gateway-missing"]


def test_a_gateway_of_another_pair_is_none_of_ptp() -> None:
    """cni0 has the address: for a container of ptp that is any other link of the host."""
    host = with_attachment(healthy(), plugins=("ptp",), bridge="")
    assert [one.subject for one in findings(host) if one.code == "gateway-missing"] == ["link cni0"]
    here = with_link(host, WEB.host_veth, addresses=(Address("192.0.2.1", 32),))
    assert "gateway-missing" not in codes(here)


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan", "vlan"])
def test_a_parent_that_is_down_is_named(kind: str) -> None:
    host = with_link(healthy(), "lan0", up=False)
    assert "link-down" not in codes(host)
    parent = next(link for link in host.root.links if link.name == "lan0")
    links = tuple(
        replace(link, kind=kind, peer_index=parent.index, peer_namespace=host.root.key) if link.name == "eth0" else link
        for link in host.namespaces[1].links
    )
    (found,) = [one for one in findings(with_container(host, 1, links=links)) if one.code == "link-down"]
    assert (found.subject, found.do) == ("link lan0", "ip link set lan0 up")


def test_a_living_container_without_its_address_is_no_matter_for_gc() -> None:
    lost = with_container(healthy(), 1, links=())
    assert {one.do for one in findings(lost) if one.code == "target-missing"} == {"start the container anew"}
    stranger = CASES["target-missing"](healthy())
    gone = replace(stranger, attachments=tuple(replace(one, live="dead") for one in stranger.attachments))
    assert {one.do for one in findings(gone) if one.code == "target-missing"} == {"cni-py gc, or publish the port anew"}


def test_the_ends_of_two_ptp_pairs_may_share_an_address() -> None:
    """Such an address has no subnet, so that the host's links do not compete for it; a container that has it does."""
    shared = (Address("203.0.113.1", 32), Address("2001:db8:47::1", 128))
    host = with_link(with_link(healthy(), "lan0", addresses=shared), WEB.host_veth, addresses=shared)
    assert "duplicate-address" not in codes(host)
    taken = with_link(healthy(), "lan0", addresses=(Address("192.0.2.2", 32),))
    assert "duplicate-address" in codes(taken)


def test_an_add_that_has_just_begun_is_no_finding() -> None:
    assert findings(with_attachment(healthy(), unfinished=True, since=TAKEN - 1)) == ()


@pytest.mark.parametrize(
    "socket",
    [
        Socket("tcp", "::1", 8080, pid=7, program="httpd"),  # NAT takes nothing there
        Socket("tcp", "127.0.0.1", 8080, pid=7, program="httpd"),
        Socket("udp", EVERYWHERE, 8080, pid=7, program="httpd"),
        Socket("tcp", EVERYWHERE, 8081, pid=7, program="httpd"),
        Socket("tcp", "::", 8080, v6only=True, pid=7, program="httpd"),
        Socket("tcp", EVERYWHERE, 8080, pid=7, program="docker-proxy"),
        Socket("tcp", EVERYWHERE, 8080, pid=7, program="sleep"),  # nerdctl's reserver
    ],
)
def test_listeners_that_lose_no_clients_are_no_finding(socket: Socket) -> None:
    assert findings(with_root(healthy(), sockets=(socket,))) == ()


@pytest.mark.parametrize("socket", [Socket("tcp", "::", 8080, pid=7, program="httpd")])
def test_a_socket_of_both_families_loses_its_clients(socket: Socket) -> None:
    assert codes(with_root(healthy(), sockets=(socket,))) == {"listener-shadowed"}


def test_a_port_that_is_shared_leads_to_several() -> None:
    host = port(healthy(), shared=True)
    assert findings(more_ports(host, replace(host.ports[0], target="192.0.2.3", container_id="db"))) == ()


def test_a_range_is_counted_by_itself() -> None:
    """The addresses of a /64 do not make a full IPv4 range look empty."""
    host = reservations(
        healthy(), ranges=("192.0.2.2-192.0.2.3", "2001:db8::1-2001:db8::ffff:ffff:ffff:ffff"), sizes=(2, 2**64 - 1)
    )
    assert [(one.code, one.subject) for one in findings(host)] == [("pool-full", "network lab")]


def test_forwarding_counts_for_the_families_that_containers_route() -> None:
    host = with_root(healthy(), sysctls=(("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "0")))
    assert findings(host) == ()
    link = worlds.link(2, "eth0", "veth", Address("192.0.2.2", 24), Address("2001:db8::2", 64), peer_index=10)
    routes = (*host.namespaces[1].routes, Route(6, 254, "::/0", gateway="2001:db8::1", link="eth0"))
    routed = with_container(host, 1, links=(worlds.loopback(), link), routes=routes)
    assert codes(with_link(routed, "cni0", addresses=(Address("192.0.2.1", 24), Address("2001:db8::1", 64)))) == {
        "forwarding-off"
    }
