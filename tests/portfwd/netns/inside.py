"""Containers with nothing around them: a process in namespaces of its own, which answers on its loopback."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node import CLONE_NEWNET, die_with_parent, libc

from portfwd.errors import PortfwdError
from portfwd.mapping import Place
from portfwd.netns.sockets import SO_NETNS_COOKIE, Places

CLONE_NEWUSER = 0x10000000  # linux/sched.h
PR_SET_DUMPABLE = 4  # linux/prctl.h
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h
NOBODY = 65534
PORT = 80
WAIT_S = 20.0
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


def pass_time(there: Places, seconds: float) -> None:
    clock = there._clock
    assert isinstance(clock, Clock)
    clock.now += seconds
