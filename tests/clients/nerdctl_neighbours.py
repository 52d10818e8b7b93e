"""Two more tools that know the reference's iptables rules by their text, replayed: Nomad's repair and k3s' kill script.

Everything here runs on the lab's host: call it through Node.python().
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.clients.nerdctl_replay import Container, Json, Run, iptables, remove, write_network

NOMAD = "nomad"
NOMAD_PLUGINS: list[Json] = [
    {"type": "loopback"},
    {
        "type": "bridge",
        "bridge": "nomad",
        "ipMasq": True,
        "isGateway": True,
        "forceAddress": True,
        "hairpinMode": False,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "172.26.64.0/20"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    },
    {"type": "firewall", "backend": "iptables", "iptablesAdminChainName": "NOMAD-ADMIN"},
    {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
]
JUMP = re.compile(
    r'-A POSTROUTING -s (\S+) -m comment --comment "name: \\"nomad\\" id: \\"([0-9A-Fa-f-]+)\\"" -j (CNI-[0-9A-Fa-f]+)'
)
KILL_ALL = """
rm -rf /var/lib/cni/*
iptables-save | grep -v KUBE- | grep -v CNI- | grep -iv flannel | iptables-restore
ip6tables-save | grep -v KUBE- | grep -v CNI- | grep -iv flannel | ip6tables-restore
"""


class NotFound(Exception):
    """Nomad gives up: no rule it could repair."""


@dataclass(frozen=True, slots=True)
class Allocation(Container):
    """What Nomad connects: its id is the CNI's."""

    @property
    def full_id(self) -> str:
        return self.id


def nomad_network(cni_path: Path) -> Json:
    return {**write_network(cni_path, NOMAD, NOMAD_PLUGINS, {}), "cniVersion": "0.4.0"}


def nomad_run(allocation: Allocation, cni_path: Path) -> Run:
    return Run(nomad_network(cni_path), allocation, "eth0", cni_path, netns=allocation.netns)


def nomad_setup(allocation: Allocation, cni_path: Path) -> list[Json]:
    return [nomad_run(allocation, cni_path).add()]


def nomad_teardown(allocation: Allocation, cni_path: Path) -> None:
    remove([nomad_run(allocation, cni_path)])


def nomad_repair(allocation: Allocation) -> None:
    """What follows a DEL that failed: the masquerade rule and its chain are taken out by hand. NotFound."""
    rules = iptables("-t", "nat", "-S", "POSTROUTING").stdout.splitlines()
    wanted = rf'--comment "name: \"nomad\" id: \"{allocation.id}\""'
    jump = JUMP.fullmatch(next((rule for rule in rules if wanted in rule), ""))
    if jump is None:
        raise NotFound(f"failed to find postrouting rule for alloc {allocation.id}")
    address, found, chain = jump.groups()
    comment = f'name: "nomad" id: "{found}"'
    rule = ("-s", address, "-m", "comment", "--comment", comment, "-j", chain)
    for arguments in (("-D", "POSTROUTING", *rule), ("-F", chain), ("-X", chain)):
        done = iptables("-t", "nat", *arguments)
        if done.returncode:
            raise NotFound(f"failed to cleanup iptables rules: {done.stderr}")


def k3s_kill_all() -> str:
    """What iptables has after the script, both families."""
    subprocess.run(["sh", "-c", KILL_ALL], check=True, timeout=20)
    saves = [
        subprocess.run([tool], check=False, capture_output=True, text=True, timeout=20)
        for tool in ("iptables-save", "ip6tables-save")
    ]
    return "".join(save.stdout for save in saves)
