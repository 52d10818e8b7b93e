"""The chained plugins that change what another one made, tuning and bandwidth: killed or failed anywhere, nothing is left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from runtime import ALL, Outcome, Plugins
from snapshot import difference

from tests.conftest import need_root
from tests.faults.conftest import INJECT, START
from tests.plugins.veth_attachment import Conf, VethAttachment

WANTED: dict[str, Conf] = {
    "tuning": {
        "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"},
        "mac": "c2:11:22:33:44:55",
        "mtu": 1300,
        "promisc": True,
        "allmulti": True,
        "txQLen": 777,
    },
    "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 800_000, "egressRate": 2_000_000, "egressBurst": 1_600_000},
}
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # of the process itself; as nsenter tells it


class Subject(VethAttachment):
    """An attachment whose plugin can be made to go wrong."""

    def go(self, verb: str, fault: str = "", **keys: object) -> Outcome:
        conf = self.conf("1.1.0", **WANTED[self.type], **keys)
        return self.run(verb, conf, None, "eth0", None, **({"CNI_TEST_FAULT": fault} if fault else {}))

    def good(self, verb: str, fault: str = "", **keys: object) -> Outcome:
        outcome = self.go(verb, fault, **keys)
        assert outcome.status == 0, f"{verb}: {outcome.stdout}{outcome.stderr}"
        return outcome

    def steps(self, verb: str, step: str) -> list[str]:
        """What the verb does, a line a step, found by doing it."""
        outcomes = {each: self.good(each, f"{step}:0:count") for each in ("ADD", "DEL")}
        lines = [line for line in outcomes[verb].stderr.splitlines() if line.startswith(f"{step} ")]
        assert lines
        self.reset()
        return lines

    def reset(self) -> None:
        """The sysctls, which stay after DEL."""
        self.inside("sysctl -q -w net.core.somaxconn=4096 net.ipv4.conf.eth0.arp_filter=0")

    @property
    def finished(self) -> bool:
        """Whether an ADD has succeeded: it may be killed thereafter, too."""
        return any(path.endswith(".json") for path in self.records())

    def everything(self) -> dict[str, object]:
        return {
            "container": self.lab.snapshot(self.id),
            "host": host_without_locks(self.lab),
            "qdiscs": self.host("tc qdisc show"),
            "filters": self.host(f"tc filter show dev {self.host_veth} parent ffff:"),
            "sysctls": self.inside("sysctl -n net.core.somaxconn net.ipv4.conf.eth0.arp_filter"),
            "queue": self.link().get("txqlen"),
        }


def host_without_locks(lab: Lab) -> dict[str, object]:
    """A lock of one that was killed before it wrote a record stays until the next call of the attachment: it is empty."""
    host = lab.snapshot("host")
    trees = host["files"]
    assert isinstance(trees, dict)
    for top, entries in trees.items():
        trees[top] = {path: entry for path, entry in entries.items() if not path.startswith("/run/cni-py/lock/")}
    return host


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


@pytest.fixture(scope="module", params=[*WANTED])
def subject(
    request: pytest.FixtureRequest, lab: Lab, our_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    directory, name = tmp_path_factory.mktemp("saboteurs"), str(request.param)
    before, start, after = (our_bin_dir / name).read_text().partition(START)
    assert start
    (directory / name).write_text(f"{before}exec(open({str(INJECT)!r}).read())\n{start}{after}")
    (directory / name).chmod(0o755)
    subject = Subject(lab, Plugins("ours", directory, ALL), name)
    yield subject
    subject.close()


@pytest.mark.parametrize(("step", "how"), [("apply", "fail"), ("apply", "fail-after"), ("call", "fail")])
def test_an_add_that_fails_anywhere_leaves_nothing(subject: Subject, step: str, how: str) -> None:
    steps = subject.steps("ADD", step)
    before, left = subject.everything(), {}
    for number, line in enumerate(steps, 1):
        outcome = subject.go("ADD", f"{step}:{number}:{how}")
        if outcome.status == 0:  # it was no matter
            subject.good("DEL")
            subject.reset()
            continue
        subject.good("DEL")  # as runtimes do after an error
        if changed := difference(before, subject.everything()):
            left[line] = changed
            break
    assert not left, "\n".join(f"== {line}\n{changed}" for line, changed in left.items())


@pytest.mark.parametrize("then", ["DEL", "GC", "ADD and DEL"])
@pytest.mark.parametrize(("step", "how"), [("apply", "kill"), ("apply", "kill-after"), ("call", "kill")])
def test_what_a_killed_add_left_is_removed(subject: Subject, step: str, how: str, then: str) -> None:
    steps = subject.steps("ADD", step)
    before, left = subject.everything(), {}
    for number, line in enumerate(steps, 1):
        if subject.go("ADD", f"{step}:{number}:{how}").status not in KILLED:
            continue
        finished = subject.finished
        recorded = any(not path.endswith(".tmp") for path in subject.records())
        if then == "GC":
            subject.good("GC", "", **{"cni.dev/valid-attachments": []})
        elif then == "ADD and DEL" and not finished:
            subject.good("ADD")
            finished = True
        if then != "GC" or not recorded:  # half of a first record is nobody's to GC
            subject.good("DEL")
        if finished:
            subject.reset()
        if changed := difference(before, subject.everything()):
            left[line] = changed
            break
    assert not left, "\n".join(f"== {line}\n{changed}" for line, changed in left.items())


@pytest.mark.parametrize(
    ("step", "how"), [("undo", "kill"), ("undo", "kill-after"), ("call", "kill"), ("call", "fail")]
)
def test_a_del_that_is_killed_or_fails_can_be_done_again(subject: Subject, step: str, how: str) -> None:
    steps = subject.steps("DEL", step)
    before = subject.everything()
    for number, line in enumerate(steps, 1):
        subject.good("ADD")
        subject.go("DEL", f"{step}:{number}:{how}")
        subject.good("DEL")
        subject.reset()
        changed = difference(before, subject.everything())
        assert not changed, f"{line}\n{changed}"
