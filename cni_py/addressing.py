"""Addresses and routes of the container's interface, planned: what IPAM said in, operations out."""

from cni_py import ops
from cni_py.addr import ip_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.engine import Op
    from cni_py.result import IPConfig, Route


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
    steps += [ops.AddAddress(ifname=ifname, address=str(ip.address), dad=dad is not False) for ip in ips]
    steps.append(ops.SetContainerUp(ifname=ifname))
    if has_ipv6 and dad is not False:
        steps.append(ops.WaitForAddresses(ifname=ifname))
    return steps


def container_sysctl(key: str, value: str, *, optional: bool = True) -> ops.SetContainerSysctl:
    """One sysctl of the container."""
    return ops.SetContainerSysctl(key=key, value=value, optional=optional)


def plan_route(ifname: str, route: "Route", ips: "list[IPConfig]") -> ops.AddRoute:
    """A route of the result; without a gw of its own it goes through the first gateway of its family."""
    gateways = [ip.gateway for ip in ips if ip.gateway is not None and len(ip.gateway) == len(route.dst.packed)]
    gw = route.gw if route.gw is not None else (gateways[0] if gateways else None)
    return ops.AddRoute(
        ifname=ifname,
        dst=str(route.dst),
        gw=ip_text(gw) if gw is not None else "",
        mtu=route.mtu,
        advmss=route.advmss,
        priority=route.priority,
        table=-1 if route.table is None else route.table,
        scope=-1 if route.scope is None else route.scope,
    )
