"""The model of a lab's host is what ip(8), bridge(8) and nft(8) say, and collecting it changes nothing.

client ── LAN ── host ─┬─ cni0    c1, c2   ours, nftables, with portfwd
                       ├─ cni1    c3       ours, iptables
                       └─ cni2    c4       the Go plugins
and a stranger's veth in cni0, one between c1 and c2, and a docker-proxy
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from calm import await_calm
from lab import Lab
from node import Node
from runtime import Plugins
from snapshot import difference

import cni_py
from cni_py.attachment.locks import nftables_lock
from cni_py.host import saved
from cni_py.host.collect import collect, look
from cni_py.host.model import Host, Namespace, Port
from cni_py.host.spaces import Space, own_key
from tests import unprivileged
from tests.commands.hand import NETWORK, Hand, write
from tests.portfwd.publisher import serving

pytestmark = pytest.mark.ours_alone
BRIDGE, PORTMAP = NETWORK["plugins"][:2]
HOST = "198.51.100.1"
UNSETTLED = ("fe80:", "ff00:")  # what a new link has of these comes and goes with duplicate address detection
COMMAND = Path(sys.executable).with_name("cni-py-exec")
PROXY = """#!/usr/bin/python3
import socket, time
listener = socket.create_server(("0.0.0.0", 9999))
print("ready", flush=True)
time.sleep(600)
"""


def network(name: str, bridge: str, subnets: list[str], **portmap: object) -> dict[str, Any]:
    ranges = [[{"subnet": subnet}] for subnet in subnets]
    ipam = {**BRIDGE["ipam"], "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    plugins = [{**BRIDGE, "bridge": bridge, "ipam": ipam}, {**PORTMAP, **portmap}]
    return {"cniVersion": "1.0.0", "name": name, "plugins": plugins}


NETWORKS = [
    network("lab", "cni0", ["192.0.2.0/24", "2001:db8:42::/64"], ports={"8443/tcp": {"allow": ["203.0.113.0/24"]}}),
    network("ipt", "cni1", ["192.0.3.0/24", "2001:db8:43::/64"], backend="iptables"),
    network("gonet", "cni2", ["192.0.4.0/24"]),
]


@pytest.fixture(scope="module")
def world(our_bin_dir: Path, theirs: Plugins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The host of the picture."""
    with Lab.from_yaml("lan.yaml") as lab, contextlib.ExitStack() as stack:
        lab.add_container("c3")
        lab.add_container("c4")
        for name in ("c1", "c2", "c3", "c4"):
            lab.serve(name, 80)
        for one in NETWORKS:
            lab["host"].python(write, f"/etc/cni/net.d/50-{one['name']}.conflist", json.dumps(one))
        ours = Hand(lab, "ours", our_bin_dir, Path("unused"), {})
        go = Hand(lab, "go", theirs.directory, Path("unused"), {})
        stack.enter_context(serving(lab["host"]))
        ours.well("ADD", "lab", "c1", "-p", "8080:80", "-p", f"{HOST}:8081:80", "-p", "20000-20099:20000-20099")
        ours.well("ADD", "lab", "c2", "-p", "5353:80/udp", "-p", "8443:80")
        ours.well("ADD", "ipt", "c3", "-p", "8082:80", "-p", f"{HOST}:30000-30099:30000-30099")
        go.well("ADD", "gonet", "c4", "-p", "8083:80", "-p", f"{HOST}:8084:80")
        strangers(lab)
        proxy = tmp_path_factory.mktemp("proxy") / "docker-proxy"
        proxy.write_text(PROXY)
        proxy.chmod(0o755)
        words = ["-proto", "tcp", "-host-ip", "0.0.0.0", "-host-port", "9999"]
        process = stack.enter_context(
            lab["host"].popen([str(proxy), *words, "-container-ip", "192.0.2.2", "-container-port", "80"], stdout=-1)
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        process.stdout.readline()
        yield lab


def strangers(lab: Lab) -> None:
    """A stranger's port in our bridge; veths from one container to another, with equal indexes; marks that are no text."""
    host, c1, c2, c3, c4 = (lab[name] for name in ("host", "c1", "c2", "c3", "c4"))
    lines = ["link add stranger type veth peer name hidden", "link set stranger master cni0 up"]
    host.run(["ip", "-batch", "-"], input="\n".join(lines), check=True)
    for node, other in ((c1, c2), (c3, c4)):
        pair = ["across", "index", "77", "type", "veth", "peer", "name", "back", "index", "78", "netns", str(other.pid)]
        node.run(["ip", "link", "add", *pair], check=True)
        node.run(["ip", "link", "set", "across", "up", "alias", "<b>\x1b[31m"], check=True)
        other.run(["ip", "link", "set", "back", "up"], check=True)


def model(node: Node, *, flows: bool = False) -> Host:
    return saved.loads(node.python(collected, flows))


def collected(flows: bool) -> str:
    return saved.dumps(collect(flows=flows))


@pytest.fixture(scope="module")
def host(world: Lab) -> Host:
    """The model, when the kernel has done with the links."""
    await_calm(world, *(name for name in world.nodes if name == "host" or name.startswith("c")))
    return model(world["host"])


def space(host: Host, lab: Lab, name: str) -> Namespace:
    """The namespace of a node."""
    found = host.namespace(f"net:[{os.fstat(lab[name].net).st_ino}]")
    assert found is not None
    return found


def told(node: Node, *words: str) -> list[dict[str, Any]]:
    """What `ip -j` or `bridge -j` says."""
    text = node.run([words[0], "-j", *words[1:]], check=True).stdout
    return json.loads(text, strict=False) if text.strip() else []  # ip(8) does not escape control characters


NODES = pytest.mark.parametrize("name", ["host", "c1", "c4"])


@NODES
def test_links_are_those_of_ip(world: Lab, host: Host, name: str) -> None:
    found = {link.name: link for link in space(host, world, name).links}
    said = {one["ifname"]: one for one in told(world[name], "ip", "-d", "addr")}
    assert found.keys() == said.keys()
    for link in found.values():
        one = said[link.name]
        info = one.get("linkinfo", {})
        port = info.get("info_slave_data", {}) if info.get("info_slave_kind") == "bridge" else {}
        assert (link.index, link.mac, link.mtu, link.operstate) == (
            one["ifindex"], one["address"], one["mtu"], one["operstate"].lower(),
        )  # fmt: skip
        assert (link.kind, link.master, link.alias) == (
            info.get("info_kind", ""),
            one.get("master", ""),
            one.get("ifalias", ""),
        )
        assert link.up == ("UP" in one["flags"])
        assert (link.hairpin, link.isolated) == (port.get("hairpin", False), port.get("isolated", False))
        assert link.stp_state == port.get("state", "")
        addresses = [(each.address, each.prefix, each.scope) for each in link.addresses if each.scope != "link"]
        assert addresses == [
            (each["local"], each["prefixlen"], each["scope"]) for each in one["addr_info"] if each["scope"] != "link"
        ]


@NODES
def test_routes_are_those_of_ip(world: Lab, host: Host, name: str) -> None:
    for family, option in ((4, "-4"), (6, "-6")):
        said = told(world[name], "ip", option, "-d", "route", "show", "table", "all")
        expected = sorted(
            (
                one["dst"].replace("default", "0.0.0.0/0" if family == 4 else "::/0").partition("/")[0],
                one.get("gateway", ""),
                one.get("dev", ""),
                one.get("prefsrc", ""),
                one["type"],
                one["protocol"],
                one.get("metric", 0),
            )
            for one in said
            if not one["dst"].startswith(UNSETTLED)
        )
        found = sorted(
            (one.destination.partition("/")[0], one.gateway, one.link, one.source, one.kind, one.protocol, one.metric)
            for one in space(host, world, name).routes
            if one.family == family and not one.destination.startswith(UNSETTLED)
        )
        assert found == expected


@NODES
def test_rules_neighbours_and_forwarding_tables_are_those_of_ip(world: Lab, host: Host, name: str) -> None:
    mine = space(host, world, name)
    for family, option in ((4, "-4"), (6, "-6")):
        found = [one.priority for one in mine.rules if one.family == family]
        assert found == [one["priority"] for one in told(world[name], "ip", option, "rule")]
    neighbours = {(one.address, one.link, one.mac) for one in mine.neighbours if one.mac}
    assert neighbours <= {(one["dst"], one["dev"], one.get("lladdr")) for one in told(world[name], "ip", "neigh")}
    if name == "host":
        said, mine = forwarding(world), space(model(world["host"]), world, name)
        while said != (after := forwarding(world)):  # a bridge has learned something meanwhile
            said, mine = after, space(model(world["host"]), world, name)
        assert {(one.mac, one.port) for one in mine.fdb} == said
        assert {one.bridge for one in mine.fdb} == {"cni0", "cni1", "cni2"}


def forwarding(world: Lab) -> set[tuple[str, str]]:
    return {(one["mac"], one["ifname"]) for one in told(world["host"], "bridge", "fdb") if "self" not in one["flags"]}


def test_rulesets_are_those_of_nft_and_iptables(world: Lab, host: Host) -> None:
    node = world["host"]
    assert uncounted(host.root.nftables) == uncounted(node.run(["nft", "-j", "list", "ruleset"], check=True).stdout)
    assert [name for name, _ in host.root.iptables] == ["iptables-nft", "ip6tables-nft"]
    for name, text in host.root.iptables:
        said = node.run([f"{name}-save"], check=True).stdout
        assert [line for line in said.splitlines() if not line.startswith("# ")] == text.splitlines()
    assert json.loads(space(host, world, "c1").nftables) == {"nftables": []}


def uncounted(text: str) -> object:
    return json.loads(re.sub(r'"(packets|bytes)": \d+', r'"\1": 0', text))


def test_ends_of_veths_are_found_in_their_namespaces(world: Lab, host: Host) -> None:
    keys = {name: space(host, world, name).key for name in ("host", "c1", "c2")}
    c1 = {link.name: link for link in space(host, world, "c1").links}
    c2 = {link.name: link for link in space(host, world, "c2").links}
    own = {link.name: link for link in host.root.links}
    (attached,) = [one for one in host.attachments if one.container_id == "c1"]
    (veth,) = attached.host_links
    assert (c1["eth0"].peer_namespace, c1["eth0"].peer_index) == (keys["host"], own[veth].index)
    assert (own[veth].peer_namespace, own[veth].peer_index) == (keys["c1"], c1["eth0"].index)
    assert (c1["across"].peer_namespace, c1["across"].peer_index) == (keys["c2"], 78)
    assert (c2["back"].peer_namespace, c2["back"].peer_index) == (keys["c1"], 77)
    assert (own["stranger"].peer_namespace, own["stranger"].peer_index) == (keys["host"], own["hidden"].index)


def test_links_say_who_made_them(world: Lab, host: Host) -> None:
    made = {link.name: link.source for link in host.root.links}
    ours, theirs = (
        [name for one in host.attachments if one.source == source for name in one.host_links]
        for source in ("cni-py", "go")
    )
    expected = {**dict.fromkeys([*ours, "cni0", "cni1"], "cni-py"), **dict.fromkeys([*theirs, "cni2"], "go")}
    assert made == {**dict.fromkeys(("lo", "lan0", "stranger", "hidden"), ""), **expected}
    assert [link.source for link in space(host, world, "c4").links if link.name == "eth0"] == ["go"]


def test_namespaces_have_their_names_processes_and_sockets(world: Lab, host: Host) -> None:
    c1 = space(host, world, "c1")
    assert host.root.key == space(host, world, "host").key
    assert c1.names == ("/run/netns/c1",)
    assert c1.cookie
    assert c1.process_count == len(c1.processes) >= 2
    servers = {(one.address, one.port, one.protocol) for one in c1.sockets if one.program == "python probe.py"}
    assert servers == {("0.0.0.0", 80, "tcp"), ("::", 80, "tcp")}
    assert {one.pid for one in c1.sockets} <= {process.pid for process in c1.processes}


def test_attachments_are_told_by_records_and_by_the_cache(world: Lab, host: Host) -> None:
    found = {(one.network, one.container_id): one for one in host.attachments}
    assert sorted(found) == [("gonet", "c4"), ("ipt", "c3"), ("lab", "c1"), ("lab", "c2")]
    for (name, container), one in found.items():
        bridge = next(each["plugins"][0]["bridge"] for each in NETWORKS if each["name"] == name)
        assert (one.bridge, one.live, one.source) == (bridge, "alive", "go" if name == "gonet" else "cni-py")
        assert one.namespace == space(host, world, container).key
        (eth0,) = [link for link in space(host, world, container).links if link.name == "eth0"]
        inside = {f"{each.address}/{each.prefix}" for each in eth0.addresses if each.scope == "global"}
        assert set(one.addresses) == inside
        (veth,) = one.host_links
        assert veth in [link.name for link in host.root.links if link.master == bridge]
        assert bool(one.operations) == (one.source == "cni-py")
        assert time.time() - 600 < one.since <= time.time()


def ports(host: Host) -> dict[tuple[str, str, int, int], Port]:
    return {(one.protocol, one.host_address, one.first, one.last): one for one in host.ports}


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (("tcp", "0.0.0.0", 8080, 8080), ("192.0.2.2", 80, "both", "cni-py", "nftables", "c1")),
        (("tcp", "::", 8080, 8080), ("2001:db8:42::2", 80, "both", "cni-py", "nftables", "c1")),
        (("tcp", HOST, 8081, 8081), ("192.0.2.2", 80, "both", "cni-py", "nftables", "c1")),
        (("tcp", "0.0.0.0", 20000, 20099), ("192.0.2.2", 20000, "both", "cni-py", "nftables", "c1")),
        (("udp", "0.0.0.0", 5353, 5353), ("192.0.2.3", 80, "both", "cni-py", "nftables", "c2")),
        (("tcp", "0.0.0.0", 8443, 8443), ("192.0.2.3", 80, "both", "cni-py", "nftables", "c2")),
        (("tcp", "0.0.0.0", 8082, 8082), ("192.0.3.2", 80, "both", "cni-py", "iptables", "c3")),
        (("tcp", "::", 8082, 8082), ("2001:db8:43::2", 80, "both", "cni-py", "iptables", "c3")),
        (("tcp", HOST, 30000, 30099), ("192.0.3.2", 30000, "both", "cni-py", "iptables", "c3")),
        (("tcp", "0.0.0.0", 8083, 8083), ("192.0.4.2", 80, "nat", "go", "iptables", "c4")),
        (("tcp", HOST, 8084, 8084), ("192.0.4.2", 80, "nat", "go", "iptables", "c4")),
        (("tcp", "0.0.0.0", 9999, 9999), ("192.0.2.2", 80, "relay", "docker", "docker-proxy", "c1")),
    ],
)
def test_published_ports(host: Host, place: tuple[str, str, int, int], expected: tuple[object, ...]) -> None:
    one = ports(host)[place]
    assert (one.target, one.target_port, one.way, one.source, one.backend, one.container_id) == expected
    assert one.allow == (("203.0.113.0/24",) if place[2] == 8443 else ())


