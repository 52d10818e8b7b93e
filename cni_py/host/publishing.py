"""Which ports of the host lead to containers, by NAT, by a relay, or by both; and whose packets are masqueraded. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cni_py.host import iptables_ports, listing, nftables_ports
from cni_py.host.model import Masquerade, Namespace, Port
from cni_py.host.owners import Owners


def by_nat(host: Namespace, owners: Owners) -> tuple[list[Port], list[Masquerade]]:
    """What the packet filters of the host's namespace translate."""
    ruleset = listing.parse(host.nftables)
    ports = list(nftables_ports.ports(ruleset, owners))
    masquerades = list(nftables_ports.masquerades(ruleset, owners))
    for _, rules in iptables_ports.parse(host.iptables):
        ports += iptables_ports.ports(rules, owners)
        masquerades += iptables_ports.masquerades(rules, owners)
    return ports, list(dict.fromkeys(masquerades))


def merged(by_nat: Iterable[Port], by_relay: Iterable[Port]) -> tuple[Port, ...]:
    """All ports: one that NAT and a relay serve is one, NAT's. A relay of several ports stays, unless NAT has all of them."""
    relays = defaultdict(list)
    for one in by_relay:
        relays[one.protocol, one.host_address].append(one)
    covered: dict[Port, int] = defaultdict(int)
    found = []
    for port in by_nat:
        for relay in relays[port.protocol, port.host_address]:
            if relay.first <= port.first and port.last <= relay.last:
                covered[relay] += port.last - port.first + 1
                port = replace(port, way="both", place=f"{port.place}, {relay.place}")  # noqa: PLW2901  the same, said fully
                break
        found.append(port)
    alone = [one for listed in relays.values() for one in listed if covered[one] < one.last - one.first + 1]
    return tuple(sorted(once(dict.fromkeys([*found, *alone])), key=_order))


def once(ports: Iterable[Port]) -> Iterator[Port]:
    """What stands twice, as with a rule for each of two hooks, once."""
    seen = set()
    for port in ports:
        what = (
            port.protocol,
            port.host_address,
            port.first,
            port.last,
            port.target,
            port.target_port,
            port.way,
            port.backend,
        )
        if what not in seen:
            seen.add(what)
            yield port


def _order(port: Port) -> tuple[int, str, str, str]:
    return port.first, port.protocol, port.host_address, port.target
