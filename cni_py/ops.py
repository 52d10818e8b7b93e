"""Operations on links, addresses, routes and sysctls: what connecting a container consists of.

"host" is the namespace the plugin runs in, "container" that of CNI_NETNS. Interface indexes occur only inside: a link gets a
new one when it changes namespace. Addresses are text ("192.0.2.2/24") because operations are written to records.
"""

import errno

from cni_py.addr import Address, mac_text, parse_address, parse_ip
from cni_py.engine import Op
from cni_py.errors import CniError, InvalidNetworkConfig, IOFailure, kernel_words, os_error
from cni_py.kernel import rtnl, sysctl
from cni_py.result import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.context import Kernel
    from cni_py.kernel.rtnl import Link, Rtnl

UP_LIMIT_S = 3.0  # a veth has its carrier within milliseconds; the Go plugins give it 2.55 s in all
NET_ADDR_SET = "3"  # linux/netdevice.h
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


def has_assigned_mac(link: "Link") -> bool:
    """Whether somebody set the MAC of the link, as far as /sys shows this very link; False where it does not.

    rtnetlink does not tell. /sys shows the links of the namespace it was mounted in, so it is asked for the index and MAC, too.
    Setting a MAC again would do no harm but one: the kernel forgets all neighbours behind the link (arp_netdev_event()).
    """
    try:
        shown = []
        for name in ("ifindex", "address", "addr_assign_type"):
            with open(f"/sys/class/net/{link.name}/{name}", "rb") as file:
                shown.append(file.read(64).strip().decode("ascii", "replace"))
    except OSError:
        return False
    return shown == [str(link.index), mac_text(link.mac), NET_ADDR_SET]


class EnsureBridge(Op):
    """A bridge, up, with a MAC of its own; otherwise an existing one is taken as it is. `mtu` 0 leaves the kernel's default."""

    name: str
    mac: bytes
    mtu: int
    vlan_filtering: bool
    promisc: bool
    line = "host: bridge {name} is up; it is made, with MAC {mac}, where it is not there; it keeps its MAC whatever its ports are"
    deed = "set up bridge {name} on the host"

    def foretell(self, kernel: "Kernel") -> str:
        if kernel.host.link(self.name) is not None:
            return f"host: use bridge {self.name}, which is there, and set it up"
        mtu = f", MTU {self.mtu}" if self.mtu else ""
        vlans = ", with VLAN filtering" if self.vlan_filtering else ""
        promisc = ", promiscuous" if self.promisc else ""
        return f"host: create bridge {self.name} with MAC {self.mac.hex(':')}{mtu}{vlans}{promisc}, and set it up"

    def apply(self, kernel: "Kernel") -> bool:
        link = kernel.host.link(self.name)
        created = link is None and self._create(kernel.host)
        link = link or need(kernel.host, self.name)
        if link.kind != "bridge":
            kind = link.kind or "an interface of another kind"
            raise InvalidNetworkConfig(
                f'cannot use "{self.name}" as bridge: on the host "{self.name}" already exists but is not a bridge ({kind})',
                'rename it, or choose another name with "bridge"',
            )
        self._keep_mac(kernel.host, link)
        if self.promisc and not link.flags & rtnl.IFF_PROMISC:
            kernel.host.set_link(link.index, promisc=True)
        if not link.up:  # new, or left like this by an ADD that was killed here
            set_sysctl(f"ipv6/conf/{self.name}/accept_ra", "0", optional=True)
            # Nobody else can have our derived MAC; with detection the host could not solicit containers for 2 s.
            set_sysctl(f"ipv6/conf/{self.name}/accept_dad", "0", optional=True)
            kernel.host.set_link(link.index, up=True)
        return created

    def _keep_mac(self, host: "Rtnl", link: "Link") -> None:
        """Stop the bridge from following its ports: without an address of its own it takes the lowest of theirs.

        The host's MAC would change with the first container, and again with the last one's DEL.
        """
        if link.mac != self.mac and not has_assigned_mac(link):
            # A bridge that lost its last port has the MAC 00:00:00:00:00:00, which the kernel would keep, too.
            host.set_link(link.index, mac=link.mac if any(link.mac) else self.mac)

    def _create(self, host: "Rtnl") -> bool:
        try:
            host.add_bridge(self.name, mac=self.mac, mtu=self.mtu, vlan_filtering=self.vlan_filtering)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False  # another ADD made it between our look and this
            hint = ""
            if error.errno == errno.EOPNOTSUPP and self.vlan_filtering:
                hint = "; this kernel's bridges have no VLAN filtering (CONFIG_BRIDGE_VLAN_FILTERING)"
            action = f'cannot create bridge "{self.name}" on the host'
            raise IOFailure(action, f"{kernel_words(error)}{hint}") from error
        return True

    def check(self, kernel: "Kernel") -> str | None:
        link = need(kernel.host, self.name)
        if link.kind != "bridge":
            return f"Interface {self.name} does not have link type of bridge"
        if not link.flags & rtnl.IFF_UP:
            return f"bridge {self.name} is down"
        return None


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


