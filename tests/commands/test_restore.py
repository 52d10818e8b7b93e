"""`cni-py restore` on a lab's host: what was flushed comes back, and nothing else changes."""

from __future__ import annotations

import json
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
from runtime import Network, Plugins, mapping
from snapshot import difference

pytestmark = pytest.mark.ours_alone
COMMAND = Path(sys.executable).with_name("cni-py")
WEB, OTHER, NAMED, FIRST, LAST = 8080, 8090, 8081, 20000, 20009
HOST4, HOST6 = "198.51.100.1", "2001:db8:1::1"


class Guarded(Network):
    """The network with a spoof check."""

    __slots__ = ()

    def bridge(self, ips: list[str] | None = None) -> dict[str, object]:
        return {**super().bridge(ips), "macspoofchk": True}


@pytest.fixture(scope="module")
def machine() -> Iterator[Lab]:
    with Lab.from_yaml("lan.yaml") as lab:
        for name in ("c1", "c2"):
            lab.serve(name, 80)
        yield lab


@pytest.fixture
def empty(machine: Lab, plugins: Plugins) -> Iterator[Guarded]:
    """Nothing attached yet, and nothing after the test."""
    network = Guarded(machine, plugins)
    yield network
    for name in list(network.results):
        network.detach(name)


@pytest.fixture
def network(empty: Guarded) -> Guarded:
    """c1 and c2 attached."""
    network = empty
    range_ports = [mapping(port, 80 + port - FIRST) for port in range(FIRST, LAST + 1)]
    network.attach("c1", mapping(WEB, 80), mapping(NAMED, 80, host_ip=HOST4), *range_ports)
    network.attach("c2", mapping(OTHER, 80), mapping(8053, 53, "udp"))
    return network


def nft(lab: Lab, command: str) -> str:
    return lab["host"].run(["nft", *command.split()], check=True).stdout


def restore(lab: Lab, *options: str, status: int = 0) -> str:
    done = lab["host"].run([str(COMMAND), "restore", *options])
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def report(lab: Lab, status: int = 0) -> dict[tuple[str, str], dict[str, Any]]:
    """What --json says, by container and plugin."""
    done = lab["host"].run([str(COMMAND), "restore", "--json"])
    assert done.returncode == status, done.stdout + done.stderr
    return {(one["containerID"], one["plugin"]): one for one in json.loads(done.stdout)["attachments"]}


def ruleset(lab: Lab) -> list[str]:
    """Every line of the ruleset, elements one a line, sorted: their order is the hash's."""
    text = nft(lab, "-s list ruleset")
    return sorted(line.strip(" \t,}") for line in re.split(r"\n|, |\{ (?=.* : )", text))


def links(lab: Lab) -> list[object]:
    """Links, addresses and routes of the host, but for the numbers of links that were made anew."""
    found: list[object] = []
    for command in ("ip -j link", "ip -j addr", "ip -j route show table all", "ip -6 -j route"):
        listed = json.loads(lab["host"].run(command.split(), check=True).stdout)
        for each in listed:
            each.pop("ifindex", None)
        # The kernel's anycast routes depend on which came first, forwarding or the address
        found.append(sorted(str(each) for each in listed if each.get("type") != "anycast"))
    ports = lab["host"].run(["bridge", "-d", "link"], check=True).stdout
    ports = re.sub(r" mcast_n_groups \d+", "", ports)  # how many there are at the moment, with iproute2 6.15
    found.append(sorted(re.sub(r"^\d+: |@\w+(?=: )|state \w+", "", ports, flags=re.MULTILINE).split("\n")))
    found.append(lab["host"].run(["sh", "-c", "cat /proc/sys/net/ipv4/conf/*/route_localnet"], check=True).stdout)
    return found


