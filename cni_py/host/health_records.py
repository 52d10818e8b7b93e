"""Findings on what the records of attachments name, and the kernel or portfwd does not have. Pure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from cni_py.addr import ip_text, parse_address
from cni_py.attachment.engine import Op, op_from_json
from cni_py.attachment.naming import Attachment as Key
from cni_py.host import iptables_ports, listing
from cni_py.host.findings import finding, some
from cni_py.host.listing import Listing
from cni_py.host.model import Attachment, Finding, Host, Port
from cni_py.host.nftables_ports import ANY, OURS
from cni_py.iptables import tool
from cni_py.kernel.nf_tables import BRIDGE, TABLE
from cni_py.kernel.xtables import NAT
from cni_py.nftables import completeness
from cni_py.nftables.ruleset import LAYOUT
from cni_py.ports import relay
from cni_py.ports.by_iptables import PublishByIptables
from cni_py.ports.iptables_rules import parse_ports
from cni_py.ports.mapping import Mapping as Published
from cni_py.ports.mapping import parse_mappings

BRIDGE_TABLE = ("bridge", OURS[1])
FIREWALLD_TABLE = ("inet", "firewalld")
IN_OUR_TABLE = ("Masquerade", "PublishPorts", "GuardAddress", "KeepApart")
Recorded = list[tuple[Attachment, list[Op]]]
Rule = tuple[str, ...]


def operations(one: Attachment) -> list[Op]:
    """Those of the record that can be read."""
    found = []
    for operation in one.operations:
        try:
            found.append(op_from_json(json.loads(operation.entry)))
        except (ValueError, LookupError, TypeError, RecursionError):
            continue
    return found


def standing(host: Host) -> Recorded:
    """The attachments with a record that are to work, and what it names."""
    return [
        (one, operations(one))
        for one in host.attachments
        if one.source == "cni-py" and one.live != "dead" and not one.unfinished
    ]


@dataclass(frozen=True, slots=True)
class There:
    """What is there, in the form in which records are compared with it. `ruleset` is None when nftables could not be read."""

    ruleset: Listing | None
    ports: Mapping[str, list[Port]]  # by container
    masqueraded: frozenset[tuple[str, str]]  # address and backend
    shared: Mapping[int, list[frozenset[tuple[str, Rule]]]]  # by family: the rules of NAT of each variant of iptables
    sources: frozenset[str] | None  # addresses that firewalld's rules ask for; None where it writes none to nftables
    unread: str  # what the gaps say

    def has(self, table: listing.Table, name: str, first: str | int) -> bool:
        """Whether a set has an element whose key begins with a text; True where nothing could be read."""
        return self.ruleset is None or any(one.key[:1] == (first,) for one in self.ruleset.elements(table, name))

    def readable(self, addresses: Iterable[str]) -> list[str]:
        """The addresses of families of which iptables' rules could be read."""
        tools = ("iptables", "ip6tables")
        return [text for text in addresses if f"rules of {tools[':' in text]}-" not in self.unread]


def look(host: Host) -> There:
    """Of the host's namespace."""
    ports = defaultdict(list)
    for port in host.ports:
        if port.way != "relay":
            ports[port.container_id].append(port)
    ruleset = listing.parse(host.root.nftables) if host.root.nftables else None
    return There(
        ruleset,
        ports,
        frozenset((one.address, one.backend) for one in host.masquerades),
        _nat(host),
        _sources(ruleset) if ruleset is not None and FIREWALLD_TABLE in ruleset.tables else None,
        " ".join(gap.what for gap in host.gaps),
    )


def _nat(host: Host) -> dict[int, list[frozenset[tuple[str, Rule]]]]:
    found: dict[int, list[frozenset[tuple[str, Rule]]]] = defaultdict(list)
    for _, rules in iptables_ports.parse(host.root.iptables):
        listed = ((chain, each) for (table, chain), each in rules.chains.items() if table == NAT)
        found[rules.family].append(frozenset((chain, rule) for chain, each in listed for rule in each))
    return found


def _sources(ruleset: Listing) -> frozenset[str]:
    """Addresses that firewalld's rules, or elements of its sets, compare a packet's with."""
    asked = [text for rule in ruleset.rules if rule.table == FIREWALLD_TABLE for text in listing.matches(rule).sources]
    held = [
        str(one.key[0])
        for (table, _), each in ruleset.sets.items()
        if table == FIREWALLD_TABLE
        for one in each
        if one.key
    ]
    return frozenset([*asked, *held])


