"""The executable sbr: by which interface a container's packets leave, and which rules and routes it has for that."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from lab import ANSWER_S, Lab
from runtime import Plugins

from tests.conftest import GO
from tests.faults.crowd import Job, run_all
from tests.plugins.veth_attachment import Conf, VethAttachment

# An address that both routers have, so that the answer tells who was asked.
FAR = {4: "203.0.113.1", 6: "2001:db8:ff::1"}
PORT = 80
NET = {"eth0": {4: "192.0.2", 6: "2001:db8:2:"}, "eth1": {4: "198.51.100", 6: "2001:db8:3:"}}
LENGTH = {4: 24, 6: 64}


class TwoInterfaces(VethAttachment):
    """A container whose eth0 and eth1 lead to two routers, each the gateway of its interface."""

    def __init__(self, lab: Lab, plugins: Plugins) -> None:
        super().__init__(lab, plugins, "sbr")
        self.add_veth("eth1", "02:00:00:00:00:04")
        for ifname in NET:
            router = self.router(ifname)
            lab.add_container(router)
            veth = f"v{self.number}e{ifname[-1]}"
            self.host(f"ip link set {veth} netns {router}")
            self.at(router, f"ip link set {veth} up")
            self.at(router, "ip link set lo up")
            for family, address in FAR.items():
                nodad = ["nodad"] if family == 6 else []
                self.at(router, " ".join(["ip address add", address, "dev lo", *nodad]))
                end = f"{self.gateway(ifname, family)}/{LENGTH[family]}"
                self.at(router, " ".join(["ip address add", end, "dev", veth, *nodad]))
                own = f"{self.address(ifname, family)}/{LENGTH[family]}"
                self.inside(" ".join(["ip address add", own, "dev", ifname, *nodad]))
                lab.serve(router, PORT, address=address)
        self.before = self.routes()

    def at(self, node: str, command: str) -> None:
        self._do(node, command)

    def router(self, ifname: str) -> str:
        return f"{self.id}-{ifname}"

    def address(self, ifname: str, family: int) -> str:
        return f"{NET[ifname][family]}{':' if family == 6 else '.'}2"

    def gateway(self, ifname: str, family: int) -> str:
        return f"{NET[ifname][family]}{':' if family == 6 else '.'}1"

    def result(self, version: str = "1.0.0", ifname: str = "eth0") -> Conf:
        result = super().result(version, ifname)
        result["ips"] = [
            {
                "address": f"{self.address(ifname, family)}/{LENGTH[family]}",
                "gateway": self.gateway(ifname, family),
                "interface": 1,
            }
            for family in (4, 6)
        ]
        return result

    def of(self, ifname: str, **keys: object) -> Conf:
        return {**self.conf(), "name": f"{self.network}-{ifname}", "prevResult": self.result(ifname=ifname), **keys}

    def routes(self) -> list[str]:
        """All rules and routes but the kernel's own of the table local, with their attributes."""
        found = []
        for family in ("-4", "-6"):
            found += self.inside(f"ip {family} rule").splitlines()
            shown = self.inside(f"ip {family} -details route show table all").splitlines()
            found += [line.strip() for line in shown if " table local " not in f"{line} "]
        return sorted(found)

    def asked(self, ifname: str, family: int, timeout_s: float = ANSWER_S) -> str:
        """Which router gets what comes from the interface's address."""
        source = self.address(ifname, family)
        try:
            return str(self.lab.fetch(self.id, FAR[family], PORT, source=source, timeout_s=timeout_s).name)
        except OSError:
            return ""

    def close(self) -> None:
        for ifname in NET:
            self.lab.remove(self.router(ifname))
        super().close()


@pytest.fixture
def net(lab: Lab, plugins: Plugins) -> TwoInterfaces:
    return TwoInterfaces(lab, plugins)


def default_routes(net: TwoInterfaces, *words: str) -> None:
    """Default routes by eth0, as the plugins before leave them, with these attributes."""
    for family in (4, 6):
        net.inside(" ".join([f"ip -{family} route add default via {net.gateway('eth0', family)} dev eth0", *words]))


