"""Sockets in other network namespaces, made for real: what they reach, what is noticed, and that we always come back."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab

from portfwd.errors import NotFound, PortfwdError
from portfwd.mapping import Place
from portfwd.netns import sockets
from portfwd.netns.sockets import LOOK_S, SO_NETNS_COOKIE, UNUSED_S, Places
from tests.lacking import unavailable
from tests.portfwd.netns.inside import (
    FAMILIES,
    LAST_PID,
    NOBODY,
    TCP,
    TICKS_S,
    Clock,
    answer,
    container,
    cookie,
    end,
    fork,
    held,
    here,
    opened,
    pass_time,
    reached,
    refusal,
)

# In this thread


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("named", ["path", "pid"])
def test_a_server_on_a_containers_own_loopback_is_reached(there: Places, named: str, family: int) -> None:
    with container("web") as pid:
        place = Place(pid=pid) if named == "pid" else Place(path=f"/proc/{pid}/ns/net")
        assert there.describe(place) == f"/proc/{pid}/ns/net"
        assert answer(there.socket(place, family, TCP)) == "web"
        with there.socket(place, family, socket.SOCK_DGRAM) as sock:
            assert sock.type == socket.SOCK_DGRAM


def test_without_a_place_a_socket_is_made_here(there: Places) -> None:
    with there.socket(Place(), socket.AF_INET, TCP) as sock:
        assert sock.gettimeout() == 0.0
        assert int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder) == cookie()


def test_a_namespace_is_opened_once_and_nothing_is_left_open(there: Places) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with container("web") as pid:
        place = Place(pid=pid)
        for _ in range(5):
            there.socket(place, socket.AF_INET, TCP).close()
        assert opened(pid) == 1
        there.close()
        assert opened(pid) == 0
    assert len(os.listdir("/proc/self/fd")) == before


@contextlib.contextmanager
def renamed(there: Places, name: Path) -> Iterator[int]:
    """A name that led to one container, which is open, leads to another; the first one's pid."""
    with container("old") as old, container("new") as new:
        name.symlink_to(f"/proc/{old}/ns/net")
        assert reached(there, Place(path=str(name))) == "old"
        name.unlink()
        name.symlink_to(f"/proc/{new}/ns/net")
        yield old


def test_a_path_that_names_another_namespace_is_noticed_after_a_second(there: Places, tmp_path: Path) -> None:
    place = Place(path=str(tmp_path / "web"))
    with renamed(there, tmp_path / "web") as old:
        pass_time(there, LOOK_S / 2)
        assert reached(there, place) == "old", "stat(2) at most once per second"
        pass_time(there, LOOK_S / 2)
        assert reached(there, place) == "new"
        assert opened(old) == 0


def test_after_a_failed_connection_it_is_noticed_at_once(there: Places, tmp_path: Path) -> None:
    place = Place(path=str(tmp_path / "web"))
    with renamed(there, tmp_path / "web"):
        there.forget(place)
        assert reached(there, place) == "new"


def test_a_container_that_has_ended_is_an_error_and_its_namespace_is_let_go(there: Places) -> None:
    with container("web") as pid:
        place, inode = Place(pid=pid), os.stat(f"/proc/{pid}/ns/net").st_ino
        assert reached(there, place) == "web"
        end(pid)
        there.expire(1000.0)
        assert held(inode) == 0
        error = refusal(lambda: there.socket(place, socket.AF_INET, TCP))
        assert isinstance(error, NotFound)
        assert str(error) == f"pid {pid}: there is no network namespace at /proc/{pid}/ns/net"


def test_what_is_not_used_for_a_minute_is_let_go_and_opened_again_when_asked_for(there: Places) -> None:
    with container("web") as pid:
        place = Place(pid=pid)
        assert reached(there, place) == "web"
        there.expire(1000.0 + UNUSED_S - 1)
        assert opened(pid) == 1
        there.expire(1000.0 + UNUSED_S)
        assert opened(pid) == 0
        assert reached(there, place) == "web"


def test_what_is_no_namespace_is_an_error(there: Places, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, kind in ((tmp_path / "none", NotFound), (file, PortfwdError), (Path("/proc/self/ns/uts"), PortfwdError)):
        error = refusal(lambda path=path: there.socket(Place(path=str(path)), socket.AF_INET, TCP))  # type: ignore[misc]
        assert type(error) is kind
        assert str(path) in str(error)


def reuse_a_pid() -> tuple[str, str, str]:
    """A container ends and another one gets its pid: before it was ever used, after that, and when the mapping is a new one."""
    with contextlib.closing(Places(clock := Clock())) as there:
        with container("old") as pid:
            place = Place(pid=pid)
            there.retain({place})
            time.sleep(TICKS_S)
        found = []
        for use in range(2):
            LAST_PID.write_text(str(pid - 1))
            with container("new") as second:
                assert second == pid
                clock.now += use
                found.append(str(refusal(lambda: there.socket(place, socket.AF_INET, TCP))))
            time.sleep(TICKS_S)
        LAST_PID.write_text(str(pid - 1))
        with container("new") as second:
            assert second == pid
            there.retain(set())
            there.retain({place})
            found.append(reached(there, place))
        return found[0], found[1], found[2]


@pytest.mark.debian_kernel
def test_a_process_that_has_got_the_pid_of_another_is_not_connected_to(lab: Lab) -> None:
    if not LAST_PID.exists():
        unavailable("the kernel lacks CONFIG_CHECKPOINT_RESTORE")
    before, after, anew = lab["host"].python(reuse_a_pid)
    assert "that process has ended, and another one has its number" in before
    assert after == before
    assert anew == "new"


# Coming back


class Interruption(Exception):
    """What a handler of a signal raises."""


def interrupt(*_: object) -> None:
    raise Interruption


def be_interrupted() -> tuple[int, int]:
    """Make sockets under a rain of signals; returns how many hit, and how often we were not at home then."""
    home = here()
    hits = away = 0
    with container("web") as pid:
        there = Places()
        place = Place(pid=pid)
        signal.signal(signal.SIGALRM, interrupt)
        finish = time.monotonic() + 0.7
        while time.monotonic() < finish or hits <= 200:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00002 + hits % 50 * 0.000004)
                while True:
                    there.socket(place, socket.AF_INET, TCP).close()
            except Interruption:
                hits += 1
                away += here() != home
        signal.setitimer(signal.ITIMER_REAL, 0)
    return hits, away


def test_a_signal_never_leaves_us_in_the_wrong_namespace(lab: Lab) -> None:
    hits, away = lab["host"].python(be_interrupted)
    assert hits > 200
    assert away == 0


def lose_privileges() -> tuple[str, bool]:
    """Between two visits: neither going nor coming back is allowed then."""
    home = here()
    with container("web") as pid, contextlib.closing(Places()) as there:
        place = Place(pid=pid)
        there.socket(place, socket.AF_INET, TCP).close()
        os.seteuid(NOBODY)
        try:
            return str(refusal(lambda: there.socket(place, socket.AF_INET, TCP))).partition(": ")[2], here() == home
        finally:
            os.seteuid(0)


def test_who_never_got_away_need_not_come_back(lab: Lab) -> None:
    reason = "cannot enter its network namespace: Operation not permitted: this needs root, or to be the owner of the container"
    assert lab["host"].python(lose_privileges) == (reason, True)


def test_when_there_is_no_way_back_the_process_ends() -> None:
    read, write = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.disable()
            os.dup2(write, 2)
            sockets.come_back(write)
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as said:
        text = said.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGABRT
    assert b"portfwd: cannot return from a container's network namespace\n" in text
