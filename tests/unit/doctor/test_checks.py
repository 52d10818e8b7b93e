"""Each check on hosts and facts made of values: every code is found by one damage, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cni_py.doctor import checks, everything, firewalls, text
from cni_py.doctor.values import Config, Disk, Executable, Facts, Feature, Runtime, StateFile, Unit
from cni_py.host import health, model, saved
from cni_py.host.model import Attachment, Finding, Host, Link, Namespace, Network, Pool, Port, Relay, Reservation, Route
from cni_py.version import SUPPORTED

PATH = "/etc/cni/net.d/50-net.conflist"
CONFLIST: dict[str, Any] = {
    "cniVersion": SUPPORTED[-1],
    "name": "net",
    "plugins": [
        {"type": "bridge", "bridge": "br0", "ipam": {"type": "host-local", "subnet": "192.0.2.0/24"}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv6.conf.all.disable_ipv6": "0",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.br0.route_localnet": "1",
    "net.ipv4.ip_local_port_range": "32768\t60999",
    "net.netfilter.nf_conntrack_count": "100",
    "net.netfilter.nf_conntrack_max": "65536",
}
LINKS = (
    Link(1, "lo", "", "00:00:00:00:00:00", 65536, True, "unknown"),
    Link(2, "eth0", "", "02:00:00:00:00:01", 1500, True, "up"),
    Link(3, "br0", "bridge", "02:00:00:00:00:02", 1500, True, "up", source="cni-py"),
)
PORT = Link(4, "tap0", "tun", "02:00:00:00:00:03", 1500, True, "up", master="br0")
ROUTES = (
    Route(4, 254, "0.0.0.0/0", gateway="198.51.100.1", link="eth0"),
    Route(4, 254, "192.0.2.0/24", link="br0", scope="link"),
    Route(4, 254, "198.51.100.0/24", link="eth0", scope="link"),
)
ROOT = Namespace("net:[1]", links=LINKS, routes=ROUTES, sysctls=tuple(SYSCTLS.items()))
ATTACHED = Attachment(
    "net",
    "c1",
    "eth0",
    "0123456789abcdef",
    "/run/netns/c1",
    "net:[2]",
    "alive",
    addresses=("192.0.2.2/24",),
    bridge="br0",
)
HOST = Host(
    schema=model.SCHEMA,
    version="0.1.0",
    taken=0.0,
    hostname="h",
    kernel="6.1.0-1-amd64",
    namespaces=(ROOT, Namespace("net:[2]")),
    networks=(Network("net", PATH, "1.0.0", ("bridge", "portmap"), "br0", ("192.0.2.0/24",)),),
    attachments=(ATTACHED,),
    ports=(Port("tcp", "0.0.0.0", 8080, 8080, "192.0.2.2", 80, "nat"),),
    pools=(
        Pool(
            "net", "/n", ("192.0.2.1-192.0.2.254", "2001:db8::1-2001:db8::ffff:ffff"), (253, 1 << 32), 253 + (1 << 32)
        ),
    ),
    portfwd="not running",
)
FACTS = Facts(
    root=True,
    version="0.1.0",
    python="3.11.2",
    features=(Feature("nf_tables", "yes"), Feature("macvlan", "loadable"), Feature("ifb", "unknown")),
    nft="1.0.6",
    iptables=(("iptables", "1.8.9 (nf_tables)"), ("ip6tables", "1.8.9 (nf_tables)")),
    limits=(("net.core.somaxconn", "4096"), ("fs.file-nr", "1000\t0\t100000"), ("fs.file-max", "100000")),
    configs=(Config(PATH, json.dumps(CONFLIST)),),
    executables=tuple(
        Executable(f"/opt/cni/bin/{name}", name, ours=True, version="0.1.0")
        for name in ("bridge", "firewall", "macvlan", "portmap", "ptp")
    ),
    runtimes=(Runtime("containerd 1.7", ("/opt/cni/bin",), "built in"),),
    units=(Unit("cni-py.service", "/etc/systemd/system/cni-py.service", True, "active"),),
    disks=(Disk("/run", 1 << 30, 1 << 31, 10000, 20000),),
)
Both = tuple[Host, Facts]


def found(host: Host, facts: Facts | None) -> list[tuple[str, str]]:
    report = checks.diagnose(everything.CHECKS, host, facts)
    return [(one.level, one.code) for one in report.findings]


def test_a_host_in_order_has_no_findings() -> None:
    report = checks.diagnose(everything.CHECKS, HOST, FACTS)
    assert report.findings == ()
    assert report.gaps == ()
    assert len(report.fine) == len(everything.CHECKS)


def root(**changes: Any) -> Host:
    return replace(HOST, namespaces=(replace(ROOT, **changes), *HOST.namespaces[1:]))


def sysctls(**values: str) -> Host:
    named = {name.replace("__", "."): value for name, value in values.items()}
    return root(sysctls=tuple((SYSCTLS | named).items()))


def table(*entries: dict[str, Any]) -> Host:
    return root(nftables=json.dumps({"nftables": list(entries)}))


def chain(name: str, table_name: str = "filter", family: str = "ip", **more: object) -> dict[str, Any]:
    return {"chain": {"family": family, "table": table_name, "name": name, **more}}


def rule(name: str, table_name: str = "filter", family: str = "ip", expr: object = ()) -> dict[str, Any]:
    return {"rule": {"family": family, "table": table_name, "chain": name, "expr": expr}}


def conf(**changes: object) -> Facts:
    """The facts with the configuration changed; in bridge's object where the key is a plugin's."""
    document = json.loads(json.dumps(CONFLIST))
    for key, value in changes.items():
        (document if key in document else document["plugins"][0])[key] = value
    return replace(FACTS, configs=(Config(PATH, json.dumps(document)),))


def executables(**changes: Any) -> Facts:
    return replace(FACTS, executables=(replace(FACTS.executables[0], **changes), *FACTS.executables[1:]))


def unit(name: str = "portfwd.service", **changes: Any) -> Facts:
    return replace(FACTS, units=(Unit(name, f"/etc/systemd/system/{name}", **{"enabled": True, **changes}),))


def limit(**values: str) -> Facts:
    named = {name.replace("__", "."): value for name, value in values.items()}
    return replace(FACTS, limits=tuple((dict(FACTS.limits) | named).items()))


def network(**changes: Any) -> Host:
    return replace(HOST, networks=(*HOST.networks, replace(HOST.networks[0], **changes)))


SAVED_HOST = replace(HOST.attachments[0], live="dead", reason="its namespace is gone")
ON_LAN = ("203.0.113.0/24", "192.0.2.0/24")  # the second is cni0's, too: another LAN, to which the host has no route
NO_V6 = replace(HOST.networks[0], subnets=("2001:db8::/64",))
DROP: dict[str, Any] = {"hook": "forward", "type": "filter", "prio": 0, "policy": "drop"}
IPTABLES = Config("/etc/cni-py/config.yaml", "backend: iptables\n")
FULL = tuple(Reservation(f"192.0.2.{n}", "c", "eth0", 0.0, "alive") for n in range(1, 254))
SECOND = Route(4, 254, "0.0.0.0/0", gateway="203.0.113.1", link="eth1")
V6_CONTAINER = replace(ATTACHED, addresses=("2001:db8:42::2/64",))
GUARDED = replace(HOST.networks[0], types=("bridge", "firewall"))
LETS = {"match": {"op": "==", "left": {}, "right": "192.0.2.2"}}
LEGACY = ("iptables-legacy", "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n-A INPUT -j DROP\nCOMMIT\n")

# Name: host, facts, what is found; None stands for what is in order
CASES: dict[str, tuple[Host | None, Facts | None, list[tuple[str, str]]]] = {
    "nf_tables not built": (None, replace(FACTS, features=(Feature("nf_tables", "no"),)), [("error", "kernel-lacks")]),
    "the same, with iptables": (
        None,
        replace(FACTS, features=(Feature("nf_tables nat", "no"),), settings=IPTABLES),
        [("warning", "kernel-lacks")],
    ),
    "old kernel": (replace(HOST, kernel="5.10.0-21-amd64"), None, [("note", "kernel-old")]),
    "a kernel that names itself oddly": (replace(HOST, kernel="strange"), None, [("note", "kernel-old")]),
    "kernel upgraded": (None, replace(FACTS, modules_gone=True), [("error", "kernel-modules-gone")]),
    "no binding": (None, replace(FACTS, nft="", nft_problem="it is missing"), [("error", "nft-binding-missing")]),
    "old nft": (None, replace(FACTS, nft="0.9.8"), [("warning", "nft-untested")]),
    "tables refused": (None, replace(FACTS, tables_refused="Error: x\ny"), [("error", "tables-refused")]),
    "no iptables": (None, replace(FACTS, iptables=(), settings=IPTABLES), [("error", "iptables-missing")]),
    "route_localnet": (sysctls(net__ipv4__conf__all__route_localnet="1"), None, [("warning", "route-localnet-open")]),
    "route_localnet of an uplink": (
        sysctls(net__ipv4__conf__eth0__route_localnet="1"),
        None,
        [("warning", "route-localnet-open")],
    ),
    "two uplinks": (
        root(routes=(*ROUTES, SECOND), sysctls=tuple((SYSCTLS | {"net.ipv4.conf.all.rp_filter": "1"}).items())),
        None,
        [("warning", "rp-filter-strict")],
    ),
    "two uplinks, loose": (
        root(routes=(*ROUTES, SECOND), sysctls=tuple((SYSCTLS | {"net.ipv4.conf.all.rp_filter": "2"}).items())),
        None,
        [],
    ),
    "IPv6 off": (
        replace(sysctls(net__ipv6__conf__all__disable_ipv6="1"), networks=(NO_V6,)),
        None,
        [("error", "ipv6-disabled")],
    ),
    "conntrack": (sysctls(net__netfilter__nf_conntrack_count="55000"), None, [("warning", "conntrack-full")]),
    "conntrack full": (sysctls(net__netfilter__nf_conntrack_count="65536"), None, [("error", "conntrack-full")]),
    "ephemeral ports": (sysctls(net__ipv4__ip_local_port_range="8000 9000"), None, [("note", "port-in-local-range")]),
    "ephemeral ports, reserved": (
        sysctls(net__ipv4__ip_local_port_range="8000 9000", net__ipv4__ip_local_reserved_ports="22,8000-8080"),
        None,
        [],
    ),
    "neighbours": (
        root(neighbours=tuple(model.Neighbour(f"192.0.2.{n}", "", "br0", "stale") for n in range(2, 200))),
        limit(net__ipv4__neigh__default__gc_thresh3="200"),
        [("warning", "neighbours-full")],
    ),
    "somaxconn": (
        replace(HOST, relays=(Relay("r1", "0.0.0.0:80", "192.0.2.2:80"),)),
        limit(net__core__somaxconn="128"),
        [("note", "somaxconn-low")],
    ),
    "namespaces": (None, limit(user__max_net_namespaces="2"), [("error", "limit-low")]),
    "open files": (
        None,
        limit(fs__file_nr="1\t0\t9", **{"fs.file-nr": "95000\t0\t100000"}),
        [("warning", "limit-low")],
    ),
    "inotify": (None, limit(fs__inotify__max_user_instances="12"), [("note", "limit-low")]),
    "ufw": (table(chain("ufw-before-input")), None, [("note", "firewall-present")]),
    "firewalld": (table(chain("filter_INPUT", "firewalld", "inet")), None, [("note", "firewall-present")]),
    "firewalld, later": (
        replace(table(chain("filter_INPUT", "firewalld", "inet")), networks=(GUARDED,)),
        None,
        [("warning", "firewalld-late"), ("note", "firewall-present")],
    ),
    "firewalld, and firewall": (
        replace(
            table(chain("filter_INPUT", "firewalld", "inet"), rule("zones", "firewalld", "inet", [LETS])),
            networks=(GUARDED,),
        ),
        None,
        [("note", "firewall-present")],
    ),
    "Docker": (table(chain("DOCKER-USER")), None, [("note", "firewall-present")]),
    "FORWARD": (table(chain("FORWARD", **DROP)), None, [("warning", "forward-drop")]),
    "FORWARD, and firewall": (
        replace(table(chain("FORWARD", **DROP), rule("CNI-FORWARD", expr=[LETS])), networks=(GUARDED,)),
        None,
        [],
    ),
    "FORWARD, and firewall, later": (
        replace(table(chain("FORWARD", **DROP)), networks=(GUARDED,)),
        None,
        [("error", "forward-drop-late")],
    ),
    "FORWARD of legacy, and firewall": (
        replace(
            root(iptables=((LEGACY[0], LEGACY[1].replace("COMMIT", "-A CNI -s 192.0.2.2/32")),)), networks=(GUARDED,)
        ),
        None,
        [],
    ),
    "FORWARD of legacy": (root(iptables=(LEGACY,)), None, [("warning", "forward-drop")]),
    "a table of others": (table(chain("f", "mine", "inet", **DROP)), None, [("warning", "forward-drop-elsewhere")]),
    "a table of others that knows the bridge": (
        table(chain("f", "mine", "inet", **DROP), rule("f", "mine", "inet", [{"match": {"right": "br0"}}])),
        None,
        [],
    ),
    "our own tables": (table(chain("policies", "cni_py", "inet", **DROP)), None, []),
    "both kinds of iptables": (
        root(iptables=(LEGACY,), nftables=json.dumps({"nftables": [chain("INPUT"), rule("INPUT")]})),
        None,
        [("warning", "forward-drop"), ("warning", "iptables-mixed")],
    ),
    "node ports": (
        replace(
            table(chain("KUBE-SERVICES", "nat")), ports=(Port("tcp", "0.0.0.0", 30080, 30080, "192.0.2.2", 80, "nat"),)
        ),
        None,
        [("warning", "bridge-nf-off"), ("warning", "port-is-node-port"), ("note", "firewall-present")],
    ),
    "kube-proxy and br_netfilter": (
        replace(
            table(chain("KUBE-SERVICES", "nat")),
            namespaces=(
                replace(
                    ROOT,
                    sysctls=tuple((SYSCTLS | dict.fromkeys(firewalls.BRIDGED, "1")).items()),
                    nftables=json.dumps({"nftables": [chain("KUBE-SERVICES", "nat")]}),
                ),
            ),
        ),
        None,
        [("note", "firewall-present")],
    ),
    "flush at start": (None, unit("nftables.service", flushes="/etc/nftables.conf"), [("warning", "nft-flush")]),
    "flush, with portfwd": (
        replace(HOST, portfwd="running 0.1.0"),
        unit("nftables.service", flushes="/etc/nftables.conf"),
        [("note", "nft-flush")],
    ),
    "flush, never started": (None, unit("nftables.service", flushes="/etc/nftables.conf", enabled=False), []),
    "interpreter gone": (None, executables(missing=("/usr/bin/python3.10",)), [("error", "executable-broken")]),
    "not executable": (None, executables(runs=False), [("error", "executable-broken")]),
    "not reinstalled": (None, executables(is_current=False), [("warning", "executable-old")]),
    "of another version": (None, executables(version="0.0.9"), [("warning", "executable-old")]),
    "replaced": (None, replace(FACTS, lost=("/opt/cni/bin/bridge",)), [("error", "executable-replaced")]),
    "others write": (None, executables(others_write=True), [("error", "executable-open")]),
    "Go plugins": (None, executables(ours=False, version=""), [("note", "runtime-runs-others")]),
    "Docker alone": (
        None,
        replace(FACTS, runtimes=(Runtime("Docker", (), "built in", "has networks of its own"),)),
        [("note", "runtime-without-cni")],
    ),
    "plugins elsewhere": (
        None,
        replace(FACTS, runtimes=(Runtime("podman 4.3", ("/usr/lib/cni",), "built in"),)),
        [("warning", "plugin-missing")],
    ),
    "plugins nowhere": (None, replace(FACTS, executables=()), [("error", "plugin-missing")]),
    "image": (None, replace(FACTS, image="old", image_path="/x.image"), [("note", "image-old")]),
    "unit without program": (None, unit(missing=("/usr/local/bin/portfwd",)), [("error", "unit-program-missing")]),
    "unit failed": (None, unit(active="failed"), [("error", "unit-failed")]),
    "unit not enabled": (None, unit(enabled=False), [("note", "unit-not-enabled")]),
    "unit started by its socket": (
        None,
        replace(FACTS, units=(Unit("portfwd.service", "/a"), Unit("portfwd.socket", "/b", enabled=True))),
        [],
    ),
    "portfwd needed": (
        None,
        replace(
            FACTS,
            configs=(
                Config(
                    PATH, json.dumps(CONFLIST).replace('"capabilities"', '"userlandProxy": "always", "capabilities"')
                ),
            ),
        ),
        [("error", "portfwd-needed")],
    ),
    "damaged": (None, replace(FACTS, state=(StateFile("/r/x", "damaged", why="x"),)), [("error", "record-damaged")]),
    "half": (None, replace(FACTS, state=(StateFile("/r/x", "half"),)), [("note", "record-half")]),
    "lock": (None, replace(FACTS, state=(StateFile("/r/attachment-1", "lock"),)), [("note", "lock-left")]),
    "lock that is held": (None, replace(FACTS, state=(StateFile("/r/attachment-1", "lock", held=True),)), []),
    "run folder": (None, replace(FACTS, run_dir_open=True), [("error", "run-folder-open")]),
    "read-only": (None, replace(FACTS, disks=(Disk("/run", 1, 1, read_only=True),)), [("error", "disk-read-only")]),
    "full": (None, replace(FACTS, disks=(Disk("/run", 0, 1 << 30),)), [("error", "disk-full")]),
    "nearly full": (None, replace(FACTS, disks=(Disk("/run", 1 << 20, 1 << 30),)), [("warning", "disk-full")]),
    "inodes": (None, replace(FACTS, disks=(Disk("/run", 1 << 30, 1 << 31, 0, 1000),)), [("error", "disk-full")]),
    "a small disk with room": (None, replace(FACTS, disks=(Disk("/run", 1 << 20, 2 << 20, 500, 600),)), []),
    "no JSON": (None, replace(FACTS, configs=(Config(PATH, "{"),)), [("error", "config-unreadable")]),
    "not UTF-8": (
        None,
        replace(FACTS, configs=(Config(PATH, '{"name": "\udcff"}'),)),
        [("error", "config-unreadable")],
    ),
    "no plugins": (None, conf(plugins=[]), [("error", "config-unreadable")]),
    "unreadable": (
        None,
        replace(FACTS, configs=(Config(PATH, problem="Permission denied"),)),
        [("error", "config-unreadable")],
    ),
    "refused": (None, conf(vlan=4095), [("error", "config-refused")]),
    "VLANs on a bridge that has none": (
        root(links=(*LINKS, PORT)),
        conf(vlan=100),
        [("error", "bridge-unfiltered")],
    ),
    "a trunk on it": (root(links=(*LINKS, PORT)), conf(vlanTrunk=[{"id": 5}]), [("error", "bridge-unfiltered")]),
    "VLANs on one without ports": (None, conf(vlan=100), []),
    "VLANs on one that has them": (
        root(links=(*LINKS[:2], replace(LINKS[2], vlan_filtering=True), PORT)),
        conf(vlan=100),
        [],
    ),
    "no VLANs": (root(links=(*LINKS, PORT)), conf(vlan=0, vlanTrunk=[]), []),
    "refused by IPAM": (
        None,
        conf(ipam={"type": "host-local", "subnet": "192.0.2.1/24"}),
        [("error", "config-refused")],
    ),
    "against the schema": (None, conf(mtu=-1), [("warning", "config-schema")]),
    "null and other case": (None, conf(mtu=None, ISGATEWAY=True), []),
    "a key": (None, replace(FACTS, configs=(replace(FACTS.configs[0], notes=("x",)),)), [("note", "config-key")]),
    "open": (None, replace(FACTS, configs=(replace(FACTS.configs[0], others_write=True),)), [("error", "config-open")]),
    "settings": (
        None,
        replace(FACTS, settings=replace(IPTABLES, text="backend: nft")),
        [("error", "settings-refused")],
    ),
    "settings unreadable": (
        None,
        replace(FACTS, settings=replace(IPTABLES, text="", problem="Permission denied")),
        [("error", "settings-refused")],
    ),
    "twice": (network(path="/etc/cni/net.d/60"), None, [("warning", "network-twice")]),
    "overlap": (network(name="b", bridge="br1", subnets=("192.0.2.128/25",)), None, [("warning", "subnet-taken")]),
    "overlap on one bridge": (network(name="b", subnets=("192.0.2.128/25",)), None, []),
    "macvlan on the LAN": (
        replace(
            root(routes=(*ROUTES, Route(4, 254, "203.0.113.0/24", link="eth0"))),
            networks=(
                *HOST.networks,
                replace(HOST.networks[0], name="b", types=("macvlan",), bridge="", subnets=ON_LAN),
            ),
        ),
        None,
        [],
    ),
    "not a subnet": (network(name="b", subnets=("x",)), None, []),
    "route": (root(routes=(*ROUTES, Route(4, 52, "192.0.0.0/8", link="eth0"))), None, [("warning", "subnet-taken")]),
    "silent portmap": (
        None,
        conf(plugins=[{"type": "portmap", "capabilities": {"portMappings": False}}]),
        [("warning", "portmap-without-ports")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_damage_is_named_and_nothing_else_is(name: str) -> None:
    host, facts, expected = CASES[name]
    assert found(host or HOST, facts or FACTS) == expected


def test_every_code_is_found_by_a_case() -> None:
    assert {code for _, _, expected in CASES.values() for _, code in expected} == set(everything.CODES)


def test_a_code_belongs_to_one_check() -> None:
    codes = [code for check in everything.CHECKS for code in check.codes]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("name", CASES)
def test_findings_say_what_and_what_to_do(name: str) -> None:
    host, facts, _ = CASES[name]
    for one in checks.diagnose(everything.CHECKS, host or HOST, facts or FACTS).findings:
        assert one.what, one
        assert one.do or one.code == "runtime-without-cni", one
        assert not one.what.endswith("."), one


def test_a_saved_host_is_looked_at_as_far_as_it_goes() -> None:
    host = saved.loads(saved.dumps(sysctls(net__ipv4__conf__all__route_localnet="1")))
    report = checks.diagnose(everything.CHECKS, host, None)
    assert [one.code for one in report.findings] == ["route-localnet-open"]
    assert len(report.gaps) == sum(check.needs_facts for check in everything.CHECKS)
    assert all(not check.needs_facts for check in report.fine)


def test_what_the_model_found_is_told_once_and_the_worst_comes_first() -> None:
    own = Finding("warning", "link-down", "link br0", "it is down")
    host = replace(sysctls(net__ipv4__conf__all__route_localnet="1"), findings=(own, own), kernel="5.4")
    gap = Finding("note", "not-seen", "host", "conntrack cannot be read")
    report = checks.diagnose(everything.CHECKS, replace(host, gaps=(gap,)), FACTS)
    assert [one.code for one in report.findings] == ["link-down", "route-localnet-open", "kernel-old"]
    assert report.gaps == ("conntrack cannot be read",)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_report_fits_and_escapes(width: int) -> None:
    evil = "\x1b[31m\n\udcff" + "long " * 40
    findings = (Finding("error", "x", evil, evil, evil, evil), Finding("warning", "y", "a", "b"))
    report = checks.Report(findings, everything.CHECKS, (evil,))
    lines = list(text.lines(report, width))
    assert all(line.isprintable() for line in lines)
    assert all(len(line) <= width for line in lines if not line.startswith("error: "))
    assert " ".join(lines).endswith(f"1 error, 1 warning, no notes; {len(everything.CHECKS)} checks found nothing")
    assert lines[1].startswith("error: \\x1b[31m\\n\\udcff")
    coloured = list(text.lines(report, width, colour=True))
    assert coloured[1].startswith("\x1b[1;31merror\x1b[0m: ")
    assert not any("\x1b" in line for line in coloured if line.startswith("  "))
    brief = list(text.lines(report, width, brief=True))
    assert "Looked at, and nothing found:" in lines
    assert "Looked at, and nothing found:" not in brief


@pytest.mark.parametrize(
    "ruleset",
    [
        "",
        "{",
        "[]",
        '{"nftables": 5}',
        '{"nftables": [5, {"chain": 5}, {"chain": {}}, {"rule": {"expr": null}}]}',
        "[" * 5000,
    ],
)
def test_a_ruleset_that_is_none_is_passed_over(ruleset: str) -> None:
    assert found(root(nftables=ruleset), FACTS) == []


def test_a_rule_that_is_deep_is_passed_over() -> None:
    deep: Any = "br0"
    for _ in range(300):
        deep = [deep]
    assert found(table(chain("f", "mine", "inet", **DROP), rule("f", "mine", "inet", deep)), FACTS) == [
        ("warning", "forward-drop-elsewhere")
    ]


def test_every_code_is_documented() -> None:
    rows = [
        line.split("|")[1].strip().strip("`")
        for line in (Path(__file__).parents[3] / "docs/doctor.md").read_text().splitlines()
        if line.startswith("| `") and line.count("|") == 5
    ]
    assert sorted(rows) == list(everything.CODES)


def test_an_add_that_is_under_way_is_told_from_one_that_was_killed() -> None:
    host = replace(HOST, taken=1e6, attachments=(replace(ATTACHED, unfinished=True),))
    host = replace(host, findings=health.findings(host))
    assert ("warning", "add-unfinished") in found(host, FACTS)
    assert ("warning", "add-unfinished") in found(host, None)
    assert found(host, replace(FACTS, locked=("attachment-0123456789abcdef-bridge",))) == []
