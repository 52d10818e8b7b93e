"""Operations on a bridge of the host, its ports and its gateway addresses."""

import errno

from cni_py.addr import Address, mac_text, parse_address
from cni_py.attachment.engine import Op
from cni_py.errors import CniError, InvalidNetworkConfig, IOFailure, kernel_words, os_error
from cni_py.interface.common import UP_LIMIT_S, broadcast_of, ipv6_off, need, set_sysctl
from cni_py.kernel import rtnl
from cni_py.protocol.result import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link, Rtnl

NET_ADDR_SET = "3"  # linux/netdevice.h


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
    """The VLANs of a bridge port: `vlan` untagged (0: 1 where there is a trunk), `trunk` pairs [first, last] tagged."""

    name: str
    vlan: int
    trunk: list[list[int]]
    keep_default: bool
    deed = "set the VLANs of bridge port {name}"

    def describe(self) -> str:
        carried = [f"VLAN {self.vlan} untagged"] * bool(self.vlan)
        if self.trunk:
            ranges = ",".join(f"{first}-{last}" if last > first else str(first) for first, last in self.trunk)
            carried.append(f"{ranges} tagged")
        default = ", and keeps the default VLAN" if self.keep_default else ""
        return f"host: bridge port {self.name} carries {' and '.join(carried)}{default}"

    def apply(self, kernel: "Kernel") -> None:
        port = need(kernel.host, self.name)
        if not self.keep_default:
            kernel.host.delete_vlan(port.index, 1, rtnl.VID_MAX)
        for first, last in self.trunk:
            kernel.host.add_vlan(port.index, first, last=last)
        untagged = self.vlan or (1 if self.trunk else 0)
        if untagged:
            # Last: a trunk may contain this VLAN, and to add a VLAN again sets its flags anew (br_vlan.c, __vlan_add_flags()).
            kernel.host.add_vlan(port.index, untagged, pvid=True, untagged=True)


class EnsureGatewayAddress(Op):
    """The bridge has the gateway's address.

    `beside` are the gateways of the network's other ranges ("192.0.2.1/24"). An address in the same subnet is
    in the way, and (as with the Go plugin) so is another IPv4 address that the network knows nothing of: an error without
    `force`. With it, what is in the same subnet goes; whatever else the host has on the bridge stays.
    """

    name: str
    address: str
    beside: list[str]
    force: bool
    line = "host: address {address} on {name}, the containers' gateway"
    deed = "give {name} the gateway's address {address}"

    def apply(self, kernel: "Kernel") -> bool:
        wanted = parse_address(self.address)
        link = need(kernel.host, self.name)
        held = [entry.address for entry in kernel.host.addresses(link.index, wanted.family)]
        if any(is_gateway(address, wanted) for address in held):
            return False
        strange = [address for address in held if str(address) not in self.beside]
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
