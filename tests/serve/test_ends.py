"""Whoever is killed or stopped in the middle of a call: the runtime sees one answer, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lab import Lab
from runtime import Outcome, Plugins
from snapshot import difference

from tests.plugins.bridge_network import BridgeNetwork, ForeignIpam
from tests.warm import Warm, wait_until

pytestmark = pytest.mark.xdist_group("serve ends")  # one host for all

LOST = "the process of `cni-py serve` that ran this call was killed or has crashed: run DEL, which removes what it made"


def plain(net: BridgeNetwork) -> dict[str, object]:
    """Without what is shared and stays."""
    return net.conf(ipMasq=False, isGateway=False)


@dataclass
class Call:
    """An ADD of bridge in the background. Its IPAM plugin waits, and then gives an address."""

    net: BridgeNetwork
    foreign: ForeignIpam
    before: tuple[str, ...] = ()  # words before the executable
    after: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    child: int = 0  # the process that runs bridge, in the lab's pid namespace
    ipam: int = 0
    conf: dict[str, object] = field(default_factory=dict)

    def __enter__(self) -> Call:
        folder = self.foreign.path.parent
        result = {"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.7/24"}]}
        self.foreign.adds(
            f"echo $$ $PPID >{folder}/new; mv {folder}/new {folder}/pids; i=0\n"
            f"until [ -e {folder}/go ] || [ $i = 300 ]; do sleep 0.1; i=$((i+1)); done; echo '{json.dumps(result)}'"
        )
        self.conf = plain(self.net)
        self.conf["ipam"] = {"type": self.foreign.name}
        self.process = self.net.lab["host"].popen(
            [*self.before, str(self.net.plugins.directory / "bridge"), *self.after],
            env={
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": self.net.a,
                "CNI_NETNS": f"/run/netns/{self.net.a}",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": self.path,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(self.conf).encode())
        self.process.stdin.close()
        self.process.stdin = None
        pids = folder / "pids"
        wait_until(pids.exists, "the IPAM plugin was not started")
        self.ipam, self.child = map(int, pids.read_text().split())
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    @property
    def path(self) -> str:
        return f"{self.foreign.path.parent}:{self.net.plugins.directory}"

    def go_on(self) -> None:
        (self.foreign.path.parent / "go").touch()

    def outcome(self) -> Outcome:
        assert self.process is not None
        said, complaint = self.process.communicate(timeout=30)
        return Outcome(self.process.returncode, said.decode(), complaint.decode())

    def signal(self, name: str, pid: int) -> None:
        self.net.do("host", f"kill -{name} {pid}")

    def launcher(self) -> int:
        """The pid of the executable in the lab's pid namespace."""
        found = self.net.lab["host"].run(["pgrep", "-nf", str(self.net.plugins.directory / "bridge")], check=True)
        return int(found.stdout)


@pytest.fixture
def net(host: Lab, launchers: Plugins) -> Iterator[BridgeNetwork]:
    network = BridgeNetwork(host, launchers)
    yield network
    network.close()


@pytest.fixture
def foreign(tmp_path: Path) -> ForeignIpam:
    return ForeignIpam(tmp_path / "foreign")


@pytest.fixture
def before(net: BridgeNetwork, warm: Warm) -> dict[str, object]:
    """The state of the host when the bridge has been made once."""
    net.warm(plain(net))
    return net.state()


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_a_launcher_that_is_ended_takes_its_call_back(
    net: BridgeNetwork, foreign: ForeignIpam, before: dict[str, object], signal: str
) -> None:
    with Call(net, foreign) as call:
        call.signal(signal, call.launcher())
        outcome = call.outcome()
        if signal == "TERM":
            assert (outcome.status, outcome.json["msg"]) == (1, "interrupted by signal 15")
        else:
            assert (outcome.status != 0, outcome.stdout) == (True, "")
    assert [line.partition(" ")[0] for line in foreign.calls] == ["ADD", "DEL"]
    wait_until(lambda: not difference(before, net.state()), "something is left")


@pytest.mark.parametrize("way", [(), ("direct",)], ids=["warm", "direct"])
def test_a_signal_that_is_ignored_from_the_start_stays_so(
    net: BridgeNetwork, foreign: ForeignIpam, before: dict[str, object], way: tuple[str, ...]
) -> None:
    """As after nohup(1)."""
    with Call(net, foreign, ("env", "--ignore-signal=HUP"), way) as call:
        call.signal("HUP", call.child if way else call.launcher())
        call.go_on()
        outcome = call.outcome()
        assert outcome.status == 0, outcome
        net.well("DEL", call.conf, CNI_PATH=call.path)
    assert not difference(before, net.state())


