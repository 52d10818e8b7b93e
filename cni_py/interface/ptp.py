"""Operations of the plugins that connect without a bridge: the two ends of ptp's pair, and macvlan's link.

Sides and addresses as in ops.
"""

from cni_py.addr import Address, parse_address, parse_ip
from cni_py.attachment.engine import Op
from cni_py.errors import os_error
from cni_py.interface.common import ipv6_off, need
from cni_py.kernel import inet
from cni_py.protocol.result import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel


class DropSubnetRoute(Op):
    """The subnet of an address is not on the link: the route that came with the address goes."""

    ifname: str
    subnet: str
    line = "container: no direct route to {subnet} dev {ifname}"
    deed = "remove the direct route to {subnet} from {ifname} in the container"

    def apply(self, kernel: "Kernel") -> None:
        index = need(kernel.container, self.ifname).index
        subnet = parse_address(self.subnet)
        inet.delete_route(
            kernel.container, Route(subnet, scope=inet.RT_SCOPE_LINK if subnet.family == 4 else None), index
        )


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
        scope = None if self.gw else inet.RT_SCOPE_LINK
        route = Route(parse_address(self.dst), parse_ip(self.gw) if self.gw else None, scope=scope)
        try:
            # Another interface of the container may lead to the same gateway.
            inet.add_route(kernel.container, route, index, beside="after", src=parse_ip(self.src))
        except FileExistsError:
            pass  # IPAM's routes have it already: rt6_duplicate_nexthop() does not look at the source

    def check(self, kernel: "Kernel") -> str | None:
        index = need(kernel.container, self.ifname).index
        gw = parse_ip(self.gw) if self.gw else None
        dst, sources = parse_address(self.dst), (parse_ip(self.src), None)
        for route in inet.routes(kernel.container, index, dst.family):
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
            inet.add_address(kernel.host, index, gateway, nodad=True)
        except FileExistsError:
            pass  # two addresses of the container have one gateway
        except OSError as error:
            raise ipv6_off(self.name, str(gateway), error) or os_error(self.failure(), error) from error
        # Of a namespace that is gone the link and its routes may be there for a moment yet: ours comes after those.
        inet.add_route(kernel.host, Route(address, scope=inet.RT_SCOPE_HOST), index, beside="after")

    def check(self, kernel: "Kernel") -> str | None:
        index = need(kernel.host, self.name).index
        if parse_ip(self.gateway) not in [held.address.packed for held in inet.addresses(kernel.host, index)]:
            return f"{self.name} has lost the gateway's address {self.gateway}"
        wanted = Address(parse_ip(self.address), 0).host()
        well = any(route.dst == wanted for route in inet.routes(kernel.host, index, wanted.family))
        return None if well else f"the host has no route to {self.address} through {self.name}"
