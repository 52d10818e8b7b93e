"""What nft's `fib` and iptables' `addrtype` ask of the routing tables, answered from the model."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from cni_py.explain.routing import LOCAL, longest, rules_of
from cni_py.explain.values import FIB_TYPES, Value, number, one_of, unknown

if TYPE_CHECKING:
    from cni_py.host.model import Namespace, Route

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def address_type(namespace: Namespace, address: str, link: str | None) -> Value:
    """The type of an address: `local`, `unicast`, ...; with `link`, only what is so at that link."""
    try:
        asked = ipaddress.ip_address(address)
    except ValueError:
        return unknown("fib_addrtype", f"fib: the address {address!r} is not known")
    if asked.version == 4:
        return _type4(namespace, asked, link)
    local = _is_local6(namespace, asked, link)
    if local is None:
        return unknown("fib_addrtype", "fib: the namespace's addresses are not known")
    if local:
        return number("fib_addrtype", FIB_TYPES["local"])
    others = [kind for name, kind in FIB_TYPES.items() if name != "local"]
    return one_of("fib_addrtype", others, "fib type of an IPv6 address that is not local")


def _type4(namespace: Namespace, asked: IPAddress, link: str | None) -> Value:
    """As inet_dev_addr_type (net/ipv4/fib_frontend.c): by the table `local` alone."""
    if int(asked) >> 24 == 0 or int(asked) == 0xFFFFFFFF:
        return number("fib_addrtype", FIB_TYPES["broadcast"])
    if asked.is_multicast:
        return number("fib_addrtype", FIB_TYPES["multicast"])
    local = [route for route in namespace.routes if route.family == 4 and route.table == LOCAL]
    if not local:
        return _by_addresses(namespace, asked, link)
    route = longest(local, str(asked))
    if route is None or (link is not None and route.link != link):
        return number("fib_addrtype", FIB_TYPES["unicast"])
    return number("fib_addrtype", FIB_TYPES.get(route.kind, 1))


def _by_addresses(namespace: Namespace, asked: IPAddress, link: str | None) -> Value:
    """The same where the model has no table `local`. Broadcast addresses are not seen then."""
    if not namespace.links:
        return unknown("fib_addrtype", "fib: the namespace's addresses are not known")
    if asked.is_loopback:
        return number("fib_addrtype", FIB_TYPES["local" if link in (None, "lo") else "unicast"])
    if _has(namespace, asked, link):
        return number("fib_addrtype", FIB_TYPES["local"])
    return one_of("fib_addrtype", [FIB_TYPES["unicast"], FIB_TYPES["broadcast"]], "fib: the table `local` is not known")


def _is_local6(namespace: Namespace, asked: IPAddress, link: str | None) -> bool | None:
    if not namespace.links and not namespace.routes:
        return None
    if link is not None:
        return _has(namespace, asked, link)
    local = [route for route in namespace.routes if route.family == 6 and route.table == LOCAL]
    found = longest(local, str(asked))
    return (found is not None and found.kind == "local") or _has(namespace, asked, None)


def _has(namespace: Namespace, asked: IPAddress, link: str | None) -> bool:
    """Whether a link, or any, has the address."""
    return any(
        ipaddress.ip_address(address.address) == asked
        for one in namespace.links
        if link is None or one.name == link
        for address in one.addresses
        if _is_address(address.address)
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def way_to(namespace: Namespace, address: str, mark: int | None, link: str | None) -> Value:
    """The index of the link that leads to an address: 0 when there is none, or not `link` where one is asked for.

    As nft_fib4_eval and nft_fib6_eval: the lookup is free, and its result is compared with the link. Own addresses count as
    no way. `mark`: that of the lookup; None when it is not known.
    """
    try:
        asked = ipaddress.ip_address(address)
    except ValueError:
        return unknown("iface_index", f"fib: the address {address!r} is not known")
    if not namespace.routes:
        return unknown("iface_index", "fib: the routes are not known")
    bound = link if asked.version == 6 and asked.is_link_local else None
    route, why = lookup(namespace, asked, mark, bound)
    if why:
        return unknown("iface_index", why)
    if route is None or route.kind != "unicast" or (link is not None and route.link != link):
        return number("iface_index", 0)
    indexes = {one.name: one.index for one in namespace.links}
    if route.link not in indexes:
        return unknown("iface_index", f"fib: the link {route.link!r} is not known")
    return number("iface_index", indexes[route.link])


def lookup(namespace: Namespace, asked: IPAddress, mark: int | None, bound: str | None) -> tuple[Route | None, str]:
    """The route to an address by rules and tables, and why that cannot be told. `bound`: only by that link."""
    for rule in rules_of(namespace, asked.version):
        if mark is not None and not rule.other and ((mark & rule.mask) != rule.mark) != rule.inverted:
            continue
        asks = rule.iif or rule.oif or rule.source or rule.destination or rule.other or rule.action == "goto"
        if asks or (mark is None and rule.mask):
            return None, f"fib: the routing rule of priority {rule.priority} asks for what is not known here"
        if rule.action != "lookup":
            return None, ""
        routes = [one for one in namespace.routes if one.family == asked.version and one.table == rule.table]
        found = longest(routes, str(asked), bound or "")
        if found is not None and found.kind != "throw" and _length(found) > rule.suppress:
            return found, ""
    return None, ""


def _length(route: Route) -> int:
    return int(route.destination.partition("/")[2] or 128)
