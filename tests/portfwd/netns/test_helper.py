"""Namespaces of another user namespace: the process inside, what it keeps open, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from unittest import mock

import pytest
from lab import Lab
from node import CLONE_NEWNET, libc

from portfwd.errors import Lacking
from portfwd.mapping import Place
from portfwd.netns.helper import Entrant, Silent
from portfwd.netns.sockets import BACK_OFF_S, Places
from tests.lacking import missing
from tests.portfwd.netns.inside import (
    CLONE_NEWUSER,
    NOBODY,
    TCP,
    WAIT_S,
    Clock,
    checked,
    container,
    end,
    fork,
    here,
    reached,
    refusal,
)
from tests.portfwd.stage import descriptors_left


def as_nobody(function: Callable[..., object], *arguments: object) -> object:
    """Without any privilege; on the lab's host."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return function(*arguments)


def user_namespaces() -> bool:
    """Whether somebody without privileges may have one here."""
    pid = fork()
    if pid == 0:
        try:
            as_nobody(lambda: checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def rootless(lab: Lab) -> Callable[..., object]:
    """Call a function as nobody on the lab's host."""
    if not user_namespaces():
        missing("the kernel refuses user namespaces to ordinary users")
    return lambda function, *arguments: lab["host"].python(as_nobody, function, *arguments)


def children() -> int:
    """How many processes of ours there are, ended or not."""
    with open("/proc/thread-self/children", encoding="ascii") as file:
        return len(file.read().split())


def the_process_inside(there: Places, place: Place) -> Entrant:
    found = there._known[place].inside
    assert found is not None
    return found


def reach_own_container() -> list[object]:
    home = here()
    read, write = os.pipe()
    with container("web", CLONE_NEWUSER | CLONE_NEWNET) as pid:
        there, place = Places(), Place(pid=pid)
        found: list[object] = [reached(there, place), reached(there, place), children(), here() == home]
        end(pid)  # the container has a copy of the pipe, too
        os.close(write)
        found.append(bool(select.select([read], [], [], WAIT_S)[0]))
        there.close()
        found.append(children())
    os.close(read)
    return found


def test_a_rootless_container_is_reached_without_root_by_one_process_that_keeps_nothing_of_ours_open(
    rootless: Callable[..., object],
) -> None:
    assert rootless(reach_own_container) == ["web", "web", 2, True, True, 1]


def test_root_goes_into_a_rootless_container_by_itself(lab: Lab, there: Places) -> None:
    with container("web", CLONE_NEWUSER | CLONE_NEWNET) as pid:
        assert reached(there, Place(pid=pid)) == "web"
        assert there._known[Place(pid=pid)].inside is None


def survive_its_end() -> list[object]:
    with container("web", CLONE_NEWUSER | CLONE_NEWNET) as pid:
        with contextlib.closing(Places()) as there:
            place = Place(pid=pid)
            found: list[object] = [reached(there, place)]
            first = the_process_inside(there, place).pid
            os.kill(first, signal.SIGTERM)  # as systemd does to all of a service
            found.append((reached(there, place), the_process_inside(there, place).pid == first))
            end(first)
            found.append((reached(there, place), the_process_inside(there, place).pid == first, children()))
            end(the_process_inside(there, place).pid)
            there.expire(time.monotonic())
            found.append(children())
            found.append(reached(there, place))
        found.append(children())
    return found


def test_the_process_inside_is_restarted_when_it_was_killed_and_reaped(rootless: Callable[..., object]) -> None:
    assert rootless(survive_its_end) == ["web", ("web", True), ("web", False, 2), 1, "web", 1]


def survive_its_silence() -> list[object]:
    with (
        container("web", CLONE_NEWUSER | CLONE_NEWNET) as pid,
        contextlib.closing(Places(clock := Clock())) as there,
    ):
        place = Place(pid=pid)
        there.socket(place, socket.AF_INET, TCP).close()
        os.kill(the_process_inside(there, place).pid, signal.SIGSTOP)
        found: list[object] = []
        asked = mock.patch.object(Entrant, "socket", autospec=True, side_effect=Entrant.socket).start()
        for passed in (0, BACK_OFF_S - 0.1):
            clock.now += passed
            error = refusal(lambda: there.socket(place, socket.AF_INET, TCP))
            found.append((type(error) is Silent, asked.call_count, children()))
            there.forget(place)
        clock.now += BACK_OFF_S
        found.append(reached(there, place))
    return found


def test_a_silent_process_inside_holds_us_up_for_a_second_and_then_no_more(rootless: Callable[..., object]) -> None:
    assert rootless(survive_its_silence) == [(True, 1, 1), (False, 1, 1), "web"]


def run_out_of_descriptors() -> list[object]:
    with container("web", CLONE_NEWUSER | CLONE_NEWNET) as pid, contextlib.closing(Places()) as there:
        place = Place(pid=pid)
        there.socket(place, socket.AF_INET, TCP).close()
        helper = the_process_inside(there, place).pid
        for _ in range(2):
            with descriptors_left(0), pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                there.socket(place, socket.AF_INET, TCP)
        return [reached(there, place), the_process_inside(there, place).pid == helper]


def test_want_of_descriptors_is_told_as_such_and_is_passing(rootless: Callable[..., object]) -> None:
    assert rootless(run_out_of_descriptors) == ["web", True]


def leave_it_alone(pid: int) -> int:
    """A process that has one inside and ends without a word; returns the pid of the latter."""
    read, write = os.pipe()
    service = fork()
    if service == 0:
        try:
            there = Places()
            there.socket(Place(pid=pid), socket.AF_INET, TCP).close()
            os.write(write, str(the_process_inside(there, Place(pid=pid)).pid).encode())
        finally:
            os._exit(0)
    os.waitpid(service, 0)
    os.close(write)
    with open(read, encoding="ascii") as said:
        return int(said.read())


def outlive() -> bool:
    with container("web", CLONE_NEWUSER | CLONE_NEWNET) as pid:
        helper = leave_it_alone(pid)
        limit = time.monotonic() + WAIT_S
        while time.monotonic() < limit:
            try:
                os.kill(helper, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.01)
    return False


def test_the_process_inside_ends_when_we_end_without_a_word(rootless: Callable[..., object]) -> None:
    assert rootless(outlive)


def reach_below_own_user_namespace() -> tuple[str, bool]:
    """Privileges in a user namespace of our own, and the network of the outside: we could go, and never come back."""
    checked(libc.unshare(CLONE_NEWUSER))
    home = here()
    with container("web") as pid, contextlib.closing(Places()) as there:
        return reached(there, Place(pid=pid)), here() == home


def test_where_we_could_enter_but_not_return_another_process_goes(rootless: Callable[..., object]) -> None:
    assert rootless(reach_below_own_user_namespace) == ("web", True)


def be_refused(pid: int, path: str) -> list[object]:
    found: list[object] = []
    with contextlib.closing(Places()) as there:
        for place in (Place(pid=pid), Place(path=path), Place(path=path)):
            error = refusal(lambda place=place: there.socket(place, socket.AF_INET, TCP))  # type: ignore[misc]
            found.append((type(error) is Lacking, str(error).replace(str(pid), "PID"), children()))
            there.forget(place)
    return found


def test_without_root_a_container_of_roots_is_refused_with_a_reason_and_no_process_stays(
    lab: Lab, rootless: Callable[..., object]
) -> None:
    pid = lab["c1"].pid
    refused = (
        "/run/netns/c1: cannot enter its network namespace: "
        "Operation not permitted: this needs root, or to be the owner of the container"
    )
    assert rootless(be_refused, pid, "/run/netns/c1") == [
        (True, "pid PID: /proc/PID/ns/net may not be opened: run as root, or as the container's owner", 0),
        (True, refused, 0),
        (True, refused, 0),
    ]
