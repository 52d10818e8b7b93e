"""TCP through the relay, by the installed service: ends, resets, limits, bulk, and what a process may run out of."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from lab import Lab

from tests.portfwd import talk
from tests.portfwd.publisher import REFUSE, Publisher, serving
from tests.portfwd.talk import HOST, INSIDE, PORT

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def service(machine: Lab) -> Iterator[Publisher]:
    with serving(machine["host"]) as publisher:
        yield publisher


@pytest.fixture
def relayed(service: Publisher) -> Iterator[Publisher]:
    """127.0.0.1:8080 leads to 127.0.0.1:8081."""
    service.publish(HOST, PORT, (HOST, INSIDE))
    yield service
    service.ask("remove", ids=[f"m{PORT}"], drain_s=0.0)


def halves(first: str) -> tuple[bytes, bytes]:
    """What the other side gets of who ends first, and what that one gets after its end."""
    with talk.pair() as (client, server):
        one, other = (client, server) if first == "client" else (server, client)
        one.sendall(b"question")
        one.shutdown(socket.SHUT_WR)
        asked = talk.read_all(other)
        other.sendall(b"answer" * 100_000)
        other.shutdown(socket.SHUT_WR)
        return asked, talk.read_all(one)


@pytest.mark.parametrize("first", ["client", "server"])
def test_who_has_said_all_still_gets_the_answer(relayed: Publisher, first: str) -> None:
    assert relayed.node.python(halves, first) == (b"question", b"answer" * 100_000)


def reset_by(who: str) -> str:
    with talk.pair() as (client, server):
        one, other = (client, server) if who == "client" else (server, client)
        assert talk.ask(client, b"") == b""
        client.sendall(b"hello")
        server.recv(5)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, talk.RESET)
        one.close()
        try:
            return str(other.recv(1))
        except OSError as error:
            return type(error).__name__


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_in_the_middle_reaches_the_other_side_as_one(relayed: Publisher, who: str) -> None:
    assert relayed.node.python(reset_by, who) == "ConnectionResetError"
    assert relayed.stats(f"m{PORT}")["active"] == 0


def download(size: int) -> tuple[tuple[int, str], str]:
    said: list[str] = []
    with talk.pair() as (client, server):
        with talk.beside(lambda: talk.send_random(server, size, said)):
            got = talk.digest_of_all(client)
        return got, said[0]


def test_bulk_is_spliced_in_the_kernel(relayed: Publisher) -> None:
    (size, got), sent = relayed.node.python(download, 100 * MEGABYTE)
    assert (size, got) == (100 * MEGABYTE, sent)
    counted = relayed.stats(f"m{PORT}")
    assert counted["bytes_out"] == size
    assert counted["spliced"] >= 0.99 * size


def test_where_splice_is_refused_bytes_are_copied(machine: Lab) -> None:
    with serving(machine["client"], prefix=[sys.executable, REFUSE, "splice"]) as service:
        service.publish(HOST, PORT, (HOST, INSIDE))
        (size, got), sent = service.node.python(download, 20 * MEGABYTE)
        assert (size, got) == (20 * MEGABYTE, sent)
        assert service.stats(f"m{PORT}")["spliced"] == 0
        assert service.stats(f"m{PORT}")["bytes_out"] == size


def slow(reader: str) -> tuple[int, bytes, int]:
    """One side floods, the other does not read for a while; another client is served meanwhile."""
    with talk.listening() as listener, talk.connect() as client:
        server, _ = listener.accept()
        with server, talk.connect() as neighbour:
            beside, _ = listener.accept()
            source, sink = (server, client) if reader == "client" else (client, server)
            source.settimeout(0.3)
            pushed = 0
            try:
                while pushed < 200 * MEGABYTE:
                    pushed += source.send(bytes(MEGABYTE))
            except TimeoutError:
                pass
            with beside:
                neighbour.sendall(b"still there?")
                heard = beside.recv(100)
            source.shutdown(socket.SHUT_WR)
            return pushed, heard, len(talk.read_all(sink))


@pytest.mark.parametrize("reader", ["client", "server"])
def test_a_slow_reader_holds_back_its_writer_and_nobody_else(relayed: Publisher, reader: str) -> None:
    pushed, heard, received = relayed.node.python(slow, reader)
    assert heard == b"still there?"
    assert pushed == received < 100 * MEGABYTE  # what fits into the sockets' buffers and a pipe


def slow_writer() -> bytes:
    with talk.pair() as (client, server):
        heard = b""
        for letter in b"drop by drop":  # each has gone all the way before the next comes
            client.sendall(bytes([letter]))
            heard += server.recv(100)
        client.shutdown(socket.SHUT_WR)
        return heard + talk.read_all(server)


def test_a_slow_writer_is_heard(relayed: Publisher) -> None:
    assert relayed.node.python(slow_writer) == b"drop by drop"


def refused() -> str:
    try:
        with talk.connect() as client:
            return str(client.recv(1))
    except OSError as error:
        return type(error).__name__


def served_after_all() -> bytes:
    with talk.echoing(1), talk.connect() as client:
        return talk.ask(client, b"back again")


def test_a_target_that_restarts_is_found_again(relayed: Publisher) -> None:
    assert relayed.node.python(refused) == "ConnectionResetError"
    assert relayed.stats(f"m{PORT}")["failed"] == 1
    assert relayed.node.python(served_after_all) == b"back again"


def crowd(size: int) -> tuple[int, int]:
    """So many clients at once, silent; then each says a word and gets it back. Returns how many did, and the descriptors."""
    clients: list[socket.socket] = []
    accepted: list[socket.socket] = []
    with talk.listening() as listener:

        def accept_all() -> None:
            accepted.extend(listener.accept()[0] for _ in range(size))

        with talk.beside(accept_all):
            clients.extend(talk.connect() for _ in range(size))
        served = 0
        for client, word in zip(clients, map(str, range(size)), strict=True):
            client.sendall(word.encode())
        for server in accepted:
            server.sendall(server.recv(100))
        for client, word in zip(clients, map(str, range(size)), strict=True):
            served += client.recv(100) == word.encode()
        for sock in clients + accepted:
            sock.close()
    return served, len(clients)


def resident_kilobytes(pid: int) -> int:
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0])


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_four_thousand_idle_connections_cost_little(relayed: Publisher) -> None:
    node, pid = relayed.node, relayed.pid()
    before = node.python(descriptors, pid)
    assert relayed.node.python(crowd, 4000, timeout_s=60) == (4000, 4000)
    assert talk.until(lambda: relayed.stats(f"m{PORT}")["active"] == 0)
    assert node.python(descriptors, pid) <= before + 40  # pipes kept for the next bulk
    assert 8_000 < node.python(resident_kilobytes, pid) < 80_000  # less than that would be another program


def too_many(size: int) -> tuple[int, int]:
    """More clients than the service has descriptors for; as one leaves, the next is served. Returns (at once, in the end).

    One whose target's socket cannot be made is reset, and tries again, as clients do.
    """
    with talk.echoing(size):
        clients = [asking() for _ in range(size)]
        at_once = served = 0
        end = time.monotonic() + 3 * talk.WAIT_S
        while clients and time.monotonic() < end:
            answered = [client for client in clients if is_answered(client)]
            served += len(answered)
            at_once = at_once or served
            for client in answered:
                client.close()
            clients = [asking() if client.fileno() < 0 else client for client in clients if client not in answered]
        for client in clients:
            client.close()
        return at_once, served


def asking() -> socket.socket:
    """A client that has sent its word."""
    while True:
        with contextlib.suppress(ConnectionResetError):
            client = talk.connect()
            try:
                client.sendall(b"me")
            except ConnectionResetError:
                client.close()
            else:
                return client


def is_answered(client: socket.socket) -> bool:
    """Whether the word has come back; the client is closed when it was reset."""
    client.settimeout(0.02)
    try:
        return client.recv(2) == b"me"
    except TimeoutError:
        return False
    except ConnectionResetError:
        client.close()
        return False


def test_running_out_of_descriptors_is_survived(machine: Lab) -> None:
    limited = ["prlimit", "--nofile=80:80", "--"]
    with serving(machine["c1"], prefix=limited) as service:
        service.publish(HOST, PORT, (HOST, INSIDE))
        at_once, in_the_end = service.node.python(too_many, 60)
        assert 0 < at_once < 60
        assert in_the_end == 60
        assert service.stats(f"m{PORT}")["errors"] > 0


def greeted_from(source: str) -> str:
    with talk.echoing(1):
        try:
            with talk.connect(source=source) as client:
                return talk.ask(client, b"hi").decode()
        except ConnectionResetError:
            with talk.connect(source="127.0.0.1") as other:
                talk.ask(other, b"hi")
            return "reset"


def test_the_allow_list_decides_by_the_clients_address(service: Publisher) -> None:
    service.publish(HOST, PORT, (HOST, INSIDE), allow=["127.0.0.0/30"])
    try:
        assert service.node.python(greeted_from, "127.0.0.2") == "hi"
        assert service.node.python(greeted_from, "127.0.0.7") == "reset"
        assert service.stats(f"m{PORT}")["refused"] == 1
    finally:
        service.ask("remove", ids=[f"m{PORT}"], drain_s=0.0)


def three_clients(sources: list[str]) -> list[str]:
    """Connect one after the other, all staying; what each gets."""
    with talk.listening() as listener:
        found, kept = [], []
        for source in sources:
            try:
                client = talk.connect(source=source)
            except ConnectionResetError:  # it is that quick
                found.append("reset")
                continue
            kept.append(client)
            if listener in select.select([listener, client], [], [], talk.WAIT_S)[0]:
                server, _ = listener.accept()
                kept.append(server)
                server.sendall(b"in")
            try:
                found.append(client.recv(2).decode() or "end")
            except ConnectionResetError:
                found.append("reset")
        for sock in kept:
            sock.close()
    return found


@pytest.mark.parametrize(
    ("limits", "sources", "found"),
    [
        ({"limit": 2}, ["127.0.0.1", "127.0.0.2", "127.0.0.3"], ["in", "in", "reset"]),
        ({"limit_per_client": 1}, ["127.0.0.1", "127.0.0.1", "127.0.0.3"], ["in", "reset", "in"]),
    ],
)
def test_limits_hold_per_port_and_per_client(
    service: Publisher, limits: dict[str, int], sources: list[str], found: list[str]
) -> None:
    service.publish(HOST, PORT, (HOST, INSIDE), **limits)
    try:
        assert service.node.python(three_clients, sources) == found
    finally:
        service.ask("remove", ids=[f"m{PORT}"], drain_s=0.0)


def how_long_until_cut() -> tuple[str, float]:
    begun = time.monotonic()
    with talk.listening() as listener, talk.connect() as client:
        server, _ = listener.accept()
        with server:
            try:
                return str(client.recv(1)), time.monotonic() - begun
            except ConnectionResetError:
                return "reset", time.monotonic() - begun


def test_an_idle_connection_is_cut_where_the_mapping_says_so(service: Publisher) -> None:
    service.publish(HOST, PORT, (HOST, INSIDE), idle_s=0.5)
    try:
        how, after_s = service.node.python(how_long_until_cut)
        assert how == "reset"
        assert after_s >= 0.4
    finally:
        service.ask("remove", ids=[f"m{PORT}"], drain_s=0.0)


def test_a_target_that_does_not_answer_is_given_up_in_time(service: Publisher) -> None:
    """Its segments are dropped on the way, as by a firewall."""
    node = service.node
    chain = "add table ip hole; add chain ip hole out { type filter hook output priority 0; }"
    rules = f"{chain}; add rule ip hole out tcp dport {INSIDE} drop"
    node.run(["nft", rules], check=True)
    service.publish(HOST, PORT, (HOST, INSIDE), connect_timeout_s=0.3)
    try:
        # A TimeoutError, if the relay waited as long as the kernel
        assert node.python(refused) == "ConnectionResetError"
        assert service.stats(f"m{PORT}")["failed"] == 1
    finally:
        node.run(["nft", "delete table ip hole"], check=True)
        service.ask("remove", ids=[f"m{PORT}"], drain_s=0.0)


def header_seen(version: int) -> tuple[bytes, tuple[str, int]]:
    with talk.listening() as listener, talk.connect(source="127.0.0.5") as client:
        server, _ = listener.accept()
        with server:
            server.settimeout(talk.WAIT_S)
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            return talk.read_all(server), client.getsockname()


def test_the_proxy_protocol_tells_the_target_who_the_client_is(service: Publisher) -> None:
    service.publish(HOST, PORT, (HOST, INSIDE), proxy_protocol=1)
    try:
        seen, (ip, number) = service.node.python(header_seen, 1)
        assert seen == f"PROXY TCP4 {ip} {HOST} {number} {PORT}\r\nhello".encode()
    finally:
        service.ask("remove", ids=[f"m{PORT}"], drain_s=0.0)


def answers_of(ports: list[int], rounds: int) -> list[str]:
    """Servers that say their port, and what clients hear in turn."""
    stop = threading.Event()

    def say(port: int, listener: socket.socket) -> None:
        listener.settimeout(0.1)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                peer, _ = listener.accept()
                with peer:
                    peer.sendall(str(port).encode())

    with contextlib.ExitStack() as servers:
        for port in ports:
            listener = servers.enter_context(talk.listening(port))
            servers.enter_context(talk.beside(partial(say, port, listener)))
        servers.callback(stop.set)
        found = []
        for _ in range(rounds):
            with talk.connect() as client:
                found.append(talk.read_all(client).decode())
        return found


def test_several_targets_take_turns_and_a_dead_one_is_left_out(service: Publisher) -> None:
    service.publish(HOST, PORT, (HOST, 8081), (HOST, 8082), (HOST, 8083))
    try:
        heard = service.node.python(answers_of, [8081, 8083], 8)
        assert sorted(heard) == ["8081"] * 4 + ["8083"] * 4
        assert service.stats(f"m{PORT}")["dead_targets"] == ["127.0.0.1:8082"]
        assert service.stats(f"m{PORT}")["failed"] == 0
    finally:
        service.ask("remove", ids=[f"m{PORT}"], drain_s=0.0)


def withdraw(drain_s: float, talk_on: bool) -> tuple[str, str, str]:
    """Remove a mapping under a running connection: what the connection, and a new client, then find."""
    from tests.portfwd.publisher import SOCKET, exchange

    with talk.pair() as (client, server):
        exchange(SOCKET, {"verb": "remove", "ids": [f"m{PORT}"], "drain_s": drain_s})
        try:
            talk.connect().close()
            new = "accepted"
        except ConnectionRefusedError:
            new = "refused"
        if talk_on:
            client.sendall(b"last words")
            heard = server.recv(100).decode()
            client.close()
            return new, heard, server.recv(1).decode()
        try:
            return new, "", client.recv(1).decode()
        except ConnectionResetError:
            return new, "", "reset"


def test_a_removed_mapping_lets_running_connections_finish(service: Publisher) -> None:
    service.publish(HOST, PORT, (HOST, INSIDE))
    assert service.node.python(withdraw, 60.0, True) == ("refused", "last words", "")


def test_what_does_not_finish_is_cut(service: Publisher) -> None:
    service.publish(HOST, PORT, (HOST, INSIDE))
    assert service.node.python(withdraw, 0.3, False) == ("refused", "", "reset")


def content_hash(size: int) -> str:
    return hashlib.sha256(bytes(size)).hexdigest()
