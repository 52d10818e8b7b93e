"""Operations that bridge, ptp and macvlan have in common: the veth pair, and the container's addresses, routes and sysctls.

"host" is the namespace that the plugin runs in, "container" that of CNI_NETNS. Fields hold names, never interface indexes: a
link gets a new index when it changes namespace. Addresses are text ("192.0.2.2/24"), since records are JSON.
"""

import errno

from cni_py.addr import Address, parse_address, parse_ip
from cni_py.attachment.engine import Op
from cni_py.errors import CniError, InvalidNetworkConfig, IOFailure, kernel_words
from cni_py.kernel import inet, sysctl
from cni_py.protocol.result import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link, Rtnl

UP_LIMIT_S = 3.0  # a veth has its carrier within milliseconds; the Go plugins give it 2.55 s in all
DAD_LIMIT_S = 5.0  # duplicate address detection takes 1 s by default (net.ipv6.conf.*.dad_transmits)


def need(side: "Rtnl", name: str) -> "Link":
    """The link called `name`. CniError when there is none."""
    link = side.link(name)
    if link is None:
        raise CniError(f"Interface name {name} not found: the interface is not there")
    return link


def need_index(side: "Rtnl", name: str) -> int:
    """The index of the link called `name`, which this call has seen before, or sees now. CniError when there is none."""
    return side.index(name) or need(side, name).index


def broadcast_of(address: Address) -> bytes | None:
    """The broadcast address as ip(8) sets it. None for IPv6, and for /31 and /32, which have none (RFC 3021)."""
    return address.broadcast() if address.family == 4 and address.prefixlen < 31 else None