def settled(lab: Lab, wanted: list[object]) -> bool:
    """Whether the links are so within the seconds that the kernel takes for link-local addresses."""
    end = time.monotonic() + 30
    while links(lab) != wanted:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def port_vlans(lab: Lab) -> list[str]:
    """Of each port, in an order of ours: the kernel's is that in which links were made."""
    shown = lab["host"].run(["bridge", "-j", "-d", "vlan"]).stdout
    return sorted(map(json.dumps, json.loads(shown))) if shown.startswith("[{") else []


def at_rest(lab: Lab) -> list[object]:
    """The links when the kernel has done with them."""
    await_calm(lab, "host")
    return links(lab)


@pytest.mark.parametrize(
    "damage",
    [
        "ip link delete cni0",
        "ip address delete 192.0.2.1/24 dev cni0",
        "ip address flush dev cni0 scope global",
        "ip link set cni0 down",
        "for port in /sys/class/net/cni0/brif/*; do ip link set ${port##*/} nomaster; done",
        "ip link delete cni0; nft flush ruleset",
    ],
)
def test_what_was_taken_from_links_comes_back(machine: Lab, network: Guarded, damage: str) -> None:
    index = re.compile(r"comment \"\d+ filtered")  # of the bridge
    rules, before = [index.sub("", line) for line in ruleset(machine)], at_rest(machine)
    machine["host"].run(["sh", "-c", damage], check=True)
    assert links(machine) != before
    restore(machine)
    assert settled(machine, before), difference({"": before}, {"": links(machine)})
    assert [index.sub("", line) for line in ruleset(machine)] == rules
    assert reached(machine) == ["c1"] * 4
    assert restore(machine).strip() == "restored 0 of 2 attachments"


@pytest.mark.debian_kernel
def test_port_options_vlans_and_point_to_point_links_come_back(machine: Lab, plugins: Plugins) -> None:
    """VLANs where the kernel has them."""
    host = machine["host"]
    ipam = {"type": "host-local", "subnet": "203.0.113.0/25"}
    filtering = host.run(["ip", "link", "add", "cniv", "type", "bridge", "vlan_filtering", "1"]).returncode == 0
    bridge: dict[str, object] = {
        "cniVersion": "1.0.0",
        "name": "ports",
        "type": "bridge",
        "bridge": "cniv",
        "mtu": 1400,
    }
    bridge |= {"isGateway": True, "portIsolation": True, "macspoofchk": True, "promiscMode": False, "ipam": ipam}
    if filtering:
        bridge |= {"vlan": 100, "vlanTrunk": [{"minID": 7, "maxID": 9}]}
        host.run(["ip", "link", "delete", "cniv"], check=True)
    pair: dict[str, object] = {
        "cniVersion": "1.0.0",
        "name": "pair",
        "type": "ptp",
        "ipam": {**ipam, "subnet": "203.0.113.128/25"},
    }
    made = [(bridge, "c1", "eth1"), (pair, "c2", "eth1")]
    for conf, name, ifname in made:
        assert plugins.run(machine, "ADD", str(conf["type"]), conf, name, ifname=ifname).status == 0
    before, vlans = at_rest(machine), port_vlans(machine)
    veth = json.loads(host.run(["ip", "-j", "-4", "addr", "show", "to", "203.0.113.129"], check=True).stdout)[0][
        "ifname"
    ]
    host.run(["ip", "link", "delete", "cniv"], check=True)
    host.run(["ip", "address", "delete", "203.0.113.129/32", "dev", veth], check=True)
    restore(machine)
    assert settled(machine, before), difference({"": before}, {"": links(machine)})
    assert port_vlans(machine) == vlans
    for conf, name, ifname in made:
        assert plugins.run(machine, "DEL", str(conf["type"]), conf, name, ifname=ifname).status == 0
    host.run(["ip", "link", "delete", "cniv"], check=True)


