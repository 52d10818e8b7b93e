"""The headers of IP and UDP around a DHCP message: a client without an address sends them itself. Pure. RFC 791, RFC 768."""

from __future__ import annotations

import struct

SERVER_PORT, CLIENT_PORT = 67, 68
EVERYBODY = b"\xff\xff\xff\xff"
_UDP = 17
_IP = struct.Struct("!BBHHHBBH4s4s")
_PORTS = struct.Struct("!HHHH")
_TTL = 64
_LOW_DELAY = 0x10

# Of classic BPF (linux/bpf_common.h), on a packet that begins with its header of IP: only datagrams to the client's port, and no
# fragments, wake the daemon: code, jump if true, jump if false, value
FILTER = b"".join(
    struct.pack("@HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 9),  # ldb [9]: protocol
        (0x15, 0, 6, _UDP),
        (0x28, 0, 0, 6),  # ldh [6]: flags, offset of the fragment
        (0x45, 4, 0, 0x3FFF),  # jset: a fragment
        (0xB1, 0, 0, 0),  # ldx 4*([0]&0xf): length of the header
        (0x48, 0, 0, 2),  # ldh [x+2]: port
        (0x15, 0, 1, CLIENT_PORT),
        (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    )
)


def wrap(payload: bytes, source: bytes, destination: bytes) -> bytes:
    """A packet from a client to a server."""
    length = _PORTS.size + len(payload)
    pseudo = source + destination + struct.pack("!HH", _UDP, length)
    ports = _PORTS.pack(CLIENT_PORT, SERVER_PORT, length, 0)
    sum_ = checksum(pseudo + ports + payload) or 0xFFFF
    head = _IP.pack(0x45, _LOW_DELAY, _IP.size + length, 0, 0, _TTL, _UDP, 0, source, destination)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return head + _PORTS.pack(CLIENT_PORT, SERVER_PORT, length, sum_) + payload


def unwrap(packet: bytes, *, verify: bool = True) -> bytes | None:
    """What a packet from a server to a client carries; None for any other packet.

    `verify` False: the checksum of UDP was not computed, as for a server on this host, whose packets no hardware has sent.
    """
    if len(packet) < _IP.size + _PORTS.size or packet[0] >> 4 != 4:
        return None
    head = 4 * (packet[0] & 0xF)
    total = int.from_bytes(packet[2:4], "big")
    if head < _IP.size or not head + _PORTS.size <= total <= len(packet) or packet[9] != _UDP:
        return None
    source, destination, length, sum_ = _PORTS.unpack_from(packet, head)
    if (source, destination) != (SERVER_PORT, CLIENT_PORT) or not _PORTS.size <= length <= total - head:
        return None
    if checksum(packet[:head]) or int.from_bytes(packet[6:8], "big") & 0x3FFF:
        return None
    datagram = packet[head : head + length]
    if verify and sum_ and checksum(packet[12:20] + struct.pack("!HH", _UDP, length) + datagram):
        return None
    return datagram[_PORTS.size :]


def checksum(data: bytes) -> int:
    """The checksum of RFC 1071: 0 over data with its own checksum in it, where all is well."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
