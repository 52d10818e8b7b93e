"""What goes wrong in the relay, step by step: resets, targets and namespaces that are not there, and what runs out."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable

import pytest
from lab import Lab

from cni_py.errors import CniError
from portfwd.mapping import Place
from portfwd.netns.sockets import Places
from portfwd.relay import pump
from portfwd.relay.tcp import TcpPort
from portfwd.steering.lookup import Steering
from tests.portfwd import talk
from tests.portfwd.stage import BULK, WAIT_S, Log, Stage, descriptors_left
from tests.portfwd.talk import HOST, INSIDE, PORT

WORDS = 8


def answered_before_the_reset() -> tuple[bytes, str]:
    """A server that answers without reading what it was sent: its kernel resets the connection right behind the answer."""
    with Stage() as stage:
        stage.publish()
        client, server = stage.pair()
        client.send(b"much that nobody reads")
        stage.turn()
        server.send(b"too much")
        server.close()
        return stage.all_of(client)


def test_what_was_said_before_a_reset_is_passed_on_before_it(machine: Lab) -> None:
    assert machine["host"].python(answered_before_the_reset) == (b"too much", "ConnectionResetError")


def reset_after_the_end() -> tuple[str, int]:
    """A client that has ended its side, then resets: the target, which still works on the answer, hears of that at once."""
    with Stage() as stage:
        counters = stage.publish().counters
        client, server = stage.pair()
        client.send(b"question")
        client.shutdown(socket.SHUT_WR)
        assert stage.all_of(server) == (b"question", "end")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, talk.RESET)
        client.close()
        stage.until(lambda: counters.active == 0)
        try:
            server.send(b"answer")
            return "sent", counters.active
        except OSError as error:
            return type(error).__name__, counters.active


def test_a_reset_after_the_end_is_passed_on_too(machine: Lab) -> None:
    assert machine["host"].python(reset_after_the_end) in (("ConnectionResetError", 0), ("BrokenPipeError", 0))


def reset_beside_a_hung_target() -> tuple[bool, str]:
    """A client sends more than its target takes, then gives up."""
    with Stage() as stage:
        counters = stage.publish().counters
        client, server = stage.pair()
        for _ in range(10):
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(BULK)
            stage.turn(2)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, talk.RESET)
        client.close()
        return stage.until(lambda: counters.active == 0), stage.all_of(server)[1]


def test_a_client_that_gives_up_is_not_kept_because_its_target_hangs(machine: Lab) -> None:
    assert machine["host"].python(reset_beside_a_hung_target) == (True, "ConnectionResetError")


def urgent(before: int, after: int) -> tuple[int, str]:
    with Stage() as stage:
        stage.publish()
        client, server = stage.pair()
        client.setblocking(True)
        with talk.beside(lambda: speak(client, before, after)):
            got, how = stage.all_of(server)
        return len(got), how


def speak(client: socket.socket, before: int, after: int) -> None:
    client.sendall(bytes(before))
    client.send(b"!", socket.MSG_OOB)
    client.sendall(bytes(after))
    client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(("before", "after"), [(3, 3), (0, 3), (3, 0), (1 << 20, 1 << 20)])
def test_urgent_bytes_stop_nothing_and_are_not_lost(machine: Lab, before: int, after: int) -> None:
    assert machine["host"].python(urgent, before, after) == (before + 1 + after, "end")


def duplex(size: int) -> tuple[int, int, int]:
    """Bulk both ways at once through one connection, and how many turns wait at most."""
    with Stage() as stage:
        stage.publish()
        client, server = stage.pair()
        got, most, sent = {client: 0, server: 0}, 0, {client: 0, server: 0}

        def through() -> bool:
            nonlocal most
            most = max(most, len(stage.poller._again))
            for sock in (client, server):
                with contextlib.suppress(BlockingIOError):
                    while sent[sock] < size:
                        sent[sock] += sock.send(BULK[: size - sent[sock]])
                with contextlib.suppress(BlockingIOError):
                    while got[sock] < size:
                        got[sock] += len(sock.recv(1 << 20))
            return min(got.values()) == size

        stage.until(through, 60.0)
        return got[client], got[server], most


def test_bulk_both_ways_has_one_turn_at_a_time(machine: Lab) -> None:
    size = 60 << 20
    one, other, most = machine["host"].python(duplex, size)
    assert (one, other) == (size, size)
    assert most <= 1


def spliced_after_the_clients_end() -> tuple[int, float]:
    """A client that has asked and ended its side downloads much, in pieces that come one after the other."""
    with Stage() as stage:
        counters = stage.publish().counters
        client, server = stage.pair()
        client.shutdown(socket.SHUT_WR)
        assert stage.all_of(server) == (b"", "end")
        got = sent = 0
        for _ in range(20):
            sent += server.send(BULK)
            got += len(stage.all_of(client, sent - got)[0])
        return got - sent, counters.spliced / sent


def test_a_client_that_has_ended_its_side_is_still_spliced_to(machine: Lab) -> None:
    missing, spliced = machine["host"].python(spliced_after_the_clients_end)
    assert missing == 0
    assert spliced > 0.8


def bulk_beside_words(step: int) -> tuple[int, list[int], bytes]:
    """Turns in which bulk waits and somebody else says a byte: how much waited, how much each turn moved, which bytes came."""
    pump.PIPE_SIZE = (
        step  # small, so that what the kernel's buffers hold is many turns; this process ends with the function
    )
    with Stage() as stage:
        counters = stage.publish().counters
        target = stage.target()
        reader, talker = stage.client(), stage.client()
        source, listener = stage.accepted(target), stage.accepted(target)
        waits, moved, heard = 0, [], b""
        with contextlib.suppress(BlockingIOError):
            while True:
                waits += source.send(BULK)
        for number in range(WORDS):
            before = counters.bytes_out
            talker.send(bytes((number,)))
            stage.poller.select(0)
            moved.append(counters.bytes_out - before)
            with contextlib.suppress(BlockingIOError):
                heard += listener.recv(WORDS)
            with contextlib.suppress(BlockingIOError):
                while reader.recv(1 << 20):
                    pass
        return waits, moved, heard


def test_bulk_does_not_keep_others_waiting(machine: Lab) -> None:
    """A turn of the loop moves a bounded part of what waits, and serves everybody else."""
    step = 1 << 14
    most = pump.BUFFER + pump.ROUNDS_MAX * step
    waits, moved, heard = machine["host"].python(bulk_beside_words, step)
    assert waits > 2 * most
    assert max(moved) <= most
    assert moved[0] > 0
    assert heard == bytes(range(WORDS))


def gone_at_once() -> tuple[dict[str, int], int]:
    """Clients that connect and close, and targets that accept and close."""
    with Stage() as stage:
        server = stage.publish()
        target = stage.target()
        before = len(os.listdir("/proc/self/fd"))
        for number in range(20):
            with socket.create_connection((HOST, PORT), WAIT_S) as client:
                if number % 2:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, talk.RESET)
        for number in range(20):
            with contextlib.suppress(BlockingIOError):
                peer = target.accept()[0]
                if number % 3:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, talk.RESET)
                peer.close()
            stage.turn(1)

        def over() -> bool:
            with contextlib.suppress(BlockingIOError):
                target.accept()[0].close()
            return server.counters.active == 0

        assert stage.until(over)
        assert server.admission.present == 0
        return server.counters.to_json(), len(os.listdir("/proc/self/fd")) - before


def test_who_closes_at_once_leaves_nothing_behind(machine: Lab) -> None:
    counted, more = machine["host"].python(gone_at_once)
    assert counted["connections"] == 20
    assert counted["active"] == 0
    assert more == 0


# Targets


def one_target_nowhere() -> tuple[list[str], list[str], int]:
    with Stage() as stage, Log() as log:
        nowhere = {"address": HOST, "port": 9000, "path": "/run/netns/nowhere"}
        server = stage.publish(targets=[nowhere, {"address": HOST, "port": INSIDE}])
        client, peer = stage.pair()
        client.send(b"hello")
        assert stage.all_of(peer, 5) == (b"hello", "")
        dead = [str(one) for one in server.balancer.dead(stage.poller.now)]
        return dead, log.lines, server.counters.failed


def test_a_target_whose_namespace_is_not_there_is_the_one_taken_for_dead(machine: Lab) -> None:
    dead, logged, failed = machine["host"].python(one_target_nowhere)
    assert dead == [f"{HOST}:9000 in /run/netns/nowhere"]
    assert any("nowhere" in line for line in logged)
    assert failed == 0


def alive_again() -> tuple[int, int]:
    with Stage() as stage:
        server = stage.publish()
        assert stage.all_of(stage.client())[1] == "ConnectionResetError"
        dead = len(server.balancer.dead(stage.poller.now))
        stage.pair()
        stage.turn()
        return dead, len(server.balancer.dead(stage.poller.now))


def test_the_only_target_is_not_called_dead_once_it_has_answered(machine: Lab) -> None:
    assert machine["host"].python(alive_again) == (1, 0)


class Broken(Places):
    """Whatever a record may hold."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def socket(self, place: Place, family: int, kind: int) -> socket.socket:
        raise self.error


