"""What bridge, ptp and macvlan do alike inside the container: default routes, IPv6 on lo, DNS, a link without IPAM."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.plugins.bridge_network import FAMILIES, BridgeNetwork, Conf, ours_alone

if TYPE_CHECKING:
    pass

MAIN = ("bridge", "ptp", "macvlan")


class MainNetwork(BridgeNetwork):
    """The same network by any of the plugins that make a container's interface."""

    def of(self, plugin: str, families: tuple[int, ...] = (4,), **keys: Any) -> Conf:
        conf = self.conf(families=families, **keys) | {"type": plugin}
        if plugin != "bridge":
            del conf["bridge"], conf["isGateway"]
        return conf | ({"master": "lan0"} if plugin == "macvlan" else {})

    def does(self, verb: str, conf: Conf, ifname: str = "eth0") -> Conf:
        """Run the plugin that the configuration names; it must succeed."""
        outcome = self.plugins.run(self.lab, verb, conf["type"], conf, self.a, None, ifname)
        assert outcome.status == 0, f"{verb}: {outcome.stdout}{outcome.stderr}"
        return outcome.json if verb == "ADD" else {}

    def way_to(self, address: str) -> str:
        """The interface by which container a reaches an address."""
        shown = self.lab[self.a].run(["ip", "-json", "route", "get", address], check=True).stdout
        return str(json.loads(shown)[0]["dev"])

    def default_routes(self, family: int) -> list[tuple[str, str]]:
        """Gateway and interface of container a's default routes, in order, the ways of a multipath route included."""
        shown = self.lab[self.a].run(["ip", f"-{family}", "-json", "route", "show", "default"], check=True).stdout
        ways = [way for route in json.loads(shown) for way in route.get("nexthops", [route])]
        return [(way["gateway"], way["dev"]) for way in ways]


@pytest.fixture
def kind() -> type[BridgeNetwork]:
    return MainNetwork


# Default routes


@pytest.mark.parametrize("plugin", MAIN)
def test_ipv4_leaves_by_the_network_that_was_added_last(net: MainNetwork, other: MainNetwork, plugin: str) -> None:
    """IPv6 uses both: the kernel makes one multipath route of them."""
    first = net.of(plugin, (4, 6))
    second = {**other.of(plugin, (4, 6)), "name": other.name}
    net.does("ADD", first)
    net.does("ADD", second, "eth1")
    assert net.way_to("203.0.113.9") == "eth1"
    assert [dev for _, dev in net.default_routes(4)] == ["eth1", "eth0"]
    assert {dev for _, dev in net.default_routes(6)} == {"eth0", "eth1"}
    net.does("DEL", second, "eth1")
    assert net.way_to("203.0.113.9") == "eth0"
    net.does("DEL", first)


@pytest.mark.parametrize("plugin", ["bridge", "macvlan"])
def test_of_several_default_routes_of_one_network_the_last_is_used(net: MainNetwork, plugin: str) -> None:
    gateways = [net.address(4, host) for host in (1, 8, 9)]
    routes = [{"dst": "0.0.0.0/0", "gw": gateway} for gateway in gateways]
    conf = net.of(plugin, ipam={"routes": routes}) | {"isGateway": False}
    net.does("ADD", conf)
    assert [gateway for gateway, _ in net.default_routes(4)] == gateways[::-1]
    net.does("DEL", conf)


@pytest.mark.ours_alone
@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("plugin", MAIN)
def test_a_route_said_twice_is_one_route(net: MainNetwork, plugin: str, families: tuple[int, ...]) -> None:
    """By IPAM twice, and once more by isDefaultGateway; the Go plugins end with "file exists"."""
    defaults = [{"dst": {4: "0.0.0.0/0", 6: "::/0"}[family]} for family in families]
    said = [{**route, "gw": net.address(family, 1)} for route, family in zip(defaults, families, strict=True)]
    conf = net.of(plugin, families, ipam={"routes": defaults + said + defaults})
    if plugin == "bridge":
        conf = {**conf, "isDefaultGateway": True, "ipam": {**conf["ipam"], "routes": defaults}}
    result = net.does("ADD", conf)
    for family in families:
        assert net.default_routes(family) == [(net.address(family, 1), "eth0")]
    net.does("CHECK", {**conf, "prevResult": result})
    net.does("DEL", conf)


