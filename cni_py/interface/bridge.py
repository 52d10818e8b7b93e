"""Operations on a bridge of the host, its ports and its gateway addresses."""

import errno

from cni_py.addr import Address, mac_text, parse_address
from cni_py.attachment.engine import Op
from cni_py.errors import CniError, InvalidNetworkConfig, IOFailure, kernel_words, os_error
from cni_py.interface.common import UP_LIMIT_S, broadcast_of, ipv6_off, need, need_index, set_sysctl
from cni_py.kernel import inet, rtnl
from cni_py.protocol.result import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link, Rtnl

NET_ADDR_SET = "3"  # linux/netdevice.h


def has_assigned_mac(link: "Link") -> bool:
    """Whether the MAC of the link was assigned by somebody (addr_assign_type). False where /sys does not show this link.

    rtnetlink does not tell the type, and /sys shows the namespace it was mounted in, perhaps another than ours: index and MAC
    are compared as well. The question is worth it because setting a MAC again, even the same, makes the kernel drop all
    neighbour entries of the link (arp_netdev_event()).
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
    """A bridge that is up and keeps its MAC. A missing one is made with all that follows; an existing one keeps its MTU.

    `mtu` 0 leaves the kernel's default. Without VLAN filtering a bridge carries every frame to every port, whatever the VLANs of
    the ports are. Where `vlan_filtering` is asked for it is turned on at an existing bridge, too, if that has no ports; else
    it is an error: what the ports send with a tag, such as to the host's VLANs, would be lost.
    """

    name: str
    mac: bytes
    mtu: int
    vlan_filtering: bool
    promisc: bool
    restorable = True
    line = "host: bridge {name} is up; it is made, with MAC {mac}, where it is not there; it keeps its MAC whatever its ports are"
    deed = "set up bridge {name} on the host"

    def foretell(self, kernel: "Kernel") -> str:
        link = kernel.host.link(self.name)
        if link is not None:
            lacking = self.vlan_filtering and not link.vlan_filtering
            return (
                f"host: use bridge {self.name}, which is there, {'turn on its VLAN filtering, ' * lacking}and set it up"
            )
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
        if self.vlan_filtering and not link.vlan_filtering:
            self._filter_vlans(kernel.host, link)
        self._keep_mac(kernel.host, link)
        # The flag shows what was asked for by name; packet captures and bridge ports count elsewhere (dev_get_flags()).
        if self.promisc and not link.flags & rtnl.IFF_PROMISC:
            kernel.host.set_link(link.index, promisc=True)
        if not link.up:  # new, or left like this by an ADD that was killed here
            set_sysctl(f"ipv6/conf/{self.name}/accept_ra", "0", optional=True)
            # With duplicate address detection the bridge's link-local address is tentative for up to 2 s, and the host cannot
            # solicit the containers' MACs meanwhile. Nobody else has our derived MAC, so there is nothing to detect.
            set_sysctl(f"ipv6/conf/{self.name}/accept_dad", "0", optional=True)
            kernel.host.set_link(link.index, up=True)
        return created

    def _keep_mac(self, host: "Rtnl", link: "Link") -> None:
        """Assign the bridge the MAC it has. Until then the kernel gives it the lowest MAC of its ports (see
        br_stp_recalculate_bridge_id(), NET_ADDR_SET), so it would change with the first container and with the last one's DEL.
        """
        if link.mac != self.mac and not has_assigned_mac(link):
            # A bridge that has lost its last port has the MAC 00:00:00:00:00:00. The kernel would take that as assigned, too.
            host.set_link(link.index, mac=link.mac if any(link.mac) else self.mac)

    def _create(self, host: "Rtnl") -> bool:
        try:
            host.add_bridge(self.name, mac=self.mac, mtu=self.mtu, vlan_filtering=self.vlan_filtering)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False  # another ADD made it between our look and this
            raise self._refused(f'cannot create bridge "{self.name}" on the host', error) from error
        return True

    def _filter_vlans(self, host: "Rtnl", link: "Link") -> None:
        # The ports first: another ADD may turn it on, and then add its port, after we have looked at the bridge.
        if host.links(link.index) and not need(host, self.name).vlan_filtering:
            raise InvalidNetworkConfig(
                f'cannot use "{self.name}" as bridge for VLANs: it is there without VLAN filtering, and has ports, '
                "so that all of them would see the frames of every VLAN",
                f"if none of its ports needs frames with VLAN tags, turn it on: ip link set {self.name} type bridge "
                'vlan_filtering 1; or choose another name with "bridge"',
            )
        from cni_py.kernel import vlans

        try:
            vlans.turn_on_filtering(host, link.index)
        except OSError as error:
            raise self._refused(f'cannot turn on VLAN filtering of bridge "{self.name}"', error) from error

    def _refused(self, action: str, error: OSError) -> IOFailure:
        hint = ""
        if error.errno == errno.EOPNOTSUPP and self.vlan_filtering:
            hint = "; this kernel's bridges have no VLAN filtering (CONFIG_BRIDGE_VLAN_FILTERING)"
        return IOFailure(action, f"{kernel_words(error)}{hint}")

    def check(self, kernel: "Kernel") -> str | None:
        link = need(kernel.host, self.name)
        if link.kind != "bridge":
            return f"Interface {self.name} does not have link type of bridge"
        if self.vlan_filtering and not link.vlan_filtering:
            return f"bridge {self.name} does not keep VLANs apart: its vlan_filtering is off"
        return None if link.up else f"bridge {self.name} is down"


class JoinBridge(Op):
    """The host's end of the pair is a port of the bridge.

    `hairpin`: the bridge may send a frame back by the port it came from, so that a container reaches itself by its published
    ports. `isolated`: no frames between this port and other isolated ones.
    """

    name: str
    bridge: str
    hairpin: bool
    isolated: bool
    restorable = True
    deed = "make {name} a port of bridge {bridge}"

    def describe(self) -> str:
        options = ", hairpin on" * self.hairpin + ", isolated from other such ports" * self.isolated
        return f"host: make {self.name} a port of bridge {self.bridge}{options}"

    def apply(self, kernel: "Kernel") -> None:
        port = need(kernel.host, self.name)
        kernel.host.set_link(port.index, master=need_index(kernel.host, self.bridge))
        # A second request: the flags belong to the port, which exists only after the first (br_setport() in br_netlink.c).
        kernel.host.set_bridge_port(port.index, hairpin=self.hairpin, isolated=self.isolated)

    def check(self, kernel: "Kernel") -> str | None:
        bridge, port = kernel.host.link(self.bridge), kernel.host.link(self.name)
        if bridge is None or port is None or port.master != bridge.index:
            return f"{self.name} is not a port of bridge {self.bridge}"
        # A chained portmap may have turned it on (ports.host_clients.ReflectToPort)
        if self.hairpin and not port.hairpin:
            return f"hairpin of {self.name} is off"
        if port.isolated != self.isolated:
            return f"isolated of {self.name} is {'on' if port.isolated else 'off'}"
        return None


class SetPortVlans(Op):
    """The VLANs that a bridge port carries: `vlan` untagged, those of `trunk` (pairs of first and last) tagged.

    `vlan` 0 is VLAN 1 where there is a trunk. `keep_default`: the port also stays in the bridge's default VLAN.
    """

    name: str
    vlan: int
    trunk: list[list[int]]
    keep_default: bool
    restorable = True
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
            # The kernel put the port into the bridge's default_pvid, mostly 1, when it joined (nbp_vlan_init()). All VLANs are
            # deleted, since the bridge may have another default; the kernel passes over those that the port does not have.
            kernel.host.delete_vlan(port.index, 1, rtnl.VID_MAX)
        for first, last in self.trunk:
            kernel.host.add_vlan(port.index, first, last=last)
        untagged = self.vlan or (1 if self.trunk else 0)
        if untagged:
            # Last: the trunk may contain this VLAN, and adding a VLAN again sets its flags anew (__vlan_add_flags()).
            kernel.host.add_vlan(port.index, untagged, pvid=True, untagged=True)

    def check(self, kernel: "Kernel") -> str | None:
        from cni_py.kernel import vlans

        port = need(kernel.host, self.name)
        found = vlans.of_port(kernel.host, port.index)
        if found is None:
            return None
        wanted: dict[int, int] = {}
        bridge = kernel.host.link(port.master) if self.keep_default and port.master else None
        if bridge is not None and (default := vlans.default_vlan(bridge)):
            wanted[default] = rtnl.BRIDGE_VLAN_INFO_UNTAGGED
        for first, last in self.trunk:
            wanted.update(dict.fromkeys(range(first, last + 1), 0))
        wanted[self.vlan or 1] = vlans.OWN
        if found == wanted:
            return None
        return f"the VLANs of bridge port {self.name} are {vlans.shown(found)}; they were {vlans.shown(wanted)}"


class EnsureGatewayAddress(Op):
    """The bridge has the gateway's address.

    `beside` lists the gateways of all the network's ranges ("192.0.2.1/24"), which may stand side by side. An
    error without `force`: another address of the same subnet, or (as with the Go plugin) any IPv4 address that is not in
    `beside`. With `force` the addresses of the same subnet are deleted; the others stay.
    """

    name: str
    address: str
    beside: list[str]
    force: bool
    restorable = True
    line = "host: address {address} on {name}, the containers' gateway"
    deed = "give {name} the gateway's address {address}"

    def apply(self, kernel: "Kernel") -> bool:
        wanted = parse_address(self.address)
        index = need_index(kernel.host, self.name)
        held = [entry.address for entry in inet.addresses(kernel.host, index, wanted.family)]
        if any(is_gateway(address, wanted) for address in held):
            return False
        foreign = [address for address in held if str(address) not in self.beside]
        conflicts = [address for address in foreign if shares_subnet(address, wanted)]
        if not self.force and (conflicts or (foreign and wanted.family == 4)):
            raise InvalidNetworkConfig(
                f'failed to set bridge addr: "{self.name}" already has an IP address different from {self.address}',
                f"it is {(conflicts or foreign)[0]}; {self._remedy(conflicts)}",
            )
        for address in conflicts:
            inet.delete_address(kernel.host, index, address)
        try:
            inet.add_address(kernel.host, index, wanted, nodad=wanted.family == 6, broadcast=broadcast_of(wanted))
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise ipv6_off(self.name, self.address, error) or os_error(self.failure(), error) from error
        return True

    @staticmethod
    def _remedy(conflicts: list[Address]) -> str:
        if conflicts:
            return 'remove it, or let "forceAddress": true replace it'
        return 'remove it, or let "forceAddress": true add the gateway\'s address beside it'

    def check(self, kernel: "Kernel") -> str | None:
        wanted = parse_address(self.address)
        link = need(kernel.host, self.name)
        if any(is_gateway(entry.address, wanted) for entry in inet.addresses(kernel.host, link.index)):
            return None
        return f"bridge {self.name} has lost the gateway's address {self.address}"


def is_gateway(held: Address, wanted: Address) -> bool:
    """Whether an address of the bridge serves as the gateway's. For a link-local one the prefix length does not count."""
    return held == wanted or (held.packed == wanted.packed and is_link_local(held))


