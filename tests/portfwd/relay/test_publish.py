"""Publishing that fails half way or finds somebody else there, and removal in the middle of things."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest
from lab import Lab

from portfwd.errors import PortfwdError
from portfwd.relay import bind
from portfwd.relay.bind import NoSuchFamily
from portfwd.steering.lookup import Range, Steering
from tests.portfwd.stage import WAIT_S, Stage, mapping_of
from tests.portfwd.talk import HOST, INSIDE, PORT


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
