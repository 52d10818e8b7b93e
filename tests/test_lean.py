"""What one call costs, told in numbers that do not depend on the machine: modules, processes, netlink messages."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import Lab
from runtime import ALL, Network, Outcome, Plugins, in_chain, mapping

from tests.faults.crowd import Job, run_all

OBSERVE = Path(__file__).with_name("observe.py")
START = "from cni_py.run import main"
PLUGINS = (
    "bandwidth",
    "bridge",
    "chain",
    "dhcp",
    "dummy",
    "firewall",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
)
FEW, MANY = 10, 200  # attachments
AT_ONCE = 4
FILL_S = 300

LOOPBACK: dict[str, object] = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}
PORTS = [mapping(8080, 80), mapping(8053, 53, "udp")]
STATIC = {"type": "static", "addresses": [{"address": "198.51.100.99/24"}], "routes": [{"dst": "203.0.113.0/24"}]}
ON_LAN: dict[str, object] = {"cniVersion": "1.0.0", "name": "lan", "type": "macvlan", "master": "lan0", "ipam": STATIC}
FIREWALL: dict[str, object] = {"cniVersion": "1.0.0", "name": "lab", "type": "firewall", "ingressPolicy": "same-bridge"}
RATES = {"ingressRate": 1_000_000, "ingressBurst": 800_000, "egressRate": 1_000_000, "egressBurst": 800_000}
BY_SOURCE: dict[str, object] = {"cniVersion": "1.0.0", "name": "lan", "type": "sbr"}
LIMITED: dict[str, object] = {"cniVersion": "1.0.0", "name": "pair", "type": "bandwidth", **RATES}
SETTINGS = {"mac": "c2:11:22:33:44:55", "sysctl": {"net.core.somaxconn": "500"}}
TUNED: dict[str, object] = {"cniVersion": "1.0.0", "name": "pair", "type": "tuning", **SETTINGS}

# Modules that a call may load, beyond what the interpreter starts with.
# _sha256 is a part of _sha2 since 3.12
C_MODULES = {
    "_json",
    "_sha256",
    "_sha2",
    "_socket",
    "_struct",
    "errno",
    "fcntl",
}
SETNS = {"_ctypes"}  # before os.setns() of 3.12


def ours(*names: str) -> set[str]:
    return {f"cni_py.{name}" for name in names}


VERSION = {"cni_py"} | ours("run", "version")
READING = (
    VERSION
    | {"_json", "gc"}
    | ours("lean", "os_lean", "skel", "errors", "protocol", "protocol.netconf", "protocol.gojson")
)
CALL = (
    READING
    | C_MODULES
    | SETNS
    | ours("addr", "files", "sha", "protocol.result", "plugins")
    | ours("attachment", "attachment.call", "attachment.context", "attachment.engine", "attachment.locks")
    | ours("attachment.naming", "attachment.records")
    | ours("kernel", "kernel.netns", "kernel.netlink")
)
LINKS = ours("interface", "interface.common", "kernel.inet", "kernel.rtnl", "kernel.sysctl")
NFTABLES = ours("nftables", "nftables.elements", "nftables.ruleset", "kernel.nf_tables", "attachment.holders")
# Which one is to be used
BACKENDS = ours("iptables", "iptables.names", "kernel.xtables", "plugins.backends", "backend", "ipam", "ipam.leaving")
FILTERS = NFTABLES | BACKENDS | {"_sha512"}
HOST_LOCAL = ours("plugins.host_local", "ipam", "ipam.ranges", "ipam.reservations")
FORWARDING = ours(
    "plugins.firewall",
    "plugins.firewall_conf",
    "nftables.policy",
    "iptables.forward",
    "iptables.forward_rules",
    "iptables.tool",
)
LAST_ON_BRIDGE = ours("nftables.bridge_users")  # what is asked before a policy goes with its last container
ATTACHING = LINKS | ours("plugins.container", "interface.addressing", "attachment.delegate", "ipam", "ipam.leaving")
CHILD = ATTACHING | ours("plugins.child", "interface.child", "plugins.static")
BY_TABLE = ours("interface.source_routing", "interface.tables", "kernel.rules")
MASQUERADING = FILTERS | ours("nftables.masquerade")
PUBLISHING = {
    *("config", "mapping", "plan", "publish", "claims", "draft", "successors", "flows", "chains"),
    *("host_clients", "index", "publication", "relay"),
}
MAY_LOAD = {
    "bridge": CALL
    | ATTACHING
    | MASQUERADING
    | HOST_LOCAL
    | ours("interface.bridge", "plugins.bridge", "plugins.bridge_conf", "plugins.bridge_plan"),
    "ptp": CALL | ATTACHING | MASQUERADING | HOST_LOCAL | ours("plugins.ptp", "interface.ptp", "interface.bridge"),
    "macvlan": CALL | CHILD | ours("plugins.macvlan", "interface.macvlan", "kernel.macvlan"),
    "ipvlan": CALL | CHILD | ours("plugins.ipvlan", "interface.ipvlan"),
    "vlan": CALL | CHILD | ours("plugins.vlan", "interface.vlan"),
    "dummy": CALL | CHILD | ours("plugins.dummy", "interface.dummy"),
    "tap": CALL | CHILD | ours("plugins.tap", "interface.tap"),
    "host-device": CALL
    | CHILD - ours("interface.child")
    | ours("plugins.host_device", "plugins.device_conf", "interface.hostdevice", "kernel.linksettings"),
    "static": CALL | ours("plugins.static"),
    "dhcp": CALL | ours("plugins.dhcp", "ipam", "ipam.dhcp", "ipam.dhcp_options", "ipam.gob"),
    "host-local": CALL | HOST_LOCAL,
    "firewall": CALL | FILTERS | FORWARDING | LAST_ON_BRIDGE | ours("kernel.rtnl", "kernel.sysctl"),
    "loopback": CALL | LINKS | ours("plugins.loopback"),
    "portmap": CALL
    | FILTERS
    | ours("plugins.portmap", "ports", *(f"ports.{name}" for name in PUBLISHING), "ipam.leaving")
    | ours("kernel.conntrack", "kernel.inet", "kernel.rtnl", "kernel.sysctl")
    | ours("kernel.sock_diag"),  # whether the host listens on the ports: a dump for each protocol and family
    "tuning": CALL
    | LINKS
    | ours("interface.tuning", "kernel.linksettings", "plugins.tuning", "plugins.tuning_conf", "plugins.tuning_plan"),
    "sbr": CALL | LINKS | BY_TABLE | ours("plugins.sbr"),
    "vrf": CALL | LINKS | BY_TABLE | ours("interface.vrf", "plugins.vrf"),
    "bandwidth": CALL
    | LINKS
    | {"_sha512"}
    | ours("interface.shaping", "kernel.tc", "plugins.bandwidth", "plugins.bandwidth_conf"),
}
JOINED = ("bridge", "portmap", "firewall", "tuning")
MAY_LOAD["chain"] = {module for plugin in JOINED for module in MAY_LOAD[plugin]} | ours(
    "plugins.chain", "plugins.chain_conf", "protocol.injection", "plugins.loopback"
)
# Netlink messages, and modules of ours, for a dual-stack network with ipMasq and two published ports
MOST = {
    ("ADD", "bridge"): (34, 51),
    ("DEL", "bridge"): (15, 46),
    ("ADD", "portmap"): (26, 52),  # four of them dumps of ranges, for each protocol and family
    ("DEL", "portmap"): (20, 50),
    ("ADD", "firewall"): (10, 40),
    ("DEL", "firewall"): (10, 42),
    ("ADD", "chain"): (73, 81),  # of bridge, portmap, firewall and tuning
    ("DEL", "chain"): (49, 81),
    ("ADD", "loopback"): (6, 31),
    ("DEL", "loopback"): (2, 31),
    ("ADD", "host-local"): (0, 28),
    ("DEL", "host-local"): (0, 27),
    ("ADD", "static"): (0, 24),
    ("DEL", "static"): (0, 24),
    ("ADD", "ptp"): (42, 50),
    ("DEL", "ptp"): (15, 49),
    ("ADD", "macvlan"): (16, 39),  # IPv4 alone
    ("DEL", "macvlan"): (5, 39),
    ("ADD", "host-device"): (12, 40),  # IPv4 alone
    ("DEL", "host-device"): (9, 40),
    ("ADD", "bandwidth"): (17, 34),  # both directions
    ("DEL", "bandwidth"): (12, 34),
    ("ADD", "sbr"): (30, 34),  # two addresses
    ("DEL", "sbr"): (20, 34),
    ("ADD", "tuning"): (2, 35),  # a MAC and a sysctl
    ("DEL", "tuning"): (1, 34),
}
# Where a child waits until the kernel has freed the interface
FORKING = {("DEL", plugin) for plugin in ("bridge", "chain", "ptp", "macvlan", "bandwidth")}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call loaded, sent and started."""

    modules: frozenset[str]
    sent: int  # netlink messages
    started: tuple[str, ...]
    filters: int = 0  # sockets of NETLINK_NETFILTER


