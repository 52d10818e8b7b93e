"""DEL lets a child process wait for the kernel: whatever becomes of the child, the interface is gone when DEL returns."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from lab import Lab
from runtime import Outcome, Plugins
from snapshot import difference

from tests.conftest import need_root
from tests.plugins.bridge_network import BridgeNetwork
from tests.plugins.link_networks import MacvlanNetwork

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
LIMIT_S = 20
LATE_S = 0.3  # that of inject.py, which cannot be imported here
INIT = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])\n"  # to read it from a descriptor
IGNORED = ("env", "--ignore-signal=CHLD")  # as a runtime may have it that collects no children


class Seen(NamedTuple):
    """One execution, as its parent sees it in the moment when the process has ended."""

    outcome: Outcome
    has_ended_streams: bool  # stdout and stderr, for which a runtime waits
    links: list[str]  # of the host
    left: list[int]  # processes that have outlived it


def observe(command: Sequence[str], environment: dict[str, str], given: str) -> Seen:
    """Run a plugin as its parent, and that of what it leaves behind."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    pipe = subprocess.PIPE
    variables = {"PATH": os.environ["PATH"], **environment}
    with subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdin.write(given.encode())
        run.stdin.close()
        run.wait(LIMIT_S)
        links = [name for _, name in socket.if_nameindex()]
        said, ended = ["", ""], []
        for number, stream in enumerate((run.stdout, run.stderr)):
            os.set_blocking(stream.fileno(), False)
            with contextlib.suppress(BlockingIOError):  # somebody has it open
                while part := os.read(stream.fileno(), 1 << 16):
                    said[number] += part.decode()
                ended.append(number)
    left = []
    for number in (signal.SIGCONT, signal.SIGKILL):  # of children that a test has stopped
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, number)
    with contextlib.suppress(ChildProcessError):
        while True:
            left.append(os.waitpid(-1, 0)[0])
    return Seen(Outcome(run.returncode, *said), len(ended) == 2, links, left)


class Deleting:
    """An attachment that comes and goes, and is looked at in between."""

    def __init__(self, network: BridgeNetwork) -> None:
        self.network = network
        self.conf = network.conf(families=network.families)
        network.warm(self.conf)
        self.before = network.state()

    def add(self) -> None:
        self.host_end = self.network.host_end(self.network.well("ADD", self.conf).json)

    def delete(self, fault: str = "", *prefix: str) -> Seen:
        network = self.network
        environment = {
            "CNI_COMMAND": "DEL",
            "CNI_CONTAINERID": network.a,
            "CNI_NETNS": f"/run/netns/{network.a}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(network.plugins.directory),
            **({"CNI_TEST_FAULT": fault} if fault else {}),
        }
        command = [*prefix, str(network.plugins.directory / network.plugin)]
        seen = network.lab["host"].python(observe, command, environment, json.dumps(self.conf))
        assert seen.outcome.status == 0, seen.outcome
        assert self.host_end not in seen.links
        assert not difference(self.before, network.state())
        return seen


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


@pytest.fixture(scope="module", params=[BridgeNetwork, MacvlanNetwork], ids=["bridge", "macvlan"])
def subject(lab: Lab, saboteurs: Plugins, request: pytest.FixtureRequest) -> Deleting:
    return Deleting(request.param(lab, saboteurs))


def test_a_child_waits_in_our_stead_and_holds_nothing(subject: Deleting) -> None:
    """Also when the next ADD comes at once. The runtime's pipes are at their end although the child still runs."""
    for _ in range(3):
        subject.add()
        seen = subject.delete()
        assert len(seen.left) == 1
        assert seen.has_ended_streams


@pytest.mark.parametrize(
    ("fault", "prefix"),
    [("child:1:kill", ()), ("child:1:kill", IGNORED), ("child:1:stop", ()), ("child:1:late", ())],
    ids=["killed", "killed, SIGCHLD ignored", "stopped", "late"],
)
def test_whatever_becomes_of_the_child(subject: Deleting, fault: str, prefix: tuple[str, ...]) -> None:
    subject.add()
    assert subject.delete(fault, *prefix).has_ended_streams


def test_without_a_child(subject: Deleting) -> None:
    """The machine is busy, or the limit of processes is reached."""
    subject.add()
    assert subject.delete("child:0:busy").left == []
    subject.add()
    counted = subject.delete("change:0:count").outcome.stderr.splitlines()
    [fork] = [line.partition(":")[0].split()[1] for line in counted if line.endswith(": fork")]
    subject.add()
    assert subject.delete(f"change:{fork}:fail").left == []


@pytest.mark.parametrize(("init", "forks"), [("", False), (INIT, True)], ids=["any program", "an init"])
def test_no_zombie_is_left_to_a_first_process_that_collects_none(subject: Deleting, init: str, forks: bool) -> None:
    """A container whose first process may be another program than an init."""
    subject.add()
    run = f"import signal, subprocess, sys\n{init}sys.exit(subprocess.call(sys.argv[1:]))"
    first = ("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-I", "-c", run)
    told = subject.delete("change:0:count", *first).outcome.stderr
    assert (": fork" in told) is forks


def test_a_link_that_goes_meanwhile(subject: Deleting) -> None:
    """Its namespace ends, or somebody else deletes it, before the child comes to it."""
    subject.add()
    script = f'(sleep {LATE_S / 3}; ip -n {subject.network.a} link delete eth0) >/dev/null 2>&1 & exec "$@"'
    subject.delete("child:1:late", "sh", "-c", script, "sh")
