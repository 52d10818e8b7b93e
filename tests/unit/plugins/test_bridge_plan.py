"""The bridge plugin's decisions by value: configuration in, operations out. Also what this kernel cannot do: VLANs."""

import json
from collections.abc import Mapping
from typing import TypeVar

import pytest

from cni_py.addr import parse_address, parse_ip
from cni_py.attachment.call import Call
from cni_py.attachment.context import Kernel
from cni_py.attachment.engine import Op
from cni_py.attachment.naming import vlan_gateway_name
from cni_py.errors import CniError
from cni_py.interface import common, vlan_gateway
from cni_py.interface.bridge import (
    EnsureBridge,
    EnsureGatewayAddress,
    EnsureSubnetRoute,
    SetPortVlans,
    WaitForPort,
)
from cni_py.kernel.rtnl import Link, Rtnl
from cni_py.plugins import backends, bridge_plan
from cni_py.plugins.bridge_conf import BridgeConf
from cni_py.protocol.netconf import NetConf
from cni_py.protocol.result import IPConfig, Result, Route

MAC = bytes.fromhex("021122334455")


def call_for(config: Mapping[str, object], cni_args: str = "") -> Call:
    text = json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br0", **config}).encode()
    conf = NetConf.parse(text)
    return Call(
        "ADD", "bridge", conf, container_id="c1", netns="/run/netns/c1", ifname="eth0", args=cni_args, dry_run=True
    )


def result_of(*addresses: str, gateway: str | None = None) -> Result:
    gw = parse_ip(gateway) if gateway else None
    return Result(ips=[IPConfig(parse_address(address), gateway=gw) for address in addresses])


def plan_of(result: Result, **config: object) -> list[Op]:
    call = call_for(config)
    conf = BridgeConf(call)
    bridge_plan.complete(result, conf)
    return bridge_plan.plan_bridge(conf) + bridge_plan.plan(call.key, conf, result, MAC)


T = TypeVar("T")


def find(plan: list[Op], kind: type[T]) -> list[T]:
    return [op for op in plan if isinstance(op, kind)]


def test_the_order_is_bridge_veth_port_addresses_up_gateway() -> None:
    plan = plan_of(result_of("192.0.2.5/24"), isGateway=True)
    names = [type(op).__name__ for op in plan if not isinstance(op, common.SetContainerSysctl)]
    assert names == [
        "EnsureBridge",
        "AddVeth",
        "JoinBridge",
        "AddAddress",
        "SetContainerUp",
        "EnsureGatewayAddress",
        "EnsureForwarding",
        "ForgetNeighbour",
        "WaitForPort",
        "AnnounceAddresses",
    ]


def test_the_gateway_is_the_first_address_unless_ipam_says_so() -> None:
    assert [op.address for op in find(plan_of(result_of("192.0.2.5/24"), isGateway=True), EnsureGatewayAddress)] == [
        "192.0.2.1/24"
    ]
    plan = plan_of(result_of("192.0.2.5/24", gateway="192.0.2.254"), isGateway=True)
    assert [op.address for op in find(plan, EnsureGatewayAddress)] == ["192.0.2.254/24"]


def test_without_gateway_nothing_of_the_host_is_changed_beyond_the_bridge() -> None:
    plan = plan_of(result_of("192.0.2.5/24"))
    assert not find(plan, EnsureGatewayAddress)
    assert not find(plan, common.EnsureForwarding)


def test_a_default_gateway_adds_a_route_per_family_once() -> None:
    result = result_of("192.0.2.5/24", "2001:db8::5/64")
    plan = plan_of(result, isDefaultGateway=True)
    assert [(op.dst, op.gw) for op in find(plan, common.AddRoute)] == [
        ("0.0.0.0/0", "192.0.2.1"),
        ("::/0", "2001:db8::1"),
    ]
    again = result_of("192.0.2.5/24")
    again.routes = [Route(parse_address("0.0.0.0/0"), parse_ip("192.0.2.9"))]
    assert [(op.dst, op.gw) for op in find(plan_of(again, isDefaultGateway=True), common.AddRoute)] == [
        ("0.0.0.0/0", "192.0.2.9")
    ]


def test_ipv6_addresses_are_usable_at_once_unless_detection_is_wanted() -> None:
    plan = plan_of(result_of("2001:db8::5/64"))
    assert [op.dad for op in find(plan, common.AddAddress)] == [False]
    assert not find(plan, common.WaitForAddresses)
    wanted = plan_of(result_of("2001:db8::5/64"), enabledad=True)
    assert [op.dad for op in find(wanted, common.AddAddress)] == [True]
    assert find(wanted, common.WaitForAddresses)
    assert ("ipv6/conf/eth0/accept_dad", "1") in [(op.key, op.value) for op in find(wanted, common.SetContainerSysctl)]