# IPv6 where the runtime has switched it off


def switch_ipv6_off() -> None:
    for which in ("all", "default", "lo"):
        with open(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")


def talks_to_itself(address: str) -> bool:
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind((address, 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()[:2], 2):
            return True


@pytest.mark.parametrize("plugin", MAIN)
def test_a_container_without_ipv6_has_it_whole_with_its_first_address(net: MainNetwork, plugin: str) -> None:
    net.do(net.a, "ip link set lo up")
    net.lab[net.a].python(switch_ipv6_off)
    conf = net.of(plugin, (4, 6))
    net.does("ADD", conf)
    for address in ("::1", net.address(6, 2)):
        assert net.lab[net.a].python(talks_to_itself, address)
    net.does("DEL", conf)


@pytest.mark.parametrize("plugin", MAIN)
def test_a_container_without_ipv6_stays_so_with_ipv4_alone(net: MainNetwork, plugin: str) -> None:
    net.lab[net.a].python(switch_ipv6_off)
    conf = net.of(plugin)
    net.does("ADD", conf)
    shown = net.lab[net.a].run(["ip", "-6", "address", "show"], check=True).stdout
    assert shown == ""
    net.does("DEL", conf)


# DNS

OF_IPAM = {"nameservers": ["192.0.2.53"], "search": ["ipam.example"], "options": ["ndots:2"]}


@pytest.mark.parametrize(
    ("dns", "expected"),
    [
        ({}, OF_IPAM),
        ({"nameservers": None}, OF_IPAM),
        ({"domain": ""}, OF_IPAM),
        ({"nameservers": []}, {}),
        ({"search": []}, {}),
        ({"options": [], "nameservers": ["192.0.2.54"]}, {"nameservers": ["192.0.2.54"]}),
        ({"domain": "own.example"}, {"domain": "own.example"}),
        (None, OF_IPAM),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
@pytest.mark.parametrize("plugin", [ours_alone("bridge"), "ptp", ours_alone("macvlan")])
def test_a_dns_list_of_the_network_takes_the_place_of_ipams_also_when_it_is_empty(
    net: MainNetwork, plugin: str, dns: Conf | None, expected: Conf
) -> None:
    """Go's macvlan, and its bridge until 1.1.1, drop what IPAM says."""
    address = {"address": f"{net.address(4, 5)}/24", "gateway": net.address(4, 1)}
    conf = net.of(plugin) | {"dns": dns, "ipam": {"type": "static", "addresses": [address], "dns": OF_IPAM}}
    assert net.does("ADD", conf).get("dns", {}) == expected
    net.does("DEL", conf)


# No IPAM


@pytest.mark.parametrize("ipam", [None, {}], ids=["no ipam", "empty ipam"])
@pytest.mark.parametrize("plugin", ["bridge", ours_alone("ptp"), "macvlan"])
def test_without_ipam_the_container_has_a_link_that_is_up(net: MainNetwork, plugin: str, ipam: Conf | None) -> None:
    """The Go ptp refuses that at ADD and at DEL; the Go bridge at CHECK."""
    conf = net.of(plugin) | {"ipam": ipam, "isGateway": False, "ipMasq": True}
    if ipam is None:
        del conf["ipam"]
    result = net.does("ADD", conf)
    assert "ips" not in result
    assert [entry["name"] for entry in result["interfaces"] if "sandbox" in entry] == ["eth0"]
    assert "UP" in net.links(net.a)["eth0"]["flags"]
    assert net.held(net.a, "eth0") == []
    if plugin != "bridge" or net.plugins.whose == "ours":
        net.does("CHECK", {**conf, "prevResult": result})
    for _ in range(2):
        net.does("DEL", {**conf, "prevResult": result})
    assert "eth0" not in net.links(net.a)
    assert net.records() == []
