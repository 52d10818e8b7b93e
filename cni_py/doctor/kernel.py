"""Whether kernel, nft, iptables and Python have what the plugins need."""

from __future__ import annotations

from collections.abc import Iterator

from cni_py.doctor.checks import number, of_facts, of_host
from cni_py.doctor.values import Facts
from cni_py.host.model import Finding, Host, Level

ALL = "no container can be connected, or no port published"
# Feature: what lacks it, and how bad that is
NEEDED: dict[str, tuple[str, Level]] = {
    "nf_tables": (ALL, "error"),
    "nf_tables inet": (ALL, "error"),
    "nf_tables nat": ("ports cannot be published, and ipMasq fails", "error"),
    "nf_tables masquerade": ("ipMasq fails", "error"),
    "nf_tables fib": ("ports cannot be published", "error"),
    "conntrack": ("ports cannot be published, and ipMasq fails", "error"),
    "bridge": ("the plugin bridge fails", "error"),
    "veth": ("the plugins bridge and ptp fail", "error"),
    "nf_tables bridge": ("macspoofchk of bridge and ingressPolicy isolated of firewall fail", "warning"),
    "conntrack netlink": ("UDP flows of a port that moves to another container go on to the old one", "warning"),
    "bridge vlan_filtering": ("vlan and vlanTrunk of bridge fail", "note"),
    "macvlan": ("the plugin macvlan fails", "note"),
    "tbf": ("the plugin bandwidth fails", "note"),
    "ifb": ("egress limits of the plugin bandwidth fail", "note"),
    "mirred": ("egress limits of the plugin bandwidth fail", "note"),
    "br_netfilter": ("Services of Kubernetes do not answer to pods of the same bridge", "note"),
    "sk_lookup": ("portfwd needs a socket for each port of a long range", "note"),
}
OF_NFTABLES = ("nf_tables", "nf_tables inet", "nf_tables nat", "nf_tables masquerade", "nf_tables fib")
COOKIES_SINCE = (5, 14)
TESTED_NFT = (1, 0, 6)


@of_facts("the kernel has what the plugins need", "kernel-lacks")
def features(_host: Host, facts: Facts) -> Iterator[Finding]:
    iptables = uses_iptables(facts)
    for feature in facts.features:
        if feature.state != "no" or feature.name not in NEEDED:
            continue
        consequence, level = NEEDED[feature.name]
        alternative = ""
        if feature.name in OF_NFTABLES:
            level = "warning" if iptables else level
            alternative = ", or set `backend: iptables` in /etc/cni-py/config.yaml" * (not iptables)
        yield Finding(
            level,
            "kernel-lacks",
            f"kernel feature {feature.name}",
            f"the kernel was built without {feature.name}",
            consequence,
            "run a kernel that has it" + alternative,
        )


def uses_iptables(facts: Facts) -> bool:
    """Whether /etc/cni-py/config.yaml chooses iptables."""
    return facts.settings is not None and "backend: iptables" in facts.settings.text


@of_host("the kernel numbers its network namespaces", "kernel-old")
def cookies(host: Host) -> Iterator[Finding]:
    parts = host.kernel.split(".")
    release = tuple(number(part.partition("-")[0]) or 0 for part in parts[:2])
    if release < COOKIES_SINCE:
        yield Finding(
            "note",
            "kernel-old",
            "kernel",
            f"Linux {host.kernel} does not number network namespaces",
            "device and inode of a namespace are compared instead, which another namespace may have later",
            "Linux 5.14 and later have SO_NETNS_COOKIE",
        )


@of_facts("the modules of the running kernel are there", "kernel-modules-gone")
def modules(host: Host, facts: Facts) -> Iterator[Finding]:
    if facts.modules_gone:
        yield Finding(
            "error",
            "kernel-modules-gone",
            f"/lib/modules/{host.kernel}",
            "the modules of the kernel that runs were removed, those of another one are there",
            "the next feature that is not loaded yet fails: nf_tables, veth or bridge at the first container",
            "boot the new kernel",
        )


@of_facts("libnftables can be used from Python", "nft-binding-missing", "nft-untested")
def binding(_host: Host, facts: Facts) -> Iterator[Finding]:
    if facts.nft_problem:
        yield Finding(
            "warning" if uses_iptables(facts) else "error",
            "nft-binding-missing",
            "libnftables",
            facts.nft_problem,
            "the tables of cni-py cannot be made: the first container after each boot fails",
            "apt install python3-nftables (Debian), or `backend: iptables` in /etc/cni-py/config.yaml",
        )
    numbers = tuple(int(part) for part in facts.nft.split(".") if part.isdecimal())
    if numbers and numbers < TESTED_NFT:
        yield Finding(
            "warning",
            "nft-untested",
            "nft",
            f"nft {facts.nft} is older than the oldest version that cni-py is tested with, 1.0.6",
            "older versions refuse some of the rules, or list them wrongly",
            "install nftables 1.0.6 or later",
        )


@of_facts("the kernel takes the tables of cni-py", "tables-refused")
def tables(_host: Host, facts: Facts) -> Iterator[Finding]:
    if facts.tables_refused:
        yield Finding(
            "warning" if uses_iptables(facts) else "error",
            "tables-refused",
            "nftables",
            f"the kernel refuses the tables of cni-py: {facts.tables_refused.splitlines()[0]}",
            "no port can be published, and ipMasq fails",
            "set `backend: iptables` in /etc/cni-py/config.yaml, or run a kernel with the features named above",
        )


@of_facts("iptables is there if the host's backend needs it", "iptables-missing")
def iptables(_host: Host, facts: Facts) -> Iterator[Finding]:
    missing = {"iptables", "ip6tables"} - {name for name, _ in facts.iptables}
    if missing and uses_iptables(facts):
        yield Finding(
            "error",
            "iptables-missing",
            "backend iptables",
            f"/etc/cni-py/config.yaml chooses iptables, and {' and '.join(sorted(missing))} is not installed",
            "no port can be published, and ipMasq fails",
            "apt install iptables (Debian), or `backend: nftables`",
        )


CHECKS = (features, cookies, modules, binding, tables, iptables)
