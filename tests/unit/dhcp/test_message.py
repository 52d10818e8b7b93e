"""Messages and their headers, against scapy's reading and writing of them."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet

from cni_py.addr import parse_ip
from cni_py.dhcp import frame, message

MAC = bytes.fromhex("020000000001")
OPTIONS = [("message-type", "offer"), ("server_id", "192.0.2.1"), ("lease_time", 600), "end"]


def answer(*options: object, **fields: Any) -> Packet:
    """A server's packet."""
    bootp = BOOTP(op=2, xid=7, yiaddr="192.0.2.50", chaddr=MAC, **fields)
    return (
        IP(src="192.0.2.1", dst="192.0.2.50") / UDP(sport=67, dport=68) / bootp / DHCP(options=list(options or OPTIONS))
    )


def raw(options: bytes, **fields: Any) -> bytes:
    """A server's message with these bytes as its options."""
    return bytes(BOOTP(op=2, xid=7, yiaddr="192.0.2.50", chaddr=MAC, options=b"\x63\x82\x53\x63", **fields)) + options


def test_scapy_reads_what_is_sent() -> None:
    long = b"x" * 300
    options = {message.TYPE: b"\1", message.CLIENT: b"\0c1/lan/eth0", 12: b"web", 77: long, message.PARAMETERS: b"\1\3"}
    payload = message.build(0x01020304, MAC, options, secs=70000, ciaddr=parse_ip("192.0.2.9"), broadcast=True)
    for source, destination in (("0.0.0.0", "255.255.255.255"), ("192.0.2.9", "192.0.2.1")):
        packet = IP(frame.wrap(payload, parse_ip(source), parse_ip(destination)))
        sums = packet.chksum, packet[UDP].chksum
        del packet.chksum, packet[UDP].chksum
        again = IP(bytes(packet))
        assert (again.chksum, again[UDP].chksum) == sums
        assert (packet.src, packet.dst, packet[UDP].sport, packet[UDP].dport) == (source, destination, 68, 67)
        bootp = packet[BOOTP]
        assert (bootp.op, bootp.xid, bootp.secs, bootp.flags, bootp.ciaddr) == (
            1,
            0x01020304,
            65535,
            0x8000,
            "192.0.2.9",
        )
        assert bootp.chaddr[:6] == MAC
        found = [option for option in packet[DHCP].options if isinstance(option, tuple)]
        assert found[:3] == [("message-type", 1), ("client_id", b"\0c1/lan/eth0"), ("hostname", b"web")]
        assert b"".join(option[1] for option in found if option[0] == "user_class") == long
        assert ("param_req_list", [1, 3]) in found


def test_what_scapy_writes_is_read() -> None:
    payload = frame.unwrap(bytes(answer()))
    assert payload is not None
    found = message.parse(payload)
    assert found is not None
    assert (found.xid, found.type, found.address, found.mac) == (7, message.OFFER, parse_ip("192.0.2.50"), MAC)
    assert (found.server, found.seconds(message.LEASE_TIME)) == (parse_ip("192.0.2.1"), 600)
    assert found.seconds(message.RENEWAL_TIME) is None


@pytest.mark.parametrize(
    "change",
    [
        {"dport": 67},
        {"sport": 69},
        {"len": 4},
        {"len": 9999},
        {"chksum": 1},
    ],
    ids=str,
)
def test_a_datagram_that_is_not_from_a_server_is_passed_over(change: dict[str, int]) -> None:
    packet = answer()
    for name, value in change.items():
        setattr(packet[UDP], name, value)
    assert frame.unwrap(bytes(packet)) is None


def test_checksums_and_headers_are_looked_at() -> None:
    """A header with options is right; one with another checksum, a fragment and a truncated packet are not."""
    assert frame.unwrap(bytes(IP(bytes(answer())))) is not None
    from scapy.layers.inet import IPOption_NOP

    packet = answer()
    packet[IP].options = [IPOption_NOP()] * 4
    assert frame.unwrap(bytes(packet)) is not None
    wrong = bytearray(bytes(answer()))
    wrong[40] ^= 1
    assert frame.unwrap(bytes(wrong)) is None
    assert frame.unwrap(bytes(wrong), verify=False) is not None
    for fields in ({"frag": 1}, {"flags": "MF"}, {"chksum": 1}, {"proto": 6}):
        packet = answer()
        for name, value in fields.items():
            setattr(packet[IP], name, value)
        assert frame.unwrap(bytes(packet)) is None, fields
    whole = bytes(answer())
    assert not [size for size in range(len(whole)) if frame.unwrap(whole[:size]) is not None]


def test_options_may_stand_in_the_fields_of_names() -> None:
    """Overload (option 52), and parts of one option (RFC 3396), in the order of the fields."""
    options = b"\x34\x01\x03\x35\x01\x05\x0c\x01a\xff"
    found = message.parse(
        raw(options, file=b"\x0c\x01b\xff".ljust(128, b"\0"), sname=b"\x0c\x01c\x34\x01\x00\xff".ljust(64, b"\0"))
    )
    assert found is not None
    assert (found.type, found.options[12]) == (message.ACK, b"abc")
    without = message.parse(raw(b"\x35\x01\x05\xff", file=b"\x0c\x01b\xff".ljust(128, b"\0")))
    assert without is not None
    assert 12 not in without.options


@pytest.mark.parametrize(
    "data",
    [
        b"",
        raw(b"\x35\x01\x05\xff")[:200],
        raw(b""),
        raw(b"\xff"),
        raw(b"\x35\x01\x05\x0c\x40abc"),
        raw(b"\x35\x01\x05\x0c"),
        raw(b"\x35\x02\x05\x05\xff"),
        raw(b"\x34\x01\x01\x35\x01\x05\xff", file=b"\x0c\xf0".ljust(128, b"\0")),
        raw(b"\x35\x01\x05\xff").replace(b"\2\1\6", b"\1\1\6", 1),
        raw(b"\x35\x01\x05\xff").replace(b"\2\1\6", b"\2\1\x10", 1),
        raw(b"\x35\x01\x05\xff").replace(b"\x63\x82\x53\x63", b"abcd"),
    ],
)
def test_what_is_no_answer_is_passed_over(data: bytes) -> None:
    assert message.parse(data) is None


@hypothesis.given(strategies.binary(max_size=400))
@hypothesis.settings(deadline=None, max_examples=200)
def test_no_bytes_raise_an_error(data: bytes) -> None:
    frame.unwrap(data)
    message.parse(data)
    message.parse(raw(data))
