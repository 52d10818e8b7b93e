"""Operations that let processes of the host (from 127.0.0.0/8), and the container itself, reach a published port."""

import errno

from cni_py.addr import parse_ip
from cni_py.attachment.engine import Op
from cni_py.attachment.locks import nftables_lock
from cni_py.errors import warn
from cni_py.kernel import sysctl
from cni_py.kernel.nf_tables import Change, Element, NftUnavailable, ifname_key
from cni_py.nftables import ruleset
from cni_py.nftables.elements import GUARDS, commit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link, Rtnl

WITHOUT_FILTER = "not filtered by tc"


class AllowLoopbackClients(Op):
    """Processes of the host reach the container through 127.0.0.0/8; nobody beyond that interface reaches 127.0.0.0/8.

    route_localnet makes the kernel accept such addresses there in both directions, so the drop is put in first: by nftables
    and, since `nft flush ruleset` takes that away and leaves route_localnet, by a filter on the interface's qdisc too.
    """

    address: str
    thorough = False  # look at the filter also where the comment of the element says that it was put in
    line = "host: 127.0.0.0/8 may talk to {address} (route_localnet) and is closed to what comes from there"
    deed = "let 127.0.0.0/8 of the host talk to {address} (sysctl route_localnet)"

    @property
    def packed(self) -> bytes:
        """The container's address."""
        return parse_ip(self.address)

    def apply(self, kernel: "Kernel") -> bool:
        link = interface_towards(kernel.host, self.packed)
        if link is None:
            return False
        with nftables_lock():
            self.guard(kernel, link)
        return not is_open(link) and sysctl.write(route_localnet(link), "1")

    def guard(self, kernel: "Kernel", link: "Link") -> None:
        """Close the host's loopback to what comes in by the interface, under the lock. NftUnavailable: the filter alone does."""
        key = ifname_key(link.name)
        before: Element | None = None
        unavailable: NftUnavailable | None = None
        try:
            ruleset.ensure_table(kernel.nft)
            before = kernel.nft.get(GUARDS, (key,)).get(key)
        except NftUnavailable as error:
            unavailable = error
        if before is not None and before.comment.startswith(f"{link.index} ") and not self.thorough:
            return
        from cni_py.kernel import tc

        why_not = tc.filter_loopback(kernel.host, link)
        if unavailable is not None:
            if why_not:
                raise unavailable
            return
        noted = f"{WITHOUT_FILTER}: {why_not}" if why_not else "filtered by tc, too"
        if why_not:
            warn(
                f"the host's 127.0.0.0/8 is closed to {link.name} by nftables alone, until somebody flushes it: {why_not}"
            )
        element = Element(key, None, f"{link.index} {noted}")
        if element != before:
            changes = [Change(False, GUARDS, [before])] if before is not None else []
            commit(kernel, [*changes, Change(True, GUARDS, [element])], str)

    def check(self, kernel: "Kernel") -> str | None:
        link = interface_towards(kernel.host, self.packed)
        if link is None or not is_open(link):
            return None
        key = ifname_key(link.name)
        guard = kernel.nft.get(GUARDS, (key,)).get(key)
        if guard is None:
            return f"the host's loopback is open to {link.name}: nftables set local_links has lost it"
        if guard.comment.startswith(f"{link.index} {WITHOUT_FILTER}"):
            return None
        from cni_py.kernel import tc

        if tc.guards_loopback(kernel.host, link.index):
            return None
        return f"only nftables closes the host's loopback to {link.name}: its tc filter is missing (cni-py restore)"


def route_localnet(link: "Link") -> str:
    """The sysctl that lets 127.0.0.0/8 pass by the interface."""
    return f"ipv4/conf/{link.name}/route_localnet"


def is_open(link: "Link") -> bool:
    """Whether 127.0.0.0/8 passes by the interface: by its own sysctl, or that of all."""
    return "1" in (sysctl.read("ipv4/conf/all/route_localnet"), sysctl.read(route_localnet(link)))


def interface_towards(host: "Rtnl", ip: bytes) -> "Link | None":
    """The interface of the host on whose network `ip` is; None when it is behind a router, the host's own, or nowhere."""
    from cni_py.kernel import inet

    route = inet.route_to(host, ip)
    if route is None or route.gw is not None or route.type != inet.RTN_UNICAST:
        return None
    return host.link(route.index)


class ReflectToPort(Op):
    """The bridge may send a frame back to the port it came from.

    Needed for a container that talks to itself through a published port where bridged packets pass the IP rules
    (net.bridge.bridge-nf-call-iptables): they are then redirected before the host's own stack has seen them.
    """

    name: str
    line = "host: hairpin on for {name}, if it is a port of a bridge"
    deed = "turn hairpin on for bridge port {name}"

    def apply(self, kernel: "Kernel") -> bool:
        link = kernel.host.link(self.name)
        if link is None or not link.master or link.hairpin:
            return False
        try:
            kernel.host.set_bridge_port(link.index, hairpin=True)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # its master is no bridge
                raise
            return False
        return True
