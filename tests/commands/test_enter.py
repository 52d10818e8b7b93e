"""`cni-py enter` on a lab's host."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from lab import Lab

from tests.commands.hand import Hand

COMMAND = Path(sys.executable).with_name("cni-py")
pytestmark = pytest.mark.ours_alone


def enter(lab: Lab, *words: str) -> CompletedProcess[str]:
    return lab["host"].run([str(COMMAND), "enter", *words], env={"SHELL": "/bin/cat"}, input="from stdin")


def test_every_name_of_a_namespace_leads_into_it(hand: Hand) -> None:
    lab = hand.lab
    hand.well("ADD", "lab", "c1")
    pid = str(lab["c1"].pid)
    for name in ("c1", "/run/netns/c1", "/var/run/netns/c1", pid, f"/proc/{pid}/ns/net", "lab/c1/eth0"):
        done = enter(lab, name, "--", "ip", "-br", "address", "show", "eth0")
        assert "192.0.2.2/24" in done.stdout, (name, done.stderr)
    assert "eth0" in enter(lab, "c1", "ls", "/sys/class/net").stdout.split()
    assert enter(lab, "c1").stdout == "from stdin"
    lab["host"].run(
        ["sh", "-ec", "mkdir -p /etc/netns/c1; echo nameserver 192.0.2.53 > /etc/netns/c1/hosts"], check=True
    )
    assert enter(lab, "c1", "--", "cat", "/etc/hosts").stdout == "nameserver 192.0.2.53\n"
    assert "eth0" not in lab["host"].run(["ls", "/sys/class/net"]).stdout.split()
    assert "192.0.2.53" not in lab["host"].run(["cat", "/etc/hosts"]).stdout


def test_the_exit_status_is_the_programs(lab: Lab) -> None:
    for words, status in (
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -PIPE $$"], -13),
        (["no-such-program"], 127),
        (["/etc"], 126),
    ):
        assert enter(lab, "c1", "--", *words).returncode == status


def test_what_is_meant_must_be_clear(hand: Hand) -> None:
    lab = hand.lab
    for name in ("web-1", "web-2", "web"):
        hand.well("ADD", "lab", name, "--create-netns")
    both = enter(lab, "web-", "--", "true")
    assert both.returncode == 2
    assert "the attachment lab/web-1/eth0, or the attachment lab/web-2/eth0" in both.stderr
    assert enter(lab, "web", "--", "true").returncode == 0  # in full
    lab["host"].run(["sh", "-ec", "ip netns delete web; ip netns add web"], check=True)
    assert "eth0" not in enter(lab, "web", "--", "ls", "/sys/class/net").stdout  # the namespace is another one
    assert "eth0" in enter(lab, "web-1", "ls", "/sys/class/net").stdout
    nobody = enter(lab, "nobody\x1b[31m", "--", "true")
    assert nobody.returncode == 3
    assert '"nobody\\x1b[31m"' in nobody.stderr
    assert enter(lab, "/etc/passwd", "true").returncode == 3


def test_it_changes_no_mount_of_the_host(lab: Lab) -> None:
    def mounts() -> str:
        return Path("/proc/self/mountinfo").read_text()

    before = lab["host"].python(mounts)
    assert enter(lab, "c1", "--", "true").returncode == 0
    assert lab["host"].python(mounts) == before
    assert os.path.exists("/sys/class/net")
