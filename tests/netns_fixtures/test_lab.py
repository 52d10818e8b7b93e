"""The lab itself: what it promises to the tests that stand on it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import snapshot
from lab import Lab
from node import LabError, refuse_the_machine
from topology import Topology, TopologyError

FIXTURES = Path(__file__).parents[2] / "netns-fixtures"
ENOUGH_S = 30.0


@contextlib.contextmanager
def held(*descriptors: int | str) -> Iterator[set[int]]:
    """The inode numbers of network namespaces, kept open: of one that ends another may get the number, as with pids."""
    fds = [os.open(one, os.O_RDONLY) if isinstance(one, str) else os.dup(one) for one in descriptors]
    try:
        yield {os.fstat(fd).st_ino for fd in fds}
    finally:
        for fd in fds:
            os.close(fd)


def processes_in(namespaces: set[int]) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if os.stat(process / "ns/net").st_ino in namespaces:
                    found.append(process.name)
            except OSError:
                continue
    return found


def gone(namespaces: set[int]) -> bool:
    deadline = time.monotonic() + ENOUGH_S
    while processes_in(namespaces):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_client_reaches_the_host_in_both_families_and_both_protocols(lab: Lab) -> None:
    lab.serve("host", 80)
    lab.serve("host", 53, "udp")
    for address, own in (("198.51.100.1", "198.51.100.7"), ("2001:db8:1::1", "2001:db8:1::7")):
        for port, protocol in ((80, "tcp"), (53, "udp")):
            answer = lab.fetch("client", address, port, protocol)
            assert (answer.name, answer.peer, answer.local, answer.source) == ("host", own, address, own)


def test_closed_port_is_refused(lab: Lab) -> None:
    with pytest.raises(ConnectionRefusedError):  # of a dropped packet it would be a TimeoutError
        lab.fetch("client", "198.51.100.1", 81)


def test_containers_are_reachable_by_path_from_the_host_alone(lab: Lab) -> None:
    host, container = lab["host"], lab["c1"]
    wanted = str(os.fstat(container.net).st_ino)
    for path in (container.netns, container.proc_netns):
        assert host.run(["stat", "-L", "-c", "%i", path], check=True).stdout.strip() == wanted
    assert not Path(container.netns).exists()
    assert lab["client"].run(["ls", "/run/netns"], check=True).stdout == ""


def test_host_has_its_own_directories_and_sysfs(lab: Lab) -> None:
    host = lab["host"]
    host.run(["mkdir", "-p", "/var/lib/cni/networks/x", "/etc/cni/net.d", "/opt/cni/bin", "/run/x"], check=True)
    assert not any(Path(path).exists() for path in ("/var/lib/cni/networks/x", "/run/x"))
    assert host.run(["ls", "/sys/class/net"], check=True).stdout.split() == ["lan0", "lo"]
    assert host.run(["ls", "/etc/passwd", "/var/lib/dpkg"]).returncode == 0


def test_functions_run_in_the_node_and_exceptions_come_back(lab: Lab) -> None:
    netns = os.readlink
    assert lab["c1"].python(netns, "/proc/self/ns/net") != os.readlink("/proc/self/ns/net")
    with pytest.raises(FileNotFoundError):
        lab["c1"].python(os.stat, "/nowhere")


def test_function_that_hangs_is_given_up(lab: Lab) -> None:
    with pytest.raises(LabError, match="longer than"):
        lab["c1"].python(time.sleep, 60, timeout_s=0.2)


def test_program_that_hangs_is_killed(lab: Lab) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        lab["c1"].run(["sleep", "60"], timeout_s=0.2)


def test_machine_itself_is_refused() -> None:
    here = os.stat("/proc/self/ns/net")
    with pytest.raises(LabError, match="machine's own"):
        refuse_the_machine((here.st_dev, here.st_ino))


def test_containers_come_and_go(lab: Lab) -> None:
    before = lab.snapshot("host")
    added = lab.add_container("c9")
    assert lab["host"].run(["ip", "-n", "c9", "link", "show", "lo"]).returncode == 0
    with held(added.net) as namespace:
        lab.remove("c9")
        assert gone(namespace)
    assert snapshot.difference(before, lab.snapshot("host")) == ""


def test_capture_holds_what_passed_and_in_which_direction(lab: Lab) -> None:
    from scapy.layers.inet import IP, TCP

    lab.serve("host", 80)
    with lab.capture("client", "eth0", lambda packet: TCP in packet) as wire:
        lab.fetch("client", "198.51.100.1", 80)
    syn = wire.frames[0]
    assert (syn.outgoing, syn.packet[IP].src, syn.packet[IP].dst, syn.packet[TCP].dport, str(syn.packet[TCP].flags)) == (
        True, "198.51.100.7", "198.51.100.1", 80, "S",
    )  # fmt: skip
    assert not wire.frames[1].outgoing


@pytest.mark.parametrize(
    "damage",
    [
        "ip link add x7 type bridge",
        "ip link set lan0 alias x",
        "ip addr add 192.0.2.1/32 dev lo",
        "ip route add 203.0.113.0/24 via 198.51.100.7",
        "ip neigh add 198.51.100.9 lladdr 02:00:00:00:00:09 dev lan0",
        "nft add table inet x",
        "iptables -t nat -N X",
        "sysctl -w net.ipv4.conf.lan0.route_localnet=1",
        "sysctl -w net.ipv4.ip_forward=1",
        "touch /var/lib/cni/x",
        "mkdir /run/cni-py",
        "chmod 700 /etc/cni",
    ],
)
def test_snapshot_notices(lab: Lab, damage: str) -> None:
    before = lab.snapshot("host")
    assert snapshot.difference(before, lab.snapshot("host")) == ""
    lab["host"].run(damage.split(), check=True)
    assert snapshot.difference(before, lab.snapshot("host")) != ""


def test_snapshot_notices_what_a_bridge_port_is_set_to(lab: Lab) -> None:
    lab["host"].run(["sh", "-c", "ip link add br0 type bridge; ip link set lan0 master br0"], check=True)
    before = lab.snapshot("host")
    for option in ("hairpin", "isolated"):
        lab["host"].run(["ip", "link", "set", "lan0", "type", "bridge_slave", option, "on"], check=True)
        after = lab.snapshot("host")
        assert f'"{option}": 1' in snapshot.difference(before, after)
        before = after


def test_routed_topology_reaches_across_the_router() -> None:
    with Lab.from_yaml("routed.yaml") as lab:
        lab.serve("host", 80)
        assert lab.fetch("far", "198.51.100.1", 80).peer == "203.0.113.5"
        assert lab.fetch("far", "2001:db8:1::1", 80).peer == "2001:db8:2::5"
        assert lab.fetch("host", "198.51.100.9", 53, "udp").name == "neighbour"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nodes: {h: {role: king}}", "role 'king'"),
        ("nodes: {h: {role: host, interfaces: {e: {segment: x}}}}", "unknown segment 'x'"),
        (
            "segments: [x]\nnodes: {h: {role: host, interfaces: {e: {segment: x, addresses: [10.0.0.1/8]}}}}",
            "documentation range",
        ),
        ("nodes: {h: {role: host}, g: {role: host}}", "more than one host"),
        ("nodes: [", "not a topology"),
        ("{}", "not a topology"),
        ("nodes: {h: {role: host, routes: 5}}", "routes is not a list"),
    ],
)
def test_topology_that_cannot_be_built_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(TopologyError, match=complaint):
        Topology.parse(text)


def test_nothing_is_left_when_the_lab_ends() -> None:
    with contextlib.ExitStack() as stack:
        with Lab.from_yaml("lan.yaml") as lab:
            lab.serve("c1", 80)
            namespaces = stack.enter_context(held(*(node.net for node in lab.nodes.values())))
            assert processes_in(namespaces)
        assert not processes_in(namespaces)


def test_second_close_is_harmless() -> None:
    with Lab.from_yaml("lan.yaml") as lab:
        lab.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_process_that_opened_the_lab(number: signal.Signals) -> None:
    program = f"""
import sys, time
sys.path.insert(0, {str(FIXTURES)!r})
from lab import Lab
with Lab.from_yaml("lan.yaml") as lab:
    lab.serve("c1", 80)
    lab["host"].run(["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 &"], check=True)
    print(*(node.net for node in lab.nodes.values()), flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as opener:
        assert opener.stdout is not None
        words = opener.stdout.readline().decode().split()
        with held(*(f"/proc/{opener.pid}/fd/{word}" for word in words)) as namespaces:
            assert len(namespaces) == 4
            assert processes_in(namespaces)
            opener.send_signal(number)
            opener.wait(ENOUGH_S)
            assert gone(namespaces)
