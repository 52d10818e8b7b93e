"""Who made a table, chain or rule, as far as names and comments tell.

The names are those that the programs' own sources have. Where cni-py makes iptables rules, it has taken the Go plugins' names, so
that these cannot be told apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cni_py.explain.chains import Chain, Rule, Table

CNI_PY, GO, CNI = "cni-py", "the Go plugins", "the CNI plugins"
PODMAN = "podman (netavark)"
TABLES = {  # of nftables
    "cni_py": CNI_PY,
    "cni_plugins_masquerade": GO,
    "cni_hostport": GO,
    "docker-bridges": "Docker",
    "netavark": PODMAN,
    "firewalld": "firewalld",
    "kube-proxy": "kube-proxy",
    "calico": "Calico",
    "flannel-ipv4": "flannel",
    "flannel-ipv6": "flannel",
    "libvirt_network": "libvirt",
    "f2b-table": "fail2ban",
    "crowdsec": "CrowdSec",
    "crowdsec6": "CrowdSec",
    "io.systemd.nat": "systemd-networkd",
    "lxd": "LXD",
    "incus": "Incus",
    "sshguard": "sshguard",
}
TABLE_STARTS = {"nm-shared-": "NetworkManager", "wg-quick-": "wg-quick"}
# Of chains, the longer start before the shorter
CHAIN_STARTS = {
    "DOCKER-": "Docker",
    "DOCKER_": "Docker",
    "NETAVARK": PODMAN,
    "ufw-": "ufw",
    "ufw6-": "ufw",
    "ts-": "Tailscale",
    "KUBE-POD-FW-": "kube-router",
    "KUBE-NWPLCY-": "kube-router",
    "KUBE-ROUTER-": "kube-router",
    "KUBE-": "kube-proxy",
    "cali-": "Calico",
    "CILIUM_": "Cilium",
    "OLD_CILIUM_": "Cilium",
    "FLANNEL-": "flannel",
    "LIBVIRT_": "libvirt",
    "f2b-": "fail2ban",
    "CROWDSEC": "CrowdSec",
    "CNI-": CNI,
    "ANTREA-": "Antrea",
    "WEAVE": "Weave",
    "ISTIO_": "Istio",
    "nm-sh-": "NetworkManager",
}
CHAINS = {"DOCKER": "Docker"}
COMMENT_STARTS = {
    "CNI ": CNI,
    "CNI portfwd": CNI,
    "kubernetes ": "kube-proxy",
    "cali:": "Calico",
    "cilium": "Cilium",
    "flanneld ": "flannel",
    "generated for LXD": "LXD",
    "generated for Incus": "Incus",
    "kube-router": "kube-router",
}
POLICIES = {"ufw": ("INPUT", "FORWARD"), "Docker": ("FORWARD",)}  # who sets iptables' policies to DROP


def owner_of(table: Table, chain: str = "", rule: Rule | None = None) -> str:
    """The owner's name; "" when nothing tells."""
    name = _of_chain(chain) or _of_table(table)
    if name or rule is None:
        return name
    return _started(rule.comment, COMMENT_STARTS) or next((_of_chain(one) for one in _targets(rule)), "")


def policy_owner(chain: Chain) -> str:
    """Who has set a base chain's policy. In iptables' own tables: who has chains there, and is known to do that."""
    owner = owner_of(chain.table)
    if owner or chain.policy != "drop":
        return owner
    there = {_of_chain(name) for name in chain.table.chains}
    found = [name for name, chains in POLICIES.items() if name in there and chain.name in chains]
    return " or ".join(found)


def _targets(rule: Rule) -> list[str]:
    """The chains that it leads to."""
    found = []
    for expression in rule.expressions:
        for verdict in ("jump", "goto"):
            inner = expression.get(verdict) if isinstance(expression, dict) else None
            if isinstance(inner, dict):
                found.append(str(inner.get("target")))
    return found


def _of_table(table: Table) -> str:
    if table.backend != "nftables":
        return ""
    return TABLES.get(table.name) or _started(table.name, TABLE_STARTS)


def _of_chain(chain: str) -> str:
    return CHAINS.get(chain) or _started(chain, CHAIN_STARTS)


def _started(text: str, starts: dict[str, str]) -> str:
    return next((owner for start, owner in starts.items() if text.startswith(start)), "")
