"""Operations of the sbr plugin: what comes from an address of the container leaves by the interface that has the address.

A rule leads the packets from the address to a table of its own, and the table has the interface's routes, which the table
main had before.

`netns` is the cookie of the namespace in which an operation changed something; nothing is undone in another one.
"""

from cni_py.addr import Address, parse_address
from cni_py.attachment.engine import Op
from cni_py.interface import tables
from cni_py.kernel import inet, rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Rtnl
    from cni_py.protocol.result import IPConfig

FIRST_TABLE = 100  # the first that is given to an address; the Go plugin's, too


class RouteBySource(Op):
    """A rule: packets from `source` ("192.0.2.2/32") take the routes of a table."""

    source: str
    table: int
    netns: int
    owned = True
    line = "container: rule from {source} lookup {table}"
    deed = "add the rule from {source} lookup {table} in the container"

    def validate(self) -> None:
        parse_address(self.source)  # ValueError
        tables.check_table(self.table)

    def apply(self, kernel: "Kernel") -> None:
        rules.add_rule(kernel.container, parse_address(self.source), self.table)

    def undo(self, kernel: "Kernel") -> None:
        within = kernel.at(self.netns)
        if within is not None:
            rules.delete_rule(within.container, parse_address(self.source), self.table)

    def check(self, kernel: "Kernel") -> str | None:
        source = parse_address(self.source)
        found = rules.rules(kernel.container, source.family)
        if any((rule.source, rule.table) == (source, self.table) for rule in found):
            return None
        return f"the rule from {self.source} lookup {self.table} is not there in the container"


class Routes(Op):
    """Routes of one interface, in or from one table."""

    table: int
    routes: list[bytes]
    netns: int

    def validate(self) -> None:
        tables.check_table(self.table)
        tables.check_routes(self.routes)

    def shown(self) -> "dict[str, object]":
        return {**super().shown(), "routes": ", ".join(map(tables.route_text, self.routes))}

    def take(self, side: "Rtnl") -> None:
        """Delete the routes from the table; those that are gone count as deleted. OSError."""
        for body in reversed(tables.near_first(self.routes)):
            inet.delete_copy(side, body, self.table)


class FillTable(Routes):
    """Routes that the table gets; those that are there already count as put."""

    owned = True
    line = "container: table {table}: {routes}"

    def apply(self, kernel: "Kernel") -> None:
        tables.put(kernel.container, self.routes, self.table)

    def undo(self, kernel: "Kernel") -> None:
        within = kernel.at(self.netns)
        if within is not None:
            self.take(within.container)

    def check(self, kernel: "Kernel") -> str | None:
        missing = tables.lacking(kernel.container, self.routes, self.table)
        return f"table {self.table} of the container lacks the route {missing}" if missing else None


class EmptyTable(Routes):
    """Routes that are taken from the table, and put back by undo() as far as their interface is still there."""

    owned = True
    line = "container: take from table {table}: {routes}"
    deed = "take the routes {routes} from table {table} of the container"

    def apply(self, kernel: "Kernel") -> None:
        self.take(kernel.container)

    def undo(self, kernel: "Kernel") -> None:
        within = kernel.at(self.netns)
        if within is not None:
            tables.put_back(within.container, self.routes, self.table)


def fits(body: bytes, address: Address, addresses: "Sequence[Address]") -> bool:
    """Whether packets from `address` can take the route: its source or gateway is in the address's subnet.

    As with the Go plugin a route without either is everybody's, of the other family, too. One whose gateway is in no subnet
    (a router's link-local address, the gateway of an address without a subnet) is that of every address of its family.
    """
    route = inet.Route(body)
    ends = [end for end in (route.src, route.gw) if end is not None]
    if not ends or any(address.contains(end) for end in ends):
        return True
    return address.family == route.dst.family and not any(each.contains(end) for each in addresses for end in ends)


def table_routes(
    ip: "IPConfig", static: bytes | None, present: "Sequence[bytes]", addresses: "Sequence[Address]", index: int
) -> list[bytes]:
    """What the table of an address gets: a default route by its gateway, and its routes among those `present` in main.

    Default routes of main take the place of the one by the result's gateway, but not of a gateway of the configuration, which
    is `static`.
    """
    from cni_py.protocol.result import Route

    every = Address(bytes(len(ip.address.packed)), 0)
    found = [body for body in present if fits(body, ip.address, addresses)]
    if static:
        found = [body for body in found if inet.Route(body).dst != every]
    gateway = static or ip.gateway
    has_default = any(inet.Route(body).dst == every for body in found)
    if gateway is not None and len(gateway) == len(every.packed) and not has_default:
        found.append(inet.new_route(Route(every, gateway), index))
    return found


def hints(ips: "Sequence[IPConfig]", index: int) -> list[bytes]:
    """For the table main: a route to the subnet of each address, with the address as the source of packets to there."""
    from cni_py.protocol.result import Route

    found: dict[Address, bytes] = {}
    for ip in ips:
        subnet = ip.address.network()
        if subnet.prefixlen < 8 * len(subnet.packed):
            found[subnet] = inet.new_route(
                Route(subnet, scope=inet.RT_SCOPE_LINK if subnet.family == 4 else None), index, ip.address.packed
            )
    return list(found.values())


def stays(body: bytes, hinted: "Sequence[bytes]") -> bool:
    """Whether a route stays in main with source hints: a connected IPv4 one, unless a hint takes its place."""
    route = inet.Route(body)
    replaced = route.dst in [inet.Route(hint).dst for hint in hinted]
    return route.dst.family == 4 and route.scope == inet.RT_SCOPE_LINK and not replaced


def delete_by_source(side: "Rtnl", sources: "Iterable[Address]", index: int, table: int | None) -> None:
    """Delete the rules from these addresses, and the routes out of the interface that are in their tables. OSError.

    `table` is the one that the configuration names: then its rules alone, and its routes are somebody else's.
    """
    wanted = set(sources)
    for rule in rules.rules(side):
        if rule.source not in wanted or rule.table in (0, *tables.NAMED) or table not in (None, rule.table):
            continue
        assert rule.source is not None
        rules.delete_rule(side, rule.source, rule.table)
        if table is None and index:
            for body in inet.copies(side, index, rule.table):
                inet.delete_copy(side, body, rule.table)
