"""A lab: throwaway hosts, clients, routers and containers as namespaces of this machine, for tests, demo and bench.

    with Lab.from_yaml("lan.yaml") as lab:
        lab["host"].run(["ip", "addr"])                     a program in that node's namespaces
        lab["host"].python(function, argument)              a Python function there (or a snippet as text)
        lab.serve("c1", 80)                                 a server that says who it is and whom it saw
        lab.fetch("client", "198.51.100.1", 8080)           -> Answer(name, peer, local, source)
        with lab.capture("c1", "eth0") as wire: ...         -> wire.frames, decoded by scapy
        lab.snapshot("host")                                comparable state, for before and after

One pid namespace holds it all (keeper.py is its first process): when the process that opened the lab dies, however it
dies, the kernel ends every process in it and with them the namespaces. Nothing is mounted or written outside.
Every change is made by a child that has entered a namespace of the lab and refuses the machine's own.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, TypeVar

import probe
import snapshot
import wiring
from topology import Topology

if TYPE_CHECKING:
    from scapy.packet import Packet

T = TypeVar("T")
HERE = Path(__file__).parent
CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h
SO_NETNS_COOKIE = 71  # asm-generic/socket.h
MACHINE_COOKIE = 1  # net_ns_init() gives the first namespace the first cookie
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A host's own: what CNI plugins, runtimes and we keep on disk.
HOST_DIRECTORIES = ("/var/lib/cni", "/var/lib/cni-py", "/etc/cni", "/etc/cni-py", "/opt/cni")
START_S = 10.0  # a holder, a server or a listener is ready in well under one second

libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab itself failed, not what is tested in it."""


# Processes


def die_with_parent() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def enter(fd: int, kind: int) -> None:
    if libc.setns(fd, kind) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