def test_a_child_that_is_killed_is_an_error(
    net: BridgeNetwork, foreign: ForeignIpam, before: dict[str, object], warm: Warm
) -> None:
    crashed = sum(row["crashed"] for row in warm.ask()["calls"])
    with Call(net, foreign) as call:
        call.signal("KILL", call.child)
        call.signal("KILL", call.ipam)
        outcome = call.outcome()
        assert (outcome.status, outcome.json) == (1, {"code": 999, "msg": LOST})
        net.well("DEL", call.conf, CNI_PATH=call.path)
    assert not difference(before, net.state())
    assert sum(row["crashed"] for row in warm.ask()["calls"]) == crashed + 1


@pytest.mark.parametrize("stdout", ["/dev/full", "nobody"])
def test_a_result_that_cannot_be_written_is_taken_back(
    net: BridgeNetwork, before: dict[str, object], stdout: str
) -> None:
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": net.a,
        "CNI_NETNS": f"/run/netns/{net.a}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(net.plugins.directory),
    }
    if stdout == "nobody":
        reader, writer = os.pipe()
        os.close(reader)  # before there is a result
    else:
        writer = os.open(stdout, os.O_WRONLY)
    pipe = subprocess.PIPE
    try:
        call = net.lab["host"].popen(
            [str(net.plugins.directory / "bridge")], env=environ, stdin=pipe, stdout=writer, stderr=pipe
        )
    finally:
        os.close(writer)
    _, complaint = call.communicate(json.dumps(plain(net)).encode(), timeout=30)
    assert b"cannot write to stdout" in complaint, complaint
    assert not difference(before, net.state())


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_a_service_that_ends_does_not_end_its_calls(
    net: BridgeNetwork, foreign: ForeignIpam, before: dict[str, object], warm: Warm, signal: str
) -> None:
    """Told to end, it waits for them, and new ones go direct."""
    with Call(net, foreign) as call:
        warm.signal(signal)
        if signal == "TERM":
            other = net.run("ADD", plain(net), container_id=net.b)
            assert other.status == 0, other
            net.well("DEL", plain(net), container_id=net.b)
            assert warm.process is not None
            assert warm.process.poll() is None
        call.go_on()
        outcome = call.outcome()
        assert outcome.status == 0, outcome
        assert outcome.json["ips"][0]["address"] == "192.0.2.7/24"
        net.well("DEL", call.conf, CNI_PATH=call.path)
    warm.ended()
    after = net.state()
    warm.__enter__()
    assert not difference(before, after) or signal == "TERM"  # its socket's file


def test_it_loads_the_package_anew_when_told_to(
    net: BridgeNetwork, foreign: ForeignIpam, before: dict[str, object], warm: Warm
) -> None:
    """SIGHUP: calls that run go on, the process and its socket stay."""
    pid = warm.ask()["pid"]
    with Call(net, foreign) as call:
        warm.signal("HUP")
        wait_until(lambda: warm.ask().get("calls") == [], "it has not begun anew")
        assert warm.ask()["pid"] == pid
        call.go_on()
        outcome = call.outcome()
        assert outcome.status == 0, outcome
        net.well("DEL", call.conf, CNI_PATH=call.path)
    assert [row["verb"] for row in warm.ask()["calls"]] == ["DEL"]


def test_a_reload_does_not_make_it_forget_that_it_is_to_end(warm: Warm) -> None:
    """SIGTERM beside SIGHUP, and so before it begins anew."""
    for name in ("STOP", "HUP", "TERM", "CONT"):
        warm.signal(name)
    try:
        warm.ended()
    finally:
        if warm.process is not None:
            warm.process.kill()
        warm.__enter__()


def test_one_reload_after_the_other_does_not_end_it(warm: Warm) -> None:
    """SIGHUP while it begins anew, and has no handlers yet: to systemd that would be an end in order."""
    pid = warm.ask()["pid"]
    for _ in range(25):
        warm.signal("HUP")
        time.sleep(0.02)
    assert wait_until(lambda: warm.ask().get("pid"), "it has ended") == pid
