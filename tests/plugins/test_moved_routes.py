"""sbr and vrf move the routes of the plugin before them. Its CHECK finds them where they are, and not where they lead nowhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import Lab
from runtime import Plugins

from tests.plugins.bridge_network import BridgeNetwork
from tests.plugins.conftest import need_kind
from tests.plugins.link_networks import MacvlanNetwork, PtpNetwork

pytestmark = pytest.mark.ours_alone
KINDS = (BridgeNetwork, PtpNetwork, MacvlanNetwork)
# What moves the routes, and what takes away the way to them
MOVERS = {
    "sbr": ({}, ["ip rule flush", "ip -6 rule flush"]),
    "vrf": ({"vrfname": "blue"}, ["ip route flush table 1", "ip -6 route flush table 1"]),
}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.plugin)
def net(request: pytest.FixtureRequest, shared_lab: Lab, plugins: Plugins) -> Iterator[BridgeNetwork]:
    found = request.param(shared_lab, plugins)
    yield found
    found.close()


@pytest.mark.parametrize(
    "mover", [pytest.param(one, marks=[pytest.mark.debian_kernel] if one == "vrf" else []) for one in MOVERS]
)
def test_a_check_finds_the_routes_that_were_moved(net: BridgeNetwork, mover: str) -> None:
    need_kind(net.lab, mover)
    keys, harm = MOVERS[mover]
    conf = net.conf(families=(4, 6))
    conf["ipam"]["routes"] += [{"dst": "192.0.2.0/24", "table": 254}, {"dst": "2001:db8:9::/64", "table": 254}]
    result = net.well("ADD", conf).json
    moving = {"cniVersion": "1.0.0", "name": net.name, "type": mover, "prevResult": result, **keys}
    assert net.plugins.run(net.lab, "ADD", mover, moving, net.a).status == 0
    assert net.plugins.run(net.lab, "CHECK", mover, moving, net.a).status == 0
    checked = net.check(conf, result)
    assert checked.status == 0, checked.stdout
    for command in harm:
        net.do(net.a, command)
    lost = net.check(conf, result)
    assert (lost.status, lost.json["code"]) == (1, 999), lost.stdout