def test_what_comes_from_an_address_leaves_by_its_interface(net: TwoInterfaces) -> None:
    default_routes(net)
    before = net.routes()
    for family in (4, 6):
        assert net.asked("eth0", family) == net.router("eth0")
        assert net.asked("eth1", family, 0.4) != net.router("eth1")  # by the one default route
    for ifname in ("eth1", "eth0"):
        conf = net.of(ifname)
        assert {"dns": {}, **net.well("ADD", conf, ifname).json} == {"dns": {}, **conf["prevResult"]}
    for ifname in NET:
        for family in (4, 6):
            assert net.asked(ifname, family) == net.router(ifname)
        net.well("CHECK", net.of(ifname), ifname)
    for ifname in NET:
        net.well("DEL", net.of(ifname), ifname)
    rules = [line for line in net.routes() if "lookup" in line]
    assert rules == [line for line in before if "lookup" in line]
    if net.plugins.whose != GO:
        assert net.routes() == before
        assert not net.records()


@pytest.mark.ours_alone
def test_routes_keep_their_attributes_in_the_table_and_back(net: TwoInterfaces) -> None:
    v4, v6 = net.gateway("eth0", 4), net.gateway("eth0", 6)
    default_routes(net, "mtu 1400 advmss 1300 metric 50 proto static")
    for route in (
        f"-4 route add 10.9.0.0/16 via {v4} dev eth0 src {net.address('eth0', 4)} tos 0x10 metric 7",
        "-4 route add 10.8.0.0/16 via 10.77.0.1 dev eth0 onlink",
        "-4 route add 10.7.0.0/16 dev eth0 scope link initcwnd 20",
        f"-6 route add 2001:db8:9::/48 via {v6} dev eth0 pref high hoplimit 9",
        "-6 route add 2001:db8:8::/48 via fe80::77 dev eth0",
        "-4 route add 10.6.0.0/16 nexthop dev eth0 nexthop dev eth1",  # somebody's own, of both interfaces
    ):
        net.inside(f"ip {route}")
    before = net.routes()
    net.well("ADD", net.of("eth0"))
    moved = [line for line in before if " dev eth0 " in f"{line} " and "nexthop" not in line]
    there = net.routes()
    for line in moved:
        for table in (100, 101):
            wanted = line.replace(" table main ", f" table {table} ", 1)
            mine = table == (101 if ":" in line else 100) or (" via " not in line and " src " not in line)
            assert (wanted in there) == mine, line
    assert not set(there) & set(moved)
    net.well("CHECK", net.of("eth0"))
    net.well("DEL", net.of("eth0"))
    assert net.routes() == before


@pytest.mark.ours_alone
def test_equal_routes_stay_in_order_and_the_result_adds_no_default_route(net: TwoInterfaces) -> None:
    """IPv4 takes the first of equal routes, IPv6 each in turn. The default route has a metric and MTU, and is not hidden."""
    for family, subnet in ((4, "192.0.2.0/24"), (6, "2001:db8:2::/64")):
        gateway = net.gateway("eth0", family)
        for host in "198":
            net.inside(f"ip -{family} route prepend default via {gateway[:-1]}{host} dev eth0 metric 50 mtu 1400")
        net.inside(f"ip -{family} route prepend {subnet} via {gateway} dev eth0 metric {0 if family == 4 else 1024}")

    def shown(family: int, table: str) -> list[str]:
        lines = net.inside(f"ip -{family} route show table {table}").splitlines()
        return [line.strip() for line in lines if "fe80" not in line and " eth1 " not in line]

    before = {family: shown(family, "main") for family in (4, 6)}
    assert "via 192.0.2.8" in before[4][0]
    net.well("ADD", net.of("eth0"))
    assert shown(4, "100") == [line for line in before[4] if "default" in line or "192.0.2.0/24" in line]
    assert shown(6, "101") == [line for line in before[6] if not line.startswith("192.0.2.")]
    net.well("CHECK", net.of("eth0"))
    net.well("DEL", net.of("eth0"))
    assert {family: shown(family, "main") for family in (4, 6)} == before


