"""What the executable bridge shares with others on one host and one kernel: a bridge with its MAC and addresses, derived MACs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from lab import Lab

from tests.conftest import need_root
from tests.plugins.bridge_network import PREFIXLEN, BridgeNetwork, Conf
from tests.portfwd.talk import until

if TYPE_CHECKING:
    from runtime import Plugins

pytestmark = pytest.mark.ours_alone
HIGH = "06:00:00:00:00:07"  # of a guest's port: above every MAC that a veth of ours has
BOTH = pytest.mark.parametrize("family", [4, 6])


def shell(net: BridgeNetwork, script: str) -> str:
    """Run it on the host; it must succeed."""
    words = {"bridge": net.bridge, "tap": f"tap{net.number}", "guest": f"guest{net.number}"}
    return str(net.lab["host"].run(["sh", "-ec", script.format(**words)], check=True).stdout)


def mac(net: BridgeNetwork, link: str = "") -> str:
    return str(net.links("host")[link or net.bridge]["address"])


# The MAC of a bridge that the user made

MADE_WITH = {
    "a guest": "ip link add {tap} type veth peer name {guest}; ip link set {tap} address "
    + HIGH
    + " master {bridge} up",
    "nothing": "true",
    "the MAC of an interface": "ip link set {bridge} address 0e:00:00:00:00:09",
}


@pytest.mark.parametrize("made_with", MADE_WITH)
@pytest.mark.parametrize(
    "keys", [{}, {"isGateway": False}, {"held": True}], ids=["gateway", "none", "gateway is there"]
)
def test_a_bridge_of_the_users_keeps_its_mac_through_all_of_an_attachment(
    net: BridgeNetwork, made_with: str, keys: Conf
) -> None:
    conf = net.conf(families=(4, 6), **keys)
    shell(net, "ip link add {bridge} type bridge; ip link set {bridge} up; " + MADE_WITH[made_with])
    if conf.pop("held", False):
        net.do("host", f"ip address add {net.address(4, 1)}/24 dev {net.bridge}")
    before = mac(net)
    results = {container_id: net.well("ADD", conf, container_id).json for container_id in (net.a, net.b)}
    assert [result["interfaces"][0]["mac"] for result in results.values()] == [before, before]
    for container_id, result in results.items():
        assert net.run("CHECK", {**conf, "prevResult": result}, container_id).status == 0
        net.well("DEL", conf, container_id)
        assert mac(net) == before
    shell(net, "ip link delete {tap} 2>/dev/null || true")
    assert mac(net) == before


def test_a_bridge_that_has_lost_its_mac_with_its_last_port_gets_one_that_stays(net: BridgeNetwork) -> None:
    shell(net, "ip link add {bridge} type bridge; ip link set {bridge} up; " + MADE_WITH["a guest"])
    shell(net, "ip link delete {tap}")
    assert mac(net) == "00:00:00:00:00:00"
    result = net.well("ADD", net.conf()).json
    given = mac(net)
    assert (given[:3], result["interfaces"][0]["mac"]) == ("02:", given)
    net.well("DEL", net.conf())
    assert mac(net) == given


@pytest.mark.parametrize("made_by", ["us", "the user"])
def test_an_add_does_not_make_the_host_forget_its_neighbours_on_the_bridge(net: BridgeNetwork, made_by: str) -> None:
    """To set a MAC again, even to what it is, empties the ARP table of the link."""
    if made_by == "the user":
        shell(net, "ip link add {bridge} address 0e:00:00:00:00:01 type bridge; ip link set {bridge} up")
    net.well("ADD", net.conf())
    net.do("host", f"ip neigh add {net.address(4, 77)} lladdr 0e:00:00:00:00:77 dev {net.bridge} nud permanent")
    net.well("ADD", net.conf(), net.b)
    assert net.address(4, 77) in shell(net, "ip neigh show dev {bridge}")


@pytest.mark.parametrize("sysfs", ["none", "of another namespace"])
def test_a_mac_is_kept_where_sys_does_not_show_the_bridge(net: BridgeNetwork, sysfs: str) -> None:
    """An ADD in a mount namespace whose /sys shows nothing, or another bridge of that name, with a MAC of its own."""
    shell(net, "ip link add {bridge} type bridge; ip link set {bridge} up; " + MADE_WITH["a guest"])
    before = mac(net)
    before_it, after_it = "mount -t tmpfs none /sys", ""
    if sysfs != "none":  # mounted in a namespace of its own, which has to live: its links go from there with it
        stranger = f"ip link add {net.bridge} address 0e:00:00:00:00:01 type bridge; mount -t sysfs none /sys"
        seen = f"grep -qs 0e:00:00:00:00:01 /sys/class/net/{net.bridge}/address"
        before_it = f"unshare -n sh -ec '{stranger}; exec sleep 60' >/dev/null 2>&1 & until {seen}; do sleep 0.02; done"
        after_it = "; kill $!"
    variables = f"CNI_COMMAND=ADD CNI_CONTAINERID={net.a} CNI_NETNS=/run/netns/{net.a} CNI_IFNAME=eth0"
    directory = net.plugins.directory
    script = f"{before_it}; env {variables} CNI_PATH={directory} {directory}/bridge{after_it}"
    command = ["unshare", "-m", "--propagation", "private", "sh", "-ec", script]
    done = net.lab["host"].run(command, input=json.dumps(net.conf()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["interfaces"][0]["mac"] == mac(net) == before
    net.well("DEL", net.conf())
    assert mac(net) == before


# Gateways


def gateway(net: BridgeNetwork, family: int, host: int = 1) -> str:
    return f"{net.address(family, host)}/{PREFIXLEN[family]}"


OTHERS = {4: ["203.0.113.5/24", "203.0.113.6/32"], 6: ["2001:db8:9::5/64", "2001:db8:9::6/128"]}


@BOTH
@pytest.mark.parametrize("force", [False, True])
def test_a_gateway_that_is_there_is_taken_as_it_is_wherever_it_stands(
    net: BridgeNetwork, family: int, force: bool
) -> None:
    shell(net, "ip link add {bridge} type bridge; ip link set {bridge} up")
    held = [*OTHERS[family], gateway(net, family, 9), gateway(net, family)]  # one of the same subnet, too
    for address in held:
        net.do("host", f"ip address add {address} dev {net.bridge}")
    conf = net.conf(families=(family,), forceAddress=force)
    result = net.well("ADD", conf).json
    assert sorted(net.held("host", net.bridge)) == sorted(held)
    assert net.check(conf, result).status == 0
    net.well("DEL", conf)
    assert sorted(net.held("host", net.bridge)) == sorted(held)


@BOTH
def test_force_address_takes_what_is_in_the_same_subnet_and_nothing_else(net: BridgeNetwork, family: int) -> None:
    service = f"{net.address(family, 88)}/{32 if family == 4 else 128}"  # an address of the host without a subnet
    shell(net, "ip link add {bridge} type bridge; ip link set {bridge} up")
    for address in [*OTHERS[family], service, gateway(net, family, 9), gateway(net, family, 8)]:
        net.do("host", f"ip address add {address} dev {net.bridge}")
    conf = net.conf(families=(family,), forceAddress=True)
    result = net.well("ADD", conf).json
    expected = sorted([*OTHERS[family], service, gateway(net, family)])
    assert sorted(net.held("host", net.bridge)) == expected
    assert net.check(conf, result).status == 0


@BOTH
@pytest.mark.parametrize("held", ["{address}9/{length}", "{address}1/{longer}"], ids=["another", "another length"])
def test_an_address_in_the_same_subnet_is_named_by_the_error_and_stays(
    net: BridgeNetwork, family: int, held: str
) -> None:
    prefix = net.address(family, 1)[:-1]
    taken = held.format(address=prefix, length=PREFIXLEN[family], longer=PREFIXLEN[family] + 4)
    shell(net, "ip link add {bridge} type bridge; ip link set {bridge} up")
    for address in [*(OTHERS[6] if family == 6 else []), taken]:
        net.do("host", f"ip address add {address} dev {net.bridge}")
    before = net.held("host", net.bridge)
    outcome = net.run("ADD", net.conf(families=(family,)))
    assert outcome.code in (7, 999)
    assert outcome.json["msg"] == (
        f'failed to set bridge addr: "{net.bridge}" already has an IP address different from {gateway(net, family)}'
    )
    assert taken in outcome.json["details"]
    assert "forceAddress" in outcome.json["details"]
    assert (net.held("host", net.bridge), net.reservations()) == (before, {})


def test_an_ipv4_address_of_another_subnet_is_refused_unless_forced_and_stays_then(net: BridgeNetwork) -> None:
    """As with the Go plugin, which takes it away when forced: the network's subnet may have been changed by mistake."""
    shell(net, "ip link add {bridge} type bridge; ip address add 203.0.113.5/24 dev {bridge}")
    outcome = net.run("ADD", net.conf())
    assert "203.0.113.5/24" in outcome.json["details"]
    net.well("ADD", net.conf(forceAddress=True))
    assert net.held("host", net.bridge) == ["203.0.113.5/24", gateway(net, 4)]
    net.well("ADD", net.conf(), net.b)


