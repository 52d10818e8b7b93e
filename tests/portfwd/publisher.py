"""The installed `portfwd serve` in a node of a lab, and requests to it over its control socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from node import SLOWNESS, Node

PORTFWD = Path(sys.executable).with_name("portfwd")
SOCKET = "/run/cni-py/portfwd.sock"
STATE = "/run/portfwd"  # in a node of a lab /run is its own
READY_S = 10.0 * SLOWNESS
REFUSE = str(Path(__file__).with_name("refuse.py"))


def exchange(path: str, request: dict[str, object]) -> dict[str, Any]:
    """One line there, one line back; called inside the node."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(READY_S)
        peer.connect(path)
        peer.sendall(json.dumps(request).encode() + b"\n")
        with peer.makefile("rb") as answers:
            answer = json.loads(answers.readline())
    assert isinstance(answer, dict)
    return answer


def await_socket(path: str, deadline_s: float = READY_S) -> None:
    """Return when the service answers; called inside the node."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            exchange(path, {"verb": "list"})
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return


class Publisher:
    """A running service."""

    def __init__(self, node: Node, *options: str, prefix: Sequence[str] = (), ready: bool = True) -> None:
        self.node = node
        self.process = node.popen(
            [*prefix, str(PORTFWD), "serve", "--state", STATE, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if ready:
            node.python(await_socket, SOCKET)

    def ask(self, verb: str, **fields: object) -> dict[str, Any]:
        """The answer to a request, well or not."""
        return self.node.python(exchange, SOCKET, {"verb": verb, **fields})

    def publish(self, host_ip: str, port: int, *targets: tuple[str, int], **fields: object) -> str:
        """Publish one TCP port (or what `fields` say) to targets given as address and port; returns the id."""
        mapping: dict[str, object] = {
            "id": f"m{port}",
            "protocol": "tcp",
            "host_ips": [host_ip],
            "first": port,
            "last": port,
            "targets": [{"address": address, "port": number} for address, number in targets],
            **fields,
        }
        answer = self.ask("publish", mappings=[mapping])
        assert answer["ok"] is True, answer
        return str(answer["ids"][0])

    def stats(self, name: str) -> dict[str, Any]:
        """The counters of a mapping."""
        found = self.ask("stats")["mappings"][name]
        assert isinstance(found, dict)
        return found

    def pid(self) -> int:
        """The service's pid as the lab sees it."""
        return int(self.ask("stats")["service"]["pid"])

    def end(self, number: int = signal.SIGTERM) -> str:
        """End it; returns what it logged."""
        with contextlib.suppress(OSError):
            self.node.python(os.kill, self.pid(), number)
        try:
            _, logged = self.process.communicate(timeout=READY_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, logged = self.process.communicate()
        return str(logged.decode())


@contextlib.contextmanager
def serving(node: Node, *options: str, prefix: Sequence[str] = ()) -> Iterator[Publisher]:
    """A service for the length of a block."""
    publisher = Publisher(node, *options, prefix=prefix)
    try:
        yield publisher
    finally:
        publisher.end()