@pytest.mark.ours_alone
def test_one_of_two_ipv6_default_routes_that_the_kernel_has_joined(net: TwoInterfaces) -> None:
    default_routes(net)
    net.inside(f"ip -6 route append default via {net.gateway('eth1', 6)} dev eth1 metric 1024")
    before = net.routes()
    assert "nexthop" in " ".join(before)
    for ifname in NET:
        net.well("ADD", net.of(ifname), ifname)
    assert {ifname: net.asked(ifname, 6) for ifname in NET} == {ifname: net.router(ifname) for ifname in NET}
    for ifname in NET:
        net.well("DEL", net.of(ifname), ifname)
    assert sorted(net.routes()) == sorted(before)


@pytest.mark.ours_alone
@pytest.mark.parametrize("at_hand", ["record", "no namespace", "address", "prevResult"])
def test_del_leaves_neither_rule_nor_table(net: TwoInterfaces, at_hand: str) -> None:
    default_routes(net)
    net.inside("ip rule add from 192.0.2.77 lookup 77")  # somebody else's
    before = net.routes()
    conf = net.of("eth0")
    net.well("ADD", conf)
    if at_hand in ("address", "prevResult"):
        net.host("rm -rf /run/cni-py/attachments")
    if at_hand == "address":
        del conf["prevResult"]
    if at_hand == "prevResult":
        net.inside("ip address flush dev eth0")
    for _ in range(2):
        outcome = net.run("DEL", conf, "" if at_hand == "no namespace" else None)
        assert (outcome.status, outcome.stdout) == (0, "")
    left = [line for line in net.routes() if " table main " not in line]
    assert left == [line for line in before if "lookup" in line]
    if at_hand in ("record", "no namespace"):
        assert net.routes() == before


@pytest.mark.ours_alone
def test_del_removes_what_the_go_plugin_made(net: TwoInterfaces, theirs: Plugins) -> None:
    default_routes(net)
    conf = net.of("eth0")
    assert net.run("ADD", conf, plugins=theirs).status == 0
    net.well("CHECK", conf)
    net.well("DEL", conf)
    assert not [line for line in net.routes() if " table 10" in line or "lookup 10" in line]


@pytest.mark.ours_alone
@pytest.mark.parametrize("netns", ["", "/run/netns/nosuch"])
def test_del_without_a_namespace_makes_nothing(net: TwoInterfaces, netns: str) -> None:
    assert net.run("DEL", net.of("eth0"), netns).status == 0
    assert "nosuch" not in net.host("ls /run/netns")


@pytest.mark.ours_alone
def test_a_failed_add_puts_the_routes_back(net: TwoInterfaces) -> None:
    """The gateway of one family cannot be reached, which is seen when the tables of the other are filled."""
    default_routes(net)
    before = net.routes()
    refused = net.run("ADD", net.of("eth0", gateways=["2001:db8:77::1"]))
    assert (refused.code, "2001:db8:77::1" in refused.json["msg"]) == (5, True)
    assert net.routes() == before
    assert not net.records()


@pytest.mark.ours_alone
def test_an_add_that_comes_twice_is_refused_and_changes_nothing(net: TwoInterfaces) -> None:
    default_routes(net)
    before = net.routes()
    net.well("ADD", net.of("eth0"))
    made = net.routes()
    assert "already" in net.run("ADD", net.of("eth0")).json["msg"]
    assert net.routes() == made
    net.well("DEL", net.of("eth0"))
    assert net.routes() == before


