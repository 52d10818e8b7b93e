"""Calls that are cut short, cannot tell their result, or are logged."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest
from snapshot import difference

from tests.plugins.bridge_network import BridgeNetwork, Conf, ForeignIpam

pytestmark = pytest.mark.ours_alone
WAIT_S = 30.0  # each of these ends in well under one second


class Waiting:
    """An ADD in the background that is waiting for a slow IPAM plugin."""

    def __init__(self, net: BridgeNetwork, foreign: ForeignIpam, conf: Conf) -> None:
        self.net = net
        self.foreign = foreign
        foreign.adds(
            "echo $PPID >&2; echo $$ $PPID >%s.tmp; mv %s.tmp %s; sleep 60" % ((foreign.path.parent / "pids",) * 3)
        )
        self.conf = {**conf, "ipam": {"type": foreign.name}}
        self.path = f"{foreign.path.parent}:{net.plugins.directory}"
        self.outcomes: list[object] = []
        self.thread = threading.Thread(target=self.add)

    def add(self) -> None:
        self.outcomes.append(self.net.run("ADD", self.conf, CNI_PATH=self.path))

    def __enter__(self) -> tuple[int, int]:
        """The process ids of the IPAM plugin and of bridge, as the lab sees them."""
        self.thread.start()
        pids = self.foreign.path.parent / "pids"
        deadline = time.monotonic() + WAIT_S
        while not pids.exists():
            assert time.monotonic() < deadline, self.outcomes
            time.sleep(0.01)
        ipam, bridge = pids.read_text(encoding="ascii").split()
        return int(ipam), int(bridge)

    def __exit__(self, *error: object) -> None:
        self.thread.join(WAIT_S)


@pytest.mark.parametrize("signal", ["TERM", "INT", "HUP"])
def test_a_signal_takes_everything_back(net: BridgeNetwork, foreign: ForeignIpam, signal: str) -> None:
    conf = net.conf(ipMasq=True)
    net.warm(conf)
    before = net.state()
    waiting = Waiting(net, foreign, conf)
    with waiting as (ipam, bridge):
        net.do("host", f"kill -{signal} {bridge}")
    (outcome,) = waiting.outcomes
    assert "interrupted by signal" in str(outcome)
    assert [call.partition(" ")[0] for call in foreign.calls] == ["ADD", "DEL"]
    assert net.lab["host"].run(["kill", "-0", str(ipam)]).returncode != 0, "its IPAM plugin goes on"
    assert not difference(before, net.state())


def test_what_a_killed_add_has_begun_is_ended_by_del(net: BridgeNetwork, foreign: ForeignIpam) -> None:
    conf = net.conf(ipMasq=True)
    net.warm(conf)
    before = net.state()
    waiting = Waiting(net, foreign, conf)
    with waiting as (ipam, bridge):
        net.do("host", f"kill -KILL {bridge}")
    net.do("host", f"kill -KILL {ipam}")
    assert [path.rpartition("/")[2] for path in net.records()] == [f"{net.plugins.keeper('bridge')}.adding"]
    net.well("DEL", waiting.conf, CNI_PATH=waiting.path)
    assert not difference(before, net.state())


def test_del_waits_for_an_add_that_is_under_way(net: BridgeNetwork, foreign: ForeignIpam) -> None:
    """A runtime that gave up waiting sends DEL while ADD still runs: what ADD makes later must not stay."""
    conf = net.conf(ipMasq=True)
    net.warm(conf)
    before = net.state()
    waiting = Waiting(net, foreign, conf)
    deleted: list[object] = []

    def delete() -> None:
        deleted.append(net.run("DEL", waiting.conf, CNI_PATH=waiting.path))

    thread = threading.Thread(target=delete)
    with waiting as (_, bridge):
        thread.start()
        deadline = time.monotonic() + WAIT_S
        while not net.lab["host"].python(waits_for_lock, f"{net.attachment(net.a)}-{net.plugins.keeper('bridge')}"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not deleted
        net.do("host", f"kill -TERM {bridge}")
    thread.join(WAIT_S)
    assert [getattr(outcome, "status", None) for outcome in deleted] == [0]
    assert not difference(before, net.state())


def waits_for_lock(name: str) -> bool:
    """Whether somebody waits for the lock of an attachment, see proc_locks(5); called inside the host."""
    inode = Path(f"/run/cni-py/lock/attachment-{name}").stat().st_ino
    lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return any(" -> " in line and f":{inode} " in line for line in lines)


# stdout and stdin


def add_with(net: BridgeNetwork, conf: Conf, shell: str) -> subprocess.CompletedProcess[str]:
    """ADD by a shell: `shell` says where the streams of "$@" go."""
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": net.a,
        "CNI_NETNS": f"/run/netns/{net.a}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(net.plugins.directory),
    }
    bridge = str(net.plugins.directory / "bridge")
    return net.lab["host"].run(
        ["bash", "-c", f"set -o pipefail; {shell}", "sh", bridge], env=env, input=json.dumps(conf)
    )


@pytest.mark.parametrize(
    "shell",
    [
        '"$@" >/dev/full',
        '"$@" >&-',
        # when its reader has closed it
        'm=/tmp/closed-$$; (until [ -e $m ]; do sleep 0.02; done; rm $m; exec "$@") | exec sh -c "exec <&-; : >$m"',
        '"$@" >/dev/full 2>/dev/full',
        '"$@" >&- 2>&-',
    ],
    ids=["full disk", "closed", "closed pipe", "full disk twice", "closed twice"],
)
def test_an_add_that_cannot_tell_its_result_is_taken_back(net: BridgeNetwork, shell: str) -> None:
    conf = net.conf(families=(4, 6), ipMasq=True)
    net.warm(conf)
    before = net.state()
    done = add_with(net, conf, shell)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    assert not difference(before, net.state())


@pytest.mark.parametrize("shell", ['"$@" <&-', '"$@" </dev/null'], ids=["closed", "empty"])
def test_a_configuration_that_cannot_be_read_is_an_error(net: BridgeNetwork, shell: str) -> None:
    before = net.state()
    done = add_with(net, {}, shell)
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] in (5, 6)
    assert "Traceback" not in done.stderr
    assert not difference(before, net.state())


@pytest.mark.parametrize("shell", ['"$@" 2>&-', '"$@" 2>/dev/full'], ids=["closed", "full"])
def test_a_stderr_that_takes_nothing_disturbs_nothing(net: BridgeNetwork, shell: str) -> None:
    conf = net.conf(families=(4, 6), ipMasq=True, log="/nowhere/log")  # which is said there
    done = add_with(net, conf, shell)
    assert done.returncode == 0
    assert net.check(conf, json.loads(done.stdout)).status == 0


# The key `log`

LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ bridge (ADD|DEL) \S+ \d+\.\d ms "


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_one_line_a_call_is_logged(net: BridgeNetwork, log: Path) -> None:
    conf = net.conf(log=str(log))
    net.well("ADD", conf)
    assert net.run("ADD", conf).status == 1
    net.well("DEL", conf)
    first, second, third = log.read_text(encoding="utf-8").splitlines()
    label = f"{net.name}/{net.a}/eth0"
    assert re.fullmatch(LINE + "ok", first)
    assert f" bridge ADD {label} " in first
    assert re.fullmatch(LINE + "error 999: .*already exists", second)
    assert re.fullmatch(LINE + "ok", third)
    assert f" bridge DEL {label} " in third
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.unchained
def test_a_log_is_appended_to_and_a_line_stays_one_line(net: BridgeNetwork, log: Path, foreign: ForeignIpam) -> None:
    log.write_text("before\n", encoding="utf-8")
    foreign.adds("""printf '{"code": 123, "msg": "two\\\\nlines"}'; exit 1""")
    conf = {**net.conf(log=str(log)), "ipam": {"type": foreign.name}}
    assert net.run("ADD", conf, CNI_PATH=str(foreign.path.parent)).code == 123
    before, line = log.read_text(encoding="utf-8").splitlines()
    assert before == "before"
    assert line.endswith("error 123: two lines")


@pytest.mark.parametrize("target", ["/nowhere/log", "/etc", "journal", "", "link", "relative\0"])
def test_a_log_that_cannot_be_written_fails_nothing(net: BridgeNetwork, log: Path, target: str) -> None:
    if target == "link":
        log.symlink_to(log.with_name("elsewhere"))
        target = str(log)
    conf = net.conf(log=target)
    net.well("ADD", conf)
    net.well("DEL", conf)
    assert not log.exists()
