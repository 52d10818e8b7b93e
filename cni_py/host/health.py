"""What is wrong on a host, found in its model: findings(). Pure; the codes are in host/findings.py.

Nothing is said of what could not be looked at: an empty list that is named in `Host.gaps` proves nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from cni_py.addr import int_of, parse_ip
from cni_py.attachment.records import attachment_in
from cni_py.host import health_ports, health_records
from cni_py.host.findings import RECORDS, by_level, finding, some, unread
from cni_py.host.model import Address, Attachment, Finding, Host, Link, Namespace, Pool

NEARLY = 0.9
UNDER_WAY_S = 60  # an ADD is done in less
BRIDGE, VETH = "bridge", "veth"
CHILDREN = {"macvlan", "macvtap", "ipvlan", "ipvtap", "vlan"}  # what they send leaves by their parent
GATEWAY_PLUGINS = {"bridge", "ptp"}
FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}


def findings(host: Host) -> tuple[Finding, ...]:
    """What is wrong, errors first."""
    checks: tuple[Callable[[Host], Iterator[Finding]], ...] = (
        of_attachments,
        of_links,
        of_bridges,
        of_gateways,
        of_forwarding,
        of_addresses,
        of_refused_addresses,
        of_networks,
        of_pools,
        health_records.check,
        *health_ports.CHECKS,
    )
    return by_level(one for check in checks for one in check(host))


def standing(host: Host) -> list[Attachment]:
    """The attachments that are to work: not dead, and made."""
    return [one for one in host.attachments if one.live != "dead" and not one.unfinished]


def label(one: Attachment) -> str:
    """The container as a finding's subject names it."""
    return f"container {one.container_id}"


def of_attachments(host: Host) -> Iterator[Finding]:
    """Those that are dead, or half made; and interfaces that carry our mark without one."""
    for one in host.attachments:
        what = f"{one.ifname} in network {one.network}"
        if one.live == "dead":
            yield finding(
                "attachment-dead", label(one), f"what was made for {what} is still there: {one.reason}", do="cni-py gc"
            )
        elif one.unfinished and host.taken - one.since > UNDER_WAY_S:
            yield finding(
                "add-unfinished",
                label(one),
                f"the ADD of {what} began {host.taken - one.since:.0f} s ago and did not end",
                do="a DEL of the runtime, or `cni-py gc` when the container is gone",
            )
    known = {one.hex for one in host.attachments}
    for link in host.root.links if not unread(host, RECORDS) else ():
        hexed, key = attachment_in(link.alias)
        if key is not None and hexed not in known:
            yield finding(
                "orphan-link",
                f"link {link.name}",
                f"it was made for {key.label}, of which there is no record",
                do="cni-py gc",
            )


def of_links(host: Host) -> Iterator[Finding]:
    """Interfaces of attachments that are gone or down, at both ends."""
    links = {link.name: link for link in host.root.links}
    by_index = {link.index: link for link in host.root.links}
    homes = {one.key: one for one in host.namespaces}
    down: dict[str, list[str]] = defaultdict(list)
    for one in standing(host):
        for name in one.host_links:
            if name not in links:
                yield finding(
                    "link-missing",
                    label(one),
                    f"its interface {name} on the host does not exist",
                    why="the container has no connection",
                    do="start the container anew",
                )
            elif not links[name].up:
                down[name].append(one.container_id)
        if one.bridge in links and not links[one.bridge].up:
            down[one.bridge].append(one.container_id)
        inside = inside_of(homes.get(one.namespace), one)
        parent = by_index.get(inside.peer_index) if inside is not None and inside.kind in CHILDREN else None
        if parent is not None and inside is not None and inside.peer_namespace == host.root.key and not parent.up:
            down[parent.name].append(one.container_id)
        if inside is not None and not inside.up:
            yield finding(
                "link-down",
                label(one),
                f"{one.ifname} in the container is down",
                do=f"nsenter --net={one.netns} ip link set {one.ifname} up",
            )
    for name, containers in down.items():
        yield finding(
            "link-down",
            f"link {name}",
            f"{name} is down, and {some(containers)} depends on it",
            do=f"ip link set {name} up",
        )


