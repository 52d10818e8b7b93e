"""ptp: a veth pair between host and container, with addresses from IPAM and routes on both ends. No bridge.

    ADD    IPAM -> plan -> apply -> result [host veth, container]
    DEL    what the record lists, the container's interface, IPAM; what is gone already is success
    CHECK  IPAM, the result of ADD against the kernel, then the plan of ADD against the kernel
    GC     attachments of this network that the runtime no longer knows
    STATUS IPAM, and the backend of ipMasq where it is needed

    container 192.0.2.2/24                   host
        192.0.2.1 dev eth0                       192.0.2.1/32 on the veth
        192.0.2.0/24 via 192.0.2.1               192.0.2.2 dev the veth

The host is the next hop to everybody else, also in the same subnet: all veths have the gateway's address, each a route to its
container. Without `ipam` it is a pair of links without addresses. Example configuration: conf/ptp.conflist.
"""

from cni_py.addr import Address, ip_text, mac_text
from cni_py.attachment import delegate
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.errors import CniError, InvalidNetworkConfig
from cni_py.interface import bridge, common, ptp
from cni_py.interface.addressing import plan_addresses, plan_route
from cni_py.plugins import backends
from cni_py.plugins.container import (
    check_interface,
    collect_addresses,
    delete_interface,
    expect,
    forget_marked,
    in_result,
    prefer_own_dns,
    refuse_existing,
    release_addresses,
    sweep_elements,
    sweep_pairs,
)
from cni_py.protocol.netconf import boolean, integer, string
from cni_py.protocol.result import Interface, Result, prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op

CONTAINER = 1  # the container's place in result.interfaces


class PtpConf:
    """What the plugin was asked for."""

    __slots__ = ("backend", "masquerade", "mtu")

    def __init__(self, call: Call) -> None:
        self.masquerade = boolean(call.conf.raw, "ipMasq")
        self.backend = string(call.conf.raw, "ipMasqBackend")
        self.mtu = max(0, integer(call.conf.raw, "mtu"))

    def check_add(self) -> None:
        """What only ADD refuses: a DEL must not fail over it."""
        if self.masquerade:
            self.backend = backends.for_masquerading(self.backend)


def add(call: Call) -> Result:
    """Connect the container."""
    conf = PtpConf(call)
    conf.check_add()
    refusal = f'container veth name ("{call.ifname}") peer provided ("{call.key.host_veth}") already exists'
    refuse_existing(call, refusal)
    if call.begin():
        release_addresses(call)
    result = addresses(call)
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


def addresses(call: Call) -> Result:
    """What IPAM gives the container; nothing without IPAM."""
    if not delegate.ipam_type(call):
        return Result()
    result = delegate.ipam_add(call)
    if not result.ips:
        raise CniError("IPAM plugin returned missing IP config")
    return result


def plan(ifname: str, veth: str, result: Result) -> "list[Op]":
    """Addresses and routes of both ends; without addresses the container's end is up, and that is all."""
    if not result.ips:
        return [common.SetContainerUp(ifname=ifname), bridge.WaitForPort(name=veth)]
    steps: list[Op] = [
        common.EnsureForwarding(family=family) for family in sorted({ip.address.family for ip in result.ips})
    ]
    steps += plan_addresses(ifname, result.ips, dad=False, announce=False)  # the host knows what it has made
    steps += plan_gateways(ifname, veth, result)
    steps += [plan_route(ifname, route, result.ips) for route in result.routes]  # their gateways are in the subnets
    steps += plan_subnets(ifname, result)
    return [*steps, bridge.WaitForPort(name=veth)]


def plan_gateways(ifname: str, veth: str, result: Result) -> "list[Op]":
    """The two ends know each other."""
    steps: list[Op] = []
    known = set()  # two addresses may have one gateway
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
    """Neighbours in the subnet are behind the host. An address alone, /32 or /128, has none."""
    steps: list[Op] = []
    known = set()
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
    """Disconnect the container, with whatever is still there to go by."""
    steps = (Call.undo_recorded, forget_marked, backends.forget_masquerading, delete_interface, release_addresses)
    call.finish_delete(call.run_all(*steps))


def check(call: Call) -> None:
    """Compare; the first difference is the error, in the words clients know."""
    conf = PtpConf(call)
    if delegate.ipam_type(call):
        delegate.ipam(call, "CHECK")
    result = prev_result(call.conf)
    if result is None:
        raise InvalidNetworkConfig("Required prevResult missing")
    container = in_result(call, result)
    check_interface(call, container, "veth")
    veth = host_end(call, result)
    own = (None, result.interfaces.index(container))
    result.ips = [ip for ip in result.ips if ip.interface in own]
    call.check_plan(plan(call.ifname, veth, result))
    if conf.masquerade and veth == call.key.host_veth:  # of our making
        call.check_plan(backends.masquerading(call, [ip.address for ip in result.ips], conf.backend))


def host_end(call: Call, result: Result) -> str:
    """The name of the result's host interface that is the peer of the container's."""
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
    """Take away what stale attachments left, here and in IPAM."""
    call.finish_delete(
        collect_garbage(call)
        + call.run_all(sweep_elements, backends.sweep_masquerading, sweep_pairs, collect_addresses)
    )


def status(call: Call) -> None:
    """Whether an ADD can be served now."""
    conf = PtpConf(call)
    conf.check_add()
    if delegate.ipam_type(call):
        delegate.ipam(call, "STATUS")
    if conf.masquerade:
        backends.require(call.kernel, conf.backend)


PLUGIN = Plugin("ptp", add=add, delete=delete, check=check, gc=gc, status=status)
