"""Every command of portfwd with stdin, stdout and stderr closed, or full: what is done, and what its exit status says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lab import Lab
from node import Node

from tests.portfwd.publisher import PORTFWD, SOCKET, await_socket, exchange
from tests.portfwd.talk import until

CLOSED = "<&- >&- 2>&-"
FULL = "</dev/null >/dev/full 2>/dev/full"
PUBLISH = "publish 127.0.0.1:8080:80 --to 127.0.0.1"
PROXY = "-proxy -proto tcp -host-ip 127.0.0.1 -host-port 8081 -container-ip 127.0.0.1 -container-port 80 3>/run/status"


def command(words: str, streams: str) -> list[str]:
    program = f"{PORTFWD}-docker{words}" if words.startswith("-") else f"{PORTFWD} {words}"
    return ["sh", "-c", f"exec {program} {streams}"]


def status(node: Node, words: str, streams: str) -> int:
    return node.run(command(words, streams)).returncode


def begin(words: str, streams: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(words, streams))


def names() -> list[str]:
    return [one["id"] for one in exchange(SOCKET, {"verb": "list"})["mappings"]]


def standard_streams(pid: int) -> set[str]:
    """What descriptors 0 to 2 lead to."""
    return {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)}


def long_lived() -> tuple[set[str], list[int]]:
    """A service that is reloaded (and stays), `portfwd run` and a docker-proxy, all with closed streams; called in the node."""
    first = begin("serve", CLOSED)
    await_socket(SOCKET)
    streams = standard_streams(first.pid)
    assert exchange(SOCKET, {"verb": "reload"})["ok"] is True
    ended = [first.wait(10)]
    await_socket(SOCKET)
    streams |= standard_streams(int(Path(f"{SOCKET}.lock").read_text()))
    for words, port in (("run 127.0.0.1:8082:80 --to 127.0.0.1", 8082), (PROXY, 8081)):
        process = begin(words, CLOSED)
        listens = f":{port:04X} 00000000:0000 0A"  # LISTEN, proc_net_tcp(5)
        assert until(lambda listens=listens: listens in Path("/proc/net/tcp").read_text())  # type: ignore[misc]
        streams |= standard_streams(process.pid)
        process.terminate()
        ended.append(process.wait(10))
    return streams, ended


def test_commands_do_what_they_were_asked_and_say_so(machine: Lab) -> None:
    host = machine["host"]
    assert host.python(long_lived) == ({"/dev/null"}, [0, 0, 0])
    try:
        for streams in (CLOSED, FULL):
            assert status(host, f"{PUBLISH} --name web", streams) == 0
            assert host.python(names) == ["web"]
            assert status(host, "ls", streams) == 1
            assert status(host, "rm web", streams) == 0
            assert host.python(names) == []
    finally:
        host.run(["sh", "-c", f"kill $(cat {SOCKET}.lock)"])