def test_a_bridge_that_was_renamed_gets_no_second_one(machine: Lab, network: Guarded) -> None:
    before, host = at_rest(machine), machine["host"]
    host.run(["sh", "-c", "ip link set cni0 down; ip link set cni0 name br7; ip link set br7 up"], check=True)
    told = restore(machine, status=1)
    assert "bridge cni0 is called br7 now" in told
    assert host.run(["ip", "link", "show", "cni0"]).returncode == 1
    way = told.partition("to name it as before: ")[2].splitlines()[0].partition("; cni-py")[0]
    host.run(["sh", "-c", way], check=True)
    nft(machine, "delete table inet cni_py")  # it still has an element for br7, which restore had guarded
    restore(machine)
    assert settled(machine, before), difference({"": before}, {"": links(machine)})


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_an_interface_that_is_gone_is_left_to_an_add(machine: Lab, plugins: Plugins, kind: str) -> None:
    ipam = {"type": "host-local", "subnet": "203.0.113.0/25"}
    conf: dict[str, object] = {"cniVersion": "1.0.0", "name": "gone", "type": kind, "ipam": ipam}
    conf |= {"bridge": "cnig", "isGateway": True} if kind == "bridge" else {}
    made = plugins.run(machine, "ADD", kind, conf, "c1", ifname="eth1").json
    veth = next(one["name"] for one in made["interfaces"] if one["name"].startswith("veth"))
    machine["host"].run(["ip", "link", "delete", veth], check=True)
    assert restore(machine) == "restored 0 of 1 attachments\n"
    assert plugins.run(machine, "DEL", kind, conf, "c1", ifname="eth1").status == 0
    machine["host"].run(["ip", "link", "delete", "cnig"])


def test_what_somebody_put_in_its_place_stays(machine: Lab, network: Guarded) -> None:
    before = at_rest(machine)
    script = (
        "ip address delete 192.0.2.1/24 dev cni0; ip address add 192.0.2.250/24 dev cni0; ip link add br9 type bridge"
    )
    machine["host"].run(
        ["sh", "-c", script + "; ip link set $(ls /sys/class/net/cni0/brif | head -1) master br9"], check=True
    )
    moved = at_rest(machine)
    assert restore(machine).strip() == "restored 0 of 2 attachments"
    assert at_rest(machine)[1] == moved[1]
    machine["host"].run(["sh", "-c", "ip link delete br9; ip address delete 192.0.2.250/24 dev cni0"], check=True)
    restore(machine)
    assert settled(machine, before)


def reached(lab: Lab, port: int = WEB) -> list[str]:
    """Who answers on a port, from the LAN and from the host, in both families."""
    ways = [("client", HOST4), ("client", HOST6), ("host", HOST4), ("host", "127.0.0.1")]
    return [lab.fetch(name, address, port).name for name, address in ways]


@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "delete table inet cni_py",
        "delete table bridge cni_py",
        "flush table inet cni_py",
        "flush table bridge cni_py",
        "flush chain inet cni_py published4",
        "flush map inet cni_py any4",
        "flush map inet cni_py specific4",
        "flush map inet cni_py claims4",
        "flush map inet cni_py claims6",
        "delete map inet cni_py claims4",
        "flush map inet cni_py hairpin4",
        "flush map inet cni_py masquerade6",
        "flush set inet cni_py local_links",
        "flush set bridge cni_py spoof_allowed",
        "flush chain inet cni_py outside_192.0.2.0_24",
    ],
)
def test_what_was_removed_comes_back(machine: Lab, network: Guarded, damage: str) -> None:
    before = ruleset(machine)
    nft(machine, damage)
    assert ruleset(machine) != before
    restore(machine)
    assert ruleset(machine) == before
    assert reached(machine) == ["c1"] * 4


