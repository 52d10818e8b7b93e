"""What `ports` and `directAccess` of portmap's configuration do with packets: who is served, by whom, and past what."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from conversation import CLIENT, HOST
from lab import Lab
from runtime import GATEWAY, Network, Outcome, Plugins, mapping

from tests.portfwd.publisher import Publisher

pytestmark = pytest.mark.ours_alone

FAMILIES = pytest.mark.parametrize("family", [4, 6])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
PORT = 8080
ASKED = 60  # connections


class Keyed(Network):
    """A network whose portmap has more keys, for all containers or one."""

    keys: dict[str, object]

    def portmap(self, container_id: str) -> dict[str, object]:
        return {**super().portmap(container_id), **self.keys}

    def run(self, verb: str, container_id: str, *ports: dict[str, object]) -> Outcome:
        self.ports[container_id] = list(ports)
        conf = {**self.portmap(container_id), "prevResult": self.results[container_id]}
        return self.plugins.run(self.lab, verb, "portmap", conf, container_id)


class KeyedNetwork(Keyed):
    def __init__(self, lab: Lab, plugins: Plugins, **keys: object) -> None:
        super().__init__(lab, plugins)
        self.keys = keys


def options(**fields: object) -> dict[str, object]:
    return {f"{PORT}/{protocol}": fields for protocol in ("tcp", "udp")}


def refused(lab: Lab, node: str, address: str, port: int = PORT, protocol: str = "tcp") -> bool:
    try:
        lab.fetch(node, address, port, protocol, timeout_s=1.0)
    except (ConnectionError, TimeoutError):
        return True
    return False


@pytest.fixture
def service(lab: Lab) -> Iterator[Publisher]:
    publisher = Publisher(lab["host"])
    yield publisher
    publisher.end()


# allow


@PROTOCOLS
@pytest.mark.parametrize("host_ip", ["", HOST[4]])
def test_only_clients_of_the_allowed_networks_are_served(
    lab: Lab, plugins: Plugins, protocol: str, host_ip: str
) -> None:
    network = KeyedNetwork(lab, plugins, ports=options(allow=[f"{CLIENT[4]}/32", "203.0.113.0/24"]))
    lab.serve("c1", 80, protocol)
    network.attach("c1", mapping(PORT, 80, protocol, host_ip))
    assert lab.fetch("client", HOST[4], PORT, protocol).peer == CLIENT[4]
    assert refused(lab, "host", HOST[4], PORT, protocol)
    assert refused(lab, "host", "127.0.0.1", PORT, protocol)
    assert refused(lab, "client", HOST[6], PORT, protocol)  # nothing is said of IPv6: nobody
    network.detach("c1")


@FAMILIES
def test_each_family_has_its_own_networks(lab: Lab, plugins: Plugins, family: int) -> None:
    network = KeyedNetwork(lab, plugins, ports=options(allow=["198.51.100.0/24", "2001:db8:1::/64", "127.0.0.1"]))
    lab.serve("c1", 80)
    network.attach("c1", mapping(PORT, 80))
    assert lab.fetch("client", HOST[family], PORT).peer == CLIENT[family]
    assert lab.fetch("host", "127.0.0.1", PORT).peer == GATEWAY[4]
    assert lab.fetch("host", "127.0.0.9", PORT).peer == GATEWAY[4]  # the kernel takes 127.0.0.1 as its source
    assert refused(lab, "c1", GATEWAY[family], PORT)


def test_allow_holds_where_portfwd_serves(lab: Lab, plugins: Plugins, service: Publisher) -> None:
    network = KeyedNetwork(lab, plugins, ports=options(allow=["198.51.100.0/24", "::1"]))
    lab.serve("c1", 80)
    network.attach("c1", mapping(PORT, 80))
    assert lab.fetch("host", "::1", PORT).peer == GATEWAY[6]
    assert lab.fetch("client", HOST[4], PORT).peer == CLIENT[4]
    assert refused(lab, "client", HOST[6])
    assert refused(lab, "host", "127.0.0.1")


def test_allow_holds_with_portfwd_alone(lab: Lab, plugins: Plugins, service: Publisher) -> None:
    network = KeyedNetwork(lab, plugins, userlandProxy="always", ports=options(allow=["198.51.100.7"]))
    lab.serve("c1", 80)
    network.attach("c1", mapping(PORT, 80))
    assert lab.fetch("client", HOST[4], PORT).peer == GATEWAY[4]
    for node, address in (("host", "127.0.0.1"), ("host", HOST[4]), ("host", "::1"), ("client", HOST[6])):
        assert refused(lab, node, address), address


def test_pod_says_it_by_an_annotation_and_cannot_widen_what_the_network_says(lab: Lab, plugins: Plugins) -> None:
    text = json.dumps({f"{PORT}/tcp": {"allow": ["0.0.0.0/0"]}, "8081/tcp": {"allow": [CLIENT[4]]}})
    network = KeyedNetwork(lab, plugins, ports={f"{PORT}/tcp": {"allow": ["203.0.113.0/24"]}})
    network.attach("c1")
    lab.serve("c1", 80)
    conf: dict[str, Any] = network.portmap("c1")
    conf["capabilities"]["io.kubernetes.cri.pod-annotations"] = True
    conf["runtimeConfig"] = {
        "portMappings": [mapping(PORT, 80), mapping(8081, 80)],
        "io.kubernetes.cri.pod-annotations": {"cni-py/ports": text, "other": "x"},
    }
    outcome = plugins.run(lab, "ADD", "portmap", {**conf, "prevResult": network.results["c1"]})
    assert outcome.status == 0, outcome.stdout
    assert refused(lab, "client", HOST[4], PORT)
    assert lab.fetch("client", HOST[4], 8081).peer == CLIENT[4]
    assert refused(lab, "host", HOST[4], 8081)


# share


def sharing(lab: Lab, plugins: Plugins, count: int, protocol: str = "tcp", **fields: object) -> KeyedNetwork:
    """c1 ... with one port between them."""
    network = KeyedNetwork(lab, plugins, ports=options(share=True, **fields))
    for number in range(1, count + 1):
        name = f"c{number}"
        if number > 2:
            lab.add_container(name)
        lab.serve(name, 80, protocol)
        network.attach(name, mapping(PORT, 80, protocol))
    return network


def asked(lab: Lab, family: int = 4, protocol: str = "tcp", number: int = ASKED) -> Counter[str]:
    """Who answers so many connections."""
    return Counter(lab.fetch("client", HOST[family], PORT, protocol).name for _ in range(number))


@PROTOCOLS
@FAMILIES
def test_connections_are_spread_over_those_who_share_and_keep_their_source(
    lab: Lab, plugins: Plugins, protocol: str, family: int
) -> None:
    network = sharing(lab, plugins, 3, protocol)
    found = asked(lab, family, protocol)
    assert found.keys() == {"c1", "c2", "c3"}
    assert min(found.values()) >= 5  # 20 each in the mean; under 5 once in a million
    assert lab.fetch("client", HOST[family], PORT, protocol).peer == CLIENT[family]
    for name in ("c1", "c2", "c3"):
        assert network.run("CHECK", name, mapping(PORT, 80, protocol)).status == 0
    network.detach("c2")
    assert asked(lab, family, protocol).keys() == {"c1", "c3"}
    network.detach("c1")
    network.detach("c3")
    assert refused(lab, "client", HOST[family], PORT, protocol)
    assert elements(lab) == set()


def elements(lab: Lab) -> set[str]:
    """The maps of ours that have elements."""
    listed = json.loads(lab["host"].run(["nft", "-j", "list", "table", "inet", "cni_py"]).stdout)["nftables"]
    found = [entry.get("map") or entry.get("set") or {} for entry in listed]
    return {entry["name"] for entry in found if entry.get("elem")} - {"layout", "local_links"}


def hold(lab: Lab, name: str) -> Any:
    """An echo server in a node."""
    return lab[name].popen(
        [
            "python3",
            "-c",
            "import socket\n"
            "server = socket.create_server(('0.0.0.0', 81))\n"
            f"print('ready', flush=True)\n"
            "while True:\n"
            "    peer, _ = server.accept()\n"
            f"    peer.sendall(b'{name}')\n"
            "    if __import__('os').fork() == 0:\n"
            "        while data := peer.recv(100):\n"
            "            peer.sendall(data)\n"
            "        break\n",
        ],
        stdout=-1,
    )


ECHO = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as peer:
    print(peer.recv(100).decode(), flush=True)
    for line in sys.stdin:
        peer.sendall(line.encode())
        print(peer.recv(100).decode().strip(), flush=True)
"""


