"""Every operation of an ADD fails, and the process is killed before and after it: nothing is left.

A failed ADD undoes itself. After a killed one the host is as before once a DEL, a GC or another ADD and its DEL have run. DELs
are failed and killed in the same way. Another attachment of the network is there all the time, so that what attachments
share has been made.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from lab import Lab
from runtime import Network, Outcome, Plugins, mapping
from snapshot import difference

from tests.conftest import need_root
from tests.faults.conftest import host_state

SUBJECT = "c2"
PORTS = [mapping(8080, 80), mapping(8080, 80, "udp"), mapping(8090, 80, host_ip="198.51.100.1")]
CHAIN = ("bridge", "portmap")
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # of the process itself; as nsenter tells it
NOTHING: Mapping[str, object] = {}

Report = dict[str, str]


class Subject:
    """The container under test and the chain of its network."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.network.ports[SUBJECT] = PORTS
        self.prev_result: dict[str, Any] | None = None

    def run(self, verb: str, plugin: str, fault: str = "", conf: Mapping[str, object] = NOTHING) -> Outcome:
        whole = {**(self.network.bridge() if plugin == "bridge" else self.network.portmap(SUBJECT)), **conf}
        if plugin == "portmap" and self.prev_result:
            whole["prevResult"] = self.prev_result
        environment = {"CNI_TEST_FAULT": fault} if fault else {}
        outcome = self.network.plugins.run(self.network.lab, verb, plugin, whole, SUBJECT, **environment)
        if (verb, plugin, outcome.status) == ("ADD", "bridge", 0):
            self.prev_result = outcome.json
        return outcome

    def well(self, verb: str, plugin: str, fault: str = "", conf: Mapping[str, object] = NOTHING) -> Outcome:
        outcome = self.run(verb, plugin, fault, conf)
        assert outcome.status == 0, f"{verb} {plugin}: {outcome.stdout}{outcome.stderr}"
        return outcome

    def add_up_to(self, plugin: str) -> None:
        """ADD of what comes before the plugin in the chain."""
        for earlier in CHAIN[: CHAIN.index(plugin)]:
            self.well("ADD", earlier)

    def delete(self) -> None:
        for plugin in reversed(CHAIN):
            self.well("DEL", plugin)
        self.prev_result = None

    def operations(self, verb: str, plugin: str, step: str) -> list[str]:
        """What the plugin does, one line an operation, found by doing it."""
        self.add_up_to(plugin)
        added = self.well("ADD", plugin, f"{step}:0:count")
        deleted = self.well("DEL", plugin, f"{step}:0:count")
        self.delete()
        told = (added if verb == "ADD" else deleted).stderr.splitlines()
        found = [line.partition(": ")[2] for line in told if line.startswith(f"{step} ")]
        assert found, f"{verb} of {plugin} has no operations"
        return found