def test_masquerading_relays_networks_and_pools(host: Host) -> None:
    found = {one.address: (one.source, one.backend, one.container_id) for one in host.masquerades}
    assert found["192.0.2.2"] == found["2001:db8:42::2"] == ("cni-py", "nftables", "c1")
    assert found["192.0.4.2"] == ("go", "iptables", "c4")
    assert host.portfwd == f"running {cni_py.__version__}"
    assert {one.state for one in host.relays} == {"listening"}
    assert "192.0.2.2:80" in {one.target for one in host.relays}
    listed = {one.name: one for one in host.networks}
    assert {name: one.bridge for name, one in listed.items()} == {"lab": "cni0", "ipt": "cni1", "gonet": "cni2"}
    assert listed["lab"].subnets == ("192.0.2.0/24", "2001:db8:42::/64")
    pools = {one.network: one for one in host.pools}
    assert pools["gonet"].ranges == ("192.0.4.1-192.0.4.254",)
    assert pools["gonet"].sizes == (253,)
    assert [(one.address, one.container_id, one.live) for one in pools["gonet"].reservations] == [
        ("192.0.4.2", "c4", "alive")
    ]
    assert pools["lab"].last == ("192.0.2.3", "2001:db8:42::3")


def test_a_healthy_host_has_notes_alone(host: Host) -> None:
    found = {(one.level, one.code, one.subject) for one in host.findings}
    assert found == {("note", "foreign-port", "link stranger"), ("note", "nothing-listens", "container c2")}
    assert host.gaps == ()


