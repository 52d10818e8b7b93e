"""The executable bridge over the life of an attachment, by what is in the kernel and on disk before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
from runtime import ALL, FORMS, Plugins
from snapshot import difference

from tests.plugins.bridge_network import FAMILIES, PREFIXLEN, BridgeNetwork, Conf, valid

if TYPE_CHECKING:
    pass

DEFAULT_ROUTE = {4: "0.0.0.0/0", 6: "::/0"}

# The life of an attachment


def check_result(net: BridgeNetwork, version: str, families: tuple[int, ...], result: Mapping[str, Any]) -> None:
    """In the form of its version: the second address of each family, since the first has been used before."""
    assert result["cniVersion"] == version
    expected = [(f"{net.address(family, 3)}/{PREFIXLEN[family]}", net.address(family, 1)) for family in families]
    if version < "0.3.0":
        blocks = [result[f"ip{family}"] for family in families]
        assert [(block["ip"], block["gateway"]) for block in blocks] == expected
        assert [block["routes"] for block in blocks] == [[{"dst": DEFAULT_ROUTE[family]}] for family in families]
        assert "interfaces" not in result
        return
    assert [(ip["address"], ip["gateway"], ip["interface"]) for ip in result["ips"]] == [(*ip, 2) for ip in expected]
    versions = [str(family) if version < "1.0.0" else None for family in families]
    assert [ip.get("version") for ip in result["ips"]] == versions
    assert result.get("dns", {} if version >= "1.0.0" else None) == {}
    assert result["routes"] == [{"dst": DEFAULT_ROUTE[family]} for family in families]
    check_interfaces(net, result["interfaces"])


def check_interfaces(net: BridgeNetwork, interfaces: list[dict[str, str]]) -> None:
    """The bridge, the host's end and the container's, as they are in the kernel."""
    bridge, host, container = interfaces
    on_host, inside = net.links("host"), net.links(net.a)
    assert bridge == {"name": net.bridge, "mac": on_host[net.bridge]["address"]}
    assert host == {"name": host["name"], "mac": on_host[host["name"]]["address"]}
    assert on_host[host["name"]]["master"] == net.bridge
    assert container == {"name": "eth0", "mac": inside["eth0"]["address"], "sandbox": f"/run/netns/{net.a}"}


@pytest.mark.parametrize(
    ("version", "families"),
    [
        pytest.param(version, families, id=f"{version}-{name}")
        for name, families in FAMILIES.items()
        for version in (ALL if name == "both" else FORMS)
    ],
)
def test_every_version_gets_a_connected_container_and_its_own_form_of_the_result(
    net: BridgeNetwork, plugins: Plugins, version: str, families: tuple[int, ...]
) -> None:
    if version not in plugins.versions:
        pytest.skip(f"these plugins do not know {version}")
    conf = net.conf(version, families)
    net.warm(conf)
    before = net.state()
    result = net.well("ADD", conf, CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=p").json
    check_result(net, version, families, result)
    assert net.held(net.a, "eth0") == [f"{net.address(family, 3)}/{PREFIXLEN[family]}" for family in families]
    assert net.held("host", net.bridge) == [f"{net.address(family, 1)}/{PREFIXLEN[family]}" for family in families]
    assert [net.default_gateway(family) for family in families] == [net.address(family, 1) for family in families]
    if version >= "0.4.0":
        conf["prevResult"] = result
        net.well("CHECK", conf)
    for _ in range(2):
        assert net.well("DEL", conf).stdout == ""
        assert not difference(before, net.state())


def test_the_first_attachment_of_a_network_makes_the_bridge_and_del_leaves_it(net: BridgeNetwork) -> None:
    assert net.bridge not in net.links("host")
    net.warm(net.conf(families=(4, 6)))
    link = net.links("host")[net.bridge]
    assert (link["linkinfo"]["info_kind"], "UP" in link["flags"]) == ("bridge", True)
    assert net.held("host", net.bridge) == [f"{net.address(4, 1)}/24", f"{net.address(6, 1)}/64"]
    assert net.reservations() == {}


@pytest.mark.parametrize("netns", ["/run/netns/{a}", "/proc/{pid}/ns/net"], ids=["by name", "by process"])
def test_the_namespace_is_reported_as_it_was_given(net: BridgeNetwork, netns: str) -> None:
    conf = net.conf()
    path = netns.format(a=net.a, pid=net.lab[net.a].pid)
    result = net.run("ADD", conf, netns=path).json
    assert result["interfaces"][2]["sandbox"] == path
    assert net.run("CHECK", {**conf, "prevResult": result}, netns=path).status == 0
    assert net.run("DEL", conf, netns=path).status == 0


# DEL with little to go by


def test_del_after_the_interface_was_deleted_by_hand_leaves_nothing(net: BridgeNetwork) -> None:
    conf = net.conf(families=(4, 6))
    net.warm(conf)
    before = net.state()
    net.well("ADD", conf)
    net.do(net.a, "ip link delete eth0")
    net.well("DEL", conf)
    assert not difference(before, net.state())


@pytest.mark.ours_alone
@pytest.mark.parametrize("damage", ["rm -r /run/cni-py", "truncate -s 0 {record}", "truncate -s 99 {record}"])
def test_del_without_a_readable_record_takes_the_interface_and_the_addresses(net: BridgeNetwork, damage: str) -> None:
    """As when the Go plugin made them: an administrator may change over while containers run."""
    conf = net.conf(families=(4, 6))
    net.well("ADD", conf)
    (record,) = [path for path in net.records() if path.endswith(f"/{net.plugins.keeper('bridge')}.json")]
    net.do("host", damage.format(record=record))
    net.well("DEL", conf)
    assert (net.reservations(), set(net.links(net.a))) == ({}, {"lo"})
    assert not [path for path in net.records() if path.endswith(f"/{net.plugins.keeper('bridge')}.json")]


def test_a_second_add_fails_and_the_first_one_stands(net: BridgeNetwork) -> None:
    conf = net.conf(families=(4, 6), ipMasq=True)
    result = net.well("ADD", conf).json
    before = net.state()
    outcome = net.run("ADD", conf)
    assert outcome.code == 999
    assert "already exists" in outcome.json["msg"]
    if net.plugins.whose == "ours":
        assert not difference(before, net.state())
    else:
        assert set(net.links(net.a)) == {"lo", "eth0"}
    assert net.check(conf, result).status == 0


# What only the attachment record makes possible


@pytest.mark.ours_alone
def test_an_add_after_the_namespace_was_replaced_starts_afresh(net: BridgeNetwork) -> None:
    """The machine or the container was started again: the same path, another namespace, and no DEL."""
    conf = net.conf(families=(4, 6), ipMasq=True)
    net.warm(conf)
    before = net.state()
    net.well("ADD", conf)
    net.lab.remove(net.a)
    net.lab.add_container(net.a)
    result = net.well("ADD", conf).json
    assert net.check(conf, result).status == 0
    assert len(net.reservations()) == 2
    net.well("DEL", conf)
    assert not difference(before, net.state())


# GC and STATUS


@pytest.mark.ours_alone
def test_gc_with_an_empty_list_takes_all_of_the_network(net: BridgeNetwork) -> None:
    conf = net.conf(families=(4, 6), ipMasq=True)
    net.warm(conf)
    net.well("GC", {**conf, **valid()})  # with it goes the chain of the subnet
    containers, before = (net.a, net.b), net.state()
    for container_id in containers:
        net.well("ADD", conf, container_id)
    net.well("GC", {**conf, **valid()}, CNI_CONTAINERID=None, CNI_NETNS=None, CNI_IFNAME=None)
    assert not difference(before, net.state())


@pytest.mark.ours_alone
@pytest.mark.parametrize("loss", ["rm -r {}", "echo x >{}/bridge.json"], ids=["lost", "damaged"])
def test_gc_without_a_record_takes_the_pair_with_the_address(net: BridgeNetwork, loss: str) -> None:
    """Else the stale container would go on with an address that the next one is given."""
    conf = net.conf("1.1.0")
    for name in (net.a, net.b):
        net.well("ADD", conf, name)
        net.do("host", loss.format(f"/run/cni-py/attachments/{net.attachment(name)}"))
    net.well("GC", {**conf, **valid(net.a)})
    assert (set(net.links(net.a)), set(net.links(net.b))) == ({"lo", "eth0"}, {"lo"})
    assert len(net.reservations()) == 1
    net.well("DEL", conf)


@pytest.mark.ours_alone
@pytest.mark.parametrize("entry", [{}, {"ifname": "eth0"}, {"containerID": ""}, None])
def test_gc_with_a_list_that_names_nobody_is_refused(net: BridgeNetwork, entry: object) -> None:
    net.well("ADD", net.conf())
    conf = {**net.conf("1.1.0"), "cni.dev/valid-attachments": [entry]}
    assert net.run("GC", conf).code == 7
    assert (len(net.reservations()), "eth0" in net.links(net.a), len(net.records())) == (1, True, 1)
    net.well("DEL", net.conf())


@pytest.mark.ours_alone
def test_gc_without_a_list_takes_nothing(net: BridgeNetwork) -> None:
    conf = net.conf("1.1.0", families=(4, 6), ipMasq=True)
    net.well("ADD", conf)
    before = net.state()
    net.well("GC", conf)
    assert not difference(before, net.state())


@pytest.mark.ours_alone
def test_status_is_well_before_the_first_add_and_changes_nothing(net: BridgeNetwork) -> None:
    before = net.state()
    assert net.well("STATUS", net.conf("1.1.0", (4, 6), ipMasq=True)).stdout == ""
    assert not difference(before, net.state())


@pytest.mark.ours_alone
def test_status_tells_a_full_pool(net: BridgeNetwork) -> None:
    conf = net.conf("1.1.0", ipam={"ranges": [[{"subnet": f"{net.address(4, 0)}/30"}]]})
    net.well("STATUS", conf)
    net.well("ADD", conf)
    outcome = net.run("STATUS", conf)
    assert (outcome.code, "full" in outcome.json["msg"]) == (50, True)
    net.well("DEL", conf)
    net.well("STATUS", conf)


@pytest.mark.ours_alone
@pytest.mark.parametrize("key", ["bridge", "BRIDGE"])
def test_status_tells_a_bridge_that_is_another_link(net: BridgeNetwork, key: str) -> None:
    conf = net.conf("1.1.0")
    del conf["bridge"]
    outcome = net.run("STATUS", {**conf, key: "lan0"})
    assert outcome.code == 50
    assert "lan0" in outcome.json["msg"]
    net.well("STATUS", {**conf, key: net.bridge})


@pytest.mark.ours_alone
@pytest.mark.parametrize(("keys", "code"), [({}, 0), ({"ipMasq": True}, 50), ({"macspoofchk": True}, 50)])
def test_status_tells_a_kernel_without_nftables_where_it_is_needed(
    net: BridgeNetwork, without_nftables: Plugins, keys: Conf, code: int
) -> None:
    net.plugins = without_nftables
    conf = net.conf("1.1.0", **keys)
    assert net.run("STATUS", conf).code == code
    before = net.state()
    outcome = net.run("ADD", conf)
    assert outcome.status == bool(code)
    if code:
        assert "nf" in outcome.json["msg"]
        assert (net.reservations(), set(net.links(net.a))) == ({}, {"lo"})
        assert before[net.a] == net.state()[net.a]
    net.well("DEL", conf)
