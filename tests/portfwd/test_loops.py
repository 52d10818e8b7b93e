"""Targets that lead back to portfwd itself: refused when publishing where it is plain, and else noticed when a client comes."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
from collections.abc import Iterator

import pytest
from lab import ANSWER_S, Lab
from node import Node

from portfwd.netns.legs import UNSURE_MAX, Legs
from tests.portfwd import talk
from tests.portfwd.publisher import SOCKET, STATE, Publisher, exchange, serving

PORT = 8080
VIP = {4: "203.0.113.1", 6: "2001:db8:99::1"}  # comes to this host when the mappings are there
ELSEWHERE = {4: "203.0.113.2", 6: "2001:db8:99::2"}  # is led back by somebody's NAT
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
BRIDGED = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8:2::1", "2001:db8:2::2")}  # the host's address and c1's
ANY = ["0.0.0.0", "::"]
HOST = {4: "198.51.100.1", 6: "2001:db8:1::1"}
QUIET_S = 0.2  # a datagram in a loop goes round hundreds of times
NAT = """
add table inet led_back
add chain inet led_back output { type nat hook output priority -100; }
add rule inet led_back output """

both = pytest.mark.parametrize("protocol", ["tcp", "udp"])
families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def machine() -> Iterator[Lab]:
    with Lab.from_yaml("lan.yaml") as lab:
        host, c1 = lab["host"], lab["c1"]
        host.run(["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", c1.netns], check=True)
        for node, link, place in ((host, "v0", 0), (c1, "v1", 1)):
            node.run(["ip", "link", "set", "lo", "up"], check=True)
            node.run(["ip", "link", "set", link, "up"], check=True)
            for family, (length, *nodad) in ((4, ("24",)), (6, ("64", "nodad"))):
                node.run(["ip", "addr", "add", f"{BRIDGED[family][place]}/{length}", "dev", link, *nodad], check=True)
        for family in (4, 6):
            c1.run(["ip", f"-{family}", "route", "add", "default", "via", BRIDGED[family][0]], check=True)
            for address in (VIP[family], ELSEWHERE[family]):
                host.run(["ip", f"-{family}", "route", "add", address, "dev", "lan0"], check=True)
        yield lab


@pytest.fixture(scope="module")
def service(machine: Lab) -> Iterator[Publisher]:
    with serving(machine["host"]) as publisher:
        yield publisher


@pytest.fixture
def host(service: Publisher) -> Iterator[Node]:
    yield service.node
    service.ask("remove", ids=[one["id"] for one in service.ask("list")["mappings"]], drain_s=0.0)
    for address in VIP.values():
        service.node.run(["ip", "addr", "del", address, "dev", "lo"])


def mapping(name: str, protocol: str, first: int, *targets: tuple[str, int], **place: object) -> dict[str, object]:
    led = [{"address": address, "port": port, **place} for address, port in targets]
    return {"id": name, "protocol": protocol, "host_ips": ANY, "first": first, "last": first, "targets": led}


def publish(service: Publisher, *mappings: dict[str, object]) -> None:
    answer = service.ask("publish", mappings=list(mappings))
    assert answer["ok"] is True, answer


def moves_here(host: Node) -> None:
    for address in VIP.values():
        host.run(["ip", "addr", "add", address, "dev", "lo"], check=True)
    assert host.python(talk.until, is_here)


def is_here() -> bool:
    """The kernel takes an IPv6 address into use a moment after it was added."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind((VIP[6], 0))
        return True
    return False


def turned_away(lab: Lab, service: Publisher, protocol: str, address: str) -> dict[str, dict[str, int]]:
    """One client, or one datagram: what the mappings have counted when a loop was noticed and all is quiet again."""
    with pytest.raises((ConnectionError, TimeoutError)):
        lab.fetch("host", address, PORT, protocol, timeout_s=QUIET_S if protocol == "udp" else ANSWER_S)
    assert talk.until(lambda: any(one["loops"] for one in service.ask("stats")["mappings"].values()))
    before: object = None
    while before != (before := service.ask("stats")["mappings"]):
        pass
    assert isinstance(before, dict)
    return before


