"""portmap and portfwd together, on a lab's host: what NAT cannot serve, and hosts that have none."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conversation import CLIENT, HOST
from lab import ANSWER_S, Lab
from runtime import GATEWAY, Network, Outcome, Plugins, mapping

from cni_py.attachment.naming import Attachment
from cni_py.ports import relay
from tests.portfwd.publisher import STATE, Publisher, serving
from tests.portfwd.talk import until

pytestmark = pytest.mark.ours_alone

PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
STORE = f"{STATE}/mappings"


class Tuned(Network):
    """A network whose portmap configuration has more keys, and whose containers may have one family."""

    def __init__(self, lab: Lab, plugins: Plugins, *, families: str = "46", name: str = "lab", **keys: object) -> None:
        super().__init__(lab, plugins, name)
        self.families = families
        self.keys = keys

    def bridge(self, ips: list[str] | None = None) -> dict[str, object]:
        conf = super().bridge(ips)
        ipam: Any = conf["ipam"]
        ranges = [one for one in ipam["ranges"] if ("6" if ":" in one[0]["subnet"] else "4") in self.families]
        routes = [one for one in ipam["routes"] if ("6" if ":" in one["dst"] else "4") in self.families]
        return {**conf, "bridge": f"{self.name}0", "ipam": {**ipam, "ranges": ranges, "routes": routes}}

    def portmap(self, container_id: str) -> dict[str, object]:
        return {**super().portmap(container_id), **self.keys}

    def run(self, verb: str, container_id: str, *ports: dict[str, object], **fields: object) -> Outcome:
        """One call of portmap for a container that the bridge knows."""
        self.ports[container_id] = list(ports)
        conf = {**self.portmap(container_id), "prevResult": self.results[container_id], **fields}
        return self.plugins.run(self.lab, verb, "portmap", conf, container_id)


@pytest.fixture
def service(lab: Lab) -> Iterator[Publisher]:
    publisher = Publisher(lab["host"])
    yield publisher
    publisher.end()


def listed(service: Publisher) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in service.ask("list")["mappings"]}


def serve(lab: Lab, name: str = "c1") -> None:
    lab.serve(name, 80)
    lab.serve(name, 53, "udp")


def refused(lab: Lab, node: str, address: str, port: int, *, wanted: bool = True) -> bool:
    """`wanted`: what the test expects."""
    try:
        lab.fetch(node, address, port, timeout_s=1.0 if wanted else ANSWER_S)
    except (ConnectionError, TimeoutError):
        return True
    return False


WEB = mapping(8080, 80)
DNS = mapping(8053, 53, "udp")
PORT = {"tcp": 8080, "udp": 8053}


@PROTOCOLS
def test_ipv6_loopback_reaches_the_container_from_the_gateway(
    lab: Lab, plugins: Plugins, service: Publisher, protocol: str
) -> None:
    network = Tuned(lab, plugins)
    serve(lab)
    network.attach("c1", WEB, DNS)
    answer = lab.fetch("host", "::1", PORT[protocol], protocol)
    assert (answer.name, answer.peer) == ("c1", GATEWAY[6])


@PROTOCOLS
def test_what_nat_serves_goes_on_keeping_its_source(
    lab: Lab, plugins: Plugins, service: Publisher, protocol: str
) -> None:
    network = Tuned(lab, plugins)
    serve(lab)
    network.attach("c1", WEB, DNS)
    for family in (4, 6):
        assert lab.fetch("client", HOST[family], PORT[protocol], protocol).peer == CLIENT[family]
    assert lab.fetch("host", "127.0.0.1", PORT[protocol], protocol).peer == GATEWAY[4]
    assert not [one for one in listed(service).values() if one["state"]["connections"]]


@PROTOCOLS
def test_clients_of_the_other_family_are_served(lab: Lab, plugins: Plugins, service: Publisher, protocol: str) -> None:
    network = Tuned(lab, plugins, families="4")
    serve(lab)
    network.attach("c1", WEB, DNS)
    for node, address in (("client", HOST[6]), ("host", "::1")):
        assert lab.fetch(node, address, PORT[protocol], protocol).peer == GATEWAY[4]
    assert lab.fetch("client", HOST[4], PORT[protocol], protocol).peer == CLIENT[4]


def test_ipv4_clients_of_a_container_without_ipv4_are_served(lab: Lab, plugins: Plugins, service: Publisher) -> None:
    network = Tuned(lab, plugins, families="6")
    serve(lab)
    network.attach("c1", WEB)
    for node, address in (("client", HOST[4]), ("host", "127.0.0.1")):
        assert lab.fetch(node, address, 8080).peer == GATEWAY[6]


def link_local(lab: Lab, node: str, ifname: str) -> str:
    """Its address of the link, once the kernel has made sure that nobody else has it."""
    end = time.monotonic() + ANSWER_S
    while time.monotonic() < end:
        shown = json.loads(lab[node].run(["ip", "-j", "-6", "addr", "show", "dev", ifname, "scope", "link"]).stdout)
        for info in (info for one in shown for info in one.get("addr_info", ())):
            if "local" in info and not info.get("tentative"):
                return str(info["local"])
        time.sleep(0.02)
    pytest.fail(f"{ifname} of {node} has no link-local address")


def ask(address: str, ifname: str, port: int, protocol: str) -> str:
    """What a server answers at an address of a link; called inside a node."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET6, kind) as client:
        client.settimeout(ANSWER_S)
        client.connect((address, port, 0, socket.if_nametoindex(ifname)))
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        text = client.recv(4096)
        while protocol == "tcp" and (part := client.recv(4096)):
            text += part
    return text.decode().rpartition("\r\n\r\n")[2]


