"""Which route a packet takes, on tables built here."""

from __future__ import annotations

import ipaddress

import pytest

from cni_py.explain import fib, routing
from cni_py.host.model import Address, Link, Namespace, Route, Rule

ETH0 = Link(2, "eth0", "", "02:00:00:00:00:02", 1500, True, "up", addresses=(
    Address("192.0.2.5", 24), Address("198.51.100.5", 24), Address("fe80::5", 64, "link"),
    Address("2001:db8::5", 64), Address("2001:db8:0:0:1::5", 64, flags=("deprecated",)),
    Address("2001:db8:7::5", 64, flags=("tentative",)),
))  # fmt: skip
LO = Link(1, "lo", "", "", 65536, True, "unknown", addresses=(Address("127.0.0.1", 8, "host"),), flags=("loopback",))


def space(*routes: Route, rules: tuple[Rule, ...] = ()) -> Namespace:
    return Namespace("net:[1]", links=(LO, ETH0), routes=routes, rules=rules)


def main(destination: str, link: str, metric: int = 0, **more: str) -> Route:
    return Route(6 if ":" in destination else 4, 254, destination, link=link, metric=metric, **more)


TABLES = space(
    main("0.0.0.0/0", "default0", gateway="192.0.2.1"),
    main("203.0.113.0/24", "slow0", 200),
    main("203.0.113.0/24", "fast0", 100),
    main("203.0.113.64/26", "narrow0"),
    main("203.0.113.66/32", "", kind="blackhole"),
    Route(4, 77, "198.18.0.0/16", link="marked0"),
    Route(4, 78, "203.0.113.0/24", kind="throw"),
    rules=(
        Rule(4, 0, "lookup", 255),
        Rule(4, 10, "lookup", 77, mark=0x10, mask=0xF0),
        Rule(4, 20, "lookup", 78),
        Rule(4, 30, "prohibit", source="192.0.2.128/25"),
        Rule(4, 40, "lookup", 77, iif="eth9"),
        Rule(4, 32766, "lookup", 254),
    ),
)


@pytest.mark.parametrize(
    ("destination", "how", "link"),
    [
        ("203.0.113.9", {}, "fast0"),  # the lower metric
        ("203.0.113.65", {}, "narrow0"),  # the longer prefix
        ("203.0.113.66", {}, ""),
        ("198.18.0.1", {}, "default0"),
        ("198.18.0.1", {"mark": 0x12}, "marked0"),  # the mask leaves the rest out
        ("198.18.0.1", {"mark": 0x22}, "default0"),
        ("198.18.0.1", {"iif": "eth9"}, "marked0"),
        ("203.0.113.9", {"oif": "slow0"}, "slow0"),
        ("192.0.2.5", {}, "eth0"),  # its own address, although the model has no local table
        ("127.9.9.9", {}, "lo"),
    ],
)
def test_the_route(destination: str, how: dict[str, str], link: str) -> None:
    found = routing.lookup(TABLES, destination, **how)  # type: ignore[arg-type]  # of the right types
    assert found.route is not None
    assert (found.route.link, found.doubt) == (link, "")


def test_a_rule_that_forbids_is_a_route_of_that_kind() -> None:
    found = routing.lookup(TABLES, "198.18.0.1", source="192.0.2.200")
    assert found.route is not None
    assert found.route.kind == "prohibit"


def test_no_rules_are_the_kernels_own() -> None:
    assert routing.lookup(space(main("2001:db8::/64", "eth0")), "2001:db8::9").text == "2001:db8::/64 dev eth0"
    assert routing.lookup(space(), "203.0.113.1").route is None


@pytest.mark.parametrize(("table", "doubtful"), [(254, True), (99, False)])
def test_a_condition_that_is_not_in_the_model_is_a_doubt_where_it_matters(table: int, doubtful: bool) -> None:
    rules = (Rule(4, 5, "lookup", table, other=True), Rule(4, 32766, "lookup", 254))
    found = routing.lookup(space(main("0.0.0.0/0", "eth0"), rules=rules), "203.0.113.1")
    assert bool(found.doubt) is doubtful


@pytest.mark.parametrize(
    ("route", "destination", "source"),
    [
        (main("0.0.0.0/0", "eth0", gateway="198.51.100.1"), "203.0.113.1", "198.51.100.5"),  # on the gateway's subnet
        (main("0.0.0.0/0", "eth0", source="192.0.2.77"), "203.0.113.1", "192.0.2.77"),
        (main("0.0.0.0/0", "gone0"), "203.0.113.1", "192.0.2.5"),  # a link without addresses borrows
        (main("::/0", "eth0"), "2001:db8:1::1", "2001:db8::5"),  # neither deprecated, nor tentative, nor of the link
        (main("fe80::/64", "eth0"), "fe80::9", "fe80::5"),
    ],
)
def test_the_source_address(route: Route, destination: str, source: str) -> None:
    assert routing.source_for(TABLES, route, destination) == source


WIREGUARD = space(
    main("0.0.0.0/0", "eth0"),
    main("192.0.2.0/24", "eth0"),
    Route(4, 77, "0.0.0.0/0", link="wg0"),
    rules=(
        Rule(4, 0, "lookup", 255),
        Rule(4, 99, "lookup", 254, suppress=0),
        Rule(4, 100, "lookup", 77, mark=7, mask=0xFF, inverted=True),
        Rule(4, 110, "lookup", 254),
    ),
)


@pytest.mark.parametrize(
    ("destination", "mark", "link"), [("192.0.2.9", 0, "eth0"), ("203.0.113.9", 0, "wg0"), ("203.0.113.9", 7, "eth0")]
)
def test_the_rules_of_wg_quick(destination: str, mark: int, link: str) -> None:
    found = routing.lookup(WIREGUARD, destination, mark=mark)
    assert found.route is not None
    assert (found.route.link, found.doubt) == (link, "")
    asked, why = fib.lookup(WIREGUARD, ipaddress.ip_address(destination), mark, None)
    assert asked is not None
    assert (asked.link, why) == (link, "")


def test_an_inverted_rule_with_a_condition_that_is_not_in_the_model_is_a_doubt() -> None:
    rules = (Rule(4, 5, "prohibit", destination="203.0.113.0/24", other=True, inverted=True), Rule(4, 9, "lookup", 254))
    assert routing.lookup(space(main("0.0.0.0/0", "eth0"), rules=rules), "203.0.113.1").doubt
