"""Published ports and masquerading in nftables: our maps, the Go plugins' rules, anybody's rules that translate. Pure.

inet cni_py                     our maps: see nftables/ruleset.py, ports/claims.py, ports/shares.py
ip, ip6 cni_hostport            portmap of the Go plugins since 1.6: the containerID is the comment
inet cni_plugins_masquerade     their ipMasq
ip, ip6 kube-proxy              the map service-nodeports: kube-proxy in nftables mode
others                          rules with `dnat to ADDRESS` for a port, whoever made them (netavark, Docker, firewalld)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cni_py.attachment import records
from cni_py.host.listing import PORT_PROTOCOLS, Element, Listing, Rule, Table, matches, statements
from cni_py.host.model import Masquerade, Port, Source
from cni_py.host.owners import NOBODY, Owner, Owners
from cni_py.iptables.names import GO_HOSTPORT, GO_MASQUERADE
from cni_py.kernel.nf_tables import TABLE

OURS = ("inet", TABLE)
ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104  not bound to
PORT_MAP = re.compile(r"(shared_)?(any|specific)([46])(_[0-9a-f]{12})?")
RANGE_MAP = re.compile(r"range([46])_(tcp|udp|sctp)")
# Tables of iptables-nft: what they hold is taken from iptables' own text (host/iptables_ports.py).
IPTABLES = {(family, name) for family in ("ip", "ip6") for name in ("nat", "filter", "mangle", "raw", "security")}
SOURCES: dict[str, Source] = {
    GO_HOSTPORT: "go",
    GO_MASQUERADE: "go",
    "netavark": "podman",
    "kube-proxy": "kubernetes",
    "docker-bridges": "docker",
}  # by the table's name
NODE_PORTS = "service-nodeports"


def ports(listing: Listing, owners: Owners) -> Iterator[Port]:
    """All that a ruleset publishes."""
    clients = {rule.chain: matches(rule).sources for rule in listing.rules if rule.table == OURS}
    for (table, name), elements in listing.sets.items():
        if table == OURS and (found := PORT_MAP.fullmatch(name)):
            yield from _of_map(found, elements, owners, clients)
        elif table == OURS and (found := RANGE_MAP.fullmatch(name)):
            yield from _of_ranges(found, elements, owners)
        elif name == NODE_PORTS:
            yield from _node_ports(table, elements)
    for rule, statement in statements(listing, "dnat"):
        if rule.table != OURS and rule.table not in IPTABLES:
            yield from _of_rule(rule, statement, owners)


def _of_map(
    found: re.Match[str], elements: list[Element], owners: Owners, clients: dict[str, tuple[str, ...]]
) -> Iterator[Port]:
    """Of any4, specific4, those of conditions (any4_0123...), and shared ports, whose key begins with a slot."""
    shared, kind, family, condition = found.groups()
    chain = f"{'shared' if shared else 'conditions'}{family}{condition or ''}"
    seen = set()
    for one in elements:
        key = one.key[1:] if shared else one.key
        address = str(key[0]) if kind == "specific" else ANY[int(family)]
        if len(key) != (3 if kind == "specific" else 2) or len(one.value) != 2 or (key, one.value) in seen:
            continue
        seen.add((key, one.value))
        yield _ours(
            owners,
            one,
            protocol=str(key[-2]),
            host_address=address,
            first=key[-1],
            target_port=one.value[1],
            allow=clients.get(chain, ()) if shared or condition else (),
            shared=bool(shared),
            place=f"{' '.join(OURS)} {found.group()}",
        )


def _of_ranges(found: re.Match[str], elements: list[Element], owners: Owners) -> Iterator[Port]:
    """Of range4_tcp and its like: the numbers of the ports stay as they are."""
    for one in elements:
        bounds = one.key[0] if one.key else None
        first, last = bounds[1:] if isinstance(bounds, tuple) and bounds[0] == "range" else (bounds, bounds)
        if len(one.value) != 1:
            continue
        yield _ours(
            owners,
            one,
            protocol=found.group(2),
            host_address=ANY[int(found.group(1))],
            first=first,
            last=last,
            target_port=first,
            place=f"{' '.join(OURS)} {found.group()}",
        )


def _ours(owners: Owners, element: Element, *, first: Any, target_port: Any, last: Any = None, **fields: Any) -> Port:
    target = str(element.value[0])
    owner = _owner(target, element.comment, owners)
    return Port(
        first=_number(first),
        last=_number(first if last is None else last),
        target=target,
        target_port=_number(target_port),
        way="nat",
        source="cni-py",
        backend="nftables",
        network=owner.network,
        container_id=owner.container_id,
        ifname=owner.ifname,
        **fields,
    )


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _owner(address: str, comment: str, owners: Owners) -> Owner:
    """Whose an element is: by the address; else by its comment, which may be of an attachment that is gone.

    The comment may also be of an earlier holder of the key: the kernel keeps the first (attachment/records.py).
    """
    hexed, key = records.attachment_in(comment)
    found = owners.by_address.get(address)
    if found is not None and found.network:
        return found
    if hexed in owners.by_hex:
        return owners.by_hex[hexed]
    return Owner(key.network, key.container_id, key.ifname, "cni-py") if key is not None else found or NOBODY


def _of_rule(rule: Rule, statement: Any, owners: Owners) -> Iterator[Port]:
    """Of a rule `tcp dport 8080 dnat to 10.88.0.2:80`; what leads to no single address is left out."""
    if not isinstance(statement, dict):
        return
    address, port = statement.get("addr"), statement.get("port")
    asked = matches(rule)
    if not isinstance(address, str) or not asked.ports or asked.protocol not in PORT_PROTOCOLS:
        return
    owner = owners.by_address.get(address, NOBODY)
    source: Source = SOURCES.get(rule.table[1], "other")
    named = rule.comment if source == "go" else ""
    for host in asked.destinations or (ANY[6 if ":" in address else 4],):
        for first, last in asked.ports:
            yield Port(
                protocol=asked.protocol,
                host_address=host,
                first=first,
                last=last,
                target=address,
                target_port=port if isinstance(port, int) else first,
                way="nat",
                source=source,
                backend="nftables",
                network=owner.network,
                container_id=owner.container_id or named,
                ifname=owner.ifname,
                allow=asked.sources,
                place=rule.place,
            )


def _node_ports(table: Table, elements: list[Element]) -> Iterator[Port]:
    """Of kube-proxy: the key is a protocol and a port, the value a chain that chooses an endpoint."""
    family = 6 if table[0] == "ip6" else 4
    for one in elements:
        if len(one.key) == 2 and isinstance(one.key[1], int):
            place = f"{' '.join(table)} {one.value[1] if len(one.value) == 2 else NODE_PORTS}"
            yield Port(
                str(one.key[0]),
                ANY[family],
                one.key[1],
                one.key[1],
                "",
                0,
                "nat",
                "kubernetes",
                "nftables",
                place=place,
            )


def masquerades(listing: Listing, owners: Owners) -> Iterator[Masquerade]:
    """Whose packets are masqueraded: the elements of ours, and rules that name a source."""
    for family in (4, 6):
        for one in listing.elements(OURS, f"masquerade{family}"):
            address = str(one.key[0]) if one.key else ""
            owner = _owner(address, one.comment, owners)
            yield Masquerade(address, "cni-py", "nftables", owner.network, owner.container_id, owner.ifname)
    for rule, _ in statements(listing, "masquerade"):
        if rule.table == OURS or rule.table in IPTABLES:
            continue
        for address in matches(rule).sources:
            owner = owners.by_address.get(address, NOBODY)
            source = SOURCES.get(rule.table[1], "other")
            yield Masquerade(address, source, "nftables", owner.network, owner.container_id, owner.ifname)