@dataclass(frozen=True, slots=True)
class Observers:
    """Copies of our installed executables that load observe.py before they start. Only the copies have it."""

    lab: Lab
    plugins: Plugins
    report: Path

    def run(
        self, verb: str | None, plugin: str, conf: dict[str, object] | str, container_id: str = "c1"
    ) -> tuple[Outcome, Cost]:
        self.report.unlink(missing_ok=True)
        outcome = self.plugins.run(
            self.lab, "", plugin, conf, container_id, CNI_COMMAND=verb, CNI_TEST_REPORT=str(self.report)
        )
        found = ast.literal_eval(self.report.read_text())
        return outcome, Cost(frozenset(found["modules"]), found["sent"], tuple(found["started"]), found["filters"])

    def succeed(
        self, verb: str, plugin: str, conf: dict[str, object], container_id: str = "c1"
    ) -> tuple[Outcome, Cost]:
        outcome, cost = self.run(verb, plugin, conf, container_id)
        assert outcome.status == 0, f"{outcome.stdout}{outcome.stderr}"
        return outcome, cost


@pytest.fixture
def observers(lab: Lab, our_bin_dir: Path, tmp_path: Path) -> Observers:
    for name in PLUGINS:
        before, start, after = (our_bin_dir / name).read_text().partition(START)
        assert start, f"{name} does not start as this test expects"
        (tmp_path / name).write_text(f"{before}exec(open({str(OBSERVE)!r}).read())\n{start}{after}")
        (tmp_path / name).chmod(0o755)
    return Observers(lab, Plugins("ours", tmp_path, ALL), tmp_path / "report")