def ipv6_off(name: str, address: str, error: OSError) -> CniError | None:
    """The error to raise when the kernel refuses an IPv6 address because IPv6 is disabled; None for any other refusal."""
    if ":" not in address or error.errno not in (errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
        return None
    where, of = "on this host", "all"
    try:
        if sysctl.read(f"ipv6/conf/{name}/disable_ipv6") == "0":
            return None
        if sysctl.read("ipv6/conf/all/disable_ipv6") == "0" == sysctl.read("ipv6/conf/default/disable_ipv6"):
            where, of = f"on {name}", name
    except OSError:
        pass  # no IPv6 in this kernel, or no such link
    return InvalidNetworkConfig(
        f"cannot give {name} the address {address}: IPv6 is disabled {where}",
        f"take the IPv6 range of {address} out of ranges in the network's configuration, or enable IPv6 "
        f"(sysctl net.ipv6.conf.{of.replace('.', '/')}.disable_ipv6=0)",
    )


def set_sysctl(key: str, value: str, *, optional: bool) -> bool:
    """Write a sysctl below net/ unless it has the value. True: written. IOFailure, but for an `optional` one that is missing
    or cannot be written (an old kernel, a read-only /proc/sys).
    """
    try:
        return sysctl.write(key, value, optional=optional)
    except OSError as error:
        hint = ""
        # The kernel takes the folder of an interface away while its MTU is below IPV6_MIN_MTU (addrconf_notify()).
        if error.errno == errno.ENOENT and key.startswith("ipv6/"):
            hint = "; there is no IPv6: the kernel is without it, or the interface has an MTU below 1280"
        action = f"cannot set the sysctl net.{key.replace('/', '.')} to {value} (/proc/sys/net/{key})"
        raise IOFailure(action, kernel_words(error, action) + hint) from error


def pair_exists(ifname: str, host_end: str) -> CniError:
    """The error for a veth pair whose name in the container is taken, in the Go plugins' words."""
    return CniError(f'container veth name ("{ifname}") peer provided ("{host_end}") already exists')


class AddVeth(Op):
    """A veth pair, one end in each namespace; deleting one end deletes both. `mtu` 0 leaves the kernel's default."""

    name: str
    ifname: str
    mtu: int
    host_mac: bytes
    container_mac: bytes
    owned = True
    deed = "make the veth pair {name} (host) and {ifname} (container)"

    def describe(self) -> str:
        mtu = f", MTU {self.mtu}" if self.mtu else ""
        ends = f"{self.name} ({self.host_mac.hex(':')})", f"{self.ifname} ({self.container_mac.hex(':')})"
        return f"host: add veth {ends[0]} with its peer {ends[1]} in the container{mtu}"

    def apply(self, kernel: "Kernel") -> None:
        # Asked in the container, with the peer sent to the host: a link that is moved is refused (EEXIST) when its name is in
        # use on the way, and so would be a pair made on the host, which nearly always has an eth0 of its own.
        try:
            kernel.container.add_veth(
                self.ifname,
                self.name,
                peer_netns_fd=kernel.host_fd,
                mtu=self.mtu,
                mac=self.container_mac,
                peer_mac=self.host_mac,
            )
        except OSError as error:
            if error.errno == errno.EEXIST and kernel.container.link(self.ifname) is not None:
                raise pair_exists(self.ifname, self.name) from error
            hint = f"; an MTU of {self.mtu} may be none for it" * (error.errno == errno.EINVAL and self.mtu != 0)
            raise IOFailure(self.failure(), f"{kernel_words(error)}{hint}") from error
        kernel.host.set_link(self.name, alias=kernel.key.comment, up=True)
        # Else a router advertisement from the container could give the host a default route while it does not forward IPv6.
        set_sysctl(f"ipv6/conf/{self.name}/accept_ra", "0", optional=True)

    def own_link(self, kernel: "Kernel") -> "Link | None":
        link = kernel.host.link(self.name)
        if link is None or link.kind != "veth":
            return None
        # The kernel takes an alias only in a second request. An ADD killed between the two leaves a pair without one; then
        # the name, with 32 bits of our hash, is the mark.
        return link if not link.alias or link.alias.startswith(kernel.key.hex) else None

    def undo(self, kernel: "Kernel") -> None:
        link = self.own_link(kernel)
        if link is not None:
            kernel.host.delete_link(link.index)

    def check(self, kernel: "Kernel") -> str | None:
        link = kernel.host.link(self.name)
        if link is None:
            return f"Interface name {self.name} not found"
        return None if link.up else f"host veth {self.name} is down"


class SetContainerSysctl(Op):
    """A sysctl of the container. An `optional` one may be missing or read-only."""

    key: str
    value: str
    optional: bool
    line = "container: sysctl net/{key} = {value}"
    deed = "set the container's sysctl net/{key} to {value}"

    def apply(self, kernel: "Kernel") -> None:
        with kernel.in_container():
            set_sysctl(self.key, self.value, optional=self.optional)


class SetContainerUp(Op):
    """The container's interface is up."""

    ifname: str
    line = "container: set {ifname} up"
    deed = "set {ifname} up in the container"

    def apply(self, kernel: "Kernel") -> None:
        kernel.container.set_link(self.ifname, up=True)


class AddAddress(Op):
    """An address of the container's interface. Without `dad` an IPv6 address is usable at once.

    With it the address is tentative for a second or two: the kernel asks whether a neighbour has it (RFC 4862, section 5.4),
    and until then neither receives nor sends from it.
    """

    ifname: str
    address: str
    dad: bool
    line = "container: address {address} on {ifname}"
    deed = "give {ifname} in the container the address {address}"

    def apply(self, kernel: "Kernel") -> None:
        address = parse_address(self.address)
        inet.add_address(
            kernel.container,
            need_index(kernel.container, self.ifname),
            address,
            nodad=address.family == 6 and not self.dad,
            broadcast=broadcast_of(address),
        )

    def check(self, kernel: "Kernel") -> str | None:
        link = need(kernel.container, self.ifname)
        held = [str(entry.address) for entry in inet.addresses(kernel.container, link.index)]
        return None if self.address in held else f"Failed to match addr {self.address} on interface {self.ifname}"


class WaitForAddresses(Op):
    """Duplicate address detection is over for each IPv6 address of the interface. OSError EADDRINUSE for one that is taken."""

    ifname: str
    line = "container: wait until duplicate address detection on {ifname} is over"
    deed = "wait for duplicate address detection on {ifname}"

    def apply(self, kernel: "Kernel") -> None:
        inet.wait_addresses(kernel.container, need(kernel.container, self.ifname).index, DAD_LIMIT_S)


class AddRoute(Op):
    """A route of the container. `gw` "" is a connected route; -1 in `table` or `scope` leaves it to the kernel.

    It comes before other routes to the same destination, as with the Go plugins: of a container's networks, the one that was
    added last has the IPv4 default route. (Of IPv6 routes the kernel makes one multipath route.)
    """

    ifname: str
    dst: str
    gw: str
    mtu: int
    advmss: int
    priority: int
    table: int
    scope: int

    def describe(self) -> str:
        via = f" via {self.gw}" if self.gw else ""
        return f"container: route {self.dst}{via} dev {self.ifname}"

    def apply(self, kernel: "Kernel") -> None:
        index = need_index(kernel.container, self.ifname)
        try:
            inet.add_route(kernel.container, self.route(), index, beside="before")
        except FileExistsError:
            pass  # this very route is there: from IPAM and from isDefaultGateway, or made by the kernel with the address
        except OSError as error:
            via = f" via {self.gw}" if self.gw else ""
            lost = error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH) and self.gw
            hint = "; no address or route before it leads to that gateway from the container" if lost else ""
            action = f"failed to add route '{self.dst}{via} dev {self.ifname}' in the container"
            raise IOFailure(action, f"{kernel_words(error)}{hint}") from error

    def check(self, kernel: "Kernel") -> str | None:
        wanted = self.route()
        link = need(kernel.container, self.ifname)
        for route in checked_routes(kernel.container, link, wanted.dst.family, wanted.table):
            if route.dst == wanted.dst and (wanted.gw in (None, route.gw) or wanted.dst.prefixlen == 0):
                return None
        return f"Expected Route {self.dst} not found in routing table of {self.ifname} in the container"

    def route(self) -> Route:
        """The route as a value."""
        return Route(
            parse_address(self.dst).network(),
            parse_ip(self.gw) if self.gw else None,
            mtu=self.mtu,
            advmss=self.advmss,
            priority=self.priority,
            table=self.table if self.table >= 0 else None,
            scope=self.scope if self.scope >= 0 else None,
        )


