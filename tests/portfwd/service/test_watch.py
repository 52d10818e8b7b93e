"""Somebody flushes nftables: what the plugins had there comes back, at once and without a loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from lab import Lab
from runtime import Network, Plugins, mapping

from cni_py.kernel.netlink import NFNL_SUBSYS_NFTABLES, attr, nested
from cni_py.kernel.nf_tables import BRIDGE, INET, Element
from cni_py.restore import losses as told
from cni_py.restore.losses import Losses, Pace
from portfwd.service import watch
from portfwd.service.watch import Watch

WEB, BACK_S = 8080, 20.0
HEX = "0123456789abcdef"


# What messages say


def message(kind: int, family: int, table: bytes, *attributes: bytes) -> bytes:
    body = bytes((family, 0, 0, 0)) + attr(1, table + b"\0") + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), NFNL_SUBSYS_NFTABLES << 8 | kind, 0, 0, 0) + body


def losses(*messages: bytes) -> Losses:
    found = Losses()
    found.note(b"".join(messages), 5.0)
    return found


def gone(comment: str, set_name: bytes = b"any4") -> bytes:
    element = Element(b"key!", None, comment).encode()
    return message(told.NFT_MSG_DELSETELEM, INET, b"cni_py", attr(2, set_name + b"\0"), nested(3, element))


def test_changes_of_other_tables_are_no_losses() -> None:
    assert not losses(message(told.NFT_MSG_DELTABLE, INET, b"firewalld"), message(told.NFT_MSG_DELRULE, 2, b"nat"))


def test_a_table_of_the_same_name_in_another_family_is_somebody_elses() -> None:
    assert not losses(message(told.NFT_MSG_DELTABLE, 2, b"cni_py"))


def test_tables_chains_and_sets_are_structure() -> None:
    for kind in (told.NFT_MSG_DELTABLE, told.NFT_MSG_DELCHAIN, told.NFT_MSG_DELSET):
        assert losses(message(kind, BRIDGE, b"cni_py")).structure


def test_a_chain_whose_rules_are_written_anew_is_no_loss() -> None:
    chain = attr(told.NFTA_RULE_CHAIN, b"output\0")
    removed = message(told.NFT_MSG_DELRULE, INET, b"cni_py", chain)
    assert losses(removed).chains == {(INET, b"output\0")}
    assert not losses(removed, message(told.NFT_MSG_NEWRULE, INET, b"cni_py", chain))


def test_an_element_tells_its_attachment() -> None:
    assert list(losses(gone(f"{HEX} net/c1/eth0")).elements.values()) == [(HEX, 5.0)]
    assert not losses(gone(""))
    came = message(told.NFT_MSG_NEWSETELEM, INET, b"cni_py", attr(2, b"any4\0"), nested(3, Element(b"key!").encode()))
    assert not losses(gone(f"{HEX} net/c1/eth0"), came)
    assert losses(gone("", b"local_links")).structure


def test_elements_are_looked_for_when_a_del_has_had_time_to_finish() -> None:
    found = losses(gone(f"{HEX} net/c1/eth0"), message(told.NFT_MSG_DELTABLE, INET, b"cni_py"))
    first = found.take_settled(4.9)
    assert first.structure
    assert not first.elements
    assert not found.structure
    assert found.take_settled(5.0).elements
    assert not found


def test_lost_messages_are_as_good_as_all() -> None:
    found = Losses()
    found.everything()
    assert found.structure


def test_damaged_messages_are_passed_over() -> None:
    assert not losses(b"\1\0\0\0" * 8, b"")
    assert not losses(message(told.NFT_MSG_DELTABLE, INET, b"cni_py")[:18])


def test_restoring_in_vain_becomes_rare() -> None:
    pace, now, times = Pace(1.0), 100.0, []
    for _ in range(9):
        now = max(now, pace.earliest())
        pace.done(now)
        times.append(now)
    waits = [round(after - before) for before, after in itertools.pairwise(times)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    pace.done(now + 1000)
    assert pace.earliest() == now + 1001


# On a host


@pytest.fixture(scope="module")
def machine() -> Iterator[Lab]:
    with Lab.from_yaml("lan.yaml") as lab:
        lab.serve("c1", 80)
        yield lab


def nft(command: str) -> str:
    return subprocess.run(["nft", *command.split()], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def watched(
    path: Path | None, said: list[str], every_s: float = watch.EVERY_S
) -> Iterator[tuple[asyncio.AbstractEventLoop, Watch]]:
    """A watch. `path` is a file that gets a line instead of `cni-py restore`."""
    loop = asyncio.new_event_loop()
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]  # the least that works
    watch.log.addHandler(handler)
    watch.log.setLevel(logging.INFO)
    command = ("sh", "-c", f"echo ran; echo ran >>{path}") if path else watch.RESTORE
    watching = Watch(loop, command=command, every_s=every_s)
    try:
        yield loop, watching
    finally:
        watching.close()
        loop.close()


def turn(loop: asyncio.AbstractEventLoop, done: Callable[[], bool], limit_s: float = BACK_S) -> None:
    """Let the loop run until something is so."""
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end
        loop.run_until_complete(asyncio.sleep(0.02))


def has_run(path: Path) -> bool:
    """Whether the program has been there, and has written its line: the file is made first."""
    return path.exists() and path.read_text().endswith("\n")


def settle(loop: asyncio.AbstractEventLoop, watching: Watch) -> None:
    """Let it read the messages there are, look where they say, and do all that comes of that."""
    loop.run_until_complete(asyncio.sleep(0.02))
    turn(loop, lambda: watching._timer is None and watching._child is None)


def flush_and_wait(commands: list[str]) -> tuple[int, list[str]]:
    """After how many commands all came back, and what was logged."""
    said: list[str] = []
    with watched(None, said) as (loop, watching):

        def complete() -> bool:
            return nft("-s list ruleset").count(f"tcp . {WEB}") == before

        before = nft("-s list ruleset").count(f"tcp . {WEB}")
        assert before >= 4
        for command in commands:
            nft(command)
            assert not complete()
            turn(loop, complete)
        settle(loop, watching)
    return len(commands), said


@pytest.mark.ours_alone
def test_after_a_flush_the_plugins_rules_are_back(machine: Lab, plugins: Plugins) -> None:
    network = Network(machine, plugins)
    network.attach("c1", mapping(WEB, 80))
    times, said = machine["host"].python(flush_and_wait, ["flush ruleset", "delete table inet cni_py"])
    assert times == 2
    assert any("cni-py restore: lab/c1/eth0 portmap: restored" in line for line in said), said
    assert machine.fetch("client", "198.51.100.1", WEB).name == "c1"
    network.detach("c1")


def work_of_others(path: Path) -> list[str]:
    """What is logged while others change their tables."""
    said: list[str] = []
    with watched(path, said) as (loop, watching):
        nft("add table inet firewalld")
        nft("delete table inet firewalld")
        settle(loop, watching)
    return said


def test_changes_of_others_tables_restore_nothing(machine: Lab, tmp_path: Path) -> None:
    assert machine["host"].python(work_of_others, tmp_path / "runs") == []
    assert not (tmp_path / "runs").exists()


def listen_beside(path: Path, ready: Path, done: Path) -> list[str]:
    """What is logged until others are done, and all that they did has been looked at."""
    said: list[str] = []
    with watched(path, said) as (loop, watching):
        ready.touch()
        turn(loop, done.exists)
        settle(loop, watching)
    return said


@pytest.mark.ours_alone
def test_an_add_and_a_del_restore_nothing(machine: Lab, plugins: Plugins, tmp_path: Path) -> None:
    network = Network(machine, plugins)
    network.attach("c2", mapping(8090, 80))  # there are records of others
    runs, ready, done = tmp_path / "runs", tmp_path / "ready", tmp_path / "done"
    said: list[list[str]] = []
    beside = Thread(target=lambda: said.append(machine["host"].python(listen_beside, runs, ready, done)))
    beside.start()
    while not ready.exists():
        time.sleep(0.02)
    network.attach("c1", mapping(WEB, 80))
    network.detach("c1")
    network.attach("c1", mapping(WEB, 80))
    network.detach("c1")
    done.touch()
    beside.join()
    assert said == [[]]
    assert not runs.exists()
    network.detach("c2")


def take_out(path: Path) -> str:
    """Remove one element of a container."""
    said: list[str] = []
    with watched(path, said) as (loop, _):
        nft("flush map inet cni_py hairpin4")
        with contextlib.suppress(AssertionError):
            turn(loop, lambda: has_run(path))
    return " ".join(said)


@pytest.mark.ours_alone
def test_elements_of_an_attachment_that_stands_are_missed(machine: Lab, plugins: Plugins, tmp_path: Path) -> None:
    network = Network(machine, plugins)
    network.attach("c1", mapping(WEB, 80))
    assert "running cni-py restore" in machine["host"].python(take_out, tmp_path / "runs")
    network.detach("c1")


def flush_again(path: Path, folder: str) -> int:
    """How often something was restored when everything was flushed again soon after the first time."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with watched(path, [], every_s=60.0) as (loop, watching):
        for seen in (lambda: has_run(path), lambda: watching._wanted):
            nft("add table inet cni_py")
            nft("flush ruleset")
            turn(loop, seen)
    Path(folder).rmdir()
    return len(path.read_text().splitlines())


def test_somebody_who_flushes_all_the_time_costs_a_run_per_pause(machine: Lab, tmp_path: Path) -> None:
    folder = "/run/cni-py/attachments/" + HEX
    assert machine["host"].python(flush_again, tmp_path / "runs", folder) == 1


def lose_messages(path: Path, folder: str) -> None:
    """Let more happen to other tables than the socket holds, and turn the loop afterwards only."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    told.BUFFER = 4096
    try:
        with watched(path, []) as (loop, _):
            text = "".join(f"add table inet other{number}\n" for number in range(200))
            subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
            turn(loop, lambda: has_run(path))
    finally:
        Path(folder).rmdir()
        nft("flush ruleset")


def test_messages_that_were_lost_make_it_look(machine: Lab, tmp_path: Path) -> None:
    machine["host"].python(lose_messages, tmp_path / "runs", "/run/cni-py/attachments/" + HEX)
    assert (tmp_path / "runs").read_text() == "ran\n"
