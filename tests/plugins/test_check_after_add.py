"""CHECK right after an ADD that succeeded finds nothing, whatever addresses and routes the network has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.plugins.bridge_network import BridgeNetwork, Conf

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.ours_alone

DEFAULT4, DEFAULT6 = "0.0.0.0/0", "::/0"
V4 = {"address": "{four}5/24", "gateway": "{four}1"}
V6 = {"address": "{six}5/64", "gateway": "{six}1"}

# addresses and routes of the IPAM plugin static; {four} and {six} begin the addresses of the test's network
NETWORKS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "no route": ([V4, V6], []),
    "default routes": ([V4, V6], [{"dst": DEFAULT4}, {"dst": DEFAULT6}]),
    "the same route twice": ([V4, V6], [{"dst": DEFAULT4}, {"dst": DEFAULT4, "gw": "{four}1"}, {"dst": DEFAULT6}] * 2),
    "two default routes": (
        [V4, V6],
        [{"dst": DEFAULT4, "gw": f"{{four}}{host}"} for host in (1, 9)]
        + [{"dst": DEFAULT6, "gw": f"{{six}}{host}"} for host in (1, 9)],
    ),
    "host bits in routes": ([V4, V6], [{"dst": "192.0.2.77/24"}, {"dst": "2001:db8:9::77/64"}]),
    "a route to its own subnet": ([V4, V6], [{"dst": "{four}5/24", "gw": "{four}1"}, {"dst": "{six}5/64"}]),
    "routes to one host": ([V4, V6], [{"dst": "192.0.2.7/32"}, {"dst": "2001:db8:9::7/128"}]),
    "a table of its own": ([V4, V6], [{"dst": "192.0.2.0/24", "table": 77}, {"dst": "2001:db8:9::/64", "table": 1000}]),
    "priority and MTU": (
        [V4, V6],
        [
            {"dst": "192.0.2.0/24", "priority": 9, "mtu": 1300},
            {"dst": "2001:db8:9::/64", "priority": 9, "advmss": 1200},
        ],
    ),
    "scope link": ([{"address": "{four}5/24"}, V6], [{"dst": "192.0.2.0/24", "scope": 253}]),
    "the gateway's own route": (  # an address without a subnet gets to its gateway so
        [{"address": "{four}5/32", "gateway": "{four}1"}, {"address": "{six}5/128", "gateway": "{six}1"}],
        [{"dst": "{four}1/32", "scope": 253}, {"dst": "{six}1/128"}, {"dst": DEFAULT4}, {"dst": DEFAULT6}],
    ),
    "scope link beside a gateway": ([V4], [{"dst": "192.0.2.0/24", "scope": 253}, {"dst": DEFAULT4}]),
    "no subnet at all": ([{"address": "{four}5/0", "gateway": "{four}1"}], []),
    "an address twice": ([{"address": "{four}5/24"}, V4, V6, V6], [{"dst": DEFAULT4}]),
    "one address only": ([{"address": "{four}5/32", "gateway": "{four}5"}, {"address": "{six}5/128"}], []),
    "two subnets": ([V4, {"address": "10.255.{number}.5/24", "gateway": "10.255.{number}.1"}, V6], [{"dst": DEFAULT4}]),
    "two addresses of one subnet": ([V4, {"address": "{four}6/24", "gateway": "{four}1"}], [{"dst": DEFAULT4}]),
    "a pair of addresses": ([{"address": "{four}5/31", "gateway": "{four}4"}, {"address": "{six}5/127"}], []),
    "odd spelling": ([{"address": "FD00:1:{number:x}:0::0005/64", "gateway": "fd00:1:{number:x}:0:0:0:0:1"}], []),
}


def filled(value: Any, net: BridgeNetwork) -> Any:
    """The table's value with the numbers of this network."""
    if isinstance(value, dict):
        return {key: filled(entry, net) for key, entry in value.items()}
    if isinstance(value, list):
        return [filled(entry, net) for entry in value]
    if isinstance(value, str):
        return value.format(four=net.address(4, 0)[:-1], six=net.address(6, 0)[:-1], number=net.number % 200)
    return value


def conf_of(net: BridgeNetwork, plugin: str, network: str, **keys: object) -> Conf:
    addresses, routes = filled(list(NETWORKS[network]), net)
    if plugin == "ptp":  # the host is the next hop
        addresses = [{"gateway": entry["address"].partition("/")[0][:-1] + "1", **entry} for entry in addresses]
    own = {"bridge": {"bridge": net.bridge}, "ptp": {}, "macvlan": {"master": "lan0"}}[plugin]
    ipam = {"type": "static", "addresses": addresses, "routes": routes}
    return {"cniVersion": "1.0.0", "name": net.name, "type": plugin, **own, "ipam": ipam, **keys}


def added_and_checked(net: BridgeNetwork, conf: Conf) -> None:
    plugin = str(conf["type"])
    added = net.plugins.run(net.lab, "ADD", plugin, conf, net.a)
    assert added.status == 0, added.stdout
    checked = net.plugins.run(net.lab, "CHECK", plugin, {**conf, "prevResult": added.json}, net.a)
    assert (checked.status, checked.stdout, checked.stderr) == (0, "", "")
    deleted = net.plugins.run(net.lab, "DEL", plugin, conf, net.a)
    assert (deleted.status, deleted.stdout, deleted.stderr) == (0, "", "")


MAIN = ("bridge", "ptp", "macvlan")
CASES = [(plugin, network) for plugin in MAIN for network in NETWORKS]


@pytest.mark.parametrize(("plugin", "network"), CASES)
def test_check_is_content_with_what_add_made(net: BridgeNetwork, plugin: str, network: str) -> None:
    added_and_checked(net, conf_of(net, plugin, network))


BRIDGES: dict[str, dict[str, object]] = {
    "gateway": {"isGateway": True},
    "default gateway": {"isDefaultGateway": True, "ipMasq": True},
    "hairpin, promiscuous": {"hairpinMode": True},
    "isolated, spoof check": {"portIsolation": True, "macspoofchk": True},
    "a small MTU": {"mtu": 1300},
}


@pytest.mark.parametrize("network", ["default routes", "two default routes", "host bits in routes"])
@pytest.mark.parametrize("bridge", BRIDGES)
def test_check_is_content_with_every_bridge(net: BridgeNetwork, bridge: str, network: str) -> None:
    added_and_checked(net, conf_of(net, "bridge", network, **BRIDGES[bridge]))
