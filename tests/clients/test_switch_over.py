"""Our directory takes the place of the Go plugins' with containers running, and the other way round.

The whole chain is ADDed by one suite and DELeted by the other: bridge with host-local, portmap, firewall, bandwidth, tuning.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conversation import HOST
from lab import Lab
from runtime import ALL, Outcome, Plugins, mapping

from cni_py.protocol.cache import Entry
from cni_py.protocol.gojson import Object, decode, encode
from tests.conftest import OURS

CHAIN = ("bridge", "portmap", "firewall", "bandwidth", "tuning")
CONTAINER = "c1"
WEB, DNS = 8080, 8053
NETWORK = "switched"
COMMAND = Path(sys.executable).with_name("cni-py")
CACHE = "/var/lib/cni/results"


@dataclass
class Node:
    """A host with both suites, and what a runtime remembers."""

    lab: Lab
    ours: Plugins
    go: Plugins
    backend: str = ""
    result: dict[str, Any] | None = None
    seen: list[str] = field(default_factory=list)  # what nothing must be left of

    def plugin(self, name: str) -> dict[str, Any]:
        """The plugin's part of the list."""
        conf: dict[str, Any] = {"type": name}
        if name == "bridge":
            ranges = [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8:42::/64"}]]
            ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
            conf |= {"bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}
        elif name == "portmap":
            conf |= {"capabilities": {"portMappings": True}}
        elif name == "firewall":
            conf |= {"ingressPolicy": "same-bridge"}
        elif name == "bandwidth":
            conf |= {
                "ingressRate": 80_000_000,
                "ingressBurst": 8_000_000,
                "egressRate": 80_000_000,
                "egressBurst": 8_000_000,
            }
        elif name == "tuning":
            conf |= {"mtu": 1400, "promisc": True, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}
        if self.backend and name in ("bridge", "portmap", "firewall"):
            conf["ipMasqBackend" if name == "bridge" else "backend"] = self.backend
        return conf

    def ports(self) -> list[dict[str, object]]:
        return [mapping(WEB, 80), mapping(DNS, 53, "udp")]

    def conf(self, name: str, *, version: str = "1.0.0") -> dict[str, Any]:
        conf = {"cniVersion": version, "name": NETWORK, **self.plugin(name)}
        if name == "portmap":
            conf["runtimeConfig"] = {"portMappings": self.ports()}
        return conf

    def well(self, plugins: Plugins, verb: str, name: str, conf: dict[str, Any], netns: str | None = None) -> Outcome:
        if self.result is not None and "prevResult" not in conf:
            conf = {**conf, "prevResult": self.result}
        outcome = plugins.run(self.lab, verb, name, conf, CONTAINER, netns)
        assert outcome.status == 0, f"{plugins.whose} {verb} {name}: {outcome.stdout}{outcome.stderr}"
        return outcome

    def add(self, plugins: Plugins) -> None:
        self.result = None
        for name in CHAIN:
            self.result = self.well(plugins, "ADD", name, self.conf(name)).json
        assert self.result is not None
        inside = [str(ip["address"]).partition("/")[0] for ip in self.result["ips"]]
        links = [str(link["name"]) for link in self.result["interfaces"] if link["name"] not in ("cni0", "eth0")]
        self.seen = [*inside, *links, CONTAINER + "_eth0"]

    def delete_by_go_what_ours_added(self) -> None:
        """Its bridge says that it failed, since there is no chain of iptables to delete, but has done the rest."""
        for name in reversed(CHAIN[1:]):
            self.well(self.go, "DEL", name, self.conf(name))
        outcome = self.go.run(self.lab, "DEL", "bridge", {**self.conf("bridge"), "prevResult": self.result}, CONTAINER)
        assert "POSTROUTING" in outcome.json["msg"]
        self.result = None

    def delete(self, plugins: Plugins, *, knows_result: bool = True, netns: str | None = None) -> None:
        if not knows_result:
            self.result = None
        for name in reversed(CHAIN):
            self.well(plugins, "DEL", name, self.conf(name), netns)
        self.result = None

    def end_namespace(self) -> None:
        """As when the container was killed."""
        self.lab.remove(CONTAINER)

    def left(self, *, of: str = "/run /var/lib/cni") -> str:
        """Lines of the kernel's and the disk's state that speak of the container."""
        script = (
            "iptables-save; ip6tables-save; nft list ruleset; ip -o link; ip -o addr; ip route; ip -6 route; tc qdisc;"
            f"find {of} -type f -not -name 'last_reserved_ip*' -not -path '*/lock/*' -not -path '*/results/*' "
            "-exec grep -H . {} +"
        )
        listed = self.lab["host"].run(["sh", "-c", script]).stdout
        words = [*self.seen, f'"{CONTAINER}"', f'\\"{CONTAINER}\\"', f"/{CONTAINER}/"]
        spoken_of = re.compile("|".join(rf"(?<![\w.:]){re.escape(word)}(?![\w.:])" for word in words))
        lines = [line for line in listed.splitlines() if spoken_of.search(line)]
        return "\n".join(line for line in lines if 'comment "firewall' not in line)

    def cache(self) -> None:
        """Remember the attachment as libcni does."""
        listed = {"cniVersion": "1.0.0", "name": NETWORK, "plugins": [self.plugin(name) for name in CHAIN]}
        entry = Entry(
            NETWORK,
            CONTAINER,
            "eth0",
            config=json.dumps(listed).encode(),
            netns=f"/run/netns/{CONTAINER}",
            capability_args=as_object({"portMappings": self.ports()}),
            result=as_object(self.result or {}),
        )
        self.lab["host"].run(["mkdir", "-p", CACHE], check=True)
        path = f"{CACHE}/{NETWORK}-{CONTAINER}-eth0"
        self.lab["host"].run(["tee", path], input=encode(entry.to_json(), None), check=True)

    def is_reached(self) -> bool:
        """Whether the published port leads to the container."""
        try:
            return self.lab.fetch("client", HOST[4], WEB, timeout_s=1.0).name == CONTAINER
        except OSError:
            return False


def as_object(value: dict[str, Any]) -> Object:
    found = decode(json.dumps(value).encode())
    assert isinstance(found, Object)
    return found


@pytest.fixture
def node(our_bin_dir: Path, theirs: Plugins) -> Iterator[Node]:
    with Lab.from_yaml("lan.yaml") as lab:
        yield Node(lab, Plugins(OURS, our_bin_dir, ALL), theirs)


def test_del_of_ours_removes_all_that_go_added(node: Node) -> None:
    node.add(node.go)
    assert node.left()
    node.delete(node.ours)
    assert node.left() == ""


def test_del_without_namespace_removes_all_that_go_added(node: Node) -> None:
    """Where the Go plugins leave masquerading, and the backup of tuning."""
    node.add(node.go)
    node.end_namespace()
    node.delete(node.ours, netns="")
    assert node.left() == ""


def test_del_twice_and_of_nothing_starts_no_iptables(node: Node) -> None:
    """What is not there is not paid for: here iptables does not work, and nobody notices."""
    program = node.lab["host"].run(["readlink", "-f", "/usr/sbin/iptables-save"], check=True).stdout.strip()
    node.lab["host"].run(["mount", "--bind", "/bin/false", program], check=True)
    assert node.lab["host"].run(["iptables-save"]).returncode == 1
    for _ in range(2):
        node.delete(node.ours, netns="")


def test_check_of_ours_accepts_what_go_built(node: Node) -> None:
    node.add(node.go)
    for name in CHAIN:
        node.well(node.ours, "CHECK", name, node.conf(name))
    lose = "nft flush chain ip cni_hostport hostports || iptables -t nat -F CNI-HOSTPORT-DNAT"
    node.lab["host"].run(["sh", "-c", lose], check=True)
    conf = {**node.conf("portmap"), "prevResult": node.result}
    assert node.ours.run(node.lab, "CHECK", "portmap", conf, CONTAINER).status == 1


def test_adopted_container_is_deleted_with_nothing_else_to_go_by(node: Node) -> None:
    node.add(node.go)
    node.cache()
    dry = node.lab["host"].run([str(COMMAND), "adopt", "--dry-run"], check=True).stdout
    assert "would adopt 1 attachment (" in dry
    assert node.lab["host"].run(["find", "/run/cni-py/attachments", "-type", "f"]).stdout == ""
    done = node.lab["host"].run([str(COMMAND), "adopt", "--json"], check=True).stdout
    parts = {part["plugin"]: part for part in json.loads(done)["attachments"]}
    # The newer Go plugins' own table, in which a DEL finds a container by its ID
    own_table = "portmap" if node.go.is_newer_go else ""
    assert all(
        parts[name]["adopted"] for name in ("bridge", "portmap", "firewall", "bandwidth") if name != own_table
    ), parts
    again = node.lab["host"].run([str(COMMAND), "adopt"], check=True).stdout
    assert "adopted 0 attachments (0 records)" in again
    for name in CHAIN:
        node.well(node.ours, "CHECK", name, node.conf(name))
    node.delete(node.ours, knows_result=False, netns="")
    assert node.left() == ""


def test_del_of_go_removes_all_that_ours_added_by_iptables(node: Node) -> None:
    node.backend = "iptables"
    node.add(node.ours)
    node.lab.serve(CONTAINER, 80)
    assert node.is_reached()
    if not node.go.is_newer_go:  # which finds with `backend: iptables` alone what iptables has
        node.backend = ""
    node.delete(node.go)
    assert node.left(of="/run/cni /var/lib/cni") == ""  # our records stay, until our GC or next ADD


def test_gc_of_ours_removes_what_the_del_of_go_left(node: Node) -> None:
    node.add(node.ours)
    node.delete_by_go_what_ours_added()
    for name in CHAIN:
        conf = {**node.conf(name, version="1.1.0"), "cni.dev/valid-attachments": []}
        outcome = node.ours.run(node.lab, "GC", name, conf)
        assert outcome.status == 0, outcome.stdout
    assert node.left() == ""


def test_next_add_takes_what_the_del_of_go_left(node: Node) -> None:
    node.add(node.ours)
    node.delete_by_go_what_ours_added()
    node.add(node.ours)
    node.lab.serve(CONTAINER, 80)
    assert node.is_reached()
    node.delete(node.ours)
    assert node.left() == ""
