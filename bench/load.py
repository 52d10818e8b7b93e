"""Servers and clients for bench/publishers.py, bulk.py and ranges.py; each is a program of its own in one of their namespaces.

load.py serve                                 ECHO, SINK, SOURCE, FIRST and LAST, until it is killed; an ECHO for UDP, too
load.py check HOST ECHO SINK                  who the server saw, and whether bytes arrive as they were sent
load.py rtt HOST PORT COUNT                   median of the round trips of 64 bytes, in microseconds
load.py connect HOST PORT CLIENTS COUNT       new connections per second, each with a question and an answer
load.py flows HOST PORT COUNT                 the same of UDP, from a socket each
load.py bulk HOST PORT MEGABYTES              bytes per second to the server
load.py streams HOST PORT up MB CLIENTS       the same of several clients at once, who share MB; `down`: from SOURCE to them
"""

import hashlib
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from typing import NoReturn

ECHO, SINK, SOURCE = 7001, 7002, 7003
FIRST, LAST = 20000, 29999  # another ECHO each: the ends of a long range
MEGABYTE = 1 << 20
WORD = b"x" * 64
SERVERS = 4  # processes that accept on ECHO
STREAMS_MAX = 8  # and on SINK and SOURCE: bulk at once
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
    ends = [(swallow, listening(SINK)), (pour, listening(SOURCE))]
    for work, listener in echoes * SERVERS + ends * STREAMS_MAX:
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
    """Discard everything, then say how much it was; what begins with "hash" is hashed instead."""
    digest = hashlib.sha256()
    if peer.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL) == b"hash":
        while piece := peer.recv(MEGABYTE):
            digest.update(piece)
        peer.sendall(digest.hexdigest().encode())
    else:
        peer.sendall(str(discarded(peer)).encode())


def discarded(peer: socket.socket) -> int:
    """The number of bytes until the end of a stream."""
    size, buffer = 0, bytearray(MEGABYTE)
    while got := peer.recv_into(buffer, MEGABYTE, socket.MSG_TRUNC):  # tcp(7): nothing is copied
        size += got
    return size


def pour(peer: socket.socket, _: str) -> None:
    """Send as many megabytes as the question says, by sendfile(2) from a file in memory, and the end."""
    send_bulk(peer, int(peer.recv(100)) * MEGABYTE)
    peer.shutdown(socket.SHUT_WR)
    peer.recv(1)


def send_bulk(peer: socket.socket, total: int) -> None:
    """Send so many bytes by sendfile(2) from a file in memory."""
    block = os.memfd_create("bulk")
    os.ftruncate(block, 16 * MEGABYTE)
    left = total
    while left:
        left -= os.sendfile(peer.fileno(), block, 0, min(left, 16 * MEGABYTE))
    os.close(block)


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

    def run() -> None:
        for _ in range(count // clients):
            with connect(host, port) as client:
                client.send(WORD)
                assert client.recv(len(WORD), socket.MSG_WAITALL) == WORD

    return count // clients * clients / at_once(run, clients)


def at_once(run: Callable[[], object], clients: int) -> float:
    """Run it in so many processes; seconds until the last has ended."""
    begun = time.perf_counter()
    pids = []
    for _ in range(clients):
        pid = os.fork()
        if pid == 0:
            try:
                run()
            finally:
                os._exit(1 if sys.exc_info()[0] else 0)
        pids.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids), "a client failed"
    return time.perf_counter() - begun


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
    """To SINK."""
    begun = time.perf_counter()
    with connect(host, port) as client:
        client.settimeout(None)
        send_bulk(client, megabytes * MEGABYTE)
        client.shutdown(socket.SHUT_WR)
        assert int(client.recv(100)) == megabytes * MEGABYTE, "bytes are missing"
    return megabytes * MEGABYTE / (time.perf_counter() - begun)


def download(host: str, port: int, megabytes: int) -> None:
    """From SOURCE."""
    with connect(host, port) as client:
        client.settimeout(None)
        client.sendall(str(megabytes).encode())
        assert discarded(client) == megabytes * MEGABYTE, "bytes are missing"


def streams(host: str, port: int, way: str, megabytes: int, clients: int) -> float:
    """Bytes per second of all."""
    share = megabytes // clients
    move = download if way == "down" else bulk
    return share * clients * MEGABYTE / at_once(lambda: move(host, port, share), clients)


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
    elif mode == "streams":
        print(streams(words[0], int(words[1]), words[2], *map(int, words[3:5])))
    else:
        print(bulk(words[0], int(words[1]), int(words[2])))


if __name__ == "__main__":
    main(*sys.argv[1:])