class JoinBridge(Op):
    """The host's end becomes a port of the bridge."""

    name: str
    bridge: str
    hairpin: bool
    isolated: bool
    deed = "make {name} a port of bridge {bridge}"

    def describe(self) -> str:
        options = ", hairpin on" * self.hairpin + ", isolated from other such ports" * self.isolated
        return f"host: make {self.name} a port of bridge {self.bridge}{options}"

    def apply(self, kernel: "Kernel") -> None:
        port = need(kernel.host, self.name)
        kernel.host.set_link(port.index, master=need(kernel.host, self.bridge).index)
        kernel.host.set_bridge_port(port.index, hairpin=self.hairpin, isolated=self.isolated)

    def check(self, kernel: "Kernel") -> str | None:
        bridge, port = kernel.host.link(self.bridge), kernel.host.link(self.name)
        if bridge is None or port is None or port.master != bridge.index:
            return f"{self.name} is not a port of bridge {self.bridge}"
        if self.hairpin and not port.hairpin:  # a chained portmap may have turned it on (hostclients.ReflectToPort)
            return f"hairpin of {self.name} is off"
        return (
            None if port.isolated == self.isolated else f"isolated of {self.name} is {'on' if port.isolated else 'off'}"
        )


class SetPortVlans(Op):
    """The VLANs of a bridge port: `vlan` untagged (0: 1 where there is a trunk), `trunk` a text of ranges "10-20,30" tagged."""

    name: str
    vlan: int
    trunk: str
    keep_default: bool
    deed = "set the VLANs of bridge port {name}"

    def describe(self) -> str:
        carried = [f"VLAN {self.vlan} untagged"] * bool(self.vlan) + [f"{self.trunk} tagged"] * bool(self.trunk)
        default = ", and keeps the default VLAN" if self.keep_default else ""
        return f"host: bridge port {self.name} carries {' and '.join(carried)}{default}"

    def apply(self, kernel: "Kernel") -> None:
        port = need(kernel.host, self.name)
        if not self.keep_default:
            kernel.host.delete_vlan(port.index, 1, rtnl.VID_MAX)
        for first, last in vlan_ranges(self.trunk):
            kernel.host.add_vlan(port.index, first, last=last)
        untagged = self.vlan or (1 if self.trunk else 0)
        if untagged:
            # Last: a trunk may contain this VLAN, and to add a VLAN again sets its flags anew (br_vlan.c, __vlan_add_flags()).
            kernel.host.add_vlan(port.index, untagged, pvid=True, untagged=True)


def vlan_ranges(text: str) -> list[tuple[int, int]]:
    """ "10-20,30" as [(10, 20), (30, 30)]."""
    pairs = [part.partition("-") for part in text.split(",") if part]
    return [(int(first), int(last or first)) for first, _, last in pairs]


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
        kernel.container.add_address(
            link.index, address, nodad=address.family == 6 and not self.dad, broadcast=broadcast_of(address)
        )

    def check(self, kernel: "Kernel") -> str | None:
        link = need(kernel.container, self.ifname)
        held = [str(entry.address) for entry in kernel.container.addresses(link.index)]
        return None if self.address in held else f"Failed to match addr {self.address} on interface {self.ifname}"


class WaitForAddresses(Op):
    """No IPv6 address of the interface is tentative any more."""

    ifname: str
    line = "container: wait until duplicate address detection on {ifname} is over"
    deed = "wait for duplicate address detection on {ifname}"

    def apply(self, kernel: "Kernel") -> None:
        kernel.container.wait_addresses(need(kernel.container, self.ifname).index, DAD_LIMIT_S)


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
            kernel.container.add_route(self.route(), link.index, beside="before")
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
        table = rtnl.RT_TABLE_MAIN if wanted.table is None else wanted.table
        for route in kernel.container.routes(index, wanted.dst.family, table):
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


