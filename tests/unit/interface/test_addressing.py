"""cni_py.interface.addressing by value: addresses and routes of a result in, operations out."""

from __future__ import annotations

import pytest

from cni_py.addr import parse_address, parse_ip
from cni_py.attachment.engine import Op
from cni_py.errors import InvalidNetworkConfig
from cni_py.interface.addressing import check_route, plan_addresses, plan_route
from cni_py.interface.common import AddAddress, SetContainerSysctl, SetContainerUp
from cni_py.protocol.result import IPConfig, Route

V4 = IPConfig(parse_address("192.0.2.5/24"), parse_ip("192.0.2.1"))
V6 = IPConfig(parse_address("2001:db8::5/64"), parse_ip("2001:db8::1"))


def words(steps: list[Op]) -> list[str]:
    """An operation each: the end of a sysctl's key with its value, an address, or a name."""
    found = []
    for op in steps:
        if isinstance(op, SetContainerSysctl):
            found.append(f"{op.key.rpartition('/conf/')[2]}={op.value}{'' if op.optional else '!'}")
        else:
            found.append(op.address if isinstance(op, AddAddress) else type(op).__name__)
    return found


def test_ipv4_alone_sets_nothing_of_ipv6() -> None:
    assert words(plan_addresses("eth0", [V4], dad=True, announce=False)) == ["192.0.2.5/24", "SetContainerUp"]


@pytest.mark.parametrize(
    ("dad", "settings", "after"),
    [
        (None, [], ["WaitForAddresses"]),
        (True, ["eth0/accept_dad=1", "eth0/ndisc_notify=1", "eth0/enhanced_dad=1"], ["WaitForAddresses"]),
        (False, ["eth0/accept_dad=0"], []),
    ],
)
def test_ipv6_is_enabled_before_the_address_and_settled_before_the_link_is_up(
    dad: bool | None, settings: list[str], after: list[str]
) -> None:
    assert words(plan_addresses("eth0", [V6], dad=dad, announce=bool(dad))) == [
        "lo/disable_ipv6=0!",
        "eth0/disable_ipv6=0!",
        "eth0/keep_addr_on_down=1",
        *settings,
        *(["eth0/arp_notify=1"] if dad else []),
        "2001:db8::5/64",
        "SetContainerUp",
        *after,
    ]


@pytest.mark.parametrize(("dad", "asked"), [(None, True), (True, True), (False, False)])
def test_an_address_is_usable_at_once_only_without_detection(dad: bool | None, asked: bool) -> None:
    steps = plan_addresses("eth0", [V4, V6], dad=dad, announce=False)
    assert [op.dad for op in steps if isinstance(op, AddAddress)] == [asked, asked]
    assert sum(isinstance(op, SetContainerUp) for op in steps) == 1


@pytest.mark.parametrize(
    ("route", "gw"),
    [
        (Route(parse_address("0.0.0.0/0")), "192.0.2.1"),
        (Route(parse_address("::/0")), "2001:db8::1"),
        (Route(parse_address("0.0.0.0/0"), parse_ip("192.0.2.9")), "192.0.2.9"),
        (Route(parse_address("192.0.2.1/32")), ""),
        (Route(parse_address("2001:db8::1/128")), ""),
        (Route(parse_address("198.51.100.0/24"), scope=253), ""),
        (Route(parse_address("2001:db8:9::/64"), scope=253), "2001:db8::1"),
        (Route(parse_address("198.51.100.0/24"), parse_ip("192.0.2.9"), scope=253), "192.0.2.9"),
    ],
)
def test_a_route_without_a_gateway_goes_through_its_familys_unless_it_leads_there(route: Route, gw: str) -> None:
    assert plan_route("eth0", route, [V6, V4]).gw == gw


def test_without_gateways_a_route_is_a_connected_one_and_keeps_its_numbers() -> None:
    route = Route(parse_address("198.51.100.0/24"), mtu=1300, advmss=1200, priority=9, table=77, scope=0)
    op = plan_route("eth0", route, [IPConfig(parse_address("192.0.2.5/24"))])
    back = op.route()
    assert (str(back.dst), back.gw) == ("198.51.100.0/24", None)
    assert (back.mtu, back.advmss, back.priority, back.table, back.scope) == (1300, 1200, 9, 77, 0)
    plain = plan_route("eth0", Route(parse_address("198.51.100.0/24")), [])
    assert (plain.table, plain.scope) == (-1, -1)


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (Route(parse_address("0.0.0.0/0"), parse_ip("2001:db8::1")), "gateway of the other family, 2001:db8::1"),
        (Route(parse_address("0.0.0.0/0"), mtu=-1), "the mtu -1"),
        (Route(parse_address("0.0.0.0/0"), table=1 << 32), "the table 4294967296"),
        (Route(parse_address("0.0.0.0/0"), scope=256), "the scope 256, which is not between 0 and 255"),
    ],
)
def test_a_route_that_no_kernel_takes_is_refused(route: Route, message: str) -> None:
    with pytest.raises(InvalidNetworkConfig, match=message):
        check_route(route, route.gw)