@PROTOCOLS
def test_link_local_client_is_served(lab: Lab, plugins: Plugins, service: Publisher, protocol: str) -> None:
    network = Tuned(lab, plugins)
    serve(lab)
    network.attach("c1", WEB, DNS)
    link_local(lab, "client", "eth0")
    answer = lab["client"].python(ask, link_local(lab, "host", "lan0"), "eth0", PORT[protocol], protocol)
    assert answer.split()[:2] == ["c1", GATEWAY[6]]


@pytest.mark.parametrize(
    ("host_ip", "open_to"),
    [
        ("127.0.0.1", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("0.0.0.0", {"127.0.0.1", HOST[4]}),
        ("::", {"::1", HOST[6]}),
        (HOST[4], {HOST[4]}),
        (HOST[6], {HOST[6]}),
        ("", {"127.0.0.1", "::1", HOST[4], HOST[6]}),
    ],
)
@pytest.mark.parametrize("use", ["auto", "always"])
def test_no_address_is_opened_that_host_ip_excludes(
    lab: Lab, plugins: Plugins, service: Publisher, use: str, host_ip: str, open_to: set[str]
) -> None:
    network = Tuned(lab, plugins, userlandProxy=use)
    serve(lab)
    network.attach("c1", mapping(8080, 80, host_ip=host_ip))
    places = ("127.0.0.1", "::1", HOST[4], HOST[6])
    assert {ip for ip in places if not refused(lab, "host", ip, 8080, wanted=ip not in open_to)} == open_to


def test_runs_of_ports_are_one_mapping(lab: Lab, plugins: Plugins, service: Publisher) -> None:
    network = Tuned(lab, plugins)
    network.attach("c1", *(mapping(port, port) for port in range(7000, 7080)), WEB)
    found = sorted((one["first"], one["last"], *one["host_ips"]) for one in listed(service).values())
    assert found == [(7000, 7079, "0.0.0.0"), (7000, 7079, "::"), (8080, 8080, "0.0.0.0"), (8080, 8080, "::")]


@pytest.mark.parametrize("use", ["auto", "always"])
def test_delete_needs_no_configuration_and_leaves_nothing(
    lab: Lab, plugins: Plugins, service: Publisher, use: str
) -> None:
    network = Tuned(lab, plugins, userlandProxy=use)
    network.attach("c1", WEB, DNS)
    assert len(listed(service)) == 4
    assert lab["host"].run(["ls", STORE]).stdout.split()
    outcome = plugins.run(lab, "DEL", "portmap", {"cniVersion": "1.0.0", "name": "lab", "type": "portmap"})
    assert outcome.status == 0, outcome.stdout
    assert listed(service) == {}
    assert lab["host"].run(["ls", STORE]).stdout.split() == []
    assert refused(lab, "host", "::1", 8080)


def test_delete_says_what_a_disk_that_is_read_only_keeps(lab: Lab, plugins: Plugins, service: Publisher) -> None:
    host = lab["host"]
    host.run(["sh", "-ec", f"mkdir {STATE}; mount -t tmpfs tmpfs {STATE}"], check=True)
    network = Tuned(lab, plugins, userlandProxy="always")
    network.attach("c1", WEB)
    files = host.run(["ls", STORE]).stdout
    host.run(["mount", "-o", "remount,ro", STATE], check=True)
    outcome = network.run("DEL", "c1", WEB)
    assert outcome.status == 0
    assert f"stay in {STORE} until they can be removed: Read-only file system" in outcome.stderr
    assert listed(service) == {}
    assert host.run(["ls", STORE]).stdout == files


def test_a_service_that_missed_a_delete_and_an_add_serves_the_new_one(
    lab: Lab, plugins: Plugins, service: Publisher
) -> None:
    network = Tuned(lab, plugins)
    network.attach("c1", WEB, mapping(8081, 81))
    before = network.address("c1", 6)
    service.end(signal.SIGKILL)  # what it published is on disk
    network.detach("c1")
    network.attach("c2", ips=[before])
    network.attach("c1", WEB)
    serve(lab)
    with serving(lab["host"]) as later:
        assert before not in str(listed(later))  # what was on disk leads to c2 by now
        assert until(lambda: len(listed(later)) == 2)  # by cni-py restore
        assert before not in str(listed(later))
        assert lab.fetch("host", "::1", 8080).name == "c1"


@pytest.mark.parametrize("recorded", [True, False])
def test_garbage_collection_withdraws(lab: Lab, plugins: Plugins, service: Publisher, recorded: bool) -> None:
    network = Tuned(lab, plugins)
    network.attach("c1", WEB)
    network.attach("c2", mapping(8081, 80))
    if not recorded:
        lab["host"].run(["sh", "-c", f"rm /run/cni-py/attachments/*/{plugins.keeper('portmap')}.json"], check=True)
    conf = {**network.portmap("c1"), "cniVersion": "1.1.0"}
    valid = [{"containerID": "c2", "ifname": "eth0"}]
    outcome = plugins.run(lab, "GC", "portmap", {**conf, "cni.dev/valid-attachments": valid}, CNI_NETNS=None)
    assert outcome.status == 0, outcome.stdout
    assert {one["first"] for one in listed(service).values()} == {8081}


class OldService:
    """Knows the field by its earlier name alone."""

    def __init__(self) -> None:
        self.published: list[dict[str, Any]] = []

    def publish(self, mappings: list[dict[str, Any]], *, may_fail: bool) -> list[str]:
        if any("steer" in one for one in mappings):
            raise relay.Refused("usage", "a mapping has no field 'steer'", "")
        self.published += mappings
        return []

    def remove(self, hexed: str) -> None:
        """There is nothing."""


@pytest.mark.parametrize("recorded", [{}, {"redirect": "never"}, {"steer": "never"}])
def test_services_and_records_of_before_are_understood(recorded: dict[str, str]) -> None:
    place = {"host_ips": ["192.0.2.1"], "targets": [{"address": "10.0.0.2", "port": 80}]}
    one = {"protocol": "tcp", "first": 8000, "last": 8099, **place, **recorded}
    op = relay.RelayPorts.from_json({"mappings": json.dumps([one]), "required": True})
    key = Attachment("net", "c1", "eth0")
    wanted = "never" if recorded else "auto"
    assert [(new["steer"], "redirect" in new) for new in op.named(key)] == [(wanted, False)]
    old = OldService()
    op._publish(old, key)  # type: ignore[arg-type]  # as much of a service as is needed
    assert [one["redirect"] for one in old.published] == [wanted]


def test_a_port_of_another_process_is_a_note_in_auto(lab: Lab, plugins: Plugins, service: Publisher) -> None:
    lab.serve("host", 8053, "udp", address="::1")
    network = Tuned(lab, plugins)
    serve(lab)
    network.attach("c1")
    outcome = network.run("ADD", "c1", mapping(8053, 53, "udp", host_ip="::1"))
    assert outcome.status == 0
    assert "8053/udp" in outcome.stderr
    assert network.run("CHECK", "c1", mapping(8053, 53, "udp", host_ip="::1")).status == 0


def test_always_is_refused_a_port_of_another_process(lab: Lab, plugins: Plugins, service: Publisher) -> None:
    lab.serve("host", 8053, "udp")
    network = Tuned(lab, plugins, userlandProxy="always")
    network.attach("c1")
    outcome = network.run("ADD", "c1", DNS, WEB)
    assert outcome.code == 110
    assert "8053/udp" in outcome.stdout
    assert listed(service) == {}


@PROTOCOLS
def test_always_serves_every_path_and_touches_no_nf_tables(
    lab: Lab, plugins: Plugins, service: Publisher, protocol: str
) -> None:
    network = Tuned(lab, plugins, userlandProxy="always")
    serve(lab)
    network.attach("c1")
    lab["host"].run(["nft", "flush", "ruleset"], check=True)
    assert network.run("ADD", "c1", WEB, DNS).status == 0
    ruleset = lab["host"].run(["nft", "list", "ruleset"]).stdout  # the service may have put bridge's masquerading back
    assert "8080" not in ruleset
    assert "8053" not in ruleset
    for node, address, family in (
        ("client", HOST[4], 4),
        ("client", HOST[6], 6),
        ("host", "127.0.0.1", 4),
        ("host", "::1", 6),
        ("c1", HOST[4], 4),
    ):
        answer = lab.fetch(node, address, PORT[protocol], protocol)
        assert (answer.name, answer.peer) == ("c1", GATEWAY[family]), address
    assert network.run("CHECK", "c1", WEB, DNS).status == 0

    def is_missed() -> bool:
        """After the flush the service may look once for what attachments lack, and would find this."""
        service.ask("remove", ids=sorted(listed(service))[:1])
        return "portfwd has lost" in network.run("CHECK", "c1", WEB, DNS).stdout

    assert until(is_missed)


def test_always_works_where_the_kernel_has_no_nf_tables(
    lab: Lab, plugins: Plugins, without_nftables: Plugins, service: Publisher
) -> None:
    network = Tuned(lab, plugins, userlandProxy="always")
    serve(lab)
    network.attach("c1")
    network.plugins = without_nftables
    gc = {"cniVersion": "1.1.0", "name": "lab", "type": "portmap", "cni.dev/valid-attachments": []}
    for end in ("DEL", "GC"):
        assert network.run("ADD", "c1", WEB).status == 0
        assert lab.fetch("client", HOST[4], 8080).name == "c1"
        assert network.run("CHECK", "c1", WEB).status == 0
        if end == "DEL":
            assert network.run("DEL", "c1").status == 0
        else:
            assert without_nftables.run(lab, "GC", "portmap", gc, CNI_NETNS=None).status == 0
        assert listed(service) == {}


def test_always_without_the_service_is_an_error(lab: Lab, plugins: Plugins) -> None:
    network = Tuned(lab, plugins, userlandProxy="always")
    network.attach("c1")
    assert network.run("ADD", "c1", WEB).code == 50
    conf = {**network.portmap("c1"), "cniVersion": "1.1.0"}
    assert plugins.run(lab, "STATUS", "portmap", conf, CNI_NETNS=None, CNI_CONTAINERID=None).code == 50
    assert network.run("DEL", "c1").status == 0


@pytest.mark.parametrize(
    ("keys", "ports"),
    [
        ({}, [mapping(8080, 80, "sctp")]),
        ({"backend": "nftables", "conditionsV4": ["ip", "saddr", "192.0.2.1"]}, [WEB]),
        ({"ports": {"8080/tcp": {"share": True}}}, [WEB]),
    ],
)
def test_always_refuses_what_needs_nat(
    lab: Lab, plugins: Plugins, keys: dict[str, Any], ports: list[dict[str, object]]
) -> None:
    network = Tuned(lab, plugins, userlandProxy="always", **keys)
    network.ports["c1"] = []
    network.results["c1"] = {"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.2/24"}]}
    assert network.run("ADD", "c1", *ports).code == 7