def check(host: Host) -> Iterator[Finding]:
    """All that records name, compared with what is there."""
    recorded = standing(host)
    there = look(host)
    yield from of_tables(there, recorded)
    yield from of_rules(there, recorded)
    yield from of_relays(host, recorded)
    yield from of_reservations(host, there, recorded)


def of_tables(there: There, recorded: Recorded) -> Iterator[Finding]:
    """Chains, rules and sets that no record lists: attachments share them."""
    ruleset = there.ruleset
    if ruleset is None:
        return
    used = {op.nft_family for _, ops in recorded for op in ops} & completeness.FAMILIES.keys()
    for family in sorted(used):
        table = (completeness.FAMILIES[family], TABLE)
        if table not in ruleset.tables or not there.has(table, "layout", LAYOUT):
            continue
        found = completeness.lost(family == BRIDGE, *ruleset.names(table))
        if lost := [*found[0], *found[1]]:
            yield finding(
                "table-incomplete",
                f"table {' '.join(table)}",
                completeness.sentence(family, lost),
                why="somebody flushed or changed it",
                do="cni-py restore",
            )


def of_rules(there: There, recorded: Recorded) -> Iterator[Finding]:
    """Elements and rules that are gone: flushed, mostly."""
    whole = there.ruleset is None or OURS in there.ruleset.tables
    without: list[str] = []
    for one, ops in recorded:
        if not whole and any(type(op).__name__ in IN_OUR_TABLE for op in ops):
            without.append(one.container_id)
            continue
        lost = [
            text for op in ops if type(op).__name__ in MISSING for text in MISSING[type(op).__name__](op, one, there)
        ]
        if lost:
            yield finding(
                "rules-lost",
                f"container {one.container_id}",
                f"in network {one.network} it has lost: {some(lost)}",
                why="somebody flushed or changed the packet filter",
                do="cni-py restore",
            )
    if without:
        yield finding(
            "table-missing",
            f"table {' '.join(OURS)}",
            f"the nftables table {' '.join(OURS)} is gone: {some(without)} lost ports, masquerading or protection",
            why="somebody flushed the ruleset",
            do="cni-py restore",
        )


def _masquerade(op: Op, _: Attachment, there: There) -> Iterator[str]:
    address = str(getattr(op, "address", "")).partition("/")[0]
    if there.ruleset is not None and (address, "nftables") not in there.masqueraded:
        yield f"masquerading of {address}"


def _masquerade_by_iptables(op: Op, _: Attachment, there: There) -> Iterator[str]:
    for text in there.readable(getattr(op, "addresses", [])):
        address = text.partition("/")[0]
        if (address, "iptables") not in there.masqueraded:
            yield f"masquerading of {address}"


def _ports(op: Op, one: Attachment, there: There) -> Iterator[str]:
    for mapping in parse_mappings(getattr(op, "ports", [])) if there.ruleset is not None else ():
        yield from _port(mapping, there.ports.get(one.container_id, ()))


def _ports_by_iptables(op: Op, one: Attachment, there: There) -> Iterator[str]:
    addresses = [parse_address(text) for text in there.readable(getattr(op, "addresses", []))]
    for port in parse_ports(getattr(op, "ports", [])):
        for address in addresses:
            mapping = port.mapping(address)
            if mapping is not None:
                yield from _port(mapping, there.ports.get(one.container_id, ()))
    if isinstance(op, PublishByIptables):
        yield from _shared_rules(op, one, there, {address.family for address in addresses})


def _shared_rules(op: PublishByIptables, one: Attachment, there: There, families: set[int]) -> Iterator[str]:
    """What leads to the chains of all attachments, and what their masquerading needs: without it a port serves few clients."""
    for family, publication in op.publications(Key(one.network, one.container_id, one.ifname)).items():
        known = there.shared.get(family, []) if family in families else []
        lost = [[each for each in publication.shared() if each[:2] not in rules] for rules in known]
        for chain, rule, _ in min(lost, key=len, default=[]):
            yield f"the rule of {tool.TOOLS[family]} -A {chain} {' '.join(map(tool.quote, rule))}"


def _port(mapping: Published, ports: Iterable[Port]) -> Iterator[str]:
    """The mapping's ports, unless NAT leads them to this container: its other networks may serve them."""
    at = ip_text(mapping.host_ip) if mapping.host_ip is not None else ANY[mapping.family]
    if not any(_serves(port, mapping, at) for port in ports):
        span = f"{mapping.first}-{mapping.last}" if mapping.last > mapping.first else str(mapping.first)
        yield f"port {span}/{mapping.protocol} of {'IPv6' if mapping.family == 6 else 'IPv4'}"


