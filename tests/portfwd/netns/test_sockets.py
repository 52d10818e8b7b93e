"""Sockets in other network namespaces, made for real: what they reach, what is noticed, and that we always come back."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Lab
from node import CLONE_NEWNET, die_with_parent, libc

from cni_py.attachment import naming, records
from cni_py.protocol import cache
from cni_py.protocol.cache import Entry
from portfwd.errors import Lacking, NotFound, PortfwdError
from portfwd.mapping import Place
from portfwd.netns import sockets
from portfwd.netns.helper import Entrant, Silent
from portfwd.netns.sockets import BACK_OFF_S, LOOK_S, SO_NETNS_COOKIE, UNKNOWN_S, UNUSED_S, Places
from tests.conftest import need_root
from tests.lacking import missing, unavailable

CLONE_NEWUSER = 0x10000000  # linux/sched.h
PR_SET_DUMPABLE = 4  # linux/prctl.h
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h
NOBODY = 65534
PORT = 80
WAIT_S = 5.0
TICKS_S = 0.03  # start times of processes are told in hundredths of a second
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
FAMILIES = list(LOOPBACK)
TCP = socket.SOCK_STREAM
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Containers


def checked(result: int) -> None:
    assert result == 0, os.strerror(errno.EIO)


def fork() -> int:
    """os.fork(), which complains of the threads of pytest-xdist; the child takes none of their locks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def serve(name: str, kinds: int, ready: int) -> None:
    """A container's only process: with new namespaces, it says its name to whoever connects to its loopback."""
    die_with_parent()
    checked(libc.unshare(kinds))
    checked(libc.prctl(PR_SET_DUMPABLE, 1))  # as after the exec of a real one: /proc/PID/ns is its owner's
    listeners = []
    with socket.socket() as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    for family, address in LOOPBACK.items():
        listeners.append(socket.socket(family))
        listeners[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listeners[-1].bind((address, PORT))
        listeners[-1].listen()
    os.write(ready, b"ok")
    while True:
        for listener in select.select(listeners, [], [])[0]:
            with listener.accept()[0] as client:
                client.sendall(name.encode())


@contextlib.contextmanager
def container(name: str, kinds: int = CLONE_NEWNET) -> Iterator[int]:
    """A container's pid, with no lab around it; gone at the end."""
    read, write = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            serve(name, kinds, write)
        finally:
            os._exit(1)
    os.close(write)
    try:
        assert os.read(read, 2) == b"ok"
        yield pid
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def end(pid: int) -> None:
    """A container's process ends, and is waited for by container()."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def answer(sock: socket.socket) -> str:
    """Who answers on the loopback of a socket's namespace."""
    with sock:
        assert not sock.get_inheritable()
        assert sock.gettimeout() == 0.0
        assert not os.get_blocking(sock.fileno())
        sock.settimeout(WAIT_S)
        sock.connect((LOOPBACK[socket.AddressFamily(sock.family)], PORT))
        return sock.recv(64).decode()


def reached(there: Places, place: Place) -> str:
    """The same through both families."""
    found = {answer(there.socket(place, family, TCP)) for family in FAMILIES}
    assert len(found) == 1
    return found.pop()


def here() -> tuple[int, int]:
    status = os.stat("/proc/thread-self/ns/net")
    return status.st_dev, status.st_ino


def opened(pid_or_path: int | str) -> int:
    """How often this process has a namespace open."""
    path = pid_or_path if isinstance(pid_or_path, str) else f"/proc/{pid_or_path}/ns/net"
    return held(os.stat(path).st_ino)


def held(inode: int) -> int:
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{fd}") == f"net:[{inode}]"
    return found


def cookie() -> int:
    with socket.socket(socket.AF_UNIX) as sock:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)


def refusal(action: Callable[[], object]) -> PortfwdError:
    with pytest.raises(PortfwdError) as caught:
        action()
    return caught.value


@pytest.fixture
def there() -> Iterator[Places]:
    """What is tested, with time standing still."""
    need_root()
    found = Places(Clock())
    home = here()
    yield found
    found.close()
    assert here() == home


def pass_time(there: Places, seconds: float) -> None:
    clock = there._clock
    assert isinstance(clock, Clock)
    clock.now += seconds


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


def test_a_path_that_names_another_namespace_is_noticed_after_a_second(there: Places, tmp_path: Path) -> None:
    name = tmp_path / "web"
    place = Place(path=str(name))
    with container("old") as old, container("new") as new:
        name.symlink_to(f"/proc/{old}/ns/net")
        assert reached(there, place) == "old"
        name.unlink()
        name.symlink_to(f"/proc/{new}/ns/net")
        pass_time(there, LOOK_S / 2)
        assert reached(there, place) == "old", "stat(2) at most once per second"
        pass_time(there, LOOK_S / 2)
        assert reached(there, place) == "new"
        assert opened(old) == 0


def test_after_a_failed_connection_it_is_noticed_at_once(there: Places, tmp_path: Path) -> None:
    name = tmp_path / "web"
    place = Place(path=str(name))
    with container("old") as old, container("new") as new:
        name.symlink_to(f"/proc/{old}/ns/net")
        assert reached(there, place) == "old"
        name.unlink()
        name.symlink_to(f"/proc/{new}/ns/net")
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


# Containers by their IDs


def record(container_id: str, path: str, number: int, network: str = "net", plugin: str = "bridge") -> None:
    made = records.Record(naming.Attachment(network, container_id, "eth0"), plugin)
    made.netns, made.container_cookie = path, number
    made.save()
    made.finish()