@both
@families
@pytest.mark.parametrize("others", [0, 1, 2])
def test_what_comes_to_lead_back_is_noticed_at_the_first_return(
    machine: Lab, service: Publisher, host: Node, protocol: str, family: int, others: int
) -> None:
    """A mapping to itself, and circles of two and three, once the address has moved here."""
    ports = [PORT + step for step in range(others + 1)]
    ring = zip(ports, [*ports[1:], ports[0]], strict=True)
    publish(service, *(mapping(f"m{first}", protocol, first, (VIP[family], to)) for first, to in ring))
    moves_here(host)
    counted = turned_away(machine, service, protocol, LOOPBACK[family])
    assert [counted[f"m{port}"]["connections"] for port in ports] == [1] * len(ports)
    assert [counted[f"m{port}"]["loops"] for port in ports] == [1] + [0] * others


@contextlib.contextmanager
def led_back(node: Node, protocol: str, family: int, to: str) -> Iterator[None]:
    """A NAT that takes what a node sends ELSEWHERE to an address of the host."""
    word, written = ("ip6", f"[{to}]") if family == 6 else ("ip", to)
    rule = f"{word} daddr {ELSEWHERE[family]} {protocol} dport 80 dnat {word} to {written}:{PORT}"
    node.run(["nft", "-f", "-"], input=NAT + rule, check=True)
    yield
    node.run(["nft", "delete", "table", "inet", "led_back"], check=True)


@both
@families
def test_a_way_back_through_a_nat_of_this_host_is_noticed(
    machine: Lab, service: Publisher, host: Node, protocol: str, family: int
) -> None:
    publish(service, mapping("a", protocol, PORT, (ELSEWHERE[family], 80)))
    with led_back(host, protocol, family, HOST[family]):
        counted = turned_away(machine, service, protocol, LOOPBACK[family])["a"]
    assert (counted["connections"], counted["loops"]) == (1, 1)


@both
@families
def test_what_a_nat_of_another_namespace_hides_is_noticed_after_some_rounds(
    machine: Lab, service: Publisher, host: Node, protocol: str, family: int
) -> None:
    publish(service, mapping("a", protocol, PORT, (ELSEWHERE[family], 80), path=machine["c1"].proc_netns))
    with led_back(machine["c1"], protocol, family, BRIDGED[family][0]):
        counted = turned_away(machine, service, protocol, LOOPBACK[family])["a"]
    assert (counted["connections"], counted["loops"]) == (UNSURE_MAX, 1)


@both
@families
def test_a_way_back_from_a_container_is_noticed(
    machine: Lab, service: Publisher, host: Node, protocol: str, family: int
) -> None:
    publish(service, mapping("a", protocol, PORT, (BRIDGED[family][0], PORT), path=machine["c1"].proc_netns))
    counted = turned_away(machine, service, protocol, LOOPBACK[family])["a"]
    assert (counted["connections"], counted["loops"]) == (1, 1)


