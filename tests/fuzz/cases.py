"""What a fuzzed execution is made of: a call that would work, and what Hypothesis spoils of it.

A base is a chain's config of one plugin as a runtime sends it. A mutation changes one place of it; places are numbered, so
that any number picks one. Environment and state files are spoiled in the same way.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from hypothesis import strategies as st

CONTAINER, NETNS, IFNAME, NETWORK = "c1", "/run/netns/c1", "eth0", "fuzz"
OTHER = "other"  # a container whose reservation is there all the time
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
VERSIONS = ("0.1.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
ALWAYS_NEWEST = ("GC", "STATUS")  # verbs of 1.1.0
POOL = f"/var/lib/cni/networks/{NETWORK}"
KEY = sha256(f"{NETWORK}\0{CONTAINER}\0{IFNAME}".encode()).hexdigest()[:16]
RECORDS = f"/run/cni-py/attachments/{KEY}"

IPAM: dict[str, Any] = {
    "type": "host-local",
    "dataDir": "/var/lib/cni/networks",
    "resolvConf": "/run/resolv.conf",
    "ranges": [
        [{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10", "rangeEnd": "192.0.2.99", "gateway": "192.0.2.1"}],
        [{"subnet": "2001:db8:42::/64"}],
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "2001:db8::/32", "gw": "2001:db8:42::1", "mtu": 1400, "table": 100}],
    "exclude": ["192.0.2.20"],
}
PREV_RESULT: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01"},
        {"name": "veth0", "mac": "02:00:00:00:00:02"},
        {"name": IFNAME, "mac": "02:00:00:00:00:03", "sandbox": NETNS},
    ],
    "ips": [
        {"address": "192.0.2.10/24", "gateway": "192.0.2.1", "interface": 2},
        {"address": "2001:db8:42::2/64", "gateway": "2001:db8:42::1", "interface": 2},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "192.0.2.1"}],
    "dns": {"nameservers": ["192.0.2.53"], "domain": "example.org", "search": ["example.org"], "options": ["ndots:1"]},
}
PORT_MAPPINGS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
]
LAN = "up0"  # a link of the host that others are made on
DEVICE, DEVICE_MAC = "spare0", "02:00:00:00:00:0d"  # a link of the host that is moved
STATIC: dict[str, Any] = {  # IPv4 alone, for which nobody waits
    "type": "static",
    "addresses": [{"address": "192.0.2.10/24", "gateway": "192.0.2.1"}],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "203.0.113.0/24", "gw": "192.0.2.9", "mtu": 1400, "priority": 7}],
    "dns": {"nameservers": ["192.0.2.53"], "domain": "example.org", "search": ["example.org"], "options": ["ndots:1"]},
}
CONFS: dict[str, dict[str, Any]] = {
    "bridge": {
        "bridge": "cni0",
        "isGateway": True,
        "isDefaultGateway": False,
        "ipMasq": True,
        "hairpinMode": True,
        "promiscMode": False,
        "forceAddress": False,
        "macspoofchk": False,
        "portIsolation": False,
        "enabledad": False,
        "mtu": 1400,
        "vlan": 0,
        "vlanTrunk": [],
        "mac": "02:00:00:00:00:0a",
        "dns": {"nameservers": ["192.0.2.53"]},
        "runtimeConfig": {"mac": "02:00:00:00:00:0b", "ips": ["192.0.2.30/24"]},
        "args": {"cni": {"mac": "02:00:00:00:00:0c"}},
        "ipam": IPAM,
    },
    "host-local": {"ipam": IPAM, "runtimeConfig": {"ips": ["192.0.2.30"]}, "args": {"cni": {"ips": ["192.0.2.30"]}}},
    "portmap": {
        "snat": True,
        "masqAll": False,
        "markMasqBit": 13,
        "conditionsV4": ["ip", "saddr", "198.51.100.0/24"],
        "conditionsV6": ["ip6", "saddr", "2001:db8::/32"],
        "capabilities": {"portMappings": True},
        "runtimeConfig": {"portMappings": PORT_MAPPINGS},
        "prevResult": PREV_RESULT,
    },
    "ptp": {"ipMasq": True, "mtu": 1400, "dns": {"nameservers": ["192.0.2.53"]}, "ipam": IPAM},
    "macvlan": {
        "master": LAN,
        "mode": "bridge",
        "mtu": 1400,
        "bcqueuelen": 100,
        "mac": "02:00:00:00:00:0a",
        "linkInContainer": False,
        "dns": {"nameservers": ["192.0.2.53"]},
        "runtimeConfig": {"mac": "02:00:00:00:00:0b", "ips": ["192.0.2.30/24"]},
        "ipam": STATIC,
    },
    "host-device": {
        "device": DEVICE,
        "hwaddr": DEVICE_MAC,
        "kernelpath": "/sys/devices/virtual",
        "pciBusID": "",
        "runtimeConfig": {"deviceID": ""},
        "dns": {"nameservers": ["192.0.2.53"]},
        "ipam": STATIC,
    },
    "dhcp": {
        "ipam": {
            "type": "dhcp",
            "daemonSocketPath": "/run/cni/none.sock",
            "provide": [{"option": "host-name", "value": "web", "fromArg": "HOST"}],
            "request": [{"option": "121", "skipDefault": False}],
            "priority": 7,
        },
    },
    "static": {
        "ipam": STATIC,
        "runtimeConfig": {"ips": ["192.0.2.30/24", "2001:db8:42::30/64"]},
        "args": {"cni": {"ips": ["192.0.2.30/24"]}},
    },
    "tuning": {
        "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"},
        "mac": "02:00:00:00:00:0a",
        "mtu": 1400,
        "promisc": True,
        "allmulti": True,
        "txQLen": 777,
        "dataDir": "/run/cni/tuning",
        "runtimeConfig": {"mac": "02:00:00:00:00:0b"},
        "args": {
            "cni": {"mac": "02:00:00:00:00:0c", "mtu": 1300, "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"}}
        },
        "prevResult": PREV_RESULT,
    },
    "bandwidth": {
        "ingressRate": 1_000_000,
        "ingressBurst": 800_000,
        "egressRate": 2_000_000,
        "egressBurst": 1_600_000,
        "unshapedSubnets": ["192.0.2.0/24", "2001:db8::/32"],
        "shapedSubnets": [],
        "capabilities": {"bandwidth": True},
        "runtimeConfig": {"bandwidth": {"ingressRate": 3_000_000, "ingressBurst": 800_000, "egressRate": 0}},
        "prevResult": PREV_RESULT,
    },
    "firewall": {
        "backend": "nftables",
        "ingressPolicy": "same-bridge",
        "iptablesAdminChainName": "CNI-ADMIN",
        "firewalldZone": "trusted",
        "prevResult": PREV_RESULT,
    },
    "loopback": {"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "lo", "sandbox": NETNS}], "ips": []}},
}
CONFS["sbr"] = {
    "table": 500,
    "gateways": ["192.0.2.1", "2001:db8:42::1"],
    "addSourceHints": True,
    "prevResult": PREV_RESULT,
}
CONFS["vrf"] = {"vrfname": "blue", "table": 7, "prevResult": PREV_RESULT}
CONFS["chain"] = {
    "capabilities": {"portMappings": True, "mac": True, "ips": True},
    "runtimeConfig": {"portMappings": PORT_MAPPINGS, "mac": "02:00:00:00:00:0b"},
    "disableCheck": False,
    "disableGC": False,
    "plugins": [
        {"type": "bridge", "isGateway": True, "ipMasq": True, "capabilities": {"mac": True, "ips": True}, "ipam": IPAM},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall", "ingressPolicy": "same-bridge"},
        {"type": "tuning", "mtu": 1400},
    ],
}

ON_A_PAIR = (
    "portmap",
    "tuning",
    "bandwidth",
    "sbr",
    "vrf",
)  # whose container has a pair of links that leads to the host
HOST_VETH = PREV_RESULT["interfaces"][1]["name"]

NASTY_TEXT = [
    *(
        "",
        " ",
        "\0",
        "\n",
        "a" * 300,
        "%s%n",
        "{}",
        "é\u2028",
        "\ud800",
        "--help",
        "-1",
        "0",
        "eth0",
        "lo",
        "all",
        "default",
    ),
    *(
        "..",
        "/",
        "../../../../etc/passwd",
        "/dev/zero",
        "/proc/kmsg",
        "/proc/self/ns/mnt",
        "/run/fifo",
        "/etc",
        "host-local",
    ),
    *(
        "bridge",
        "portmap",
        "sh",
        "tcp",
        "TCP",
        "udp",
        "sctp",
        "icmp",
        "192.0.2.1",
        "192.0.2.300",
        "10.0.0.0/33",
        "10.0.0.0/-1",
    ),
    *(
        "0.0.0.0",
        "::",
        "::1",
        "127.0.0.1",
        "::ffff:192.0.2.1",
        "fe80::1%eth0",
        "0.0.0.0/0",
        "::/0",
        "2001:db8:42::/127",
    ),
    *(
        "192.0.2.255",
        "192.0.2.0/32",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "02:00",
        "1.1.0",
        "9.9.9",
        "0.2.0",
        "iptables",
    ),
    *(
        '"; flush ruleset; "',
        "$(reboot)",
        "; ip link del lan0",
        "saddr } accept",
        "nftables",
        "a b",
        "x\r\ny",
        "true",
        "null",
    ),
]
NASTY_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(NASTY_TEXT),
    st.sampled_from(
        [None, True, False, 0, -1, 1, 65535, 65536, 2**31, 2**32, 2**63, 2**64, -(2**63), 1.5, 1e300, 1e-9]
    ),
    st.sampled_from([[], {}, [[]], [{}], {"": None}, [None], [[[]]], {"type": {}}, [{"subnet": 1}], [0] * 50]),
    st.text(max_size=20),
    st.integers(),
)
NUMBERS = st.integers(min_value=0, max_value=10_000)
HOWS = st.sampled_from(["replace", "replace", "replace", "delete", "rename", "recase", "twice", "wrap"])


@dataclass(frozen=True)
class Case:
    """One execution: everything it is given, and the files it finds."""

    verb: str
    program: str
    environment: dict[str, str]
    given: bytes
    files: dict[str, bytes]
    attach: dict[str, Any] | None = field(default=None)  # a good config to ADD with first

    def __str__(self) -> str:
        files = "".join(f"\n  {path}: {content!r}" for path, content in self.files.items())
        attached = " after an ADD" if self.attach else ""
        return f"{self.verb} {self.program}{attached}\n  {self.environment}\n  {self.given!r}{files}"


def config(verb: str, plugin: str, version: str) -> dict[str, Any]:
    conf: dict[str, Any] = {"cniVersion": version, "name": NETWORK, "type": plugin, **copy.deepcopy(CONFS[plugin])}
    if "prevResult" in conf:
        conf["prevResult"]["cniVersion"] = version
    elif verb in ("CHECK", "DEL"):
        conf["prevResult"] = {**copy.deepcopy(PREV_RESULT), "cniVersion": version}
    if verb == "GC":
        conf["cni.dev/valid-attachments"] = [{"containerID": OTHER, "ifname": IFNAME}]
    return conf


def environment(verb: str, bin_dir: str) -> dict[str, str]:
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": CONTAINER,
        "CNI_NETNS": NETNS,
        "CNI_IFNAME": IFNAME,
        "CNI_PATH": bin_dir,
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=pod",
    }


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree of JSON."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from places(value[key])


def mutate(tree: dict[str, Any], number: int, how: str, junk: Any) -> None:
    """Change the place with that number (modulo how many there are)."""
    found = list(places(tree))
    if not found:
        tree["name"] = junk
        return
    owner, key = found[number % len(found)]
    if how == "delete":
        del owner[key]
    elif how in ("rename", "recase", "twice") and isinstance(owner, dict):
        value = owner[key] if how == "twice" else owner.pop(key)
        owner[str(junk) if how == "rename" else str(key).swapcase()] = value if how != "twice" else junk
    elif how == "wrap":
        owner[key] = [owner[key]]
    else:
        owner[key] = junk


def as_bytes(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "surrogatepass")  # lone surrogates are written as \\udXXX


MUTATIONS = st.lists(st.tuples(NUMBERS, HOWS, NASTY_VALUES), min_size=1, max_size=3)
RAW = st.one_of(
    st.binary(max_size=64),
    st.sampled_from(
        [b"", b"null", b"[]", b'"x"', b"1", b"{", b"{}{}", b"[" * 100_000, b'{"a":' * 60_000, b"\xff\xfe{}", b"NaN"]
    ),
)
TEXT = st.one_of(st.sampled_from(NASTY_TEXT), st.text(max_size=20)).map(
    lambda text: text.replace("\0", "").encode("utf-8", "replace").decode()  # what execve(2) can pass
)
RESERVATION = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"\r\n", b"c1\r\neth0", b"c1", b"other\r\neth0", b"c1\r\neth0\r\nmore", b"x" * 100_000]),
)
POOL_NAMES = [
    *(
        "lock",
        "last_reserved_ip.0",
        "last_reserved_ip.1",
        "last_reserved_ip.",
        "192.0.2.10",
        "2001:db8:42::2",
        "192.0.2.999",
    ),
    *("junk", "192.0.2.11/192.0.2.12", ".hidden", "2001:DB8:42::3", "é"),
]
OWNED: dict[str, dict[str, Any]] = {  # what a record of the plugin may hold
    "bridge": {
        "op": "AddVeth",
        "name": "lan0",
        "ifname": IFNAME,
        "mtu": 0,
        "host_mac": "020000000001",
        "container_mac": "",
    },
    "portmap": {"op": "GuardAddress", "address": "192.0.2.10"},
    "firewall": {
        "op": "PassForwarded",
        "addresses": "192.0.2.10/24 2001:db8:42::2/64",
        "admin_chain": "CNI-ADMIN",
        "bridge": "",
        "policy": "",
        "always": True,
    },
    "ptp": {"op": "Masquerade", "address": "192.0.2.10/24"},
    "macvlan": {
        "op": "AddMacvlan",
        "ifname": IFNAME,
        "master": LAN,
        "inside": False,
        "mode": "bridge",
        "mtu": 0,
        "queue": 0,
        "mac": "020000000001",
        "netns": NETNS,
        "cookie": 1,
    },
    "host-device": {
        "op": "MoveDevice",
        "name": DEVICE,
        "ifname": IFNAME,
        "netns": NETNS,
        "cookie": 1,
        "index": 7,
        "kind": "veth",
        "mac": DEVICE_MAC.replace(":", ""),
        "permanent": "",
        "parent": "",
        "alias": "",
        "up": True,
        "bridge": "",
        "addresses": ["192.0.2.77/24"],
    },
    "tuning": {"op": "TuneLink", "ifname": IFNAME, "setting": "mtu", "value": "1400", "before": "1500", "netns": 1},
    "sbr": {"op": "RouteBySource", "source": "192.0.2.10/32", "table": 100, "netns": 1},
    "vrf": {"op": "JoinVrf", "ifname": IFNAME, "name": "blue", "table": 7, "addresses": [], "routes": [], "netns": 1},
    "bandwidth": {"op": "AddIfb", "name": "bwp0", "mac": "020000000001", "mtu": 1500},
    "chain": {"op": "BindSource", "source": "192.0.2.10/32", "zone": "trusted", "plugin": "firewall"},
}
RECORD = {
    "schema": 1,
    "network": NETWORK,
    "containerID": CONTAINER,
    "ifname": IFNAME,
    "netns": NETNS,
    "netnsCookie": 1,
    "hostCookie": 1,
}


@st.composite
def spoiled_files(draw: st.DrawFn) -> dict[str, bytes]:
    files = {}
    for name in draw(st.lists(st.sampled_from(POOL_NAMES), max_size=3, unique=True)):
        files[f"{POOL}/{name}"] = draw(RESERVATION)
    for name in draw(st.lists(st.sampled_from(sorted(OWNED)), max_size=1)):
        record = {**RECORD, "ops": [copy.deepcopy(OWNED[name])]}
        for number, how, junk in draw(MUTATIONS):
            mutate(record, number, how, junk)
        suffix = draw(st.sampled_from([".json", ".adding", ".adding.tmp"]))
        files[f"{RECORDS}/{name}{suffix}"] = draw(st.one_of(st.just(as_bytes(record)), RAW))
    return files


def spoiled(verb: str, bin_dir: str) -> st.SearchStrategy[Case]:
    """Cases of a verb; what is spoiled is at least one of config, environment and files."""

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        plugin = draw(st.sampled_from(sorted(CONFS)))
        version = "1.1.0" if verb in ALWAYS_NEWEST else draw(st.sampled_from(VERSIONS))
        good = config(verb, plugin, version)
        variables, given, files = environment(verb, bin_dir), as_bytes(good), {}
        what = draw(st.sampled_from(["config", "config", "config", "raw", "environment", "files", "files", "all"]))
        if what in ("config", "all"):
            spoilt = copy.deepcopy(good)
            for number, how, junk in draw(MUTATIONS):
                mutate(spoilt, number, how, junk)
            given = as_bytes(spoilt)
        if what == "raw":
            given = draw(RAW)
        if what in ("environment", "all"):
            name = draw(st.sampled_from([name for name in variables if name != "CNI_COMMAND"]))
            variables[name] = draw(TEXT)
        if what in ("files", "all"):
            files = draw(spoiled_files())
        attach = None
        if verb in ("DEL", "CHECK", "GC") and plugin != "loopback" and draw(st.booleans()):
            attach = config("ADD", plugin, version)
        return Case(verb, f"{bin_dir}/{plugin}", variables, given, files, attach)

    return case()
