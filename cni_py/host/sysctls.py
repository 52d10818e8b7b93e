"""The sysctls that decide about container networks, of the namespace that this thread is in.

Names are those of sysctl(8): dots between the parts, and a slash for each dot in the name of a link:
net.ipv4.conf.eth0/10.rp_filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cni_py.kernel import sysctl

GLOBAL = (
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/all/disable_ipv6",
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "bridge/bridge-nf-filter-vlan-tagged",
    "ipv4/ip_local_port_range",
    "ipv4/ip_local_reserved_ports",
    "ipv4/ip_unprivileged_port_start",
    "ipv4/ip_nonlocal_bind",
    "ipv4/tcp_l3mdev_accept",
    "ipv4/udp_l3mdev_accept",
    "ipv6/bindv6only",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_max",
    "netfilter/nf_conntrack_tcp_be_liberal",
)
FOR_EACH = (
    "ipv4/conf/{}/forwarding",
    "ipv4/conf/{}/rp_filter",
    "ipv4/conf/{}/src_valid_mark",
    "ipv4/conf/{}/route_localnet",
    "ipv4/conf/{}/accept_local",
    "ipv4/conf/{}/arp_ignore",
    "ipv4/conf/{}/arp_filter",
    "ipv4/conf/{}/proxy_arp",
    "ipv6/conf/{}/forwarding",
    "ipv6/conf/{}/disable_ipv6",
    "ipv6/conf/{}/accept_ra",
    "ipv6/conf/{}/accept_dad",
    "ipv6/conf/{}/proxy_ndp",
)


def collect(links: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and value of those that exist and can be read."""
    keys = list(GLOBAL)
    for link in ("all", "default", *links):
        keys += [each.format(link) for each in FOR_EACH]
    for key in dict.fromkeys(keys):
        try:
            yield named(key), sysctl.read(key)
        except OSError:
            continue


def named(key: str) -> str:
    """The name of sysctl(8) for a path below net/."""
    return "net." + key.translate(str.maketrans("./", "/."))
