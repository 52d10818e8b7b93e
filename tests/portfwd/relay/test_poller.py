"""Watched descriptors: whose an event is, and what a callback that fails costs."""

from __future__ import annotations

import socket

from portfwd.relay.poller import EDGE, FAULT_S, LEVEL, READ, Poller
from tests.portfwd.stage import Log


def test_an_event_is_not_given_to_who_got_the_number_of_a_closed_descriptor() -> None:
    poller = Poller()
    heard: list[int] = []
    pairs = [socket.socketpair() for _ in range(2)]
    (one, far_one), (other, far_other) = pairs
    fresh: list[socket.socket] = []

    def close_both(_: int) -> None:
        """The first of the two that is called; the other's event waits in the same round."""
        for sock in (one, other):
            poller.gone(sock.fileno())
            sock.close()
        for sock in [*socket.socketpair(), *socket.socketpair()]:  # with the numbers that are free now
            fresh.append(sock)
            poller.watch(sock.fileno(), EDGE, heard.append)

    poller.watch(one.fileno(), EDGE, close_both)
    poller.watch(other.fileno(), EDGE, close_both)
    numbers = {one.fileno(), other.fileno()}
    far_one.close()
    far_other.close()
    poller.select(0)
    assert {sock.fileno() for sock in fresh} >= numbers
    assert heard == []
    poller.select(0)
    assert len(heard) == 4  # each once of its own: it is writable
    for sock in fresh:
        sock.close()
    poller.close()


def test_a_callback_that_fails_costs_nobody_elses_event_and_is_logged() -> None:
    poller = Poller()
    heard: list[int] = []
    pairs = [socket.socketpair() for _ in range(3)]

    def fail(_: int) -> None:
        raise RuntimeError("a fault of ours")

    for number, (near, far) in enumerate(pairs):
        poller.watch(near.fileno(), READ | EDGE, fail if number == 0 else heard.append)
        far.send(b"x")
    poller.soon(fail)
    poller.soon(heard.append)
    with Log() as log:
        poller.select(0)
    assert len(heard) == 3
    assert any("please report" in line for line in log.lines)
    for sock in (sock for pair in pairs for sock in pair):
        sock.close()
    poller.close()


def test_a_callback_that_fails_again_and_again_does_not_eat_the_processor() -> None:
    poller = Poller()
    near, far = socket.socketpair()
    calls = 0

    def fail(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a fault of ours")
        near.recv(1)

    poller.watch(near.fileno(), LEVEL, fail)
    far.send(b"x")
    with Log():
        for _ in range(10):
            poller.select(0)
        assert calls == 1  # what has failed is not reported again at once
        for _ in range(3):
            if calls < 2:
                poller.select(2 * FAULT_S)  # it wakes up by itself
    assert calls == 2
    poller.forget(near.fileno())
    near.close()
    far.close()
    poller.close()


def test_what_asks_for_another_turn_twice_gets_one() -> None:
    poller = Poller()
    heard: list[int] = []
    for _ in range(3):
        poller.soon(heard.append)
    poller.select(0)
    assert heard == [0]
    poller.close()