@BOTH
@pytest.mark.parametrize("force", [False, True])
def test_every_range_of_a_set_gets_its_gateway_and_keeps_it(net: BridgeNetwork, family: int, force: bool) -> None:
    """The first range has room for one container; a third subnet has two ranges with a gateway each."""
    prefix = net.address(family, 0)[:-1]
    room = {4: [f"{prefix}0/30", f"{prefix}64/27"], 6: [f"{prefix}/126", f"{prefix}100/120"]}[family]
    part = {"subnet": room[1], "rangeStart": f"{prefix}{70 if family == 4 else 170}"}
    ranges = [{"subnet": room[0]}, {"subnet": room[1], "rangeEnd": f"{prefix}{66 if family == 4 else 102}"}]
    ranges.append({**part, "gateway": f"{prefix}{69 if family == 4 else 169}"})
    ranges[0]["rangeEnd"] = f"{prefix}2"
    conf = net.conf(families=(family,), ipam={"ranges": [ranges]}, forceAddress=force)
    results = [net.well("ADD", conf, net.a).json, net.well("ADD", conf, net.b).json]
    third = net.run("ADD", conf, net.a, None, "eth1").json
    gateways = [result["ips"][0]["gateway"] for result in [*results, third]]
    assert len(set(gateways)) == 3
    held = {address.partition("/")[0] for address in net.held("host", net.bridge)}
    assert held == set(gateways)
    for container_id, result in zip((net.a, net.b), results, strict=True):
        assert net.run("CHECK", {**conf, "prevResult": result}, container_id).status == 0
    net.lab.serve(net.b, 8000 + net.number, address=results[1]["ips"][0]["address"].partition("/")[0])
    answer = net.lab.fetch(net.a, results[1]["ips"][0]["address"].partition("/")[0], 8000 + net.number)
    assert answer.name == net.b


