"""A lab: throwaway hosts, clients, routers and containers as namespaces of this machine, for tests, demo and bench.

    with Lab.from_yaml("lan.yaml") as lab:
        lab["host"].run(["ip", "addr"])                     a program in that node's namespaces
        lab["host"].python(function, argument)              a Python function there
        lab.serve("c1", 80)                                 a server that answers its name and the client's address
        lab.fetch("client", "198.51.100.1", 8080)           -> Answer(name, peer, local, source)
        with lab.capture("c1", "eth0") as wire: ...         -> wire.frames, decoded by scapy
        lab.snapshot("host")                                comparable state, for before and after

Every process is in one pid namespace (keeper.py is its first process): when the process that opened the lab dies, in whatever
way, the kernel ends them all and with them the namespaces. Nothing is mounted or written outside. Every change is made by a child
that has entered a namespace of the lab and that refuses to run in the machine's own.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import probe
import snapshot
import wiring
from node import DIE_WITH_PARENT, SLOWNESS, START_S, Background, LabError, Node
from topology import Topology

if TYPE_CHECKING:
    from scapy.packet import Packet

HERE = Path(__file__).parent
ANSWER_S = 10.0 * SLOWNESS  # an answer takes milliseconds, or longer on a busy machine
# Each host has its own: state of CNI plugins, runtimes and this project on disk.
HOST_DIRECTORIES = ("/var/lib/cni", "/var/lib/cni-py", "/var/lib/nerdctl", "/etc/cni", "/etc/cni-py", "/opt/cni")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a server, and the client's own address."""

    name: str  # of the server
    peer: str  # the client's address as the server saw it
    local: str  # the address the server was reached at
    source: str  # the client's address as the client saw it


@dataclass(frozen=True, slots=True)
class Frame:
    outgoing: bool  # sent by the interface's own namespace
    packet: Packet


@dataclass(slots=True)
class Wire:
    """The frames that passed an interface; `frames` is filled when the capture ends."""

    frames: list[Frame] = field(default_factory=list)

    def packets(self, wanted: Callable[[Packet], bool] = bool) -> list[Packet]:
        return [frame.packet for frame in self.frames if wanted(frame.packet)]


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
        # The keeper sets the propagation of its mounts: unshare fails to if / is not a mount point (a chroot).
        namespaces = ["--net", "--mount", "--propagation=unchanged", "--pid", "--fork", "--kill-child=KILL"]
        with theirs:
            self.keeper = subprocess.Popen(
                [*DIE_WITH_PARENT, "unshare", *namespaces, "--", sys.executable, "-I", "-S", str(HERE / "keeper.py")],
                stdin=theirs.fileno(),
                start_new_session=True,
            )
        answer = self.channel.recv(4096).decode()
        if answer != "ok":
            why = answer.removeprefix("error ") or "this needs root (CAP_SYS_ADMIN)"
            raise LabError(f"cannot create namespaces here: {why}")
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
        node = self.nodes[name] = Node(name, int(pid), net, mount, self.pids, self.machine)
        self.namespaces.add(os.fstat(net).st_ino)
        if role == "container" and "host" in self.nodes:
            self.name(name)
        return node

    def name(self, name: str) -> None:
        """Let the host know a node's namespace by its name, as it does every container's: /run/netns/NAME."""
        self._ask("name", self["host"].pid, self[name].pid, name)

    def add_container(self, name: str) -> Node:
        """One more empty network namespace, below the host's /run/netns."""
        return self._add(name, "container")

    def add_switch(self, segment: str) -> Node:
        """A namespace with the bridge of a segment that has other than two ends."""
        return self._add(f"{segment}-switch", "switch")

    def switch(self, segment: str) -> Node:
        """The node that add_switch() made."""
        return self[f"{segment}-switch"]

    def remove(self, name: str) -> None:
        """End a node, its network namespace and its links. Its processes must have ended."""
        node = self.nodes.pop(name)
        ends = self["host"].python(snapshot.ends_in, node.net)
        self._ask("forget", self["host"].pid, name)
        self._ask("end", node.pid)
        node.close()
        if ends:
            self["host"].python(snapshot.await_end, ends)

    def serve(self, name: str, port: int, protocol: str = "tcp", *, says: str = "", address: str = "") -> Background:
        """Start a server in a node; it answers "NAME peer local" until it is stopped or the lab ends."""
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
        timeout_s: float = ANSWER_S,
    ) -> Answer:
        """Ask a server from a node. OSError of the client: ConnectionRefusedError, TimeoutError...

        Who expects that nobody answers gives a shorter time.
        """
        text, own = self[name].python(probe.fetch, address, port, protocol, timeout_s, source, source_port)
        server, peer, local = text.split()
        return Answer(server, peer, local, own)

    @contextlib.contextmanager
    def capture(self, name: str, ifname: str, wanted: Callable[[Packet], bool] = bool) -> Iterator[Wire]:
        """Collect the frames of an interface while the block runs; `wanted` selects among the decoded packets."""
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
        """Send crafted frames from an interface of a node."""
        self[name].python(probe.send, ifname, *map(bytes, packets))

    def snapshot(self, name: str) -> dict[str, object]:
        """The comparable state of a node: see snapshot.py."""
        return self[name].python(snapshot.take)

    def _await_end(self, keeper: subprocess.Popen[bytes]) -> None:
        """Wait for the programs, which the end of the lab kills, and for the keeper, which ends when they are waited for."""
        for node in self.nodes.values():
            for program in node.programs:
                program.wait(START_S)
        keeper.wait(START_S)

    def close(self) -> None:
        """End everything. A second call is harmless."""
        for program in self.background:
            program.stop()
        self.background.clear()
        if self.channel is not None:
            self.channel.close()  # the keeper ends, and with it its pid namespace; then unshare(1), its parent
        if self.keeper is not None and self.keeper.returncode is None:
            try:
                self._await_end(self.keeper)
            except subprocess.TimeoutExpired:
                self.keeper.kill()
                self._await_end(self.keeper)
        for node in self.nodes.values():
            node.close()
        self.nodes.clear()
        if self.pids >= 0:
            os.close(self.pids)
            self.pids = -1
