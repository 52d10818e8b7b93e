"""Sysctls and limits of the kernel that containers and published ports depend on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cni_py.doctor.checks import number, of_facts, of_host, some, sysctls
from cni_py.doctor.values import Facts
from cni_py.host.model import Finding, Host, Level, Port

CONNTRACK_WARNING, CONNTRACK_ERROR = 0.8, 0.95  # of nf_conntrack_max
NEIGHBOURS_SHARE = 0.8  # of gc_thresh3, from which on new neighbours may be refused
SOMAXCONN = 1024  # connections that wait for a relay; the kernel's default is 4096 since Linux 5.4
INOTIFY_INSTANCES = 128  # the kernel's default
OPEN_FILES_SHARE = 0.9
DEFAULT_LINKS = ("all", "default", "lo")


@of_host("the loopback of this host is closed to others", "route-localnet-open")
def route_localnet(host: Host) -> Iterator[Finding]:
    bridges = {*(one.bridge for one in host.attachments), *(one.bridge for one in host.networks)}
    for name, value in host.root.sysctls:
        link = link_of(name, "route_localnet")
        if value != "1" or not link or link in bridges or link == "lo":
            continue
        if link == "all" or any(one.name == link and not one.source for one in host.root.links):
            yield Finding(
                "warning",
                "route-localnet-open",
                f"sysctl {name}",
                f"{name} is 1, and cni-py has not set it",
                "neighbours on that network may reach what listens on 127.0.0.1 of this host",
                f"sysctl -w {name}=0; programs that need it (kube-proxy) must drop such packets themselves",
            )


def link_of(name: str, key: str) -> str:
    """The link in net.ipv4.conf.LINK.key, with its dots; "" for another sysctl."""
    if not name.startswith("net.ipv4.conf.") or not name.endswith(f".{key}"):
        return ""
    return name.removeprefix("net.ipv4.conf.").removesuffix(f".{key}").replace("/", ".")


@of_host("reverse path filtering passes answers by another uplink", "rp-filter-strict")
def rp_filter(host: Host) -> Iterator[Finding]:
    values = sysctls(host)
    uplinks = {
        route.link
        for route in host.root.routes
        if route.family == 4 and route.destination == "0.0.0.0/0" and route.link
    }
    strict = [link for link in sorted(uplinks) if effective(values, link, "rp_filter") == 1]
    if len(uplinks) > 1 and strict:
        yield Finding(
            "warning",
            "rp-filter-strict",
            f"links {some(strict)}",
            f"rp_filter is 1 (strict), and there are default routes by {some(sorted(uplinks))}",
            "what comes in by an uplink that is not the best route back to its sender is dropped, so a published port answers on "
            "one uplink only",
            "set net.ipv4.conf.LINK.rp_filter to 2 (loose) for these links",
        )


def effective(values: dict[str, str], link: str, key: str) -> int:
    """The greater of conf/all and conf/LINK counts (ip-sysctl: rp_filter)."""
    names = (f"net.ipv4.conf.{one}.{key}" for one in ("all", link.replace(".", "/")))
    return max(number(values.get(name)) or 0 for name in names)


@of_host("IPv6 is on where networks have IPv6 addresses", "ipv6-disabled")
def ipv6(host: Host) -> Iterator[Finding]:
    values = sysctls(host)
    off = [name for name in ("all", "default") if values.get(f"net.ipv6.conf.{name}.disable_ipv6", "0") != "0"]
    for network in host.networks:
        if off and any(":" in subnet for subnet in network.subnets):
            yield Finding(
                "error",
                "ipv6-disabled",
                f"network {network.name}",
                f"the network has an IPv6 range, and net.ipv6.conf.{off[0]}.disable_ipv6 is 1",
                "no container can be connected to it",
                f"sysctl -w net.ipv6.conf.{off[0]}.disable_ipv6=0, or take the IPv6 range out of {network.path}",
            )


@of_host("the table of tracked connections has room", "conntrack-full")
def conntrack(host: Host) -> Iterator[Finding]:
    values = sysctls(host)
    count, most = (number(values.get(f"net.netfilter.nf_conntrack_{key}")) for key in ("count", "max"))
    if count is None or not most or count < CONNTRACK_WARNING * most:
        return
    level: Level = "error" if count >= CONNTRACK_ERROR * most else "warning"
    yield Finding(
        level,
        "conntrack-full",
        "sysctl net.netfilter.nf_conntrack_max",
        f"{count} of {most} connections are tracked",
        "when the table is full, the kernel drops new connections of containers and to published ports",
        f"sysctl -w net.netfilter.nf_conntrack_max={4 * most}; look for who opens so many connections (conntrack -L)",
    )


@of_host("published ports are not among those that programs get by chance", "port-in-local-range")
def local_ports(host: Host) -> Iterator[Finding]:
    values = sysctls(host)
    bounds = [number(text) or 0 for text in values.get("net.ipv4.ip_local_port_range", "").split()]
    if len(bounds) != 2:
        return
    kept = spans(values.get("net.ipv4.ip_local_reserved_ports", ""))
    hit = [port for port in host.ports if any(bounds[0] <= n <= bounds[1] and not within(n, kept) for n in ends(port))]
    if hit:
        yield Finding(
            "note",
            "port-in-local-range",
            f"published ports {some(dict.fromkeys(shown(port) for port in hit))}",
            f"they are in net.ipv4.ip_local_port_range, {bounds[0]}-{bounds[1]}, and not reserved",
            "the kernel may give such a number to a program of this host: then portfwd cannot listen on it after a restart, and "
            "NAT takes packets for a UDP program to the container",
            f"sysctl -w net.ipv4.ip_local_reserved_ports={','.join(dict.fromkeys(span(port) for port in hit[:4]))},...",
        )


def spans(text: str) -> list[tuple[int, int]]:
    """ "8080,9000-9010" as pairs of first and last."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.strip().isdecimal() and (last or first).strip().isdecimal():
            found.append((int(first), int(last or first)))
    return found


