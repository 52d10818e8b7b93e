"""A bridge network with names, addresses and containers of its own, one for each test on a lab that they share."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from snapshot import difference

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet
    from lab import Lab
    from runtime import Outcome, Plugins

Conf = dict[str, Any]
PREFIXLEN = {4: 24, 6: 64}
NOTHING: Mapping[str, Any] = {}
FAMILIES = {"ipv4": (4,), "ipv6": (6,), "both": (4, 6)}
# What host-local remembers: the address it gave out last, and of which state of its directory its index is.
KEPT_FILES = ("/var/lib/cni/networks/*/last_reserved_ip.*", "/run/cni-py/host-local/*/state")


def ours_alone(*values: object) -> ParameterSet:
    """A row of a table of parameters that is not for the Go plugins."""
    return pytest.param(*values, marks=pytest.mark.ours_alone)


def valid(*container_ids: str) -> Conf:
    """The keys of a GC that keeps eth0 of these containers."""
    listed = [{"containerID": container_id, "ifname": "eth0"} for container_id in container_ids]
    return {"cniVersion": "1.1.0", "cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}


class BridgeNetwork:
    """Runs a plugin, bridge, for containers `a` and `b`; its number makes what is shared on the host its own."""

    numbers = itertools.count(1)
    plugin = "bridge"
    families: tuple[int, ...] = (4, 6)  # of full()
    beyond: Mapping[str, Any] = MappingProxyType({"ipMasq": True, "macspoofchk": True})  # what makes more than links

    def __init__(self, lab: Lab, plugins: Plugins) -> None:
        number = next(self.numbers)
        self.lab = lab
        self.plugins = plugins
        self.number = number
        self.name = f"net{number}"
        self.bridge = f"br{number}"
        self.subnets = {4: f"10.{1 + number // 200}.{number % 200}.0/24", 6: f"fd00:1:{number:x}::/64"}
        self.a = f"a{number}"
        lab.add_container(self.a)

    @cached_property
    def b(self) -> str:
        """A second container, made when a test first speaks of it."""
        name = f"b{self.number}"
        self.lab.add_container(name)
        return name

    def close(self) -> None:
        # A namespace's end leaves its links to the kernel for a while: the next test would see the host's ends of them.
        ports = f"for port in $(ip -br link show master {self.bridge} | cut -d @ -f 1); do ip link delete $port; done"
        if self.plugin != "bridge":
            ports = f"for name in {' '.join(self.containers)}; do ip -n $name link delete eth0; done"
        forget = f"{ports}; ip link delete {self.bridge}; rm -rf /var/lib/cni/networks/{self.name}"
        self.lab["host"].run(["sh", "-c", forget])
        for container_id in self.containers:
            self.lab.remove(container_id)

    @property
    def containers(self) -> list[str]:
        """Those that exist now."""
        return [name for name in (self.a, f"b{self.number}") if name in self.lab.nodes]

    def conf(
        self,
        version: str = "1.0.0",
        families: tuple[int, ...] = (4,),
        ipam: Mapping[str, Any] = NOTHING,
        **keys: object,
    ) -> Conf:
        """A gateway for the families' subnets, with default routes; `keys` go on top, those of `ipam` into ipam."""
        bridge = {"bridge": self.bridge, "isGateway": True} if self.plugin == "bridge" else {}
        ranges = [[{"subnet": self.subnets[family]}] for family in families]
        routes = [{"dst": {4: "0.0.0.0/0", 6: "::/0"}[family]} for family in families]
        return {
            "cniVersion": version,
            "name": self.name,
            "type": self.plugin,
            **bridge,
            "ipam": {"type": "host-local", "ranges": ranges, "routes": routes, **ipam},
            **keys,
        }

    def full(self, version: str = "1.0.0", **keys: Any) -> Conf:
        """All that an attachment of ours can leave behind."""
        return self.conf(version, self.families, **self.beyond, **keys)

    def gateway(self, family: int) -> str:
        return self.address(family, 1)

    def address(self, family: int, host: int) -> str:
        """The address with that number in the family's subnet."""
        return self.subnets[family].partition("0/" if family == 4 else "/")[0] + str(host)

    def run(
        self,
        verb: str,
        conf: Mapping[str, object],
        container_id: str = "",
        netns: str | None = None,
        ifname: str = "eth0",
        **env: str | None,
    ) -> Outcome:
        return self.plugins.run(self.lab, verb, self.plugin, conf, container_id or self.a, netns, ifname, **env)

    def well(self, verb: str, conf: Mapping[str, object], container_id: str = "", **env: str | None) -> Outcome:
        """Run it; it must succeed."""
        outcome = self.run(verb, conf, container_id, None, "eth0", **env)
        assert outcome.status == 0, f"{verb}: {outcome.stdout}{outcome.stderr}"
        return outcome

    def check(self, conf: Conf, result: object) -> Outcome:
        """CHECK of container a with the result of its ADD."""
        return self.run("CHECK", {**conf, "prevResult": result})

    def damaged(self, conf: Conf, node: str, command: str) -> Outcome:
        """CHECK of container a after ADD and a command with {words} that does damage: it fails, and changes nothing."""
        result = self.well("ADD", conf).json
        assert self.check(conf, result).status == 0
        words = {
            "a4": self.address(4, 2),
            "a6": self.address(6, 2),
            "gateway": self.gateway(4),
            "subnet": self.subnets[4],
        }
        names = {"bridge": self.bridge, "name": self.name, "number": self.number, "veth": self.host_end(result)}
        self.do("host" if node == "host" else self.a, command.format(**words, **names))
        before = self.state()
        outcome = self.check(conf, result)
        assert outcome.code in (3, 999), outcome
        assert not difference(before, self.state())
        self.well("DEL", conf)
        if "ip_forward=0" in command:
            self.do("host", "sysctl -q -w net.ipv4.ip_forward=1")
        return outcome

    def host_end(self, result: Mapping[str, Any]) -> str:
        """The host's end of the pair, "" of a plugin that makes none."""
        on_host = [interface["name"] for interface in result["interfaces"] if "sandbox" not in interface]
        return str(on_host[-1]) if on_host else ""

    def warm(self, conf: Conf) -> None:
        """What attachments share exists afterwards, and nothing else: the container has come and gone."""
        self.well("ADD", conf)
        self.well("DEL", conf)

    def state(self) -> dict[str, object]:
        """The host and the containers, without what changes by design."""
        host = self.lab.snapshot("host")
        trees = host["files"]
        assert isinstance(trees, dict)
        for top, entries in trees.items():
            kept = {path for path in entries if any(fnmatch.fnmatch(path, pattern) for pattern in KEPT_FILES)}
            trees[top] = {path: entry for path, entry in entries.items() if path not in kept}
        containers = {name: self.lab.snapshot(name) for name in self.containers}
        return {"host": host, **containers}

    def do(self, node: str, command: str) -> None:
        """One command, its words separated by blanks, in a node."""
        self.lab[node].run(command.split(), check=True)

    def links(self, node: str) -> dict[str, Any]:
        """ip -details link of a node, by name."""
        shown = self.lab[node].run(["ip", "-json", "-details", "link", "show"], check=True).stdout
        return {link["ifname"]: link for link in json.loads(shown)}

    def held(self, node: str, ifname: str) -> list[str]:
        """The addresses of an interface, link-local ones left out."""
        shown = self.lab[node].run(["ip", "-json", "address", "show", "dev", ifname], check=True).stdout
        entries = [entry for entry in json.loads(shown)[0]["addr_info"] if entry["scope"] == "global"]
        return [f"{entry['local']}/{entry['prefixlen']}" for entry in entries]

    def default_gateway(self, family: int) -> str:
        """Container a's; "" without a default route."""
        shown = self.lab[self.a].run(["ip", f"-{family}", "-json", "route", "show", "default"], check=True).stdout
        return "".join(str(route.get("gateway", "direct")) for route in json.loads(shown))

    def wait_for_end_of(self, link: str) -> None:
        """The kernel removes the links of a namespace some time after its last user."""
        deadline = time.monotonic() + 30
        while link in self.links("host"):
            assert time.monotonic() < deadline, f"{link} is still there"
            time.sleep(0.02)

    def reservations(self) -> dict[str, str]:
        """host-local's: address -> attachment."""
        found: dict[str, str] = self.lab["host"].python(reservations, self.name)
        return found

    def attachment(self, container_id: str) -> str:
        """The name under which the host keeps what belongs to eth0 of a container."""
        return hashlib.sha256(f"{self.name}\0{container_id}\0eth0".encode()).hexdigest()[:16]

    def records(self) -> list[str]:
        """The paths of the network's attachment records."""
        found: list[str] = self.lab["host"].python(records, self.name)
        return found


