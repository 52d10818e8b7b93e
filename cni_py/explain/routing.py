"""Which route a packet takes: routing rules, then the longest prefix of each table they name. Pure.

Where the model has no rules, the kernel's own hold (local, main, default). A rule with a condition that the model does not hold
makes the result uncertain, unless its table has no route for the packet.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from cni_py.host.model import Address, Link, Namespace, Route, Rule

LOCAL, MAIN, DEFAULT = 255, 254, 253  # linux/rtnetlink.h
ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104  not bound to
UNUSABLE = {"tentative", "dadfailed"}

Net = ipaddress.IPv4Network | ipaddress.IPv6Network
Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Found:
    """A route, or none. `doubt`: why the kernel may choose another one; "" when it cannot."""

    route: Route | None
    rule: Rule | None = None
    doubt: str = ""

    @property
    def text(self) -> str:
        """The route as `ip route` prints it."""
        return route_text(self.route) if self.route else "no route"


def family_of(address: str) -> int:
    """4 or 6."""
    return 6 if ":" in address else 4


@lru_cache(maxsize=4096)
def parsed(address: str) -> Ip:
    """The address without its zone. ValueError."""
    return ipaddress.ip_address(address.partition("%")[0])


@lru_cache(maxsize=4096)
def network(prefix: str) -> Net:
    """The network of a prefix; host bits may be set. ValueError."""
    return ipaddress.ip_network(prefix, strict=False)


def within(address: str, prefix: str) -> bool:
    """Whether the address is in the prefix; never, if they are of different families."""
    return parsed(address) in network(prefix)


def is_loopback(address: str) -> bool:
    return parsed(address).is_loopback


def rules_of(namespace: Namespace, family: int) -> list[Rule]:
    """The routing rules of a family by priority."""
    rules = [rule for rule in namespace.rules if rule.family == family]
    if not rules:
        tables = ((0, LOCAL), (32766, MAIN), (32767, DEFAULT))
        rules = [Rule(family, priority, "lookup", table) for priority, table in tables]
    return sorted(rules, key=lambda rule: rule.priority)


def routes_of(namespace: Namespace, family: int) -> list[Route]:
    """The routes of a family; those of the local table are made of the addresses where the model has none."""
    routes = [route for route in namespace.routes if route.family == family]
    if not any(route.table == LOCAL for route in routes):
        routes += local_routes(namespace, family)
    return routes


def local_routes(namespace: Namespace, family: int) -> Iterator[Route]:
    """What the kernel has in the table `local` for the addresses of links that are up."""
    for link in namespace.links:
        for one in link.addresses:
            if link.up and family_of(one.address) == family and not UNUSABLE & set(one.flags):
                whole = 32 if family == 4 else 128
                # 127.0.0.1/8 makes all of 127/8 local (fib_add_ifaddr, net/ipv4/fib_frontend.c)
                length = one.prefix if family == 4 and is_loopback(one.address) else whole
                yield Route(family, LOCAL, str(network(f"{one.address}/{length}")), "local", link=link.name)


def lookup(
    namespace: Namespace, destination: str, *, source: str = "", iif: str = "", oif: str = "", mark: int = 0
) -> Found:
    """The route to an address. `iif` is "" for what the namespace sends itself; then `oif` may bind the packet to a link."""
    family = family_of(destination)
    routes = routes_of(namespace, family)
    doubt = ""
    for rule in rules_of(namespace, family):
        if not applies(rule, destination, source, iif or "lo", oif, mark):
            continue
        if rule.action == "lookup":
            route = longest([one for one in routes if one.table == rule.table], destination, oif)
            if route is None or route.kind == "throw" or is_suppressed(rule, route):
                continue
        else:
            route = Route(family, rule.table, f"{ANY[family]}/0", rule.action)
        if rule.other or rule.action == "goto":
            doubt = doubt or f"rule {rule.priority} has conditions that are not in the model"
            continue
        return Found(route, rule, doubt)
    return Found(None, None, doubt)


def applies(rule: Rule, destination: str, source: str, iif: str, oif: str, mark: int) -> bool:
    """Whether the conditions of a rule that the model holds are met (fib_rule_match, net/core/fib_rules.c)."""
    # With "not" and a condition that is not in the model, the others alone decide nothing
    if rule.inverted:
        return rule.other or not _fits(rule, destination, source, iif, oif, mark)
    return _fits(rule, destination, source, iif, oif, mark)


def is_suppressed(rule: Rule, route: Route) -> bool:
    """Whether a rule passes over the route that its table has (fib4_rule_suppress)."""
    return network(route.destination).prefixlen <= rule.suppress


def _fits(rule: Rule, destination: str, source: str, iif: str, oif: str, mark: int) -> bool:
    if rule.source and not (source and within(source, rule.source)):
        return False
    if rule.destination and not within(destination, rule.destination):
        return False
    if (rule.iif and rule.iif != iif) or (rule.oif and rule.oif != oif):
        return False
    mask = rule.mask or (0xFFFFFFFF if rule.mark else 0)
    return (mark ^ rule.mark) & mask == 0


def longest(routes: list[Route], destination: str, oif: str = "") -> Route | None:
    """The route of the longest prefix, of the lowest metric where there are several."""
    fitting = [
        route
        for route in routes
        if within(destination, route.destination) and (not oif or not route.link or route.link == oif)
    ]
    return min(fitting, key=lambda route: (-network(route.destination).prefixlen, route.metric), default=None)


def is_local(namespace: Namespace, address: str, iif: str = "") -> bool:
    """Whether packets to the address are delivered in the namespace."""
    route = lookup(namespace, address, iif=iif).route
    return route is not None and route.kind == "local"


def source_for(namespace: Namespace, route: Route, destination: str) -> str:
    """The address that the kernel gives a packet on that route; "" if there is none.

    IPv4: inet_select_addr() (net/ipv4/devinet.c). IPv6: RFC 6724 as far as scope, state and the longest common prefix.
    """
    if route.source:
        return route.source
    if route.kind == "local":
        return destination
    return masquerade_source(namespace, route, destination)


def masquerade_source(namespace: Namespace, route: Route, destination: str) -> str:
    """The address that masquerading on that route gives a packet: the link's own (nf_nat_masquerade.c)."""
    family = family_of(destination)
    towards = route.gateway if route.gateway and family_of(route.gateway) == family else destination
    links = sorted(namespace.links, key=lambda link: link.name != route.link)
    for link in links:
        fitting = [one for one in link.addresses if family_of(one.address) == family and usable(link, one, destination)]
        if fitting:
            return best(fitting, towards, family).address
    return ""


def usable(link: Link, address: Address, destination: str) -> bool:
    """Whether an address may be a packet's source."""
    if not link.up or UNUSABLE & set(address.flags) or address.scope == "host":
        return False
    return address.scope != "link" or parsed(destination).is_link_local


def best(addresses: list[Address], towards: str, family: int) -> Address:
    """The address that is chosen of several on one link."""
    if family == 4:
        return next((one for one in addresses if within(towards, f"{one.address}/{one.prefix}")), addresses[0])

    def common(one: Address) -> int:
        difference = int(parsed(one.address)) ^ int(parsed(towards))
        return 128 - difference.bit_length()

    return max(addresses, key=lambda one: ("deprecated" not in one.flags, common(one)))


def route_text(route: Route) -> str:
    """A route as `ip route` prints it."""
    kind = "" if route.kind == "unicast" else f"{route.kind} "
    words = [f"{kind}{route.destination}"]
    words += [f"via {route.gateway}"] if route.gateway else []
    words += [f"dev {route.link}"] if route.link else []
    words += [f"table {route.table}"] if route.table not in (MAIN, LOCAL) else []
    return " ".join(words)