@BOTH
def test_two_sets_of_one_family_get_both_gateways(net: BridgeNetwork, family: int) -> None:
    other = {4: "10.98.0.0/24", 6: "fd00:98::/64"}[family]
    conf = net.conf(families=(family,), ipam={"ranges": [[{"subnet": net.subnets[family]}], [{"subnet": other}]]})
    for keys in ({}, {"forceAddress": True}):
        result = net.well("ADD", {**conf, **keys}).json
        assert sorted(net.held("host", net.bridge)) == sorted(
            f"{ip['gateway']}/{PREFIXLEN[family]}" for ip in result["ips"]
        )
        assert net.check(conf, result).status == 0
        net.well("DEL", conf)


@pytest.mark.parametrize("force", [False, True])
def test_a_link_local_gateway_works_each_time(net: BridgeNetwork, force: bool) -> None:
    ranges = [[{"subnet": net.subnets[6], "gateway": "fe80::1"}]]
    conf = net.conf(families=(6,), ipam={"ranges": ranges}, forceAddress=force)
    results = {container_id: net.well("ADD", conf, container_id).json for container_id in (net.a, net.b)}

    def links() -> list[str]:
        found = json.loads(shell(net, "ip -6 -json address show dev {bridge} scope link"))[0]["addr_info"]
        return [str(entry["local"]) for entry in found]

    assert until(lambda: len(links()) == 2)  # the kernel's own stays beside it, or comes when it sees the carrier
    assert "fe80::1" in links()
    assert net.default_gateway(6) == "fe80::1"
    for container_id, result in results.items():
        assert net.run("CHECK", {**conf, "prevResult": result}, container_id).status == 0
    net.lab.serve("host", 8000 + net.number, address="2001:db8:1::1")
    assert net.lab.fetch(net.a, "2001:db8:1::1", 8000 + net.number).name == "host"
    net.well("DEL", conf)
    net.well("ADD", conf)
    longer = net.conf(families=(6,), ipam={"ranges": [[{**ranges[0][0], "subnet": f"{net.address(6, 0)[:-1]}/80"}]]})
    net.well("DEL", conf, net.b)
    result = net.well("ADD", longer, net.b).json  # the same gateway with another prefix length
    assert net.run("CHECK", {**longer, "prevResult": result}, net.b).status == 0
    net.do("host", f"ip address delete fe80::1/64 dev {net.bridge}")
    assert net.run("CHECK", {**longer, "prevResult": result}, net.b).status == 1