def test_collecting_changes_nothing(world: Lab) -> None:
    """Neither the kernel nor a file: no table, lock, index or stamp."""
    before = {name: world.snapshot(name) for name in ("host", "c1", "c4")}
    model(world["host"], flows=True)
    for name, state in before.items():
        assert difference(state, world.snapshot(name)) == ""


def test_translated_connections_are_listed_when_asked_for(world: Lab) -> None:
    port = 45678
    world.fetch("client", HOST, 8080, source_port=port)
    assert model(world["host"]).root.flows == ()
    (flow,) = [one for one in model(world["host"], flows=True).root.flows if one.source_port == port]
    assert (flow.protocol, flow.destination, flow.destination_port) == ("tcp", HOST, 8080)
    assert (flow.reply_source, flow.reply_source_port) == ("192.0.2.2", 80)
    assert {"dnat", "seen-reply", "assured"} <= set(flow.status)


def test_a_user_without_rights_gets_what_everybody_may_see(world: Lab, host: Host) -> None:
    """And a sentence on what was not looked at; no traceback."""
    script = "from cni_py.host.collect import collect; from cni_py.host import saved; print(saved.dumps(collect()))"
    done = world["host"].run([*unprivileged.python(world["host"]), "-c", script], check=True)
    seen = saved.loads(done.stdout)
    assert done.stderr == ""
    assert {link.name for link in seen.root.links} == {link.name for link in host.root.links}
    assert {one.destination for one in host.root.routes if one.family == 4} == {
        one.destination for one in seen.root.routes if one.family == 4
    }
    assert (seen.root.nftables, seen.ports) == ("", ())
    said = "\n".join(one.what for one in seen.gaps)
    for what in ("nftables cannot be read", "namespace /run/netns/c1 cannot be entered", "attachment records"):
        assert what in said
    assert {one.code for one in seen.gaps} == {"not-seen"}
    assert {one.level for one in seen.findings} <= {"note"}


