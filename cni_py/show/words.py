"""Objects of the model in words, the same in every form. Names are given as they are: each form escapes in its own way. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, replace
from datetime import UTC, datetime

from cni_py.host.model import Host, Link, Masquerade, Pool, Port, Relay, Socket
from cni_py.show.view import Plug, Trunk, short

MAKERS = {
    "docker": "Docker",
    "podman": "podman",
    "kubernetes": "Kubernetes",
    "go": "the Go plugins",
    "portfwd": "portfwd",
}
WAYS = {"nat": "NAT", "relay": "relay", "both": "NAT and relay"}
ANY = ("0.0.0.0", "::")  # noqa: S104  what sockets are bound to
POOL_MAX = 1 << 17  # addresses of a range whose fill means something: an IPv6 /64 is never full
LEVELS = ("error", "warning", "note")


def counted(number: int, noun: str) -> str:
    """ "1 port", "1,000 ports"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def at(address: str, first: int, last: int = 0) -> str:
    """ "[::1]:8080", "192.0.2.1:5000-5099"."""
    ports = f"{first}-{last}" if last and last != first else f"{first}"
    return f"[{address}]:{ports}" if ":" in address else f"{address}:{ports}"


def listens(port: Port) -> str:
    """Where clients ask."""
    return f"{at(port.host_address, port.first, port.last)}/{port.protocol}"


def runs(ports: Iterable[Port]) -> list[Port]:
    """Ports that follow each other, and lead to ports that do, as one: the kernel may have an element for each."""
    found: dict[tuple[object, ...], Port] = {}
    for port in sorted(ports, key=lambda port: port.first):
        alike = astuple(replace(port, first=0, last=0, target_port=port.target_port - port.first))
        before = found.get(alike)
        if before is not None and before.last + 1 == port.first:
            found[alike] = replace(before, last=port.last)
        else:
            found[(*alike, port.first) if before is not None else alike] = port
    return sorted(found.values(), key=lambda port: (port.first, port.protocol, port.host_address))


def how_many(ports: Iterable[Port]) -> int:
    """Numbers of ports, each protocol's for itself, whatever the addresses."""
    return sum(last - first + 1 for _, first, last in {(port.protocol, port.first, port.last) for port in ports})


def leads(port: Port) -> str:
    """Where it leads."""
    last = port.target_port + port.last - port.first
    if port.target:
        return at(port.target, port.target_port, last)
    return f"port {port.target_port}" if last == port.target_port else f"ports {port.target_port}-{last}"


def way(port: Port) -> str:
    """How, for whom, and by whom if it was not us."""
    said = [WAYS[port.way]]
    if port.allow:
        said.append(f"only for {', '.join(port.allow)}")
    if port.shared:
        said.append("shared")
    if port.backend and (port.source != "cni-py" or port.backend == "iptables"):
        said.append(port.backend)
    return ", ".join(said)


def socket(one: Socket) -> str:
    return f"{at(one.address, one.port)}/{one.protocol}{f' on {one.link}' if one.link else ''}"


def listeners(sockets: Iterable[Socket]) -> list[str]:
    """ "80/tcp" where both families are served, "0.0.0.0:80/tcp", "127.0.0.1:9000/tcp"."""
    given = list(sockets)
    any4 = {(one.port, one.protocol) for one in given if one.address == ANY[0] and not one.link}
    any6 = {(one.port, one.protocol): one.v6only for one in given if one.address == ANY[1] and not one.link}
    both = {key for key, v6only in any6.items() if not v6only or key in any4}
    found = [
        f"{one.port}/{one.protocol}"
        if one.address in ANY and (one.port, one.protocol) in both and not one.link
        else socket(one)
        for one in sorted(given, key=lambda one: (one.port, one.protocol))
    ]
    return list(dict.fromkeys(found))


def who(plug: Plug) -> str:
    """What runs in it: process, runtime and id, pod."""
    said = []
    if plug.processes:
        first = plug.processes[0]
        more = (
            f" and {counted(plug.namespace.process_count - 1, 'other')}" if _count(plug) > 1 and plug.namespace else ""
        )
        said.append(f"{first.name} ({first.pid}){more}")
    own = plug.containers[0] if plug.containers else None
    if own is not None:
        said.append(f"{own.runtime} {short(own.id)}" if own.name else own.runtime)
        said += [f"pod {own.pod}"] if own.pod else []
        said += [] if own.running else ["not running"]
        said += (
            [f"with {', '.join(one.name or short(one.id) for one in plug.containers[1:])}"]
            if plug.containers[1:]
            else []
        )
    return ", ".join(said)


