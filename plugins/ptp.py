"""ptp: a veth pair between host and container, with addresses from IPAM and routes on both ends. No bridge.

    ADD    IPAM, then the plan -> result [host's end, container's end]
    DEL    undoes the record; the container's interface, IPAM; whatever is gone already is success
    CHECK  IPAM, the result of ADD against the kernel, then the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows
    STATUS IPAM; that nftables or iptables is there if ipMasq needs it

The host is the next hop to everybody, also to containers of the same subnet:

    container 192.0.2.2/24                   host
        192.0.2.1 dev eth0                       192.0.2.1/32 on the veth    every veth has it
        192.0.2.0/24 via 192.0.2.1               192.0.2.2 dev the veth      each veth its own

What ADD makes, in this order:

    both        the veth pair
    host        forwarding                                          shared: turned on when it is off, never off again
    container   sysctls and addresses, the interface up
    both        the gateway's address, the routes of the two ends to each other
    container   IPAM's routes, the subnet through the gateway in place of the kernel's own route to it
    host        masquerading of the container's addresses

Without `ipam` it is a pair of links without addresses. Example configuration: conf/ptp.conflist.
"""

from cni_py.addr import Address, ip_text, mac_text
from cni_py.attachment.call import Call, Plugin
from cni_py.errors import CniError, InvalidNetworkConfig
from cni_py.interface import bridge, common, ptp
from cni_py.interface.addressing import plan_addresses, plan_route
from cni_py.plugins import backends
from cni_py.plugins.container import (
    ask_ipam,
    check_interface,
    checked_result,
    collect,
    delete_interface,
    detach,
    expect,
    forget_marked,
    in_result,
    ipam_result,
    ips_of,
    prefer_own_dns,
    refuse_existing_pair,
    release_addresses,
    sweep_elements,
    sweep_pairs,
)
from cni_py.protocol.netconf import boolean, integer, string
from cni_py.protocol.result import Interface, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op

CONTAINER = 1  # index of the container's end in result.interfaces


class PtpConf:
    """The keys of the configuration. `mtu` (bytes) 0 and `backend` "" where none is asked for."""

    __slots__ = ("backend", "masquerade", "mtu")

    def __init__(self, call: Call) -> None:
        self.masquerade = boolean(call.conf.raw, "ipMasq")
        self.backend = string(call.conf.raw, "ipMasqBackend")
        self.mtu = max(0, integer(call.conf.raw, "mtu"))

    def check_add(self) -> None:
        """InvalidNetworkConfig for what only ADD and STATUS refuse. Settles `backend` for ipMasq."""
        if self.masquerade:
            self.backend = backends.for_masquerading(self.backend)


def add(call: Call) -> Result:
    """Connect the container."""
    conf = PtpConf(call)
    conf.check_add()
    refuse_existing_pair(call)
    if call.begin():
        release_addresses(call)
    result = ipam_result(call)
    for ip in result.ips:
        ip.interface = CONTAINER
    veth, host_mac, container_mac = call.key.host_veth, call.key.mac("host"), call.key.mac("container")
    pair = common.AddVeth(name=veth, ifname=call.ifname, mtu=conf.mtu, host_mac=host_mac, container_mac=container_mac)
    steps = [pair, *plan(call.ifname, veth, result)]
    if conf.masquerade and result.ips:
        steps += backends.masquerade([ip.address for ip in result.ips], conf.backend)
    call.apply(steps)
    result.interfaces = [
        Interface(veth, mac_text(host_mac)),
        Interface(call.ifname, mac_text(container_mac), call.netns),
    ]
    prefer_own_dns(call, result)
    return result


def plan(ifname: str, veth: str, result: Result) -> "list[Op]":
    """The operations for addresses and routes of both ends, in order; without addresses only the interface is set up."""
    if not result.ips:
        return [common.SetContainerUp(ifname=ifname), bridge.WaitForPort(name=veth)]
    steps: list[Op] = [
        common.EnsureForwarding(family=family) for family in sorted({ip.address.family for ip in result.ips})
    ]
    # Nobody but the host is on the link: there are no duplicates to detect, and no neighbours to tell.
    steps += plan_addresses(ifname, result.ips, dad=False, announce=False)
    steps += plan_gateways(ifname, veth, result)
    # Before plan_subnets(), which deletes the kernel's route to the subnet: the kernel takes a gateway only where a route of
    # scope link leads to it (fib_check_nh_v4_gw()), and those of IPAM's routes may be any in the subnet.
    steps += [plan_route(ifname, route, result.ips) for route in result.routes]
    steps += plan_subnets(ifname, result)
    return [*steps, bridge.WaitForPort(name=veth)]


