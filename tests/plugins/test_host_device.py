"""host-device: how a device is found, moved and brought back. One end of a veth pair stands for the device.

That an ADD or DEL that fails or is killed anywhere leaves the host as it was: tests/faults/test_interfaces.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runtime import ALL, Outcome, Plugins
from snapshot import difference

from cni_py.errors import InvalidNetworkConfig
from cni_py.plugins import device_conf
from tests.conftest import GO, OURS
from tests.plugins.bridge_network import BridgeNetwork, Conf, valid
from tests.plugins.link_networks import HostDeviceNetwork

PCI = "0000:01:00.0"
OTHER_MAC = "02:00:00:00:ff:fe"
OTHER_SETTINGS = f"mtu 1300 address {OTHER_MAC} promisc on allmulticast on txqueuelen 77"


@pytest.fixture
def kind() -> type[BridgeNetwork]:
    return HostDeviceNetwork


@pytest.fixture
def card(net: HostDeviceNetwork) -> HostDeviceNetwork:
    """A network whose addresses no other one has had, so that its state can be compared."""
    net.warm(net.conf())
    return net


def put_up(net: HostDeviceNetwork) -> None:
    """The device as the fixture has it; the Go plugin leaves it bare."""
    net.do("host", f"ip link set {net.device} up alias uplink")
    net.lab["host"].run(["ip", "address", "add", net.had, "dev", net.device])


def shown(net: HostDeviceNetwork) -> tuple[Conf, list[str]]:
    """The device on the host, without what tells of its carrier, which the kernel sees to a moment later; and its addresses."""
    link = net.links("host")[net.device]
    flags = {*link["flags"]} - {"LOWER_UP", "NO-CARRIER", "M-DOWN"}
    return {**link, "operstate": "", "flags": sorted(flags)}, net.held("host", net.device)


# Finding it


@pytest.mark.parametrize("by", ["name", "altname", "mac", "kernel path"])
def test_it_is_found(net: HostDeviceNetwork, by: str) -> None:
    conf = net.conf()
    if by == "altname":
        net.do("host", f"ip link property add dev {net.device} altname alt{net.device}")
        conf["device"] = f"alt{net.device}"
    if by == "mac":
        del conf["device"]
        conf["hwaddr"] = net.mac.upper().replace(":", "-")
    if by == "kernel path":  # which has more than one device: the first by its name is taken
        net.do("host", f"ip link set {net.device} down name a-first")
        del conf["device"]
        conf["kernelpath"] = "/sys/devices/virtual"
    result = net.well("ADD", conf).json
    assert result["interfaces"] == [{"name": "eth0", "mac": net.mac, "sandbox": f"/run/netns/{net.a}"}]
    assert net.links(net.a)["eth0"]["ifalias"] == ("a-first" if by == "kernel path" else net.device)
    assert net.held(net.a, "eth0") == [ip["address"] for ip in result["ips"]] != []
    assert net.default_gateway(4) == net.gateway(4)
    assert net.check(conf, result).status == 0
    net.well("DEL", conf)
    assert ("a-first" if by == "kernel path" else net.device) in net.links("host")


@pytest.mark.parametrize(
    ("driver", "linked"), [("vfio-pci", ""), ("mlx5_core", "net"), ("virtio-pci", "virtio3/net"), ("mlx5_core", "")]
)
def test_a_pci_device_is_found_by_sysfs(net: HostDeviceNetwork, tmp_path: Path, driver: str, linked: str) -> None:
    """A folder made by hand lies over /sys/bus/pci/devices: no other way leads to a card of another machine."""
    device = tmp_path / "devices" / PCI
    device.mkdir(parents=True)
    (tmp_path / driver).mkdir()
    (device / "driver").symlink_to(tmp_path / driver)
    if linked:
        (device / linked / net.device).mkdir(parents=True)
    conf = {**net.conf(), "runtimeConfig": {"deviceID": PCI}}
    del conf["device"]

    def run(verb: str, **keys: object) -> Outcome:
        return over_sysfs(net, tmp_path / "devices", verb, {**conf, **keys})

    added = run("ADD")
    if driver == "mlx5_core" and not linked:
        assert f"no net directory under pci device {PCI}" in added.json["msg"]
        assert run("DEL").status == 0 or net.plugins.whose == GO
        return
    assert added.status == 0, added.stdout
    if linked or net.plugins.whose == OURS:  # Debian 12's Go plugins name no interface that is none
        assert added.json["interfaces"][0].get("mac", "") == (net.mac if linked else "")
    assert (net.device in net.links("host")) == (not linked)
    assert run("CHECK", prevResult=added.json).status == 0
    assert run("DEL").status == 0
    assert net.device in net.links("host")
    assert not net.reservations()


def over_sysfs(net: HostDeviceNetwork, devices: Path, verb: str, conf: Conf) -> Outcome:
    """Run the plugin where the PCI devices are those of a folder."""
    env = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": net.a,
        "CNI_NETNS": f"/run/netns/{net.a}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(net.plugins.directory),
    }
    script = f"mount --bind {devices} /sys/bus/pci/devices && exec {net.plugins.directory}/host-device"
    done = net.lab["host"].run(["unshare", "--mount", "sh", "-c", script], env=env, input=json.dumps(conf))
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("name", ["../../../class/net/lo", "..", ".", "a\0b", "/etc"])
def test_a_name_that_leads_out_of_sysfs_is_on_no_bus(name: str) -> None:
    assert not device_conf.is_on(device_conf.PCI, name)


@pytest.mark.parametrize(
    ("text", "length"),
    [("02:00:00:00:00:01", 6), ("0200.0000.0001", 6), ("02:" * 7 + "01", 8), ("80:" * 19 + "01", 20)],
)
def test_hardware_addresses_of_all_lengths_are_read(text: str, length: int) -> None:
    assert len(device_conf.hardware_address(text)) == length
    with pytest.raises(InvalidNetworkConfig):
        device_conf.hardware_address(text + ":")


# Bringing it back


@pytest.mark.ours_alone
def test_it_comes_back_as_it_was(card: HostDeviceNetwork) -> None:
    """Up, a port of its bridge, with its alias and the address that nobody else has by then."""
    card.do("host", f"ip link add {card.bridge} type bridge")
    card.do("host", f"ip link set {card.device} master {card.bridge}")
    before = card.state()
    card.well("ADD", card.conf())
    card.well("DEL", card.conf())
    assert not difference(before, card.state())
    card.well("ADD", card.conf())
    card.do("host", f"ip address add {card.had} dev {card.peer}")
    card.well("DEL", card.conf())
    assert not card.held("host", card.device)


def test_each_plugin_brings_back_what_the_other_moved(net: HostDeviceNetwork, our_bin_dir: Path) -> None:
    ours, theirs = Plugins(OURS, our_bin_dir, ALL), net.plugins
    for first, second in ((ours, theirs), (theirs, ours)):
        put_up(net)
        net.plugins = first
        conf = net.conf()
        result = net.well("ADD", conf).json
        assert net.links(net.a)["eth0"]["ifalias"] == net.device
        net.plugins = second
        assert net.check(conf, result).status == 0
        net.well("DEL", {**conf, "prevResult": result})
        assert net.device in net.links("host")
        assert set(net.links(net.a)) == {"lo"}
        net.plugins = ours
        net.well("DEL", conf)


@pytest.mark.ours_alone
@pytest.mark.parametrize("record", ["there", "lost"])
def test_a_name_that_is_taken_by_then_is_left_to_who_has_it(net: HostDeviceNetwork, record: str) -> None:
    conf = net.conf()
    net.well("ADD", conf)
    index = net.links(net.a)["eth0"]["ifindex"]
    net.do("host", f"ip link add {net.device} type bridge")
    if record == "lost":
        net.do("host", f"rm -r /run/cni-py/attachments/{net.attachment(net.a)}")
    outcome = net.well("DEL", conf)
    assert f"{net.device} ({net.mac}) is called dev{index}" in outcome.stderr
    assert "held by another interface (bridge, MAC" in outcome.stderr
    back = net.links("host")[f"dev{index}"]
    assert (back["address"], back["ifalias"]) == (net.mac, net.device)
    assert net.links("host")[net.device]["linkinfo"]["info_kind"] == "bridge"
    net.do("host", f"ip link delete {net.device}")


@pytest.mark.ours_alone
@pytest.mark.parametrize("path", ["", "missing"])
def test_without_a_path_the_record_finds_it(card: HostDeviceNetwork, path: str) -> None:
    """And it gets the settings back that tuning, whose DEL has no namespace either, or the container has changed."""
    before = card.state()
    card.well("ADD", card.conf())
    card.do(card.a, f"ip link set eth0 {OTHER_SETTINGS}")
    assert card.run("DEL", card.conf(), netns=path and "/run/netns/nosuch").status == 0
    assert not difference(before, card.state())


@pytest.mark.ours_alone
@pytest.mark.parametrize("how", ["DEL", "GC", "DEL without a record", "ADD"])
def test_one_that_fell_back_gets_its_name(card: HostDeviceNetwork, how: str) -> None:
    """As hardware does when its namespace ends: down, with the container's name and the alias."""
    conf, before = card.conf("1.1.0"), shown(card)
    result = card.well("ADD", conf).json
    card.do(card.a, f"ip link set eth0 {OTHER_SETTINGS}")
    move = f"exec 3</proc/self/ns/net; nsenter --net=/run/netns/{card.a} ip link set eth0 netns /proc/self/fd/3"
    assert card.lab["host"].run(["sh", "-c", move]).returncode == 0
    card.lab.remove(card.a)
    if how == "GC":
        assert card.run("GC", {**conf, **valid()}).status == 0
    if how in ("DEL without a record", "ADD"):
        card.do("host", f"rm -r /run/cni-py/attachments/{card.attachment(card.a)}")
    if how.startswith("DEL"):
        assert card.run("DEL", {**conf, "prevResult": result}, netns="").status == 0
    if how == "ADD":
        card.well("ADD", conf, card.b)
        card.well("DEL", conf, card.b)
    found = card.links("host")
    assert "eth0" not in found
    assert found[card.device]["address"] == (card.mac if how in ("DEL", "GC") else OTHER_MAC)
    if how in ("DEL", "GC"):
        assert shown(card) == before


