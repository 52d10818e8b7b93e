"""Two bridges under one policy of the firewall plugin: a1 and a2 on one, b1 on the other.

a1 has port 8080 of the host published to its port 80.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from conversation import HOST, WEB
from lab import ANSWER_S, Lab
from node import SLOWNESS
from runtime import Outcome, Plugins, mapping

BACKENDS = ("nftables", "iptables")
POLICIES = ("open", "same-bridge", "isolated")
FAMILIES = (4, 6)
SUBNETS = {"a": ("192.0.2.0/25", "2001:db8:a::/64"), "b": ("192.0.2.128/25", "2001:db8:b::/64")}
BRIDGES = {"a": "br-a", "b": "br-b"}
PLUGINS = ("bridge", "portmap", "firewall")


@dataclass
class Site:
    """The two networks under one policy."""

    lab: Lab
    plugins: Plugins
    policy: str
    backend: str
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    quiet_s: float = 0.6 * SLOWNESS  # after which nobody answers

    def conf(self, plugin: str, container_id: str) -> dict[str, object]:
        network = container_id[0]
        conf: dict[str, object] = {"cniVersion": "1.0.0", "name": f"net-{network}", "type": plugin}
        if plugin == "bridge":
            ranges = [[{"subnet": subnet}] for subnet in SUBNETS[network]]
            ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
            conf |= {"bridge": BRIDGES[network], "isGateway": True, "ipMasq": True, "ipam": ipam}
        elif plugin == "portmap" and container_id == "a1":
            conf |= {"runtimeConfig": {"portMappings": [mapping(WEB, 80)]}}
        elif plugin == "firewall":
            conf |= {"backend": self.backend, "ingressPolicy": self.policy}
        return conf

    def run(self, verb: str, plugin: str, container_id: str) -> Outcome:
        conf = self.conf(plugin, container_id)
        if container_id in self.results:
            conf["prevResult"] = self.results[container_id]
        outcome = self.plugins.run(self.lab, verb, plugin, conf, container_id)
        assert outcome.status == 0, f"{verb} {plugin} {container_id}: {outcome.stdout}{outcome.stderr}"
        return outcome

    def attach(self, container_id: str) -> None:
        for plugin in PLUGINS:
            self.results[container_id] = self.run("ADD", plugin, container_id).json

    def detach(self, container_id: str) -> None:
        for plugin in reversed(PLUGINS):
            self.run("DEL", plugin, container_id)
        del self.results[container_id]

    def address(self, container_id: str, family: int) -> str:
        texts = [str(ip["address"]).partition("/")[0] for ip in self.results[container_id]["ips"]]
        return next(text for text in texts if (":" in text) == (family == 6))

    def is_reached(self, source: str, address: str, port: int = 80, *, wanted: bool = True) -> bool:
        """`wanted`: what the test expects. An answer that is may take a busy machine long."""
        patience_s = ANSWER_S if wanted else self.quiet_s
        try:
            return self.lab.fetch(source, address, port, timeout_s=patience_s).name in ("a1", "a2", "b1", "client")
        except OSError:
            return False

    def route_from_client(self) -> None:
        """Let the machine on the LAN know the way to the containers."""
        for subnets in SUBNETS.values():
            for subnet, gateway in zip(subnets, HOST.values(), strict=True):
                self.lab["client"].run(["ip", "route", "add", subnet, "via", gateway], check=True)

    def policies(self) -> str:
        """The elements, and iptables' rules, that keep bridges apart."""
        listed = self.lab["host"].run(["nft", "list", "ruleset"]).stdout
        elements = [
            line for line in listed.splitlines() if "elements" in line and ("firewall br-a" in line or "veth" in line)
        ]
        stages = [line for line in self.rules().splitlines() if "STAGE" in line]
        return "\n".join(elements + stages)

    def rules(self) -> str:
        """Everything that anybody filters by."""
        commands = (["iptables-save"], ["ip6tables-save"], ["nft", "-s", "list", "ruleset"])
        listed = "".join(self.lab["host"].run(command).stdout for command in commands)
        listed = re.sub(r"\[\d+:\d+\]", "[0:0]", listed)  # what a chain has counted
        return "".join(line for line in listed.splitlines(keepends=True) if not line.startswith("#"))  # the time of day
