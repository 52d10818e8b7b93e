"""Other firewalls on the host, told by the names of their chains and tables, and what they mean for containers and ports."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cni_py.doctor.checks import of_facts, of_host, some, sysctls
from cni_py.doctor.sysctls import shown
from cni_py.doctor.values import Facts
from cni_py.firewalld.sources import BindSource
from cni_py.host.health_records import operations
from cni_py.host.model import Finding, Host, Network

CONNECTING = ("bridge", "ptp")  # plugins whose containers' packets the host forwards
NODE_PORTS = range(30000, 32768)  # kube-apiserver's default of --service-node-port-range
OWN = "cni_py"  # our tables
BRIDGED = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")
DEPTH_MAX = 30  # of lists and objects in a rule; nft's have about 10
OF_IPTABLES = ("ip", "ip6")  # families of the tables of iptables-nft


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of nftables, or of iptables-legacy (`family` "legacy4", "legacy6")."""

    family: str
    table: str
    name: str
    hook: str = ""
    policy: str = ""
    rules: int = 0
    named: frozenset[str] = frozenset()  # the texts in rules of its table, such as names of links

    @property
    def label(self) -> str:
        return f"{self.family} {self.table} {self.name}"


@dataclass(frozen=True, slots=True)
class Firewall:
    """A program whose chains or tables begin with one of the marks."""

    name: str
    marks: tuple[str, ...]
    what: str
    why: str
    do: str


FIREWALLS = (
    Firewall(
        "ufw",
        ("ufw-", "ufw6-"),
        "ufw filters what this host receives and forwards",
        "its rules for incoming packets do not hold for published ports, which NAT redirects before",
        "for ports that ufw shall decide about: `userlandProxy: always` (docs/backends.md)",
    ),
    Firewall(
        "firewalld",
        ("firewalld", "FWDI_", "FWDO_"),
        "firewalld rejects what is forwarded between zones that do not allow it",
        "an accept of cni-py does not change its verdict; the plugin firewall asks it to trust the containers' addresses",
        'put {"type": "firewall"} behind portmap in each network; cni-py-restore.service for when firewalld reloads',
    ),
    Firewall(
        "Docker",
        ("DOCKER",),
        "Docker sets the policy of iptables' FORWARD to DROP",
        "networks without the plugin firewall reach nothing beyond this host",
        'put {"type": "firewall"} behind portmap in each network',
    ),
    Firewall(
        "Tailscale",
        ("ts-forward", "ts-input", "ts-postrouting"),
        "Tailscale accepts what comes by tailscale0, before other rules of iptables",
        "published ports are reached from the tailnet, too; a subnet within 100.64.0.0/10 cannot be",
        "limit clients with portmap's `allow`, if that is not meant",
    ),
    Firewall(
        "kube-proxy",
        ("KUBE-SERVICES", "KUBE-FORWARD", "kube-proxy"),
        "kube-proxy redirects Services and node ports",
        "a node port wins over a published port of the same number, or loses, by who came first",
        "publish no ports from 30000 to 32767",
    ),
    Firewall(
        "Calico",
        ("cali-", "calico"),
        "Calico filters the traffic of its own workloads",
        "it also decides about host endpoints, if there are any",
        "nothing, unless there is a host endpoint: then allow the containers' bridges there",
    ),
    Firewall(
        "Cilium",
        ("CILIUM_", "OLD_CILIUM_"),
        "Cilium handles Services, and masquerades, in BPF before nftables sees packets",
        "a published port may be answered by Cilium",
        "leave hostPort to Cilium (its hostPort support), or keep portmap's ports apart from those of Services",
    ),
    Firewall(
        "libvirt",
        ("LIBVIRT_", "libvirt_network"),
        "libvirt rejects what is forwarded to its own bridges",
        "containers and virtual machines do not reach each other",
        "nothing, unless they should: then a rule of yours before libvirt's",
    ),
)


def chains(host: Host) -> tuple[Chain, ...]:
    """Those of the host's namespace, ours left out. What cannot be read is none: the model's gaps tell of it."""
    return (*_of_nftables(host.root.nftables), *_of_legacy(host.root.iptables))


@functools.lru_cache(maxsize=1)
def _of_nftables(text: str) -> tuple[Chain, ...]:
    try:
        listed = json.loads(text)["nftables"] if text else []
    except (ValueError, LookupError, TypeError, RecursionError):
        return ()
    counts: dict[tuple[str, str, str], int] = {}
    named: dict[tuple[str, str], set[str]] = {}
    found: list[dict[str, Any]] = []
    for entry in listed if isinstance(listed, list) else ():
        for kind, value in entry.items() if isinstance(entry, dict) else ():
            if not isinstance(value, dict) or value.get("table") == OWN:
                continue
            if kind == "rule":
                key = (str(value.get("family")), str(value.get("table")), str(value.get("chain")))
                counts[key] = counts.get(key, 0) + 1
                named.setdefault(key[:2], set()).update(texts(value.get("expr")))
            elif kind == "chain":
                found.append(value)
    made = []
    for value in found:
        family, table, name, hook, policy = (
            str(value.get(key, "")) for key in ("family", "table", "name", "hook", "policy")
        )
        of_table = frozenset(named.get((family, table), ()))
        made.append(Chain(family, table, name, hook, policy, counts.get((family, table, name), 0), of_table))
    return tuple(made)


