"""Operations of the vrf plugin: an interface of the container gets a routing table of its own, that of a VRF.

An interface that joins or leaves a VRF is set down and up by the kernel (cycle_netdev()). Its routes go with that, and so do its
IPv6 addresses unless net.ipv6.conf.*.keep_addr_on_down is set; those of IPv4 stay, and the kernel makes their routes anew, in the
table of the VRF. The rest is put back here: addresses and routes as the kernel's own messages (inet.py), so that they keep
all that they have, and recorded before the interface moves, so that nothing is lost when the ADD is killed in between.

`netns` is the cookie of the namespace in which an operation changed something; nothing is undone in another one.

Sources: Linux Documentation/networking/vrf.rst, drivers/net/vrf.c, net/ipv6/addrconf.c.
"""

import errno

from cni_py.attachment.engine import Op
from cni_py.errors import IOFailure, kernel_words, os_error
from cni_py.interface import tables
from cni_py.interface.common import need
from cni_py.kernel import inet
from cni_py.kernel.netlink import attr, u32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link, Rtnl

# What the kernel makes by itself: with addresses, and of router advertisements, for which it asks anew
BY_KERNEL = (inet.RTPROT_KERNEL, inet.RTPROT_RA)


class AddVrf(Op):
    """The VRF, up. Several interfaces may be in it: undo() deletes it when there is none any more."""

    name: str
    table: int
    netns: int
    owned = True
    line = "container: VRF {name}, table {table}"
    deed = "make the VRF {name} with table {table} in the container"

    def validate(self) -> None:
        tables.check_table(self.table)

    def apply(self, kernel: "Kernel") -> bool:
        side = kernel.container
        found = side.link(self.name)
        if found is None:
            try:
                side.add_link("vrf", self.name, data=attr(tables.IFLA_VRF_TABLE, u32(self.table)))
            except OSError as error:
                hint = "; this kernel has no VRFs (module vrf)" if error.errno == errno.EOPNOTSUPP else ""
                raise IOFailure(self.failure(), kernel_words(error) + hint) from error
            side.set_link(self.name, alias=kernel.key.comment)
        side.set_link(self.name, up=True)
        # One that was there and empty is somebody else's, and stays when this ADD fails. Others may leave one that is in use.
        return found is None or bool(side.links(found.index))

    def undo(self, kernel: "Kernel") -> None:
        within = kernel.at(self.netns)
        if within is not None:
            with tables.lock(within, needed=False):
                delete_empty(within.container, self.name)

    def check(self, kernel: "Kernel") -> str | None:
        link = need(kernel.container, self.name)
        if link.kind != "vrf":
            return f"Netlink {self.name} is not a VRF"
        if tables.of_vrf(link) != self.table:
            return f"VRF {self.name} has the routing table {tables.of_vrf(link)}, not {self.table}"
        return None if link.up else f"VRF {self.name} is down"