@pytest.mark.ours_alone
def test_check_misses_a_rule_and_a_route(net: TwoInterfaces) -> None:
    conf = net.of("eth0")
    assert net.run("CHECK", conf).code == 999
    default_routes(net)
    net.well("ADD", conf)
    for spoil, mend, told in (
        ("rule delete lookup 100", f"rule add from {net.address('eth0', 4)} lookup 100", "rule"),
        ("-6 route delete default table 101", "", "default"),
    ):
        net.inside(f"ip {spoil}")
        outcome = net.run("CHECK", conf)
        assert (outcome.code, told in outcome.json["msg"]) == (999, True)
        if mend:
            net.inside(f"ip {mend}")
            net.well("CHECK", conf)


@pytest.mark.ours_alone
def test_gc_removes_those_that_are_not_listed(net: TwoInterfaces) -> None:
    default_routes(net)
    before = net.routes()
    conf = net.of("eth0", cniVersion="1.1.0")
    conf["prevResult"]["cniVersion"] = "1.1.0"
    net.well("ADD", conf)
    made = net.routes()
    net.well("GC", {**conf, "cni.dev/valid-attachments": [{"containerID": net.id, "ifname": "eth0"}]})
    assert net.routes() == made
    net.well("GC", {**conf, "cni.dev/valid-attachments": []})
    assert net.routes() == before


@pytest.mark.ours_alone
def test_a_table_of_ones_own(net: TwoInterfaces) -> None:
    default_routes(net)
    before = net.routes()
    net.well("ADD", net.of("eth0", table=500))
    made = [line.partition(":")[2].split() for line in net.routes() if line not in before]
    assert made == [["from", net.address("eth0", family), "lookup", "500"] for family in (4, 6)]
    net.well("DEL", net.of("eth0", table=500))
    assert net.routes() == before


@pytest.mark.ours_alone
def test_gateways_and_hints(net: TwoInterfaces) -> None:
    default_routes(net)
    other = f"{NET['eth0'][4]}.9"
    net.well("ADD", net.of("eth0", gateways=[other], addSourceHints=True))
    made = net.inside("ip route show table all")
    assert f"default via {other} dev eth0 table 100" in made
    assert f"{NET['eth0'][4]}.0/24 dev eth0 scope link src {net.address('eth0', 4)}" in made
    main = net.inside("ip -6 route show table main")
    assert f"src {net.address('eth0', 6)}" in main
    assert "default" not in main


@pytest.mark.ours_alone
def test_two_interfaces_at_once_get_different_tables(net: TwoInterfaces) -> None:
    for _ in range(3):
        assert sorted(tables_at_once(net)) == ["100", "101", "102", "103"]
        for ifname in NET:
            net.well("DEL", net.of(ifname), ifname)


def tables_at_once(net: TwoInterfaces) -> Iterator[str]:
    directory = net.plugins.directory
    jobs = [
        Job(
            str(directory / "sbr"),
            json.dumps(net.of(ifname)).encode(),
            {
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": net.id,
                "CNI_NETNS": net.netns,
                "CNI_IFNAME": ifname,
                "CNI_PATH": str(directory),
            },
        )
        for ifname in NET
    ]
    outcomes = net.lab["host"].python(run_all, jobs, len(jobs))
    assert not [outcome for outcome in outcomes if outcome.status], outcomes
    for family in (4, 6):
        for line in net.inside(f"ip -{family} rule").splitlines():
            if "from all" not in line:
                yield line.split()[-1]


BAD: dict[str, Conf] = {
    "three gateways": {"gateways": ["192.0.2.1", "192.0.2.3", "2001:db8:2::1"]},
    "two of a family": {"gateways": ["192.0.2.1", "192.0.2.3"]},
    "no address": {"gateways": ["x"]},
    "no table": {"table": 0},
}


@pytest.mark.ours_alone
@pytest.mark.parametrize("wrong", BAD)
def test_what_cannot_be_is_refused_before_anything_is_done(net: TwoInterfaces, wrong: str) -> None:
    assert net.run("ADD", net.of("eth0", **BAD[wrong])).code == 7
    assert net.run("STATUS", {**net.of("eth0", **BAD[wrong]), "cniVersion": "1.1.0"}).code == 50
    assert net.routes() == net.before
