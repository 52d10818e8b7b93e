"""The executable bridge: what each key of its configuration does, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from snapshot import difference

from tests.plugins.bridge_network import FAMILIES, PREFIXLEN, BridgeNetwork, Conf, ours_alone

DEFAULT_ROUTE = {4: "0.0.0.0/0", 6: "::/0"}


def host_end(result: Mapping[str, Any]) -> str:
    return str(result["interfaces"][1]["name"])


def static_ipam(address: str = "10.0.0.5/24", gateway: str = "", **route: object) -> dict[str, object]:
    """IPAM with an address and a route of its own."""
    return {
        "ipam": {
            "type": "static",
            "addresses": [{"address": address, "gateway": gateway}],
            "routes": [route] if route else [],
        }
    }


# ADD that must not be, and what it leaves

REFUSALS: dict[str, tuple[dict[str, object], dict[str, str | None], str]] = {
    "hairpin and promiscuous": ({"hairpinMode": True, "promiscMode": True}, {}, "hairpin"),
    "a VLAN above 4094": ({"vlan": 4095}, {}, "invalid VLAN ID 4095"),
    "a negative VLAN": ({"vlan": -1}, {}, "invalid VLAN ID -1"),
    "a bridge that is another link": ({"bridge": "lan0"}, {}, "not a bridge"),
    "a bad MAC in runtimeConfig": ({"runtimeConfig": {"mac": "no"}}, {}, "no"),
    "a bad MAC in CNI_ARGS": ({}, {"CNI_ARGS": "MAC=02:00"}, ""),
    "an unknown key in CNI_ARGS": ({}, {"CNI_ARGS": "COLOUR=blue"}, "COLOUR"),
    "an IPAM plugin that is not there": ({"ipam": {"type": "nowhere"}}, {}, 'failed to find plugin "nowhere" in path'),
    "an IPAM plugin with a slash": ({"ipam": {"type": "../host-local"}}, {}, "invalid plugin name: ../host-local"),
    "a bool that is text": ({"isGateway": "yes"}, {}, "isGateway"),
    "an mtu that is text": ({"mtu": "1500"}, {}, "mtu"),
    "no ranges": ({"ipam": {"type": "host-local"}}, {}, "no IP ranges specified"),
}
REFUSED_BY_US: dict[str, tuple[dict[str, object], dict[str, str | None], str]] = {
    "IPAM without an interface": ({"disableContainerInterface": True}, {}, "cannot use IPAM when"),
    "an unknown backend": ({"ipMasq": True, "ipMasqBackend": "pf"}, {}, 'unknown ipmasq backend "pf"'),
    "a trunk without an end": ({"vlanTrunk": [{"minID": 3}]}, {}, "maxID is missing"),
    "a trunk back to front": ({"vlanTrunk": [{"minID": 9, "maxID": 3}]}, {}, "minID is greater than maxID"),
    "a name too long for a link": ({"bridge": "bridge-with-a-long-name"}, {}, ""),
    "a name with a slash": ({"bridge": "a/b"}, {}, ""),
    "a name of sysctls": ({"bridge": "all"}, {}, "cannot be the name of an interface"),
    "no folder for the addresses": (
        {"ipam": {"type": "host-local", "subnet": "10.9.0.0/24", "dataDir": "/dev/null"}},
        {},
        "mkdir",
    ),
    "a name of the kernel's": ({"bridge": ".."}, {}, ""),
    "an IPv4 gateway for IPv6": (
        static_ipam("fd00::5/64", "10.0.0.1"),
        {},
        "the gateway 10.0.0.1 of fd00::5/64 is of the other",
    ),
    "an IPv6 gateway for IPv4": (
        static_ipam("10.0.0.5/24", "fe80::1"),
        {},
        "the gateway fe80::1 of 10.0.0.5/24 is of the other",
    ),
    "a route through the other family": (
        static_ipam(dst="::/0", gw="10.0.0.1"),
        {},
        "::/0 has a gateway of the other family",
    ),
    "a negative priority": (static_ipam(dst="10.9.0.0/16", priority=-1), {}, "has the priority -1"),
    "a table beyond 32 bits": (static_ipam(dst="10.9.0.0/16", table=1 << 32), {}, "has the table 4294967296"),
    "a scope beyond a byte": (static_ipam(dst="10.9.0.0/16", scope=256), {}, "has the scope 256"),
    "no name at all": ({"bridge": ""}, {}, ""),
    "an mtu below the least": ({"mtu": 60}, {}, ""),
    "an mtu beyond the greatest": ({"mtu": 1 << 20}, {}, ""),
}
ALL_REFUSALS = {**REFUSALS, **REFUSED_BY_US}


@pytest.mark.parametrize("name", [*REFUSALS, *map(ours_alone, REFUSED_BY_US)])
def test_a_configuration_that_cannot_be_honoured_fails_and_leaves_no_address(net: BridgeNetwork, name: str) -> None:
    change, env, complaint = ALL_REFUSALS[name]
    conf = net.conf(ipMasq=True)
    net.warm(conf)
    before = net.state()
    outcome = net.run("ADD", {**conf, **change}, "", None, "eth0", **env)
    assert outcome.status == 1, outcome
    assert complaint in f"{outcome.json['msg']} {outcome.json.get('details')}"
    assert "Traceback" not in outcome.stderr
    if net.plugins.whose == "ours":
        assert not difference(before, net.state())
    else:  # theirs leaves a bridge or an interface behind in some of these
        assert net.reservations() == {}


@pytest.mark.parametrize(
    "netns", ["/run/netns/none", "/etc/passwd", "/run/netns"], ids=["nothing", "a file", "a folder"]
)
def test_an_add_to_what_is_no_namespace_fails(net: BridgeNetwork, netns: str) -> None:
    conf = net.conf()
    net.warm(conf)
    before = net.state()
    outcome = net.run("ADD", conf, netns=netns)
    assert outcome.status == 1
    assert "failed to open netns" in outcome.json["msg"]
    assert not difference(before, net.state())


def test_a_failure_after_ipam_gives_the_addresses_back(net: BridgeNetwork) -> None:
    """The gateway's address cannot be put on the bridge: it has another one."""
    net.warm(net.conf())
    before = net.state()
    conf = net.conf(ipam={"ranges": [[{"subnet": "10.99.0.0/24"}]]}, ipMasq=True)
    outcome = net.run("ADD", conf)
    assert outcome.status == 1
    assert "already has an IP address different from 10.99.0.1/24" in outcome.json["msg"]
    assert net.reservations() == {}
    if net.plugins.whose == "ours":  # theirs leaves the interface in the container
        assert not difference(before, net.state())


