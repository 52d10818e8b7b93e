"""How long a published port does not answer: a client that connects without a pause, and what happens meanwhile.

with serving(lab, "c1", 80), Client(lab, "client", "198.51.100.1", 8080) as client:
    damage()
    client.await_answers()
client.gap_ms                                        the longest time between two answers
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from lab import Lab

SLOWNESS = float(os.environ.get("CNI_PY_SLOWNESS") or 1)  # as in node.py; this file is a program, too
PATIENCE_S = (
    0.02 * SLOWNESS
)  # for a connection: on a LAN an answer comes in 1 ms, and a lost SYN is sent again after 1 s only
LIMIT_S = 30.0 * SLOWNESS
ENOUGH = 20  # answers, one after the other, that say that the port is back


@contextlib.contextmanager
def serving(lab: Lab, node: str, port: int) -> Iterator[None]:
    """A server in a node that answers each connection at once and waits for no client: of some the network loses the end."""
    words = [sys.executable, "-I", "-S", str(Path(__file__)), "serve", str(port)]
    server = lab[node].popen(words, stdout=subprocess.PIPE)
    assert server.stdout is not None
    try:
        server.stdout.read(1)
        yield
    finally:
        server.terminate()
        server.communicate()


def serve(port: int) -> None:
    """Answer until the process is ended."""
    with socket.create_server(("", port), backlog=1024) as listener:
        print(".", end="", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.send(b"!")


class Client:
    """A process in a node that connects again and again."""

    def __init__(self, lab: Lab, node: str, address: str, port: int) -> None:
        self.process = lab[node].popen(
            [sys.executable, "-I", "-S", str(Path(__file__)), address, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"CNI_PY_SLOWNESS": str(SLOWNESS)},
        )
        self.gap_ms = 0.0
        self.answers = self.attempts = 0

    def __enter__(self) -> Client:
        self.await_answers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        said, _ = self.process.communicate(timeout=LIMIT_S)
        if kind is None:
            found = json.loads(said.splitlines()[-1])
            self.gap_ms, self.answers, self.attempts = found["gap_ms"], found["answers"], found["attempts"]

    def await_answers(self) -> None:
        """Wait until the port answers several times in a row, from now on."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"?")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], LIMIT_S)[0]:
            raise TimeoutError(f"no answers for {LIMIT_S:g} s")
        self.process.stdout.read(1)


def answers(address: str, port: int) -> bool:
    """Whether a connection is answered."""
    try:
        with socket.create_connection((address, port), PATIENCE_S) as connection:
            return bool(connection.recv(256))
    except OSError:
        time.sleep(0.001)  # refused: at once
        return False


def main(address: str, port: int) -> None:
    """Connect until stdin ends; a character on it asks for one on stdout after ENOUGH answers."""
    gap_s, wanted, in_a_row = 0.0, False, 0
    attempts = count = 0
    last = time.monotonic()
    while True:
        if select.select([sys.stdin], [], [], 0)[0]:
            if not os.read(0, 1):
                break
            wanted, in_a_row = True, 0
        attempts += 1
        if answers(address, port):
            now = time.monotonic()
            gap_s, last = max(gap_s, now - last) if count else 0.0, now
            count, in_a_row = count + 1, in_a_row + 1
        else:
            in_a_row = 0
        if wanted and in_a_row >= ENOUGH:
            wanted = False
            print(".", end="", flush=True)
    print("\n" + json.dumps({"gap_ms": gap_s * 1000, "attempts": attempts, "answers": count}))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    main(sys.argv[1], int(sys.argv[2]))
