"""The executable macvlan: an interface of the container's own on the lab's network, over the life of an attachment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from runtime import FORMS, REFUSALS, Plugins
from snapshot import difference

from tests.conftest import GO, OURS
from tests.lacking import unavailable
from tests.plugins.bridge_network import BridgeNetwork, Conf, ours_alone
from tests.plugins.link_networks import CLIENT, MacvlanNetwork

if TYPE_CHECKING:
    pass

MAC = "c2:11:22:33:44:55"


@pytest.fixture
def kind() -> type[BridgeNetwork]:
    return MacvlanNetwork


def without_ipam(net: MacvlanNetwork, **keys: object) -> Conf:
    conf = net.conf(**keys)  # type: ignore[arg-type]  # keys of the configuration
    del conf["ipam"]
    return conf


# The life of an attachment


@pytest.mark.parametrize("version", FORMS)
def test_versions_get_a_container_on_the_lan_and_their_own_form_of_the_result(
    net: MacvlanNetwork, plugins: Plugins, version: str
) -> None:
    if version not in plugins.versions:
        pytest.skip(f"these plugins do not know {version}")
    families = (4, 6) if version in ("0.2.0", "1.0.0") else (4,)
    conf = net.conf(version, families)
    net.lab.serve(net.a, 80)
    net.warm(conf)
    before = net.state()
    result = net.well("ADD", conf).json
    for family in families:
        answer = net.lab.fetch("client", net.address(family, 3), 80)
        assert (answer.name, answer.peer) == (net.a, CLIENT[family])
        assert net.default_gateway(family) == CLIENT[family]
    assert result["cniVersion"] == version
    if version < "0.3.0":
        assert [result[f"ip{family}"]["ip"] for family in families] == net.held(net.a, "eth0")
    else:
        assert [ip["address"] for ip in result["ips"]] == net.held(net.a, "eth0")
        assert {ip["interface"] for ip in result["ips"]} == {0}
        mac = net.links(net.a)["eth0"]["address"]
        assert result["interfaces"] == [{"name": "eth0", "mac": mac, "sandbox": f"/run/netns/{net.a}"}]
    if version >= "0.4.0":
        assert net.check(conf, result).status == 0
    for _ in range(2):
        assert net.well("DEL", conf).stdout == ""
        assert not difference(before, net.state())


def test_two_containers_reach_each_other_and_have_macs_of_their_own(net: MacvlanNetwork) -> None:
    conf = net.conf()
    net.lab.serve(net.b, 80)
    macs = {net.well("ADD", conf, name).json["interfaces"][0]["mac"] for name in (net.a, net.b)}
    assert len(macs) == 2
    assert net.lab.fetch(net.a, net.address(4, 3), 80).name == net.b


@pytest.mark.ours_alone
def test_an_address_that_somebody_else_had_is_found_at_once(net: MacvlanNetwork) -> None:
    """The neighbours are told the new MAC. The Go plugin of 1.1.1 tells it for IPv4 alone."""
    addresses = [{"address": f"{net.address(4, 2)}/24"}, {"address": f"{net.address(6, 2)}/64"}]
    conf = {**net.conf(), "ipam": {"type": "static", "addresses": addresses}}
    for name in (net.a, net.b):
        net.lab.serve(name, 80)
        net.well("ADD", conf, name)
        for family in (4, 6):
            assert net.lab.fetch("client", net.address(family, 2), 80).name == name
        net.well("DEL", conf, name)


@pytest.mark.ours_alone
def test_the_mac_is_the_same_again_and_another_for_another_interface(net: MacvlanNetwork) -> None:
    """The Go plugin leaves it to the kernel, which may throw the same dice on two hosts."""
    conf = without_ipam(net)
    seen = []
    for ifname in ("eth0", "eth1", "eth0"):
        outcome = net.run("ADD", conf, ifname=ifname)
        seen.append(outcome.json["interfaces"][0]["mac"])
        assert net.run("DEL", conf, ifname=ifname).status == 0
    assert seen[0] == seen[2] != seen[1]
    assert all(int(mac[:2], 16) & 3 == 2 for mac in seen)  # locally administered, no group


@pytest.mark.parametrize("mode", ["", "bridge", "private", "vepa", "passthru"])
def test_modes(net: MacvlanNetwork, mode: str) -> None:
    """In passthru mode the master's MAC is the container's; so it wants a master for itself."""
    net.do("host", "ip link add alone type veth peer name else")
    net.do("host", "ip link set alone up")
    try:
        conf = without_ipam(net, master="alone", mode=mode)
        result = net.well("ADD", conf).json
        link = net.links(net.a)["eth0"]
        assert link["linkinfo"]["info_data"]["mode"] == (mode or "bridge")
        assert result["interfaces"][0]["mac"] == link["address"]
        assert (link["address"] == net.links("host")["alone"]["address"]) == (mode == "passthru")
        assert net.check(conf, result).status == 0
        net.well("DEL", conf)
    finally:
        net.do("host", "ip link delete alone")


@pytest.mark.parametrize(
    ("keys", "cni_args"),
    [
        ({"mac": MAC}, ""),
        ({"mac": "c2:00:00:00:00:01"}, f"MAC={MAC}"),
        ({"mac": "c2:00:00:00:00:01", "runtimeConfig": {"mac": MAC}}, "MAC=c2:00:00:00:00:02"),
    ],
    ids=["configured", "CNI_ARGS", "runtimeConfig"],
)
def test_the_mac_asked_for(net: MacvlanNetwork, keys: Conf, cni_args: str) -> None:
    result = net.well("ADD", without_ipam(net, **keys), CNI_ARGS=cni_args).json
    assert (result["interfaces"][0]["mac"], net.links(net.a)["eth0"]["address"]) == (MAC, MAC)
    net.well("DEL", without_ipam(net, **keys))


def test_mtu_and_queue(net: MacvlanNetwork) -> None:
    keys = {"mtu": 1400, **({"bcqueuelen": 2000} if net.plugins.whose == OURS else {})}  # younger than Debian's
    net.well("ADD", without_ipam(net, **keys))
    shown = net.lab[net.a].run(["ip", "-details", "link", "show", "eth0"], check=True).stdout
    assert "mtu 1400 " in shown
    assert net.plugins.whose != OURS or "bcqueuelen 2000" in shown


def test_the_master_is_that_of_the_default_route(net: MacvlanNetwork) -> None:
    conf = without_ipam(net, master="")
    assert net.run("ADD", conf).code in (7, 999)
    net.do("host", "ip route add default via 198.51.100.7")
    try:
        outcome = net.run("ADD", conf)
        if net.plugins.whose == GO and outcome.status and "no default route interface found" in outcome.stdout:
            unavailable(
                "this build of the Go macvlan overlooks every default route (Debian 13: a newer netlink library)"
            )
        assert outcome.status == 0, outcome.stdout
        result = outcome.json
        assert net.links(net.a)["eth0"]["link_index"] == net.links("host")["lan0"]["ifindex"]
        assert net.check(conf, result).status == 0
        net.well("DEL", conf)
    finally:
        net.do("host", "ip route delete default")


@pytest.mark.ours_alone
def test_the_master_may_be_in_the_container(net: MacvlanNetwork) -> None:
    """The Go plugin of 1.1.1 does not know the key."""
    net.do(net.a, "ip link add inner type veth peer name else")
    net.do(net.a, "ip link set inner up")
    before = net.state()
    conf = without_ipam(net, master="inner", linkInContainer=True)
    result = net.well("ADD", conf).json
    assert net.links(net.a)["eth0"]["link"] == "inner"
    assert net.check(conf, result).status == 0
    net.well("DEL", conf)
    assert not difference(before, net.state())


def test_a_name_that_the_host_has_too_is_no_obstacle(net: MacvlanNetwork) -> None:
    conf = without_ipam(net)
    before = net.state()
    assert net.run("ADD", conf, ifname="lan0").status == 0
    assert set(net.links(net.a)) == {"lo", "lan0"}
    assert net.run("DEL", conf, ifname="lan0").status == 0
    assert not difference(before, net.state())


@pytest.mark.ours_alone
def test_an_address_that_is_taken_is_noticed(net: MacvlanNetwork) -> None:
    """Duplicate address detection, IPv6; it leaves nothing."""
    address = {"address": f"{CLIENT[6]}/64"}
    conf = {**net.conf(), "ipam": {"type": "static", "addresses": [address]}}
    net.warm(net.conf())
    before = net.state()
    outcome = net.run("ADD", conf)
    assert (outcome.code in REFUSALS, "DADFAILED" in outcome.stdout) == (True, True)
    assert not difference(before, net.state())


# What ADD refuses


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"mode": "x"}, 'unknown macvlan mode: "x"'),
        ({"master": "nowhere"}, "Link not found"),
        ({"mtu": -1}, "invalid MTU -1, must be [0, master MTU(1500)]"),
        ({"mtu": 1501}, "invalid MTU 1501, must be [0, master MTU(1500)]"),
        ({"mtu": "x"}, "mtu"),
        ({"mac": "zz"}, "invalid MAC address"),
        ours_alone({"bcqueuelen": -1}, "bcqueuelen"),
        ours_alone({"master": "a/b"}, "Link not found"),
        ours_alone({"master": "lo", "mode": "bridge"}, "cannot make the macvlan interface eth0 on lo in mode bridge"),
        ours_alone({"ipam": {"type": "nosuch"}}, "failed to find plugin"),
        ours_alone({"ipam": {"type": "static"}}, "missing IP config"),
        ours_alone({"ipam": {"type": "host-local"}}, ""),
        ours_alone({"cniVersion": "0.2.0", "ipam": {}}, "no valid IP addresses"),
    ],
)  # fmt: skip
def test_an_add_that_cannot_be_leaves_nothing(net: MacvlanNetwork, keys: Conf, complaint: str) -> None:
    """The Go plugin leaves the interface behind when it is IPAM that fails."""
    net.warm(net.conf())
    before = net.state()
    outcome = net.run("ADD", {**net.conf(), **keys})
    assert outcome.code in REFUSALS
    if not (net.plugins.whose != OURS and complaint == "Link not found"):
        assert complaint in outcome.json["msg"]
    assert not difference(before, net.state())


# DEL with little to go by


@pytest.mark.ours_alone
def test_del_does_not_touch_a_new_namespace_of_the_old_name(net: MacvlanNetwork) -> None:
    """The record's namespace is known by its number; an eth0 in another one is found by name, as Go does, and goes too."""
    conf = net.conf()
    net.warm(conf)
    before = net.state()
    net.well("ADD", conf)
    net.lab.remove(net.a)
    net.lab.add_container(net.a)
    net.well("DEL", conf, "", CNI_NETNS="")
    assert not difference(before, net.state())