def test_layer_two_only_brings_the_link_up() -> None:
    plan = plan_of(Result())
    assert find(plan, common.SetContainerUp)
    assert not find(plan, common.AddAddress)
    down = plan_of(Result(), disableContainerInterface=True)
    assert not find(down, common.SetContainerUp)
    assert not find(down, WaitForPort)


@pytest.mark.parametrize(
    ("config", "vlan", "trunk", "words"),
    [
        ({"vlan": 100}, 100, [], "VLAN 100 untagged"),
        ({"vlanTrunk": [{"minID": 10, "maxID": 20}, {"id": 30}]}, 0, [[10, 20], [30, 30]], "10-20,30 tagged"),
        ({"vlan": 5, "vlanTrunk": [{"id": 6}]}, 5, [[6, 6]], "VLAN 5 untagged and 6 tagged"),
    ],
)
def test_vlans_need_a_filtering_bridge_and_are_set_on_the_port(
    config: dict[str, object], vlan: int, trunk: list[list[int]], words: str
) -> None:
    plan = plan_of(result_of("192.0.2.5/24"), **config)
    assert [op.vlan_filtering for op in find(plan, EnsureBridge)] == [True]
    (port,) = find(plan, SetPortVlans)
    assert (port.vlan, port.trunk, port.keep_default) == (vlan, trunk, False)
    assert port.describe().endswith(f" carries {words}")


def test_with_a_vlan_the_gateway_lives_on_an_interface_of_that_vlan() -> None:
    plan = plan_of(result_of("192.0.2.5/24"), vlan=100, isGateway=True)
    assert [(op.bridge, op.vlan) for op in find(plan, vlan_gateway.EnsureVlanGateway)] == [("br0", 100)]
    assert [op.name for op in find(plan, EnsureGatewayAddress)] == ["br0.100"]


class Port(Rtnl):
    """A bridge port as the kernel keeps it: VLAN IDs with the flag "untagged", and the PVID (net/bridge/br_vlan.c)."""

    def __init__(self, default_pvid: int) -> None:
        self.vlans = {default_pvid: True} if default_pvid else {}
        self.pvid = default_pvid

    def link(self, _link: int | str) -> Link:
        return Link(bytes(4) + b"\7" + bytes(11))

    def delete_vlan(self, _index: int, vid: int, last: int | None = None) -> None:
        for number in range(vid, (last or vid) + 1):
            self.vlans.pop(number, None)
            self.pvid = 0 if self.pvid == number else self.pvid

    def add_vlan(
        self, _index: int, vid: int, last: int | None = None, *, pvid: bool = False, untagged: bool = False
    ) -> None:
        for number in range(vid, (last or vid) + 1):
            self.vlans[number] = untagged
            if pvid:
                self.pvid = number
            elif self.pvid == number:
                self.pvid = 0


