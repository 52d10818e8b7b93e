"""The socket by which the daemon speaks DHCP in a container's namespace, while it waits for an answer.

A packet socket (packet(7)), since the interface has no address yet. Once it has one, a socket of UDP stands beside it: without
that the kernel would answer the server's datagrams that the port is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

from cni_py.addr import ip_text
from cni_py.dhcp import frame
from cni_py.dhcp.machine import Sending
from cni_py.dhcp.message import ANY
from cni_py.kernel.netns import Enter

ETH_P_IP = 0x0800  # linux/if_ether.h
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
SOL_PACKET, PACKET_AUXDATA = 263, 8  # linux/socket.h, linux/if_packet.h
CSUM_NOT_READY = 1 << 3  # TP_STATUS_CSUMNOTREADY
TO_ALL = b"\xff" * 6
PACKET_MAX = 2048  # bytes
ANCILLARY_MAX = 128
AT_ONCE = 64  # packets that are read before others get their turn


class Wire:
    """An interface of the namespace of the descriptor `space`. OSError where there is none of that name."""

    def __init__(self, space: int, ifname: str) -> None:
        self.ifname = ifname
        self._udp: socket.socket | None = None
        self._space = space
        with Enter(space):
            # Of no protocol, so that nothing comes before the filter is there
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        try:
            program = ctypes.create_string_buffer(frame.FILTER)
            self.sock.setsockopt(
                socket.SOL_SOCKET,
                SO_ATTACH_FILTER,
                struct.pack("@HP", len(frame.FILTER) // 8, ctypes.addressof(program)),
            )
            self.sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            self.sock.bind((ifname, ETH_P_IP))
        except BaseException:
            self.sock.close()
            raise

    def close(self) -> None:
        """End listening."""
        self.sock.close()
        if self._udp is not None:
            self._udp.close()

    def send(self, one: Sending) -> None:
        """Send a message. OSError."""
        if one.source != ANY and self._udp is None:
            self._hold_port(one.source)
        packet = frame.wrap(one.payload, one.source, one.destination)
        self.sock.sendto(packet, (self.ifname, ETH_P_IP, 0, 0, one.mac or TO_ALL))

    def _hold_port(self, address: bytes) -> None:
        with Enter(self._space):
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):  # it is only polite
            self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
            self._udp.bind((ip_text(address), frame.CLIENT_PORT))

    def receive(self) -> list[tuple[bytes, bytes]]:
        """The payloads of the datagrams that have come, each with the hardware address of its sender. OSError: it is down."""
        found = []
        for _ in range(AT_ONCE):
            try:
                packet, ancillary, _, sender = self.sock.recvmsg(PACKET_MAX, ANCILLARY_MAX)
            except BlockingIOError:
                break
            status = next((value for _, kind, value in ancillary if kind == PACKET_AUXDATA), b"\0\0\0\0")
            verify = not struct.unpack_from("@I", status)[0] & CSUM_NOT_READY
            payload = frame.unwrap(packet, verify=verify)
            if payload is not None and len(sender[4]) == 6:
                found.append((payload, bytes(sender[4])))
        return found
