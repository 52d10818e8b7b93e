"""Ports that an earlier attachment left published never lead to the next container that has its address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conversation import CLIENT, HOST
from lab import Lab
from runtime import Network, Outcome, Plugins, mapping

from tests.portfwd.publisher import Publisher

pytestmark = pytest.mark.ours_alone

BACKENDS = pytest.mark.parametrize("backend", ["nftables", "iptables"])
WEB, DNS, ONE_ADDRESS, FIRST, LAST = 8080, 8053, 8081, 7000, 7069
CLIENT_PORT = 40054
PORTS = [
    mapping(WEB, 80),
    mapping(DNS, 53, "udp"),
    mapping(ONE_ADDRESS, 80, host_ip=HOST[4]),
    mapping(ONE_ADDRESS, 80, host_ip=HOST[6]),
    *(mapping(port, port) for port in range(FIRST, LAST + 1)),
]


class Renamed(Network):
    """A network that can be given another name, with more keys of portmap's and another IPAM."""

    keys: dict[str, object]
    ipam: dict[str, object] | None
    ifname: str

    def bridge(self, ips: list[str] | None = None) -> dict[str, object]:
        conf = super().bridge(ips)
        return conf if self.ipam is None else {**conf, "ipam": self.ipam}

    def portmap(self, container_id: str) -> dict[str, object]:
        return {**super().portmap(container_id), **self.keys}

    def call(self, verb: str, plugin: str, container_id: str, *, known: bool = True, **fields: object) -> Outcome:
        conf = self.bridge() if plugin == "bridge" else self.portmap(container_id)
        previous = {"prevResult": self.results[container_id]} if known and container_id in self.results else {}
        return self._well(verb, plugin, {**conf, **previous, **fields}, container_id)

    def rename(self, name: str) -> None:
        self.name = name

    def address_in(self, container_id: str) -> dict[int, str]:
        return {family: self.address(container_id, family) for family in (4, 6)}


class RenamedNetwork(Renamed):
    def __init__(self, lab: Lab, plugins: Plugins, **keys: object) -> None:
        super().__init__(lab, plugins, "old")
        self.keys = keys
        self.ipam = None


def published(lab: Lab) -> set[str]:
    """Everything of c1's in packet filters and in our index."""
    found: set[str] = set()
    for element in ("nft list table inet cni_py", "iptables-save -t nat", "ip6tables-save -t nat"):
        text = lab["host"].run(["sh", "-c", element + " 2>/dev/null"]).stdout
        lines = [line.strip() for line in text.splitlines() if "DNAT --to" in line or "/c1/" in line]
        found |= {line for line in lines if "jump outside_" not in line}  # that is the bridge plugin's
    command = "grep -l '\"c1\"' /run/cni-py/published/*/* /run/cni-py/attachments/*/portmap* 2>/dev/null"
    return found | set(lab["host"].run(["sh", "-c", command]).stdout.split())


def list_records(lab: Lab) -> str:
    return lab["host"].run(["find", "/run/cni-py/attachments", "-name", "*.json"]).stdout


def strangers(lab: Lab, name: str) -> list[str]:
    """By which host ports a container that publishes nothing is reached."""
    lab.serve(name, 80)
    lab.serve(name, FIRST)
    lab.serve(name, 53, "udp")
    found = []
    for family in (4, 6):
        for port, protocol in ((WEB, "tcp"), (DNS, "udp"), (ONE_ADDRESS, "tcp"), (FIRST, "tcp")):
            try:
                lab.fetch("client", HOST[family], port, protocol, timeout_s=0.5)
                found.append(f"IPv{family} {port}/{protocol}")
            except (ConnectionError, TimeoutError):
                continue
    return found


@BACKENDS
@pytest.mark.parametrize("known", [True, False])
def test_del_under_another_name_of_the_network_withdraws(lab: Lab, plugins: Plugins, backend: str, known: bool) -> None:
    network = RenamedNetwork(lab, plugins, backend=backend)
    network.attach("c1", *PORTS)
    before = network.address_in("c1")
    network.rename("new")
    network.call("DEL", "portmap", "c1", known=known)
    assert not published(lab)
    network.call("DEL", "bridge", "c1", known=known)
    assert "eth0" not in lab["c1"].run(["ip", "-br", "link"], check=True).stdout
    assert not list_records(lab)
    network.attach("c2")
    assert network.address_in("c2") == before
    assert not strangers(lab, "c2")