def texts(value: object, depth: int = 0) -> Iterator[str]:
    """The texts in a JSON value that stand for something else than a key."""
    if isinstance(value, str):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in inner if depth < DEPTH_MAX else ():
        yield from texts(part, depth + 1)


def _of_legacy(saved: tuple[tuple[str, str], ...]) -> Iterator[Chain]:
    for program, text in saved:
        if not program.endswith("-legacy"):
            continue  # those of iptables-nft are in nftables' list
        table, order = "", []
        rules: dict[tuple[str, str], int] = {}
        named: dict[str, set[str]] = {}
        for line in text.splitlines():
            words = line.split()
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith(":") and len(words) > 1:
                order.append((table, words[0][1:], words[1].lower()))
            elif line.startswith("-A ") and len(words) > 1:
                rules[table, words[1]] = rules.get((table, words[1]), 0) + 1
                named.setdefault(table, set()).update(word.removesuffix("/32").removesuffix("/128") for word in words)
        for of, name, policy in order:
            hook = name.lower() if policy != "-" else ""
            family = "legacy6" if "6" in program else "legacy4"
            texts_of = frozenset(named.get(of, ()))
            yield Chain(family, of, name, hook, policy.strip("-"), rules.get((of, name), 0), texts_of)


def present(host: Host) -> list[Firewall]:
    """The firewalls whose marks are there."""
    names = {name for chain in chains(host) for name in (chain.name, chain.table)}
    return [one for one in FIREWALLS if any(name.startswith(one.marks) for name in names)]


@of_host("no other firewall has rules here", "firewall-present")
def others(host: Host) -> Iterator[Finding]:
    for firewall in present(host):
        yield Finding("note", "firewall-present", f"firewall {firewall.name}", firewall.what, firewall.why, firewall.do)


@of_host("what is forwarded is not dropped by policy", "forward-drop", "forward-drop-elsewhere")
def forward(host: Host) -> Iterator[Finding]:
    dropping = [chain for chain in chains(host) if chain.hook == "forward" and chain.policy == "drop"]
    # br_netfilter sends frames between ports of one bridge through FORWARD, too
    nor = ", nor each other" * (sysctls(host).get("net.bridge.bridge-nf-call-iptables") == "1")
    if any(is_of_iptables(chain) for chain in dropping):
        for network in without_firewall(host):
            yield Finding(
                "warning",
                "forward-drop",
                f"network {network.name}",
                "the policy of iptables' FORWARD is DROP, and the network has no plugin firewall",
                f"its containers reach no other network{nor}, and published ports do not answer, unless a rule there lets them",
                f'put {{"type": "firewall"}} at the end of {network.path}, and restart its containers',
            )
    bridges = {network.bridge for network in host.networks if network.bridge}
    for chain in dropping:
        if not is_of_iptables(chain) and chain.family != "bridge" and not bridges & chain.named:
            yield Finding(
                "warning",
                "forward-drop-elsewhere",
                f"chain {chain.label}",
                "it drops what is forwarded and not accepted in that chain",
                "an accept of cni-py in another table does not change that verdict",
                f"nft insert rule {chain.label} iifname BRIDGE accept, and oifname; also in the file that makes the table",
            )


@of_host("the plugin firewall's rules are in FORWARD where that drops by policy", "forward-drop-late")
def forward_late(host: Host) -> Iterator[Finding]:
    guarded = {one.name for one in host.networks if "firewall" in one.types}
    for chain in chains(host):
        if not (is_of_iptables(chain) and chain.policy == "drop"):
            continue
        addresses = [
            address.partition("/")[0]
            for one in host.attachments
            if one.network in guarded and one.live != "dead" and not one.unfinished
            for address in one.addresses
            if (":" in address) == (chain.family in ("ip6", "legacy6"))
        ]
        lost = [address for address in addresses if address not in chain.named]
        if lost:
            yield Finding(
                "error",
                "forward-drop-late",
                f"chain {chain.label}",
                f"its policy is DROP, and no rule lets packets of {some(lost)} pass",
                "the policy was changed after these containers were connected: they reach no other network, and their ports do "
                "not answer",
                "cni-py restore",
            )