@pytest.mark.ours_alone
def test_a_virtual_device_ends_with_its_namespace_which_is_said(net: HostDeviceNetwork) -> None:
    conf = net.conf()
    net.well("ADD", conf)
    net.lab.remove(net.a)
    net.wait_for_end_of(net.peer)
    outcome = net.run("DEL", conf, netns="")
    assert outcome.status == 0
    assert f"device {net.device} ({net.mac}) is gone: a virtual device ends" in outcome.stderr
    assert not net.reservations()
    assert not net.records()


@pytest.mark.ours_alone
def test_one_that_the_container_has_renamed_comes_back(card: HostDeviceNetwork) -> None:
    before = card.state()
    card.well("ADD", card.conf())
    card.do(card.a, "ip link set eth0 name other0")
    card.well("DEL", card.conf())
    assert not difference(before, card.state())


# STATUS, CHECK


@pytest.mark.ours_alone
def test_status_wants_the_device_on_the_host_or_in_a_container_of_the_network(net: HostDeviceNetwork) -> None:
    conf = net.conf("1.1.0")
    assert net.run("STATUS", conf).status == 0
    net.well("ADD", conf)
    assert net.run("STATUS", conf).status == 0
    net.well("DEL", conf)
    assert net.run("STATUS", {**conf, "device": "nosuch"}).code == 50
    assert net.run("STATUS", {**conf, "device": "", "capabilities": {"deviceID": True}}).status == 0


@pytest.mark.parametrize(
    "damage", ["ip address flush dev eth0", "ip link set eth0 down", "ip link set eth0 address 02:00:00:00:ff:ff"]
)
def test_check_finds_damage(net: HostDeviceNetwork, damage: str) -> None:
    if "down" in damage and net.plugins.whose == GO:
        pytest.skip("the Go plugin does not look")
    conf = net.conf(ipam={"routes": []})
    result: dict[str, Any] = net.well("ADD", conf).json
    assert net.check(conf, result).status == 0
    net.do(net.a, damage)
    assert net.check(conf, result).code == 999
    net.well("DEL", conf)
    assert net.device in net.links("host")
