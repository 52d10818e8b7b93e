"""DEL with a configuration that ADD refuses, or that was damaged since: it succeeds, and everything of the ADD is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runtime import Outcome

from tests.plugins.bridge_network import BridgeNetwork, Conf
from tests.plugins.conftest import need_kind

pytestmark = pytest.mark.ours_alone

COMMON = ("ipam", "dns", "args", "runtimeConfig", "capabilities", "prevResult", "cni.dev/valid-attachments")
BRIDGE = (
    "bridge isGateway isDefaultGateway forceAddress ipMasq ipMasqBackend mtu hairpinMode promiscMode vlan vlanTrunk "
    "preserveDefaultVlan macspoofchk enabledad disableContainerInterface portIsolation"
)
PORTMAP = (
    "backend snat masqAll markMasqBit externalSetMarkChain conditionsV4 conditionsV6 userlandProxy ports "
    "directAccess hostListener"
)
KEYS = {
    "bridge": BRIDGE.split(),
    "ptp": ["ipMasq", "ipMasqBackend", "mtu"],
    "macvlan": ["master", "mode", "mtu", "mac", "bcqueuelen", "linkInContainer"],
    "host-device": ["device", "hwaddr", "kernelpath", "pciBusID"],
    "loopback": [],
    "portmap": [*PORTMAP, "ports", "directAccess", "hostListener"],
    "firewall": ["backend", "iptablesAdminChainName", "firewalldZone", "ingressPolicy"],
    "tuning": ["mac", "mtu", "promisc", "allmulti", "txQLen", "sysctl", "dataDir"],
    "bandwidth": ["ingressRate", "ingressBurst", "egressRate", "egressBurst", "unshapedSubnets", "shapedSubnets"],
    "sbr": ["table", "gateways", "addSourceHints"],
    "vrf": ["vrfname", "table"],
    "static": [],
    "host-local": [],
}
VALUES: tuple[Any, ...] = (
    "x",
    -7,
    1e300,
    True,
    ["\0"],
    [[{"a": {}}], 5, None],
    {"type": 5, "dataDir": [], "ips": [{"address": "none"}, 5], "interfaces": "x", "cni": 3, "portMappings": 5, "": ""},
    {
        "type": "../x",
        "dataDir": "\0",
        "cniVersion": "9.9",
        "ips": "x",
        "interfaces": [{"name": 5}],
        "portMappings": [{"hostPort": 0}],
    },
)
IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.251.0.0/24"}]]}
GOOD: dict[str, Conf] = {
    "bridge": {"bridge": "br-any", "isGateway": True, "ipMasq": True, "macspoofchk": True, "ipam": IPAM},
    "ptp": {"ipMasq": True, "ipam": IPAM},
    "macvlan": {"master": "lan0", "ipam": IPAM},
    "host-device": {"device": "spare0", "ipam": IPAM},
    "loopback": {},
    "portmap": {"runtimeConfig": {"portMappings": [{"hostPort": 28080, "containerPort": 80, "protocol": "tcp"}]}},
    "firewall": {"ingressPolicy": "isolated"},
    "tuning": {"mac": "c2:11:22:33:44:55", "mtu": 1400},
    "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 800_000, "egressRate": 1_000_000, "egressBurst": 800_000},
    "sbr": {},
    "vrf": {"vrfname": "blue"},
    "static": {"ipam": {"type": "static", "addresses": [{"address": "10.251.0.9/24"}]}},
    "host-local": {"ipam": IPAM},
}
CHAINED = ("portmap", "firewall", "tuning", "bandwidth", "sbr", "vrf")


class Runner:
    """One plugin for container a of a network; behind bridge if it is a chained one."""

    def __init__(self, net: BridgeNetwork, plugin: str) -> None:
        self.net = net
        self.plugin = plugin
        self.conf: Conf = {"cniVersion": "1.0.0", "name": net.name, "type": plugin, **GOOD[plugin]}
        if plugin == "host-device":
            net.lab["host"].run(["ip", "link", "add", "spare0", "type", "veth", "peer", "name", "spare1"])
        if plugin in CHAINED:
            self.conf["prevResult"] = net.well("ADD", net.conf()).json

    def run(self, verb: str, conf: Conf, **env: str | None) -> Outcome:
        return self.net.plugins.run(self.net.lab, verb, self.plugin, conf, self.net.a, None, "eth0", **env)

    def well(self, verb: str, conf: Conf, **env: str | None) -> None:
        outcome = self.run(verb, conf, **env)
        assert outcome.status == 0, f"{verb} {json.dumps(conf)[:500]}: {outcome.stdout}{outcome.stderr}"
        assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("plugin", KEYS)
def test_a_del_reads_what_it_can_and_undoes_the_add(net: BridgeNetwork, plugin: str) -> None:
    need_kind(net.lab, plugin)
    runner = Runner(net, plugin)
    runner.well("ADD", runner.conf)
    runner.well("DEL", runner.conf)
    before = net.state()
    for number, value in enumerate(VALUES):
        hostile = {**runner.conf, **dict.fromkeys([*COMMON, *KEYS[plugin]], value)}
        runner.well("ADD", runner.conf)
        args = ["", "x", "A=B", "MAC=x", "IP=x;GATEWAY=y", "IgnoreUnknown=x", ";", "="][number]
        runner.well("DEL", hostile, CNI_ARGS=args)
        assert net.state() == before, json.dumps(value)
    if plugin in CHAINED:
        net.well("DEL", net.conf())


@pytest.mark.parametrize("plugin", KEYS)
def test_a_del_after_an_add_that_was_refused_succeeds(net: BridgeNetwork, plugin: str) -> None:
    runner = Runner(net, plugin)
    for key in [*COMMON, *KEYS[plugin], "log"]:
        hostile = {**runner.conf, key: [{"x": -1}] if key == "ipam" else 5}
        runner.well("DEL", hostile)


@pytest.mark.parametrize("plugin", ["firewall", "bandwidth"])
def test_a_version_that_a_plugin_alone_does_not_speak_is_no_reason_to_fail(net: BridgeNetwork, plugin: str) -> None:
    """The bridge before it does, so that it has done its ADD: libcni comes to its DEL when this one succeeds."""
    runner = Runner(net, plugin)
    old = {**runner.conf, "cniVersion": "0.2.0"}
    assert runner.run("ADD", old).code == 1
    runner.well("DEL", old)
    net.well("DEL", net.conf())


def test_a_del_of_a_name_that_no_interface_has_succeeds(net: BridgeNetwork) -> None:
    """libcni lets "%" through, which the kernel refuses."""
    for plugin in KEYS:
        conf = {"cniVersion": "1.0.0", "name": net.name, "type": plugin, **GOOD[plugin]}
        outcome = net.plugins.run(net.lab, "DEL", plugin, conf, net.a, None, "eth%d")
        assert (outcome.status, outcome.stdout, outcome.stderr) == (0, "", ""), plugin


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.1.0"])
def test_a_prev_result_of_another_version_is_read_all_the_same(net: BridgeNetwork, version: str) -> None:
    runner = Runner(net, "portmap")
    ips = {"ips": [{"version": "4", "address": "10.251.0.2/24"}], "ip4": {"ip": "10.251.0.2/24"}}
    runner.well("DEL", {**runner.conf, "prevResult": {"cniVersion": version, **ips}})


@pytest.mark.parametrize("type_", ["nosuch", "a/b", "", "bridge", 5, None, ["host-local"]])
def test_addresses_are_given_back_whatever_ipam_type_says_by_then(net: BridgeNetwork, type_: object) -> None:
    for ipam in ({"type": type_}, type_):
        net.well("ADD", net.conf())
        assert net.reservations()
        assert net.run("DEL", {**net.conf(), "ipam": ipam}).status == 0
        assert not net.reservations()


def test_an_ipam_type_that_names_no_program_is_like_one_that_is_not_there(net: BridgeNetwork, tmp_path: Path) -> None:
    """The README of the Go plugins lies in /opt/cni/bin."""
    (tmp_path / "README.md").write_text("no program")
    path = f"{tmp_path}:{net.plugins.directory}"
    conf = {**net.conf(), "ipam": {"type": "README.md"}}
    assert net.run("ADD", conf, CNI_PATH=path).status == 1
    net.well("DEL", conf, CNI_PATH=path)
    net.well("ADD", net.conf())
    net.well("DEL", conf, CNI_PATH=path)
    assert not net.reservations()
    held = {"cniVersion": "1.0.0", "ips": [{"address": "10.251.0.2/24"}]}
    assert net.run("DEL", {**conf, "prevResult": held}, CNI_PATH=path).status == 1


def test_an_address_that_would_leak_is_an_error(net: BridgeNetwork) -> None:
    """Of an IPAM plugin that is not there any more, which prevResult shows to have given one."""
    held = {"cniVersion": "1.0.0", "ips": [{"address": "10.251.0.2/24"}]}
    outcome = net.run("DEL", {**net.conf(), "ipam": {"type": "nosuch"}, "prevResult": held})
    assert (outcome.status, "10.251.0.2/24" in outcome.json["msg"]) == (1, True)
    assert net.run("DEL", {**net.conf(), "ipam": {"type": "nosuch"}}).status == 0


@pytest.mark.parametrize(
    ("conf", "code"),
    [("[]", 6), ("{", 6), ("", 6), ('{"name":"a b"}', 7), ("{}", 7), ('{"name":"a","cniVersion":"9.9.9"}', 1)],
)
def test_what_tells_no_attachment_is_still_an_error(net: BridgeNetwork, conf: str, code: int) -> None:
    for plugin in KEYS:
        assert net.plugins.run(net.lab, "DEL", plugin, conf, net.a).code == code, plugin