# What the keys of the configuration do


def test_force_address_replaces_a_gateways_address_of_the_same_subnet(net: BridgeNetwork) -> None:
    net.warm(net.conf(families=(4, 6)))
    subnets = {family: net.subnets[family].rpartition("/")[0] for family in (4, 6)}
    ranges = [[{"subnet": f"{subnets[4]}/25"}], [{"subnet": f"{subnets[6]}/80"}]]
    net.well("ADD", net.conf(families=(4, 6), ipam={"ranges": ranges}, forceAddress=True))
    assert net.held("host", net.bridge) == [f"{net.address(4, 1)}/25", f"{net.address(6, 1)}/80"]


def test_an_ipv6_gateway_beside_another_subnets_is_added(net: BridgeNetwork) -> None:
    net.warm(net.conf(families=(6,)))
    net.well("ADD", net.conf(families=(6,), ipam={"ranges": [[{"subnet": "fd00:99::/64"}]]}))
    assert sorted(net.held("host", net.bridge)) == sorted([f"{net.address(6, 1)}/64", "fd00:99::1/64"])


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize(
    ("keys", "route", "on_bridge"),
    [
        ({"isGateway": False}, False, False),
        ({"isGateway": True}, False, True),
        ({"isDefaultGateway": True}, True, True),
    ],
    ids=["no gateway", "gateway", "default gateway"],
)
def test_the_bridge_is_a_gateway_or_the_default_one_or_none(
    net: BridgeNetwork, families: tuple[int, ...], keys: Conf, route: bool, on_bridge: bool
) -> None:
    result = net.well("ADD", {**net.conf(families=families, ipam={"routes": []}), **keys}).json
    gateways = [net.address(family, 1) for family in families]
    expected = [f"{net.address(family, 1)}/{PREFIXLEN[family]}" for family in families]
    assert net.held("host", net.bridge) == (expected if on_bridge else [])
    assert [net.default_gateway(family) for family in families] == (gateways if route else [""] * len(families))
    routes = [{"dst": DEFAULT_ROUTE[family], "gw": net.address(family, 1)} for family in families]
    assert result.get("routes", []) == (routes if route else [])