@pytest.mark.parametrize("where", ["lan0", "unreachable"])
def test_a_subnet_that_the_host_has_elsewhere_is_left_there(net: BridgeNetwork, where: str) -> None:
    """With a link-local gateway, which brings no route by itself."""
    made = f"{net.subnets[6]} dev lan0" if where == "lan0" else f"unreachable {net.subnets[6]}"
    net.do("host", f"ip -6 route add {made}")
    conf = net.conf(families=(6,), ipam={"ranges": [[{"subnet": net.subnets[6], "gateway": "fe80::1"}]]})
    result = net.well("ADD", conf).json
    assert net.check(conf, result).status == 0
    shown = shell(net, f"ip -6 route show {net.subnets[6]}")
    assert (where in shown, net.bridge in shown) == (True, False)
    shell(net, f"ip -6 route flush {net.subnets[6]}")


# Subnets of two addresses


def pair(net: BridgeNetwork, family: int) -> list[str]:
    """Two addresses that no other test of this lab has, with their prefix length."""
    numbers = [2 * net.number, 2 * net.number + 1]
    return [f"10.97.{n // 256}.{n % 256}/31" if family == 4 else f"fd00:97::{n:x}/127" for n in numbers]


@BOTH
@pytest.mark.parametrize("explicit", [False, True])
def test_a_subnet_of_two_addresses_is_a_gateway_and_a_container(
    net: BridgeNetwork, family: int, explicit: bool
) -> None:
    first, second = pair(net, family)
    its_gateway, its_address = (first, second) if explicit else (second, first)
    given = {"gateway": its_gateway.partition("/")[0]} if explicit else {}
    conf = net.conf(families=(family,), ipam={"ranges": [[{"subnet": first, **given}]]})
    result = net.well("ADD", conf).json
    assert result["ips"] == [{"address": its_address, "gateway": its_gateway.partition("/")[0], "interface": 2}]
    assert (net.held(net.a, "eth0"), net.held("host", net.bridge)) == ([its_address], [its_gateway])
    assert net.check(conf, result).status == 0
    assert "no IP addresses available" in net.run("ADD", conf, net.b).json["msg"]
    net.lab.serve(net.a, 80)
    assert net.lab.fetch("host", its_address.partition("/")[0], 80).peer == its_gateway.partition("/")[0]
    net.well("DEL", conf)


@BOTH
def test_where_ipam_names_no_gateway_it_is_the_other_one_of_two(net: BridgeNetwork, family: int) -> None:
    both = pair(net, family)
    for mine, other in (both, both[::-1]):
        ipam = {"type": "static", "addresses": [{"address": mine}]}
        conf = {**net.conf(), "ipam": ipam, "forceAddress": True}
        result = net.well("ADD", conf).json
        assert result["ips"][0]["gateway"] == other.partition("/")[0]
        assert net.held("host", net.bridge) == [other]
        net.well("DEL", conf)


# Two hosts on one kernel


@pytest.fixture
def second_lab() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


def macs(result: dict[str, Any]) -> list[str]:
    return [interface["mac"] for interface in result["interfaces"]]


@pytest.mark.parametrize("plugin", ["bridge", "ptp", "macvlan"])
def test_hosts_on_one_kernel_share_no_mac(lab: Lab, second_lab: Lab, plugins: Plugins, plugin: str) -> None:
    """The same network, container and interface on both. On one host they are the same each time."""
    ipam = {"type": "static", "addresses": [{"address": "10.96.0.2/24", "gateway": "10.96.0.1"}]}
    conf = {"cniVersion": "1.0.0", "name": "flat", "type": plugin, "ipam": ipam}
    conf |= {"master": "lan0"} if plugin == "macvlan" else {}
    found = []
    for host in (lab, lab, second_lab):
        outcome = plugins.run(host, "ADD", plugin, conf)
        assert outcome.status == 0, outcome
        found.append(macs(outcome.json))
        assert plugins.run(host, "DEL", plugin, conf).status == 0
    assert found[0] == found[1]
    assert not set(found[0]) & set(found[2])


def test_what_was_connected_with_another_mac_than_ours_now_is_checked_and_deleted(net: BridgeNetwork) -> None:
    """As after an update of ours that derives other ones: the record holds the MAC that was given."""
    conf = net.conf(families=(4, 6), macspoofchk=True, ipMasq=True)
    result = net.well("ADD", {**conf, "runtimeConfig": {"mac": "0e:00:00:00:00:55"}}).json
    assert result["interfaces"][2]["mac"] == "0e:00:00:00:00:55"
    assert net.check(conf, result).status == 0
    net.well("DEL", conf)
    listed = net.lab["host"].run(["nft", "list", "set", "bridge", "cni_py", "spoof_allowed"], check=True).stdout
    assert "0e:00:00:00:00:55" not in listed
