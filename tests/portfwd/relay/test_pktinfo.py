"""Which address a datagram came for, as the kernel says it, and how it is told to answer from there."""

from __future__ import annotations

import struct
from socket import AF_INET6, IPPROTO_IP, IPPROTO_IPV6, IPV6_PKTINFO, SOL_SOCKET, inet_aton, inet_pton

import pytest

from portfwd.relay.pktinfo import IP_PKTINFO, Address, Control, local_of, reply_control, text_of

V4_CLIENT: Address = ("198.51.100.7", 4000)
V6_CLIENT: Address = ("2001:db8::7", 4000, 0, 0)
LINK_LOCAL_CLIENT: Address = ("fe80::7", 4000, 0, 3)
NO_ADDRESS = bytes(16)


def v4(interface: int, answer_from: str, sent_to: str) -> Control:
    data = struct.pack("=I", interface) + inet_aton(answer_from) + inet_aton(sent_to)
    return [(SOL_SOCKET, 29, b"a time stamp"), (IPPROTO_IP, IP_PKTINFO, data)]


def v6(address: str, interface: int) -> Control:
    return [(IPPROTO_IPV6, IPV6_PKTINFO, inet_pton(AF_INET6, address) + struct.pack("=I", interface))]


@pytest.mark.parametrize(
    ("client", "control", "text", "source"),
    [
        (V4_CLIENT, v4(2, "198.51.100.1", "198.51.100.1"), "198.51.100.1", v4(0, "198.51.100.1", "0.0.0.0")),
        (V4_CLIENT, v4(2, "198.51.100.1", "198.51.100.255"), "198.51.100.1", v4(0, "198.51.100.1", "0.0.0.0")),
        (V6_CLIENT, v6("2001:db8::1", 2), "2001:db8::1", v6("2001:db8::1", 0)),
        (LINK_LOCAL_CLIENT, v6("fe80::1", 3), "fe80::1", v6("fe80::1", 3)),
        (LINK_LOCAL_CLIENT, v6("2001:db8::1", 3), "2001:db8::1", v6("2001:db8::1", 3)),
        (V6_CLIENT, v6("fe80::1", 2), "fe80::1", v6("fe80::1", 2)),
        (LINK_LOCAL_CLIENT, v6("ff02::1", 3), "ff02::1", v6("::", 3)),
        (V4_CLIENT, [], "", []),
    ],
    ids=["v4", "broadcast", "v6", "link-local", "to global", "global to link-local", "multicast", "nothing known"],
)
def test_the_answer_leaves_from_where_the_datagram_came_for(
    client: Address, control: Control, text: str, source: Control
) -> None:
    local = local_of(control, client)
    assert text_of(local) == text
    assert reply_control(local) == source[-1:]


def test_no_address_has_no_text() -> None:
    """As in datagrams that arrived before anybody asked for the address."""
    assert text_of(bytes(4)) == text_of(NO_ADDRESS) == ""