def with_broken_places(error: Exception) -> tuple[str, int, int]:
    with Stage() as stage:
        counters = stage.publish().counters
        server = stage.relay.server("m")
        assert isinstance(server, TcpPort)
        server.places = Broken(error)
        how = stage.all_of(stage.client())[1]
        assert server.admission.present == 0
        return how, counters.active, counters.connections


@pytest.mark.parametrize(
    "error", [CniError("a record that cannot be read"), RuntimeError("a fault"), OSError(5, "I/O")]
)
def test_no_error_of_a_namespace_escapes(machine: Lab, error: Exception) -> None:
    assert machine["host"].python(with_broken_places, error) == ("ConnectionResetError", 0, 1)


def unwatched() -> tuple[str, int, int]:
    """The kernel's limit of watches is reached when the two sides are joined."""
    with Stage() as stage:
        server = stage.publish()
        real, calls = stage.poller.watch, 0

        def watch(fd: int, events: int, callback: Callable[[int], None]) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise OSError(errno.ENOSPC, "no space")
            real(fd, events, callback)

        stage.poller.watch = watch  # type: ignore[method-assign]
        stage.target()
        how = stage.all_of(stage.client())[1]
        return how, server.counters.active, len(server.connections)


def test_a_connection_that_cannot_be_watched_is_cut(machine: Lab) -> None:
    assert machine["host"].python(unwatched) == ("ConnectionResetError", 0, 0)