def inside_of(namespace: Namespace | None, one: Attachment) -> Link | None:
    """The attachment's interface in its container."""
    return next((link for link in namespace.links if link.name == one.ifname), None) if namespace else None


def of_bridges(host: Host) -> Iterator[Finding]:
    """Bridges that are gone, interfaces that left theirs, and ports that are nobody's."""
    links = {link.name: link for link in host.root.links}
    networks = {one.name: one for one in host.networks}
    lost: dict[str, list[str]] = defaultdict(list)
    for one in standing(host):
        network = networks.get(one.network)
        for name in one.host_links if BRIDGE in one.plugins else ():
            link = links.get(name)
            if link is None or link.kind != VETH or link.master:
                continue
            bridge = network.bridge if network else ""
            if bridge and bridge not in links:
                lost[bridge].append(one.container_id)
            else:
                yield _without_bridge(one, name, bridge)
    for bridge, containers in lost.items():
        yield finding(
            "bridge-missing",
            f"link {bridge}",
            f"the bridge {bridge} does not exist, and {some(containers)} was in it",
            why="these containers are cut off",
            do="cni-py restore",
        )
    yield from _foreign(host)


def _without_bridge(one: Attachment, name: str, bridge: str) -> Finding:
    return finding(
        "port-without-bridge",
        label(one),
        f"its interface {name} on the host is in no bridge{f', and belongs into {bridge}' if bridge else ''}",
        why="the container is cut off",
        do=f"ip link set {name} master {bridge}" if bridge else "",
    )


def _foreign(host: Host) -> Iterator[Finding]:
    names = {one.bridge for one in host.networks if one.bridge}
    names |= {one.bridge for one in host.attachments if one.bridge and one.source == "cni-py"}
    known = {name for one in host.attachments for name in one.host_links}
    for link in host.root.links:
        if link.master in names and link.name not in known and not attachment_in(link.alias)[1]:
            yield finding(
                "foreign-port",
                f"link {link.name}",
                f"{link.name} is a port of the bridge {link.master}, and belongs to no attachment",
                why="what is connected there reaches the containers of the network",
            )


def of_gateways(host: Host) -> Iterator[Finding]:
    """Gateways of containers that no interface of the host has. A bridge with other ports than veths may lead to a router.

    Each pair of ptp has the address itself: nobody else's end answers for it.
    """
    held = {link.name: {each.address for each in link.addresses} for link in host.root.links}
    everywhere = set().union(*held.values())
    uplinked = {link.master for link in host.root.links if link.master and link.kind != VETH}
    bridges = {one.name: one.bridge for one in host.networks}
    missing: dict[tuple[str, str], list[Attachment]] = defaultdict(list)
    for one, gateways in _routed(host):
        ends = [held[name] for name in one.host_links if name in held] if "ptp" in one.plugins else []
        addresses = set().union(*ends) if ends else everywhere
        for gateway in gateways if one.bridge not in uplinked else ():
            if gateway not in addresses and not gateway.startswith("fe80:"):
                name = one.bridge or bridges.get(one.network) or next(iter(one.host_links), "")
                missing[name, gateway].append(one)
    for (name, gateway), users in missing.items():
        yield finding(
            "gateway-missing",
            f"link {name}",
            f"{name} does not have {gateway}, the gateway of {some(one.container_id for one in users)}",
            why="these containers reach nothing beyond their network",
            do=_address_again(users[0], gateway, name),
        )


def _address_again(one: Attachment, gateway: str, name: str) -> str:
    """The command. ptp's address has no subnet, and needs its routes: no single command of others makes both."""
    if "ptp" in one.plugins and one.source == "cni-py":
        return "cni-py restore"
    return f"ip address add {gateway}/{_length(one, gateway)} dev {name}"


def _routed(host: Host) -> list[tuple[Attachment, set[str]]]:
    """The attachments that the host is to forward for, with the gateways of their default routes."""
    homes = {one.key: one for one in host.namespaces[1:]}
    return [
        (one, _gateways(homes[one.namespace], one.ifname))
        for one in standing(host)
        if one.namespace in homes and GATEWAY_PLUGINS.intersection(one.plugins)
    ]


def _gateways(namespace: Namespace, ifname: str) -> set[str]:
    return {
        one.gateway
        for one in namespace.routes
        if one.destination == DEFAULT[one.family] and one.gateway and one.link == ifname
    }