@of_host("firewalld knows the containers that the plugin firewall serves", "firewalld-late")
def firewalld_late(host: Host) -> Iterator[Finding]:
    """By the rules of its own table. What it forgot of what was bound is a finding of the records (host/health_records.py)."""
    named = next((chain.named for chain in chains(host) if (chain.family, chain.table) == ("inet", "firewalld")), None)
    guarded = {one.name for one in host.networks if "firewall" in one.types}
    strange = [
        one
        for one in host.attachments
        if named is not None
        and one.network in guarded
        and one.live != "dead"
        and not one.unfinished
        and one.addresses
        and not named & {one.bridge, *(address.partition("/")[0] for address in one.addresses)}
        and not any(isinstance(op, BindSource) for op in operations(one))
    ]
    if strange:
        yield Finding(
            "warning",
            "firewalld-late",
            "firewall firewalld",
            f"no zone of it has the addresses of {some(one.container_id for one in strange)}",
            "they were connected before it was started, by an earlier version or for another backend: it may reject them",
            "start them anew, or firewall-cmd --zone=trusted --add-interface=BRIDGE",
        )


def is_of_iptables(chain: Chain) -> bool:
    """Whether firewall's rules of iptables can let packets pass there."""
    return chain.name == "FORWARD" and chain.table == "filter" and chain.family in (*OF_IPTABLES, "legacy4", "legacy6")


def without_firewall(host: Host) -> list[Network]:
    return [one for one in host.networks if set(one.types) & {*CONNECTING} and "firewall" not in one.types]


@of_host("iptables' rules are in one place", "iptables-mixed")
def mixed(host: Host) -> Iterator[Finding]:
    used = [chain for chain in chains(host) if chain.rules]
    legacy = [chain for chain in used if chain.family.startswith("legacy")]
    modern = [
        chain for chain in used if chain.family in OF_IPTABLES and chain.table in ("filter", "nat", "mangle", "raw")
    ]
    if legacy and modern:
        yield Finding(
            "warning",
            "iptables-mixed",
            "iptables",
            f"there are rules of iptables-legacy ({some({one.table: 0 for one in legacy})}) and of iptables-nft "
            f"({some({one.table: 0 for one in modern})})",
            "each sees its own rules alone, and a packet must pass both: a rule that opens a port in one is not enough",
            "update-alternatives --config iptables (Debian), and have all programs write their rules anew",
        )


@of_host("no published port is a node port of Kubernetes", "port-is-node-port")
def node_ports(host: Host) -> Iterator[Finding]:
    if not any(one.name == "kube-proxy" for one in present(host)):
        return
    hit = [port for port in host.ports if port.source != "kubernetes" and {port.first, port.last} & {*NODE_PORTS}]
    if hit:
        yield Finding(
            "warning",
            "port-is-node-port",
            f"published ports {some(dict.fromkeys(map(shown, hit)))}",
            f"they are in kube-proxy's range of node ports, {NODE_PORTS[0]}-{NODE_PORTS[-1]}",
            "a Service may get the same number, and which of the two answers is chance",
            "publish other ports",
        )


@of_host("bridged packets pass kube-proxy's rules", "bridge-nf-off")
def bridged(host: Host) -> Iterator[Finding]:
    values = sysctls(host)
    off = [name for name in BRIDGED if values.get(name, "0") != "1"]
    if off and any(one.name == "kube-proxy" for one in present(host)):
        yield Finding(
            "warning",
            "bridge-nf-off",
            f"sysctl {some(off)}",
            f"kube-proxy has rules, and {' and '.join(off)} is not 1",
            "a Service does not answer to a pod whose bridge it is on itself: the answer does not pass the NAT",
            "modprobe br_netfilter; sysctl -w " + " ".join(f"{name}=1" for name in off),
        )


@of_facts("no service flushes the tables of cni-py", "nft-flush")
def flushing(host: Host, facts: Facts) -> Iterator[Finding]:
    watched = any(
        unit.name.startswith(("portfwd", "cni-py-restore")) and unit.active == "active" for unit in facts.units
    )
    for unit in facts.units:
        if unit.flushes and (unit.enabled or unit.active == "active"):
            yield Finding(
                "note" if watched or host.portfwd.startswith("running") else "warning",
                "nft-flush",
                f"unit {unit.name}",
                f"{unit.flushes} begins with `flush ruleset`",
                f"when {unit.name} is started or reloaded, all tables go: published ports and masquerading end"
                + (", and portfwd restores them within about a second" if host.portfwd.startswith("running") else ""),
                f"delete your own table alone in {unit.flushes} (`delete table inet filter` in place of `flush ruleset`), or run "
                "`cni-py restore` afterwards",
            )


CHECKS = (others, forward, forward_late, firewalld_late, mixed, node_ports, bridged, flushing)
