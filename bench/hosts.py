"""Hosts for the bench, a network and a mount namespace each in which this process walks about, and what it starts there.

A process is started with posix_spawn(3), so that neither side pays for a fork of this interpreter, and is waited for with
wait4(2), which tells the processor time of the process and of those that it waited for itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

PRIVATE = "BENCH_PLUGINS_PRIVATE"
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000  # linux/sched.h
LIBC = ctypes.CDLL(None, use_errno=True)
ANSWER_MAX = 65536  # bytes; what a pipe holds, so that nobody waits for a reader
CALL_S = 120  # a call that takes longer hangs
SETUP = """
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mkdir /run/netns /var/lib/cni
ip link set lo up
echo ready
read -r _
"""


def enter_private_namespaces() -> None:
    """Start this program again as the first process of a PID namespace: all that it starts ends with it.

    What it does with networks and mounts it does on a Host.
    """
    if os.environ.get(PRIVATE) != "1":
        os.environ[PRIVATE] = "1"
        namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        os.execvp("unshare", ["unshare", *namespaces, sys.executable, *sys.argv])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a first process has no default for it


@dataclass(frozen=True)
class Spent:
    """What a call took: from its start to its end, and of the processors."""

    wall_ms: float
    cpu_ms: float


@dataclass(frozen=True)
class Call:
    """A plugin's executable, its environment and its standard input."""

    program: str
    environ: Mapping[str, str]
    config: bytes
    name: str  # the step that it is counted under
    words: tuple[str, ...] = ()


@dataclass
class Running:
    """A call that has been started, and the end of the pipe from which its answer will be read."""

    call: Call
    pid: int
    begun: float
    answer: int

    def ended(self, status: int, usage: object) -> tuple[Spent, bytes]:
        """What wait4 said about it. SystemExit when the call failed."""
        wall = (time.perf_counter() - self.begun) * 1000
        said = os.read(self.answer, ANSWER_MAX)
        os.close(self.answer)
        if status:
            verb = self.call.environ.get("CNI_COMMAND", "")
            raise SystemExit(f"{self.call.program} {verb} failed, status {status}: {said.decode(errors='replace')}")
        used = getattr(usage, "ru_utime", 0.0) + getattr(usage, "ru_stime", 0.0)
        return Spent(wall, used * 1000), said


class Host:
    """A network and a mount namespace, with nothing of the machine's state in sight."""

    def __init__(self) -> None:
        command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-ec", SETUP]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
            assert maker.stdin is not None
            assert maker.stdout is not None
            if maker.stdout.readline() != b"ready\n":
                raise SystemExit("no namespaces could be made: unshare(1) and mount(8) must be allowed")
            self.namespaces = [os.open(f"/proc/{maker.pid}/ns/{kind}", os.O_RDONLY) for kind in ("net", "mnt")]
            maker.stdin.close()

    def enter(self) -> None:
        """From now on this process, and what it starts, is there."""
        for fd, kind in zip(self.namespaces, (CLONE_NEWNET, CLONE_NEWNS), strict=True):
            if LIBC.setns(fd, kind):
                raise OSError(ctypes.get_errno(), "setns")

    def run(self, *words: str, text: str | None = None) -> str:
        """A program there that is not measured."""
        self.enter()
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, timeout=CALL_S)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed: {done.stderr}")
        return done.stdout

    def containers(self, verb: str, names: Sequence[str]) -> None:
        """`add` or `delete` their namespaces."""
        self.run("ip", "-batch", "-", text="".join(f"netns {verb} {name}\n" for name in names))

    def start(self, call: Call) -> Running:
        """Begin a call; its configuration waits in a pipe."""
        self.enter()
        config, feed = os.pipe()
        assert len(call.config) <= ANSWER_MAX
        os.write(feed, call.config)
        os.close(feed)
        answer, said = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, config, 0), (os.POSIX_SPAWN_DUP2, said, 1)]
        begun = time.perf_counter()
        pid = os.posix_spawn(call.program, [call.program, *call.words], call.environ, file_actions=actions)
        running = Running(call, pid, begun, answer)
        os.close(config)
        os.close(said)
        return running

    def call(self, call: Call) -> tuple[Spent, bytes]:
        """Run it to its end."""
        with patience(call.program):
            running = self.start(call)
            _, status, usage = os.wait4(running.pid, 0)
            return running.ended(status, usage)


@contextmanager
def patience(what: str, seconds: int = CALL_S) -> Iterator[None]:
    """SystemExit when what is done inside takes too long."""

    def hangs(*_: object) -> NoReturn:
        raise SystemExit(f"{what} has not ended after {seconds} s")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


@dataclass
class Service:
    """A process on a host that does work for calls, and what of the processors it has had until the last look."""

    host: Host
    words: Sequence[str]
    process: subprocess.Popen[bytes] = field(init=False)
    seen_ms: float = 0.0

    def __post_init__(self) -> None:
        self.host.enter()
        self.process = subprocess.Popen(self.words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def cpu_ms(self) -> float:
        """Its own and its ended children's time since the last look. The kernel counts steps of 10 ms: only sums are right."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            times = file.read().rpartition(")")[2].split()[11:15]  # proc_pid_stat(5): utime, stime, cutime, cstime
        total = sum(map(int, times)) * 1000 / os.sysconf("SC_CLK_TCK")
        self.seen_ms, before = total, self.seen_ms
        return total - before

    def late_ms(self) -> float:
        """What it did after the last look, once it has nothing more to do: a call may end before its process here has."""
        end = time.monotonic() + CALL_S
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:  # proc_tid_children(5)
            while file.read():
                if time.monotonic() > end:
                    raise SystemExit("a call of the service does not end")
                time.sleep(0.001)
                file.seek(0)
        return self.cpu_ms()

    def end(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


@contextmanager
def busy(processors: int, seconds: int) -> Iterator[None]:
    """Keep as many processors busy, by loops that end by themselves if nobody ends them."""
    loops = []
    try:
        for _ in range(processors):
            pid = os.fork()
            if pid == 0:
                spin(seconds)
            loops.append(pid)
        yield
    finally:
        for pid in loops:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def spin(seconds: int) -> NoReturn:
    """Count for that long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    os._exit(0)
