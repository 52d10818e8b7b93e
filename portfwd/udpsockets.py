"""The sockets of a mapping's UDP side, and the flows that use them."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portfwd.flows import Flow
from portfwd.pktinfo import reply_control

if TYPE_CHECKING:
    from portfwd.loops import Leg, Link
    from portfwd.mapping import Target
    from portfwd.pktinfo import Address

BUFFER = 1 << 20  # bytes; of a listener, which all clients share and which neighbours that do not answer fill, too
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h


@dataclass(slots=True, eq=False)
class Listener:
    """A bound socket; `port` is the mapping's port it stands for."""

    sock: socket.socket
    ip: str
    port: int
    asks: bool  # clients from elsewhere may find it: see hostonly.py


class UdpFlow(Flow):
    """One client talking to one address and port of the host."""

    __slots__ = ("behind", "client", "header", "leg", "listener", "local", "proven", "reply", "target", "upstream")

    def __init__(self, listener: Listener, client: Address, local: bytes, now: float) -> None:
        super().__init__((listener, client, local), client[0], now)
        self.listener = listener
        self.client = client
        self.local = local
        self.reply = reply_control(local)
        self.header = b""  # of the PROXY protocol, before each datagram
        self.behind: Link | None = None  # the client is a socket of our own
        self.leg: Leg | None = None
        self.target: Target | None = None
        self.upstream: socket.socket | None = None  # None: the next datagram has to find a target
        self.proven = False  # the target has answered since it was last dialled or failed


def exhausted(error: BaseException | None) -> bool:
    """Whether it was for want of descriptors or memory, and not the target's doing."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error is not None and error.errno in EXHAUSTED


def make_room(sock: socket.socket) -> None:
    """For bursts, beyond net.core.{r,w}mem_max where this process may."""
    for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER)
