"""The UDP sockets of the host's side, one per port or one for a steered range, and the flows that use them.

A socket sends from the port that it is bound to. The listener of a range is bound to one of its ports. Answers from another port
leave by an exit: a socket bound to that port, which exists while a flow needs it and receives nothing, since datagrams to its
port are steered to the listener.
"""

from __future__ import annotations

import errno
import resource
import socket
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from portfwd.relay import bind
from portfwd.relay.flows import Flow, most
from portfwd.relay.pktinfo import reply_control

if TYPE_CHECKING:
    from portfwd.mapping import Mapping, Target
    from portfwd.netns.legs import Leg, Link
    from portfwd.relay.pktinfo import Address

BUFFER = 1 << 20  # bytes; all clients share a listener's, and datagrams that wait for ARP or ND of a client count, too
CONTROL_SPACE = 256  # bytes of control messages; a socket made by another program may have more of them turned on
IP_RECVERR, IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)


@dataclass(slots=True, eq=False)
class Exit:
    """A socket by which answers leave, and the number of flows that use it."""

    sock: socket.socket
    flows: int = 0


@dataclass(slots=True, eq=False)
class Listener:
    """A bound socket; `port` is the mapping's port it stands for, or 0 when a range is steered to it."""

    sock: socket.socket
    ip: str
    port: int
    asks: bool  # each datagram is asked by which interface it came: see host_only.py
    exits: dict[int, Exit] = field(default_factory=dict)  # by port; of a range only, and not for the socket's own
    no_exit: dict[int, float] = field(default_factory=dict)  # by port: no exit is tried before

    def borrow_exit(self, port: int) -> socket.socket:
        """The socket by which answers from a port leave; give it back. PortInUse, PortfwdError."""
        if self.port or port == self.sock.getsockname()[1]:
            return self.sock
        found = self.exits.get(port)
        if found is None:
            sock = bind.bind_udp(self.ip, port)
            make_room(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # it is never read
            found = self.exits[port] = Exit(sock)
        found.flows += 1
        return found.sock

    def give_back_exit(self, port: int) -> None:
        """Give back the exit of a flow that has ended; the last one closes it."""
        found = self.exits.get(port)
        if found is not None:
            found.flows -= 1
            if not found.flows:
                found.sock.close()
                del self.exits[port]


class UdpFlow(Flow):
    """One client talking to one address and port of the host."""

    __slots__ = (
        *("behind", "client", "exit", "header", "leg", "listener", "local", "port", "proven", "reply", "target"),
        "upstream",
    )

    def __init__(self, listener: Listener, client: Address, local: bytes, port: int, now: float) -> None:
        super().__init__((listener, client, local, port), client[0], now)
        self.listener = listener
        self.exit = listener.sock  # answers leave from there
        self.port = port
        self.client = client
        self.local = local
        self.reply = reply_control(local)
        self.header = b""  # of the PROXY protocol, before each datagram
        self.behind: Link | None = None  # the client is a socket of our own
        self.leg: Leg | None = None
        self.target: Target | None = None
        self.upstream: socket.socket | None = None  # None: the next datagram has to find a target
        self.proven = False  # the target has answered since it was last connected or failed


def exhausted(error: BaseException | None) -> bool:
    """Whether an error is a shortage of descriptors or memory, and not the target's fault."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error is not None and error.errno in EXHAUSTED


def most_flows(mapping: Mapping) -> int:
    """The limit of a mapping's flows."""
    return most(mapping.limit, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def keep_errors(sock: socket.socket) -> None:
    """Have the kernel queue ICMP errors: see udp.py."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def errors_of(sock: socket.socket) -> list[int]:
    """The queued errors of a socket, as numbers of errno(3); the queue is empty then."""
    found: list[int] = []
    queued = False
    while True:
        try:
            _, control, _, _ = sock.recvmsg(0, CONTROL_SPACE, socket.MSG_ERRQUEUE)
        except OSError:  # EAGAIN: no more
            break
        queued = True
        for _, kind, data in control:
            if kind in (IP_RECVERR, IPV6_RECVERR):  # struct sock_extended_err: errno first
                found.append(int.from_bytes(data[:4], sys.byteorder))
    pending = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    # Each queued error also sets SO_ERROR, which reading the queue clears. Alone it tells of one for which the queue had no room.
    if pending and not queued:
        found.append(pending)
    return found


def make_room(sock: socket.socket) -> None:
    """Enlarge a socket's buffers for bursts, beyond net.core.{r,w}mem_max with CAP_NET_ADMIN."""
    for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER)