def _serves(port: Port, mapping: Published, at: str) -> bool:
    same = port.protocol == mapping.protocol and port.host_address == at
    return same and port.first <= mapping.first and mapping.last <= port.last


def _guarded(op: Op, _: Attachment, there: There) -> Iterator[str]:
    address = str(getattr(op, "address", ""))
    if not there.has(OURS, f"guarded{6 if ':' in address else 4}", address):
        yield f"protection of {address} from other networks"


def _checked(op: Op, _: Attachment, there: There) -> Iterator[str]:
    name = str(getattr(op, "name", ""))
    if not (there.has(BRIDGE_TABLE, "spoof_checked", name) and there.has(BRIDGE_TABLE, "spoof_allowed", name)):
        yield f"the source check of {name}"


def _isolated(op: Op, _: Attachment, there: There) -> Iterator[str]:
    """Where the kernel has no tables of bridges, firewall goes on without (nftables/policy.IsolatePort)."""
    name = str(getattr(op, "name", ""))
    made = there.ruleset is not None and BRIDGE_TABLE in there.ruleset.tables
    if made and not there.has(BRIDGE_TABLE, "isolated", name):
        yield f"the isolation of {name}"


def _apart(op: Op, _: Attachment, there: There) -> Iterator[str]:
    bridge = str(getattr(op, "bridge", ""))
    if not there.has(OURS, "policed", bridge):
        yield f"the policy of {bridge}"


def _bound(op: Op, _: Attachment, there: There) -> Iterator[str]:
    """By firewalld's rules. Where it writes those of iptables, or does not run, nothing is missed."""
    source = str(getattr(op, "source", ""))
    if there.sources is not None and not {source, source.partition("/")[0]} & there.sources:
        yield f"{source} in firewalld's zone {getattr(op, 'zone', '')}"


MISSING: Mapping[str, Callable[[Op, Attachment, There], Iterator[str]]] = {
    "Masquerade": _masquerade,
    "MasqueradeByIptables": _masquerade_by_iptables,
    "PublishPorts": _ports,
    "PublishByIptables": _ports_by_iptables,
    "GuardAddress": _guarded,
    "CheckSource": _checked,
    "IsolatePort": _isolated,
    "KeepApart": _apart,
    "BindSource": _bound,
}


def of_relays(host: Host, recorded: Recorded) -> Iterator[Finding]:
    """Mappings that portfwd does not have, or could not have since it does not run."""
    there = {one.id for one in host.relays}
    running = host.portfwd.startswith("running")
    needed: list[str] = []
    for one, ops in recorded:
        for op in [each for each in ops if isinstance(each, relay.RelayPorts)]:
            if not running and (op.required or any(each.needs_portfwd() for each in op.mappings)):
                needed.append(one.container_id)
            missing = [
                str(each) for number, each in enumerate(op.mappings) if f"portmap-{one.hex}-{number}" not in there
            ]
            if running and missing:
                yield finding(
                    "relay-missing",
                    f"container {one.container_id}",
                    f"portfwd does not have: {some(missing)}",
                    do="cni-py restore",
                )
    if needed:
        yield finding(
            "portfwd-not-running",
            "portfwd",
            f"portfwd does not run ({host.portfwd}), and ports of {some(needed)} need it",
            why="NAT cannot serve these ports",
            do="systemctl start portfwd",
        )


def of_reservations(host: Host, there: There, recorded: Recorded) -> Iterator[Finding]:
    """Addresses of containers that are not reserved."""
    held: dict[str, set[str]] = defaultdict(set)
    for pool in host.pools:
        held[pool.folder] |= {one.address for one in pool.reservations}
    for one, ops in recorded if "the reservations in " not in there.unread else ():
        for op in [each for each in ops if type(each).__name__ == "ReserveAddress"]:
            folder, address = str(getattr(op, "directory", "")), str(getattr(op, "address", ""))
            if address not in held[folder]:
                yield finding(
                    "reservation-missing",
                    f"container {one.container_id}",
                    f"its address {address} is not reserved in {folder}",
                    why="host-local may give it to another container",
                    do=f"cni-py ipam reserve {address} --network {one.network} --for {one.container_id}; no DEL gives that back: "
                    f"cni-py ipam release {address} --network {one.network} when the container is gone",
                )
