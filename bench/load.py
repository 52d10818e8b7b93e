"""Servers and clients for bench/publishers.py and ranges.py; each runs as a program of its own in one of the bench's namespaces.

load.py serve                                 ECHO, SINK, FIRST and LAST, until it is killed; but for SINK for UDP, too
load.py check HOST ECHO SINK                  who the server saw, and whether bytes arrive as they were sent
load.py rtt HOST PORT COUNT                   median of the round trips of 64 bytes, in microseconds
load.py connect HOST PORT CLIENTS COUNT       new connections per second, each with a question and an answer
load.py flows HOST PORT COUNT                 the same of UDP, from a socket each
load.py bulk HOST PORT MEGABYTES              bytes per second to the server
"""

import hashlib
import os
import socket
import statistics
import sys
import time
from typing import NoReturn

ECHO, SINK = 7001, 7002
FIRST, LAST = 20000, 29999  # another ECHO each: the ends of a long range
MEGABYTE = 1 << 20
WORD = b"x" * 64
SERVERS = 4  # processes that accept on ECHO
WAIT_S = 30.0


def listening(port: int) -> socket.socket:
    """A server's socket."""
    listener = socket.create_server(("0.0.0.0", port), backlog=4096, reuse_port=False)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve() -> None:
    """Print a line when ready."""
    for port in (ECHO, FIRST, LAST):
        if os.fork() == 0:
            answer_datagrams(port)
    echoes = [(answer, listening(port)) for port in (ECHO, FIRST, LAST)]
    for work, listener in echoes * SERVERS + [(swallow, listening(SINK))]:
        if os.fork() == 0:
            while True:
                peer, address = listener.accept()
                with peer:
                    try:
                        work(peer, address[0])
                    except OSError:
                        continue
    print("ready", flush=True)
    while True:
        time.sleep(3600)


def answer_datagrams(port: int) -> NoReturn:
    """Echo."""
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", port))
    while True:
        data, peer = sock.recvfrom(4096)
        sock.sendto(data, peer)


def answer(peer: socket.socket, client: str) -> None:
    """Echo; a question "who?" gets the address that the client seems to have."""
    while data := peer.recv(4096):
        peer.sendall(client.encode() if data == b"who?" else data)


def swallow(peer: socket.socket, _: str) -> None:
    """Discard everything (tcp(7), MSG_TRUNC), then say how much it was; what begins with "hash" is hashed instead."""
    size, digest = 0, hashlib.sha256()
    hashing = peer.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL) == b"hash"
    buffer = bytearray(MEGABYTE)
    while got := peer.recv_into(buffer, MEGABYTE, 0 if hashing else socket.MSG_TRUNC):
        size += got
        if hashing:
            digest.update(memoryview(buffer)[:got])
    peer.sendall(digest.hexdigest().encode() if hashing else str(size).encode())


def connect(host: str, port: int) -> socket.socket:
    """A client's socket."""
    client = socket.create_connection((host, port), WAIT_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def check(host: str, echo: int, sink: int) -> str:
    """Raises when what arrives is not what was sent."""
    with connect(host, echo) as client:
        client.sendall(b"who?")
        seen = client.recv(100).decode()
    content = b"hash" + os.urandom(8 * MEGABYTE)
    with connect(host, sink) as client:
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100).decode() == hashlib.sha256(content).hexdigest(), "other bytes arrived"
    return seen


def round_trip(host: str, port: int, count: int) -> float:
    """One connection, question and answer in turn."""
    times = []
    with connect(host, port) as client:
        for _ in range(count):
            begun = time.perf_counter()
            client.send(WORD)
            client.recv(len(WORD), socket.MSG_WAITALL)
            times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def connections(host: str, port: int, clients: int, count: int) -> float:
    """`clients` processes share `count` connections."""
    begun = time.perf_counter()
    pids = []
    for _ in range(clients):
        pid = os.fork()
        if pid == 0:
            failed = 0
            for _ in range(count // clients):
                with connect(host, port) as client:
                    client.send(WORD)
                    failed += client.recv(len(WORD), socket.MSG_WAITALL) != WORD
            os._exit(1 if failed else 0)
        pids.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids), "a connection failed"
    return count // clients * clients / (time.perf_counter() - begun)


def flows(host: str, port: int, count: int) -> float:
    """One after the other; a datagram that was lost would be waited for."""
    begun = time.perf_counter()
    for _ in range(count):
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(WAIT_S)
            client.connect((host, port))
            client.send(WORD)
            assert client.recv(len(WORD)) == WORD
    return count / (time.perf_counter() - begun)


def bulk(host: str, port: int, megabytes: int) -> float:
    """From a file in memory, by sendfile(2)."""
    block = os.memfd_create("bulk")
    os.ftruncate(block, 16 * MEGABYTE)
    total = megabytes * MEGABYTE
    begun = time.perf_counter()
    with connect(host, port) as client:
        client.settimeout(None)
        left = total
        while left:
            left -= os.sendfile(client.fileno(), block, 0, min(left, 16 * MEGABYTE))
        client.shutdown(socket.SHUT_WR)
        assert int(client.recv(100)) == total, "bytes are missing"
    return total / (time.perf_counter() - begun)


def main(mode: str, *words: str) -> None:
    """Run one of them and print its figure."""
    if mode == "serve":
        serve()
    elif mode == "check":
        print(check(words[0], int(words[1]), int(words[2])))
    elif mode == "rtt":
        print(round_trip(words[0], int(words[1]), int(words[2])))
    elif mode == "flows":
        print(flows(words[0], *map(int, words[1:3])))
    elif mode == "connect":
        print(connections(words[0], *map(int, words[1:4])))
    else:
        print(bulk(words[0], int(words[1]), int(words[2])))


if __name__ == "__main__":
    main(*sys.argv[1:])
