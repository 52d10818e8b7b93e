"""Operations of the ptp plugin: the routes and addresses by which the two ends of a veth pair reach each other.

"host", "container" and addresses as in interface/common.py.
"""

from cni_py.addr import Address, parse_address, parse_ip
from cni_py.attachment.engine import Op
from cni_py.errors import os_error
from cni_py.interface.common import checked_routes, ipv6_off, need
from cni_py.kernel import inet
from cni_py.protocol.result import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel


class DropSubnetRoute(Op):
    """Delete the route to the subnet that the kernel made with the address: only the host is on the link."""

    ifname: str
    subnet: str
    line = "container: no direct route to {subnet} dev {ifname}"
    deed = "remove the direct route to {subnet} from {ifname} in the container"

    def apply(self, kernel: "Kernel") -> None:
        index = need(kernel.container, self.ifname).index
        subnet = parse_address(self.subnet)
        # Of scope link: IPAM's own route to the subnet through a gateway is of scope universe, and stays (fib_table_delete()).
        inet.delete_route(
            kernel.container, Route(subnet, scope=inet.RT_SCOPE_LINK if subnet.family == 4 else None), index
        )


class AddPeerRoute(Op):
    """A route of the container to the gateway, which is the link's other end (`gw` ""), or to a subnet through the gateway.

    `src` is the container's address that packets by this route come from.
    """

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
            # After others: another interface of the container may have a route to the same gateway, and keeps it.
            inet.add_route(kernel.container, route, index, beside="after", src=parse_ip(self.src))
        except FileExistsError:
            pass  # one of IPAM's routes is the same but for its source, which rt6_duplicate_nexthop() does not compare

    def check(self, kernel: "Kernel") -> str | None:
        link = need(kernel.container, self.ifname)
        gw = parse_ip(self.gw) if self.gw else None
        dst, sources = parse_address(self.dst), (parse_ip(self.src), None)
        for route in checked_routes(kernel.container, link, dst.family):
            # Of IPv6 routes to one destination by two interfaces the kernel makes one multipath route, which has one source.
            if (route.dst, route.gw) == (dst, gw) and (route.src in sources or dst.family == 6):
                return None
        return f"Expected Route {self.dst} not found in routing table of {self.ifname} in the container"


class AddPeer(Op):
    """The host's end of the pair has the gateway's address (/32, /128), and a route to the container's address."""

    name: str
    gateway: str
    address: str
    restorable = True
    line = "host: address {gateway} on {name}, without its subnet, and a route to {address} there"
    deed = "give {name} the gateway's address {gateway} and the route to {address}"

    def apply(self, kernel: "Kernel") -> None:
        gateway, address = host_of(self.gateway), host_of(self.address)
        index = need(kernel.host, self.name).index
        try:
            inet.add_address(kernel.host, index, gateway, nodad=True)
        except FileExistsError:
            pass  # another address of the container has the same gateway
        except OSError as error:
            raise ipv6_off(self.name, str(gateway), error) or os_error(self.failure(), error) from error
        # Beside another: the link of a namespace that is gone, and its route to this address, stay for some milliseconds. The
        # kernel uses the first, which goes with its link.
        try:
            inet.add_route(kernel.host, Route(address, scope=inet.RT_SCOPE_HOST), index, beside="after")
        except FileExistsError:
            pass  # this very route: somebody had taken away the address alone

    def check(self, kernel: "Kernel") -> str | None:
        index = need(kernel.host, self.name).index
        if parse_ip(self.gateway) not in [held.address.packed for held in inet.addresses(kernel.host, index)]:
            return f"{self.name} has lost the gateway's address {self.gateway}"
        wanted = host_of(self.address)
        if any(route.dst == wanted for route in inet.routes(kernel.host, index, wanted.family)):
            return None
        return f"the host has no route to {self.address} through {self.name}"


def host_of(ip: str) -> Address:
    """An address with the prefix length of a host: /32 or /128."""
    return Address(parse_ip(ip), 0).host()
