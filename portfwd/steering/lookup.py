"""Many ports, one socket: a BPF program (sk_lookup) gives packets for a range of local ports to one socket.

    SYN, datagram ─→ INPUT ─→ connections ─→ the program: family, protocol, address, port ─→ LPM trie ─→ slot ─→ SOCKMAP ─→ socket
                                                          the same with no address                  none: listeners as ever

The kernel runs the program after its firewall (INPUT) and after the lookup of connections (TCP's, and of connected UDP sockets),
before the lookup of listeners. There is no NAT and no connection tracking, and an accepted socket has the address and port that
the client asked for. The program never changes; a range is at most 30 prefixes in the trie. Program and maps exist while any
range is steered.

A listener of another program on a steered port gets no more clients: the caller of put() looks for listeners first.

Sources: Linux Documentation/bpf/prog_sk_lookup.rst, map_lpm_trie.rst; net/ipv4/inet_hashtables.c, net/ipv4/udp.c.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portfwd.errors import Lacking, PortfwdError, PortInUse
from portfwd.mapping import span
from portfwd.steering import bpf
from portfwd.steering.bpf import FRAME, JEQ, JNE, R0, R1, R2, R3, R6, R7, B, Code, H
from portfwd.values import row

if TYPE_CHECKING:
    from portfwd.steering.reserved import Reservation

LAYOUT = 1  # of maps and program, which a successor takes over
SLOTS = 8192  # sockets; 8 bytes each
ENTRIES = 1 << 18  # of the trie: a bound, not a size
PROTOCOLS = {"tcp": 6, "udp": 17}  # linux/in.h
AF_INET, AF_INET6 = 2, 10
SK_PASS = 1
LOOKUP, ASSIGN, RELEASE = 1, 124, 86  # enum bpf_func_id: map_lookup_elem, sk_assign, sk_release
# struct bpf_sk_lookup, linux/bpf.h
FAMILY, PROTOCOL, LOCAL_IP4, LOCAL_IP6, LOCAL_PORT = 8, 12, 40, 44, 60
# struct bpf_lpm_trie_key with protocol, family, two bytes of nothing, address, port; and where it is on the stack
_KEY = struct.Struct("=IBBxx16s2s")
KEY_AT, KIND_AT, IP_AT, PORT_AT, SLOT_AT = -28, -24, -20, -4, -32
PORT_BITS = 16
BEFORE_PORT = 8 * (_KEY.size - 4) - PORT_BITS  # bits that are compared before those of the port


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Ports first..last of an address, 0.0.0.0 and :: being any."""

    protocol: str
    ip: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"port {span(self.first, self.last)}/{self.protocol} on {self.ip}"

    def overlaps(self, other: Range) -> bool:
        """Whether both have a port of the same address. A specific address and 0.0.0.0 do not overlap: it is looked up first."""
        same = (self.protocol, self.ip) == (other.protocol, other.ip)
        return same and self.first <= other.last and other.first <= self.last

    def prefixed(self) -> Iterator[bytes]:
        """The keys of its entries in the trie."""
        address = ipaddress.ip_address(self.ip)
        family = AF_INET if address.version == 4 else AF_INET6
        packed = bytes(16) if address.is_unspecified else address.packed.ljust(16, b"\0")
        for port, bits in prefixes(self.first, self.last):
            yield _KEY.pack(BEFORE_PORT + bits, PROTOCOLS[self.protocol], family, packed, struct.pack("!H", port))


