"""Addresses and routes of the container's interface, planned: what IPAM said in, operations out."""

from cni_py.addr import Address, ip_text
from cni_py.errors import InvalidNetworkConfig
from cni_py.interface import common
from cni_py.kernel.inet import RT_SCOPE_LINK, RT_SCOPE_NOWHERE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.engine import Op
    from cni_py.protocol.result import IPConfig, Route

U32_MAX = (1 << 32) - 1


def plan_addresses(ifname: str, ips: "list[IPConfig]", *, dad: bool | None, announce: bool) -> "list[Op]":
    """The addresses on the interface, which is up then. `dad`: only when nobody else turns out to have them (IPv6).
    None: when the container looks for that, as it does by default (accept_dad).

    To `announce` them is up to the kernel: arp_notify and ndisc_notify make it tell the neighbours as the link comes up (see
    ops.AnnounceAddresses), so that nobody keeps sending to the container that had them before.
    """
    has_ipv6 = any(ip.address.family == 6 for ip in ips)
    steps: list[Op] = []
    if has_ipv6:
        # Docker, for one, switches IPv6 off for all interfaces of a container that it gives no IPv6 address. Without it on
        # lo there is no ::1, and no way from the container to its own address.
        steps += [
            container_sysctl("ipv6/conf/lo/disable_ipv6", "0", optional=False),
            container_sysctl(f"ipv6/conf/{ifname}/disable_ipv6", "0", optional=False),
            container_sysctl(f"ipv6/conf/{ifname}/keep_addr_on_down", "1"),
            *([] if dad is None else [container_sysctl(f"ipv6/conf/{ifname}/accept_dad", "1" if dad else "0")]),
        ]
        if announce:
            steps.append(container_sysctl(f"ipv6/conf/{ifname}/ndisc_notify", "1"))
        if dad:
            steps.append(container_sysctl(f"ipv6/conf/{ifname}/enhanced_dad", "1"))
    if announce:
        steps.append(container_sysctl(f"ipv4/conf/{ifname}/arp_notify", "1"))
    steps += [common.AddAddress(ifname=ifname, address=str(ip.address), dad=dad is not False) for ip in ips]
    steps.append(common.SetContainerUp(ifname=ifname))
    if has_ipv6 and dad is not False:
        steps.append(common.WaitForAddresses(ifname=ifname))
    return steps


def container_sysctl(key: str, value: str, *, optional: bool = True) -> common.SetContainerSysctl:
    """One sysctl of the container."""
    return common.SetContainerSysctl(key=key, value=value, optional=optional)


def plan_route(ifname: str, route: "Route", ips: "list[IPConfig]") -> common.AddRoute:
    """A route of the result; without a gw of its own it goes through the first gateway of its family.

    Not one that leads to that gateway itself, nor an IPv4 one of scope link or host: the kernel refuses these
    (fib_check_nh_v4_gw()), and they are how an address of its own (/32, /128) gets to its gateway.
    """
    gateways = [ip.gateway for ip in ips if ip.gateway is not None and len(ip.gateway) == len(route.dst.packed)]
    gw = route.gw if route.gw is not None else (gateways[0] if gateways else None)
    narrow = route.dst.family == 4 and (route.scope or 0) >= RT_SCOPE_LINK
    if route.gw is None and gw is not None and (narrow or route.dst == Address(gw, 0).host()):
        gw = None
    check_route(route, gw)
    return common.AddRoute(
        ifname=ifname,
        dst=str(route.dst),
        gw=ip_text(gw) if gw is not None else "",
        mtu=route.mtu,
        advmss=route.advmss,
        priority=route.priority,
        table=-1 if route.table is None else route.table,
        scope=-1 if route.scope is None else route.scope,
    )


def check_route(route: "Route", gw: bytes | None) -> None:
    """InvalidNetworkConfig for a route that no kernel has."""
    if gw is not None and len(gw) != len(route.dst.packed):
        raise InvalidNetworkConfig(f"the route to {route.dst} has a gateway of the other family, {ip_text(gw)}")
    for key, value, most in (
        ("mtu", route.mtu, U32_MAX),
        ("advmss", route.advmss, U32_MAX),
        ("priority", route.priority, U32_MAX),
        ("table", route.table or 0, U32_MAX),
        ("scope", route.scope or 0, RT_SCOPE_NOWHERE),
    ):
        if not 0 <= value <= most:
            raise InvalidNetworkConfig(
                f"the route to {route.dst} has the {key} {value}, which is not between 0 and {most}"
            )
