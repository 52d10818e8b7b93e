"""A relay in the test's own process, in a node of a lab: its event loop turns when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator

from portfwd.mapping import Mapping
from portfwd.netns.sockets import Places
from portfwd.relay.poller import Poller
from portfwd.relay.publish import Relay
from portfwd.relay.tcp import TcpPort
from portfwd.service.descriptors import Descriptors
from portfwd.service.registry import Registry
from portfwd.service.store import Store
from portfwd.steering.lookup import Steering
from tests.portfwd.talk import HOST, INSIDE, PORT

WAIT_S = 10.0
BULK = bytes(1 << 18)


class Stage:
    """A relay whose event loop turns when a test says so, its clients and its targets."""

    def __init__(self, steering: Steering | None = None) -> None:
        self.poller = Poller()
        self.places = Places()
        self.relay = Relay(self.poller, self.places, steering=steering)
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.sockets:
            sock.close()
        self.relay.close()
        self.places.close()
        self.poller.close()

    def publish(self, **fields: object) -> TcpPort:
        """127.0.0.1:8080 to 127.0.0.1:8081, but for `fields`."""
        self.relay.publish(mapping_of(**fields))
        server = self.relay.server("m")
        assert isinstance(server, TcpPort)
        return server

    def target(self, port: int = INSIDE, backlog: int = 100) -> socket.socket:
        listener = socket.socket()
        self.sockets.append(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(backlog)
        listener.setblocking(False)
        return listener

    def client(self, port: int = PORT) -> socket.socket:
        """Connected to the backlog; whether it is accepted is the relay's business."""
        sock = socket.create_connection((HOST, port), WAIT_S)
        self.sockets.append(sock)
        sock.setblocking(False)
        return sock

    def accepted(self, target: socket.socket) -> socket.socket:
        found: list[socket.socket] = []

        def there() -> bool:
            with contextlib.suppress(BlockingIOError):
                found.append(target.accept()[0])
            return bool(found)

        assert self.until(there)
        self.sockets.append(found[0])
        found[0].setblocking(False)
        return found[0]

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A client and the target's end."""
        target, client = self.target(), self.client()
        return client, self.accepted(target)

    def turn(self, times: int = 5) -> None:
        for _ in range(times):
            self.poller.select(0.01)

    def until(self, true: Callable[[], bool], wait_s: float = WAIT_S) -> bool:
        end = time.monotonic() + wait_s
        while not true():
            if time.monotonic() > end:
                return False
            self.poller.select(0.01)
            self.relay.sweep()
        return True

    def all_of(self, sock: socket.socket, size: int = -1) -> tuple[bytes, str]:
        """What comes until `size` bytes or the end, and how that is."""
        got, how = b"", ""

        def through() -> bool:
            nonlocal got, how
            try:
                part = sock.recv(1 << 20)
            except BlockingIOError:
                return len(got) == size
            except OSError as error:
                how = type(error).__name__
                return True
            got += part
            how = "" if part else "end"
            return not part or len(got) == size

        if not self.until(through):
            how = "nothing more"
        return got, how


@contextlib.contextmanager
def started(state: str) -> Iterator[Registry]:
    """A service as far as mappings go, which has published what is on disk."""
    poller = Poller()
    loop = asyncio.SelectorEventLoop(poller)
    places = Places()
    relay = Relay(poller, places)
    registry = Registry(loop, relay, Store(state), Descriptors())
    try:
        registry.restore()
        yield registry
    finally:
        registry.owners.close()
        relay.close()
        places.close()
        loop.close()


def mapping_of(**fields: object) -> Mapping:
    usual = {
        "id": "m",
        "protocol": "tcp",
        "host_ips": [HOST],
        "first": PORT,
        "last": PORT,
        "targets": [{"address": HOST, "port": INSIDE}],
    }
    return Mapping.from_json({**usual, **fields})


class Log(logging.Handler):
    """What is logged within a block."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Log:
        logging.getLogger("portfwd").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("portfwd").removeHandler(self)


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process may open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(count):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)