def cookie_of(pid: int) -> int:
    with contextlib.closing(Places()) as there, there.socket(Place(pid=pid), socket.AF_INET, TCP) as sock:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)


def outcome(there: Places, wanted: str) -> str:
    """Who answers, or what is wrong and of which kind."""
    try:
        return reached(there, Place(container=wanted))
    except PortfwdError as error:
        return f"{error.kind}: {error}"


def look_up_containers() -> dict[str, str]:
    """Everything that a container ID may mean; on the lab's host, whose /run and /var/lib are its own."""
    found = {}
    with contextlib.closing(Places()) as there, container("web") as web, container("db") as db:
        net = {pid: f"/proc/{pid}/ns/net" for pid in (web, db)}
        found["before"] = outcome(there, "a1")
        record("a1b2", net[web], cookie_of(web))
        record("a1b2", net[web], cookie_of(web), plugin="tuning")
        record("a1b2", net[web], cookie_of(web), network="other")
        time.sleep(UNKNOWN_S)
        found["prefix"] = outcome(there, "a1")
        cache.save(Entry("net", "a1c3", "eth0", netns=net[db]))
        found["cached"] = outcome(there, "a1c")
        found["ambiguous"] = outcome(there, "a1")  # of which one is open already
        found["ambiguous anew"] = outcome(there, "a")
        record("a1", net[db], 0)
        found["exact"] = str(Places().describe(Place(container="a1")) == net[db])
        record("gone", "/run/netns/gone", 0)
        found["gone"] = outcome(there, "gone")
        record("stale", net[db], cookie_of(web))
        found["stale"] = outcome(there, "stale")
        record("moved", "/run/netns/old", 0, network="old")
        record("moved", net[db], cookie_of(db), network="new")
        found["moved"] = outcome(there, "moved")
        record("two", net[web], 0, network="one")
        record("two", net[db], 0, network="two")
        found["two"] = outcome(there, "two").replace(net[web], "WEB").replace(net[db], "DB")
        for number in range(12):
            record(f"many{number:02}", net[web], 0)
        found["many"] = outcome(there, "many")
        found["nothing"] = outcome(there, "f00")
    return found


def test_a_container_is_found_by_its_id_in_records_and_in_libcnis_cache(lab: Lab) -> None:
    found = lab["host"].python(look_up_containers)
    assert (found["prefix"], found["cached"], found["exact"], found["moved"]) == ("web", "db", "True", "db")
    assert found["before"].startswith("not-found: container a1: nothing is known of it")
    assert found["nothing"].startswith("not-found: container f00: nothing is known of it")
    assert found["ambiguous"] == "web", "what was meant when it was opened stays"
    assert found["ambiguous anew"] == "usage: container a: several container IDs begin like that: a1b2, a1c3"
    assert found["gone"] == "not-found: container gone: there is no network namespace at /run/netns/gone"
    assert found["stale"].startswith("not-found: container stale: its network namespace is gone: /proc/")
    assert found["two"].startswith("usage: container two: it has several network namespaces: name one with --netns: ")
    assert {"WEB", "DB"} <= set(found["two"].replace(",", "").split())
    assert found["many"].endswith("many06, many07 and 4 more")


def restart_a_container() -> list[str]:
    """Its record names another path after the restart, while a process keeps the old namespace, and its path, alive."""
    found = []
    with contextlib.closing(Places(clock := Clock())) as there, container("old") as old, container("new") as new:
        record("web", f"/proc/{old}/ns/net", 0)
        found.append(outcome(there, "web"))
        record("web", f"/proc/{new}/ns/net", 0)
        clock.now += LOOK_S
        there.forget(Place(container="web"))
        found.append(outcome(there, "web"))
        end(new)
        clock.now += LOOK_S
        found.append(outcome(there, "web").replace(str(new), "PID"))
    return found


def test_a_restarted_container_is_found_again(lab: Lab) -> None:
    gone = "not-found: container web: there is no network namespace at /proc/PID/ns/net"
    assert lab["host"].python(restart_a_container) == ["old", "new", gone]


# Other user namespaces


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
        for passed in (0, BACK_OFF_S - 0.1):
            clock.now += passed
            began = time.monotonic()
            error = refusal(lambda: there.socket(place, socket.AF_INET, TCP))
            found.append((type(error) is Silent, time.monotonic() - began < (0.5 if passed else 1.5), children()))
            there.forget(place)
        clock.now += BACK_OFF_S
        found.append(reached(there, place))
    return found


def test_a_silent_process_inside_holds_us_up_for_a_second_and_then_no_more(rootless: Callable[..., object]) -> None:
    assert rootless(survive_its_silence) == [(True, True, 1), (False, True, 1), "web"]


def run_out_of_descriptors() -> list[object]:
    with container("web", CLONE_NEWUSER | CLONE_NEWNET) as pid, contextlib.closing(Places()) as there:
        place = Place(pid=pid)
        there.socket(place, socket.AF_INET, TCP).close()
        helper = the_process_inside(there, place).pid
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        fillers = []
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        numbers = []
        for _ in range(2):
            try:
                there.socket(place, socket.AF_INET, TCP)
            except OSError as error:
                numbers.append(error.errno)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in fillers:
            os.close(fd)
        return [numbers, reached(there, place), the_process_inside(there, place).pid == helper]


def test_want_of_descriptors_is_told_as_such_and_is_passing(rootless: Callable[..., object]) -> None:
    assert rootless(run_out_of_descriptors) == [[errno.EMFILE, errno.EMFILE], "web", True]


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