class JoinVrf(Op):
    """The interface is in the VRF, with the addresses that it had, with its routes of the table main in the VRF's, and with those
    of other tables, which sbr or a network's configuration may have made, where they were.
    """

    ifname: str
    name: str
    table: int
    addresses: list[bytes]
    routes: list[bytes]
    netns: int
    owned = True
    deed = "put {ifname} of the container into the VRF {name}"

    def validate(self) -> None:
        tables.check_table(self.table)
        for body in self.addresses:
            inet.address_in(body)  # ValueError
        tables.check_routes(self.routes)

    def describe(self) -> str:
        moved = f", with the routes {', '.join(map(tables.route_text, self.routes))}" if self.routes else ""
        return f"container: {self.ifname} into VRF {self.name}{moved}"

    def apply(self, kernel: "Kernel") -> None:
        side = kernel.container
        link = need(side, self.ifname)
        side.set_link(link.index, master=need(side, self.name).index)
        for body in self.addresses:
            try:
                inet.put_address(side, body)
            except FileExistsError:
                continue  # net.ipv6.conf.*.keep_addr_on_down
            except OSError as error:
                raise os_error(f"cannot restore the address {inet.address_in(body)} of {self.ifname}", error) from error
        for table, routes in by_table(self.routes, self.table, self.table).items():
            tables.put(side, routes, table)

    def undo(self, kernel: "Kernel") -> None:
        within = kernel.at(self.netns)
        if within is None:
            return
        side = within.container
        link, vrf = side.link(self.ifname), side.link(self.name)
        if link is None:
            return
        if vrf is not None and link.master == vrf.index:
            leave(side, link, vrf, self.addresses, self.routes)
        elif not link.master:  # killed, or failed, while it was on its way
            put_back(side, link, self.addresses, self.routes, self.table)

    def check(self, kernel: "Kernel") -> str | None:
        side = kernel.container
        link = need(side, self.ifname)
        if link.master != need(side, self.name).index:
            return f"failed to find {self.ifname} associated to vrf {self.name}"
        held = {addr.address for addr in inet.addresses(side, link.index)}
        lost = [str(address) for body in self.addresses if (address := inet.address_in(body)) not in held]
        if lost:
            return f"{self.ifname} lacks the address {', '.join(lost)}"
        for table, routes in by_table(self.routes, self.table, self.table).items():
            missing = tables.lacking(side, routes, table)
            if missing:
                place = f"table {table} of VRF {self.name}" if table == self.table else f"table {table}"
                return f"{place} lacks the route {missing}"
        return None


def addresses_at_stake(side: "Rtnl", link: "Link") -> list[bytes]:
    """The IPv6 addresses that the interface would lose, but for those that the kernel makes anew."""
    return inet.address_copies(side, link.index, 6)


def routes_at_stake(side: "Rtnl", link: "Link") -> list[bytes]:
    """The routes of all tables that the interface would lose, but for those that the kernel makes anew."""
    return [body for body in inet.copies(side, link.index, 0) if inet.Route(body).protocol not in BY_KERNEL]


def by_table(bodies: "Sequence[bytes]", vrf: int, to: int) -> dict[int, list[bytes]]:
    """The routes by the tables that they belong in: those of main and of the VRF's table in `to`, which comes first."""
    found: dict[int, list[bytes]] = {to: []}
    for body in bodies:
        table = inet.Route(body).table
        found.setdefault(to if table in (inet.RT_TABLE_MAIN, vrf) else table, []).append(body)
    return found


def leave(
    side: "Rtnl", link: "Link", vrf: "Link", addresses: "Sequence[bytes]" = (), routes: "Sequence[bytes]" = ()
) -> None:
    """Take an interface out of its VRF. It keeps its addresses, and its routes go back to the table main. OSError.

    Those given are what it had before it came in; what it has got since is kept as well.
    """
    addresses = [*addresses, *addresses_at_stake(side, link)]
    routes = [*routes, *routes_at_stake(side, link)]
    side.set_link(link.index, master=0)
    put_back(side, link, addresses, routes, tables.of_vrf(vrf))


def put_back(side: "Rtnl", link: "Link", addresses: "Sequence[bytes]", routes: "Sequence[bytes]", vrf: int) -> None:
    """Give the interface what it has lost, as far as that is possible still. `vrf`: the table whose routes go back to main."""
    for body in addresses:
        try:
            inet.put_address(side, body)
        except OSError as error:
            if error.errno not in tables.GONE:
                raise
    if not link.up:
        return  # it has no routes
    for table, bodies in by_table(routes, vrf, inet.RT_TABLE_MAIN).items():
        tables.put_back(side, bodies, table)


def delete_empty(side: "Rtnl", name: str) -> None:
    """Delete the VRF if no interface is in it. Under tables.lock(), for an ADD may be about to use it."""
    vrf = side.link(name)
    if vrf is not None and vrf.kind == "vrf" and not side.links(vrf.index):
        side.delete_link(vrf.index)
