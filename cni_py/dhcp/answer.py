"""What the plugin is told of a lease: the address and the routes of its result. Pure.

As the Go daemon: routes are those of option 121, which replaces all others (RFC 3442), else those of option 33 and the default
route through the first router. Nothing else of the lease is in the result.
"""

from __future__ import annotations

from collections.abc import Iterator

from cni_py.addr import Address
from cni_py.dhcp import message
from cni_py.dhcp.machine import Lease
from cni_py.dhcp.message import ANY
from cni_py.errors import CniError
from cni_py.protocol.result import IPConfig, Result, Route

SCOPE_LINK = 253  # RT_SCOPE_LINK, linux/rtnetlink.h
DEFAULT = Address(ANY, 0)


def result_of(lease: Lease, priority: int = 0) -> Result:
    """The result. `priority`: the metric of its routes, 0 for the kernel's own. CniError: a mask is missing, or is none."""
    gateway = first_router(lease)
    address = Address(lease.address, prefix_of(lease))
    routes = list(classless(lease)) or [*classful(lease), *([Route(DEFAULT, gateway)] if gateway else [])]
    for route in routes:
        route.priority = priority
    return Result(ips=[IPConfig(address, gateway)], routes=routes)


def prefix_of(lease: Lease) -> int:
    """The length of the subnet's prefix. CniError."""
    mask = lease.options.get(message.MASK)
    if mask is None or len(mask) != 4:
        raise CniError("DHCP option Subnet Mask not found in DHCPACK")
    bits = f"{int.from_bytes(mask, 'big'):032b}"
    prefix = len(bits.rstrip("0"))
    if "0" in bits[:prefix]:
        raise CniError(f"the DHCP server's subnet mask {'.'.join(map(str, mask))} has gaps")
    return prefix


def first_router(lease: Lease) -> bytes | None:
    """The gateway."""
    routers = lease.options.get(message.ROUTER, b"")
    return routers[:4] if routers and len(routers) % 4 == 0 else None


def classless(lease: Lease) -> Iterator[Route]:
    """The routes of option 121; none where the option is damaged."""
    value, at, found = lease.options.get(message.CLASSLESS_ROUTES, b""), 0, []
    while at < len(value):
        prefix = value[at]
        size = (prefix + 7) // 8
        end = at + 1 + size + 4
        if prefix > 32 or end > len(value):
            return
        router = value[end - 4 : end]
        destination = Address(value[at + 1 : at + 1 + size].ljust(4, b"\0"), prefix)
        found.append(Route(destination, router, scope=SCOPE_LINK if router == ANY else None))
        at = end
    yield from found


def classful(lease: Lease) -> Iterator[Route]:
    """The routes of option 33: pairs of a network of class A, B or C, and a router."""
    value = lease.options.get(message.STATIC_ROUTES, b"")
    for at in range(0, len(value) - 7, 8):
        network, router = value[at : at + 4], value[at + 4 : at + 8]
        prefix = 8 if network[0] < 128 else 16 if network[0] < 192 else 24 if network[0] < 224 else 0
        if prefix:
            yield Route(Address(network, prefix), router)
