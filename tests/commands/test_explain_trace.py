"""`cni-py explain --trace` on a lab's host: real packets, and what the kernel says of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from node import read_line
from runtime import ALL, Plugins

from tests.commands.explain_scene import CLIENT, HOST, Attempt, Scene
from tests.commands.hand import HOME
from tests.conftest import need_root

DROP = """
nft 'add table ip foreign; add chain ip foreign late { type filter hook forward priority 10; }'
nft add rule ip foreign late ip daddr 192.0.2.2 tcp dport 80 drop
"""
REJECT = DROP.replace("80 drop", "80 reject with tcp reset")
WAIT_S = 30.0  # never reached


@pytest.fixture(scope="module")
def scene(our_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    need_root()
    with Lab.from_yaml("bridges.yaml") as lab:
        yield Scene.build(lab, Plugins("ours", our_bin_dir, ALL), tmp_path_factory.mktemp("trace"))


def line(*words: str) -> list[str]:
    return [sys.executable, "-m", "cni_py.commands.main", "explain", "--trace", *words]


ENVIRONMENT = {"PYTHONPATH": str(HOME), "COLUMNS": "120"}


def traced(scene: Scene, *words: str, status: int = 0) -> Any:
    """The JSON of a trace, which changes nothing."""
    before = ruleset(scene)
    done = scene.lab["host"].run(line(*words, "--json"), env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (status, ""), done.stdout + done.stderr
    assert ruleset(scene) == before
    return json.loads(done.stdout)["trace"]


def ruleset(scene: Scene) -> str:
    return scene.lab["host"].run(["nft", "--stateless", "-a", "list", "ruleset"], check=True).stdout


def rules(trace: Any, *, asks: bool = True) -> list[tuple[str, str]]:
    """Hook and text of the rules that packets met, in their order."""
    return [
        (passage["hook"], one["text"])
        for packet in trace["packets"]
        if packet["asks"] is asks
        for passage in packet["passages"]
        for one in passage["met"]
        if one["handle"]
    ]


@pytest.mark.parametrize(
    ("words", "hook", "target"),
    [
        (("8080",), "output", "192.0.2.2"),
        (("8080", "--from", "loopback"), "output", "192.0.2.2"),
        (("8080", "--from", "a2"), "prerouting", "192.0.2.2"),
        (("8082", "--from", "a1"), "prerouting", "203.0.113.2"),  # by iptables
        ((f"[{HOST[6]}]:8080",), "output", "2001:db8:42::2"),
    ],
    ids=["host", "loopback", "container", "iptables", "ipv6"],
)
def test_a_published_port(scene: Scene, words: tuple[str, ...], hook: str, target: str) -> None:
    trace = traced(scene, *words)
    assert (trace["result"], trace["agrees"], trace["lost"]) == ("answered", True, False)
    assert [where for where, text in rules(trace) if text.startswith("dnat ") or "-j DNAT " in text] == [hook]
    first = trace["flows"][0]
    assert (first["event"], first["reply"]["source"], first["reply"]["source_port"]) == ("new", target, 80)
    assert [packet["asks"] for packet in trace["packets"]] == [True, False]
    assert trace["packets"][1]["headers"]["flags"] == ["syn", "ack"]


def test_a_datagram(scene: Scene) -> None:
    trace = traced(scene, "8053/udp", "--from", "a2")
    assert (trace["result"], trace["agrees"]) == ("answered", True)
    assert ("prerouting", "dnat ip to meta l4proto . th dport map @any4") in rules(trace)


@pytest.mark.parametrize(("script", "result"), [(DROP, "dropped"), (REJECT, "refused")], ids=["drop", "reject"])
def test_a_foreign_rule_that_drops(scene: Scene, script: str, result: str) -> None:
    scene.shell("host", script)
    try:
        trace = traced(scene, "8080", "--from", "a2", status=1)
        assert (trace["result"], trace["agrees"]) == (result, True)
        last = trace["packets"][0]["passages"][-1]
        assert (last["hook"], last["table"], last["chain"]) == ("forward", "ip foreign", "late")
        assert last["met"][-1]["verdict"] == "drop"
        assert f"by ip foreign late handle {last['met'][-1]['handle']}" in trace["said"]
        assert trace["flows"] == []  # the connection was never confirmed
    finally:
        scene.shell("host", "nft delete table ip foreign")


def test_what_cannot_be_sent_from_here(scene: Scene) -> None:
    done = scene.lab["host"].run(line("8080", "--from", "lan"), env=ENVIRONMENT)
    assert done.returncode == 2
    assert "--live" in done.stderr
    for words in (["--count", "2"], ["--timeout", "9"]):
        done = scene.lab["host"].run(line("8080", *words), env=ENVIRONMENT)
        assert done.returncode == 2
        assert "say how long --live waits" in done.stderr


def waiting(scene: Scene, *words: str) -> subprocess.Popen[bytes]:
    """The program, when its rules are there."""
    pipe = subprocess.PIPE
    program = scene.lab["host"].popen(line(*words, "--live"), env=ENVIRONMENT, stdout=pipe, stderr=pipe)
    assert program.stderr is not None
    assert "waiting for 1" in read_line(program.stderr.fileno(), WAIT_S)
    assert "cni_py_trace_" in ruleset(scene)
    return program


def test_a_client_of_the_lan(scene: Scene) -> None:
    before = ruleset(scene)
    program = waiting(scene, "8080", "--from", "lan")
    others = {("host", 4): Attempt(scene.lab["host"], HOST[4], 8080)}
    assert all(scene.really(others, set(others)).values())  # this is not what it waits for
    asked = {("lan", 4): Attempt(scene.lab["client"], HOST[4], 8080)}
    assert scene.really(asked, set(asked))["lan", 4].startswith("a1 ")
    output, _ = program.communicate(timeout=WAIT_S)
    text = output.decode()
    assert program.returncode == 0, text
    assert f"{CLIENT[4]}:" in text
    assert "prerouting, in lan0" in text
    assert "dnat ip to meta l4proto . th dport map @any4" in text
    assert "conntrack new: " in text
    assert f"answered: the packet of {CLIENT[4]}" in text
    assert text.splitlines()[-1].startswith("the trace agrees")
    assert ruleset(scene) == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_the_table_goes_with_the_program(scene: Scene, number: signal.Signals, status: int) -> None:
    before = ruleset(scene)
    program = waiting(scene, "8080")
    program.send_signal(number)
    program.communicate(timeout=WAIT_S)
    assert program.returncode == status
    assert ruleset(scene) == before


def test_nobody_comes(scene: Scene) -> None:
    done = scene.lab["host"].run(line("8080", "--live", "--timeout", "0.1"), env=ENVIRONMENT)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "nothing seen: no packet came within 0.1 s"
