"""DEL and GC where nothing can be written, or where somebody put something else in place of our files."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from runtime import ALL, Outcome, Plugins, mapping

from tests.conftest import OURS

Conf = dict[str, Any]
IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.252.0.0/24"}]]}
COMMON: Conf = {"cniVersion": "1.1.0", "name": "full"}
BRIDGE: Conf = {**COMMON, "type": "bridge", "bridge": "br-full", "isGateway": True, "ipMasq": True, "ipam": IPAM}
PORTS = {"runtimeConfig": {"portMappings": [mapping(28081, 80)]}}
CHAINS: dict[str, list[Conf]] = {
    "nftables": [BRIDGE, {**COMMON, "type": "portmap", **PORTS}, {**COMMON, "type": "firewall"}],
    "iptables": [
        {**BRIDGE, "ipMasqBackend": "iptables"},
        {**COMMON, "type": "portmap", "backend": "iptables", **PORTS},
        {**COMMON, "type": "firewall", "backend": "iptables"},
    ],
    "ptp": [
        {**COMMON, "type": "ptp", "ipMasq": True, "ipam": IPAM},
        {**COMMON, "type": "tuning", "mac": "c2:11:22:33:44:55", "sysctl": {"net.core.somaxconn": "500"}},
    ],
    "macvlan": [{**COMMON, "type": "macvlan", "master": "lan0", "ipam": IPAM}, {**COMMON, "type": "loopback"}],
}
FOLDER = "/run/cni-py"
FILL = (
    "i=0; while touch {0}/fill$i; do i=$((i+1)); done 2>/dev/null; dd if=/dev/zero of={0}/fill0 bs=4k 2>/dev/null; true"
)
STATES = {  # of the file system of our folder
    "full": FILL.format(FOLDER),
    "read-only": f"mount -o remount,ro {FOLDER}",
    "read-only, locks lost": f"rm -r {FOLDER}/lock; mount -o remount,ro {FOLDER}",
    "full, locks lost": f"rm -r {FOLDER}/lock; " + FILL.format(FOLDER),
    "gone": f"umount {FOLDER}; rm -rf {FOLDER}; touch {FOLDER}",
}


@pytest.fixture
def ours(our_bin_dir: Path) -> Plugins:
    return Plugins(OURS, our_bin_dir, ALL)


class Host:
    """A host whose /run/cni-py and /var/lib/cni are small file systems of their own."""

    def __init__(self, lab: Lab, plugins: Plugins) -> None:
        self.lab = lab
        self.plugins = plugins
        for folder in (FOLDER, "/var/lib/cni"):
            self.do(f"mkdir -p {folder}; mount -t tmpfs -o nr_inodes=150,size=2m tmpfs {folder}")

    def do(self, command: str) -> str:
        done = self.lab["host"].run(["sh", "-c", command], check=True)
        return str(done.stdout)

    def call(self, verb: str, conf: Conf, container_id: str = "c1") -> Outcome:
        return self.plugins.run(self.lab, verb, conf["type"], conf, container_id)

    def add(self, chain: list[Conf]) -> Conf:
        earlier: Conf = {}
        for conf in chain:
            outcome = self.call("ADD", {**conf, **earlier})
            assert outcome.status == 0, outcome
            earlier = {"prevResult": outcome.json}
        return earlier

    def delete(self, chain: list[Conf], earlier: Conf) -> list[str]:
        """What went wrong, by plugin."""
        outcomes = [(conf["type"], self.call("DEL", {**conf, **earlier})) for conf in chain[::-1]]
        assert not any("Traceback" in outcome.stderr for _, outcome in outcomes)
        return [f"{plugin}: {outcome.stdout}" for plugin, outcome in outcomes if outcome.status]

    def left(self) -> str:
        """What there still is of c1 in the kernel and on disk."""
        found = self.do("nft list ruleset; iptables-save -t nat; ls /var/lib/cni/networks/full; true").splitlines()
        mine = [line for line in found if "c1" in line or "28081" in line or line == "10.252.0.2"]
        return "\n".join(mine) + self.lab["c1"].run(["ip", "-o", "link", "show", "eth0"]).stdout


@pytest.fixture
def host(lab: Lab, ours: Plugins) -> Host:
    return Host(lab, ours)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("chain", CHAINS)
def test_a_del_needs_nothing_new(host: Host, chain: str, state: str) -> None:
    earlier = host.add(CHAINS[chain])
    assert host.left()
    host.do(STATES[state])
    for _ in range(2):
        assert not host.delete(CHAINS[chain], earlier)
    if state != "gone" or chain != "nftables":  # without a record published ports are found by another test
        assert not host.left()


def test_a_reservation_that_cannot_be_removed_is_the_only_error(host: Host) -> None:
    earlier = host.add(CHAINS["nftables"])
    host.do("mount -o remount,ro /var/lib/cni")
    (error,) = host.delete(CHAINS["nftables"], earlier)
    assert "bridge" in error
    assert "/var/lib/cni/networks/full" in error
    assert "Read-only" in error
    assert host.left().strip() == "10.252.0.2"
    host.do("mount -o remount,rw /var/lib/cni")
    assert not host.delete(CHAINS["nftables"], earlier)
    assert not host.left()


def test_what_holds_nothing_is_released_on_a_read_only_disk(host: Host) -> None:
    conf = {**COMMON, "type": "host-local", "ipam": IPAM}
    host.do("mount -o remount,ro /var/lib/cni")
    assert host.call("DEL", conf).status == 0
    host.do("mount -o remount,rw /var/lib/cni")
    assert host.call("ADD", conf).status == 0
    host.do("mount -o remount,ro /var/lib/cni")
    assert host.call("DEL", conf, "c2").status == 0


IN_PLACE = {
    "a FIFO": "mkfifo {0}",
    "a folder": "mkdir {0}",
    "a full folder": "mkdir -p {0}/x",
    "a link to a device": "ln -s /dev/zero {0}",
    "a dangling link": "ln -s nowhere {0}",
    "a huge file": "truncate -s 100G {0}",
    "no JSON": "echo garbage >{0}",
    "bytes": "head -c 2000 /dev/urandom >{0}",
    "nothing": ": >{0}",
    "a deep list": "head -c 200000 /dev/zero | tr '\\0' '[' >{0}",
    "another schema": 'echo \'{{"schema":"x","ops":[{{"op":5}}]}}\' >{0}',
    "a half-written one": "mkfifo {0}.tmp; mv {0}.saved {0}",
}


@pytest.mark.parametrize("what", IN_PLACE)
def test_a_record_that_cannot_be_read_does_not_stop_a_del(host: Host, what: str) -> None:
    earlier = host.add([BRIDGE])
    path = host.do(f"echo {FOLDER}/attachments/*/bridge.json").strip()
    host.do(f"mv {path} {path}.saved; " + IN_PLACE[what].format(path) + f"; rm -f {path}.saved")
    assert not host.delete([BRIDGE], earlier)
    assert not host.left()
    host.do(f"rm -rf {path}")
    assert not host.delete([BRIDGE], host.add([BRIDGE]))


def test_a_reservation_is_enough_to_go_by(host: Host) -> None:
    """Neither record nor prevResult nor namespace: the address that is masqueraded is known to host-local alone."""
    host.add([BRIDGE])
    host.do(f"rm -r {FOLDER}/attachments")
    host.lab["c1"].run(["ip", "link", "del", "eth0"], check=True)
    outcome = host.plugins.run(host.lab, "DEL", "bridge", BRIDGE, "c1", "")
    assert outcome.status == 0, outcome
    assert not host.left()


@pytest.mark.parametrize("what", ["a FIFO", "a folder", "a link to a device", "bytes"])
@pytest.mark.parametrize("path", ["/var/lib/cni/networks/full/{}", "/run/cni-py/lock/nftables"])
def test_other_files_of_ours_are_never_waited_for(host: Host, what: str, path: str) -> None:
    earlier = host.add(CHAINS["nftables"])
    names = ["10.252.0.200", "last_reserved_ip.0", "lock", "sub"] if "{}" in path else [""]
    for name in names:
        target = path.format(name)
        host.do(f"rm -rf {target}; " + IN_PLACE[what].format(target))
    assert not host.delete(CHAINS["nftables"], earlier)
    assert not host.left()


def test_gc_removes_what_killed_calls_and_damage_have_left(host: Host) -> None:
    host.add([BRIDGE])
    host.call("ADD", BRIDGE, "c2")
    folder = f"{FOLDER}/attachments/0123456789abcdef"
    host.do(
        f"mkdir -p {folder} {folder[:-1]}0; : >{folder}/bridge.adding.tmp; echo no >{folder}/bridge.json;"
        f"echo no >{folder[:-1]}0/portmap.json; : >{FOLDER}/lock/attachment-0123456789abcdef-bridge;"
        f": >{FOLDER}/lock/attachment-0123456789abcdef-portmap"
    )
    kept = [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth0"}]
    outcome = host.call("GC", {**BRIDGE, "cni.dev/valid-attachments": kept})
    assert outcome.status == 0, outcome
    assert f"{folder}/bridge.json" in outcome.stderr
    left = host.do(f"cd {FOLDER}; ls -d attachments/*/* lock/attachment*").split()
    assert sorted(name.rpartition("/")[2] for name in left) == [
        "attachment-0123456789abcdef-portmap",
        "bridge.json",
        "bridge.json",
        "portmap.json",
    ]


def test_gc_leaves_alone_what_a_call_holds_or_another_network_has(host: Host) -> None:
    host.add([BRIDGE])
    path = host.do(f"echo {FOLDER}/attachments/*/bridge.json").strip()
    other = {**BRIDGE, "name": "other", "cni.dev/valid-attachments": []}
    host.do(f"echo damaged >{path}")
    assert host.call("GC", other).status == 0  # its veth says that it is of the network "full"
    assert host.do(f"cat {path}") == "damaged\n"
    lock = f"{FOLDER}/lock/attachment-{path.split('/')[-2]}-bridge"
    mine = {**BRIDGE, "cni.dev/valid-attachments": []}
    pipe = subprocess.PIPE
    with host.lab["host"].popen(["flock", lock, "sh", "-c", "echo held; read x"], stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        assert host.call("GC", mine).status == 0
        assert host.do(f"cat {path}; ls {lock}") == f"damaged\n{lock}\n"
        holder.stdin.close()
        holder.wait(10)
    assert host.call("GC", mine).status == 0
    assert not host.do(f"ls {path} {lock} 2>/dev/null; true")
