"""A proxy beside the service, whose side of the control socket is played here."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from node import Node

from tests.portfwd.docker.dockerd import (
    ANY4,
    CONTAINER_PORT,
    CONTROL,
    PORT,
    WAIT_S,
    ask,
    bound,
    container,
    options,
    start,
    wait_for_waiter,
)


def control_socket() -> socket.socket:
    """In place of the one of an earlier test."""
    CONTROL.parent.mkdir(parents=True, exist_ok=True)
    CONTROL.unlink(missing_ok=True)
    control = socket.socket(socket.AF_UNIX)
    control.bind(str(CONTROL))
    return control


class Service:
    """Answers one request on the control socket, and remembers it."""

    def __init__(self, answer: object) -> None:
        self.answer = answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n"
        self.request: dict[str, Any] = {}
        self.fds: list[int] = []
        self.peer = 0
        self.socket = control_socket()
        self.socket.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        connection, _ = self.socket.accept()
        with connection:
            line, self.fds, _, _ = socket.recv_fds(connection, 1 << 16, 4)
            while line and not line.endswith(b"\n"):
                line += connection.recv(1 << 16)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            self.peer = int.from_bytes(credentials[:4], sys.byteorder)
            if line:
                self.request = json.loads(line)
                connection.sendall(self.answer)


PUBLISHED = {"ok": True, "ids": ["x"], "notes": []}


def test_the_service_gets_the_mapping_and_the_process_waits(host: Node, ours: str) -> None:
    def hand_over() -> tuple[dict[str, Any], str, bool, list[str], int]:
        service = Service(PUBLISHED)
        with start(ours, *options("udp", "::", "2001:db8::2")) as running:
            report = running.report()
            name = wait_for_waiter(running.pid)
            arguments = Path(f"/proc/{running.pid}/cmdline").read_text().split("\0")[1:-1]
            open_fds = sorted(os.listdir(f"/proc/{running.pid}/fd"))
            same = service.peer == running.pid and arguments == options("udp", "::", "2001:db8::2")
            return service.request, f"{report}{name}", same, open_fds, running.stop()

    request, seen, same, open_fds, status = host.python(hand_over)
    (mapping,) = request.pop("mappings")
    assert request == {"verb": "publish"}
    assert str(mapping.pop("id")).startswith(f"docker-udp-{PORT}-")
    assert mapping == {
        "protocol": "udp",
        "host_ips": ["::"],
        "first": PORT,
        "last": PORT,
        "targets": [{"address": "2001:db8::2", "port": CONTAINER_PORT}],
        "owner": "pid",
        "label": "docker",
    }
    assert seen == "0\nportfwd-docker-"
    assert same
    assert open_fds == ["0", "1", "2"]
    assert status == 0


def test_the_service_gets_the_socket_that_dockerd_bound(host: Node, ours: str) -> None:
    def hand_over() -> tuple[str, tuple[str, int], str]:
        service = Service(PUBLISHED)
        listener = bound("tcp", "127.0.0.1")
        with start(ours, *options(host_ip="127.0.0.1"), "-use-listen-fd", listener=listener) as running:
            listener.close()
            report = running.report()
            wait_for_waiter(running.pid)
            with socket.socket(fileno=service.fds[0]) as given:
                name = given.getsockname()
            return report, name, ask("127.0.0.1")  # nobody else holds it: the service can bind it anew when it restarts

    assert host.python(hand_over) == ("0\n", ("127.0.0.1", PORT), "ConnectionRefusedError")


ANSWERS: dict[str, tuple[object, str]] = {
    "in use": (
        {"ok": False, "error": {"kind": "in-use", "msg": "port 8080/tcp is in use by web", "details": "pid 7"}},
        f"listen tcp4 {ANY4}:{PORT}: bind: address already in use: port 8080/tcp is in use by web: pid 7",
    ),
    "another failure": (
        {"ok": False, "error": {"kind": "failed", "msg": "no descriptor is left", "details": ""}},
        "the portfwd service: no descriptor is left",
    ),
    "an end in the middle": (b'{"ok": tr', "the portfwd service ended in the middle of a request: its log may say why"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_the_service_refuses_is_dockers_error(host: Node, ours: str, case: str) -> None:
    answer, sentence = ANSWERS[case]

    def refuse() -> tuple[str, int]:
        Service(answer)
        with start(ours, *options()) as running:
            return running.report(), running.wait()

    assert host.python(refuse) == (f"1\n{sentence}", 1)


def test_a_socket_that_nobody_serves_is_no_service(host: Node, ours: str) -> None:
    def relay() -> tuple[str, str]:
        control_socket().close()
        with container(), start(ours, *options()) as running:
            return running.report(), ask("127.0.0.1")

    assert host.python(relay) == ("0\n", "HELLO")


def test_a_service_of_another_network_is_not_asked(host: Node, ours: str) -> None:
    """Rootless Docker, in a network of its own, sees the socket of the host's service."""

    def relay() -> tuple[str, dict[str, Any]]:
        service = Service(PUBLISHED)
        with start("/usr/bin/unshare", "--net", ours, *options()) as running:
            report = running.report()
            service.thread.join(WAIT_S)
            return report, service.request

    assert host.python(relay) == ("0\n", {})


def test_it_ends_with_dockerd(host: Node, ours: str) -> None:
    """The signal that the kernel sends when the parent dies survives that the process becomes another program."""

    def orphan() -> str:
        Service(PUBLISHED)
        reader, writer = os.pipe()
        dockerd = os.fork()
        if dockerd == 0:
            with start("/usr/bin/setpriv", "--pdeathsig=TERM", ours, *options()) as running:
                os.write(writer, f"{running.report()}{running.pid}".encode())
                time.sleep(WAIT_S)
                os._exit(0)
        report, pid = os.read(reader, 100).decode().split("\n")
        wait_for_waiter(int(pid))
        os.kill(dockerd, signal.SIGKILL)
        os.waitpid(dockerd, 0)
        deadline = time.monotonic() + WAIT_S
        while os.path.exists(f"/proc/{pid}/exe") and time.monotonic() < deadline:
            time.sleep(0.01)
        return report if not os.path.exists(f"/proc/{pid}/exe") else "still there"

    assert host.python(orphan) == "0"
