"""VLANs of the executable bridge on a kernel that has them: `make test-kernels`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lab import ANSWER_S, Lab
from node import SLOWNESS

from tests.plugins.bridge_network import BridgeNetwork, Conf
from tests.plugins.conftest import need_kind

pytestmark = [pytest.mark.debian_kernel, pytest.mark.ours_alone]
TRUNK = [{"minID": 7, "maxID": 9}, {"id": 30}]


@pytest.fixture(autouse=True)
def _vlans(shared_lab: Lab) -> None:
    need_kind(shared_lab, "VLAN-filtering bridge")


def filtering(net: BridgeNetwork) -> int:
    return int(net.links("host")[net.bridge]["linkinfo"]["info_data"]["vlan_filtering"])


def is_reached(net: BridgeNetwork, container_id: str, *, wanted: bool) -> bool:
    """From container a. `wanted`: what the test expects."""
    address = net.held(container_id, "eth0")[0].partition("/")[0]
    try:
        return bool(net.lab.fetch(net.a, address, 80, timeout_s=ANSWER_S if wanted else SLOWNESS).name == container_id)
    except OSError:
        return False


def test_a_bridge_that_is_there_without_ports_learns_to_keep_vlans_apart(net: BridgeNetwork) -> None:
    net.do("host", f"ip link add {net.bridge} type bridge")
    plain = net.conf(isGateway=False)
    net.well("ADD", {**plain, "vlan": 100})
    assert filtering(net) == 1
    net.lab.serve(net.b, 80)
    for vlan, reached in ((100, True), (200, False), (0, False)):
        conf = {**plain, "vlan": vlan}
        result = net.well("ADD", conf, net.b).json
        assert net.run("CHECK", {**conf, "prevResult": result}, net.b).status == 0
        assert is_reached(net, net.b, wanted=reached) == reached, vlan
        net.well("DEL", conf, net.b)


@pytest.mark.parametrize("keys", [{"vlan": 100}, {"vlanTrunk": TRUNK}], ids=["vlan", "trunk"])
def test_a_bridge_that_keeps_no_vlans_apart_and_has_ports_is_refused(net: BridgeNetwork, keys: Conf) -> None:
    plain = net.conf()
    net.well("ADD", plain)
    assert filtering(net) == 0
    before = net.state()
    outcome = net.run("ADD", {**plain, **keys}, net.b)
    assert outcome.code == 7
    assert f'cannot use "{net.bridge}" as bridge for VLANs' in outcome.json["msg"]
    assert f"ip link set {net.bridge} type bridge vlan_filtering 1" in outcome.json["details"]
    after = net.state()
    del before["host"], after["host"]  # what another call changes there: test_life.py
    assert before.get(net.b, after[net.b]) == after[net.b]
    assert (filtering(net), len(net.reservations())) == (0, 1)
    net.do("host", f"ip link set {net.bridge} type bridge vlan_filtering 1")
    net.well("ADD", {**plain, **keys}, net.b)


VETH = {
    "no VLAN": ("bridge vlan delete dev {veth} vid 100", "bridge vlan add dev {veth} vid 100 pvid untagged"),
    "another one for untagged frames": (
        "bridge vlan add dev {veth} vid 50 pvid untagged",
        "bridge vlan delete dev {veth} vid 50; bridge vlan add dev {veth} vid 100 pvid untagged",
    ),
    "tagged": ("bridge vlan add dev {veth} vid 100 pvid", "bridge vlan add dev {veth} vid 100 pvid untagged"),
    "one less in the trunk": ("bridge vlan delete dev {veth} vid 8", "bridge vlan add dev {veth} vid 8"),
    "one more in the trunk": ("bridge vlan add dev {veth} vid 10", "bridge vlan delete dev {veth} vid 10"),
    "the default one": ("bridge vlan add dev {veth} vid 1 untagged", "bridge vlan delete dev {veth} vid 1"),
}
BRIDGE = {
    "no filtering": (
        "ip link set {bridge} type bridge vlan_filtering 0",
        "ip link set {bridge} type bridge vlan_filtering 1",
    ),
    "a gateway that is down": ("ip link set {bridge}.100 down", "ip link set {bridge}.100 up"),
    "a gateway whose port is down": ("ip link set {bridge}.100p down", "ip link set {bridge}.100p up"),
    "a gateway in another VLAN": (
        "bridge vlan delete dev {bridge}.100p vid 100",
        "bridge vlan add dev {bridge}.100p vid 100 pvid untagged",
    ),
    "a gateway of another bridge": (
        "ip link set {bridge}.100p nomaster",
        "ip link set {bridge}.100p master {bridge}; bridge vlan delete dev {bridge}.100p vid 1; "
        "bridge vlan add dev {bridge}.100p vid 100 pvid untagged",
    ),
}


@pytest.mark.parametrize("keep", [False, True], ids=["", "default VLAN kept"])
def test_check_sees_what_was_done_to_vlans(net: BridgeNetwork, keep: bool) -> None:
    conf = net.conf(families=(4, 6), vlan=100, vlanTrunk=TRUNK, preserveDefaultVlan=keep)
    result = net.well("ADD", conf).json
    assert net.check(conf, result).status == 0
    words = {"bridge": net.bridge, "veth": result["interfaces"][1]["name"]}
    damages = {"the default one": (VETH["the default one"][1], VETH["the default one"][0])} if keep else VETH | BRIDGE
    for name, commands in damages.items():
        damage, mend = (["sh", "-ec", command.format(**words)] for command in commands)
        net.lab["host"].run(damage, check=True)
        outcome = net.check(conf, result)
        assert outcome.code == 999, name
        assert net.bridge in outcome.json["msg"] or words["veth"] in outcome.json["msg"], name
        net.lab["host"].run(mend, check=True)
        if name.startswith("a gateway"):  # its addresses of IPv6 go with the flag
            net.do("host", f"ip address replace {net.gateway(6)}/64 dev {net.bridge}.100 nodad")
        checked = net.check(conf, result)
        assert checked.status == 0, f"{name}: {checked.stdout}"
    net.do("host", f"ip link delete {net.bridge}.100")
    assert f"{net.bridge}.100" in net.check(conf, result).json["msg"]


def test_a_gateway_that_was_damaged_is_put_back(net: BridgeNetwork) -> None:
    """By `cni-py restore`, and by the next ADD."""
    conf = net.conf(vlan=100)
    result = net.well("ADD", conf).json
    for mend in ("restore", "ADD"):
        net.do("host", f"bridge vlan delete dev {net.bridge}.100p vid 100")
        assert net.check(conf, result).code == 999
        if mend == "ADD":
            net.well("ADD", conf, net.b)
        else:
            net.do("host", f"{Path(sys.executable).with_name('cni-py')} restore")
        assert net.check(conf, result).status == 0, mend