def test_established_connections_stay_when_others_come_and_go(lab: Lab, plugins: Plugins) -> None:
    network = KeyedNetwork(lab, plugins, ports=options(share=True))
    servers = [hold(lab, name) for name in ("c1", "c2")]
    assert [server.stdout.readline() for server in servers] == [b"ready\n"] * 2
    network.attach("c1", mapping(PORT, 81))
    peer = lab["client"].popen(["python3", "-c", ECHO, HOST[4], str(PORT)], stdin=-1, stdout=-1)
    assert peer.stdin is not None
    assert peer.stdout is not None
    assert peer.stdout.readline() == b"c1\n"
    network.attach("c2", mapping(PORT, 81))
    for text in (b"first\n", b"second\n"):
        peer.stdin.write(text)
        peer.stdin.flush()
        assert peer.stdout.readline() == text
        if text == b"first\n":
            network.detach("c2")
    peer.communicate()
    for server in servers:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"share": True}, {}),
        ({}, {"share": True}),
        ({"share": True}, {"share": True, "allow": ["198.51.100.0/24"]}),
        ({"share": True, "allow": ["198.51.100.0/24"]}, {"share": True}),
    ],
)
@pytest.mark.parametrize("host_ip", ["", HOST[4]])
def test_sharing_needs_the_same_words_of_both(
    lab: Lab, plugins: Plugins, first: dict[str, object], second: dict[str, object], host_ip: str
) -> None:
    network = KeyedNetwork(lab, plugins, ports=options(**first))
    network.attach("c1", mapping(PORT, 80, host_ip=host_ip))
    network.keys["ports"] = options()
    network.attach("c2")
    before = lab["host"].run(["nft", "list", "table", "inet", "cni_py"]).stdout
    network.keys["ports"] = options(**second)
    outcome = network.run("ADD", "c2", mapping(PORT, 80, host_ip=host_ip))
    assert outcome.code == 110
    assert "lab/c1/eth0" in outcome.stdout
    if not second.get("allow"):  # its chain stays, as those of conditions do
        assert lab["host"].run(["nft", "list", "table", "inet", "cni_py"]).stdout == before


