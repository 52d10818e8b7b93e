"""`cni-py show` on a lab's host: what it tells is what the kernel has; it notices a change by itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from calm import await_calm
from lab import Lab
from runtime import Network, Plugins, mapping

pytestmark = pytest.mark.ours_alone
COMMAND = str(Path(sys.executable).with_name("cni-py"))
ENOUGH_S = 30.0


@pytest.fixture(scope="module")
def machine() -> Iterator[Lab]:
    with Lab.from_yaml("lan.yaml") as lab:
        lab.serve("c1", 80)
        yield lab


@pytest.fixture
def network(machine: Lab, plugins: Plugins) -> Iterator[Network]:
    """c1 attached, with a port."""
    network = Network(machine, plugins)
    network.attach("c1", mapping(8080, 80), mapping(5000, 5000, "udp"))
    yield network
    network.detach("c1")


def show(lab: Lab, *options: str, columns: int = 100) -> subprocess.CompletedProcess[str]:
    return lab["host"].run([COMMAND, "show", *options], env={"COLUMNS": str(columns)})


def links(lab: Lab, *options: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(
        lab["host"].run(["ip", "-j", *options, "link", "show", "type", "veth"], check=True).stdout
    )
    return found


def test_text_and_json_tell_what_the_kernel_has(machine: Lab, network: Network, tmp_path: Path) -> None:
    (veth,) = (str(link["ifname"]) for link in links(machine) if "master" in link)
    (inner,) = (link for link in links(machine, "-n", "c1"))
    texts = [str(one["address"]) for one in network.results["c1"]["ips"]]
    text = show(machine, columns=200).stdout
    assert f"─ {veth} ── c1  " in text
    assert f"eth0  {', '.join(texts)}" in text
    assert re.search(r"0\.0\.0\.0:8080/tcp → [\d.]+:80  NAT\n", text)
    assert re.search(r"0\.0\.0\.0:5000/udp → [\d.]+:5000  NAT\n", text)
    assert "listens on 80/tcp" in text
    assert "outgoing packets masqueraded" in text

    model = json.loads(show(machine, "c1", "--json").stdout)
    host, inside = model["namespaces"]
    assert [link["name"] for link in host["links"] if link["kind"] == "veth"] == [veth]
    eth0 = next(link for link in inside["links"] if link["name"] == "eth0")
    assert (eth0["index"], eth0["mac"]) == (inner["ifindex"], inner["address"])
    assert [f"{one['address']}/{one['prefix']}" for one in eth0["addresses"] if one["scope"] == "global"] == texts
    assert {(port["protocol"], port["first"], port["target_port"], port["way"]) for port in model["ports"]} == {
        ("tcp", 8080, 80, "nat"),
        ("udp", 5000, 5000, "nat"),
    }
    assert {one["address"] for one in model["masquerades"]} == {text.partition("/")[0] for text in texts}


def test_a_saved_host_and_what_has_changed_since(machine: Lab, network: Network, tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    await_calm(machine, "host", "c1", "client")
    assert show(machine, "--snapshot", str(file)).returncode == 0
    same = show(machine, "--diff", str(file))
    assert (same.returncode, same.stdout, same.stderr) == (0, "", "")
    assert file.stat().st_mode & 0o777 == 0o600
    (veth,) = (str(link["ifname"]) for link in links(machine) if "master" in link)
    alone = ["ip", "link", "set", veth, "type", "bridge_slave", "isolated"]
    machine["host"].run([*alone, "on"], check=True)
    differs = show(machine, "c1", "--diff", str(file))
    assert (differs.returncode, differs.stdout) == (1, f"~ link {veth}: port isolated, was none\n")
    as_json = show(machine, "--diff", str(file), "--json").stdout.splitlines()
    assert veth in [json.loads(line)["name"] for line in as_json]
    machine["host"].run([*alone, "off"], check=True)
    assert show(machine, "--from", str(file)).stdout == show(machine, "--from", str(file), "--all").stdout


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["c2x"], 1, "no network, container, namespace or link here is called c2x; did you mean c"),
        (["--diff", "/nowhere/x"], 3, "cannot read /nowhere/x: No such file or directory"),
        (["--from", "/etc/passwd"], 2, "/etc/passwd: not JSON"),
        (["--snapshot", "/proc/x"], 1, "cannot write /proc/x: "),
        (["--snapshot", "x", "--json"], 2, "--snapshot and --json do not go together"),
        (["--watch", "--from", "x"], 2, "--watch and --from do not go together"),
    ],
)
def test_refusals(machine: Lab, options: list[str], status: int, sentence: str) -> None:
    done = show(machine, *options)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"cni-py show: {sentence}")
    assert done.stderr.count("\n") == 1


@contextlib.contextmanager
def watching(lab: Lab, output: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    program = lab["host"].popen([COMMAND, "show", "--watch", *options], stdout=output)
    try:
        yield program
    finally:
        program.kill()
        program.wait()


def answered(lab: Lab, output: int, expected: bytes) -> bytes:
    """Change a link of the host until the watch tells of it: the first change may be older than its first look."""
    found = b""
    for mtu in ("1400", "1500") * 20:
        lab["host"].run(["ip", "link", "set", "probe0", "mtu", mtu], check=True)
        while select.select([output], [], [], 1.0)[0]:
            found += os.read(output, 1 << 16)
            if re.search(expected, found, re.MULTILINE):
                return found
    raise AssertionError(found)


@pytest.fixture
def probe(machine: Lab) -> Iterator[None]:
    machine["host"].run(["ip", "link", "add", "probe0", "type", "veth", "peer", "probe1"], check=True)
    yield
    machine["host"].run(["ip", "link", "delete", "probe0"], check=True)


def sleeps(pid: int) -> int:
    """How often it went to sleep: a timer would wake it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)[0])