@pytest.mark.ours_alone
@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_forwarding_is_on_for_the_families_that_a_gateway_serves(net: BridgeNetwork, families: tuple[int, ...]) -> None:
    for key in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
        net.do("host", f"sysctl -q -w net.{key}=0")
    net.well("ADD", net.conf(families=families))
    shown = net.lab["host"].run(["sysctl", "-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]).stdout
    assert shown.split() == [str(int(4 in families)), str(int(6 in families))]


def test_routes_go_through_their_own_gateway_or_the_networks(net: BridgeNetwork) -> None:
    routes = [{"dst": "192.0.2.0/24", "gw": net.address(4, 9)}, {"dst": "198.51.100.0/24"}]
    result = net.well("ADD", net.conf(ipam={"routes": routes})).json
    assert result["routes"] == routes
    shown = net.lab[net.a].run(["ip", "-json", "route"], check=True).stdout
    found = {route["dst"]: route.get("gateway") for route in json.loads(shown)}
    assert found == {net.subnets[4]: None, "192.0.2.0/24": net.address(4, 9), "198.51.100.0/24": net.address(4, 1)}


def test_links_are_made_as_the_configuration_says(net: BridgeNetwork) -> None:
    result = net.well("ADD", net.conf(mtu=1400, hairpinMode=True)).json
    on_host, veth = net.links("host"), host_end(result)
    assert [on_host[name]["mtu"] for name in (net.bridge, veth)] == [1400, 1400]
    assert net.links(net.a)["eth0"]["mtu"] == 1400
    assert on_host[veth]["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert "UP" in on_host[veth]["flags"]


@pytest.mark.ours_alone
def test_an_interface_says_whose_it_is_and_ports_may_be_isolated(net: BridgeNetwork) -> None:
    veth = host_end(net.well("ADD", net.conf(portIsolation=True)).json)
    link = net.links("host")[veth]
    assert link["linkinfo"]["info_slave_data"]["isolated"] is True
    assert link["ifalias"].split(" ")[1] == f"{net.name}/{net.a}/eth0"
    assert veth.removeprefix("veth") == link["ifalias"][:8]


def test_promiscuous_mode_is_the_bridges(net: BridgeNetwork) -> None:
    conf = net.conf(promiscMode=True)
    result = net.well("ADD", conf).json
    assert "PROMISC" in net.links("host")[net.bridge]["flags"]
    assert net.check(conf, result).status == 0


MACS = [f"02:11:22:33:44:0{number}" for number in range(3)]


@pytest.mark.parametrize(
    ("env", "cni", "runtime", "expected"),
    [
        (MACS[0], "", "", MACS[0]),
        (MACS[0], MACS[1], "", MACS[1]),
        (MACS[0], MACS[1], MACS[2], MACS[2]),
        ("", MACS[1].replace(":", "-"), "", MACS[1]),
        ("", "", MACS[2].upper(), MACS[2]),
    ],
)
def test_a_mac_can_be_asked_for_in_three_ways_the_last_one_winning(
    net: BridgeNetwork, env: str, cni: str, runtime: str, expected: str
) -> None:
    conf = net.conf(args={"cni": {"mac": cni}}, runtimeConfig={"mac": runtime})
    result = net.well("ADD", conf, CNI_ARGS=f"IgnoreUnknown=1;MAC={env}").json
    assert result["interfaces"][2]["mac"] == net.links(net.a)["eth0"]["address"] == expected


def test_without_ipam_the_container_has_a_link_and_no_address(net: BridgeNetwork) -> None:
    conf = net.conf()
    del conf["ipam"]
    net.warm(conf)
    before = net.state()
    result = net.well("ADD", conf).json
    assert [link["name"] for link in result["interfaces"]][::2] == [net.bridge, "eth0"]
    assert "ips" not in result
    assert "UP" in net.links(net.a)["eth0"]["flags"]
    assert net.held(net.a, "eth0") == []
    net.well("DEL", conf)
    assert not difference(before, net.state())


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_a_result_without_addresses_cannot_be_told_in_the_oldest_versions(net: BridgeNetwork, version: str) -> None:
    conf = net.conf(version)
    del conf["ipam"]
    outcome = net.run("ADD", conf)
    assert "cannot convert: no valid IP addresses" in outcome.json["msg"]
    if net.plugins.whose == "ours":
        assert set(net.links(net.a)) == {"lo"}


@pytest.mark.ours_alone
def test_an_interface_can_be_left_down(net: BridgeNetwork) -> None:
    conf = net.conf(disableContainerInterface=True)
    del conf["ipam"]
    net.well("ADD", conf)
    assert "UP" not in net.links(net.a)["eth0"]["flags"]


@pytest.mark.ours_alone
@pytest.mark.parametrize("dad", [False, True])
def test_addresses_are_usable_when_add_returns(net: BridgeNetwork, dad: bool) -> None:
    conf = net.conf(families=(6,), enabledad=dad)
    net.well("ADD", conf)
    shown = net.lab[net.a].run(["ip", "-6", "address", "show", "dev", "eth0", "scope", "global"]).stdout
    assert "tentative" not in shown
    assert ("nodad" in shown) != dad


@pytest.mark.ours_alone
@pytest.mark.parametrize("keys", [{"vlan": 7}, {"vlanTrunk": [{"minID": 3, "maxID": 5}, {"id": 9}]}])
def test_a_kernel_without_vlan_filtering_says_so(net: BridgeNetwork, keys: Conf) -> None:
    before = net.state()
    outcome = net.run("ADD", {**net.conf(), **keys})
    if outcome.status == 0:
        pytest.skip("this kernel has VLAN filtering")
    assert "VLAN filtering" in f"{outcome.json['msg']} {outcome.json['details']}"
    after = net.state()
    assert set(net.links("host")) == {"lo", "lan0"}
    assert before[net.a] == after[net.a]
    assert net.reservations() == {}


@pytest.mark.parametrize("of_ipam", [ours_alone(True), False], ids=["of IPAM", "of the configuration"])
def test_dns_is_the_configurations_or_else_ipams(net: BridgeNetwork, of_ipam: bool) -> None:
    """Debian's version of the Go plugin knows the configuration's alone."""
    text = "nameserver 192.0.2.53\\nsearch example\\n"
    net.lab["host"].run(["sh", "-c", f"printf '{text}' >/etc/cni/resolv"], check=True)
    own = {"nameservers": ["192.0.2.99"], "domain": "example.org", "options": ["ndots:2"]}
    result = net.well("ADD", net.conf(ipam={"resolvConf": "/etc/cni/resolv"}, dns={} if of_ipam else own)).json
    assert result["dns"] == ({"nameservers": ["192.0.2.53"], "search": ["example"]} if of_ipam else own)


def test_keys_are_read_in_any_case_and_unknown_ones_ignored(net: BridgeNetwork) -> None:
    conf = {
        ("ISGATEWAY" if key == "isGateway" else "Bridge" if key == "bridge" else key): value
        for key, value in net.conf(nerdctlID="x", unknown={"a": [1]}).items()
    }
    net.well("ADD", conf)
    assert net.held("host", net.bridge) == [f"{net.address(4, 1)}/24"]


@pytest.mark.parametrize("family", [4, 6])
def test_masquerading_hides_the_container_from_the_lan_and_not_from_its_neighbours(
    net: BridgeNetwork, family: int
) -> None:
    conf = net.conf(families=(4, 6), ipMasq=True)
    net.warm(conf)
    containers, before = (net.a, net.b), net.state()
    for container_id in containers:
        net.well("ADD", conf, container_id)
    host, client = {4: ("198.51.100.1", "198.51.100.7"), 6: ("2001:db8:1::1", "2001:db8:1::7")}[family]
    neighbour, container = net.address(family, 4), net.address(family, 3)
    outside, inside = net.lab.serve("client", 80, address=client), net.lab.serve(net.b, 80, address=neighbour)
    try:
        assert net.lab.fetch(net.a, client, 80).peer == host
        assert net.lab.fetch(net.a, neighbour, 80).peer == container
    finally:
        outside.stop()
        inside.stop()
    for container_id in containers:
        net.well("DEL", conf, container_id)
    assert not difference(before, net.state())


@pytest.mark.ours_alone
def test_frames_with_another_mac_are_dropped_when_asked(net: BridgeNetwork) -> None:
    conf = net.conf(macspoofchk=True)
    result = net.well("ADD", conf).json
    assert net.check(conf, result).status == 0
    server = net.lab.serve("host", 80, address=net.address(4, 1))
    try:
        assert net.lab.fetch(net.a, net.address(4, 1), 80).name == "host"
        net.do(net.a, "ip link set eth0 address 02:00:00:00:00:77")
        net.do("host", f"ip neighbour flush dev {net.bridge}")
        with pytest.raises((TimeoutError, OSError)):
            net.lab.fetch(net.a, net.address(4, 1), 80, timeout_s=0.3)
    finally:
        server.stop()


def test_an_address_that_had_another_mac_is_forgotten_by_the_host(net: BridgeNetwork) -> None:
    conf = net.conf(families=(4, 6))
    net.warm(conf)
    for address in (net.address(4, 3), net.address(6, 3)):
        net.do("host", f"ip neighbour replace {address} lladdr 02:00:00:00:00:66 nud reachable dev {net.bridge}")
    net.well("ADD", conf)
    shown = net.lab["host"].run(["ip", "neighbour", "show", "dev", net.bridge]).stdout
    if net.plugins.whose == "ours":
        assert "02:00:00:00:00:66" not in shown