@pytest.mark.parametrize(
    "damage",
    [
        "delete chain inet cni_py policies",
        "flush map inet cni_py conditional_any4; delete chain inet cni_py shared4",
    ],
)
def test_chain_that_is_gone_while_its_sets_are_there_comes_back(machine: Lab, empty: Guarded, damage: str) -> None:
    network = empty
    network.ports["c1"] = [mapping(WEB, 80)]
    previous = {"prevResult": network.plugins.run(machine, "ADD", "bridge", network.bridge()).json}
    firewall = {"cniVersion": "1.0.0", "name": "lab", "type": "firewall", "ingressPolicy": "same-bridge", **previous}
    shared = {**network.portmap("c1"), "ports": {f"{WEB}/tcp": {"share": True}}, **previous}
    for verb in ("ADD", "CHECK"):
        for plugin, conf in (("portmap", shared), ("firewall", firewall)):
            done = network.plugins.run(machine, verb, plugin, conf)
            assert done.status == 0, done.stdout
    before = ruleset(machine)
    nft(machine, damage)
    restore(machine)
    assert by_table(ruleset(machine)) == by_table(before)
    assert reached(machine) == ["c1"] * 4
    assert network.plugins.run(machine, "DEL", "firewall", firewall).status == 0
    network.results["c1"] = previous["prevResult"]
    network.detach("c1")
    nft(machine, "flush ruleset")  # other tests know the order of what is in a table


@pytest.mark.parametrize(
    "damage",
    [
        "flush chain inet cni_py published4; delete map inet cni_py any4",
        "flush chain inet cni_py loopback_guard; delete set inet cni_py local_links",
        "flush chain bridge cni_py prerouting; delete set bridge cni_py spoof_checked",
    ],
)
def test_add_makes_what_is_missing_of_a_table(machine: Lab, empty: Guarded, damage: str) -> None:
    network = empty
    network.attach("c1", mapping(OTHER, 80))
    before = nft(machine, "-s list ruleset").count("chain")
    nft(machine, damage)
    network.attach("c2", mapping(WEB, 80))
    assert reached(machine) == ["c2"] * 4
    assert nft(machine, "-s list ruleset").count("chain") == before
    for name in ("c1", "c2"):
        network.detach(name)
    nft(machine, "flush ruleset")


def by_table(lines: object) -> list[list[str]]:
    """The lines of each table; in which order the tables were made is no difference."""
    assert isinstance(lines, list)
    tables: list[list[str]] = []
    for line in lines:
        if line.startswith("table ") or not tables:
            tables.append([])
        tables[-1].append(line)
    return sorted(tables)


def test_rules_that_no_attachment_owns_are_told(machine: Lab, network: Guarded) -> None:
    nft(machine, "flush chain inet cni_py published4")
    lost = "table inet cni_py: rules of chain published4"
    assert restore(machine) == f"restored: {lost}\nrestored 0 of 2 attachments\n"
    assert restore(machine) == "restored 0 of 2 attachments\n"
    nft(machine, "flush chain inet cni_py published4")
    done = machine["host"].run([str(COMMAND), "restore", "--json"], check=True)
    assert json.loads(done.stdout)["tables"] == [lost]


def test_rules_of_others_in_our_chains_go_and_their_chains_stay(machine: Lab, network: Guarded) -> None:
    nft(machine, "insert rule inet cni_py published4 drop")
    nft(machine, "add chain inet cni_py theirs")
    conf = {**network.portmap("c1"), "prevResult": network.results["c1"]}
    assert network.plugins.run(machine, "CHECK", "portmap", conf, "c1").status == 0  # nothing of ours is missing
    said = "table inet cni_py: chain published4 without rules of others"
    assert restore(machine) == f"restored: {said}\nrestored 0 of 2 attachments\n"
    assert restore(machine) == "restored 0 of 2 attachments\n"
    nft(machine, "delete chain inet cni_py theirs")