class EnsureGatewayAddress(Op):
    """The bridge has the gateway's address.

    `beside` are the gateways of the network's other ranges ("192.0.2.1/24 198.51.100.1/24"). An address in the same subnet is
    in the way, and (as with the Go plugin) so is another IPv4 address that the network knows nothing of: an error without
    `force`. With it, what is in the same subnet goes; whatever else the host has on the bridge stays.
    """

    name: str
    address: str
    beside: str
    force: bool
    line = "host: address {address} on {name}, the containers' gateway"
    deed = "give {name} the gateway's address {address}"

    def apply(self, kernel: "Kernel") -> bool:
        wanted = parse_address(self.address)
        link = need(kernel.host, self.name)
        held = [entry.address for entry in kernel.host.addresses(link.index, wanted.family)]
        if any(is_gateway(address, wanted) for address in held):
            return False
        strange = [address for address in held if str(address) not in self.beside.split()]
        conflicts = [address for address in strange if in_the_way(address, wanted)]
        if not self.force and (conflicts or (strange and wanted.family == 4)):
            raise InvalidNetworkConfig(
                f'failed to set bridge addr: "{self.name}" already has an IP address different from {self.address}',
                f"it is {(conflicts or strange)[0]}; {self._remedy(conflicts)}",
            )
        for address in conflicts:
            kernel.host.delete_address(link.index, address)
        try:
            kernel.host.add_address(link.index, wanted, nodad=wanted.family == 6, broadcast=broadcast_of(wanted))
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise ipv6_off(self.name, self.address, error) or os_error(self.failure(), error) from error
        return True

    @staticmethod
    def _remedy(conflicts: list[Address]) -> str:
        if conflicts:
            return 'remove it, or let "forceAddress": true replace it'
        return 'remove it, or let "forceAddress": true add the gateway\'s beside it'

    def check(self, kernel: "Kernel") -> str | None:
        wanted = parse_address(self.address)
        link = need(kernel.host, self.name)
        well = any(is_gateway(entry.address, wanted) for entry in kernel.host.addresses(link.index))
        return None if well else f"bridge {self.name} has lost the gateway's address {self.address}"


def is_gateway(held: Address, wanted: Address) -> bool:
    """Whether `held` serves as the gateway's address. All link-local ones are on the link, whatever their prefix lengths."""
    return held == wanted or (held.packed == wanted.packed and is_link_local(held))


def in_the_way(held: Address, wanted: Address) -> bool:
    """Whether an address of the bridge and the gateway's are of one subnet.

    Not the link-local address that every interface has, not a service's address without a subnet (/32, /128).
    """
    if is_link_local(held) or (held == held.host() and held.packed != wanted.packed):
        return False
    return held.network().contains(wanted.packed) or wanted.network().contains(held.packed)


def is_link_local(address: Address) -> bool:
    """fe80::/10, RFC 4291 section 2.5.6."""
    return address.family == 6 and address.packed[0] == 0xFE and address.packed[1] & 0xC0 == 0x80


class EnsureSubnetRoute(Op):
    """The host reaches the containers of a subnet: a link-local gateway, unlike another one, brings no route to it.

    CHECK does not ask for it: attachments of earlier versions have none.
    """

    name: str
    subnet: str
    line = "host: route {subnet} dev {name}"

    def apply(self, kernel: "Kernel") -> bool:
        link = need(kernel.host, self.name)
        subnet = parse_address(self.subnet)
        if any(route.dst == subnet for route in kernel.host.routes(link.index, subnet.family)):
            return False
        try:
            kernel.host.add_route(Route(subnet), link.index)
        except FileExistsError:
            return False  # somebody leads the subnet elsewhere
        return True


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
        kernel.host.delete_neighbour(need(kernel.host, self.name).index, parse_ip(self.ip))


class WaitForPort(Op):
    """The host's end of the pair carries traffic (operstate up)."""

    name: str
    line = "host: wait until {name} is up"
    deed = "wait until {name} is up"

    def apply(self, kernel: "Kernel") -> None:
        if not kernel.host.wait_up(self.name, UP_LIMIT_S):
            link = kernel.host.link(self.name)
            what = "bridge port" if link is not None and link.master else "host veth"
            raise CniError(f"{what} in error state: down", f"{self.name} did not come up within {UP_LIMIT_S:g} s")


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
