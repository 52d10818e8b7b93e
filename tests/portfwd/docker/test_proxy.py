"""portfwd-docker-proxy as dockerd starts it: arguments, descriptors, signals. Debian's docker-proxy has to pass the same.

Every test runs inside the lab's host, whose /run is its own: `start` gives a process its descriptors 3 and 4.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from node import Node

from portfwd.docker import waiter
from tests.clients import docker_host, fetch_debs
from tests.conftest import need_root
from tests.lacking import missing

PORT, CONTAINER_PORT = 8080, 80
CONTAINER = "127.0.0.2"  # an address of the host stands for the container's: dockerd's proxy dials it from the host
ANY4, ANY6 = "0.0.0.0", "::"
WAIT_S = 5.0
CONTROL = Path("/run/cni-py/portfwd.sock")
HEAVY = (
    "asyncio",
    "argparse",
    "json",
    "re",
    "socket",
    "enum",
    "ipaddress",
    "dataclasses",
    "logging",
    "typing",
    "signal",
)


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    """The host of a lab for all tests: each leaves nothing in it but a stale control socket."""
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab["host"]


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(docker_host.proxy_executable(tmp_path_factory.mktemp("proxy")))


@pytest.fixture(params=["ours", "docker"])
def proxy(request: pytest.FixtureRequest) -> str:
    """The executable under test."""
    if request.param == "ours":
        return str(request.getfixturevalue("ours"))
    try:
        return str(fetch_debs.fetch() / "usr/sbin/docker-proxy")
    except (fetch_debs.Unavailable, OSError) as error:
        missing(f"Debian's docker-proxy cannot be had: {error}")


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


PATHS = {
    "TCP, all IPv4 addresses": ("tcp", ANY4, "127.0.0.1"),
    "TCP, all IPv6 addresses": ("tcp", ANY6, "::1"),
    "TCP, one address": ("tcp", "127.0.0.3", "127.0.0.3"),
    "UDP, all IPv4 addresses": ("udp", ANY4, "127.0.0.1"),
    "UDP, all IPv6 addresses": ("udp", ANY6, "::1"),
}


@pytest.mark.parametrize("path", PATHS)
def test_it_says_0_when_it_listens_and_relays(host: Node, proxy: str, path: str) -> None:
    protocol, host_ip, asked = PATHS[path]

    def relay() -> tuple[str, str, int]:
        with container(protocol), start(proxy, *options(protocol, host_ip)) as running:
            return running.report(), ask(asked, protocol), running.stop()

    said, answered, status = host.python(relay)
    assert (said, answered) == ("0\n", "HELLO")
    early = [-signal.SIGTERM] if proxy.endswith("/docker-proxy") else []  # Debian's says 0 before it has a handler
    assert status in [0, *early]


SPELLINGS = {
    "two dashes": [f"-{option}" if option.startswith("-") else option for option in options()],
    "equals signs": [f"{name}={value}" for name, value in zip(options()[::2], options()[1::2], strict=True)],
    "the last one counts": ["-proto", "udp", "-host-ip", "127.0.0.9", *options()],
    "what follows the options": [*options(), "ignored", "-unknown"],
    "tcp is the default": options()[2:],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_options_are_those_of_gos_flag_package(host: Node, proxy: str, spelling: str) -> None:
    def relay() -> tuple[str, str]:
        with container(), start(proxy, *SPELLINGS[spelling]) as running:
            return running.report(), ask("127.0.0.1")

    assert host.python(relay) == ("0\n", "HELLO")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_signals_of_dockerd_end_it_with_status_0_and_the_port_is_closed(
    host: Node, proxy: str, number: int
) -> None:
    def end() -> tuple[str, int, str]:
        with start(proxy, *options()) as running:
            report = running.report()
            time.sleep(0.1)  # Debian's docker-proxy says 0 before it handles signals
            return report, running.stop(number), ask("127.0.0.1")

    assert host.python(end) == ("0\n", 0, "ConnectionRefusedError")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_in_use_is_an_error_on_descriptor_3(host: Node, proxy: str, protocol: str) -> None:
    def collide() -> tuple[str, int]:
        with bound(protocol, ANY4), start(proxy, *options(protocol)) as running:
            return running.report(), running.wait()

    report, status = host.python(collide)
    assert report.startswith(f"1\nlisten {protocol}4 {ANY4}:{PORT}: bind: address already in use")
    assert status == 1


def test_an_address_that_is_not_the_hosts_is_an_error_on_descriptor_3(host: Node, proxy: str) -> None:
    def miss() -> tuple[str, int]:
        with start(proxy, *options(host_ip="203.0.113.9")) as running:
            return running.report(), running.wait()

    report, status = host.python(miss)
    assert report.startswith("1\n")
    assert "203.0.113.9" in report
    assert status == 1


def test_without_descriptor_3_it_ends_at_once(host: Node, proxy: str) -> None:
    def orphan() -> str:
        with start(proxy, *options(), status_fd=False) as running:
            running.wait()
            return ask("127.0.0.1")

    assert host.python(orphan) == "ConnectionRefusedError"


WRONG = {
    "an unknown option": ["-nonsense"],
    "a port that is no number": ["-host-port", "http"],
    "a value is missing": ["-host-ip"],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_options_that_cannot_be_meant_are_status_2(host: Node, proxy: str, wrong: str) -> None:
    def refuse() -> int:
        with start(proxy, *WRONG[wrong]) as running:
            return running.wait()

    assert host.python(refuse) == 2


def test_help_is_status_0(proxy: str) -> None:
    done = subprocess.run([proxy, "-help"], capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.returncode == 0
    assert "-container-port" in done.stderr


# What Debian's docker-proxy does not know yet, or says in other words


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("host_ip", [ANY4, ANY6])
def test_the_socket_that_dockerd_bound_is_used(host: Node, ours: str, protocol: str, host_ip: str) -> None:
    def relay() -> tuple[str, str, int, str]:
        listener = bound(protocol, host_ip)
        arguments = [*options(protocol, host_ip), "-use-listen-fd"]
        with container(protocol), start(ours, *arguments, listener=listener) as running:
            listener.close()
            loopback = "::1" if host_ip == ANY6 else "127.0.0.1"
            return running.report(), ask(loopback, protocol), running.stop(), ask(loopback, protocol)

    assert host.python(relay) == ("0\n", "HELLO", 0, "ConnectionRefusedError")


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


REFUSED = {
    "SCTP": (["-proto", "sctp"], "SCTP"),
    "an unknown protocol": (["-proto", "icmp"], "unsupported protocol icmp"),
    "no port of the host": (["-proto", "tcp"], "-host-port: -1 is not between 1 and 65535"),
    "a name as address": (["-host-ip", "localhost"], "-host-ip: 'localhost' is not an IP address"),
    "no listen fd": ([*options(), "-use-listen-fd"], "descriptor 4 is not a socket"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_a_sentence_on_descriptor_3(host: Node, ours: str, case: str) -> None:
    arguments, sentence = REFUSED[case]

    def refuse() -> tuple[str, int]:
        with start(ours, *arguments) as running:
            return running.report(), running.wait()

    report, status = host.python(refuse)
    assert report.startswith("1\n")
    assert sentence in report
    assert status == 1


def test_a_wrong_option_is_told_to_dockerd_too(host: Node, ours: str) -> None:
    def refuse() -> str:
        with start(ours, "-nonsense") as running:
            return running.report()

    assert host.python(refuse) == "1\nunknown option '-nonsense'"


def test_a_listener_of_another_protocol_is_refused(host: Node, ours: str) -> None:
    def refuse() -> str:
        with bound("udp", ANY4) as listener, start(ours, *options(), "-use-listen-fd", listener=listener) as running:
            return running.report()

    assert host.python(refuse) == "1\n-use-listen-fd: descriptor 4 is not a tcp socket"


@pytest.mark.parametrize("option", ["-v", "-version", "--version", "-v=true"])
def test_the_version_is_printed(ours: str, option: str) -> None:
    done = subprocess.run([ours, option], capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("portfwd-docker-proxy version ")


# With the service: its side of the control socket is played here


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


# The waiter


def become(how: Callable[[], object], number: int | None) -> tuple[int, int]:
    """Fork, replace the child, signal it; its exit status and private memory in kB."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, waiter.STOP_SIGNALS)
            if number is None:
                os.kill(os.getpid(), signal.SIGINT)  # told to stop before it is a waiter
            how()
        finally:
            os._exit(99)
    running = Running(pid, -1)
    memory = 0
    if number is not None:
        wait_for_waiter(pid)
        memory = private_kb(pid)
        running.stop(number)
    return running.wait(), memory


