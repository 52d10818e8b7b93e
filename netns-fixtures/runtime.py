"""Run plugins on a lab's host as a runtime does: one executable, or a chain of bridge and portmap."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab import Lab

ALL = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")  # versions of the specification
FORMS = ("0.2.0", "0.4.0", "1.0.0")  # one of each form that results have; bridge's tests go through all versions
SUBNETS = {4: "192.0.2.0/24", 6: "2001:db8:42::/64"}
GATEWAY = {4: "192.0.2.1", 6: "2001:db8:42::1"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit status and output of one execution of a plugin."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        answer = json.loads(self.stdout)
        assert isinstance(answer, dict)
        return answer

    @property
    def code(self) -> int:
        """The code of the error object; 0 when it succeeded."""
        return int(self.json["code"]) if self.status else 0


# Error codes for a wrong configuration or call: 999, which the Go plugins use for all, and those of cni_py/errors.py.
REFUSALS = (999, 2, 4, 5, 6, 7)


@dataclass(frozen=True, slots=True)
class Plugins:
    """A directory of plugins."""

    whose: str  # "ours" or "go"
    directory: Path
    versions: tuple[str, ...]  # of the specification that they support
    chained: bool = False  # each plugin is run as the only one in the list of the plugin `chain`
    keys: Mapping[str, Mapping[str, object]] = field(
        default_factory=dict
    )  # of configurations that lack them, by plugin

    @property
    def is_newer_go(self) -> bool:
        """Of the Go plugins those that know all of the specification: 1.9.1 is one, Debian 12's 1.1.1 is not."""
        return self.whose == "go" and ALL[-1] in self.versions

    def keeper(self, plugin: str) -> str:
        """The plugin in whose record ours notes what `plugin` does."""
        return "chain" if self.chained else plugin

    def run(
        self,
        lab: Lab,
        verb: str,
        plugin: str,
        conf: Mapping[str, object] | str,
        container_id: str = "c1",
        netns: str | None = None,
        ifname: str = "eth0",
        **env: str | None,
    ) -> Outcome:
        """Run an executable on the lab's host.

        By default `netns` is the path of the namespace `container_id`. Keyword arguments are more variables of the environment;
        None removes one.
        """
        variables: dict[str, str | None] = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container_id,
            "CNI_NETNS": f"/run/netns/{container_id}" if netns is None else netns,
            "CNI_IFNAME": ifname,
            "CNI_PATH": str(self.directory),
            **env,
        }
        inner = ""
        if not isinstance(conf, str):
            conf = {**self.keys.get(plugin, {}), **conf}
        if self.chained and not isinstance(conf, str) and plugin not in ("host-local", "static"):
            inner, plugin, conf = plugin, "chain", in_chain(conf)
        done = lab["host"].run(
            [str(self.directory / plugin)],
            env={name: value for name, value in variables.items() if value is not None},
            input=conf if isinstance(conf, str) else json.dumps(conf),
        )
        prefix = f'plugin type=\\"{inner}\\" failed ({verb.lower()}): '  # as it stands in JSON
        return Outcome(done.returncode, done.stdout.replace(prefix, "", 1) if inner else done.stdout, done.stderr)


def go_plugins(directory: Path, backend: str = "") -> Plugins:
    """A directory of the Go plugins, with the versions that its bridge says to know, and the backend of newer ones."""
    asked = subprocess.run(
        [directory / "bridge"],
        env={"CNI_COMMAND": "VERSION"},
        input=b'{"cniVersion": "1.0.0"}',
        capture_output=True,
        check=True,
        timeout=30,
    )
    known = json.loads(asked.stdout)["supportedVersions"]
    keys = (
        {"portmap": {"backend": backend}} if backend else {}
    )  # DEL of ipMasqBackend nftables fails beside iptables 1.8.9
    return Plugins("go", directory, tuple(version for version in ALL if version in known), keys=keys)


# Keys that a runtime gives to each plugin of a list, and so to a chain.
RUNTIMES = ("cniVersion", "name", "runtimeConfig", "prevResult", "cni.dev/valid-attachments", "cni.dev/attachments")