def reservations(network: str) -> dict[str, str]:
    folder = Path("/var/lib/cni/networks") / network
    paths = [path for path in folder.glob("*") if path.name[0].isdigit() or ":" in path.name]
    return {path.name: path.read_bytes().decode().replace("\r\n", "/") for path in paths}


def records(network: str) -> list[str]:
    paths = Path("/run/cni-py/attachments").glob("*/*")
    return sorted(str(path) for path in paths if f'"network":"{network}"' in path.read_text().replace(" ", ""))


class ForeignIpam:
    """An IPAM plugin of somebody else: a shell script that notes its calls in a file and does `body` at each."""

    def __init__(self, directory: Path, name: str = "other-ipam") -> None:
        self.name = name
        self.path = directory / name
        self.notes = directory / "calls"
        directory.mkdir(exist_ok=True)

    def does(self, body: str) -> ForeignIpam:
        note = f'echo "$CNI_COMMAND $CNI_CONTAINERID/$CNI_IFNAME" >>{self.notes}'
        self.path.write_text(f"#!/bin/sh\n{note}\n{body}\n", encoding="utf-8")
        self.path.chmod(0o755)
        return self

    def adds(self, body: str) -> ForeignIpam:
        """`body` at ADD, nothing at the other verbs."""
        return self.does(f'[ "$CNI_COMMAND" = ADD ] || exit 0\n{body}')

    def answers(self, result: Mapping[str, object]) -> ForeignIpam:
        return self.adds(f"echo '{json.dumps(result)}'")

    @property
    def calls(self) -> list[str]:
        return self.notes.read_text(encoding="utf-8").splitlines() if self.notes.exists() else []
