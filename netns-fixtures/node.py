"""One machine or container of a lab: its namespaces, and how a program or a function runs in them.

Such a process is a child of this one and in the lab's pid namespace, so that it dies with the lab, and the lab with this process.
A function runs in a forked child, which first checks that it is not in the machine's network namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, TypeVar

from nursery import TEXT_MAX, Nursery

T = TypeVar("T")
PROBE = Path(__file__).with_name("probe.py")
CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h
SO_NETNS_COOKIE = 71  # asm-generic/socket.h
MACHINE_COOKIE = 1  # net_ns_init() (net/core/net_namespace.c) gives the first namespace the first cookie
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SLOWNESS = float(os.environ.get("CNI_PY_SLOWNESS") or 1)  # how many times longer all may take: in an emulator
START_S = 30.0 * SLOWNESS  # a holder, a server or a listener is ready in well under one second, if nothing else runs

# Functions that are called most, and depend on nothing but their arguments, of which none is a descriptor.
PORTABLE = (
    ("probe", "fetch"),
    ("snapshot", "take"),
    ("tests.portfwd.publisher", "exchange"),
    ("tests.portfwd.publisher", "await_socket"),
)

libc = ctypes.CDLL(None, use_errno=True)
nursery: Nursery | None = None


class LabError(Exception):
    """A failure of the lab, not of the program under test."""


def die_with_parent() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def enter(fd: int, kind: int) -> None:
    if libc.setns(fd, kind) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


def refuse_the_machine(machine: tuple[int, int]) -> None:
    """LabError if this process is in the machine's network namespace, or in that of the process that opened the lab."""
    here = os.stat("/proc/thread-self/ns/net")
    with socket.socket(socket.AF_UNIX) as probe_socket:
        cookie = int.from_bytes(probe_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
    if cookie == MACHINE_COOKIE or (here.st_dev, here.st_ino) == machine:
        raise LabError("this is the machine's own network namespace: nothing is changed here")


@contextlib.contextmanager
def interrupted_afterwards() -> Iterator[None]:
    """Handlers of signals that come while the block runs are called at its end.

    An exception of a handler in the middle of subprocess.Popen() would leave a child of which nobody knows: the lab's pid
    namespace remains until it is waited for. Signals are not blocked, since programs inherit that, and what is ignored stays so.
    """
    came: list[int] = []
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():  # another one has no handlers
        handlers = {number: found for number in INTERRUPTS if callable(found := signal.getsignal(number))}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            handlers[number](number, None)


def read_line(stream: int, wait_s: float) -> str:
    """One line from a descriptor. LabError if it takes longer than `wait_s`."""
    deadline = time.monotonic() + wait_s
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise LabError("no answer in time")
        byte = os.read(stream, 1)
        if not byte:
            break
        line += byte
    return line.decode().strip()


@dataclass(slots=True)
class Node:
    """One machine or container of the lab."""

    name: str
    pid: int  # of its holder, in the lab's pid namespace
    net: int  # descriptors of its namespaces
    mount: int
    pids: int  # a descriptor of the lab's pid namespace
    machine: tuple[int, int]  # device and inode number of the network namespace that must not be changed
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)  # those that were not waited for, at least

    @property
    def netns(self) -> str:
        """The path of a container's network namespace for programs on the host."""
        return f"/run/netns/{self.name}"

    @property
    def proc_netns(self) -> str:
        """The path of the network namespace through its holder, as some runtimes name it."""
        return f"/proc/{self.pid}/ns/net"

    def popen(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program in this node's network and mount namespace and the lab's pid namespace; it dies with the lab.

        It is a child of this process, so that nobody else has to reap it: the lab's pid namespace remains until that is done
        (zap_pid_ns_processes, kernel/pid_namespace.c), and the machine's init may take seconds.
        """
        me = f"/proc/{os.getpid()}/fd"
        with interrupted_afterwards():
            home = self._bear_in_the_lab()
            try:
                program = subprocess.Popen(
                    ["nsenter", f"--mount={me}/{self.mount}", f"--net={me}/{self.net}", "--", *args],
                    env={"PATH": PATH, "LANG": "C.UTF-8", **(env or {})},
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                )
            finally:
                bear_at_home(home)
            self.programs[:] = [*(one for one in self.programs if one.returncode is None), program]
        return program

    def run(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        input: str = "",  # noqa: A002  subprocess.run's word
        timeout_s: float = 30.0,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end. After `timeout_s` it is killed: subprocess.TimeoutExpired. `check`: LabError on failure."""
        pipe = subprocess.PIPE
        with self.popen(args, env=env, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            try:
                output, complaint = process.communicate(input.encode(), timeout_s * SLOWNESS)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(list(args), process.returncode, output.decode(), complaint.decode())
        if check and done.returncode:
            raise LabError(f"{' '.join(args)} in {self.name} ended with {done.returncode}: {done.stderr.strip()}")
        return done

    def python(self, what: Callable[..., T], *args: object, timeout_s: float = 30.0, **kwargs: object) -> T:
        """Call a function in a child that has entered the node; the result or exception is pickled. LabError on timeout."""
        read, write = os.pipe()
        # An exception of a signal handler in os.fork()'s hooks would be dropped, so signals are blocked until it returns.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
        pid = (
            0
            if self._is_sent(write, what, args, kwargs)
            else self._born(write, unblocked, lambda: what(*args, **kwargs))
        )
        os.close(write)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            answer = read_all(read, time.monotonic() + timeout_s * SLOWNESS)
            if answer is None:
                kill(pid)
        except BaseException:
            kill(pid)
            raise
        finally:
            os.close(read)
            if pid:
                os.waitpid(pid, 0)
        if answer is None:
            raise LabError(f"{what!r} in {self.name} took longer than {timeout_s * SLOWNESS:g} s")
        if not answer:
            raise LabError(f"{what!r} in {self.name} died")
        well, result = pickle.loads(answer)
        if not well:
            raise result
        value: T = result
        return value

    def _is_sent(self, write: int, what: Callable[..., object], args: object, kwargs: object) -> bool:
        """Whether the nursery makes the child, which then dies with the lab, or with the nursery."""
        if nursery is None or (what.__module__, getattr(what, "__name__", "")) not in PORTABLE:
            return False
        text = pickle.dumps((what, args, kwargs, self.machine))
        if len(text) <= TEXT_MAX:
            nursery.send(text, (self.mount, self.net, self.pids, write))
        return len(text) <= TEXT_MAX

    def _born(self, write: int, unblocked: set[int], call: Callable[[], object]) -> int:
        """A child of this process. Its pid."""
        with warnings.catch_warnings():
            # fork() with other threads (pytest-xdist has one) warns, but the child needs none of their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = self._fork()
        if pid == 0:
            self._child(write, unblocked, call)
        return pid

    def _fork(self) -> int:
        """Fork a child into the lab's pid namespace."""
        home = self._bear_in_the_lab()
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                bear_at_home(home)
        return pid

    def _bear_in_the_lab(self) -> int:
        """From now on this thread's children begin in the lab's pid namespace; a descriptor of the one where they did before.

        setns(CLONE_NEWPID) takes effect for children only (pid_namespaces(7)), so this process enters, forks and goes back.
        To enter in the child would need a second fork, and a fork of a large process is what a call costs.
        """
        home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        enter(self.pids, CLONE_NEWPID)
        return home

    def _child(self, write: int, unblocked: set[int], call: Callable[[], object]) -> None:
        """The forked child."""
        try:
            die_with_parent()
            for number in INTERRUPTS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            report(write, lambda: self._inside(call))
        finally:
            os._exit(0)

    def _inside(self, call: Callable[[], object]) -> object:
        enter(self.mount, CLONE_NEWNS)
        self.enter_network()
        return call()

    def enter_network(self) -> None:
        """Take this process into the node's network; LabError when that is the machine's."""
        enter(self.net, CLONE_NEWNET)
        refuse_the_machine(self.machine)

    def close(self) -> None:
        os.close(self.net)
        os.close(self.mount)


def kill(pid: int) -> None:
    """Kill a child, if it is one of this process."""
    if pid:
        os.kill(pid, signal.SIGKILL)


def open_nursery() -> None:
    """Have calls of functions that depend on nothing but their arguments made by children of a small process."""
    global nursery  # noqa: PLW0603  one for a process
    nursery = nursery or Nursery(of_nursery)


def of_nursery(text: bytes, descriptors: Sequence[int]) -> None:
    """In the nursery: make a child for what Node._is_sent() has sent."""
    mount, net, pids, write = descriptors
    what, args, kwargs, machine = pickle.loads(text)
    node = Node("", 0, net, mount, pids, machine)
    if node._fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        node._child(write, set(), lambda: what(*args, **kwargs))


def bear_at_home(home: int) -> None:
    """The end of Node._bear_in_the_lab()."""
    enter(home, CLONE_NEWPID)
    os.close(home)


def read_all(fd: int, deadline: float) -> bytes | None:
    """Everything up to the end of the stream; None if the end does not come before `deadline` (monotonic)."""
    text = b""
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return text
        text += chunk
    return None


def report(write: int, call: Callable[[], object]) -> None:
    try:
        answer = pickle.dumps((True, call()))
    except BaseException as error:  # noqa: BLE001  every exception is passed on to the caller
        answer = explained(error)
    with open(write, "wb") as pipe:
        pipe.write(answer)


def explained(error: BaseException) -> bytes:
    """A pickled failure: the exception if it can be pickled, else a LabError with its traceback."""
    with contextlib.suppress(Exception):
        pickled = pickle.dumps((False, error))
        pickle.loads(pickled)
        return pickled
    return pickle.dumps((False, LabError("".join(traceback.format_exception(error)))))


class Background:
    """A mode of probe.py that runs in a node until it is stopped. It is ready when the constructor returns."""

    def __init__(self, node: Node, arguments: Sequence[str]) -> None:
        self.process = node.popen(
            [sys.executable, "-I", "-S", str(PROBE), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        if read_line(self.process.stdout.fileno(), START_S) != "ready":
            _, complaint = self.process.communicate(timeout=START_S)
            raise LabError(f"{arguments[0]} in {node.name}: {complaint.decode().strip().splitlines()[-1:]}")

    def stop(self) -> bytes:
        """Close its stdin, wait until it ends, and return its stdout. A second call is harmless.

        It is not killed: the machine's init would inherit it, and the namespaces would remain until
        that init reaps it.
        """
        if self.process.returncode is not None:
            return b""
        try:
            output: bytes = self.process.communicate(timeout=START_S)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise LabError("a program in the lab did not end in time") from None
        return output
