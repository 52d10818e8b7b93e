"""The plugins ptp and macvlan, which make the container's interface: failed or killed anywhere, nothing is left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab import Lab
from runtime import ALL, Outcome, Plugins
from snapshot import difference

from tests.conftest import need_root
from tests.faults.conftest import INJECT, START, is_kept
from tests.plugins.bridge_network import BridgeNetwork
from tests.plugins.test_macvlan import MacvlanNetwork
from tests.plugins.test_ptp import PtpNetwork

if TYPE_CHECKING:
    from tests.plugins.bridge_network import Conf

NETWORKS: dict[str, type[BridgeNetwork]] = {"ptp": PtpNetwork, "macvlan": MacvlanNetwork}
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # of the process itself; as nsenter tells it
EVERY = 2  # of the calls of functions one in so many


class Subject:
    """An attachment whose plugin can be made to go wrong."""

    def __init__(self, network: BridgeNetwork) -> None:
        self.network = network
        self.conf: Conf = network.conf("1.1.0", mtu=1400, ipMasq=True)
        network.warm(self.conf)

    def go(self, verb: str, fault: str = "", **keys: object) -> Outcome:
        return self.network.run(verb, {**self.conf, **keys}, **({"CNI_TEST_FAULT": fault} if fault else {}))

    def good(self, verb: str, fault: str = "", **keys: object) -> Outcome:
        outcome = self.go(verb, fault, **keys)
        assert outcome.status == 0, f"{verb}: {outcome.stdout}{outcome.stderr}"
        return outcome

    def steps(self, verb: str, step: str) -> range:
        """The numbers of the steps, found by counting them."""
        outcomes = {each: self.good(each, f"{step}:0:count") for each in ("ADD", "DEL")}
        number = sum(line.startswith(f"{step} ") for line in outcomes[verb].stderr.splitlines())
        assert number
        return range(1, number + 1, EVERY if step == "call" else 1)

    def state(self) -> dict[str, object]:
        """Without what is_kept(), nor locks: that of one killed before it wrote a record stays until the next call."""
        state = self.network.state()
        host = state["host"]
        assert isinstance(host, dict)
        for top, entries in host["files"].items():
            kept = {path for path, entry in entries.items() if "/lock/" in path or is_kept(path, entry)}
            host["files"][top] = {path: entry for path, entry in entries.items() if path not in kept}
        return state


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


@pytest.fixture(scope="module", params=[*NETWORKS])
def subject(
    request: pytest.FixtureRequest, lab: Lab, our_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    directory = tmp_path_factory.mktemp("saboteurs")
    for name in (request.param, "host-local"):
        before, start, after = (our_bin_dir / name).read_text().partition(START)
        assert start
        (directory / name).write_text(f"{before}exec(open({str(INJECT)!r}).read())\n{start}{after}")
        (directory / name).chmod(0o755)
    network = NETWORKS[request.param](lab, Plugins("ours", directory, ALL))
    yield Subject(network)
    network.close()


@pytest.mark.parametrize(("step", "how"), [("apply", "fail"), ("apply", "fail-after"), ("call", "fail")])
def test_an_add_that_fails_anywhere_leaves_nothing(subject: Subject, step: str, how: str) -> None:
    numbers = subject.steps("ADD", step)
    before = subject.state()
    for number in numbers:
        outcome = subject.go("ADD", f"{step}:{number}:{how}")
        if outcome.status == 0 or step == "call":  # it was no matter; or what takes it back was to fail
            subject.good("DEL")
        assert not difference(before, subject.state()), f"{step} {number}"


@pytest.mark.parametrize("then", ["DEL", "DEL without namespace", "GC", "ADD and DEL"])
@pytest.mark.parametrize(("step", "how"), [("apply", "kill"), ("apply", "kill-after"), ("call", "kill")])
def test_what_a_killed_add_left_is_removed(subject: Subject, step: str, how: str, then: str) -> None:
    numbers = subject.steps("ADD", step)
    before = subject.state()
    for number in numbers:
        if subject.go("ADD", f"{step}:{number}:{how}").status not in KILLED:
            subject.good("DEL")
            continue
        records = [path for path in subject.network.records() if not path.endswith(".tmp")]  # half of one is nobody's
        if then == "GC" and records:
            subject.good("GC", "", **{"cni.dev/valid-attachments": []})
        elif then == "DEL without namespace":
            assert subject.network.run("DEL", subject.conf, netns="").status == 0
        elif then == "ADD and DEL" and not any(path.endswith(".json") for path in records):
            subject.good("ADD")
        if then not in ("GC", "DEL without namespace") or not records:
            subject.good("DEL")
        assert not difference(before, subject.state()), f"{step} {number}"


@pytest.mark.parametrize(
    ("step", "how"), [("undo", "fail"), ("undo", "kill"), ("undo", "kill-after"), ("call", "kill")]
)
def test_a_del_that_is_killed_or_fails_can_be_done_again(subject: Subject, step: str, how: str) -> None:
    numbers = subject.steps("DEL", step)
    before = subject.state()
    for number in numbers:
        subject.good("ADD")
        subject.go("DEL", f"{step}:{number}:{how}")
        subject.good("DEL")
        assert not difference(before, subject.state()), f"{step} {number}"