def _count(plug: Plug) -> int:
    return plug.namespace.process_count if plug.namespace else 0


def kind(link: Link) -> str:
    """ "bridge of Docker", "VLAN 10"."""
    said = f"VLAN {link.vlan_id}" if link.kind == "vlan" else link.kind
    maker = MAKERS.get(link.source, "")
    return f"{said} of {maker}" if maker and said else f"of {maker}" if maker else said


def state(link: Link) -> str:
    """What keeps it from passing packets; "" for nothing."""
    if not link.up:
        return "down"
    if link.operstate in ("down", "lowerlayerdown"):
        return "no port is up" if link.kind == "bridge" else "no carrier"
    return ""


def bridge_port(link: Link) -> str:
    """What sets it apart from other ports of its bridge."""
    said = []
    if link.vlans and (len(link.vlans) > 1 or link.vlans[0].vid != 1):
        said.append("VLAN " + ", ".join(f"{one.vid}{'' if one.untagged else ' tagged'}" for one in link.vlans))
    said += ["isolated"] if link.isolated else []
    said += [link.stp_state] if link.stp_state not in ("", "forwarding", "disabled") else []
    return ", ".join(said)


def gateways(trunk: Trunk) -> str:
    found = list(dict.fromkeys(route.gateway or "the link" for route in trunk.gateways))
    return f"default via {', '.join(found)}" if found else ""


def masquerading(plugs: Iterable[Plug]) -> str:
    """Whose outgoing packets get the host's address."""
    asked = [bool(plug.masquerades) for plug in plugs if plug.is_ours]
    if not any(asked):
        return ""
    if all(asked):
        return "outgoing packets masqueraded"
    return f"outgoing packets of {sum(asked):,} of {counted(len(asked), 'container')} masqueraded"


def fill(pool: Pool) -> str:
    """ "4 of 253 IPv4 addresses taken, 2 IPv6 addresses taken"; the size of a range that is never full is left out."""
    said = []
    for family, (held, size) in _fills(pool).items():
        if 0 < size <= POOL_MAX:
            said.append(f"{held:,} of {size:,} IPv{family} addresses taken")
        elif size or held:
            said.append(f"{held:,} IPv{family} address{'' if held == 1 else 'es'} taken")
    return ", ".join(said)


def is_full(pool: Pool) -> bool:
    """Whether a family has no address left."""
    return any(0 < size <= held for held, size in _fills(pool).values())


def _fills(pool: Pool) -> dict[int, tuple[int, int]]:
    """By family: how many addresses are taken, and how many the ranges have."""
    families = [6 if ":" in one.address else 4 for one in pool.reservations]
    sizes = [(6 if ":" in text else 4, size) for text, size in zip(pool.ranges, pool.sizes, strict=False)]
    return {
        family: (families.count(family), sum(size for version, size in sizes if version == family)) for family in (4, 6)
    }


def mapping(relay: Relay) -> str:
    """What is said of a mapping of portfwd after its two ends."""
    said = [relay.owner, relay.state, relay.problem, f"{relay.active:,} active" if relay.active else ""]
    return ", ".join(one for one in said if one)


def summary(host: Host, plugs: Iterable[Plug]) -> str:
    """ "8 containers in 6 networks, 7 published ports; 2 errors"."""
    ours = [plug for plug in plugs if plug.is_ours]
    containers = len({plug.container_id for plug in ours})
    networks = len({plug.network for plug in ours})
    ports = counted(how_many(host.ports), "published port")
    said = f"{counted(containers, 'container')} in {counted(networks, 'network')}, {ports}"
    levels = [sum(one.level == level for one in host.findings) for level in LEVELS[:2]]
    wrong = [counted(number, level) for number, level in zip(levels, LEVELS, strict=False) if number]
    return f"{said}; {', '.join(wrong)}" if wrong else said


def whose(masquerade: Masquerade) -> str:
    return f"{masquerade.address} by {masquerade.backend}"