@pytest.mark.ours_alone
def test_an_add_killed_before_the_interface_had_its_name_leaves_nothing(net: MacvlanNetwork) -> None:
    conf = net.conf()
    net.warm(conf)
    before = net.state()
    net.well("ADD", conf)
    name = f"veth{net.attachment(net.a)[:8]}"
    for command in ("set eth0 down", f"set eth0 name {name}", f"set {name} alias ''"):
        net.do(net.a, f"ip link {command}")
    net.well("DEL", conf)
    assert not difference(before, net.state())


# CHECK

NOTICED_BY_ALL = {
    "address gone": "ip address delete {a4}/24 dev eth0",
    "default route gone": "ip route delete default",
    "interface down": "ip link set eth0 down",
    "interface gone": "ip link delete eth0",
    "another MAC": "ip link set eth0 address 02:00:00:00:00:99",
    "another mode": "ip link set eth0 type macvlan mode private",
}
NOTICED_BY_US = {"another MTU": "ip link set eth0 mtu 1300"}


@pytest.mark.parametrize("name", [*NOTICED_BY_ALL, *map(ours_alone, NOTICED_BY_US)])
def test_check_notices_damage_done_by_hand_and_mends_nothing(net: MacvlanNetwork, name: str) -> None:
    net.damaged(net.conf(mtu=1400), "a", {**NOTICED_BY_ALL, **NOTICED_BY_US}[name])