def test_never_asks_for_nothing(lab: Lab, plugins: Plugins, service: Publisher) -> None:
    Tuned(lab, plugins, userlandProxy="never").attach("c1", WEB)
    assert listed(service) == {}


def test_conditions_are_not_passed_by(lab: Lab, plugins: Plugins, service: Publisher) -> None:
    keys: dict[str, Any] = {"backend": "nftables", "conditionsV4": ["ip", "saddr", "!=", CLIENT[4]]}
    network = Tuned(lab, plugins, **keys)
    serve(lab)
    network.attach("c1", WEB)
    assert refused(lab, "client", HOST[4], 8080)
    assert not refused(lab, "client", HOST[6], 8080, wanted=False)
    assert not refused(lab, "host", "::1", 8080, wanted=False)


SILENT = """
import os, socket, sys
if len(sys.argv) > 2:
    os.setuid(int(sys.argv[2]))
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("owner", "words"), [("0", "does not answer"), ("65534", "not to be trusted")])
def test_socket_that_does_not_answer_or_is_a_strangers_fails_no_add(
    lab: Lab, plugins: Plugins, owner: str, words: str
) -> None:
    network = Tuned(lab, plugins)
    network.attach("c1")
    lab["host"].run(["mkdir", "-p", "-m", "0777", "/run/cni-py"], check=True)
    lab["host"].run(["chmod", "0777", "/run/cni-py"], check=True)
    silent = lab["host"].popen(
        [sys.executable, "-c", SILENT, "/run/cni-py/portfwd.sock", owner],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert silent.stdout is not None
    assert silent.stdout.readline() == b"ready\n"
    try:
        outcome = network.run("ADD", "c1", WEB)
        assert outcome.status == 0
        assert words in outcome.stderr
        network.keys["userlandProxy"] = "always"
        if owner != "0":  # else it would wait for long
            assert network.run("ADD", "c1", WEB).code == 5
    finally:
        silent.communicate()  # the end of its standard input is its own


def test_service_that_was_killed_costs_no_add(lab: Lab, plugins: Plugins, service: Publisher) -> None:
    network = Tuned(lab, plugins)
    network.attach("c1")
    service.end(signal.SIGKILL)
    outcome = network.run("ADD", "c1", WEB)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert network.run("DEL", "c1").status == 0


@pytest.mark.parametrize("use", ["auto", "always"])
def test_next_network_of_the_same_container_takes_over(
    lab: Lab, plugins: Plugins, service: Publisher, use: str
) -> None:
    serve(lab)
    first = Tuned(lab, plugins, userlandProxy=use)
    first.attach("c1", WEB)
    conf = {**first.portmap("c1"), "name": "other", "prevResult": first.results["c1"]}
    outcome = plugins.run(lab, "ADD", "portmap", conf, ifname="eth0")
    assert (outcome.status, outcome.stderr) == (0, ""), outcome.stdout
    assert len({one["owner"] for one in listed(service).values()}) == 1
    before = {one["owner"] for one in listed(service).values()}
    assert first.run("DEL", "c1").status == 0
    after = {one["owner"] for one in listed(service).values()}
    assert len(after) == 1
    assert after != before
    assert lab.fetch("host", "::1", 8080).name == "c1"
    assert plugins.run(lab, "DEL", "portmap", {**conf, "runtimeConfig": {}}).status == 0
    assert listed(service) == {}
    left = lab["host"].run(["find", "/run/cni-py/attachments", "-name", "portmap*", "-o", "-name", "heirs"]).stdout
    assert left == ""


@pytest.mark.parametrize("use", ["auto", "always"])
def test_dead_container_blocks_nobody(lab: Lab, plugins: Plugins, service: Publisher, use: str) -> None:
    network = Tuned(lab, plugins, userlandProxy=use)
    network.attach("c1", WEB)
    lab.remove("c1")
    lab.serve("c2", 80)
    network.attach("c2", WEB)
    assert lab.fetch("host", "::1", 8080).name == "c2"
