"""Operations on links, addresses, routes and sysctls: what connecting a container consists of.

"host" is the namespace the plugin runs in, "container" that of CNI_NETNS. Interface indexes occur only inside: a link gets a
new one when it changes namespace. Addresses are text ("192.0.2.2/24") because operations are written to records.
"""

import errno

from cni_py.addr import Address, parse_address, parse_ip
from cni_py.attachment.engine import Op
from cni_py.errors import CniError, InvalidNetworkConfig, IOFailure, kernel_words
from cni_py.kernel import inet, rtnl, sysctl
from cni_py.protocol.result import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link, Rtnl

UP_LIMIT_S = 3.0  # a veth has its carrier within milliseconds; the Go plugins give it 2.55 s in all
DAD_LIMIT_S = 5.0  # duplicate address detection takes 1 s by default (net.ipv6.conf.*.dad_transmits)


def need(side: "Rtnl", name: str) -> "Link":
    """The link called `name`, or an error that says it is not there."""
    link = side.link(name)
    if link is None:
        raise CniError(f"Interface name {name} not found: the interface is not there")
    return link


def broadcast_of(address: Address) -> bytes | None:
    """The broadcast address ip(8) would set: IPv4 only, and not where a prefix has no room for one (RFC 3021)."""
    return address.broadcast() if address.family == 4 and address.prefixlen < 31 else None


