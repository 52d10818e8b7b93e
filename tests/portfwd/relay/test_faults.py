"""What goes wrong in the relay, step by step: resets, targets and namespaces that are not there, and what runs out."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from lab import Lab

from cni_py.errors import CniError
from portfwd.errors import PortfwdError
from portfwd.mapping import Place
from portfwd.netns.sockets import Places
from portfwd.relay import bind, pump
from portfwd.relay.bind import NoSuchFamily
from portfwd.relay.tcp import TcpPort
from portfwd.steering.lookup import Range, Steering
from tests.portfwd import talk
from tests.portfwd.stage import BULK, WAIT_S, Log, Stage, descriptors_left, mapping_of
from tests.portfwd.talk import HOST, INSIDE, PORT

WORDS = 8


@pytest.fixture(scope="module")
def machine() -> Iterator[Lab]:
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


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
        return stage.until(lambda: counters.active == 0, 1.0), stage.all_of(server)[1]


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

        stage.until(through, 10)
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


class Refusing(Steering):
    """Takes everything, or fails from the nth on, as the kernel may."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.calls = 0
        self.fails_at = fails_at

    def put(self, wanted: Range, sock: socket.socket) -> None:
        self.calls += 1
        if self.fails_at and self.calls >= self.fails_at:
            raise PortfwdError("bpf(2) takes no entry")
        super().put(wanted, sock)


def backlog_without_descriptors(steered: bool) -> tuple[int, int, list[object], str]:
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
        return refused, len(alive), dead, ""


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
    refused, alive, dead, _ = machine["host"].python(backlog_without_descriptors, steered)
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


# Publishing


def refused_entry(fails_at: int) -> tuple[list[str], int, bool]:
    """What is published and watched after an error, all of whose sockets are closed, and a good try."""
    steering = Refusing(fails_at)
    with Stage(steering) as stage:
        taken = [socket.create_server((HOST, PORT)), socket.create_server(("::1", PORT), family=socket.AF_INET6)]
        before = len(stage.poller._watched)
        fields = {"host_ips": [HOST, "127.0.0.2", "::1"], "steer": "fallback"}
        with pytest.raises(PortfwdError):
            stage.publish(**fields)
        with socket.create_server(("127.0.0.2", PORT)):
            pass
        assert steering.ranges == []
        left = len(stage.poller._watched) - before
        steering.fails_at = 0
        stage.publish(**fields)
        assert [one.ip for one in steering.ranges] == [HOST, "::1"]
        for sock in taken:
            sock.close()
        return list(stage.relay.mappings), left, stage.client().fileno() >= 0


@pytest.mark.parametrize("fails_at", [1, 2])
def test_an_entry_that_is_refused_leaves_nothing_published(machine: Lab, fails_at: int) -> None:
    assert machine["host"].python(refused_entry, fails_at) == (["m"], 0, True)


def without_ipv6(steer: str) -> tuple[list[str], tuple[str, ...]]:
    real = bind.bind_tcp

    def bind_tcp(ip: str, port: int) -> socket.socket:
        if ":" in ip:
            raise NoSuchFamily(f"cannot listen on port {port}", "Address family not supported by protocol")
        return real(ip, port)

    bind.bind_tcp = bind_tcp  # this is a child of its own
    with Stage(Steering()) as stage:
        notes = stage.relay.publish(
            mapping_of(
                host_ips=["0.0.0.0", "::"],
                last=PORT + 100,
                steer=steer,
                targets=[{"address": HOST, "port": 20000}],
            )
        )
        return notes, stage.relay.published[0].steered


@pytest.mark.parametrize(("steer", "steered"), [("auto", ("0.0.0.0",)), ("never", ())])
def test_a_host_without_ipv6_publishes_a_range_on_ipv4(machine: Lab, steer: str, steered: tuple[str, ...]) -> None:
    notes, found = machine["host"].python(without_ipv6, steer)
    assert len(notes) == 1
    assert found == steered


def unwatchable() -> tuple[str, int]:
    with Stage() as stage:
        before = set(stage.poller._watched)
        real, calls = stage.poller.watch, 0

        def watch(fd: int, events: int, callback: Callable[[int], None]) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise OSError(errno.ENOSPC, "no space")
            real(fd, events, callback)

        stage.poller.watch = watch  # type: ignore[method-assign]
        try:
            stage.publish(last=PORT + 3, targets=[{"address": HOST, "port": 20000}])
        except PortfwdError as error:
            return type(error).__name__, len(set(stage.poller._watched) - before)
    return "", -1


def test_a_listener_that_cannot_be_watched_leaves_no_watch_behind(machine: Lab) -> None:
    assert machine["host"].python(unwatchable) == ("Lacking", 0)


def given_beside_another() -> str:
    """Two sockets may be bound to a port, but only one may listen."""
    with Stage() as stage, socket.socket() as given, socket.socket() as other:
        for sock in (given, other):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((HOST, PORT))
        other.listen()
        try:
            stage.relay.publish(mapping_of(), [given])
        except PortfwdError as error:
            return type(error).__name__
    return ""


def test_a_given_socket_on_which_another_listens_is_a_port_in_use(machine: Lab) -> None:
    assert machine["host"].python(given_beside_another) == "PortInUse"


def removed_while_connecting(drain_s: float) -> tuple[str, int, int]:
    with Stage() as stage:
        server = stage.publish(connect_timeout_s=60.0)
        full = stage.target(backlog=0)
        stage.sockets += [socket.create_connection((HOST, INSIDE), WAIT_S)]  # its backlog is full: it answers nobody
        before = len(os.listdir("/proc/self/fd"))
        client = stage.client()
        stage.turn()
        assert len(server.connecting) == 1
        stage.relay.remove("m", drain_s)
        how = stage.all_of(client)[1]
        stage.until(lambda: stage.relay.draining == 0)
        stage.relay.sweep()
        full.close()
        assert not stage.relay.draining_servers
        client.close()
        # the listener, the client's end and the target's socket have gone; `full` was counted before
        return how, len(server.connecting) + len(server.connections), len(os.listdir("/proc/self/fd")) - before


@pytest.mark.parametrize("drain_s", [0.0, 0.2])
def test_a_mapping_removed_while_it_connects_leaves_nothing(machine: Lab, drain_s: float) -> None:
    assert machine["host"].python(removed_while_connecting, drain_s) == ("ConnectionResetError", 0, -2)


def beside_a_holder(host_ip: str) -> list[bytes]:
    """Whom a client reaches at a port that somebody else's socket holds: before, while and after it is published."""
    with Stage(Steering()) as stage, socket.socket() as holder:
        holder.bind((host_ip, PORT))
        holder.listen()
        target = stage.target()
        found = [spoken_to(stage, holder, b"holder")]
        stage.publish(host_ips=[host_ip], redirect="fallback")  # as an earlier portmap says it
        assert stage.relay.published[0].steered == (host_ip,)
        found.append(spoken_to(stage, target, b"target"))
        stage.relay.remove("m")
        found.append(spoken_to(stage, holder, b"holder"))
        return found


def spoken_to(stage: Stage, listener: socket.socket, word: bytes) -> bytes:
    listener.setblocking(False)
    client = stage.client()
    stage.accepted(listener).send(word)
    return stage.all_of(client, len(word))[0]


@pytest.mark.parametrize("host_ip", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_somebody_holds_for_it_is_steered(machine: Lab, host_ip: str) -> None:
    assert machine["host"].python(beside_a_holder, host_ip) == [b"holder", b"target", b"holder"]