def prefixes(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest prefixes of 16-bit numbers that are first..last: number and length in bits."""
    while first <= last:
        size = first & -first or 1 << PORT_BITS
        while size > last - first + 1:
            size >>= 1
        yield first, PORT_BITS - size.bit_length() + 1
        first += size


def program(trie: int, sockets: int) -> bytes:
    """The instructions; `trie` and `sockets` are descriptors of the maps."""
    code = Code()
    code.move(R6, R1)
    _write_key(code)
    _look_up(code, trie, KEY_AT)
    code.jump_if(JNE, R0, 0, "found")
    for offset in (0, 4, 8, 12):  # any address
        code.store_number(FRAME, IP_AT + offset, 0)
    _look_up(code, trie, KEY_AT)
    code.jump_if(JEQ, R0, 0, "pass")
    code.label("found")
    code.load(R1, R0, 0)
    code.store(FRAME, SLOT_AT, R1)
    _look_up(code, sockets, SLOT_AT)
    code.jump_if(JEQ, R0, 0, "pass")
    code.move(R7, R0)
    code.move(R1, R6)
    code.move(R2, R7)
    # No flags: where a program attached before ours has chosen a socket, sk_assign() fails (EEXIST) and that choice stays.
    code.number(R3, 0)
    code.call(ASSIGN)
    # A socket from a SOCKMAP may hold a reference: the verifier rejects a program that does not release it.
    code.move(R1, R7)
    code.call(RELEASE)
    # Without a chosen socket SK_PASS means the usual lookup of listeners. SK_DROP of any program would refuse the packet.
    code.label("pass")
    code.number(R0, SK_PASS)
    code.end()
    return code.bytes()


def _write_key(code: Code) -> None:
    """Write the packet's key of the trie to the stack; R6 is the context (struct bpf_sk_lookup)."""
    code.store_number(FRAME, KEY_AT, BEFORE_PORT + PORT_BITS)
    code.load(R1, R6, PROTOCOL)
    code.store(FRAME, KIND_AT, R1, B)
    code.load(R2, R6, FAMILY)
    code.store(FRAME, KIND_AT + 1, R2, B)
    code.store_number(FRAME, KIND_AT + 2, 0, H)
    code.load(R1, R6, LOCAL_PORT)  # the one field in the host's byte order
    code.big_endian(R1)
    code.store(FRAME, PORT_AT, R1, H)
    code.jump_if(JEQ, R2, AF_INET6, "six")
    code.load(R1, R6, LOCAL_IP4)
    code.store(FRAME, IP_AT, R1)
    for offset in (4, 8, 12):
        code.store_number(FRAME, IP_AT + offset, 0)
    code.jump("written")
    code.label("six")
    for offset in (0, 4, 8, 12):
        code.load(R1, R6, LOCAL_IP6 + offset)
        code.store(FRAME, IP_AT + offset, R1)
    code.label("written")


def _look_up(code: Code, table: int, key: int) -> None:
    """R0 = the entry of the key at FRAME + key, or 0."""
    code.map(R1, table)
    code.address(R2, key)
    code.call(LOOKUP)


class Steering:
    """The ranges steered in the network namespace that this process is in when the first one is put."""

    def __init__(self, reservation: Reservation | None = None) -> None:
        self._reservation = reservation
        self._ranges: dict[Range, int] = {}  # with their slots
        self._descriptors: tuple[int, int, int] | None = None  # the trie, the sockets, the link

    @property
    def ranges(self) -> list[Range]:
        """All ranges that are steered."""
        return list(self._ranges)

    def put(self, wanted: Range, sock: socket.socket) -> None:
        """Steer a range to a socket of its protocol and family: one that listens (TCP), or one that is not connected (UDP).

        PortInUse when it overlaps with another range; Lacking where bpf(2) is refused, or there are too many ranges; PortfwdError
        when it would leave this host too few ports for connections of its own.
        """
        held = next((other for other in self._ranges if other.overlaps(wanted)), None)
        if held is not None:
            raise PortInUse(f"{wanted} cannot be steered", f"{held} is steered already")
        used = set(self._ranges.values())
        slot = next((number for number in range(SLOTS) if number not in used), None)
        if slot is None:
            raise Lacking(f"{wanted} cannot be steered", f"{SLOTS} ranges are, and no more can be")
        if self._reservation is not None:
            self._reservation.refuse_to_starve(wanted.first, wanted.last)
        trie, sockets, _ = self._open()
        self._ranges[wanted] = slot
        try:
            # The socket before its ports: a packet must not find an entry that leads to an empty slot.
            bpf.put(sockets, struct.pack("=I", slot), sock.fileno())
            for key in wanted.prefixed():
                bpf.put(trie, key, slot)
        except OSError as error:
            self.take(wanted)
            raise Lacking(f"{wanted} cannot be steered", error.strerror or str(error)) from error
        self.settle()

    def settle(self) -> None:
        """Reserve the ports of all ranges that are steered, and no others (reserved.py)."""
        if self._reservation is not None:
            self._reservation.settle((one.first, one.last) for one in self._ranges)

    def take(self, gone: Range) -> None:
        """Undo put(); with the last range the program goes, too. Harmless for a range that is not steered. PortfwdError."""
        slot = self._ranges.get(gone)
        if slot is None or self._descriptors is None:
            return
        if len(self._ranges) == 1:
            self.close()
            return
        trie, sockets, _ = self._descriptors
        try:
            for key in gone.prefixed():
                bpf.take(trie, key)
        except OSError as error:  # its slot must not become another's
            raise PortfwdError(f"{gone} is steered still", error.strerror or str(error)) from error
        with contextlib.suppress(OSError):  # a closed socket has left its SOCKMAP by itself
            bpf.take(sockets, struct.pack("=I", slot))
        del self._ranges[gone]
        self.settle()

    def _open(self) -> tuple[int, int, int]:
        """The descriptors of trie, sockets and link; they are made when first needed, all of them or none. Lacking."""
        if self._descriptors is None:
            bpf.without_limit()
            made: list[int] = []
            try:
                made.append(bpf.create_map(bpf.LPM_TRIE, _KEY.size, 4, ENTRIES, bpf.NO_PREALLOC))
                made.append(bpf.create_map(bpf.SOCKMAP, 4, 4, SLOTS))
                made.append(bpf.load(program(*made)))
                made.append(bpf.attach(made[2]))
            except BaseException:
                bpf.close_all(made)
                raise
            os.close(made[2])  # the link keeps the program
            self._descriptors = made[0], made[1], made[3]
        return self._descriptors

    def close(self) -> None:
        """Steer nothing any more. A second call is harmless."""
        self._ranges.clear()
        if self._descriptors is not None:
            bpf.close_all(self._descriptors)
            self._descriptors = None
        self.settle()

    # A successor

    def pack(self, put: Callable[[int], int]) -> dict[str, object]:
        """As JSON, for unpack(); `put` takes a descriptor and returns what stands for it."""
        return {
            "layout": LAYOUT,
            "descriptors": [put(fd) for fd in self._descriptors or ()],
            "ranges": [[one.protocol, one.ip, one.first, one.last, slot] for one, slot in self._ranges.items()],
        }

    def unpack(self, raw: object, take: Callable[[object], int]) -> None:
        """Go on with what a predecessor packed; `take` gives descriptors, which are owned from then on. ValueError, Usage."""
        match raw:
            case {"layout": 1, "descriptors": [], "ranges": []}:
                return
            case {"layout": 1, "descriptors": [trie, sockets, link], "ranges": [*ranges]}:
                self._descriptors = take(trie), take(sockets), take(link)
            case _:
                raise ValueError("not the state of steered ports")
        for one in ranges:
            *bounds, slot = row(one, str, str, int, int, int)
            self._ranges[Range(*bounds)] = slot
