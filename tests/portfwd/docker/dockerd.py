"""dockerd's side: how it starts a proxy, what it hears on descriptor 3, and the container."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from portfwd.docker import waiter

PORT, CONTAINER_PORT = 8080, 80
CONTAINER = "127.0.0.2"  # an address of the host stands for the container's: dockerd's proxy dials it from the host
ANY4, ANY6 = "0.0.0.0", "::"
WAIT_S = 20.0
CONTROL = Path("/run/cni-py/portfwd.sock")


@dataclass
class Running:
    """A proxy that was started, and the reading end of its descriptor 3."""

    pid: int
    status_pipe: int
    status: int | None = None

    def report(self) -> str:
        """All that it wrote to descriptor 3; it has to close it, too."""
        text = b""
        while select.select([self.status_pipe], [], [], WAIT_S)[0]:
            piece = os.read(self.status_pipe, 4096)
            if not piece:
                return text.decode()
            text += piece
        raise AssertionError(f"descriptor 3 is still open after {text!r}")

    def wait(self) -> int:
        """The exit status, negative for a signal."""
        deadline = time.monotonic() + WAIT_S
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, "the proxy does not end"
            time.sleep(0.01)
        return self.status

    def stop(self, number: int = signal.SIGTERM) -> int:
        os.kill(self.pid, number)
        return self.wait()


@contextlib.contextmanager
def start(
    proxy: str, *arguments: str, status_fd: bool = True, listener: socket.socket | None = None
) -> Iterator[Running]:
    """Start it as dockerd does: descriptor 3 is a pipe, 4 the listener."""
    reader, writer = os.pipe()
    actions: list[tuple[int, int, int]] = []
    if status_fd:
        actions.append((os.POSIX_SPAWN_DUP2, writer, 3))
    if listener is not None:
        actions.append((os.POSIX_SPAWN_DUP2, listener.fileno(), 4))
    running = Running(os.posix_spawn(proxy, [proxy, *arguments], {"PATH": os.defpath}, file_actions=actions), reader)
    os.close(writer)
    try:
        yield running
    finally:
        if running.status is None:
            os.kill(running.pid, signal.SIGKILL)
            os.waitpid(running.pid, 0)
        os.close(reader)


def options(protocol: str = "tcp", host_ip: str = ANY4, container_ip: str = CONTAINER) -> list[str]:
    """The arguments as dockerd writes them."""
    host = ["-host-ip", host_ip, "-host-port", str(PORT)]
    return ["-proto", protocol, *host, "-container-ip", container_ip, "-container-port", str(CONTAINER_PORT)]


@contextlib.contextmanager
def container(protocol: str = "tcp") -> Iterator[None]:
    """Answers "hello" in capitals, once or for each datagram."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((CONTAINER, CONTAINER_PORT))
        server.settimeout(WAIT_S)

        def serve() -> None:
            with contextlib.suppress(OSError):
                if protocol == "udp":
                    data, peer = server.recvfrom(4096)
                    server.sendto(data.upper(), peer)
                    return
                connection, _ = server.accept()
                with connection:
                    connection.sendall(connection.recv(4096).upper())

        if protocol == "tcp":
            server.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(0)


def ask(address: str, protocol: str = "tcp") -> str:
    """What comes back for "hello", or the error's name."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as client:
        client.settimeout(WAIT_S)
        try:
            client.connect((address, PORT))
            client.send(b"hello")
            return client.recv(4096).decode()
        except OSError as error:
            return type(error).__name__


def bound(protocol: str, host_ip: str) -> socket.socket:
    """A socket as newer dockerds make it."""
    family = socket.AF_INET6 if ":" in host_ip else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if protocol == "tcp":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host_ip, PORT))
    if protocol == "tcp":
        listener.listen()
    return listener


def wait_for_waiter(pid: int) -> str:
    """The name of the process once it waits: as the program, which names itself first, or as a shell that has set its traps."""
    deadline = time.monotonic() + WAIT_S
    while True:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        caught = int(status["SigCgt"], 16) & waiter.SIGNALS
        named = status["Name"] == "portfwd-docker-" or (status["Name"] == "sh" and caught == waiter.SIGNALS)
        # the script of the proxy has the same name before, and Python for its program
        if named and not os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("python"):
            return status["Name"]
        assert time.monotonic() < deadline, status["Name"]
        time.sleep(0.01)