@pytest.mark.parametrize(("first", "second"), [("", HOST[4]), (HOST[4], "")])
def test_shared_any_and_specific_address_conflict(lab: Lab, plugins: Plugins, first: str, second: str) -> None:
    network = KeyedNetwork(lab, plugins, ports=options(share=True))
    network.attach("c1", mapping(PORT, 80, host_ip=first))
    network.attach("c2")
    assert network.run("ADD", "c2", mapping(PORT, 80, host_ip=second)).code == 110


def test_shared_on_one_address_with_allow(lab: Lab, plugins: Plugins) -> None:
    network = KeyedNetwork(lab, plugins, ports=options(share=True, allow=["198.51.100.0/24"]))
    for name in ("c1", "c2"):
        lab.serve(name, 80)
        network.attach(name, mapping(PORT, 80, host_ip=HOST[4]))
    assert asked(lab).keys() == {"c1", "c2"}
    assert refused(lab, "c1", HOST[4])
    assert refused(lab, "host", "127.0.0.1")
    for name in ("c1", "c2"):
        network.detach(name)
    assert elements(lab) == set()


@pytest.mark.parametrize("host_ip", ["", HOST[4]])
def test_dead_sharer_is_taken_out_by_the_next_and_by_garbage_collection(
    lab: Lab, plugins: Plugins, host_ip: str
) -> None:
    network = KeyedNetwork(lab, plugins, ports=options(share=True))
    lab.add_container("c3")
    for name in ("c2", "c3"):
        lab.serve(name, 80)
    network.attach("c1", mapping(PORT, 80, host_ip=host_ip))
    network.attach("c2", mapping(PORT, 80, host_ip=host_ip))
    lab.remove("c1")
    network.attach("c3", mapping(PORT, 80, host_ip=host_ip))
    assert asked(lab).keys() == {"c2", "c3"}
    lab["host"].run(["sh", "-c", f"rm /run/cni-py/attachments/*/{plugins.keeper('portmap')}.json"], check=True)
    conf = {"cniVersion": "1.1.0", "name": "lab", "type": "portmap"}
    valid = [{"containerID": "c3", "ifname": "eth0"}]
    outcome = plugins.run(lab, "GC", "portmap", {**conf, "cni.dev/valid-attachments": valid}, CNI_NETNS=None)
    assert outcome.status == 0, outcome.stdout
    assert asked(lab, number=20).keys() == {"c3"}


def test_add_of_a_sharer_again_changes_nothing(lab: Lab, plugins: Plugins) -> None:
    network = sharing(lab, plugins, 2)
    before = lab["host"].run(["nft", "list", "table", "inet", "cni_py"]).stdout
    for name in ("c1", "c2"):
        assert network.run("ADD", name, mapping(PORT, 80)).status == 0
    listed = lab["host"].run(["nft", "list", "table", "inet", "cni_py"]).stdout
    assert sorted(listed.split()) == sorted(before.split())
    assert asked(lab).keys() == {"c1", "c2"}


