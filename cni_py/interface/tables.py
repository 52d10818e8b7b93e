"""Routing tables of the container, for the plugins sbr and vrf: which are free, and routes that move between them.

A table's number is taken where a rule leads to it, where it has a route, and where a VRF has it: one that is new or whose
interfaces are down has neither rule nor route. Numbers are chosen under a lock.

A route that moves is recorded as the kernel's own message (inet.copies()), so that it keeps all that it has.
"""

import errno

from cni_py import files
from cni_py.addr import ip_text
from cni_py.attachment.locks import Lock
from cni_py.errors import os_error
from cni_py.kernel import inet, rules
from cni_py.kernel.netlink import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link, Rtnl

TABLE_MAX = (1 << 32) - 1
NAMED = range(252, 256)  # compat, default, main and local
IFLA_VRF_TABLE = 1  # if_link.h
DEFAULT_V6_METRIC = 1024  # IP6_RT_PRIO_USER, of a route that is added without one
# It is there already; the interface, its address or the way to the gateway is gone; the interface is down, or without IPv6
GONE = (errno.EEXIST, errno.ENODEV, errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EACCES)


def check_table(table: int) -> None:
    """ValueError for a number that no table has."""
    if not 0 < table <= TABLE_MAX:
        raise ValueError(f"{table} is no table (they are 1 to {TABLE_MAX})")


def lock(kernel: "Kernel", *, needed: bool = True) -> Lock:
    """Held from choosing a table until it is taken, and while a VRF without interfaces is looked for (not `needed`: DEL)."""
    name = kernel.container_cookie or kernel.container_file
    return Lock(files.lock_path(f"tables-{name}"), "the routing tables of the container", remove=True, needed=needed)


def free(side: "Rtnl", first: int, count: int) -> list[int]:
    """The first free tables from `first` on."""
    taken = {rule.table for rule in rules.rules(side)} | {route.table for route in inet.routes(side, table=0)}
    taken.update(of_vrf(link) for link in side.links() if link.kind == "vrf")
    taken.update(NAMED)
    found: list[int] = []
    table = first
    while len(found) < count:
        if table not in taken:
            found.append(table)
        table += 1
    return found


def of_vrf(link: "Link") -> int:
    """The table of a VRF."""
    return number(link.data.get(IFLA_VRF_TABLE))


def of_link(side: "Rtnl", link: "Link") -> list[int]:
    """The tables that have the interface's routes after vrf or sbr: its VRF's, and those for packets from its addresses."""
    master = side.link(link.master) if link.master else None
    found = {of_vrf(master)} if master is not None and master.kind == "vrf" else set()
    sources = {addr.address.host() for addr in inet.addresses(side, link.index)}
    try:
        found.update(rule.table for rule in rules.rules(side) if rule.source in sources)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # a kernel without rules
            raise
    return sorted(found)


# Routes that move


def check_routes(bodies: "Iterable[bytes]") -> None:
    """ValueError for what is no message of a route."""
    for body in bodies:
        if len(body) < inet.ROUTE_MIN:
            raise ValueError(f"not a route: {body.hex()}")
        route_text(body)  # ValueError


def put(side: "Rtnl", bodies: "Sequence[bytes]", table: int) -> None:
    """Give the table the routes, in this order; those that are there already count as put. CniError."""
    for body in last_first(bodies):
        try:
            inet.put_copy(side, body, table)
        except FileExistsError:
            continue
        except OSError as error:
            action = f"cannot add the route {route_text(body)} to table {table} of the container"
            raise os_error(action, error) from error


def put_back(side: "Rtnl", bodies: "Sequence[bytes]", table: int) -> None:
    """The same, as far as it is possible still. OSError."""
    for body in last_first(bodies):
        try:
            inet.put_copy(side, body, table)
        except OSError as error:
            if error.errno not in GONE:
                raise


def lacking(side: "Rtnl", bodies: "Sequence[bytes]", table: int) -> str:
    """The routes that the table does not have, in the words of ip(8)."""
    held = {key(route) for route in inet.routes(side, table=table)}
    return ", ".join(route_text(body) for body in bodies if key(inet.Route(body)) not in held)


def near_first(bodies: "Iterable[bytes]") -> list[bytes]:
    """Routes without a gateway before those with one, whose gateway the kernel must be able to reach."""
    return sorted(bodies, key=lambda body: inet.Route(body).gw is not None)


def last_first(bodies: "Sequence[bytes]") -> list[bytes]:
    """The same for put_copy(), which puts an IPv4 route before its equals, and an IPv6 one behind."""
    four = [body for body in bodies if inet.Route(body).dst.family == 4]
    return near_first([*reversed(four), *(body for body in bodies if body not in four)])


def key(route: inet.Route) -> "tuple[object, ...]":
    """What tells routes of one table apart."""
    priority = route.priority or (DEFAULT_V6_METRIC if route.dst.family == 6 else 0)
    return route.dst, priority, route.gw, route.index


def route_text(body: bytes) -> str:
    """The route in the words of ip(8)."""
    route = inet.Route(body)
    words = "default" if route.dst.prefixlen == 0 else str(route.dst)
    words += f" via {ip_text(route.gw)}" if route.gw is not None else ""
    words += f" src {ip_text(route.src)}" if route.src is not None else ""
    return words + (f" metric {route.priority}" if route.priority else "")
