"""Legs: the sockets by which mappings have dialled targets. A client whose socket is a leg shows that a target leads back here.

    client ─→ mapping a ─→ leg of a ─→ mapping b ─→ leg of b ─→ b's target       a chain, which may be meant
    client ─→ mapping a ─→ leg of a ─→ mapping b ─→ leg of b ─→ mapping a        a loop

In a loop one connection becomes as many as there are descriptors, and one datagram keeps a processor busy for good. So a client
that comes by a leg and has been at the mapping before is refused.

A client is a leg when its address is the leg's own and it asked for the address that the leg dialled: no two connections of a
namespace have both in common. (TCP gives one local port to connections to several destinations, and often does. UDP does not, so
there the client's address is enough.) A NAT in another namespace may have changed the address that a leg there dialled. Then an
equal client address alone may be chance, and counts only when UNSURE_MAX such links follow each other.

A NAT or proxy on the way that changes the client's address hides the leg: nothing is noticed then, and the mapping's limits hold.
relay/loops.py finds loops when publishing, where targets show them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket

UNSURE_MAX = 16
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  connect(2) to a wildcard goes to loopback, ip(7)
MAPPED = "::ffff:"  # before an IPv4 address, as sockets of both families show it

Ends = tuple[str, int]


class Server(Protocol):
    """The server of a mapping: TcpPort or UdpPort."""

    def came_back(self, owner: object, where: str) -> None:
        """What `owner` dialled leads back to `where`, and is refused there."""


class Leg:
    """A socket that dialled a target for `owner`, a connection or flow of `server` whose client came by the link `behind`."""

    __slots__ = ("behind", "elsewhere", "local", "lone", "owner", "remote", "server")

    def __init__(self, server: Server, owner: object, behind: Link | None, local: Ends, remote: Ends) -> None:
        self.server = server
        self.owner = owner
        self.behind = behind
        self.local = local
        self.remote = remote
        self.lone = False  # no other socket has its local address
        self.elsewhere = False  # it is in another namespace


class Link:
    """A client that is a leg; `sure` when equal addresses cannot be chance."""

    __slots__ = ("leg", "sure")

    def __init__(self, leg: Leg, *, sure: bool) -> None:
        self.leg = leg
        self.sure = sure

    def leads_back_to(self, server: Server) -> bool:
        """Whether the client has been at this server before. The cost grows with the number of mappings in the chain."""
        sure, times = True, 0
        link: Link | None = self
        while link is not None:
            sure = sure and link.sure
            if link.leg.server is server:
                times += 1
                if sure or times == UNSURE_MAX:
                    return True
            link = link.leg.behind
        return False


class Legs:
    """All legs of a process, of one protocol."""

    __slots__ = ("_by_local", "_closed", "_closed_before", "_unshared")

    def __init__(self, *, unshared: bool) -> None:
        self._by_local: dict[Ends, list[Leg]] = {}
        self._unshared = unshared  # of UDP: a local port belongs to one socket
        self._closed: list[Leg] = []  # since the last sweep
        self._closed_before: list[Leg] = []

    def add(
        self, sock: socket.socket, server: Server, owner: object, behind: Link | None, asked: Ends | None, *, here: bool
    ) -> Leg | None:
        """Note a socket that was connected to `asked` (None: not known any more), from this namespace (`here`) or another one.

        Returns None for one that cannot lead here: a connection within another namespace, whose addresses mean others here.
        ConnectionRefusedError when the socket is connected to itself: nobody listened on the port that it dialled, and the kernel
        chose that very port as its local one (a simultaneous open with itself, RFC 9293 section 3.5).
        """
        ip, port, *_ = sock.getsockname()
        local = (plain_ip(ip), port)
        remote = ("", 0)
        if asked is not None:
            dialled = plain_ip(asked[0])
            remote = (local[0] if dialled in LOOPBACK else dialled, asked[1])
        if local == remote:
            raise ConnectionRefusedError("nobody listens there")
        if not here and (local[0] == remote[0] or local[0].startswith("127.")):
            return None
        leg = Leg(server, owner, behind, local, remote)
        leg.lone = here and self._unshared
        leg.elsewhere = not here
        self._by_local.setdefault(local, []).append(leg)
        return leg

    def forget(self, leg: Leg, *, linger: bool = False) -> None:
        """Forget a closed leg. With `linger` after another sweep or two: the connection may still wait to be accepted here."""
        if linger:
            self._closed.append(leg)
            return
        known = self._by_local.get(leg.local, [])
        if leg in known:
            known.remove(leg)
            if not known:
                del self._by_local[leg.local]

    def sweep(self) -> None:
        """Forget the legs that were closed before the last sweep."""
        for leg in self._closed_before:
            self.forget(leg)
        self._closed_before, self._closed = self._closed, []

    def at(self, client: Ends | tuple[str, int, int, int]) -> Sequence[Leg] | None:
        """The legs that have a client's address; None when there is none."""
        ip = client[0]
        return self._by_local.get((plain_ip(ip), client[1]))


def link(legs: Sequence[Leg], asked: Collection[Ends]) -> Link | None:
    """The link to the leg that a client is, of `legs` with its address, if it asked for one of `asked`; None for none."""
    for leg in legs:
        if leg.lone or leg.remote in asked:
            return Link(leg, sure=True)
    return next((Link(leg, sure=False) for leg in legs if leg.elsewhere), None)


def plain_ip(ip: str) -> str:
    """An IPv4-mapped IPv6 address (::ffff:192.0.2.1) as IPv4; any other as it is."""
    mapped = IPv6Address(ip).ipv4_mapped if ip.startswith(MAPPED) else None
    return ip if mapped is None else str(mapped)