@pytest.fixture
def network(lab: Lab, our_bin_dir: Path) -> Network:
    """One that has had a container, so that what is shared has been made."""
    network = Network(lab, Plugins("ours", our_bin_dir, ALL))
    network.attach("c2", *PORTS)
    network.detach("c2")
    return network


def add_and_delete(observers: Observers, *chain: dict[str, object]) -> dict[tuple[str, str], Cost]:
    """What the calls of each plugin for c1 cost."""
    costs = {}
    prev_result: dict[str, object] = {}
    for verb, confs in (("ADD", chain), ("DEL", chain[::-1])):
        for conf in confs:
            plugin = str(conf["type"])
            outcome, costs[verb, plugin] = observers.succeed(verb, plugin, conf | prev_result)
            if verb == "ADD":
                prev_result = {"prevResult": outcome.json}
    return costs


def attach_and_detach(observers: Observers, network: Network) -> dict[tuple[str, str], Cost]:
    """What a chain's calls for c1 cost."""
    network.ports["c1"] = PORTS
    return add_and_delete(observers, network.bridge(), network.portmap("c1"))


@pytest.mark.parametrize("plugin", PLUGINS)
def test_version_and_a_configuration_error_load_next_to_nothing(observers: Observers, plugin: str) -> None:
    _, version = observers.run("VERSION", plugin, "")
    assert version == Cost(frozenset(VERSION), 0, ())
    outcome, refused = observers.run("ADD", plugin, {"cniVersion": "1.0.0", "name": "a b", "type": plugin})
    assert outcome.code == 7
    assert refused.modules <= READING
    assert (refused.sent, refused.started) == (0, ())
    _, banner = observers.run(None, plugin, "")
    assert banner.modules <= MAY_LOAD[plugin]
    assert (banner.sent, banner.started) == (0, ())