def checked_routes(side: "Rtnl", link: "Link", family: int, table: int | None = None) -> "Iterator[inet.Route]":
    """For a CHECK: the routes by an interface in a table; None: in main, or where sbr or vrf have moved those of main."""
    table = inet.RT_TABLE_MAIN if table is None else table
    yield from inet.routes(side, link.index, family, table)
    if table != inet.RT_TABLE_MAIN:
        return
    from cni_py.interface import tables

    for moved in tables.of_link(side, link):
        yield from inet.routes(side, link.index, family, moved)


class EnsureForwarding(Op):
    """The host forwards packets of one family.

    It is written only where it is off: the change resets other settings of the host. IPv4 sets `forwarding` of every interface
    and turns off conf/all/accept_redirects (inet_forward_change()). IPv6 drops the default routes learnt from router
    advertisements, and learns no new ones, on interfaces without accept_ra=2 (rt6_purge_dflt_routers()).
    """

    family: int
    line = "host: IPv{family} forwarding is on"
    deed = "turn IPv{family} forwarding on"

    @property
    def key(self) -> str:
        """The sysctl, below net/."""
        return "ipv4/ip_forward" if self.family == 4 else "ipv6/conf/all/forwarding"

    def apply(self, kernel: "Kernel") -> bool:
        return set_sysctl(self.key, "1", optional=False)

    def check(self, kernel: "Kernel") -> str | None:
        return None if sysctl.read(self.key) == "1" else f"IPv{self.family} forwarding is off (net/{self.key})"


class ForgetNeighbour(Op):
    """Delete the host's neighbour entry of an address: it may hold the MAC of the container that had the address before."""

    name: str
    ip: str
    line = "host: forget the old neighbour entry of {ip} on {name}"
    deed = "forget the old neighbour entry of {ip} on {name}"

    def apply(self, kernel: "Kernel") -> None:
        inet.delete_neighbour(kernel.host, need_index(kernel.host, self.name), parse_ip(self.ip))


class AnnounceAddresses(Op):
    """Tell the neighbours which MAC the container's addresses have now.

    Needs the sysctls arp_notify and ndisc_notify. With them the kernel sends a gratuitous ARP and an unsolicited neighbour
    advertisement whenever the MAC is set, even to the same value (inetdev_event(), ndisc_netdev_event(): NETDEV_CHANGEADDR).
    The ones it sends when the link comes up are lost, since the bridge's port begins to forward a moment later.
    """

    ifname: str
    mac: bytes
    line = "container: announce the addresses of {ifname} (gratuitous ARP, unsolicited neighbour advertisement)"
    deed = "announce the addresses of {ifname}"

    def apply(self, kernel: "Kernel") -> None:
        kernel.container.set_link(self.ifname, mac=self.mac)
