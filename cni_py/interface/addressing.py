"""Plans the addresses and routes of the container's interface: IPAM's result in, operations out. Pure."""

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
    """Operations that add the addresses and bring the interface up.

    `dad`: run IPv6 duplicate address detection, and fail when an address is taken; None: as the container's accept_dad says
    (by default it runs). `announce`: let the kernel tell the neighbours the new MAC (see common.AnnounceAddresses), so that
    they do not go on sending to the container that had the addresses before.
    """
    has_ipv6 = any(ip.address.family == 6 for ip in ips)
    steps: list[Op] = []
    if has_ipv6:
        # First: with disable_ipv6 the kernel refuses an IPv6 address (EACCES, addrconf_add_dev()). Docker, for one, sets it for
        # all interfaces of a container without an IPv6 address. Without IPv6 on lo there is no ::1, and the container does not
        # reach its own address, since the kernel delivers that through lo.
        steps += [
            container_sysctl("ipv6/conf/lo/disable_ipv6", "0", optional=False),
            container_sysctl(f"ipv6/conf/{ifname}/disable_ipv6", "0", optional=False),
            # The kernel deletes IPv6 addresses, unlike IPv4 ones, when the interface goes down.
            container_sysctl(f"ipv6/conf/{ifname}/keep_addr_on_down", "1"),
        ]
        if dad is not None:
            # Before the interface is up, for then the kernel starts detection for the link-local address.
            steps.append(container_sysctl(f"ipv6/conf/{ifname}/accept_dad", "1" if dad else "0"))
        if announce:
            steps.append(container_sysctl(f"ipv6/conf/{ifname}/ndisc_notify", "1"))
        if dad:
            # A nonce tells the kernel its own solicitation, which a hairpin port sends back, from another's (RFC 7527).
            steps.append(container_sysctl(f"ipv6/conf/{ifname}/enhanced_dad", "1"))
    if announce:
        steps.append(container_sysctl(f"ipv4/conf/{ifname}/arp_notify", "1"))
    steps += [common.AddAddress(ifname=ifname, address=str(ip.address), dad=dad is not False) for ip in ips]
    steps.append(common.SetContainerUp(ifname=ifname))
    if has_ipv6 and dad is not False:
        steps.append(common.WaitForAddresses(ifname=ifname))
    return steps


def container_sysctl(key: str, value: str, *, optional: bool = True) -> common.SetContainerSysctl:
    """The operation that sets one sysctl of the container; `key` is a path below net/."""
    return common.SetContainerSysctl(key=key, value=value, optional=optional)


def plan_route(ifname: str, route: "Route", ips: "list[IPConfig]") -> common.AddRoute:
    """The operation for a route of the result. One without `gw` goes through the first gateway of its family in `ips`.

    It stays a connected route where it leads to that gateway itself, or is an IPv4 route of scope link or host. With a gateway
    the kernel would refuse these (fib_check_nh_v4_gw()); an address without a subnet (/32, /128) reaches its gateway by them.
    InvalidNetworkConfig as check_route() says.
    """
    gateways = [ip.gateway for ip in ips if ip.gateway is not None and len(ip.gateway) == len(route.dst.packed)]
    gw = route.gw if route.gw is not None else (gateways[0] if gateways else None)
    narrow = route.dst.family == 4 and (route.scope or 0) >= RT_SCOPE_LINK
    if route.gw is not None and not any(route.gw):
        gw = None  # 0.0.0.0, as DHCP says it (RFC 3442), and the kernel takes it: on the link
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
    """InvalidNetworkConfig for a route that no kernel takes: a gateway of the other family, a number out of range."""
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