def test_a_call_loads_and_sends_little_and_starts_nothing(observers: Observers, network: Network) -> None:
    costs = attach_and_detach(observers, network)
    for verb in ("ADD", "DEL"):
        _, costs[verb, "loopback"] = observers.succeed(verb, "loopback", LOOPBACK)
        _, costs[verb, "host-local"] = observers.succeed(verb, "host-local", network.bridge())
        _, costs[verb, "static"] = observers.succeed(verb, "static", ON_LAN)
    for _ in range(2):  # the first makes the chains
        costs |= add_and_delete(observers, network.bridge(), FIREWALL)
    costs |= add_and_delete(observers, {**network.bridge(), "name": "pair", "type": "ptp"}, LIMITED, TUNED)
    costs |= add_and_delete(observers, ON_LAN, BY_SOURCE)
    observers.lab["host"].run(["ip", "link", "add", "spare0", "type", "veth", "peer", "name", "spare1"], check=True)
    costs |= add_and_delete(observers, {**ON_LAN, "type": "host-device", "device": "spare0"})
    costs |= add_and_delete(observers, in_chain(network.bridge(), network.portmap("c1"), FIREWALL, TUNED))
    assert costs.keys() == MOST.keys()
    for (verb, plugin), cost in costs.items():
        assert not cost.modules - MAY_LOAD[plugin], f"{verb} {plugin}"
        assert cost.started == (("os.fork",) if (verb, plugin) in FORKING else ()), f"{verb} {plugin}"
        assert cost.filters <= 1, f"{verb} {plugin}: each waits when it is closed"
        own = [module for module in cost.modules if module.startswith("cni_py")]
        messages, modules = MOST[verb, plugin]
        assert cost.sent <= messages, f"{verb} {plugin}"
        assert len(own) <= modules, f"{verb} {plugin}: {sorted(own)}"


def test_a_del_that_comes_twice_looks_through_nothing(observers: Observers, network: Network) -> None:
    """Its record is gone, and that might be a lost one: a few keys tell, whatever the host publishes."""
    attach_and_detach(observers, network)
    earlier = {"ips": [{"address": "192.0.2.77/24"}, {"address": "2001:db8:42::77/64"}]}
    for known in ({}, {"prevResult": {"cniVersion": "1.0.0", **earlier}}):
        for plugin, conf in (("portmap", network.portmap("c1")), ("bridge", network.bridge())):
            _, cost = observers.succeed("DEL", plugin, {**conf, **known})
            assert cost.modules <= MAY_LOAD[plugin] | ours("ports.leftovers", "ownership", "ipam", "ipam.reservations")
            assert not cost.started
            assert cost.sent <= MOST["DEL", plugin][0]


def test_a_call_costs_the_same_among_many_attachments(lab: Lab, observers: Observers, network: Network) -> None:
    fill(lab, network, 0, FEW)
    few = attach_and_detach(observers, network)
    fill(lab, network, FEW, MANY)
    assert attach_and_detach(observers, network) == few


def fill(lab: Lab, network: Network, start: int, end: int) -> None:
    """Attach containers, each with two published ports."""
    names = [f"n{number}" for number in range(start, end)]
    for number, name in enumerate(names, start):
        lab.add_container(name)
        network.ports[name] = [mapping(10000 + number, 80), mapping(10000 + number, 80, "udp")]
    bridged = run(lab, network, "bridge", {name: network.bridge() for name in names})
    run(lab, network, "portmap", {name: {**network.portmap(name), "prevResult": bridged[name].json} for name in names})


def run(lab: Lab, network: Network, plugin: str, confs: dict[str, dict[str, object]]) -> dict[str, Outcome]:
    """ADD for each container."""
    path = network.plugins.directory
    jobs = [
        Job(
            str(path / plugin),
            json.dumps(conf).encode(),
            {
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": name,
                "CNI_NETNS": f"/run/netns/{name}",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": str(path),
            },
        )
        for name, conf in confs.items()
    ]
    outcomes = lab["host"].python(run_all, jobs, AT_ONCE, timeout_s=FILL_S)
    assert isinstance(outcomes, list)
    assert not [outcome for outcome in outcomes if outcome.status]
    return dict(zip(confs, outcomes, strict=True))