def before_and_after(lab: Lab) -> None:
    """A datagram of one client before a reload, and another when the address has moved here."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((LOOPBACK[4], PORT))
        sock.send(b"before")
        assert talk.until(lambda: exchange(SOCKET, {"verb": "stats"})["mappings"]["a"]["active"] == 1)
        exchange(SOCKET, {"verb": "reload"})
        moves_here(lab["host"])
        sock.send(b"after")
        assert talk.until(lambda: exchange(SOCKET, {"verb": "stats"})["mappings"]["a"]["loops"] == 1)


def test_a_flow_that_was_handed_over_is_known_when_it_comes_back(machine: Lab, service: Publisher, host: Node) -> None:
    publish(service, mapping("a", "udp", PORT, (VIP[4], PORT)))
    host.python(before_and_after, machine)
    assert service.stats("a")["connections"] == 1


@both
@families
def test_a_chain_of_mappings_is_no_loop(
    machine: Lab, service: Publisher, host: Node, protocol: str, family: int
) -> None:
    target = (BRIDGED[family][1], 80)
    publish(
        service, mapping("a", protocol, PORT, (LOOPBACK[family], PORT + 1)), mapping("b", protocol, PORT + 1, target)
    )
    server = machine.serve("c1", 80, protocol, address=BRIDGED[family][1])
    assert machine.fetch("host", LOOPBACK[family], PORT, protocol).name == "c1"
    server.stop()


@contextlib.contextmanager
def one_port(*nodes: Node) -> Iterator[None]:
    """The kernel has one port to choose for who dials."""
    setting = "net.ipv4.ip_local_port_range"
    usual = [(node, node.run(["sysctl", "-n", setting], check=True).stdout.strip()) for node in nodes]
    for node in nodes:
        node.run(["sysctl", "-w", f"{setting}=40000 40000"], check=True)
    try:
        yield
    finally:
        for node, before in usual:
            node.run(["sysctl", "-w", f"{setting}={before}"], check=True)


@both
def test_where_nobody_listens_no_socket_is_its_own_target(
    machine: Lab, service: Publisher, host: Node, protocol: str
) -> None:
    """Who dials the port that the kernel gives him is connected to himself, and would answer clients with their question."""
    publish(service, mapping("a", protocol, PORT, (LOOPBACK[4], 40000)))
    with one_port(host), pytest.raises((ConnectionError, TimeoutError)):
        machine.fetch("host", LOOPBACK[4], PORT, protocol, source=LOOPBACK[4], source_port=33000, timeout_s=QUIET_S)
    assert talk.until(lambda: service.stats("a")["failed"] == 1)


@families
def test_a_client_that_has_the_port_of_a_connection_of_ours_is_served(
    machine: Lab, service: Publisher, host: Node, family: int
) -> None:
    """Two TCP connections have one local address and port where they lead to different places, or are in two namespaces."""
    server = machine.serve("c1", 80, address=LOOPBACK[family])
    beside = machine.serve("host", 81, says="beside", address=LOOPBACK[family])
    inside = {"path": machine["c1"].proc_netns}
    publish(service, mapping("a", "tcp", 80, (LOOPBACK[family], 80), **inside))
    publish(service, mapping("b", "tcp", PORT, (LOOPBACK[family], 81)))
    with one_port(host, machine["c1"]):
        assert machine.fetch("host", LOOPBACK[family], 80).name == "c1"
        assert machine.fetch("host", LOOPBACK[family], PORT).name == "beside"
    for one in (server, beside):
        one.stop()


def test_what_plainly_leads_back_is_refused_when_publishing(machine: Lab, service: Publisher, host: Node) -> None:
    own = {"pid": service.pid()}
    refused: list[tuple[str, list[dict[str, object]]]] = [
        (f"{protocol} to {address}", [mapping("a", protocol, PORT, (address, PORT))])
        for protocol in ("tcp", "udp")
        for address in (
            "0.0.0.0",
            "127.0.0.1",
            "127.0.0.9",
            "::",
            "::1",
            str(ipaddress.ip_address("::ffff:127.0.0.1")),
            HOST[4],
            HOST[6],
        )
    ]
    refused += [
        ("a process of this namespace", [mapping("a", "tcp", PORT, (HOST[4], PORT), **own)]),
        ("a wildcard, from one address", [{**mapping("a", "udp", PORT, ("0.0.0.0", PORT)), "host_ips": ["127.0.0.1"]}]),
        ("one of two targets", [mapping("a", "tcp", PORT, (BRIDGED[4][1], 80), ("::1", PORT))]),
        ("a range into itself", [{**mapping("a", "tcp", 8000, ("127.0.0.1", 8050)), "last": 8099}]),
        ("a ring", [mapping(f"m{one}", "udp", 80 + one, ("::", 80 + (one + 1) % 3)) for one in range(3)]),
    ]
    for what, mappings in refused:
        answer = service.ask("publish", mappings=mappings)
        assert answer["ok"] is False, what
        assert answer["error"]["kind"] == "usage", what
        assert "leads back to itself" in answer["error"]["msg"], what
    assert service.ask("list")["mappings"] == []


def test_a_target_that_is_no_machine_is_refused_of_anybody(service: Publisher, host: Node) -> None:
    for address, kind in (("ff02::1", "multicast"), ("fe80::2", "link-local"), ("255.255.255.255", "broadcast")):
        answer = service.ask("publish", mappings=[mapping("a", "udp", PORT, (address, 80))])
        assert kind in answer["error"]["msg"]
    some = [mapping("a", "udp", PORT, ("ff02::1", 80)), mapping("b", "udp", PORT, (BRIDGED[4][1], 80))]
    answer = service.ask("publish", mappings=some, may_fail=True)
    assert (answer["ids"], "multicast" in answer["notes"][0]) == (["b"], True)


def test_what_leads_elsewhere_is_not_taken_for_a_loop(service: Publisher, host: Node) -> None:
    """Also where any address can be bound; and a mapping that would close a ring can be led elsewhere, not back."""
    host.run(["sysctl", "-w", "net.ipv4.ip_nonlocal_bind=1"], check=True)
    publish(service, mapping("remote", "tcp", 81, (BRIDGED[4][1], 81)))
    host.run(["sysctl", "-w", "net.ipv4.ip_nonlocal_bind=0"], check=True)
    publish(service, {**mapping("other", "tcp", 82, ("127.0.0.2", 82)), "host_ips": ["127.0.0.1"]})
    publish(service, mapping("udp", "udp", 83, ("127.0.0.1", 84)), mapping("tcp", "tcp", 84, ("127.0.0.1", 83)))
    publish(service, mapping("chain", "tcp", 85, ("127.0.0.1", 84)))
    answer = service.ask("publish", mappings=[mapping("tcp", "tcp", 84, ("::1", 85))], replace=True)
    assert "leads back to itself, by way of chain" in answer["error"]["msg"]
    answer = service.ask("publish", mappings=[mapping("tcp", "tcp", 84, ("127.0.0.1", 86))], replace=True)
    assert answer["ok"] is True


def test_a_loop_on_disk_waits_and_hurts_nobody(machine: Lab) -> None:
    loop = mapping("loop", "udp", PORT, ("0.0.0.0", PORT))
    write = f"mkdir -p {STATE}/mappings; cat >{STATE}/mappings/loop.json"
    machine["client"].run(["sh", "-c", write], input=json.dumps({"schema": 1, "mapping": loop}), check=True)
    with serving(machine["client"]) as service:
        [listed] = service.ask("list")["mappings"]
    assert "leads back to itself" in listed["state"]["waiting"]


def test_the_loopback_of_another_namespace_is_nobodys_address_here() -> None:
    """Nor is a connection that was closed a moment ago forgotten, which may wait to be accepted."""
    legs = Legs(unshared=False)
    with talk.listening(0) as listener, talk.connect(listener.getsockname()[1]) as sock:
        asked = listener.getsockname()
        assert legs.add(sock, Nobody(), None, None, asked, here=False) is None
        leg = legs.add(sock, Nobody(), None, None, asked, here=True)
        found = []
        assert leg is not None
        legs.forget(leg, linger=True)
        for _ in range(3):
            found.append(legs.at(sock.getsockname()) is not None)
            legs.sweep()
    assert found == [True, True, False]


class Nobody:
    def came_back(self, owner: object, where: str) -> None:
        raise AssertionError(owner, where)