@BACKENDS
@pytest.mark.parametrize("name", ["old", "new"])
def test_del_without_portmap_in_the_list_withdraws(lab: Lab, plugins: Plugins, backend: str, name: str) -> None:
    network = RenamedNetwork(lab, plugins, backend=backend)
    network.attach("c1", *PORTS)
    network.rename(name)
    network.call("DEL", "bridge", "c1")
    assert not published(lab)


@BACKENDS
def test_gc_without_portmap_in_the_list_withdraws(lab: Lab, plugins: Plugins, backend: str) -> None:
    network = RenamedNetwork(lab, plugins, backend=backend)
    for name, port in (("c1", WEB), ("c2", WEB + 10)):
        network.attach(name, mapping(port, 80))
        lab.serve(name, 80)
    valid = [{"containerID": "c2", "ifname": "eth0"}]
    conf = {**network.bridge(), "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid}
    assert plugins.run(lab, "GC", "bridge", conf, CNI_NETNS=None).status == 0
    assert not [line for line in published(lab) if f"--dport {WEB + 10}" not in line]
    assert lab.fetch("client", HOST[4], WEB + 10).name == "c2"


@BACKENDS
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("ipam", ["host-local", "static"])
def test_add_that_gets_the_address_withdraws(lab: Lab, plugins: Plugins, backend: str, listed: bool, ipam: str) -> None:
    """No DEL has come: the first container lives, but its interface is gone. With and without portmap in the list."""
    network = RenamedNetwork(lab, plugins, backend=backend)
    network.attach("c1", *PORTS)
    before = network.address_in("c1")
    lab["host"].run(["ip", "-n", "c1", "link", "del", "eth0"], check=True)
    network.rename("new")
    if ipam == "static":
        lengths = {4: 24, 6: 64}
        addresses = [{"address": f"{text}/{lengths[family]}"} for family, text in before.items()]
        network.ipam = {"type": "static", "addresses": addresses, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
    network.results["c2"] = network.call("ADD", "bridge", "c2").json
    assert network.address_in("c2") == before
    if listed:
        network.ports["c2"] = []
        network.call("ADD", "portmap", "c2")
    assert not strangers(lab, "c2")


@BACKENDS
def test_ports_of_who_still_has_the_address_stay(lab: Lab, plugins: Plugins, backend: str) -> None:
    network = RenamedNetwork(lab, plugins, backend=backend)
    network.attach("c1", mapping(WEB, 80))
    lab.serve("c1", 80)
    text = network.address("c1", 4)
    static = {"type": "static", "addresses": [{"address": f"{text}/24"}]}
    conf = {"cniVersion": "1.0.0", "name": "twin", "type": "bridge", "bridge": "twin0", "ipam": static}
    assert plugins.run(lab, "ADD", "bridge", conf, "c2").status == 0
    assert lab.fetch("client", HOST[4], WEB).name == "c1"


@BACKENDS
def test_another_interface_of_the_container_keeps_its_ports(lab: Lab, plugins: Plugins, backend: str) -> None:
    """Two networks of one container: a DEL in one is no DEL in the other, whatever the two are called."""
    network = RenamedNetwork(lab, plugins, backend=backend)
    network.attach("c1", mapping(WEB, 80))
    lab.serve("c1", 80)
    static = {"type": "static", "addresses": [{"address": "203.0.113.9/24"}]}
    chain: list[dict[str, Any]] = [
        {"cniVersion": "1.0.0", "name": "second", "type": "bridge", "bridge": "br2", "ipam": static},
        {**network.portmap("c1"), "name": "second", "runtimeConfig": {"portMappings": [mapping(8090, 80)]}},
    ]
    result: dict[str, Any] = {}
    for conf in chain:
        outcome = plugins.run(lab, "ADD", str(conf["type"]), {**conf, **result}, "c1", ifname="eth1")
        assert outcome.status == 0, outcome.stdout
        result = {"prevResult": outcome.json}
    for known in (result, {}):
        for conf in chain[::-1]:
            outcome = plugins.run(lab, "DEL", str(conf["type"]), {**conf, **known}, "c1", ifname="eth1")
            assert outcome.status == 0, outcome.stdout
    assert lab.fetch("client", HOST[4], WEB).name == "c1"
    assert lab.fetch("client", HOST[6], WEB).name == "c1"


def test_shared_and_restricted_ports_are_withdrawn_and_the_other_sharers_stay(lab: Lab, plugins: Plugins) -> None:
    ports = {f"{WEB}/tcp": {"share": True}, f"{DNS}/udp": {"allow": [f"{CLIENT[4]}/24", f"{CLIENT[6]}/64"]}}
    network = RenamedNetwork(lab, plugins, ports=ports)
    network.attach("c1", mapping(WEB, 80), mapping(DNS, 53, "udp"))
    network.attach("c2", mapping(WEB, 80))
    lab.serve("c2", 80)
    network.rename("new")
    network.call("DEL", "portmap", "c1")
    assert not published(lab)
    assert {lab.fetch("client", HOST[family], WEB).name for family in (4, 6) for _ in range(8)} == {"c2"}


def test_index_that_is_lost_is_made_again_from_the_kernel(lab: Lab, plugins: Plugins) -> None:
    network = RenamedNetwork(lab, plugins)
    network.attach("c1", *PORTS)
    lab["host"].run(["rm", "-r", "/run/cni-py"], check=True)
    network.rename("new")
    network.call("DEL", "portmap", "c1", known=False)
    assert not published(lab)


def forget_the_index_in_records() -> None:
    for path in Path("/run/cni-py/attachments").glob("*/portmap.json"):
        fields = json.loads(path.read_text())
        fields["ops"] = [op for op in fields["ops"] if op["op"] != "ListPublication"]
        path.write_text(json.dumps(fields))


def test_records_of_the_version_before_are_found(lab: Lab, plugins: Plugins) -> None:
    """They have no index, and no operation for it."""
    network = RenamedNetwork(lab, plugins)
    network.attach("c1", *PORTS)
    lab["host"].python(forget_the_index_in_records)
    lab["host"].run(["rm", "-r", "/run/cni-py/published"], check=True)
    network.rename("new")
    network.call("DEL", "bridge", "c1")
    assert not published(lab)


@pytest.fixture
def service(lab: Lab) -> Iterator[Publisher]:
    publisher = Publisher(lab["host"])
    yield publisher
    publisher.end()


@pytest.mark.parametrize("use", ["auto", "always"])
@pytest.mark.parametrize("way", ["DEL", "DEL without portmap", "ADD"])
def test_portfwd_serves_no_stranger(lab: Lab, plugins: Plugins, service: Publisher, use: str, way: str) -> None:
    network = RenamedNetwork(lab, plugins, userlandProxy=use)
    network.attach("c1", mapping(WEB, 80), mapping(DNS, 53, "udp"))
    assert service.ask("list")["mappings"]
    network.rename("new")
    if way == "ADD":
        lab["host"].run(["ip", "-n", "c1", "link", "del", "eth0"], check=True)
        network.call("ADD", "bridge", "c2")
    else:
        network.call("DEL", "portmap" if way == "DEL" else "bridge", "c1")
    assert not service.ask("list")["mappings"]


# What the Go plugins left


@pytest.mark.parametrize(
    "way",
    [
        "DEL",
        "DEL without portmap",
        "ADD",
        "ADD that publishes nothing",
        "ADD that publishes by iptables",
        "ADD that publishes by nftables",
    ],
)
def test_chains_that_go_made_under_another_name_are_withdrawn(
    lab: Lab, plugins: Plugins, theirs: Plugins, way: str
) -> None:
    go = RenamedNetwork(lab, theirs)
    go.attach("c1", mapping(WEB, 80), mapping(DNS, 53, "udp"))
    lab.serve("c1", 53, "udp")
    assert lab.fetch("client", HOST[4], DNS, "udp", source_port=CLIENT_PORT).name == "c1"
    network = RenamedNetwork(lab, plugins)
    network.rename("new")
    network.results |= go.results
    network.ports["c1"] = []
    if way == "DEL":
        network.call("DEL", "portmap", "c1")
        assert not published(lab)
    if way.startswith("DEL"):
        network.call("DEL", "bridge", "c1")
        assert not published(lab)
    lab["host"].run(["ip", "-n", "c1", "link", "del", "eth0"])
    if way.startswith("ADD that"):
        backend = way.rsplit(maxsplit=1)[-1]
        network.keys = {} if backend == "nothing" else {"backend": backend}
        lab["host"].run(["mkdir", "-p", "/run/cni-py/published"], check=True)  # an index that knows nothing of it
    network.attach("c2", *([mapping(8090, 80)] if "publishes by" in way else []))
    assert network.address_in("c2") == go.address_in("c1")
    assert not strangers(lab, "c2")
    with pytest.raises((ConnectionError, TimeoutError)):  # nor does the flow go on
        lab.fetch("client", HOST[4], DNS, "udp", source_port=CLIENT_PORT, timeout_s=0.5)