def refuse_the_machine(machine: tuple[int, int]) -> None:
    """LabError when this process is in the machine's network namespace, or in the one the lab was started from."""
    here = os.stat("/proc/thread-self/ns/net")
    with socket.socket(socket.AF_UNIX) as probe_socket:
        cookie = int.from_bytes(probe_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
    if cookie == MACHINE_COOKIE or (here.st_dev, here.st_ino) == machine:
        raise LabError("this is the machine's own network namespace: nothing is changed here")


def read_line(stream: int, wait_s: float) -> str:
    """One line from a descriptor; LabError when it does not come in time."""
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


class Background:
    """A program running in a node until it is stopped; ready when it has said so."""

    def __init__(self, node: Node, arguments: Sequence[str]) -> None:
        self.process = node.popen(
            [sys.executable, "-I", "-S", str(HERE / "probe.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        if read_line(self.process.stdout.fileno(), START_S) != "ready":
            _, complaint = self.process.communicate(timeout=START_S)
            raise LabError(f"{arguments[0]} in {node.name}: {complaint.decode().strip().splitlines()[-1:]}")

    def stop(self) -> bytes:
        """Let it end, and return what it printed. A second call is harmless.

        Not killed: an orphan of another pid namespace goes to the machine's init, and its namespace waits for that to reap it.
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


# Nodes


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got."""

    name: str  # of the server
    peer: str  # the client's address as the server saw it
    local: str  # the address the server was reached at
    source: str  # the client's address as the client saw it


@dataclass(slots=True)
class Node:
    """One machine or container of the lab."""

    lab: Lab
    name: str
    pid: int  # of its holder, as processes inside the lab see it
    net: int  # descriptors of its namespaces
    mount: int

    @property
    def netns(self) -> str:
        """The path of a container's network namespace for programs on the host."""
        return f"/run/netns/{self.name}"

    @property
    def proc_netns(self) -> str:
        """The same namespace through its process, as runtimes name it."""
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
        """Start a program in this node's network and mount and the lab's pid namespace; it dies with us."""
        me = f"/proc/{os.getpid()}/fd"
        namespaces = [f"--pid={me}/{self.lab.pids}", f"--mount={me}/{self.mount}", f"--net={me}/{self.net}"]
        return subprocess.Popen(
            [*DIE_WITH_PARENT, "nsenter", *namespaces, "--", *DIE_WITH_PARENT, *args],
            env={"PATH": PATH, "LANG": "C.UTF-8", **(env or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    def run(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        input: str = "",  # noqa: A002  subprocess.run's word
        timeout_s: float = 30.0,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; subprocess.TimeoutExpired after killing it."""
        pipe = subprocess.PIPE
        with self.popen(args, env=env, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            try:
                output, complaint = process.communicate(input.encode(), timeout_s)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(list(args), process.returncode, output.decode(), complaint.decode())
        if check and done.returncode:
            raise LabError(f"{' '.join(args)} in {self.name} ended with {done.returncode}: {done.stderr.strip()}")
        return done

    def python(self, what: Callable[..., T], *args: object, timeout_s: float = 30.0, **kwargs: object) -> T:
        """Call a function in a child that has entered the node; its result or exception comes back pickled."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._child(write, lambda: what(*args, **kwargs))
        os.close(write)
        try:
            answer = read_all(read, time.monotonic() + timeout_s)
            if answer is None:
                os.kill(pid, signal.SIGKILL)  # the grandchild follows (PR_SET_PDEATHSIG)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            os.close(read)
            os.waitpid(pid, 0)
        if answer is None:
            raise LabError(f"{what!r} in {self.name} took longer than {timeout_s} s")
        if not answer:
            raise LabError(f"{what!r} in {self.name} died")
        well, result = pickle.loads(answer)
        if not well:
            raise result
        value: T = result
        return value

    def _child(self, write: int, call: Callable[[], object]) -> None:
        """The forked child: a second fork is what a pid namespace takes effect on."""
        try:
            die_with_parent()
            enter(self.lab.pids, CLONE_NEWPID)
            pid = os.fork()
            if pid:
                os.close(write)
                os.waitpid(pid, 0)
            else:
                die_with_parent()
                report(write, lambda: self._inside(call))
        finally:
            os._exit(0)

    def _inside(self, call: Callable[[], object]) -> object:
        enter(self.mount, CLONE_NEWNS)
        enter(self.net, CLONE_NEWNET)
        refuse_the_machine(self.lab.machine)
        return call()

    def close(self) -> None:
        os.close(self.net)
        os.close(self.mount)


def read_all(fd: int, deadline: float) -> bytes | None:
    """Everything up to the end, or None when that does not come in time."""
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
    except BaseException as error:  # noqa: BLE001  whatever it is belongs to the caller
        answer = explained(error)
    with open(write, "wb") as pipe:
        pipe.write(answer)


def explained(error: BaseException) -> bytes:
    """A failure for the other side: the exception itself where it survives pickling, its traceback in words otherwise."""
    with contextlib.suppress(Exception):
        pickled = pickle.dumps((False, error))
        pickle.loads(pickled)
        return pickled
    return pickle.dumps((False, LabError("".join(traceback.format_exception(error)))))


# The wire


@dataclass(frozen=True, slots=True)
class Frame:
    outgoing: bool  # sent by the interface's own namespace
    packet: Packet


@dataclass(slots=True)
class Wire:
    """What passed an interface; `frames` is filled when the capture ends."""

    frames: list[Frame] = field(default_factory=list)

    def packets(self, wanted: Callable[[Packet], bool] = bool) -> list[Packet]:
        return [frame.packet for frame in self.frames if wanted(frame.packet)]


# The lab


class Lab:
    """All nodes of one topology. Use it as a context manager."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.nodes: dict[str, Node] = {}
        self.namespaces: set[int] = set()  # inode numbers of all network namespaces it ever had
        self.background: list[Background] = []
        here = os.stat("/proc/self/ns/net")
        self.machine = (here.st_dev, here.st_ino)
        self.pids = -1  # a descriptor of the lab's pid namespace
        self.channel: socket.socket | None = None  # to the keeper
        self.keeper: subprocess.Popen[bytes] | None = None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Lab:
        """A topology by path, or by name from this directory."""
        return cls(Topology.read(HERE / path))

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def __enter__(self) -> Lab:
        try:
            self._start_keeper()
            for spec in sorted(self.topology.nodes, key=lambda spec: spec.role != "host"):
                self._add(spec.name, spec.role)
            wiring.connect(self)
            for spec in self.topology.nodes:
                for service in spec.services:
                    self.serve(spec.name, service.port, service.protocol, address=service.address)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _start_keeper(self) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(START_S)
        namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child=KILL"]
        with theirs:
            self.keeper = subprocess.Popen(
                [*DIE_WITH_PARENT, "unshare", *namespaces, "--", sys.executable, "-I", "-S", str(HERE / "keeper.py")],
                stdin=theirs.fileno(),
                start_new_session=True,
            )
        if self.channel.recv(4096) != b"ok":
            raise LabError("the keeper did not start: this needs root (CAP_SYS_ADMIN)")
        self.pids = os.open(f"/proc/{self.keeper.pid}/ns/pid_for_children", os.O_RDONLY)

    def _ask(self, *words: str | int) -> tuple[list[str], list[int]]:
        assert self.channel is not None
        self.channel.send(" ".join(map(str, words)).encode())
        text, information, _, _ = self.channel.recvmsg(4096, socket.CMSG_SPACE(2 * 4))
        files = array.array("i")
        for level, kind, data in information:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                files.frombytes(data)
        answer = text.decode().split(" ")
        if answer[0] != "ok":
            raise LabError(f"{words}: {' '.join(answer[1:]) or 'the keeper is gone'}")
        return answer[1:], list(files)

    def _add(self, name: str, role: str) -> Node:
        (pid,), (net, mount) = self._ask("node", name, *(HOST_DIRECTORIES if role == "host" else ()))
        for fd in (net, mount):
            os.set_inheritable(fd, False)
        node = self.nodes[name] = Node(self, name, int(pid), net, mount)
        self.namespaces.add(os.fstat(net).st_ino)
        node.python(wiring.settle)
        if role == "container" and "host" in self.nodes:
            self._ask("name", self["host"].pid, node.pid, name)
        return node

    def add_container(self, name: str) -> Node:
        """One more empty network namespace, below the host's /run/netns."""
        return self._add(name, "container")

    def add_switch(self, segment: str) -> Node:
        """The namespace that stands for an Ethernet with other than two ends."""
        return self._add(f"{segment}-switch", "switch")

    def remove(self, name: str) -> None:
        """End a node: its processes started through the lab must have ended. Its network namespace is gone after this."""
        node = self.nodes.pop(name)
        self._ask("forget", self["host"].pid, name)
        self._ask("end", node.pid)
        node.close()

    def serve(self, name: str, port: int, protocol: str = "tcp", *, says: str = "", address: str = "") -> Background:
        """A server in a node that answers "NAME peer local" until the lab ends or it is stopped."""
        server = Background(self[name], ["serve", says or name, protocol, str(port), *([address] if address else [])])
        self.background.append(server)
        return server

    def fetch(
        self,
        name: str,
        address: str,
        port: int,
        protocol: str = "tcp",
        *,
        source: str = "",
        source_port: int = 0,
        timeout_s: float = 3.0,
    ) -> Answer:
        """Ask a server from a node. ConnectionRefusedError or TimeoutError as the kernel says."""
        text, own = self[name].python(probe.fetch, address, port, protocol, timeout_s, source, source_port)
        server, peer, local = text.split()
        return Answer(server, peer, local, own)

    @contextlib.contextmanager
    def capture(self, name: str, ifname: str, wanted: Callable[[Packet], bool] = bool) -> Iterator[Wire]:
        """Collect what passes an interface while the block runs; `wanted` picks among the decoded packets."""
        listener = Background(self[name], ["capture", ifname])
        wire = Wire()
        try:
            yield wire
        except BaseException:
            listener.stop()
            raise
        from scapy.layers import inet, inet6  # noqa: F401  what Ether decodes into
        from scapy.layers.l2 import Ether  # 0.6 s to import, and only packet tests need it

        for line in listener.stop().decode().splitlines():
            direction, _, data = line.partition(" ")
            if data and wanted(packet := Ether(bytes.fromhex(data))):
                wire.frames.append(Frame(direction == "out", packet))

    def send(self, name: str, ifname: str, *packets: Packet) -> None:
        """Put crafted frames on the wire from a node."""
        self[name].python(probe.send, ifname, *map(bytes, packets))

    def snapshot(self, name: str) -> dict[str, object]:
        """See snapshot.py."""
        return self[name].python(snapshot.take)

    def close(self) -> None:
        """End everything. A second call is harmless."""
        for program in self.background:
            program.stop()
        self.background.clear()
        if self.channel is not None:
            self.channel.close()  # the keeper ends, and with it all of its pid namespace; then unshare
        if self.keeper is not None and self.keeper.returncode is None:
            try:
                self.keeper.wait(START_S)
            except subprocess.TimeoutExpired:
                self.keeper.kill()
                self.keeper.wait(START_S)
        for node in self.nodes.values():
            node.close()
        self.nodes.clear()
        if self.pids >= 0:
            os.close(self.pids)
            self.pids = -1
