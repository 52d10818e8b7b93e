"""The sides that are compared: the same network, as each suite of plugins and each way to run it is given it.

direct    ours, a process for each plugin of the list
chain     ours, a network of the one plugin `chain` that holds the list
warm      ours, a process for each plugin, which leaves the work to `cni-py serve` on the same host
go        the reference plugins, a process for each plugin
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

from hosts import Call, Host, Service, Spent

FAMILIES = {  # what the network has: (subnet, default route) each
    "IPv4": (("198.18.0.0/15", "0.0.0.0/0"),),
    "dual stack": (("198.18.0.0/15", "0.0.0.0/0"), ("2001:db8:2::/64", "::/0")),
}
# The fastest that works. An ADD of bridge with nftables takes longer, and in Debian's build of 1.9.1 its DEL is an error (it
# removes the masquerade of iptables, too, and does not know the text with which iptables 1.8 says that there is none). The
# firewall has iptables and firewalld alone.
GO_BACKENDS = {"bridge": "iptables", "portmap": "nftables"}
BACKEND_KEYS = {"bridge": "ipMasqBackend"}  # elsewhere: backend
VERSION = "1.0.0"
FIRST_PORT = 8080

Config = dict[str, object]
Times = dict[str, list[Spent]]
Walk = Generator[Call, bytes, object]  # calls, one after the other; takes their answers, returns the last result


def plugins(family: str, backends: Mapping[str, str]) -> list[Config]:
    """The list as it stands in nerdctl's networks, but for the addresses."""
    subnets = FAMILIES[family]
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}] for subnet, _ in subnets],
        "routes": [{"dst": route} for _, route in subnets],
    }
    found: list[Config] = [
        {"type": "bridge", "bridge": "bench0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall", "ingressPolicy": "same-bridge"},
        {"type": "tuning"},
    ]
    for config in found:
        name = str(config["type"])
        if name in backends:
            config[BACKEND_KEYS.get(name, "backend")] = backends[name]
    return found


def mappings(first: int, count: int) -> list[dict[str, object]]:
    """As many ports, never two in a row, which would be a range."""
    return [{"hostPort": first + 2 * place, "containerPort": 80 + place, "protocol": "tcp"} for place in range(count)]


@dataclass(frozen=True)
class Container:
    """Whom a call is for, and its ports."""

    name: str
    first_port: int = FIRST_PORT
    ports: int = 1


@dataclass
class Side:
    """One suite of plugins, run in one way, with a host of its own."""

    name: str
    folder: str
    family: str
    backends: Mapping[str, str] = field(default_factory=dict)
    one_plugin: bool = False  # the network is of the type chain
    service: Service | None = None
    host: Host = field(default_factory=Host)
    times: Times = field(default_factory=dict)

    def configs(self) -> list[Config]:
        """One for each process of an ADD, in its order."""
        listed = plugins(self.family, self.backends)
        if self.one_plugin:
            return [{"type": "chain", "plugins": listed, "capabilities": {"portMappings": True}}]
        return listed

    def steps(self, verb: str) -> list[str]:
        """The names of the processes' calls, in the order of an ADD."""
        return [f"{config['type']} {verb}" for config in self.configs()]

    def walk(self, verb: str, container: Container, result: object = None) -> Walk:
        """ADD or DEL of the list for a container, as libcni calls it."""
        configs = self.configs()
        for config in configs if verb == "ADD" else reversed(configs):
            asked = {"cniVersion": VERSION, "name": "bench", **config}
            if "capabilities" in asked:
                asked["runtimeConfig"] = {"portMappings": mappings(container.first_port, container.ports)}
                if not self.one_plugin:
                    del asked["capabilities"]
            if result is not None:
                asked["prevResult"] = result
            answer = yield self.request(verb, str(config["type"]), container.name, json.dumps(asked).encode())
            result = json.loads(answer) if verb == "ADD" else result
        return result

    def request(self, verb: str, plugin: str, container: str, config: bytes) -> Call:
        """One call as a runtime makes it."""
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": self.folder,
        }
        return Call(f"{self.folder}/{plugin}", environ, config, f"{plugin} {verb}")

    def timed(self, call: Call) -> bytes:
        """Run one call and note what it took."""
        spent, answer = self.host.call(call)
        self.note(call.name, spent)
        return answer

    def note(self, step: str, spent: Spent) -> None:
        """With what the service did for it."""
        if self.service is not None:
            spent = Spent(spent.wall_ms, spent.cpu_ms + self.service.cpu_ms())
        self.times.setdefault(step, []).append(spent)

    def run(self, verb: str, container: Container, result: object = None) -> object:
        """The whole list; "chain" is the sum of its processes."""
        walk = self.walk(verb, container, result)
        answer = None
        try:
            while True:
                answer = self.timed(next(walk) if answer is None else walk.send(answer))
        except StopIteration as end:
            whole = total([self.times[step][-1] for step in self.steps(verb)])
            if not self.one_plugin:
                late = self.service.late_ms() if self.service else 0.0
                self.times.setdefault(f"chain {verb}", []).append(Spent(whole.wall_ms, whole.cpu_ms + late))
            return end.value

    def version(self) -> None:
        """VERSION of bridge, which runtimes ask for before anything else."""
        self.timed(self.request("VERSION", "bridge", "", b"{}"))

    def round(self, container: Container) -> object:
        """ADD and DEL for a new container; the result."""
        self.host.containers("add", [container.name])
        result = self.run("ADD", container)
        self.run("DEL", container, result)
        self.host.containers("delete", [container.name])
        return result


def total(spent: Sequence[Spent]) -> Spent:
    """Of processes one after the other."""
    return Spent(sum(one.wall_ms for one in spent), sum(one.cpu_ms for one in spent))


def comparable(result: object) -> object:
    """A result without what must differ between two networks: names and MACs."""
    assert isinstance(result, dict)
    shape = [bool(interface.get("sandbox")) for interface in result["interfaces"]]
    return [shape, result["ips"], result.get("routes"), result.get("dns", {})]