DAMAGE = {
    "table-missing": ("nft delete table inet cni_py", "true"),
    "table-incomplete": ("nft flush chain inet cni_py published4", f"{COMMAND.with_name('cni-py')} restore"),
    "rules-lost": (
        "iptables -t nat -D PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        f"{COMMAND.with_name('cni-py')} restore",
    ),
    "port-without-bridge": ("ip link set VETH nomaster", "ip link set VETH master cni0"),
    "link-down": ("ip link set VETH down", "ip link set VETH up"),
    "gateway-missing": ("ip address del 192.0.2.1/24 dev cni0", "ip address add 192.0.2.1/24 dev cni0"),
    "forwarding-off": ("sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1"),
    "reservation-missing": (
        "mv /var/lib/cni/networks/lab/192.0.2.2 /tmp/kept", "mv /tmp/kept /var/lib/cni/networks/lab/192.0.2.2",
    ),
    "duplicate-address": ("ip address add 192.0.2.2/32 dev lan0", "ip address del 192.0.2.2/32 dev lan0"),
}  # fmt: skip


def harmed(harm: str) -> str:
    """The model after a damage. Under the lock of the tables: portfwd has them restored."""
    with nftables_lock():
        subprocess.run(["sh", "-c", harm], check=True)
        return collected(False)


@pytest.mark.parametrize("code", [*(code for code in DAMAGE if code != "table-missing"), "table-missing"])
def test_damage_is_found(world: Lab, host: Host, code: str) -> None:
    (veth,) = next(one for one in host.attachments if one.container_id == "c1").host_links
    harm, mend = (text.replace("VETH", veth) for text in DAMAGE[code])
    found = saved.loads(world["host"].python(harmed, harm)).findings
    world["host"].run(["sh", "-c", mend], check=True)
    assert code in {one.code for one in found if one.level == "error"}


def vanished() -> tuple[int, list[str]]:
    gaps: list[str] = []
    own = Space(own_key())
    own.names.append("/proc/thread-self/ns/net")
    gone = Space("net:[1]", names=["/run/netns/nowhere"], pids=[2**22])
    return len(look([own, gone], gaps)), gaps


def test_a_namespace_that_ends_meanwhile_is_left_out(world: Lab) -> None:
    assert world["host"].python(vanished) == (1, [])