def plan_gateways(ifname: str, veth: str, result: Result) -> "list[Op]":
    """The host's end has the gateway's address and a route to the container, the container a route to the gateway.

    InvalidNetworkConfig for an address without a gateway of its family.
    """
    steps: list[Op] = []
    known = set()  # gateways: two addresses may have the same
    for ip in result.ips:
        if ip.gateway is None or len(ip.gateway) != len(ip.address.packed):
            what = "no gateway" if ip.gateway is None else f"a gateway of the other family, {ip_text(ip.gateway)},"
            raise InvalidNetworkConfig(f"IPAM plugin returned {what} for {ip.address}, and ptp needs one")
        gateway, address = ip_text(ip.gateway), ip_text(ip.address.packed)
        steps.append(ptp.AddPeer(name=veth, gateway=gateway, address=address))
        if gateway not in known:
            dst = str(Address(ip.gateway, 0).host())
            steps.append(ptp.AddPeerRoute(ifname=ifname, dst=dst, gw="", src=address))
        known.add(gateway)
    return steps


def plan_subnets(ifname: str, result: Result) -> "list[Op]":
    """Routes to the subnets through the gateway, in place of the kernel's own. An address without a subnet has neither."""
    steps: list[Op] = []
    known = set()  # subnets
    for ip in result.ips:
        subnet = ip.address.network()
        if ip.gateway is None or subnet == ip.address.host() or subnet in known:
            continue
        known.add(subnet)
        steps.append(ptp.DropSubnetRoute(ifname=ifname, subnet=str(subnet)))
        gateway, address = ip_text(ip.gateway), ip_text(ip.address.packed)
        steps.append(ptp.AddPeerRoute(ifname=ifname, dst=str(subnet), gw=gateway, src=address))
    return steps


def delete(call: Call) -> None:
    """Disconnect the container. Each step is tried, whatever is left to go by."""
    detach(call, Call.undo_recorded, forget_marked, backends.forget_masquerading, delete_interface)


def check(call: Call) -> None:
    """CniError with the first difference, in the Go plugin's words where it has them."""
    conf = PtpConf(call)
    result = checked_result(call)
    container = in_result(call, result)
    check_interface(call, container, "veth")
    veth = host_end(call, result)
    result.ips = ips_of(result, container)
    call.check_plan(plan(call.ifname, veth, result))
    if conf.masquerade and veth == call.key.host_veth:  # else the Go plugin made it
        call.check_plan(backends.masquerading(call, [ip.address for ip in result.ips], conf.backend))


def host_end(call: Call, result: Result) -> str:
    """The name of the result's host interface that is the peer of the container's. CniError: none, another MAC, or it is down."""
    inside = expect(call.kernel.container.link(call.ifname), call.ifname)
    for interface in result.interfaces:
        link = call.kernel.host.link(interface.name) if not interface.sandbox and interface.name else None
        if link is None or link.kind != "veth" or link.link != inside.index:
            continue
        if interface.mac and interface.mac.lower() != mac_text(link.mac):
            raise CniError(f"Interface {interface.name} Mac doesn't match: {interface.mac} not found")
        if not link.up:
            raise CniError(f"host veth {interface.name} is down")
        return interface.name
    raise CniError(f"host veth of {call.ifname} was not found")


def gc(call: Call) -> None:
    """Undo stale attachments: first by their records, then what lost records leave behind, then in IPAM."""
    collect(call, sweep_elements, backends.sweep_masquerading, sweep_pairs)


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    conf = PtpConf(call)
    conf.check_add()
    ask_ipam(call, "STATUS")
    if conf.masquerade:
        backends.require(call.kernel, conf.backend)


PLUGIN = Plugin("ptp", add=add, delete=delete, check=check, gc=gc, status=status)