@pytest.mark.ours_alone
def test_check_after_the_default_route_is_gone_and_tuning_has_set_the_mtu(net: MacvlanNetwork) -> None:
    """The master is that of ADD; and libcni runs CHECK of each plugin of a list on what all of them have made."""
    conf = net.conf(mtu=1400)
    del conf["master"]
    net.do("host", "ip route add default dev lan0")
    try:
        result = net.well("ADD", conf).json
    finally:
        net.do("host", "ip route delete default dev lan0")
    tuning = {**conf, "type": "tuning", "mtu": 1300, "prevResult": result}
    assert net.plugins.run(net.lab, "ADD", "tuning", tuning, net.a).status == 0
    checked = net.check(conf, result)
    assert checked.status == 0, checked.stdout
    net.do(net.a, "ip link set eth0 mtu 1350")
    assert net.plugins.run(net.lab, "CHECK", "tuning", tuning, net.a).code == 999


# GC and STATUS


@pytest.mark.ours_alone
def test_status_asks_ipam_and_looks_for_the_master(net: MacvlanNetwork) -> None:
    conf = net.conf("1.1.0")
    only = net.address(4, 2)
    conf["ipam"]["ranges"][0][0].update(rangeStart=only, rangeEnd=only)
    assert net.run("STATUS", conf).status == 0
    net.well("ADD", conf)
    assert net.run("STATUS", conf).code == 50
    net.well("DEL", conf)
    for keys in ({"master": "nowhere"}, {"mode": "x"}, {"master": ""}):
        outcome = net.run("STATUS", {**conf, **keys})
        assert outcome.code == 50, json.dumps(keys)
    assert net.run("STATUS", {**conf, "master": "nowhere", "linkInContainer": True}).status == 0
