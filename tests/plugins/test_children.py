"""What ipvlan, vlan and dummy have of their own. (What they share with others: test_life.py.)

The development kernel has no such links; Debian's have: `make test-kernels` runs these.
"""

from __future__ import annotations

import pytest

from tests.plugins.bridge_network import BridgeNetwork, Conf
from tests.plugins.link_networks import DummyNetwork, IpvlanNetwork, VlanNetwork

pytestmark = pytest.mark.debian_kernel


def of(kind: type[BridgeNetwork]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", [kind], indirect=True, ids=[kind.plugin])


@of(IpvlanNetwork)
@pytest.mark.parametrize("mode", ["", "l2", "l3", "l3s"])
def test_ipvlan_has_its_masters_mac_and_reaches_its_neighbour(net: IpvlanNetwork, mode: str) -> None:
    routes: Conf = {"routes": []} if mode.startswith("l3") else {}
    conf = net.conf(mode=mode, ipam=routes, mtu=1400)
    result = net.well("ADD", conf).json
    link = net.links(net.a)["eth0"]
    assert (link["linkinfo"]["info_data"]["mode"], link["mtu"]) == (mode or "l2", 1400)
    assert link["address"] == net.links("host")["lan0"]["address"] == result["interfaces"][0]["mac"]
    assert net.check(conf, result).status == 0
    assert net.check({**conf, "mode": "l3" if mode in ("", "l2") else "l2"}, result).code == 999
    net.well("ADD", conf, net.b)
    net.lab.serve(net.b, 80)
    assert net.lab.fetch(net.a, net.address(4, 3), 80).name == net.b


@of(IpvlanNetwork)
def test_ipvlan_behind_another_plugin_takes_its_addresses_and_master(net: IpvlanNetwork) -> None:
    earlier = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "lan0"}],
        "ips": [{"address": f"{net.address(4, 4)}/24", "gateway": net.gateway(4)}],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    conf = {**net.conf(), "prevResult": earlier}
    del conf["ipam"], conf["master"]
    result = net.well("ADD", conf).json
    assert [ip["address"] for ip in result["ips"]] == net.held(net.a, "eth0") == [f"{net.address(4, 4)}/24"]
    assert [interface["name"] for interface in result["interfaces"]] == ["eth0"]
    assert net.check(conf, result).status == (0 if net.plugins.whose == "ours" else 1)  # Go's looks for the master ""
    two = [{"name": "lan0"}, {"name": "lo"}]
    refused = net.run("ADD", {**conf, "prevResult": {**earlier, "interfaces": two}}, net.b)
    assert "PrevResult lacks a single named interface" in refused.json["msg"]
    net.well("DEL", conf)


@of(VlanNetwork)
def test_vlan_is_tagged_on_its_master(net: VlanNetwork) -> None:
    """Another machine on the LAN that is in the VLAN answers; the untagged LAN does not see it."""
    conf = net.conf()
    result = net.well("ADD", conf).json
    assert net.links(net.a)["eth0"]["linkinfo"]["info_data"]["id"] == conf["vlanId"]
    vlan = f"lan0.{conf['vlanId']}"
    net.do("client", f"ip link add {vlan} link eth0 type vlan id {conf['vlanId']}")
    net.do("client", f"ip address add {net.gateway(4)}/24 dev {vlan}")
    net.do("client", f"ip link set {vlan} up")
    try:
        net.lab.serve(net.a, 80)
        answer = net.lab.fetch("client", net.address(4, 2), 80)
        assert (answer.name, answer.peer) == (net.a, net.gateway(4))
        assert net.check(conf, result).status == 0
        assert net.check({**conf, "vlanId": conf["vlanId"] % 4094 + 1}, result).code == 999
        again = net.run("ADD", conf, net.b)
        assert "a master has one interface for each VLAN" in again.stdout or net.plugins.whose != "ours"
        assert again.status == 1
    finally:
        net.do("client", f"ip link delete {vlan}")
    net.well("DEL", conf)
    net.well("ADD", conf, net.b)
    net.well("DEL", conf, net.b)


@of(VlanNetwork)
@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"master": ""}, '"master" field is required'),
        ({"vlanId": 4095}, "invalid VLAN ID 4095"),
        ({"vlanId": -1}, "invalid VLAN ID -1"),
        ({"mtu": 9000}, "invalid MTU 9000, must be [0, master MTU(1500)]"),
        ({"master": "nosuch"}, "Link not found"),
    ],
)
def test_vlan_refuses(net: VlanNetwork, keys: Conf, says: str) -> None:
    outcome = net.run("ADD", net.conf(**keys))
    assert outcome.status == 1
    assert says in outcome.json["msg"]
    assert net.run("DEL", net.conf(**keys)).status == (0 if net.plugins.whose == "ours" else 1)


@of(DummyNetwork)
def test_dummy_has_addresses_and_leads_nowhere(net: DummyNetwork) -> None:
    conf = net.conf(families=(4, 6), ipam={"routes": []})
    result = net.well("ADD", conf).json
    assert net.links(net.a)["eth0"]["linkinfo"]["info_kind"] == "dummy"
    assert net.held(net.a, "eth0") == [ip["address"] for ip in result["ips"]]
    assert net.check(conf, result).status == 0
    net.do(net.a, f"ip address delete {net.held(net.a, 'eth0')[0]} dev eth0")
    assert net.check(conf, result).code == 999
    net.well("DEL", conf)
    del conf["ipam"]
    refused = net.run("ADD", conf)
    assert "dummy interface requires an IPAM configuration" in refused.json["msg"]
