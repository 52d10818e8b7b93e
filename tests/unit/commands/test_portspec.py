"""Port mappings as people write them."""

import re

import pytest

from cni_py.commands.portspec import PortMapping, parse, port_range, split


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8080:80", [PortMapping("", 8080, 80, "tcp")]),
        ("53:53/udp", [PortMapping("", 53, 53, "udp")]),
        ("9:9/SCTP", [PortMapping("", 9, 9, "sctp")]),
        ("127.0.0.1:8080:80", [PortMapping("127.0.0.1", 8080, 80, "tcp")]),
        ("[2001:db8::1]:8080:80/tcp", [PortMapping("2001:db8::1", 8080, 80, "tcp")]),
        ("[::]:65535:1", [PortMapping("::", 65535, 1, "tcp")]),
        ("8000-8002:80-82", [PortMapping("", 8000 + i, 80 + i, "tcp") for i in range(3)]),
        ("192.0.2.1:80-81:80-81/udp", [PortMapping("192.0.2.1", 80 + i, 80 + i, "udp") for i in range(2)]),
    ],
)
def test_what_is_written_is_what_is_mapped(text: str, wanted: list[PortMapping]) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("80", "write HOST_PORT:CONTAINER_PORT"),
        ("", "write HOST_PORT:CONTAINER_PORT"),
        (":80", "write HOST_PORT:CONTAINER_PORT"),
        ("127.0.0.1::80", "write HOST_PORT:CONTAINER_PORT"),
        ("80:", "not a port"),
        ("0:80", "not a port"),
        ("80:65536", "not a port"),
        ("80:" + 5000 * "9", "not a port"),
        ("\uff18\uff10:80", "not a port"),
        ("+1:80", "not a port"),
        ("80-:80", "not a port"),
        (":8080:80", "is not an IP address"),
        ("8080:80/", "the protocol is one of"),
        ("8080:80/icmp", "the protocol is one of"),
        ("2001:db8::1:8080:80", "write an IPv6 address in brackets"),
        ("[]:8080:80", "write [HOST_IP]:HOST_PORT:CONTAINER_PORT"),
        ("[::1]:80", "write [HOST_IP]:HOST_PORT:CONTAINER_PORT"),
        ("[192.0.2.1]:8080:80", "only an IPv6 address"),
        ("[2001:db8::1:8080:80", "not closed"),
        ("[fe80::1%eth0]:8080:80", "without a zone"),
        ("300.0.0.1:8080:80", "is not an IP address"),
        ("192.0.2.1/24:8080:80/udp", '"192.0.2.1/24" is not an IP address'),
        ("192.0.2.1/24:8080:80", '"192.0.2.1/24" is not an IP address'),
        ("8080:80/tcp/udp", "not a port"),
        ("8000-8002:80", "3 host ports cannot lead to 1 container ports"),
        ("8002-8000:80-82", "ends before it begins"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse(text)


@pytest.mark.parametrize(
    ("text", "host_ip", "host_ports", "container_ports", "protocol"),
    [
        ("80", "", "", "80", "tcp"),
        ("80-82/UDP", "", "", "80-82", "udp"),
        ("8080:80/", "", "8080", "80", ""),
        ("127.0.0.1::80", "127.0.0.1", "", "80", "tcp"),
        ("::1:8080:80", "::1", "8080", "80", "tcp"),
        ("[::1]::80", "::1", "", "80", "tcp"),
        ("name=host.example:8080:80", "name=host.example", "8080", "80", "tcp"),
    ],
)
def test_the_grammar_is_wider_than_what_one_command_takes(
    text: str, host_ip: str, host_ports: str, container_ports: str, protocol: str
) -> None:
    parts = split(text)
    assert (parts.host_ip, parts.host_ports, parts.container_ports, parts.protocol) == (
        host_ip,
        host_ports,
        container_ports,
        protocol,
    )


def test_leading_zeros_are_decimal() -> None:
    assert port_range("", "0080-00081") == range(80, 82)


def test_the_capability_has_the_keys_of_the_convention() -> None:
    assert parse("8080:80")[0].to_json() == {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    assert parse("127.0.0.1:8080:80")[0].to_json()["hostIP"] == "127.0.0.1"