def in_chain(*confs: Mapping[str, object]) -> dict[str, object]:
    """The plugins of a list, each with what a runtime has given it, as one plugin."""
    sent: dict[str, object] = {}
    for conf in confs:
        runtime = conf.get("runtimeConfig")
        merged = {**(sent.get("runtimeConfig") or {}), **runtime} if isinstance(runtime, dict) else {}  # type: ignore[dict-item]
        sent |= {key: conf[key] for key in RUNTIMES if key in conf} | ({"runtimeConfig": merged} if merged else {})
    plugins = []
    for conf in confs:
        runtime = conf.get("runtimeConfig")
        declared = dict.fromkeys(runtime, True) if isinstance(runtime, dict) else {}
        own = {key: value for key, value in conf.items() if key not in RUNTIMES}
        plugins.append({**own, "capabilities": declared} if declared else own)
    names = sent.get("runtimeConfig")
    return {
        **sent,
        "type": "chain",
        "capabilities": dict.fromkeys(names, True) if isinstance(names, dict) else {},
        "plugins": plugins,
    }


@dataclass(slots=True)
class Network:
    """A dual-stack bridge network with published ports. It keeps the results, as a runtime's cache does.

    hairpinMode is on, as nerdctl sets it: the Go plugins need it if br_netfilter is loaded.
    """

    lab: Lab
    plugins: Plugins
    name: str = "lab"
    hairpin_mode: bool = True
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    ports: dict[str, list[dict[str, object]]] = field(default_factory=dict)

    def bridge(self, ips: list[str] | None = None) -> dict[str, object]:
        return {
            "cniVersion": "1.0.0",
            "name": self.name,
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": self.hairpin_mode,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": SUBNETS[4]}], [{"subnet": SUBNETS[6]}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
            **({"runtimeConfig": {"ips": ips}} if ips else {}),
        }

    def portmap(self, container_id: str) -> dict[str, object]:
        return {
            "cniVersion": "1.0.0",
            "name": self.name,
            "type": "portmap",
            "capabilities": {"portMappings": True},
            "runtimeConfig": {"portMappings": self.ports[container_id]},
        }

    def attach(self, container_id: str, *ports: dict[str, object], ips: list[str] | None = None) -> None:
        """ADD of the chain."""
        self.ports[container_id] = list(ports)
        bridged = self._well("ADD", "bridge", self.bridge(ips), container_id)
        conf = {**self.portmap(container_id), "prevResult": bridged.json}
        self.results[container_id] = self._well("ADD", "portmap", conf, container_id).json

    def detach(self, container_id: str) -> None:
        """DEL of the chain, last plugin first."""
        previous = {"prevResult": self.results.pop(container_id)}
        self._well("DEL", "portmap", {**self.portmap(container_id), **previous}, container_id)
        self._well("DEL", "bridge", {**self.bridge(), **previous}, container_id)

    def _well(self, verb: str, plugin: str, conf: dict[str, object], container_id: str) -> Outcome:
        outcome = self.plugins.run(self.lab, verb, plugin, conf, container_id)
        assert outcome.status == 0, f"{verb} {plugin}: {outcome.stdout}{outcome.stderr}"
        return outcome

    def address(self, container_id: str, family: int) -> str:
        texts = [str(ip["address"]).partition("/")[0] for ip in self.results[container_id]["ips"]]
        return next(text for text in texts if (":" in text) == (family == 6))

    def mac(self, container_id: str, ifname: str) -> str:
        """The MAC of an interface in the result: the bridge, or the container's own."""
        return next(str(link["mac"]) for link in self.results[container_id]["interfaces"] if link["name"] == ifname)


def mapping(host_port: int, container_port: int, protocol: str = "tcp", host_ip: str = "") -> dict[str, object]:
    """One port mapping, as runtimes write it."""
    found: dict[str, object] = {"hostPort": host_port, "containerPort": container_port, "protocol": protocol}
    return {**found, "hostIP": host_ip} if host_ip else found