# Out of descriptors


def backlog_without_descriptors(steered: bool) -> tuple[int, int, list[object]]:
    """One descriptor is left: enough for a client, not for its target's socket."""
    with Stage(Steering()) as stage:
        server = stage.publish(steer="always" if steered else "never")
        clients = [stage.client() for _ in range(10)]
        target = stage.target()
        with Log(), descriptors_left(1):
            stage.turn()
            refused = sum(is_reset(client) for client in clients)
        dead: list[object] = [*server.balancer.dead(stage.poller.now)]
        for _ in range(10 - refused):
            stage.accepted(target)
        alive = [client for client in clients if not is_reset(client)]
        return refused, len(alive), dead


def is_reset(client: socket.socket) -> bool:
    try:
        client.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        client.close()
    except OSError:
        return True
    return True


@pytest.mark.parametrize("steered", [False, True])
def test_who_waits_in_the_backlog_is_not_reset_for_want_of_descriptors(machine: Lab, steered: bool) -> None:
    refused, alive, dead = machine["host"].python(backlog_without_descriptors, steered)
    assert refused <= 1
    assert alive == 10 - refused
    assert dead == []  # it is not the target's fault


def deaf() -> int:
    """A listening socket on which accept(2) always fails, for a reason that does not pass."""
    with Stage() as stage:
        server = stage.publish()
        client = stage.client()
        stage.turn()
        server.listeners[0].sock.shutdown(socket.SHUT_RD)  # it listens no more, and epoll says so all the time
        turns, end = 0, time.monotonic() + 0.3
        with Log():
            while time.monotonic() < end:
                stage.poller.select(0.05)
                stage.relay.sweep()
                turns += 1
        client.close()
        return turns


def test_a_listener_that_fails_for_good_does_not_eat_the_processor(machine: Lab) -> None:
    assert machine["host"].python(deaf) < 30