@pytest.mark.parametrize(
    ("plugin", "damage", "lost"),
    [
        ("portmap", "flush chain inet cni_py published6", "inet cni_py has lost rules of chain published6"),
        ("bridge", "flush chain inet cni_py masquerade_all", "inet cni_py has lost rules of chain masquerade_all"),
        ("bridge", "flush chain bridge cni_py prerouting", "bridge cni_py has lost rules of chain prerouting"),
        ("bridge", "flush chain inet cni_py outside_192.0.2.0_24", "has lost rules of chain outside_192.0.2.0_24"),
        ("portmap", "flush table inet cni_py", "has lost rules of chain loopback_guard, rules of chain prerouting"),
    ],
)
def test_check_sees_rules_that_no_attachment_owns(
    machine: Lab, network: Guarded, plugin: str, damage: str, lost: str
) -> None:
    conf = network.portmap("c1") if plugin == "portmap" else network.bridge()
    conf["prevResult"] = network.results["c1"]
    assert network.plugins.run(machine, "CHECK", plugin, conf, "c1").status == 0
    nft(machine, damage)
    done = network.plugins.run(machine, "CHECK", plugin, conf, "c1")
    assert done.status == 1
    assert lost in done.json["msg"]
    assert done.json["msg"].endswith("(`cni-py restore` puts it back)")
    restore(machine)
    assert network.plugins.run(machine, "CHECK", plugin, conf, "c1").status == 0


def test_traffic_flows_again_and_del_leaves_nothing(machine: Lab, empty: Guarded) -> None:
    network = empty
    network.attach("c1", mapping(WEB, 80))
    network.detach("c1")
    before = machine.snapshot("host")
    network.attach("c1", mapping(WEB, 80), mapping(NAMED, 80, host_ip=HOST4), *(mapping(FIRST + n, 80) for n in (1, 2)))
    network.attach("c2", mapping(OTHER, 80))
    nft(machine, "flush ruleset")
    restore(machine)
    assert reached(machine, WEB) == ["c1"] * 4
    assert reached(machine, OTHER) == ["c2"] * 4
    assert machine.fetch("client", HOST4, NAMED).name == "c1"
    assert machine.fetch("c2", HOST4, WEB).name == "c1"
    network.detach("c1")
    network.detach("c2")
    ignored = ("addresses", "routes", "sysctls", "links", "files")  # host-local's memory, and that of the bridge
    after = machine.snapshot("host")
    for name in ignored:
        before.pop(name), after.pop(name)
    for state in (before, after):
        state["nftables"] = by_table(state["nftables"])
    assert not difference(before, after)
    assert json.loads(nft(machine, "-j list map inet cni_py claims4"))["nftables"][1]["map"].get("elem") is None
    assert "local_links" in nft(machine, "list ruleset")


def test_it_says_what_it_put_back_and_then_that_nothing_is_missing(machine: Lab, network: Guarded) -> None:
    assert restore(machine).strip() == "restored 0 of 2 attachments"
    before = ruleset(machine)
    nft(machine, "flush ruleset")
    text = restore(machine)
    assert re.search(r"^lab/c1/eth0 portmap: restored: host: nft: publish .*8080", text, re.MULTILINE)
    assert re.search(r"^lab/c2/eth0 bridge: restored: .*masquerade", text, re.MULTILINE)
    assert text.endswith("restored 2 of 2 attachments\n")
    assert restore(machine, "--quiet") == ""
    assert ruleset(machine) == before


def test_the_guard_of_the_hosts_loopback_comes_back_where_route_localnet_is_on(machine: Lab, network: Guarded) -> None:
    nft(machine, "flush ruleset")
    put_back = report(machine)["c1", "portmap"]["putBack"]
    assert any("127.0.0.0/8" in text for text in put_back)
    assert "cni0" in nft(machine, "list set inet cni_py local_links")


