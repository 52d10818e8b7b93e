"""Published ports and masquerading in iptables: any rule of the table nat with the target DNAT or MASQUERADE. Pure.

The chain says whose a rule is; its comment (or that of what leads to the chain) and the target's address say for whom.

    CNI-DN-..., CNI-...             ours with `backend: iptables`, and the Go plugins': the attachment decides which
    DOCKER                          Docker
    NETAVARK-...                    podman
    KUBE-NODEPORTS                  kube-proxy, which leads to chains that choose an endpoint
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cni_py.addr import parse_ip
from cni_py.errors import CniError
from cni_py.host.model import Masquerade, Port, Source
from cni_py.host.nftables_ports import ANY
from cni_py.host.owners import NOBODY, Owner, Owners
from cni_py.iptables.masquerade_rules import label_in, value_of
from cni_py.iptables.names import ENTRIES, MASQUERADE, PUBLISH
from cni_py.iptables.tool import Rules
from cni_py.kernel.xtables import NAT

NODE_PORTS = "KUBE-NODEPORTS"
SOURCES: tuple[tuple[str, Source], ...] = (
    ("CNI-", "go"),
    ("DOCKER", "docker"),
    ("NETAVARK", "podman"),
    ("KUBE-", "kubernetes"),
    ("FLANNEL", "kubernetes"),
    ("cali-", "kubernetes"),
    ("CILIUM", "kubernetes"),
)
Rule = tuple[str, ...]
PORT_MAX = 65535


def parse(texts: Iterable[tuple[str, str]]) -> list[tuple[str, Rules]]:
    """What each variant of iptables has, by its name; without those that iptables itself cannot read."""
    found = []
    for name, text in texts:
        try:
            found.append((name, Rules(6 if name.startswith("ip6") else 4, text)))
        except (CniError, ValueError):
            continue
    return found


def source_of(chain: str) -> Source:
    """Whose chain it is, by its name."""
    return next((source for start, source in SOURCES if chain.startswith(start)), "other")


def ports(rules: Rules, owners: Owners) -> Iterator[Port]:
    """All that one variant of iptables publishes in a family. A container's chain to which nothing leads publishes nothing."""
    labels = {rule[-1]: label_in(rule) for rule in rules.chains.get((NAT, ENTRIES), ()) if rule}
    leading = [
        listed
        for (table, chain), listed in rules.chains.items()
        if table == NAT and (chain != ENTRIES or rules.leads_to(NAT, ENTRIES))
    ]
    led = {rule[-1] for listed in leading for rule in listed if rule}
    for (table, chain), listed in rules.chains.items():
        if table != NAT or (chain.startswith(PUBLISH) and chain not in led):
            continue
        for rule in listed:
            if value_of(rule, "-j") == "DNAT":
                yield from _of_rule(rule, chain, rules.family, labels.get(chain, ("", "")), owners)
            elif chain == NODE_PORTS:
                yield from _node_port(rule, rules.family)


def _of_rule(rule: Rule, chain: str, family: int, label: tuple[str, str], owners: Owners) -> Iterator[Port]:
    protocol, at = value_of(rule, "-p"), value_of(rule, "-d").removesuffix("/32").removesuffix("/128")
    spans = list(_spans(rule))
    target, port = _target(value_of(rule, "--to-destination"))
    if "!" in _before(rule, "-d", "--dport", "--dports", "-p") or not (protocol and spans and target):
        return
    owner = _owner(target, label, owners)
    source = source_of(chain)
    for first, last in spans:
        yield Port(
            protocol=protocol,
            host_address=at or ANY[family],
            first=first,
            last=last,
            target=target,
            target_port=port or first,
            way="nat",
            source=owner.source or source if source == "go" else source,
            backend="iptables",
            network=owner.network,
            container_id=owner.container_id,
            ifname=owner.ifname,
            allow=(value_of(rule, "-s"),) if "-s" in rule and "!" not in _before(rule, "-s") else (),
            place=chain,
        )


def _owner(target: str, label: tuple[str, str], owners: Owners) -> Owner:
    found = owners.by_address.get(target)
    if found is not None and found.network:
        return found
    return owners.by_names.get(label) or (Owner(*label) if label[0] else found or NOBODY)


def _before(rule: Rule, *options: str) -> set[str]:
    """The words before the options: "!" turns one round."""
    return {rule[place - 1] for place, word in enumerate(rule) if place and word in options}


def _spans(rule: Rule) -> Iterator[tuple[int, int]]:
    """The destination ports of --dport 80, --dport 80:90, --dports 80,90:99."""
    for span in (value_of(rule, "--dport") or value_of(rule, "--dports")).split(","):
        first, _, last = span.partition(":")
        if first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first) <= PORT_MAX:
            yield int(first), int(last or first)


def _target(text: str) -> tuple[str, int]:
    """Address and first port of 10.88.0.2, 10.88.0.2:80, 10.88.0.2:80-90/8000 or [2001:db8::2]:80; port 0 if none is named."""
    address, port = (text, "") if text.count(":") != 1 and not text.startswith("[") else text.rsplit(":", 1)
    if text.startswith("[") and text.endswith("]"):
        address, port = text, ""
    first = port.partition("-")[0]
    try:
        parse_ip(address.strip("[]"))
    except ValueError:
        return "", 0
    return address.strip("[]"), int(first) if first.isdecimal() else 0


def _node_port(rule: Rule, family: int) -> Iterator[Port]:
    for first, last in _spans(rule):
        yield Port(
            value_of(rule, "-p"), ANY[family], first, last, "", 0, "nat", "kubernetes", "iptables",
            place=f"{NODE_PORTS} {value_of(rule, '--comment')}".strip(),
        )  # fmt: skip


def masquerades(rules: Rules, owners: Owners) -> Iterator[Masquerade]:
    """Sources of rules that masquerade, or that lead to a chain that does."""
    there = {
        (chain, rule[-1]) for (table, chain), listed in rules.chains.items() if table == NAT for rule in listed if rule
    }
    masquerading = {chain for chain, target in there if target == "MASQUERADE"}
    for (table, chain), listed in rules.chains.items():
        for rule in listed if table == NAT else ():
            target = value_of(rule, "-j")
            if "-s" not in rule or "!" in _before(rule, "-s") or not (target == "MASQUERADE" or target in masquerading):
                continue
            address = value_of(rule, "-s").removesuffix("/32").removesuffix("/128")
            owner = _owner(address, label_in(rule), owners)
            source = source_of(target if target in masquerading else chain)
            if source == "other" and chain == "POSTROUTING" and not target.startswith(MASQUERADE):
                source = _by_link(rule)
            yield Masquerade(
                address,
                owner.source or source if source == "go" else source,
                "iptables",
                owner.network,
                owner.container_id,
                owner.ifname,
            )


def _by_link(rule: Rule) -> Source:
    """Docker's rule is in no chain of its own: -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE."""
    link = value_of(rule, "-o")
    return "docker" if link.startswith(("docker", "br-")) else "other"
