"""One network, its plugins run as those of a list, one by one, and as one plugin of the type chain."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import in_chain

from tests.faults.trial import host_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab import Lab
    from runtime import Outcome, Plugins

    from tests.plugins.bridge_network import Conf

LIST, CHAIN = "list", "chain"
WAYS = (LIST, CHAIN)
OTHER = {LIST: CHAIN, CHAIN: LIST}


class TwoWays:
    """A container of its own, `id`, and what libcni does for it, cache included."""

    numbers = itertools.count(1)

    def __init__(self, lab: Lab, plugins: Plugins, version: str = "1.1.0") -> None:
        self.number = next(self.numbers)
        self.lab = lab
        self.plugins = plugins
        self.version = version
        self.id = f"t{self.number}"
        self.name = f"two{self.number}"
        self.result: Conf | None = None
        self.members: list[Conf] = [self.bridge(), self.portmap(), {"type": "firewall"}, self.tuning()]
        lab.add_container(self.id)

    def bridge(self, **keys: object) -> Conf:
        third = self.number
        addresses = [{"address": f"10.77.{third}.2/24", "gateway": f"10.77.{third}.1"}]
        if self.version >= "0.3.0":
            addresses.append({"address": f"fd00:77:{third}::2/64", "gateway": f"fd00:77:{third}::1"})
        ipam = {"type": "static", "addresses": addresses, "routes": [{"dst": "0.0.0.0/0"}]}
        return {"type": "bridge", "bridge": f"tw{third}", "isGateway": True, "ipMasq": True, "ipam": ipam, **keys}

    def portmap(self, **keys: object) -> Conf:
        ports = [{"hostPort": 9000 + self.number, "containerPort": 80, "protocol": "tcp"}]
        return {"type": "portmap", "runtimeConfig": {"portMappings": ports}, **keys}

    def tuning(self) -> Conf:
        return {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1400}

    def confs(self, way: str, **keys: object) -> list[Conf]:
        """What is handed to the executables, in the order of ADD."""
        head = {"cniVersion": self.version, "name": self.name, **keys}
        known = {"prevResult": self.result} if self.result is not None else {}
        whole = [{**head, **member, **known} for member in self.members]
        return whole if way == LIST else [in_chain(*whole)]

    @staticmethod
    def chained(confs: Sequence[Conf]) -> Conf:
        """A part of a list as a chain."""
        return in_chain(*confs)

    def run(self, verb: str, conf: Conf, **env: str | None) -> Outcome:
        path = (env.get("CNI_PATH") or str(self.plugins.directory)).split(":")
        found = next(folder for folder in path if (Path(folder) / str(conf["type"])).exists())
        plugins = replace(self.plugins, directory=Path(found))
        given: dict[str, str | None] = {"CNI_PATH": ":".join(path), **env}
        return plugins.run(
            self.lab, verb, str(conf["type"]), conf, self.id, given.pop("CNI_NETNS", None), "eth0", **given
        )

    def every(self, verb: str, way: str, confs: Sequence[Conf] | None = None, **env: str | None) -> list[Outcome]:
        """One after the other, until one fails."""
        outcomes = []
        for conf in confs or self.confs(way)[:: -1 if verb == "DEL" else 1]:
            outcomes.append(self.run(verb, conf, **env))
            if outcomes[-1].status:
                break
        return outcomes

    def add(self, way: str, **env: str | None) -> Outcome:
        """ADD; the result is kept if it succeeds."""
        self.result = None
        before: Conf = {}
        for conf in self.confs(way):
            outcome = self.run("ADD", {**conf, **before}, **env)
            if outcome.status:
                return outcome
            before = {"prevResult": outcome.json}
        self.result = before["prevResult"]
        return outcome

    def well(self, verb: str, way: str, **env: str | None) -> None:
        """ADD, DEL or CHECK; it must succeed."""
        outcome = self.add(way, **env) if verb == "ADD" else self.every(verb, way, None, **env)[-1]
        assert outcome.status == 0, f"{verb} {way}: {outcome.stdout}{outcome.stderr}"

    def gc(self, way: str, *valid: str) -> None:
        """GC that keeps eth0 of these containers."""
        listed = [{"containerID": one, "ifname": "eth0"} for one in valid]
        extra = {"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}
        for outcome in [self.run("GC", {**conf, **extra}) for conf in self.confs(way)]:
            assert outcome.status == 0, outcome

    def state(self, *, records: bool = True) -> dict[str, object]:
        """The host and the container; without `records` also without the names of their files."""
        host = host_of(self.lab.snapshot("host"))
        if not records:
            trees = host["files"]
            assert isinstance(trees, dict)
            for top, entries in trees.items():
                trees[top] = {path: entry for path, entry in entries.items() if "/attachments/" not in path}
        return {"host": host, "container": self.lab.snapshot(self.id)}

    def records(self) -> list[str]:
        """The names of the files of this attachment's records."""
        done = self.lab["host"].run(["sh", "-c", f"grep -l '\"{self.name}\"' -r /run/cni-py/attachments || :"])
        return sorted(line.rpartition("/")[2] for line in done.stdout.splitlines())

    def warm(self) -> None:
        """Make what attachments share and keep."""
        self.well("ADD", LIST)
        self.well("DEL", LIST)
        self.result = None

    def close(self) -> None:
        ports = f"for port in $(ip -br link show master tw{self.number} | cut -d @ -f 1); do ip link delete $port; done"
        self.lab["host"].run(["sh", "-c", f"{ports}; ip link delete tw{self.number}"])
        if self.id in self.lab.nodes:
            self.lab.remove(self.id)

    def script(self, folder: Any, name: str, body: str) -> str:
        """A plugin of somebody else in a folder: a shell script that keeps its stdin and its verb. Returns CNI_PATH."""
        folder.mkdir(exist_ok=True)
        text = f"#!/bin/sh\ncat >{folder}/$CNI_COMMAND.json\nenv | grep ^CNI_ | sort >>{folder}/environment\n"
        text += f"echo $CNI_COMMAND >>{folder}/calls\n{body}\n"
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        return f"{self.plugins.directory}:{folder}"


def read(path: Any) -> Any:
    return json.loads(path.read_text())