def test_a_port_that_another_container_took_is_an_error_and_the_others_go_on(machine: Lab, empty: Guarded) -> None:
    machine.add_container("c3")
    network = empty
    network.attach("c1", mapping(WEB, 80))
    network.attach("c2", mapping(OTHER, 80))
    nft(machine, "flush ruleset")
    network.attach("c3", mapping(WEB, 80))
    found = report(machine, status=1)
    assert "in use by lab/c3/eth0" in found["c1", "portmap"]["errors"][0]
    assert not found["c1", "bridge"]["errors"]
    assert not found["c3", "portmap"]["putBack"]
    assert machine.fetch("client", HOST4, OTHER).name == "c2"
    assert "lab/c1/eth0 portmap: error: " in restore(machine, "--quiet", status=1)
    network.detach("c3")
    assert not report(machine)["c1", "portmap"]["errors"]
    assert reached(machine) == ["c1"] * 4
    for name in ("c1", "c2"):
        network.detach(name)
    machine.remove("c3")


def test_who_held_a_port_first_holds_it_again(machine: Lab, plugins: Plugins, empty: Guarded) -> None:
    """Two networks of one container have the same ports: the second waits for the first."""
    first = empty
    first.attach("c1", mapping(WEB, 80))
    result = first.results["c1"]
    second = {**first.portmap("c1"), "name": "second", "prevResult": result}
    assert plugins.run(machine, "ADD", "portmap", second, "c1").status == 0
    nft(machine, "flush ruleset")
    report(machine)
    assert reached(machine) == ["c1"] * 4
    assert "lab/c1/eth0" in nft(machine, "list map inet cni_py claims4")
    first.detach("c1")
    assert "second/c1/eth0" in nft(machine, "list map inet cni_py claims4")
    assert plugins.run(machine, "DEL", "portmap", second, "c1").status == 0
    assert "second" not in nft(machine, "list ruleset")


def test_a_dead_attachment_and_an_unfinished_one_are_left_out(machine: Lab, network: Guarded) -> None:
    machine.add_container("c4")
    network.attach("c4", mapping(8094, 80))
    machine.remove("c4")
    folder = (
        machine["host"]
        .run(["sh", "-c", "grep -l c2 /run/cni-py/attachments/*/portmap.json"], check=True)
        .stdout.strip()
    )
    machine["host"].run(["mv", folder, folder.replace(".json", ".adding")], check=True)
    nft(machine, "flush ruleset")
    found = report(machine)
    assert found["c4", "portmap"]["skipped"] == "its network namespace is gone"
    assert found["c2", "portmap"]["skipped"].startswith("its ADD is still running")
    assert reached(machine) == ["c1"] * 4
    assert str(8094) not in nft(machine, "list ruleset")
    machine["host"].run(["mv", folder.replace(".json", ".adding"), folder], check=True)
    restore(machine)
    network.detach("c4")


def test_what_the_kernel_refuses_for_one_does_not_stop_the_others(machine: Lab, network: Guarded) -> None:
    """All are one transaction; where it is refused, it is tried without those that it is refused for."""
    path = (
        machine["host"]
        .run(["sh", "-c", "grep -l c2 /run/cni-py/attachments/*/portmap.json"], check=True)
        .stdout.strip()
    )
    machine["host"].run(["sed", "-i.kept", 's/"conditions4":""/"conditions4":"no such condition"/', path], check=True)
    nft(machine, "flush ruleset")
    found = report(machine, status=1)
    assert "no such condition" in found["c2", "portmap"]["errors"][0]
    assert found["c2", "bridge"]["putBack"]
    assert reached(machine) == ["c1"] * 4
    machine["host"].run(["mv", f"{path}.kept", path], check=True)
    assert not report(machine)["c2", "portmap"]["errors"]


def test_a_call_that_works_on_an_attachment_is_waited_for(machine: Lab, network: Guarded) -> None:
    folder = machine["host"].run(["sh", "-c", "grep -l c2 /run/cni-py/attachments/*/portmap.json"], check=True).stdout
    lock = f"/run/cni-py/lock/attachment-{folder.split('/')[-2]}-portmap"
    with machine["host"].popen(["flock", lock, "sh", "-c", "echo; sleep 0.5"], stdout=subprocess.PIPE) as call:
        assert call.stdout is not None
        call.stdout.readline()
        nft(machine, "flush ruleset")
        assert report(machine)["c2", "portmap"]["putBack"]
        assert call.poll() is not None


