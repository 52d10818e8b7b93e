"""One container with a veth that no plugin made, and the result that names it: what a chained plugin is given."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab import Lab
    from runtime import Outcome, Plugins

Conf = dict[str, Any]
MAC = "02:00:00:00:00:03"


class VethAttachment:
    """Runs one chained plugin for a container of its own, whose eth0 leads to the host."""

    numbers = itertools.count(1)

    def __init__(self, lab: Lab, plugins: Plugins, type_: str) -> None:
        self.lab = lab
        self.plugins = plugins
        self.type = type_
        self.number = next(self.numbers)
        self.id = f"{type_[0]}{self.number}"
        self.network = f"{type_}{self.number}"
        self.netns = f"/run/netns/{self.id}"
        self.host_veth = f"v{self.number}e0"
        self.host_veths = [self.host_veth]
        lab.add_container(self.id)
        self.add_veth("eth0", MAC)

    def add_veth(self, ifname: str, mac: str) -> None:
        """One more interface, its end on the host named alike."""
        name = f"v{self.number}e{ifname[-1]}"
        self.host(f"ip link add {name} type veth peer name {ifname} address {mac} netns {self.id}")
        self.host(f"ip link set {name} up")
        self.inside(f"ip link set {ifname} up")
        if name not in self.host_veths:
            self.host_veths.append(name)

    def close(self) -> None:
        links = " ".join(self.host_veths)
        self.lab["host"].run(["sh", "-c", f"for link in {links}; do ip link delete $link; done"])
        if self.id in self.lab.nodes:
            self.lab.remove(self.id)

    def host(self, command: str) -> str:
        """What a command on the host prints; it must succeed."""
        return self._do("host", command)

    def inside(self, command: str) -> str:
        """The same in the container."""
        return self._do(self.id, command)

    def _do(self, node: str, command: str) -> str:
        done: subprocess.CompletedProcess[str] = self.lab[node].run(command.split(), check=True)
        return str(done.stdout)

    def result(self, version: str = "1.0.0", ifname: str = "eth0") -> Conf:
        """What the plugin before said."""
        family = {"version": "4"} if version < "1.0.0" else {}
        dns: Conf = {"dns": {}} if version < "1.0.0" else {}
        return {
            "cniVersion": version,
            "interfaces": [
                {"name": f"v{self.number}e{ifname[-1]}", "mac": "02:00:00:00:00:02"},
                {"name": ifname, "mac": MAC, "sandbox": self.netns},
            ],
            "ips": [{**family, "address": "192.0.2.2/24", "interface": 1}],
            **dns,
        }

    def conf(self, version: str = "1.0.0", **keys: object) -> Conf:
        prev_result = (
            {"prevResult": self.result(version)}
            if version >= "0.3.0"
            else {"prevResult": OLD | {"cniVersion": version}}
        )
        return {"cniVersion": version, "name": self.network, "type": self.type, **prev_result, **keys}

    def run(
        self,
        verb: str,
        conf: Mapping[str, object],
        netns: str | None = None,
        ifname: str = "eth0",
        plugins: Plugins | None = None,
        **env: str | None,
    ) -> Outcome:
        return (plugins or self.plugins).run(self.lab, verb, self.type, conf, self.id, netns, ifname, **env)

    def well(self, verb: str, conf: Mapping[str, object], ifname: str = "eth0", **env: str | None) -> Outcome:
        """Run it; it must succeed."""
        outcome = self.run(verb, conf, None, ifname, None, **env)
        assert outcome.status == 0, f"{verb}: {outcome.stdout}{outcome.stderr}"
        return outcome

    def state(self) -> dict[str, object]:
        """The host and the container."""
        return {name: self.lab.snapshot(name) for name in ("host", self.id) if name in self.lab.nodes}

    def link(self, ifname: str = "eth0") -> Conf:
        """ip -details link of the container's interface."""
        shown: list[Conf] = json.loads(self.inside(f"ip -json -details link show dev {ifname}"))
        return shown[0]

    def files(self, top: str) -> dict[str, str]:
        """Path below a folder of the host -> content."""
        found: dict[str, str] = self.lab["host"].python(files_below, top)
        return found

    def records(self) -> list[str]:
        """The paths of the records of this attachment's network."""
        found = self.files("/run/cni-py/attachments")
        return sorted(path for path, text in found.items() if f'"network":"{self.network}"' in text.replace(" ", ""))


OLD: Conf = {"ip4": {"ip": "192.0.2.2/24"}, "dns": {}}


def files_below(top: str) -> dict[str, str]:
    return {str(path): path.read_text() for path in Path(top).rglob("*") if path.is_file()}