def within(port: int, listed: Iterable[tuple[int, int]]) -> bool:
    return any(first <= port <= last for first, last in listed)


def ends(port: Port) -> tuple[int, int]:
    return port.first, port.last


def span(port: Port) -> str:
    """8080, or 8000-8099."""
    return str(port.first) if port.first == port.last else f"{port.first}-{port.last}"


def shown(port: Port) -> str:
    return f"{span(port)}/{port.protocol}"


@of_facts("the host has room for the neighbours of its containers", "neighbours-full")
def neighbours(host: Host, facts: Facts) -> Iterator[Finding]:
    for family in (4, 6):
        key = f"net.ipv{family}.neigh.default.gc_thresh3"
        most = facts.limit(key)
        # The table is one for all namespaces, and each container has its gateway in it, too
        there = sum((":" in one.address) == (family == 6) for space in host.namespaces for one in space.neighbours)
        if most and there >= NEIGHBOURS_SHARE * most:
            yield Finding(
                "warning",
                "neighbours-full",
                f"sysctl {key}",
                f"there are {there} neighbours of IPv{family}, and at most {most} are possible",
                "then containers lose packets at random: `neighbour: arp_cache: neighbor table overflow!` in the kernel's log",
                f"sysctl -w {key}={4 * most}",
            )


@of_facts("connections may wait for portfwd", "somaxconn-low")
def somaxconn(host: Host, facts: Facts) -> Iterator[Finding]:
    most = facts.limit("net.core.somaxconn")
    if most is not None and most < SOMAXCONN and host.relays:
        yield Finding(
            "note",
            "somaxconn-low",
            "sysctl net.core.somaxconn",
            f"net.core.somaxconn is {most}",
            "when more clients connect to a relayed port at once, they wait a second and try again",
            "sysctl -w net.core.somaxconn=4096",
        )


@of_facts("there is room for more namespaces, files and watches", "limit-low")
def limits(host: Host, facts: Facts) -> Iterator[Finding]:
    spaces = facts.limit("user.max_net_namespaces")
    if spaces is not None and spaces <= len(host.namespaces):
        yield Finding(
            "error",
            "limit-low",
            "sysctl user.max_net_namespaces",
            f"user.max_net_namespaces is {spaces}, and there are {len(host.namespaces)} network namespaces",
            "no container can be started",
            "sysctl -w user.max_net_namespaces=10000",
        )
    opened, most = facts.limit("fs.file-nr"), facts.limit("fs.file-max")
    if opened is not None and most and opened >= OPEN_FILES_SHARE * most:
        yield Finding(
            "warning",
            "limit-low",
            "sysctl fs.file-max",
            f"{opened} files are open, and at most {most} can be",
            "then no plugin can run and no connection be accepted",
            f"sysctl -w fs.file-max={4 * most}; look for who opens so many (lsof)",
        )
    instances = facts.limit("fs.inotify.max_user_instances")
    if instances is not None and instances < INOTIFY_INSTANCES:
        yield Finding(
            "note",
            "limit-low",
            "sysctl fs.inotify.max_user_instances",
            f"fs.inotify.max_user_instances is {instances}",
            "runtimes and `cni-py serve` use inotify: the service then does not notice an upgrade, and container runtimes fail",
            "sysctl -w fs.inotify.max_user_instances=1024",
        )


CHECKS = (
    route_localnet,
    rp_filter,
    ipv6,
    conntrack,
    local_ports,
    neighbours,
    somaxconn,
    limits,
)