@pytest.mark.usefixtures("probe")
def test_a_watch_prints_changes_also_of_other_namespaces_and_sleeps_in_between(machine: Lab) -> None:
    ours, theirs = os.pipe()
    with watching(machine, theirs) as program:
        os.close(theirs)
        answered(machine, ours, rb"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S+ ~ link probe0: MTU 1[45]00, was 1[45]00$")
        for _ in range(20):
            before = sleeps(program.pid)
            assert select.select([ours], [], [], 1.0)[0] in ([], [ours])
            if sleeps(program.pid) == before:
                break
        else:
            raise AssertionError("something wakes it again and again")
        machine["client"].run(["ip", "link", "set", "eth0", "mtu", "1400"], check=True)
        found = b""
        while not re.search(rb" ~ link eth0 in net:\[\d+\]: MTU 1400, was 1500\n", found):
            assert select.select([ours], [], [], ENOUGH_S)[0] == [ours], found
            found += os.read(ours, 1 << 16)
        machine["client"].run(["ip", "link", "set", "eth0", "mtu", "1500"], check=True)
        os.close(ours)
        assert program.wait(ENOUGH_S) in (0, 1)  # nobody reads it any more; it takes no event to notice that


@pytest.mark.usefixtures("probe")
def test_a_watch_redraws_on_a_terminal_until_ctrl_c(machine: Lab) -> None:
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (12, 60))
    with watching(machine, theirs) as program:
        os.close(theirs)
        text = answered(machine, ours, b"~ link probe0").decode()
        screens = text.split("\x1b[H\x1b[J")[1:]
        assert len(screens) >= 2
        told = next(one for one in screens if "~ link probe0" in one)  # the last one may have been read in part
        screen = re.sub(r"\x1b\[[\d;]*m", "", told).splitlines()
        assert len(screen) <= 12
        assert max(map(len, screen)) <= 60
        assert screen[0] == "vm  0 containers in 0 networks, 0 published ports"
        os.kill(program.pid, signal.SIGINT)
        assert program.wait(ENOUGH_S) == 130
    os.close(ours)
