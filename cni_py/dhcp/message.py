"""DHCP messages: RFC 2131, section 2; options: RFC 2132, RFC 3396. Pure.

op, hardware type, address length, hops, xid, seconds, flags    12 bytes
ciaddr, yiaddr, siaddr, giaddr                                  16
chaddr, sname, file                                             16 + 64 + 128
63 82 53 63, options
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

REQUEST, REPLY = 1, 2
ETHERNET = 1
BROADCAST = 0x8000
COOKIE = b"\x63\x82\x53\x63"
MESSAGE_MIN = 300  # bytes: what BOOTP's relays expect (RFC 1542, section 2.1)
ANY = bytes(4)

# Options
PAD, END = 0, 255
MASK, ROUTER, HOST_NAME, STATIC_ROUTES = 1, 3, 12, 33
REQUESTED_ADDRESS, LEASE_TIME, OVERLOAD, TYPE, SERVER, PARAMETERS = 50, 51, 52, 53, 54, 55
TEXT, SIZE_MAX, RENEWAL_TIME, REBINDING_TIME, CLIENT, CLASSLESS_ROUTES = 56, 57, 58, 59, 61, 121
# Types of messages
DISCOVER, OFFER, ASK, DECLINE, ACK, NAK, RELEASE = range(1, 8)

_HEAD = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_ROOM = 255  # bytes of an option


@dataclass(frozen=True, slots=True)
class Message:
    """A message from a server."""

    xid: int
    type: int
    address: bytes  # yiaddr
    mac: bytes  # chaddr
    options: Mapping[int, bytes]

    @property
    def server(self) -> bytes:
        """Who sends it; four zeros if it does not say."""
        found = self.options.get(SERVER, ANY)
        return found if len(found) == 4 else ANY

    def seconds(self, option: int) -> int | None:
        """A time; None where it is not there, or is none."""
        found = self.options.get(option, b"")
        return int.from_bytes(found, "big") if len(found) == 4 else None


def build(
    xid: int,
    mac: bytes,
    options: Mapping[int, bytes],
    *,
    secs: int = 0,
    ciaddr: bytes = ANY,
    broadcast: bool = False,
) -> bytes:
    """A message from a client."""
    head = _HEAD.pack(
        *(REQUEST, ETHERNET, len(mac), 0, xid, min(secs, 0xFFFF), BROADCAST if broadcast else 0),
        *(ciaddr, ANY, ANY, ANY, mac, b"", b"", COOKIE),
    )
    body = b"".join(
        bytes((code, len(value[at : at + _ROOM]))) + value[at : at + _ROOM]
        for code, value in options.items()
        for at in range(0, len(value), _ROOM)
    )
    return (head + body + bytes((END,))).ljust(MESSAGE_MIN, b"\0")


def parse(data: bytes) -> Message | None:
    """A server's message to a client; None for anything else: truncated, malformed, not of DHCP."""
    if len(data) < _HEAD.size:
        return None
    op, kind, length, _, xid, _, _, _, address, _, _, chaddr, sname, file, cookie = _HEAD.unpack_from(data)
    if (op, kind, length, cookie) != (REPLY, ETHERNET, 6, COOKIE):
        return None
    try:
        options = gathered(data[_HEAD.size :], file, sname)
    except ValueError:
        return None
    what = options.get(TYPE, b"")
    return Message(xid, what[0], address, chaddr[:6], options) if len(what) == 1 else None


def gathered(options: bytes, file: bytes, sname: bytes) -> dict[int, bytes]:
    """All options. One that comes several times is one long value, in this order of the fields (RFC 3396). ValueError."""
    found: dict[int, bytes] = {}
    for code, value in listed(options):
        found[code] = found.get(code, b"") + value
    overload = found.get(OVERLOAD, b"\0")
    fields = (file if overload[0] & 1 else b"", sname if overload[0] & 2 else b"")
    for field in fields if len(overload) == 1 else ():
        for code, value in listed(field):
            if code != OVERLOAD:
                found[code] = found.get(code, b"") + value
    return found


def listed(options: bytes) -> Iterator[tuple[int, bytes]]:
    """The options in a field. ValueError for one that is longer than the field."""
    at = 0
    while at < len(options) and options[at] != END:
        if options[at] == PAD:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else len(options)
        if at + 2 + length > len(options):
            raise ValueError(f"the option {options[at]} is longer than its field")
        yield options[at], options[at + 2 : at + 2 + length]
        at += 2 + length