def test_a_damaged_record_costs_the_others_nothing(machine: Lab, network: Guarded) -> None:
    path = (
        machine["host"]
        .run(["sh", "-c", "grep -l c2 /run/cni-py/attachments/*/portmap.json"], check=True)
        .stdout.strip()
    )
    machine["host"].run(["sed", "-i.kept", 's/"addresses":\\[[^]]*\\]/"addresses":["nowhere"]/', path], check=True)
    nft(machine, "flush ruleset")
    found = report(machine, status=1)
    assert found["c2", "portmap"]["errors"]
    assert reached(machine) == ["c1"] * 4
    machine["host"].run(["mv", f"{path}.kept", path], check=True)
    restore(machine)


def test_a_record_that_cannot_be_read_is_told_by_all(machine: Lab, network: Guarded) -> None:
    """Half a file names nobody: another record of the attachment does, as long as there is one."""
    host = machine["host"]
    path = host.run(["sh", "-c", "grep -l c2 /run/cni-py/attachments/*/portmap.json"], check=True).stdout.strip()
    other = path.replace("portmap", "bridge")
    for name in (path, other):
        host.run(["sh", "-c", f"cp {name} {name}.kept"], check=True)
    host.run(["truncate", "-s", "100", path], check=True)
    nft(machine, "flush ruleset")
    found = report(machine, status=1)
    assert "portmap.json: not a record" in found["c2", "portmap"]["errors"][0]
    assert found["c2", "bridge"]["putBack"]
    assert reached(machine) == ["c1"] * 4
    shown = json.loads(host.run([str(COMMAND), "show", "--json"], check=True).stdout)
    assert any("lab/c2/eth0 cannot all be read" in gap["what"] for gap in shown["gaps"])
    explained = host.run([str(COMMAND), "explain", str(OTHER)])
    assert explained.returncode == 1
    assert "then start its container anew" in " ".join(explained.stdout.split())

    host.run(["truncate", "-s", "100", other], check=True)
    assert "error: the attachment record " in restore(machine, "--quiet", status=1)
    said = json.loads(host.run([str(COMMAND), "restore", "--json"]).stdout)
    assert sorted(text.split()[3] for text in said["unreadable"]) == [other, path]
    for name in (path, other):
        host.run(["mv", f"{name}.kept", name], check=True)
    restore(machine)
    assert reached(machine, OTHER) == ["c2"] * 4


def test_without_root_it_says_so(machine: Lab) -> None:
    """A nobody who may read everything: the checkout may lie below a folder that is root's alone."""
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reading]
    done = machine["host"].run([*nobody, str(COMMAND), "restore"])
    assert done.returncode == 3, done.stderr
    assert "root" in done.stderr


def test_rules_of_iptables_come_back_too(empty: Guarded) -> None:
    host = empty.lab["host"]
    host.run(["mkdir", "-p", "/etc/cni-py"], check=True)
    host.run(["tee", "/etc/cni-py/config.yaml"], input="backend: iptables\n", check=True)
    try:
        empty.attach("c1", mapping(WEB, 80))
        before = host.run(["iptables", "-t", "nat", "-S"], check=True).stdout
        assert empty.lab.fetch("client", HOST4, WEB).name == "c1"
        for words in ("-F", "-X"):
            host.run(["iptables", "-t", "nat", words], check=True)
        with pytest.raises(ConnectionRefusedError):
            empty.lab.fetch("client", HOST4, WEB)
        host.run([str(COMMAND), "restore"], check=True)
        assert sorted(host.run(["iptables", "-t", "nat", "-S"], check=True).stdout.split()) == sorted(before.split())
        assert empty.lab.fetch("client", HOST4, WEB).name == "c1"
    finally:
        host.run(["rm", "/etc/cni-py/config.yaml"], check=True)