def _length(one: Attachment, gateway: str) -> str:
    """The prefix length that the container's address of the family has."""
    same = [text.partition("/")[2] for text in one.addresses if (":" in text) == (":" in gateway)]
    return same[0] if same and same[0] else "128" if ":" in gateway else "32"


def of_forwarding(host: Host) -> Iterator[Finding]:
    """Forwarding that is off while containers have a default route through the host."""
    values = dict(host.root.sysctls)
    routed = _routed(host)
    for family, name in FORWARDING.items():
        users = [one for one, gateways in routed if any((":" in each) == (family == 6) for each in gateways)]
        names = some(one.container_id for one in users)
        if values.get(name) == "0" and users:
            yield finding(
                "forwarding-off",
                f"sysctl {name}",
                f"{name} is 0: the host forwards no IPv{family} packets, and {names} needs that",
                why="published ports and the containers' own connections to other hosts do not work",
                do=f"sysctl -w {name}=1",
            )


def of_addresses(host: Host) -> Iterator[Finding]:
    """Addresses that two have."""
    holders: dict[str, list[str]] = defaultdict(list)
    links = [link for link in host.root.links if "loopback" not in link.flags]
    own = [(one, link.name) for link in links for one in link.addresses if one.scope == "global"]
    for one, name in sorted(own, key=lambda pair: _alone(pair[0])):
        if not (_alone(one) and holders[one.address]):
            holders[one.address].append(f"{name} of the host")
    for each in standing(host):
        for text in each.addresses:
            holders[text.partition("/")[0]].append(f"{each.ifname} of container {each.container_id}")
    for address, names in holders.items():
        if len(set(names)) > 1:
            yield finding(
                "duplicate-address",
                f"address {address}",
                f"{address} is the address of {some(names)}",
                why="which of them gets a packet is chance",
                do="end all of them but one",
            )


def _alone(address: Address) -> bool:
    """Whether the address has no subnet: the host may have it on many links, as ptp gives it to the host's end of each pair."""
    return address.prefix == (128 if ":" in address.address else 32)


def of_refused_addresses(host: Host) -> Iterator[Finding]:
    """Addresses that duplicate address detection refused."""
    for namespace in host.namespaces:
        for link in namespace.links:
            for each in link.addresses:
                if "dadfailed" in each.flags:
                    where = "the host" if namespace is host.root else " ".join(namespace.names[:1]) or namespace.key
                    yield finding(
                        "dad-failed",
                        f"address {each.address}",
                        f"{link.name} of {where} cannot use {each.address}: somebody else on the link has it",
                    )


def of_networks(host: Host) -> Iterator[Finding]:
    """Configurations that no runtime can load."""
    for one in host.networks:
        if one.problem:
            yield finding("network-unreadable", f"network {one.name}", one.problem, do=f"correct {one.path}")


def of_pools(host: Host) -> Iterator[Finding]:
    """Ranges without free addresses, or with few; addresses that the dead hold."""
    for pool in host.pools:
        for text, size in zip(pool.ranges, pool.sizes, strict=False):
            taken = _taken(pool, text)
            if taken >= size or taken > NEARLY * size:
                yield finding(
                    "pool-full" if taken >= size else "pool-nearly-full",
                    f"network {pool.network}",
                    f"{taken} of the {size} addresses {text} are reserved",
                    do=f"cni-py gc, or a larger range in the configuration of {pool.network}",
                )
        dead = [one.address for one in pool.reservations if one.live == "dead"]
        if dead:
            yield finding(
                "address-leaked",
                f"network {pool.network}",
                f"{some(dead)} {'is' if len(dead) == 1 else 'are'} reserved for containers that are gone",
                do="cni-py gc",
            )


def _taken(pool: Pool, text: str) -> int:
    """How many reservations lie in a range: two addresses joined by "-"."""
    first, _, last = text.partition("-")
    try:
        ends = parse_ip(first), parse_ip(last)
        inside = [parse_ip(one.address) for one in pool.reservations]
    except ValueError:
        return 0
    return sum(len(ip) == len(ends[0]) and int_of(ends[0]) <= int_of(ip) <= int_of(ends[1]) for ip in inside)
