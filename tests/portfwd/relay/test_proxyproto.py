"""The PROXY protocol's header: the bytes that its specification gives, and what a receiver makes of any other."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.relay.proxyproto import header

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
LINE_MAX = {4: 56, 6: 104}  # section 2.1
FULL = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"

End = tuple[str, int]
v4, v6 = st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str)
ports = st.integers(0, 65535)
ends = st.tuples(v4 | v6, ports)


def packed(text: str) -> bytes:
    """As the C library reads it; without zone, and IPv4 that is mapped into IPv6 as IPv4."""
    text = text.partition("%")[0]
    if ":" not in text:
        return socket.inet_pton(socket.AF_INET, text)
    found = socket.inet_pton(socket.AF_INET6, text)
    return found[12:] if found.startswith(bytes(10) + b"\xff\xff") else found


def as_sent(client: str, host: str) -> tuple[bytes, bytes]:
    """Both addresses as a receiver shall see them: in one family."""
    source, destination = packed(client), packed(host)
    if len(source) != len(destination):
        source, destination = (bytes(10) + b"\xff\xff" + one if len(one) == 4 else one for one in (source, destination))
    return source, destination


def read_text(line: bytes) -> tuple[bytes, bytes, int, int]:
    """What a receiver that takes section 2.1 at its word reads."""
    assert line.endswith(b"\r\n")
    assert line.count(b"\r") == line.count(b"\n") == 1
    word, protocol, source, destination, *numbers = line[:-2].decode("ascii").split(" ")
    assert word == "PROXY"
    version = {"TCP4": 4, "TCP6": 6}[protocol]
    assert len(line) <= LINE_MAX[version]
    family, marks = (socket.AF_INET, ".") if version == 4 else (socket.AF_INET6, ":")
    for address in (source, destination):
        assert set(address) <= set("0123456789abcdef" + marks)
    assert [str(int(number)) for number in numbers] == numbers, "no zero leads"
    source_port, destination_port = map(int, numbers)
    return socket.inet_pton(family, source), socket.inet_pton(family, destination), source_port, destination_port


def read_binary(data: bytes) -> tuple[bytes, bytes, int, int, int]:
    """What a receiver by section 2.2 reads; with the transport."""
    assert data[:12] == SIGNATURE
    version_and_command, kind, length = struct.unpack_from("!BBH", data, 12)
    assert version_and_command == 0x21
    size = {0x1: 4, 0x2: 16}[kind >> 4]
    assert length == len(data) - 16 == 2 * size + 4
    source, destination, *numbers = struct.unpack_from(f"!{size}s{size}sHH", data, 16)
    return source, destination, numbers[0], numbers[1], kind & 0xF


def test_version_1_is_the_specifications_example() -> None:
    line = header(1, "tcp", ("192.168.0.1", 56324), ("192.168.0.11", 443))
    assert line == b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"


def test_the_longest_lines_are_as_long_as_the_specification_says() -> None:
    longest = ("255.255.255.255", 65535)
    assert header(1, "tcp", longest, longest) == b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"
    assert len(header(1, "tcp", longest, longest)) == LINE_MAX[4]
    line = header(1, "tcp", (FULL, 65535), (FULL, 65535))
    assert line == f"PROXY TCP6 {FULL} {FULL} 65535 65535\r\n".encode()
    assert len(line) == LINE_MAX[6]


@pytest.mark.parametrize(
    ("protocol", "client", "host", "expected"),
    [
        ("tcp", ("192.168.0.1", 56324), ("192.168.0.11", 443), "21 11 000c c0a80001 c0a8000b dc04 01bb"),
        ("udp", ("192.168.0.1", 56324), ("192.168.0.11", 53), "21 12 000c c0a80001 c0a8000b dc04 0035"),
        ("tcp", ("::1", 1), ("2001:db8::2", 2), f"21 21 0024 {'00' * 15}01 20010db8{'00' * 11}02 0001 0002"),
        ("udp", ("::1", 1), ("2001:db8::2", 2), f"21 22 0024 {'00' * 15}01 20010db8{'00' * 11}02 0001 0002"),
        (
            "tcp",
            ("192.0.2.1", 1),
            ("2001:db8::2", 2),
            f"21 21 0024 {'00' * 10}ffffc0000201 20010db8{'00' * 11}02 0001 0002",
        ),
        ("tcp", ("::ffff:192.0.2.1", 1), ("192.0.2.2", 2), "21 11 000c c0000201 c0000202 0001 0002"),
        ("tcp", ("fe80::1%eth0", 1), ("fe80::2%2", 2), f"21 21 0024 fe80{'00' * 13}01 fe80{'00' * 13}02 0001 0002"),
    ],
    ids=["tcp4", "udp4", "tcp6", "udp6", "mixed", "mapped", "zone"],
)
def test_version_2_has_the_specifications_bytes(protocol: str, client: End, host: End, expected: str) -> None:
    assert header(2, protocol, client, host) == SIGNATURE + bytes.fromhex(expected)


@pytest.mark.parametrize(
    ("client", "host", "expected"),
    [
        (("::ffff:192.0.2.1", 1), ("192.0.2.2", 2), "PROXY TCP4 192.0.2.1 192.0.2.2 1 2"),
        (("192.0.2.1", 1), ("2001:db8::2", 2), "PROXY TCP6 ::ffff:c000:201 2001:db8::2 1 2"),
        (("2001:db8::2", 2), ("0.0.0.10", 1), "PROXY TCP6 2001:db8::2 ::ffff:0:a 2 1"),
        (("fe80::1%eth0", 1), ("fe80::2", 2), "PROXY TCP6 fe80::1 fe80::2 1 2"),
    ],
    ids=["mapped", "mixed", "zeroes", "zone"],
)
def test_version_1_writes_one_family_in_groups_of_digits(client: End, host: End, expected: str) -> None:
    assert header(1, "tcp", client, host) == expected.encode() + b"\r\n"


@given(ends, ends)
def test_a_receiver_reads_version_1_as_it_was_meant(client: End, host: End) -> None:
    assert read_text(header(1, "tcp", client, host)) == (*as_sent(client[0], host[0]), client[1], host[1])


@given(ends, ends, st.sampled_from([("tcp", 1), ("udp", 2)]))
def test_a_receiver_reads_version_2_as_it_was_meant(client: End, host: End, protocol: tuple[str, int]) -> None:
    name, transport = protocol
    read = read_binary(header(2, name, client, host))
    assert read == (*as_sent(client[0], host[0]), client[1], host[1], transport)