def private_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, None])
def test_the_waiter_takes_a_few_pages_and_ends_with_status_0(number: int | None) -> None:
    status, memory = become(lambda: waiter.become_waiter(["x"]), number)
    assert status == 0
    assert memory <= 32


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_memory_cannot_be_executed_a_shell_waits(number: int) -> None:
    status, memory = become(lambda: waiter.become_shell(["x"]), number)
    assert status == 0
    assert memory <= 1024


@pytest.mark.parametrize("machine", [*waiter.PROGRAMS, "riscv64"])
def test_the_program_of_a_machine_is_one_page_or_there_is_none(machine: str) -> None:
    program = waiter.waiter_program(machine)
    assert len(program) < 4096
    if machine in waiter.PROGRAMS:
        number = waiter.PROGRAMS[machine][0]
        assert program[:4] == b"\x7fELF"
        assert struct.unpack_from("<HHI", program, 16) == (2, number, 1)  # ET_EXEC, e_machine, EV_CURRENT
        assert program.endswith(waiter.NAME)


def test_the_way_to_the_service_imports_nothing_heavy() -> None:
    look = "import sys; from portfwd.docker import proxy; print(*sys.modules)"
    loaded = run_python("-ISc", f"import sys; sys.path.append({str(docker_host.ROOT)!r}); {look}").split()
    assert not set(HEAVY).intersection(loaded)


def run_python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout
