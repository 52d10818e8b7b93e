"""UDP between real sockets: hosts, clients and containers of a lab, all driven from this one thread."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

from lab import Lab
from node import CLONE_NEWNET, Node, enter

from portfwd.mapping import Mapping, Place, Target
from portfwd.netns.sockets import Places
from portfwd.relay.pktinfo import IP_PKTINFO
from portfwd.relay.poller import LEVEL, Poller
from portfwd.relay.udp import UdpPort

WAIT_S = 10.0
LONG_S = 3600.0
PORT = 5353


def place_of(node: Node) -> Place:
    return Place(path=f"/proc/self/fd/{node.net}")


class LabPlaces(Places):
    """As in a service that runs on the lab's host; a place is elsewhere."""

    def __init__(self, host: Node) -> None:
        super().__init__()
        self.host = host
        self.own = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.send_buffer = 0

    def inside(self, node: Node, family: int) -> socket.socket:
        """A UDP socket of a node; takes no other descriptor."""
        enter(node.net, CLONE_NEWNET)
        try:
            return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        finally:
            enter(self.own, CLONE_NEWNET)

    def socket(self, place: Place, family: int, kind: int) -> socket.socket:
        made = super().socket(place, family, kind) if place else self.inside(self.host, family)
        if self.send_buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer)
        return made

    def close(self) -> None:
        super().close()
        os.close(self.own)


class Stage:
    """Sockets anywhere in the lab, and what serves them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.poller = Poller()
        self.places = LabPlaces(lab["host"])
        self.ports: list[UdpPort] = []
        self.sockets: list[socket.socket] = []

    def bound(self, node: str, ip: str, port: int = 0) -> socket.socket:
        """A UDP socket on an address of a node; a client or a target."""
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        made = self.places.inside(self.lab[node], family)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((ip, port))
        self.sockets.append(made)
        return made

    def listening(self, ip: str, port: int) -> socket.socket:
        made = self.bound("host", ip, port)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        return made

    def publish(
        self,
        *targets: Target,
        host_ips: tuple[str, ...] = ("0.0.0.0", "::"),
        first: int = PORT,
        last: int = 0,
        limit: int = 0,
        limit_per_client: int = 0,
        allow: tuple[str, ...] = (),
        proxy_protocol: int = 0,
        idle_s: float = 0.0,
    ) -> UdpPort:
        mapping = Mapping(
            f"m{first}",
            "udp",
            host_ips,
            first,
            last or first,
            targets,
            limit=limit,
            limit_per_client=limit_per_client,
            allow=allow,
            proxy_protocol=proxy_protocol,
            idle_s=idle_s,
        )
        pairs = [(ip, port) for ip in host_ips for port in mapping.ports]
        return self.serve(mapping, [(self.listening(*pair), pair[1]) for pair in pairs])

    def serve(self, mapping: Mapping, bound: list[tuple[socket.socket, int]]) -> UdpPort:
        self.ports.append(UdpPort(mapping, bound, self.places, self.poller))
        return self.ports[-1]

    def echo(self, node: str, ip: str, port: int, says: str = "") -> socket.socket:
        """A target that answers NAME, a space and what it was sent, and remembers nothing."""
        target = self.bound(node, ip, port)
        name = (says or node).encode()

        def answer(_: int) -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, client = target.recvfrom(65535)
                    target.sendto(name + b" " + data, client)

        self.poller.watch(target.fileno(), LEVEL, answer)
        return target

    def stop(self, target: socket.socket) -> None:
        self.poller.forget(target.fileno())
        target.close()

    def until(self, done: Callable[[], bool], wait_s: float = WAIT_S) -> bool:
        deadline = time.monotonic() + wait_s
        while not done():
            if time.monotonic() > deadline:
                return False
            self.poller.select(0.01)
        return True

    def settle(self) -> None:
        """Everything that is on its way within this machine arrives."""
        for _ in range(3):
            self.poller.select(0.01)

    def receive(self, sock: socket.socket, wait_s: float = WAIT_S) -> tuple[bytes, tuple[str, int]]:
        found: list[tuple[bytes, tuple[str, int]]] = []

        def arrived() -> bool:
            with contextlib.suppress(BlockingIOError):
                data, address = sock.recvfrom(65535)
                found.append((data, address[:2]))
            return bool(found)

        if not self.until(arrived, wait_s):
            raise TimeoutError("nothing came")
        return found[0]

    def ask(
        self, client: socket.socket, ip: str, port: int = PORT, data: bytes = b"?"
    ) -> tuple[bytes, tuple[str, int]]:
        client.sendto(data, (ip, port))
        return self.receive(client)

    def close(self) -> None:
        for port in self.ports:
            port.close()
        for sock in self.sockets:
            sock.close()
        self.places.close()
        self.poller.close()


WEB = Target("127.0.0.1", 53)  # on the host, where most of these tests run
