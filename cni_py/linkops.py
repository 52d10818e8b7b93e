"""Operations of the plugins that connect without a bridge: the two ends of ptp's pair, and macvlan's link.

Sides and addresses as in ops.
"""

import errno

from cni_py.addr import Address, parse_address, parse_ip
from cni_py.engine import Op
from cni_py.errors import IOFailure, kernel_words, os_error
from cni_py.kernel import rtnl
from cni_py.ops import ipv6_off, need
from cni_py.result import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.context import Kernel


class DropSubnetRoute(Op):
    """The subnet of an address is not on the link: the route that came with the address goes."""

    ifname: str
    subnet: str
    line = "container: no direct route to {subnet} dev {ifname}"
    deed = "remove the direct route to {subnet} from {ifname} in the container"

    def apply(self, kernel: "Kernel") -> None:
        index = need(kernel.container, self.ifname).index
        subnet = parse_address(self.subnet)
        kernel.container.delete_route(Route(subnet, scope=rtnl.RT_SCOPE_LINK if subnet.family == 4 else None), index)


class AddPeerRoute(Op):
    """A route of the container by which it reaches the link's other end (`gw` ""), or a network through that."""

    ifname: str
    dst: str
    gw: str
    src: str
    deed = "add the route to {dst} through {ifname} in the container"

    def describe(self) -> str:
        via = f" via {self.gw}" if self.gw else ""
        return f"container: route {self.dst}{via} dev {self.ifname}, source {self.src}"

    def apply(self, kernel: "Kernel") -> None:
        index = need(kernel.container, self.ifname).index
        scope = None if self.gw else rtnl.RT_SCOPE_LINK
        route = Route(parse_address(self.dst), parse_ip(self.gw) if self.gw else None, scope=scope)
        try:
            # Another interface of the container may lead to the same gateway.
            kernel.container.add_route(route, index, beside="after", src=parse_ip(self.src))
        except FileExistsError:
            pass  # IPAM's routes have it already: rt6_duplicate_nexthop() does not look at the source

    def check(self, kernel: "Kernel") -> str | None:
        index = need(kernel.container, self.ifname).index
        gw = parse_ip(self.gw) if self.gw else None
        dst, sources = parse_address(self.dst), (parse_ip(self.src), None)
        for route in kernel.container.routes(index, dst.family):
            # Another interface's route to there has become one multipath route with ours in IPv6, with one source for both.
            if (route.dst, route.gw) == (dst, gw) and (route.src in sources or dst.family == 6):
                return None
        return f"Expected Route {self.dst} not found in routing table of {self.ifname} in the container"


class AddPeer(Op):
    """The host's end of the pair: the gateway's address alone, and the route to the container's."""

    name: str
    gateway: str
    address: str
    line = "host: address {gateway} on {name}, without its subnet, and a route to {address} there"
    deed = "give {name} the gateway's address {gateway} and the route to {address}"

    def apply(self, kernel: "Kernel") -> None:
        gateway, address = Address(parse_ip(self.gateway), 0).host(), Address(parse_ip(self.address), 0).host()
        index = need(kernel.host, self.name).index
        try:
            kernel.host.add_address(index, gateway, nodad=True)
        except FileExistsError:
            pass  # two addresses of the container have one gateway
        except OSError as error:
            raise ipv6_off(self.name, str(gateway), error) or os_error(self.failure(), error) from error
        # Of a namespace that is gone the link and its routes may be there for a moment yet: ours comes after those.
        kernel.host.add_route(Route(address, scope=rtnl.RT_SCOPE_HOST), index, beside="after")

    def check(self, kernel: "Kernel") -> str | None:
        index = need(kernel.host, self.name).index
        if parse_ip(self.gateway) not in [held.address.packed for held in kernel.host.addresses(index)]:
            return f"{self.name} has lost the gateway's address {self.gateway}"
        wanted = Address(parse_ip(self.address), 0).host()
        well = any(route.dst == wanted for route in kernel.host.routes(index, wanted.family))
        return None if well else f"the host has no route to {self.address} through {self.name}"


MACVLAN_HINTS = {  # macvlan_common_newlink(), macvlan_port_create()
    errno.EINVAL: "; lo can be no master, and one that has an interface in mode passthru takes no other",
    errno.EBUSY: "; a port of a bridge or bond can be no master: use that one instead",
}


class AddMacvlan(Op):
    """The container's interface: a macvlan link on `master`, an interface of the host or (`inside`) of the container.

    `mtu` and `queue` (broadcasts that may wait) 0 leave the kernel's defaults. The host has no part of it that could be
    undone, so `netns` and `cookie` tell in which namespace it is: DEL may not be told, or be told another.
    """

    ifname: str
    master: str
    inside: bool
    mode: str
    mtu: int
    queue: int
    mac: bytes
    netns: str
    cookie: int
    owned = True
    deed = "make the macvlan interface {ifname} on {master}"

    def describe(self) -> str:
        master = f"{self.master} of the {'container' if self.inside else 'host'}"
        options = f", MTU {self.mtu}" * bool(self.mtu) + f", broadcast queue {self.queue}" * bool(self.queue)
        return f"container: macvlan {self.ifname} ({self.mac.hex(':')}) on {master}, mode {self.mode}{options}"

    def apply(self, kernel: "Kernel") -> None:
        from cni_py.kernel import macvlan

        side = kernel.container if self.inside else kernel.host
        # Names are looked up where the request is made: an eth0 of the host would be in the way of the container's.
        made = kernel.key.host_veth
        try:
            macvlan.add(
                side,
                made,
                need(side, self.master).index,
                self.mode,
                netns_fd=kernel.container_fd,
                mtu=self.mtu,
                mac=self.mac,
                queue=self.queue,
            )
        except OSError as error:
            action = f"{self.failure()} in mode {self.mode}"
            raise IOFailure(action, kernel_words(error) + MACVLAN_HINTS.get(error.errno or 0, "")) from error
        link = need(kernel.container, made)
        kernel.container.set_link(link.index, alias=kernel.key.comment)
        try:
            kernel.container.rename_link(link.index, self.ifname)
        except OSError as error:
            raise os_error(f'failed to rename macvlan to "{self.ifname}"', error) from error

    def undo(self, kernel: "Kernel") -> None:
        if not kernel.lives(self.cookie):
            from cni_py.kernel.context import Kernel

            kernel = Kernel(kernel.key, self.netns)
            if not kernel.lives(self.cookie):
                return  # it went with its namespace
        for name in (kernel.key.host_veth, self.ifname):
            link = kernel.container.link(name)
            if link is None or link.kind != "macvlan":
                continue
            if link.alias.startswith(kernel.key.hex) or name != self.ifname:
                kernel.container.delete_link(link.index)

    def check(self, kernel: "Kernel") -> str | None:
        from cni_py.kernel import macvlan

        master = need(kernel.container if self.inside else kernel.host, self.master)
        link = need(kernel.container, self.ifname)
        if link.kind != "macvlan":
            return f"Container interface {self.ifname} is not of type macvlan"
        mode = macvlan.mode_of(kernel.container, link.index)
        if mode != self.mode:
            return f"Container macvlan mode {mode} is not {self.mode}"
        if link.link != (master.link if master.kind == "macvlan" else master.index):  # which passes it on to its own
            return f"Container interface {self.ifname} is not on {self.master}"
        if self.mtu and link.mtu != self.mtu:
            return f"MTU of {self.ifname} is {link.mtu}, not {self.mtu}"
        return None if link.up else f"Container interface {self.ifname} is down"