def shares_subnet(held: Address, wanted: Address) -> bool:
    """Whether an address of the bridge lies in one subnet with the gateway's.

    False for the link-local address that every interface has, and for an address without a subnet (/32, /128).
    """
    if is_link_local(held) or (held == held.host() and held.packed != wanted.packed):
        return False
    return held.network().contains(wanted.packed) or wanted.network().contains(held.packed)


def is_link_local(address: Address) -> bool:
    """fe80::/10, RFC 4291 section 2.5.6."""
    return address.family == 6 and address.packed[0] == 0xFE and address.packed[1] & 0xC0 == 0x80


class EnsureSubnetRoute(Op):
    """The host has a route to the containers' subnet where their gateway is link-local: only another one comes with a route.

    CHECK does not ask for it, since attachments of earlier versions have none.
    """

    name: str
    subnet: str
    restorable = True
    line = "host: route {subnet} dev {name}"

    def apply(self, kernel: "Kernel") -> bool:
        link = need(kernel.host, self.name)
        subnet = parse_address(self.subnet)
        if any(route.dst == subnet for route in inet.routes(kernel.host, link.index, subnet.family)):
            return False
        try:
            inet.add_route(kernel.host, Route(subnet), link.index)
        except FileExistsError:
            return False  # somebody's route leads elsewhere, and stays
        return True


class WaitForPort(Op):
    """The host's end of the pair carries traffic (operstate up). CniError when it does not within UP_LIMIT_S.

    A veth has a carrier once both ends are up; a bridge forwards to a port only then.
    """

    name: str
    line = "host: wait until {name} is up"
    deed = "wait until {name} is up"

    def apply(self, kernel: "Kernel") -> None:
        if not kernel.host.wait_up(self.name, UP_LIMIT_S):
            link = kernel.host.link(self.name)
            what = "bridge port" if link is not None and link.master else "host veth"
            raise CniError(f"{what} in error state: down", f"{self.name} did not come up within {UP_LIMIT_S:g} s")
