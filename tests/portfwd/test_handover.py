"""A service that is replaced or killed: what runs goes on, what is published stays published."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from lab import Lab

from tests.portfwd import talk
from tests.portfwd.publisher import SOCKET, Publisher, await_socket, exchange, serving
from tests.portfwd.talk import HOST, INSIDE, PORT

MEGABYTE = 1 << 20


@pytest.fixture
def service(machine: Lab) -> Iterator[Publisher]:
    with serving(machine["host"]) as publisher:
        publisher.publish(HOST, PORT, (HOST, INSIDE))
        yield publisher
        publisher.ask("remove", ids=[f"m{PORT}"], drain_s=0.0)


def pid_now() -> int:
    return int(exchange(SOCKET, {"verb": "stats"})["service"]["pid"])


def reload() -> None:
    """`portfwd reload`, and wait for the successor."""
    before = pid_now()
    answer = exchange(SOCKET, {"verb": "reload"})
    assert answer["ok"] is True, answer
    assert talk.until(lambda: pid_now_or_zero() not in (0, before))


def pid_now_or_zero() -> int:
    try:
        return pid_now()
    except (OSError, KeyError, ValueError):
        return 0


def transfer_over_reloads(size: int, reloads: int, upload: bool) -> tuple[int, bool, int]:
    """A bulk transfer during which the service is replaced several times."""
    said: list[str] = []
    pids = {pid_now()}
    with talk.pair() as (client, server):
        source, sink = (client, server) if upload else (server, client)

        def send_in_steps() -> None:
            digest = hashlib.sha256()
            for step in range(reloads + 1):
                block = os.urandom(MEGABYTE)
                for _ in range(size // MEGABYTE // (reloads + 1)):
                    source.sendall(block)
                    digest.update(block)
                if step < reloads:
                    reload()  # with a pipe and buffers full of what has been sent
                    pids.add(pid_now())
            source.shutdown(socket.SHUT_WR)
            said.append(digest.hexdigest())

        with talk.beside(send_in_steps):
            talk.until(lambda: not select.select([], [source], [], 0)[1])  # all on the way is full
            got, digest = talk.digest_of_all(sink)
        return got, digest == said[0], len(pids)


@pytest.mark.parametrize("upload", [False, True])
def test_a_running_transfer_survives_the_replacement_of_the_service(service: Publisher, upload: bool) -> None:
    size = 48 * MEGABYTE
    assert service.node.python(transfer_over_reloads, size, 2, upload) == (size, True, 3)
    assert service.stats(f"m{PORT}")["connections"] == 1


def idle_and_half_closed_over_a_reload() -> tuple[bytes, bytes, bytes]:
    with talk.listening() as listener:
        quiet, half = talk.connect(), talk.connect()
        served = [listener.accept()[0] for _ in range(2)]
        half.sendall(b"all I say")
        half.shutdown(socket.SHUT_WR)
        said = talk.read_all(served[1])
        reload()
        quiet.sendall(b"hello again")
        heard = served[0].recv(100)
        served[1].sendall(b"late answer")
        served[1].close()
        answered = talk.read_all(half)
        for sock in (quiet, half, served[0]):
            sock.close()
    return said, heard, answered


def test_silent_and_half_closed_connections_survive_it_too(service: Publisher) -> None:
    heard = service.node.python(idle_and_half_closed_over_a_reload)
    assert heard == (b"all I say", b"hello again", b"late answer")
    assert talk.until(lambda: service.stats(f"m{PORT}")["active"] == 0)


def clients_through_reloads(count: int, reloads: int) -> tuple[int, int]:
    """Clients that come one after the other while the service is replaced; how many were served."""
    stop = threading.Event()
    served = failed = 0

    def answer_all() -> None:
        listener.settimeout(0.1)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                talk.answer(listener.accept()[0])

    def reload_all() -> None:
        for _ in range(reloads):
            reload()

    with talk.listening() as listener, talk.beside(answer_all):
        with talk.beside(reload_all):
            for number in range(count):
                try:
                    with talk.connect() as client:
                        word = str(number).encode()
                        served += talk.ask(client, word) == word
                except OSError:
                    failed += 1
                time.sleep(0.002)
        stop.set()
    return served, failed


def test_no_new_connection_is_refused_while_the_service_is_replaced(service: Publisher) -> None:
    assert service.node.python(clients_through_reloads, 300, 2) == (300, 0)


def test_a_killed_service_publishes_everything_again(machine: Lab) -> None:
    node = machine["c1"]
    with serving(node) as first:
        first.publish(HOST, PORT, (HOST, INSIDE))
        first.publish(HOST, PORT + 1000, (HOST, INSIDE))
        pid = first.pid()
        node.python(os.kill, pid, signal.SIGKILL)
        first.process.wait(10)
        holder = node.popen(["sleep", "30"])
        try:
            with serving(node) as second:
                names = [one["id"] for one in second.ask("list")["mappings"]]
                assert sorted(names) == [f"m{PORT}", f"m{PORT + 1000}"]
                assert node.python(echoed) == b"hello"
        finally:
            holder.kill()
            holder.wait()


def echoed() -> bytes:
    with talk.echoing(1), talk.connect() as client:
        return talk.ask(client, b"hello")


def bad_successor(words: list[str]) -> bytes:
    """One that asks for everything and then says nothing: the service must go on serving."""
    with talk.pair() as (client, server):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(talk.WAIT_S)
            peer.connect(SOCKET)
            peer.sendall(b'{"verb": "handover", "version": 1}\n')
            peer.recv(10)
        await_socket(SOCKET)
        client.sendall(words[0].encode())
        return server.recv(100)


def test_a_successor_that_fails_costs_nothing(service: Publisher) -> None:
    assert service.node.python(bad_successor, ["go on"]) == b"go on"
    assert service.node.python(echoed) == b"hello"
