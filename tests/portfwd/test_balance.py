"""Which target a connection goes to, and what the PROXY protocol tells it: pure."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as some

from portfwd import proxyproto
from portfwd.balance import Balancer
from portfwd.mapping import Target

TARGETS = [Target(f"192.0.2.{number}", 80) for number in range(1, 6)]
CLIENTS = [f"198.51.100.{number}" for number in range(1, 201)]


@given(some.integers(1, 5), some.integers(1, 40))
def test_round_robin_gives_every_target_its_share(count: int, rounds: int) -> None:
    balancer = Balancer(TARGETS[:count], "round-robin")
    firsts = [balancer.order("198.51.100.1", 0.0)[0] for _ in range(count * rounds)]
    assert {target: firsts.count(target) for target in TARGETS[:count]} == dict.fromkeys(TARGETS[:count], rounds)


@given(some.sampled_from(["round-robin", "source"]), some.sets(some.sampled_from(TARGETS)), some.sampled_from(CLIENTS))
def test_every_target_is_tried_once_and_those_taken_for_dead_last(how: str, dead: set[Target], client: str) -> None:
    balancer = Balancer(TARGETS, how)
    for target in dead:
        balancer.failed(target, 100.0)
    order = balancer.order(client, 101.0)
    assert sorted(map(str, order)) == sorted(map(str, TARGETS))
    assert set(order[len(TARGETS) - len(dead) :]) == dead
    assert set(balancer.dead(101.0)) == dead


def test_a_client_keeps_its_target_and_only_those_of_a_lost_target_move() -> None:
    all_of_them, without_first = Balancer(TARGETS, "source"), Balancer(TARGETS[1:], "source")
    before = {client: all_of_them.order(client, 0.0)[0] for client in CLIENTS}
    assert before == {client: all_of_them.order(client, 9.0)[0] for client in CLIENTS}
    after = {client: without_first.order(client, 0.0)[0] for client in CLIENTS}
    assert {client for client in CLIENTS if before[client] != after[client]} == {
        client for client in CLIENTS if before[client] == TARGETS[0]
    }
    assert all(list(before.values()).count(target) > len(CLIENTS) / 10 for target in TARGETS)


def test_a_dead_target_is_tried_by_one_connection_and_comes_back_when_that_works() -> None:
    balancer = Balancer(TARGETS[:2], "round-robin", dead_s=10.0)
    balancer.failed(TARGETS[0], 0.0)
    assert [balancer.order("c", 5.0)[0] for _ in range(3)] == [TARGETS[1]] * 3
    assert [balancer.order("c", 10.0)[0] for _ in range(4)].count(TARGETS[0]) == 1
    balancer.worked(TARGETS[0])
    assert [balancer.order("c", 11.0)[0] for _ in range(4)].count(TARGETS[0]) == 2


def parsed(header: bytes) -> tuple[str, str, int, str, int]:
    """Protocol, source and destination of a version 2 header, read independently of the code that wrote it."""
    assert header[:12] == bytes.fromhex("0d0a0d0a000d0a515549540a")
    assert header[12] == 0x21
    family, transport = header[13] >> 4, header[13] & 15
    size = {1: 4, 2: 16}[family]
    assert int.from_bytes(header[14:16], "big") == len(header) - 16 == 2 * size + 4
    ends = [str(ipaddress.ip_address(header[16 + place * size : 16 + (place + 1) * size])) for place in (0, 1)]
    ports = [int.from_bytes(header[16 + 2 * size + 2 * place :][:2], "big") for place in (0, 1)]
    return {1: "tcp", 2: "udp"}[transport], ends[0], ports[0], ends[1], ports[1]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@given(some.ip_addresses(v=4), some.integers(0, 65535), some.ip_addresses(v=4), some.integers(1, 65535))
def test_version_2_says_both_ends(
    protocol: str, client: ipaddress.IPv4Address, client_port: int, host: ipaddress.IPv4Address, port: int
) -> None:
    header = proxyproto.header(2, protocol, (str(client), client_port), (str(host), port))
    assert parsed(header) == (protocol, str(client), client_port, str(host), port)


def test_version_2_has_ipv6_without_zones_and_maps_a_mixed_pair() -> None:
    header = proxyproto.header(2, "tcp", ("fe80::1%eth0", 5), ("2001:db8::2", 80))
    assert parsed(header) == ("tcp", "fe80::1", 5, "2001:db8::2", 80)
    mixed = proxyproto.header(2, "tcp", ("192.0.2.7", 5), ("2001:db8::2", 80))
    assert parsed(mixed)[1:] == (str(ipaddress.ip_address("::ffff:192.0.2.7")), 5, "2001:db8::2", 80)
    assert parsed(proxyproto.header(2, "tcp", ("::ffff:192.0.2.7", 5), ("192.0.2.2", 80)))[1] == "192.0.2.7"


@pytest.mark.parametrize(
    ("client", "host", "line"),
    [
        (("192.168.0.1", 56324), ("192.168.0.11", 443), b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"),
        (("2001:db8::1", 1), ("2001:db8::2", 2), b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n"),
    ],
)
def test_version_1_is_a_line_of_text(client: tuple[str, int], host: tuple[str, int], line: bytes) -> None:
    assert proxyproto.header(1, "tcp", client, host) == line
