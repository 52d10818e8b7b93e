"""Where a published port answers, in words."""

import json

import pytest

from cni_py.addr import parse_address, parse_ip
from cni_py.commands import portspec
from cni_py.commands.describe import Host, is_own, serves_loopback
from cni_py.protocol import conflist
from cni_py.protocol.result import Interface, IPConfig, Result

V4 = IPConfig(parse_address("10.87.0.2/16"), parse_ip("10.87.0.1"))
V6 = IPConfig(parse_address("fd00:87::2/64"), parse_ip("fd00:87::1"))
HELD = [
    parse_address(text)
    for text in (
        *("127.0.0.1/8", "::1/128", "fe80::1/64", "10.87.0.1/16", "fd00:87::1/64"),
        *("198.51.100.1/24", "2001:db8:1::1/64"),
    )
]


@pytest.mark.parametrize(
    ("ips", "spec", "wanted"),
    [
        ([V4, V6], "1:2", "at 198.51.100.1:1, [2001:db8:1::1]:1, 127.0.0.1:1 on this host"),
        ([V4], "1:2", "at 198.51.100.1:1, 127.0.0.1:1 on this host"),
        ([V6], "1:2", "at [2001:db8:1::1]:1"),
        ([V4, V6], "0.0.0.0:1:2", "at 198.51.100.1:1, 127.0.0.1:1 on this host"),
        ([V4, V6], "[::]:1:2", "at [2001:db8:1::1]:1"),
        ([V4, V6], "127.0.0.1:1:2", "at 127.0.0.1:1, only on this host"),
        ([V4, V6], "[2001:db8:1::1]:1:2", "at [2001:db8:1::1]:1"),
        ([V4, V6], "10.87.0.1:1:2", "at 10.87.0.1:1"),
        ([V4, V6], "[::1]:1:2", "nowhere: NAT cannot serve [::1]; start portfwd, which can"),
        ([V4, V6], "192.0.2.9:1:2", "nowhere: the host has no address 192.0.2.9"),
        ([V4], "[2001:db8:1::1]:1:2", "nowhere: the container has no address of that family"),
        ([], "1:2", "nowhere: host and container have no address family in common"),
    ],
)
def test_where_a_port_answers(ips: list[IPConfig], spec: str, wanted: str) -> None:
    (mapping,) = portspec.parse(spec)
    assert Host.of(ips, HELD, local=True).answering(mapping.to_json()) == f"answers {wanted}"


@pytest.mark.parametrize(
    ("spec", "wanted"), [("1:2", "at 198.51.100.1:1"), ("127.0.0.1:1:2", "nowhere: portmap has snat: false")]
)
def test_without_source_nat_nothing_answers_at_loopback(spec: str, wanted: str) -> None:
    text = json.dumps({"name": "one", "plugins": [{"type": "bridge"}, {"type": "portmap", "snat": False}]})
    local = serves_loopback(conflist.parse(text.encode(), "a.conflist"))
    (mapping,) = portspec.parse(spec)
    assert Host.of([V4], HELD, local).answering(mapping.to_json()) == f"answers {wanted}"


@pytest.mark.parametrize(
    ("ips", "spec", "wanted"),
    [
        ([V4, V6], "1:2", "at 198.51.100.1:1, [2001:db8:1::1]:1, 127.0.0.1:1 on this host, [::1]:1 on this host"),
        ([V4], "[2001:db8:1::1]:1:2", "at [2001:db8:1::1]:1"),
        ([V4, V6], "[::1]:1:2", "at [::1]:1, only on this host"),
        ([], "1:2", "nowhere: host and container have no address family in common"),
    ],
)
def test_with_portfwd_it_answers_in_both_families(ips: list[IPConfig], spec: str, wanted: str) -> None:
    (mapping,) = portspec.parse(spec)
    assert Host.of(ips, HELD, local=True, relayed=True).answering(mapping.to_json()) == f"answers {wanted}"


def test_a_host_without_ipv6_answers_at_none_of_it() -> None:
    (mapping,) = portspec.parse("1:2")
    held = [address for address in HELD if address.family == 4]
    wanted = "answers at 198.51.100.1:1, 127.0.0.1:1 on this host"
    assert Host.of([V4], held, local=True, relayed=True).answering(mapping.to_json()) == wanted


def test_the_addresses_of_the_container_are_told_from_the_host_s() -> None:
    result = Result([Interface("cni0"), Interface("eth0", sandbox="/run/netns/c1")], [], [])
    assert [is_own(result, index, "eth0") for index in (0, 1, None, 7)] == [False, True, True, True]