@pytest.mark.parametrize("default_pvid", [1, 0, 7])
@pytest.mark.parametrize(
    ("config", "native", "tagged"),
    [
        ({"vlanTrunk": [{"minID": 1, "maxID": 4094}]}, 1, {2, 7, 4094}),
        ({"vlanTrunk": [{"id": 1}]}, 1, set()),
        ({"vlanTrunk": [{"id": 9}, {"minID": 8, "maxID": 12}, {"minID": 10, "maxID": 14}]}, 1, {8, 9, 10, 12, 14}),
        ({"vlan": 5, "vlanTrunk": [{"minID": 2, "maxID": 9}]}, 5, {2, 4, 6, 9}),
        ({"vlan": 5, "vlanTrunk": [{"id": 5}, {"id": 1}]}, 5, {1}),
        ({"vlan": 5}, 5, set()),
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_untagged_frames_are_of_the_native_vlan_whatever_the_trunk_contains(
    config: dict[str, object], native: int, tagged: set[int], default_pvid: int, keep: bool
) -> None:
    (op,) = find(plan_of(result_of("192.0.2.5/24"), preserveDefaultVlan=keep, **config), SetPortVlans)
    port = Port(default_pvid)
    kernel = Kernel(call_for({}).key, "")
    kernel._host = port
    op.apply(kernel)
    assert (port.pvid, port.vlans[native]) == (native, True)
    assert not any(port.vlans[number] for number in tagged)
    untagged = {number for number, plain in port.vlans.items() if plain}
    in_trunk = any(first <= default_pvid <= last for first, last in op.trunk)
    kept = {default_pvid} - {0} if keep and not in_trunk else set()
    assert untagged == {native} | kept


def test_a_link_local_gateway_takes_a_route_of_the_host_to_the_containers() -> None:
    plan = plan_of(result_of("2001:db8::5/64", gateway="fe80::1"), isGateway=True)
    assert [op.address for op in find(plan, EnsureGatewayAddress)] == ["fe80::1/64"]
    assert [(op.name, op.subnet) for op in find(plan, EnsureSubnetRoute)] == [("br0", "2001:db8::/64")]
    assert not find(plan_of(result_of("2001:db8::5/64"), isGateway=True), EnsureSubnetRoute)


def test_the_plugins_do_without_a_gateway_where_no_address_follows() -> None:
    plan = plan_of(result_of("255.255.255.255/32"), isGateway=True)
    assert not find(plan, EnsureGatewayAddress)
    assert bridge_plan.first_address(parse_address("192.0.2.7/32")) == parse_ip("192.0.2.8")
    assert bridge_plan.first_address(parse_address("2001:db8::/127")) == parse_ip("2001:db8::1")
    assert bridge_plan.first_address(parse_address("192.0.2.1/31")) == parse_ip("192.0.2.0")


def test_gateways_of_the_networks_other_ranges_are_not_in_the_way() -> None:
    ranges = [[{"subnet": "192.0.2.0/24"}, {"subnet": "198.51.100.0/24", "gateway": "198.51.100.9"}]]
    ipam = {"type": "host-local", "ranges": ranges}
    (op,) = find(plan_of(result_of("192.0.2.5/24"), isGateway=True, ipam=ipam), EnsureGatewayAddress)
    assert op.beside == ["192.0.2.1/24", "198.51.100.9/24"]
    (op,) = find(plan_of(result_of("192.0.2.5/24"), isGateway=True, ipam={**ipam, "type": "x"}), EnsureGatewayAddress)
    assert op.beside == ["192.0.2.1/24"]


def test_a_bridge_with_a_long_name_has_a_gateway_interface_of_its_own_in_each_vlan() -> None:
    """Too long for <bridge>.<vlan>: nothing is cut off, where names may differ."""
    bridges = ["br0", "bridge-of-some-a", "bridge-of-some-b"]
    names = {vlan_gateway_name(bridge, vlan) for bridge in bridges for vlan in (1, 100, 4094)}
    assert len(names) == 9
    assert max(map(len, names)) <= 15
    assert "br0.100" in names


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vlan": 4095}, "invalid VLAN ID 4095"),
        ({"vlan": -1}, "invalid VLAN ID -1"),
        ({"vlanTrunk": [{"id": 0}]}, "vlanTrunk: id must be between 1 and 4094, not 0"),
        ({"vlanTrunk": [{"minID": 3}]}, "maxID is missing"),
        ({"vlanTrunk": [{"maxID": 3}]}, "minID is missing"),
        ({"vlanTrunk": [{"minID": 5, "maxID": 4}]}, "minID is greater"),
        ({"hairpinMode": True, "promiscMode": True}, "hairpinMode and promiscMode"),
        ({"disableContainerInterface": True, "ipam": {"type": "host-local"}}, "cannot use IPAM"),
        ({"ipMasq": True, "ipMasqBackend": "x"}, "unknown ipmasq backend"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_before_anything_is_done(
    config: dict[str, object], message: str
) -> None:
    call = call_for(config)
    with pytest.raises(CniError, match=message):
        BridgeConf(call).check_add()


@pytest.mark.parametrize(
    ("args", "config", "wanted"),
    [
        ("", {}, ""),
        ("IgnoreUnknown=1;MAC=02:00:00:00:00:01", {}, "02:00:00:00:00:01"),
        ("MAC=02:00:00:00:00:01", {"args": {"cni": {"mac": "02:00:00:00:00:02"}}}, "02:00:00:00:00:02"),
        (
            "MAC=02:00:00:00:00:01",
            {"args": {"cni": {"mac": "02:00:00:00:00:02"}}, "runtimeConfig": {"mac": "02:00:00:00:00:03"}},
            "02:00:00:00:00:03",
        ),
    ],
)
def test_the_mac_comes_from_runtime_config_then_args_then_the_environment(
    args: str, config: dict[str, object], wanted: str
) -> None:
    assert BridgeConf(call_for(config, args)).mac == wanted


def test_ip_masq_by_iptables_is_one_operation_for_all_addresses() -> None:
    from cni_py.iptables.masquerade import MasqueradeByIptables

    call = call_for({"ipMasq": True, "ipMasqBackend": "iptables"})
    addresses = [parse_address("192.0.2.7/24"), parse_address("2001:db8::7/64")]
    wanted = MasqueradeByIptables(addresses=["192.0.2.7/24", "2001:db8::7/64"])
    assert backends.masquerade(addresses, BridgeConf(call).backend) == [wanted]