State = Callable[[], dict[str, object]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


@pytest.fixture(scope="module")
def network(lab: Lab, saboteurs: Plugins) -> Network:
    """A network to which c1 is attached, with ports of its own."""
    network = Network(lab, saboteurs, "faults")
    network.attach("c1", mapping(8081, 80), mapping(8082, 53, "udp"))
    return network


@pytest.fixture(scope="module")
def subject(network: Network) -> Subject:
    return Subject(network)


@pytest.fixture(scope="module")
def state(lab: Lab, network: Network) -> State:
    return lambda: {"host": host_state(lab), "container": lab.snapshot(SUBJECT)}


def told(left: Report) -> str:
    return "\n".join(f"== {operation}\n{changed}" for operation, changed in left.items())


@pytest.mark.parametrize("how", ["fail", "fail-after"])
@pytest.mark.parametrize("plugin", CHAIN)
def test_an_add_that_fails_at_any_operation_undoes_itself(
    subject: Subject, state: State, plugin: str, how: str
) -> None:
    operations = subject.operations("ADD", plugin, "apply")
    subject.add_up_to(plugin)
    before, left = state(), Report()
    for number, operation in enumerate(operations, 1):
        outcome = subject.run("ADD", plugin, f"apply:{number}:{how}")
        assert outcome.status == 1, f"{operation}: {outcome}"
        assert "injected by the test" in f"{outcome.json['msg']} {outcome.json.get('details')}", operation
        if changed := difference(before, state()):
            left[operation] = changed
            subject.well("DEL", plugin)
    subject.delete()
    assert not left, told(left)


def collect_garbage(subject: Subject) -> None:
    for plugin in reversed(CHAIN):
        valid = [{"containerID": "c1", "ifname": "eth0"}]
        subject.well("GC", plugin, conf={"cniVersion": "1.1.0", "cni.dev/valid-attachments": valid})


def add_again(subject: Subject) -> None:
    for plugin in CHAIN:
        if plugin == "portmap" or subject.prev_result is None:
            subject.well("ADD", plugin)
    subject.delete()


@pytest.mark.parametrize("recover", [collect_garbage, add_again])
@pytest.mark.parametrize("plugin", CHAIN)
def test_after_an_add_killed_at_any_operation_nothing_stays(
    subject: Subject, state: State, plugin: str, recover: Callable[[Subject], None]
) -> None:
    """That a DEL removes it, too, is shown at every instruction below."""
    operations = subject.operations("ADD", plugin, "apply")
    before, left = state(), Report()
    for number, operation in enumerate(operations, 1):
        subject.prev_result = None
        subject.add_up_to(plugin)
        outcome = subject.run("ADD", plugin, f"apply:{number}:kill-after")
        assert outcome.status in KILLED, f"{operation}: {outcome}"
        recover(subject)
        if changed := difference(before, state()):
            left[operation] = changed
            subject.delete()
    assert not left, told(left)


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize("plugin", CHAIN)
def test_after_a_call_killed_at_any_instruction_nothing_stays(
    subject: Subject, state: State, plugin: str, verb: str
) -> None:
    """Between two calls that change something it makes no difference where it is killed, so before each one is everywhere."""
    calls = subject.operations(verb, plugin, "change")
    before, left = state(), Report()
    for number, call in enumerate(calls, 1):
        subject.add_up_to(plugin)
        if verb == "DEL":
            subject.well("ADD", plugin)
        outcome = subject.run(verb, plugin, f"change:{number}:kill")
        # How often a DEL asks for its child depends on how long the kernel takes.
        is_over = outcome.status == 0 and number > len(calls) - sum("waitpid" in one for one in calls)
        assert is_over or outcome.status in KILLED, f"{number}: {outcome}"
        subject.delete()
        if changed := difference(before, state()):
            left[f"{number} {call}"] = changed
    assert not left, told(left)


@pytest.mark.parametrize("plugin", CHAIN)
def test_a_del_that_fails_at_any_operation_is_completed_by_the_next(
    subject: Subject, state: State, plugin: str
) -> None:
    operations = subject.operations("DEL", plugin, "undo")
    before, left = state(), Report()
    for number, operation in enumerate(operations, 1):
        subject.add_up_to(plugin)
        subject.well("ADD", plugin)
        outcome = subject.run("DEL", plugin, f"undo:{number}:fail")
        assert outcome.status == 1, f"{operation}: {outcome}"
        subject.delete()
        if changed := difference(before, state()):
            left[operation] = changed
    assert not left, told(left)


def test_the_other_attachment_is_left_alone(network: Network, saboteurs: Plugins) -> None:
    """After all of the above its CHECK still passes."""
    previous = {"prevResult": network.results["c1"]}
    for plugin, conf in (("bridge", network.bridge()), ("portmap", network.portmap("c1"))):
        outcome = saboteurs.run(network.lab, "CHECK", plugin, {**conf, **previous}, "c1")
        assert outcome.status == 0, outcome.stdout