def test_sharer_that_needs_another_chain_too(lab: Lab, plugins: Plugins) -> None:
    """As the chain of its conditions, or of its network's subnet; nft does not take the shared ports' text a second time."""
    network = sharing(lab, plugins, 1)
    lab.serve("c2", 80)
    network.keys["ports"] = {**options(share=True), "8081/tcp": {"allow": ["198.51.100.0/24"]}}
    network.attach("c2", mapping(PORT, 80), mapping(8081, 80))
    assert asked(lab).keys() == {"c1", "c2"}


def test_shared_ports_of_which_somebody_deleted_the_chain_are_told(lab: Lab, plugins: Plugins) -> None:
    network = sharing(lab, plugins, 1)
    host = lab["host"]
    damage = "flush map inet cni_py conditional_any4; delete chain inet cni_py shared4"
    host.run(["nft", *damage.split()], check=True)
    with pytest.raises(AssertionError, match=r"has lost shared4 of shared ports .`cni-py restore` puts it back"):
        network.attach("c2", mapping(PORT, 80))


def test_udp_flow_of_one_sharer_survives_the_coming_of_another(lab: Lab, plugins: Plugins) -> None:
    network = KeyedNetwork(lab, plugins, ports=options(share=True))
    for name in ("c1", "c2"):
        lab.serve(name, 80, "udp")
    network.attach("c1", mapping(PORT, 80, "udp"))
    assert lab.fetch("client", HOST[4], PORT, "udp", source_port=7777).name == "c1"
    network.attach("c2", mapping(PORT, 80, "udp"))
    assert {lab.fetch("client", HOST[4], PORT, "udp", source_port=7777).name for _ in range(5)} == {"c1"}
    network.detach("c1")
    assert lab.fetch("client", HOST[4], PORT, "udp", source_port=7777).name == "c2"


# directAccess


def route_to_containers(lab: Lab, network: Network) -> None:
    """As a neighbour on the LAN has who wants to go round the published ports."""
    lab["client"].run(["ip", "route", "add", "192.0.2.0/24", "via", HOST[4]], check=True)
    lab["client"].run(["ip", "-6", "route", "add", "2001:db8:42::/64", "via", HOST[6]], check=True)


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("bridge_nf", [0, 1])
def test_blocked_container_is_reached_by_its_own_network_and_published_ports_alone(
    lab: Lab, plugins: Plugins, family: int, protocol: str, bridge_nf: int
) -> None:
    settings = [f"net.bridge.bridge-nf-call-{name}={bridge_nf}" for name in ("iptables", "ip6tables")]
    lab["host"].run(["sysctl", "-q", "-w", *settings], check=True)
    network = KeyedNetwork(lab, plugins, directAccess="block")
    for name in ("c1", "c2", "client"):
        lab.serve(name, 80, protocol)
        lab.serve(name, 81, protocol)
    network.attach("c1", mapping(PORT, 80, protocol))
    network.attach("c2")
    route_to_containers(lab, network)
    address = network.address("c1", family)
    for port in (80, 81):
        assert refused(lab, "client", address, port, protocol)
        assert refused(lab, "client", network.address("c2", family), port, protocol)
        assert lab.fetch("c2", address, port, protocol).name == "c1"
        assert lab.fetch("host", address, port, protocol).name == "c1"
    assert lab.fetch("client", HOST[family], PORT, protocol).peer == CLIENT[family]
    assert lab.fetch("c2", HOST[family], PORT, protocol).name == "c1"
    assert lab.fetch("c1", HOST[family], PORT, protocol).name == "c1"
    assert lab.fetch("c1", CLIENT[family], 80, protocol).name == "client"
    assert network.run("CHECK", "c1", mapping(PORT, 80, protocol)).status == 0
    network.detach("c1")
    network.detach("c2")
    assert elements(lab) == set()


@FAMILIES
def test_without_the_key_a_container_is_reached_as_with_the_reference(lab: Lab, plugins: Plugins, family: int) -> None:
    network = KeyedNetwork(lab, plugins)
    lab.serve("c1", 81)
    network.attach("c1", mapping(PORT, 80))
    route_to_containers(lab, network)
    assert lab.fetch("client", network.address("c1", family), 81).name == "c1"
    assert "direct_access" not in lab["host"].run(["nft", "list", "table", "inet", "cni_py"]).stdout


def test_check_tells_that_a_guard_is_lost(lab: Lab, plugins: Plugins) -> None:
    network = KeyedNetwork(lab, plugins, directAccess="block")
    network.attach("c1")
    lab["host"].run(["nft", "flush", "set", "inet", "cni_py", "guarded4"], check=True)
    assert "others may reach it" in network.run("CHECK", "c1").stdout
