"""cni_py.interface.ptp on real links: both ends of a pair, in one namespace."""

from __future__ import annotations

import subprocess

import pytest

from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment
from cni_py.errors import InvalidNetworkConfig
from cni_py.interface.ptp import AddPeer, AddPeerRoute, DropSubnetRoute

KEY = Attachment("net1", "c1", "eth0")
PEERS = [
    AddPeer(name="v0", gateway="192.0.2.1", address="192.0.2.5"),
    AddPeer(name="v0", gateway="2001:db8::1", address="2001:db8::5"),
]
ROUTES = [
    AddPeerRoute(ifname="v1", dst="192.0.2.1/32", gw="", src="192.0.2.5"),
    AddPeerRoute(ifname="v1", dst="2001:db8::1/128", gw="", src="2001:db8::5"),
]


def run(command: str) -> str:
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


def pairs() -> Kernel:
    """Two pairs, all ends up, and the addresses of a container on v1."""
    for one, two in (("v0", "v1"), ("w0", "w1")):
        run(f"ip link add {one} type veth peer name {two}; ip link set {one} up; ip link set {two} up")
    run("ip address add 192.0.2.5/24 dev v1; ip address add 2001:db8::5/64 dev v1 nodad")
    return Kernel(KEY, "/proc/self/ns/net")


@pytest.mark.netns
@pytest.mark.parametrize("number", [0, 1])
def test_the_hosts_end_has_the_gateway_alone_and_a_route_beside_a_dying_one(number: int) -> None:
    kernel, op = pairs(), PEERS[number]
    bits = 32 if number == 0 else 128
    run(f"ip route add {op.address}/{bits} dev w0")  # of a namespace that is about to go
    assert op.check(kernel) == f"v0 has lost the gateway's address {op.gateway}"
    op.apply(kernel)
    AddPeer(name="v0", gateway=op.gateway, address=op.address.replace("5", "6")).apply(kernel)
    assert f" {op.gateway}/{bits} " in run("ip address show dev v0").replace("inet6", "inet")
    assert op.check(kernel) is None
    run("ip link delete w0")
    assert op.check(kernel) is None
    run(f"ip route delete {op.address} dev v0")
    assert op.check(kernel) == f"the host has no route to {op.address} through v0"


@pytest.mark.netns
@pytest.mark.parametrize("number", [0, 1])
def test_the_subnet_is_no_longer_on_the_link_but_behind_the_gateway(number: int) -> None:
    kernel, route = pairs(), ROUTES[number]
    subnet = ("192.0.2.0/24", "2001:db8::/64")[number]
    drop = DropSubnetRoute(ifname="v1", subnet=subnet)
    route.apply(kernel)
    assert route.check(kernel) is None
    family = (4, 6)[number]
    if family == 4:
        run(f"ip route append {subnet} via 192.0.2.1 dev v1")  # IPAM's own, which stays
    for _ in range(2):  # nothing to delete is no error
        drop.apply(kernel)
    left = run(f"ip -{family} route show {subnet} dev v1").splitlines()
    assert ["via" in line for line in left] == [True] * (family == 4)
    for _ in left:
        run(f"ip route delete {subnet} dev v1")
    behind = AddPeerRoute(ifname="v1", dst=subnet, gw=route.dst.partition("/")[0], src=route.src)
    assert behind.check(kernel) == f"Expected Route {subnet} not found in routing table of v1 in the container"
    behind.apply(kernel)
    assert behind.check(kernel) is None
    assert f"{subnet} via {behind.gw} " in run(f"ip -{family} route show dev v1")


@pytest.mark.netns
def test_ipv6_that_is_disabled_is_an_error_of_the_configuration() -> None:
    kernel = pairs()
    run("sysctl -q -w net.ipv6.conf.v0.disable_ipv6=1")
    with pytest.raises(
        InvalidNetworkConfig, match="give v0 the address 2001:db8::1/128: IPv6 is disabled on v0"
    ) as told:
        PEERS[1].apply(kernel)
    assert "net.ipv6.conf.v0.disable_ipv6=0" in told.value.details
    run("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1")
    with pytest.raises(InvalidNetworkConfig, match="IPv6 is disabled on this host") as told:
        PEERS[1].apply(kernel)
    assert "net.ipv6.conf.all.disable_ipv6=0" in told.value.details