def ipv6_off(name: str, address: str, error: OSError) -> CniError | None:
    """The error for an IPv6 address that is refused since IPv6 is off; None where it is something else."""
    if ":" not in address or error.errno not in (errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
        return None
    try:
        if sysctl.read(f"ipv6/conf/{name}/disable_ipv6") == "0":
            return None
    except OSError:
        pass  # no IPv6 in this kernel, or no such link
    return InvalidNetworkConfig(
        f"cannot give {name} the address {address}: IPv6 is disabled on this host",
        f"take the IPv6 range of {address} out of ranges in the network's configuration, or enable IPv6 "
        "(sysctl net.ipv6.conf.all.disable_ipv6=0)",
    )


def set_sysctl(key: str, value: str, *, optional: bool) -> bool:
    """Write a sysctl below net/; an `optional` one may be missing or refused (old kernel, read-only /proc)."""
    try:
        return sysctl.write(key, value, optional=optional)
    except OSError as error:
        hint = ""
        if error.errno == errno.ENOENT and key.startswith("ipv6/"):
            hint = "; there is no IPv6: the kernel is without it, or the interface has an MTU below 1280"
        action = f"cannot set the sysctl net.{key.replace('/', '.')} to {value} (/proc/sys/net/{key})"
        raise IOFailure(action, kernel_words(error, action) + hint) from error


class AddVeth(Op):
    """A veth pair, one end in each namespace; deleting one end deletes both."""

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
                raise CniError(
                    f'container veth name ("{self.ifname}") peer provided ("{self.name}") already exists'
                ) from error
            hint = f"; an MTU of {self.mtu} may be none for it" * (error.errno == errno.EINVAL and self.mtu != 0)
            raise IOFailure(self.failure(), f"{kernel_words(error)}{hint}") from error
        kernel.host.set_link(self.name, alias=kernel.key.comment, up=True)
        set_sysctl(f"ipv6/conf/{self.name}/accept_ra", "0", optional=True)

    def undo(self, kernel: "Kernel") -> None:
        link = kernel.host.link(self.name)
        if link is None or link.kind != "veth":
            return
        # An ADD killed between the two requests leaves a pair without alias; its name alone, 32 bits of our hash, marks it.
        if link.alias and not link.alias.startswith(kernel.key.hex):
            return
        kernel.host.delete_link(link.index)

    def check(self, kernel: "Kernel") -> str | None:
        link = kernel.host.link(self.name)
        if link is None:
            return f"Interface name {self.name} not found"
        return None if link.flags & rtnl.IFF_UP else f"host veth {self.name} is down"


class SetContainerSysctl(Op):
    """A value below /proc/sys/net in the container; what is `optional` may be refused by an old or read-only /proc."""

    key: str
    value: str
    optional: bool
    line = "container: sysctl net/{key} = {value}"
    deed = "set the container's sysctl net/{key} to {value}"

    def apply(self, kernel: "Kernel") -> None:
        with kernel.in_container():
            set_sysctl(self.key, self.value, optional=self.optional)


class SetContainerUp(Op):
    """The container's end is up."""

    ifname: str
    line = "container: set {ifname} up"
    deed = "set {ifname} up in the container"

    def apply(self, kernel: "Kernel") -> None:
        kernel.container.set_link(self.ifname, up=True)


class AddAddress(Op):
    """An address of the container's interface, usable at once unless duplicate address detection is wanted."""

    ifname: str
    address: str
    dad: bool
    line = "container: address {address} on {ifname}"
    deed = "give {ifname} in the container the address {address}"

    def apply(self, kernel: "Kernel") -> None:
        address = parse_address(self.address)
        link = need(kernel.container, self.ifname)
        inet.add_address(
            kernel.container,
            link.index,
            address,
            nodad=address.family == 6 and not self.dad,
            broadcast=broadcast_of(address),
        )

    def check(self, kernel: "Kernel") -> str | None:
        link = need(kernel.container, self.ifname)
        held = [str(entry.address) for entry in inet.addresses(kernel.container, link.index)]
        return None if self.address in held else f"Failed to match addr {self.address} on interface {self.ifname}"


class WaitForAddresses(Op):
    """No IPv6 address of the interface is tentative any more."""

    ifname: str
    line = "container: wait until duplicate address detection on {ifname} is over"
    deed = "wait for duplicate address detection on {ifname}"

    def apply(self, kernel: "Kernel") -> None:
        inet.wait_addresses(kernel.container, need(kernel.container, self.ifname).index, DAD_LIMIT_S)


class AddRoute(Op):
    """A route of the container; `gw` "" is a connected one, -1 in `table` and `scope` leaves the kernel's choice.

    It comes before another route to the same destination, as with the Go plugins: the network that was added last has the
    IPv4 default route. (IPv6 makes one multipath route of them.)
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
        link = need(kernel.container, self.ifname)
        try:
            inet.add_route(kernel.container, self.route(), link.index, beside="before")
        except FileExistsError:
            pass  # this very route: said twice, by IPAM and by isDefaultGateway, or made by the kernel with the address
        except OSError as error:
            via = f" via {self.gw}" if self.gw else ""
            lost = error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH) and self.gw
            hint = "; no address or route before it leads to that gateway from the container" if lost else ""
            action = f"failed to add route '{self.dst}{via} dev {self.ifname}' in the container"
            raise IOFailure(action, f"{kernel_words(error)}{hint}") from error

    def check(self, kernel: "Kernel") -> str | None:
        wanted = self.route()
        index = need(kernel.container, self.ifname).index
        table = inet.RT_TABLE_MAIN if wanted.table is None else wanted.table
        for route in inet.routes(kernel.container, index, wanted.dst.family, table):
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


class EnsureForwarding(Op):
    """The host forwards packets of one family (ip-sysctl: ip_forward, conf/all/forwarding)."""

    family: int
    line = "host: IPv{family} forwarding is on"
    deed = "turn IPv{family} forwarding on"

    @property
    def key(self) -> str:
        """The sysctl."""
        return "ipv4/ip_forward" if self.family == 4 else "ipv6/conf/all/forwarding"

    def apply(self, kernel: "Kernel") -> bool:
        return set_sysctl(self.key, "1", optional=False)

    def check(self, kernel: "Kernel") -> str | None:
        return None if sysctl.read(self.key) == "1" else f"IPv{self.family} forwarding is off (net/{self.key})"


class ForgetNeighbour(Op):
    """The host forgets which MAC an address had: it may have been another container's a moment ago."""

    name: str
    ip: str
    line = "host: forget the old neighbour entry of {ip} on {name}"
    deed = "forget the old neighbour entry of {ip} on {name}"

    def apply(self, kernel: "Kernel") -> None:
        inet.delete_neighbour(kernel.host, need(kernel.host, self.name).index, parse_ip(self.ip))


class AnnounceAddresses(Op):
    """Tell the neighbours which MAC the addresses have now.

    With arp_notify and ndisc_notify the kernel sends a gratuitous ARP and an unsolicited neighbour advertisement whenever the
    MAC is set, also to the value it has (inetdev_event() and ndisc_netdev_event(), NETDEV_CHANGEADDR). It does so as well when
    the link comes up, but a bridge drops that one: its port begins to forward a moment later.
    """

    ifname: str
    mac: bytes
    line = "container: announce the addresses of {ifname} (gratuitous ARP, unsolicited neighbour advertisement)"
    deed = "announce the addresses of {ifname}"

    def apply(self, kernel: "Kernel") -> None:
        kernel.container.set_link(self.ifname, mac=self.mac)
