"""Clients and servers for the relay's tests; all of it runs inside a node of a lab, on its loopback."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

HOST, PORT, INSIDE = "127.0.0.1", 8080, 8081
WAIT_S = 10.0
CHUNK = 1 << 16
RESET = struct.pack("ii", 1, 0)  # struct linger: a reset instead of an end


def connect(port: int = PORT, host: str = HOST, source: str = "") -> socket.socket:
    """A client; every operation of it ends after WAIT_S."""
    return socket.create_connection((host, port), WAIT_S, source_address=(source, 0) if source else None)


@contextlib.contextmanager
def listening(port: int = INSIDE, host: str = HOST, backlog: int = 4096) -> Iterator[socket.socket]:
    """A server's socket."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(backlog)
        listener.settimeout(WAIT_S)
        yield listener


@contextlib.contextmanager
def pair(port: int = PORT) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's socket and what the server accepted for it, through the relay."""
    with listening() as listener, connect(port) as client:
        server, _ = listener.accept()
        with server:
            server.settimeout(WAIT_S)
            yield client, server


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Run something in a thread for the length of a block, and wait for its end."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(WAIT_S)


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the other side's end."""
    parts = []
    while part := sock.recv(CHUNK):
        parts.append(part)
    return b"".join(parts)


def digest_of_all(sock: socket.socket) -> tuple[int, str]:
    """How much comes up to the other side's end, and its SHA-256."""
    size, digest = 0, hashlib.sha256()
    while part := sock.recv(CHUNK):
        size += len(part)
        digest.update(part)
    return size, digest.hexdigest()


def send_random(sock: socket.socket, size: int, say: list[str]) -> None:
    """Send so many bytes, end, and leave their SHA-256 in `say`."""
    digest = hashlib.sha256()
    block = os.urandom(CHUNK)
    while size > 0:
        part = block[: min(size, CHUNK)]
        sock.sendall(part)
        digest.update(part)
        size -= len(part)
        block = block[1:] + block[:1]
    sock.shutdown(socket.SHUT_WR)
    say.append(digest.hexdigest())


@contextlib.contextmanager
def echoing(connections: int, port: int = INSIDE, host: str = HOST) -> Iterator[None]:
    """A server that listens from the beginning of the block, accepts so many connections and sends back what each sends."""

    def answer_all() -> None:
        threads = []
        for _ in range(connections):
            peer, _ = listener.accept()
            threads.append(threading.Thread(target=answer, args=(peer,)))
            threads[-1].start()
        for thread in threads:
            thread.join(WAIT_S)

    with listening(port, host) as listener, beside(answer_all):
        yield


def answer(peer: socket.socket) -> None:
    """Send back what comes."""
    with peer, contextlib.suppress(ConnectionError):
        peer.settimeout(WAIT_S)
        while part := peer.recv(CHUNK):
            peer.sendall(part)


def ask(client: socket.socket, text: bytes) -> bytes:
    """Send a few bytes and read as many."""
    client.sendall(text)
    found = b""
    while len(found) < len(text) and (part := client.recv(len(text) - len(found))):
        found += part
    return found


def until(true: Callable[[], bool], wait_s: float = WAIT_S) -> bool:
    """Wait for something to become true."""
    end = time.monotonic() + wait_s
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
