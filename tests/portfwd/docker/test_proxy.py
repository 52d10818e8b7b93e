"""portfwd-docker-proxy as dockerd starts it: arguments, descriptors, signals. Debian's docker-proxy has to pass the same.

Every test runs inside the lab's host: `start` gives a process its descriptors 3 and 4.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from node import Node

from tests.clients import docker_host
from tests.portfwd.docker.dockerd import (
    ANY4,
    ANY6,
    PORT,
    WAIT_S,
    ask,
    bound,
    container,
    options,
    start,
)

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
    assert status in [0, *early(proxy, signal.SIGTERM)]


def early(proxy: str, number: int) -> list[int]:
    """How Debian's may end, too: it says 0 before it has a handler."""
    return [-number] if proxy.endswith("/docker-proxy") else []


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
            return running.report(), running.stop(number), ask("127.0.0.1")

    said, status, answered = host.python(end)
    assert (said, answered) == ("0\n", "ConnectionRefusedError")
    assert status in [0, *early(proxy, number)]


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


def test_the_way_to_the_service_imports_nothing_heavy() -> None:
    look = "import sys; from portfwd.docker import proxy; print(*sys.modules)"
    loaded = run_python("-ISc", f"import sys; sys.path.append({str(docker_host.ROOT)!r}); {look}").split()
    assert not set(HEAVY).intersection(loaded)


def run_python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout
