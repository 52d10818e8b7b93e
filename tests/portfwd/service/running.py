"""`portfwd serve` as a process in a node: started, asked, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from node import Node

from portfwd.errors import PortfwdError
from portfwd.service.client import Client
from portfwd.values import Json
from tests.portfwd.talk import until

PORTFWD = str(Path(sys.executable).with_name("portfwd"))
WAIT_S = 10.0
HEX = "0123456789abcdef"  # an attachment


def raw(port: int = 8080, name: str = "", **fields: object) -> Json:
    """A mapping of one TCP port on the loopback to the port after it."""
    target = {"address": "127.0.0.1", "port": port + 1}
    here = {"id": name or f"m{port}", "protocol": "tcp", "host_ips": ["127.0.0.1"], "first": port, "last": port}
    return {**here, "targets": [target], **fields}


class Service:
    """A service in a node; its control socket is reached from outside, its ports from inside."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.path = str(folder / "portfwd.sock")
        self.state = str(folder / "state")
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.at_rest = 0  # its open descriptors without mappings and clients
        self.seen: list[int] = []  # counts of its open descriptors

    def rests(self) -> bool:
        """Whether the count has been the same for a while: it is at_rest then."""
        self.seen.append(self.descriptors())
        self.at_rest = self.seen[-1]
        return self.seen[-9:] == [self.at_rest] * 9

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid()}/fd"))

    def start(self, *given: str, command: tuple[str, ...] = (), env: dict[str, str] | None = None) -> None:
        """Start it, and return when it answers."""
        options = ["--socket", self.path, "--state", self.state, "--drain", "0.5", *given]
        with open(self.log, "ab") as log:
            self.process = self.node.popen([*command, PORTFWD, "serve", *options], env=env, stdout=log, stderr=log)
        assert until(self.answers), self.log.read_text()

    def answers(self) -> bool:
        try:
            self.ask("list")
        except PortfwdError:
            return False
        return True

    def ask(self, verb: str, fds: tuple[int, ...] = (), **fields: object) -> Json:
        with contextlib.closing(Client.connect(self.path)) as client:
            return client.request({"verb": verb, **fields}, fds)

    def publish(self, *mappings: Json, fds: tuple[int, ...] = (), **fields: object) -> Json:
        return self.ask("publish", fds, mappings=list(mappings), **fields)

    def names(self) -> list[str]:
        return sorted(str(one["id"]) for one in self.listing())

    def listing(self) -> list[Json]:
        found = self.ask("list")["mappings"]
        assert isinstance(found, list)
        return found

    def on_disk(self) -> list[str]:
        return sorted(path.stem for path in Path(self.state, "mappings").glob("*.json"))

    def pid(self) -> int:
        """As this test sees it."""
        pids = subprocess.run(
            ["pgrep", "-f", f"serve --socket {self.path} .*"], capture_output=True, text=True, check=False
        ).stdout.split()
        service = [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == "portfwd"]
        assert len(service) == 1, pids
        return service[0]

    def ask_pid(self) -> int:
        """As the service itself sees it."""
        about = self.ask("stats")["service"]
        assert isinstance(about, dict)
        return int(about["pid"])

    def clear(self) -> None:
        """As if it had just started for the first time."""
        self.ask("remove", ids=self.names())

    def await_successor(self) -> None:
        """Wait until the process that start() made has ended, which it does when another serves."""
        assert self.process is not None
        self.process.wait(WAIT_S)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it; the exit status."""
        assert self.process is not None
        try:
            os.kill(self.pid(), number)
            return self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.process = None


def control_clients(path: str) -> int:
    """How many connections the control socket has; inside the node. An accepted socket has the listener's path, proc_net(5)."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return sum(line[-1] == path and line[5] == "03" for line in lines)


def listens(node: Node, port: int) -> bool:
    return node.python(can_connect, port)


def can_connect(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def holding(node: Node, port: int) -> contextlib.AbstractContextManager[object]:
    """Somebody else has the port."""
    script = (
        f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); print('.', flush=True); time.sleep(60)"
    )

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        process = node.popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            process.stdout.read(1)
            yield
        finally:
            process.kill()
            process.communicate()

    return held()
