"""`cni-py restore --watch` on a lab's host: what goes is back at once, without loops, and without a fight with a DEL."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from runtime import Network, Plugins, mapping

from tests.commands.watching import COMMAND, WAIT_S, Watching, with_setting

pytestmark = pytest.mark.ours_alone
UNIT = Path(__file__).parents[2] / "conf/cni-py-restore.service"
WEB, HOST4 = 8080, "198.51.100.1"


@pytest.fixture(scope="module")
def machine() -> Iterator[Lab]:
    with Lab.from_yaml("lan.yaml") as lab:
        lab.serve("c1", 80)
        yield lab


@pytest.fixture
def network(machine: Lab, plugins: Plugins) -> Iterator[Network]:
    network = Network(machine, plugins)
    network.attach("c1", mapping(WEB, 80))
    yield network
    for name in list(network.results):
        network.detach(name)


@pytest.fixture
def watching(network: Network, tmp_path: Path) -> Iterator[Watching]:
    with Watching(network.lab, tmp_path) as one:
        yield one


def shell(lab: Lab, script: str) -> str:
    return lab["host"].run(["sh", "-c", script], check=True).stdout


def test_what_goes_is_back_and_the_log_says_what_it_was(machine: Lab, network: Network, tmp_path: Path) -> None:
    with Watching(machine, tmp_path, with_setting("WITHIN_S", 0)) as watching:
        damage_one_after_the_other(machine, watching)
        work_of_others(machine, watching)
        second = machine["host"].run([str(COMMAND), "restore", "--watch"])
        assert (second.returncode, "runs already" in second.stderr) == (1, True)


def damage_one_after_the_other(machine: Lab, watching: Watching) -> None:
    for damage, *words in (
        ("nft flush ruleset", "lost: table inet cni_py"),
        ("ip link delete cni0", "put back: ", "bridge cni0"),
        ("ip address delete 192.0.2.1/24 dev cni0", "put back: ", "address 192.0.2.1/24"),
        ("nft flush chain inet cni_py published4", "put back: table inet cni_py: rules of chain published4"),
        ("nft flush map inet cni_py any4", "lost: ", "elements of any4"),
        ("ip link set cni0 down", "put back: ", "bridge cni0 is up"),
        ("ip link set $(ls /sys/class/net/cni0/brif) nomaster", "put back: ", "a port of bridge cni0"),
    ):
        before = len(watching.lines())
        shell(machine, damage)
        watching.await_line(*words, since=before)
        assert re.search(
            r"put back in \d+ ms(: \d+ operations of 1 attachments)?$", watching.await_line("put back in", since=before)
        )
        assert machine.fetch("client", HOST4, WEB).name == "c1"


def work_of_others(machine: Lab, watching: Watching) -> None:
    """Only what is in our table is looked at."""
    quiet = len(watching.lines())
    shell(
        machine,
        "nft add table inet other; nft delete table inet other; ip link add br9 type bridge; ip link delete br9",
    )
    shell(machine, "ip address add 203.0.113.1/24 dev cni0; ip address delete 203.0.113.1/24 dev cni0")
    shell(machine, "nft flush chain inet cni_py output")
    watching.await_line("chain output", since=quiet)
    assert not [line for line in watching.lines()[quiet:] if "lost" in line and "chain output" not in line]


def test_adds_and_dels_beside_it_leave_nothing_and_cost_no_look(
    machine: Lab, network: Network, watching: Watching
) -> None:
    before = len(watching.lines())
    for _ in range(3):
        network.attach("c2", mapping(8090, 80), mapping(8091, 80))
        network.detach("c2")
    time.sleep(0.7)  # the time after which elements that went are looked for
    assert watching.lines()[before:] == []
    assert "8090" not in shell(machine, "nft list ruleset")


def test_an_attachment_that_is_being_deleted_stays_deleted(machine: Lab, network: Network, watching: Watching) -> None:
    """A DEL holds the attachment's lock from its first effect until its record is gone."""
    network.attach("c2", mapping(8090, 80))
    record = shell(machine, "grep -l '\"c2\"' /run/cni-py/attachments/*/portmap.json").strip()
    lock = f"/run/cni-py/lock/attachment-{record.split('/')[-2]}-portmap"
    script = f"flock {lock} sh -c 'echo; read line; mv {record} /tmp/kept'"
    beside = machine["host"].popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert beside.stdout is not None
    assert beside.stdin is not None
    beside.stdout.readline()
    before = len(watching.lines())
    shell(machine, "nft flush ruleset")
    watching.await_line("put back in", since=before)
    assert machine.fetch("client", HOST4, WEB).name == "c1"
    beside.stdin.write(b"\n")
    beside.communicate(timeout=WAIT_S)
    watching.await_line("what calls were at work on", since=before)
    assert "8090" not in shell(machine, "nft list ruleset")
    shell(machine, f"mv /tmp/kept {record}")
    network.detach("c2")


def test_who_deletes_again_and_again_is_answered_less_often(machine: Lab, network: Network, tmp_path: Path) -> None:
    """With pauses of more than a test's life; how they grow: tests/portfwd/service/test_watch.py."""
    machine["host"].run([str(COMMAND), "restore"], check=True)  # or the first look has something to put back
    with Watching(machine, tmp_path, with_setting("PACE_S", 600.0)) as watching:
        before = len(watching.lines())
        shell(machine, "nft delete table inet cni_py")
        watching.await_line("put back in", since=before)
        before = len(watching.lines())
        shell(machine, "nft delete table inet cni_py")
        assert "lost again: table inet cni_py" in watching.await_line("again and again", since=before)
        assert not [line for line in watching.lines()[before:] if "put back" in line]
        assert "inet cni_py" not in shell(machine, "nft list tables")


def test_lost_notifications_cost_a_look(machine: Lab, network: Network, tmp_path: Path) -> None:
    """With a buffer that holds few of them, and a process that is stopped while they come."""
    with Watching(machine, tmp_path, with_setting("BUFFER", 4096)) as watching:
        watching.process.send_signal(signal.SIGSTOP)
        text = "".join(f"add table inet other{number}\n" for number in range(200))
        machine["host"].run(["nft", "-f", "-"], input=text, check=True)
        shell(machine, "nft flush ruleset; ip link delete cni0")
        watching.process.send_signal(signal.SIGCONT)
        watching.await_line("lost: unknown, since notifications were lost")
        watching.await_line("put back in")
        assert machine.fetch("client", HOST4, WEB).name == "c1"
