"""docker's -p: what each form means, what is refused, and which ports are tried."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py.ports import local_ports
from portfwd import spec
from portfwd.errors import Usage
from portfwd.mapping import ANY, Place, peculiar
from portfwd.spec import Destination, Publish, Template, candidates, parse

TEMPLATE = Template((Destination("192.0.2.2"),))
EPHEMERAL = range(40000, 40100)


def ports(first: int, last: int = 0) -> range:
    return range(first, (last or first) + 1)


FORMS = {
    "80": Publish(ANY, None, ports(80), "tcp"),
    "80/tcp": Publish(ANY, None, ports(80), "tcp"),
    "80/": Publish(ANY, None, ports(80), "tcp"),
    "53:53/udp": Publish(ANY, ports(53), ports(53), "udp"),
    "53:53/UDP": Publish(ANY, ports(53), ports(53), "udp"),
    "8080:80": Publish(ANY, ports(8080), ports(80), "tcp"),
    "08080:0080": Publish(ANY, ports(8080), ports(80), "tcp"),
    "0:80": Publish(ANY, None, ports(80), "tcp"),
    ":80": Publish(ANY, None, ports(80), "tcp"),
    "::80": Publish(ANY, None, ports(80), "tcp"),
    ":8080:80": Publish(ANY, ports(8080), ports(80), "tcp"),
    "127.0.0.1:8080:80": Publish(("127.0.0.1",), ports(8080), ports(80), "tcp"),
    "127.0.0.1::80": Publish(("127.0.0.1",), None, ports(80), "tcp"),
    "0.0.0.0:8080:80": Publish(("0.0.0.0",), ports(8080), ports(80), "tcp"),
    "[::]:8080:80": Publish(("::",), ports(8080), ports(80), "tcp"),
    "[::1]:8080:80": Publish(("::1",), ports(8080), ports(80), "tcp"),
    "[::1]::80": Publish(("::1",), None, ports(80), "tcp"),
    "::1:8080:80": Publish(("::1",), ports(8080), ports(80), "tcp"),
    "2001:db8::1::80": Publish(("2001:db8::1",), None, ports(80), "tcp"),
    "[2001:DB8:0::1]:1:2/udp": Publish(("2001:db8::1",), ports(1), ports(2), "udp"),
    "[::ffff:192.0.2.1]:8080:80": Publish(("192.0.2.1",), ports(8080), ports(80), "tcp"),
    "8000-8010:80-90": Publish(ANY, ports(8000, 8010), ports(80, 90), "tcp"),
    "8000-8010:80": Publish(ANY, ports(8000, 8010), ports(80), "tcp"),
    "80-82": Publish(ANY, None, ports(80, 82), "tcp"),
    "127.0.0.1::80-82": Publish(("127.0.0.1",), None, ports(80, 82), "tcp"),
    "eth0:8080:80": Publish((), ports(8080), ports(80), "tcp", "if=eth0"),
    "br-lan.100::80/udp": Publish((), None, ports(80), "udp", "if=br-lan.100"),
    "dead:8080:80": Publish((), ports(8080), ports(80), "tcp", "if=dead"),  # no IPv6 address: it has no colon
    "if=127.1:8080:80": Publish((), ports(8080), ports(80), "tcp", "if=127.1"),
    "name=db.example:8080:80": Publish((), ports(8080), ports(80), "tcp", "name=db.example"),
    "65535:65535": Publish(ANY, ports(65535), ports(65535), "tcp"),
}


@pytest.mark.parametrize("text", FORMS)
def test_a_form_means_what_docker_means_by_it(text: str) -> None:
    assert parse(text) == FORMS[text]


REFUSED = {
    "127.1:8080:80": "is not an IP address",
    "[eth0]:8080:80": "is not an IP address",
    "if=:8080:80": "cannot be the name of an interface",
    "if=..:8080:80": "cannot be the name of an interface",
    "if=a b:8080:80": "cannot be the name of an interface",
    "sixteen-letters-:8080:80": "cannot be the name of an interface",
    "name=127.1:8080:80": "cannot be the name of a host",
    "name=0x7f000001:8080:80": "cannot be the name of a host",
    "name=2130706433:8080:80": "cannot be the name of a host",
    "name=-x:8080:80": "cannot be the name of a host",
    "name=a..b:8080:80": "cannot be the name of a host",
    "": "the container port is missing",
    "8080:": "the container port is missing",
    "127.0.0.1:8080:": "the container port is missing",
    "/tcp": "the container port is missing",
    "80/sctp": "SCTP: publish it with portmap",
    "80/SCTP": "SCTP: publish it with portmap",
    "80/icmp": "unknown protocol 'icmp'",
    "80/tcp/udp": "unknown protocol",
    "0": "'0' is not a port",
    "8080:0": "'0' is not a port",
    "65536:80": "'65536' is not a port",
    "+80": "not a port",
    "٨٠": "not a port",  # Arabic digits
    "1e3": "not a port",
    "8080: 80": "not a port",
    "0-5:80-85": "'0' is not a port",
    "90-80": "ends before it begins",
    "80-": "not a port",
    "8000-8010:80-85": "11 host ports cannot lead to 6 container ports",
    "8000:80-85": "1 host ports cannot lead to 6",
    "localhost:8080:80": "'localhost' is not an IP address",
    "1.2.3:8080:80": "not an IP address",
    "[::1:8080:80": "not closed",
    "[::1]:8080": "host port and container port follow",
    "[]:8080:80": "brackets hold an address",
    "[fe80::1%eth0]:8080:80": "cannot listen on fe80::1: it is a link-local address",
    "[fe80::1]:8080:80": "cannot listen on fe80::1: it is a link-local address",
    "[2001:db8::1%eth0]:8080:80": "names an interface",
    "[ff02::1%eth0]:8080:80": "a multicast address",
    "224.0.0.1:53:53/udp": "a multicast address",
    "9" * 5000: "not a port",
}


@pytest.mark.parametrize("text", REFUSED, ids=[text[:20] for text in REFUSED])
def test_what_has_no_meaning_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(Usage) as refusal:
        parse(text)
    assert REFUSED[text] in str(refusal.value)
    assert str(refusal.value).startswith(text)


port = st.integers(1, 65535)
addresses = st.one_of(
    st.just(ANY),
    st.ip_addresses().filter(lambda ip: "%" not in str(ip)).map(lambda ip: (spec.address("", str(ip)),)),
).filter(lambda ips: not any(map(peculiar, ips)))


@st.composite
def publishes(draw: st.DrawFn) -> Publish:
    first, length = draw(port), draw(st.integers(1, 100))
    container = ports(first, min(65535, first + length - 1))
    kind = draw(st.sampled_from(("random", "exact", "pool")))
    if kind == "random":
        host = None
    else:
        wanted = len(container) if kind == "exact" else draw(st.integers(1, 100))
        container = container if kind == "exact" else ports(first)
        start = draw(st.integers(1, 65536 - wanted))
        host = ports(start, start + wanted - 1)
    return Publish(draw(addresses), host, container, draw(st.sampled_from(("tcp", "udp"))))


@given(publishes())
def test_what_is_written_out_is_read_back_as_the_same(publish: Publish) -> None:
    assert parse(str(publish)) == publish


@given(st.one_of(st.text(), st.text("0123456789:.[]-/tcpudsfe%", max_size=40)))
def test_any_text_is_a_spec_or_refused(text: str) -> None:
    with suppress(Usage):
        found = parse(text)
        assert parse(str(found)) == found


@given(publishes())
def test_what_can_be_read_can_be_published(publish: Publish) -> None:
    for part in spec.parse_all([str(publish)]):
        for first in candidates(part, EPHEMERAL, 0):
            assert TEMPLATE.mapping("m", part, first).first == first


@given(st.one_of(st.text(), st.text("0123456789:.[]f%", max_size=40)))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    with suppress(Usage):
        assert 0 <= spec.destination(text, Place()).port <= 65535


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[fe80::2%lo]", "cannot connect to fe80::2: it is a link-local address"),
        ("[fe80::2%lo]:80", "a link-local address"),
        ("fe80::2", "a link-local address"),
        ("ff02::1%eth0", "a multicast address"),
        ("239.1.2.3:80", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("2001:db8::2%eth0", "names an interface"),
    ],
)
def test_what_is_no_address_of_one_target_is_refused(text: str, why: str) -> None:
    with pytest.raises(Usage) as refusal:
        spec.destination(text, Place())
    assert why in str(refusal.value)
    assert str(refusal.value).startswith(text)


@pytest.mark.parametrize(
    ("text", "address", "number"),
    [
        ("192.0.2.2", "192.0.2.2", 0),
        ("192.0.2.2:80", "192.0.2.2", 80),
        ("2001:db8::2", "2001:db8::2", 0),
        ("2001:db8::2:80", "2001:db8::2:80", 0),
        ("[2001:db8::2]", "2001:db8::2", 0),
        ("[2001:db8::2]:80", "2001:db8::2", 80),
    ],
)
def test_a_target_is_an_address_and_maybe_a_port(text: str, address: str, number: int) -> None:
    assert spec.destination(text, Place()) == Destination(address, number)


@pytest.mark.parametrize("text", ["", "web", "192.0.2.2:", "192.0.2.2:http", "[::1", "[::1]80", "[::1]:", "1:2"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(Usage):
        spec.destination(text, Place())


def test_exact_ports_are_published_before_ranges_and_random_ones() -> None:
    found = spec.parse_all(["80", "8000-8010:80", "8005:80", "8006:81"])
    assert [str(one) for one in found] == ["8005:80/tcp", "8006:81/tcp", "8000-8010:80/tcp", "80/tcp"]


def test_container_ports_without_host_ports_are_mappings_of_their_own() -> None:
    assert [str(one) for one in spec.parse_all(["127.0.0.1::80-82/udp"])] == [
        f"127.0.0.1::{number}/udp" for number in (80, 81, 82)
    ]


def test_an_equal_range_is_one_mapping() -> None:
    (found,) = spec.parse_all(["8000-8010:80-90"])
    mapping = TEMPLATE.mapping("m", found, *candidates(found, EPHEMERAL, 0))
    assert (mapping.first, mapping.last, mapping.targets[0].port) == (8000, 8010, 80)
    assert mapping.target_port(mapping.targets[0], 8010) == 90


def test_a_mapping_takes_everything_from_the_template() -> None:
    template = Template((Destination("::1", 8, Place(pid=7)),), "source", ("::/0",), 1, 2, 2, 3.0, 4.0)
    mapping = template.mapping("web", parse("[::1]:8080:80"), 8080)
    assert mapping.to_json() == {
        "id": "web",
        "protocol": "tcp",
        "host_ips": ["::1"],
        "first": 8080,
        "last": 8080,
        "targets": [{"address": "::1", "port": 8, "pid": 7}],
        "balance": "source",
        "allow": ["::/0"],
        "limit": 1,
        "limit_per_client": 2,
        "proxy_protocol": 2,
        "connect_timeout_s": 3.0,
        "idle_s": 4.0,
    }


def test_of_a_pool_the_free_ports_are_tried_in_order() -> None:
    assert list(candidates(parse("8000-8004:80"), EPHEMERAL, 0, {8000, 8002})) == [8001, 8003, 8004]


def test_of_a_pool_without_a_free_port_the_first_is_tried_so_that_its_holder_is_named() -> None:
    assert list(candidates(parse("8000-8004:80"), EPHEMERAL, 0, range(65536))) == [8000]


def test_an_exact_port_is_tried_whatever_is_known() -> None:
    assert list(candidates(parse("8000:80"), EPHEMERAL, 0, {8000})) == [8000]


def test_random_ports_are_tried_ten_times_from_the_start_on_and_around_the_end() -> None:
    found = list(candidates(parse("80"), EPHEMERAL, 97, {40098}))
    assert found == [40097, 40099, *range(40000, 40008)]


def test_no_random_port_is_tried_where_all_are_taken() -> None:
    assert list(candidates(parse("80"), EPHEMERAL, 5, EPHEMERAL)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("32768\t60999\n", range(32768, 61000)),
        ("1 65535", range(1, 65536)),
        ("", local_ports.EPHEMERAL),
        ("0 0", local_ports.EPHEMERAL),
        ("9 8", local_ports.EPHEMERAL),
        ("a b", local_ports.EPHEMERAL),
    ],
)
def test_random_ports_are_those_the_kernel_would_take(text: str, expected: range) -> None:
    assert local_ports.ephemeral_range(text) == expected


def test_one_address_more_makes_another_spec() -> None:
    publish = parse("[::1]:8080:80")
    assert str(replace(publish, host_ips=("::",))) == "[::]:8080:80/tcp"
