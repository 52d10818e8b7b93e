"""The life of an attachment as all plugins that make an interface have it, by what is in the kernel and on disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from runtime import ALL, REFUSALS, Plugins
from snapshot import difference

from tests.conftest import OURS
from tests.plugins.bridge_network import PREFIXLEN, BridgeNetwork, Conf, ForeignIpam, ours_alone, valid
from tests.plugins.conftest import RARE
from tests.plugins.link_networks import DummyNetwork, IpvlanNetwork, MacvlanNetwork, PtpNetwork, VlanNetwork

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

KINDS: dict[str, type[BridgeNetwork]] = {
    "bridge": BridgeNetwork,
    "ptp": PtpNetwork,
    "macvlan": MacvlanNetwork,
    "ipvlan": IpvlanNetwork,
    "vlan": VlanNetwork,
    "dummy": DummyNetwork,
}
CHILDREN = ("macvlan", "ipvlan", "vlan", "dummy")  # whose interface lies in the container as a whole


def of(*names: str) -> pytest.MarkDecorator:
    """Run the test with the networks of these plugins."""
    return pytest.mark.parametrize("kind", [row(name) for name in names], indirect=True)


def row(name: str, *more: object) -> ParameterSet:
    """The network of a plugin as a parameter, marked where the kernel may lack it."""
    marks = [pytest.mark.debian_kernel] if name in RARE else []
    return pytest.param(KINDS[name], *more, marks=marks, id="-".join([name, *map(str, more)]))


# More than one


@pytest.mark.parametrize(
    ("kind", "full"),
    [(BridgeNetwork, False), ours_alone(BridgeNetwork, True), ours_alone(PtpNetwork, True)],
    indirect=["kind"],
    ids=["bridge, plain", "bridge", "ptp"],
)
def test_two_interfaces_of_one_container_come_and_go_alone(net: BridgeNetwork, full: bool) -> None:
    """With the Go bridge both share one iptables chain; its ptp finds the routes of the first in the way of the second's."""
    conf = net.full(ipam={"routes": []}) if full else net.conf(ipam={"routes": []})
    net.warm(conf)
    before = net.state()
    first = net.well("ADD", conf).json
    with_one = net.state()
    second = net.run("ADD", conf, ifname="eth1")
    assert second.status == 0
    for ifname, result in (("eth0", first), ("eth1", second.json)):
        checked = net.run("CHECK", {**conf, "prevResult": result}, ifname=ifname)
        assert (checked.status, checked.stdout) == (0, ""), ifname
    assert set(net.links(net.a)) == {"lo", "eth0", "eth1"}
    assert net.run("DEL", conf, ifname="eth1").status == 0
    assert not difference(with_one, net.state())
    net.well("DEL", conf)
    assert not difference(before, net.state())


@of(*KINDS)
def test_an_interface_of_that_name_that_is_somebody_elses_is_left_alone(net: BridgeNetwork) -> None:
    conf = net.conf(families=net.families)
    net.warm(conf)
    net.do(net.a, "ip link add eth0 type veth peer name other")
    before = net.state()
    outcome = net.run("ADD", conf)
    assert outcome.code == 999
    assert net.plugin in CHILDREN or "already exists" in outcome.json["msg"]
    assert not difference(before, net.state())


@pytest.mark.ours_alone
@of("ptp", *CHILDREN)
def test_a_second_add_fails_and_the_first_one_stands(net: BridgeNetwork) -> None:
    conf = net.conf(families=net.families)
    result = net.well("ADD", conf).json
    before = net.state()
    assert net.run("ADD", conf).code == 999
    assert not difference(before, net.state())
    assert net.check(conf, result).status == 0


# DEL with little to go by

BARE_DELS: dict[str, tuple[str | None, dict[str, str | None]]] = {
    "without prevResult": (None, {}),
    "with a path that never was": ("/run/netns/never-was", {}),
    "with an empty path": ("", {}),
    "without the variable": ("", {"CNI_NETNS": None}),
    "without CNI_ARGS": (None, {"CNI_ARGS": None}),
    "with a process that never was": ("/proc/999999/ns/net", {}),
}
FOR_ALL = [*BARE_DELS][:4]


@pytest.mark.parametrize("how", BARE_DELS)
def test_del_of_what_was_never_added_succeeds_and_changes_nothing(net: BridgeNetwork, how: str) -> None:
    netns, env = BARE_DELS[how]
    conf = net.conf(families=(4, 6), ipMasq=True)
    net.warm(conf)
    before = net.state()
    for _ in range(2):
        outcome = net.run("DEL", conf, "", netns, "eth0", **env)
        assert (outcome.status, outcome.stdout) == (0, "")
    assert not difference(before, net.state())


@pytest.mark.ours_alone
@pytest.mark.parametrize(
    ("kind", "how"),
    [(KINDS[name], how) for name in KINDS for how in (BARE_DELS if name == "bridge" else FOR_ALL)],
    indirect=["kind"],
)
def test_del_with_little_to_go_by_leaves_nothing(net: BridgeNetwork, how: str) -> None:
    """The Go plugins leave the interface and the masquerading when they are not told the namespace."""
    netns, env = BARE_DELS[how]
    conf = net.full()
    net.warm(conf)
    before = net.state()
    net.well("ADD", conf, CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=p")
    for _ in range(2):
        outcome = net.run("DEL", conf, "", netns, "eth0", **env)
        assert (outcome.status, outcome.stdout) == (0, "")
        assert not difference(before, net.state())


@pytest.mark.parametrize(
    ("kind", "full"),
    [
        (BridgeNetwork, False),
        ours_alone(BridgeNetwork, True),
        (PtpNetwork, False),
        ours_alone(PtpNetwork, True),
        *((KINDS[name], False) for name in CHILDREN),
    ],
    indirect=["kind"],
)
def test_del_after_the_namespace_is_gone_leaves_nothing(net: BridgeNetwork, full: bool) -> None:
    """The Go plugins leave the masquerading, since the addresses went with the namespace."""
    conf = net.full() if full else net.conf(families=net.families)
    net.warm(conf)
    before = net.state()
    result = net.well("ADD", conf, net.b).json
    assert len(net.reservations()) == len(net.families)
    net.lab.remove(net.b)
    for _ in range(2):
        net.well("DEL", {**conf, "prevResult": result}, f"b{net.number}")
        net.wait_for_end_of(net.host_end(result))
        assert not difference(before, net.state())


@pytest.mark.ours_alone
@of("bridge", "ptp")
def test_del_does_all_it_can_and_then_tells_what_failed(net: BridgeNetwork, foreign: ForeignIpam) -> None:
    conf = net.full(ipam={"routes": []})
    net.warm(conf)
    before = net.state()
    result = {"ips": [{"address": f"{net.address(4, 9)}/24", "gateway": net.gateway(4)}]}
    foreign.does(f"""[ $CNI_COMMAND = DEL ] && echo '{{"code": 123, "msg": "no way"}}' && exit 1
        echo '{json.dumps(result)}'""")
    theirs = {**conf, "ipam": {"type": foreign.name}}
    path = f"{net.plugins.directory}:{foreign.path.parent}"
    net.well("ADD", theirs, CNI_PATH=path)
    outcome = net.run("DEL", theirs, CNI_PATH=path)
    assert (outcome.code, outcome.json["msg"]) == (123, "no way")
    assert not difference(before, net.state())


# What only the attachment record makes possible


@pytest.mark.ours_alone
@of(*KINDS)
def test_an_add_after_a_killed_one_starts_afresh(net: BridgeNetwork) -> None:
    """A record that still says .adding is what SIGKILL in the middle leaves."""
    conf = net.full()
    net.warm(conf)
    before = net.state()
    net.well("ADD", conf)
    for path in net.records():
        net.do("host", f"mv {path} {path.replace('.json', '.adding')}")
    result = net.well("ADD", conf).json
    assert net.check(conf, result).status == 0
    assert len(net.reservations()) == len(net.families)
    assert {path.rpartition(".")[2] for path in net.records()} == {"json"}
    net.well("DEL", conf)
    assert not difference(before, net.state())


@pytest.mark.ours_alone
@of("bridge", *CHILDREN)
def test_an_add_to_another_namespace_moves_the_attachment(net: BridgeNetwork) -> None:
    conf = net.full()
    net.warm(conf)
    path, before = f"/run/netns/{net.b}", net.state()
    net.well("ADD", conf)
    assert net.run("ADD", conf, netns=path).status == 0
    assert (set(net.links(net.a)), set(net.links(net.b))) == ({"lo"}, {"lo", "eth0"})
    assert net.run("DEL", conf, netns=path).status == 0
    assert not difference(before, net.state())


# CHECK


@of("ptp", *CHILDREN)
def test_check_wants_a_result_of_this_namespace(net: BridgeNetwork) -> None:
    conf = net.conf()
    result = net.well("ADD", conf).json
    assert net.run("CHECK", conf).code in REFUSALS
    assert net.run("CHECK", {**conf, "prevResult": result}, netns=f"/run/netns/{net.b}").code == 999


@of("ptp", *CHILDREN)
def test_check_and_del_know_what_the_go_plugin_made(net: BridgeNetwork, our_bin_dir: Any) -> None:
    """An administrator may change over while containers run."""
    addresses = [
        {"address": f"{net.address(family, 2)}/{PREFIXLEN[family]}", "gateway": net.gateway(family)}
        for family in net.families
    ]
    routes = [{"dst": {4: "0.0.0.0/0", 6: "::/0"}[family]} for family in net.families]
    conf: Conf = {**net.conf(mtu=1400), "ipam": {"type": "static", "addresses": addresses, "routes": routes}}
    ours, theirs = Plugins(OURS, our_bin_dir, ALL), net.plugins
    for net.plugins in (ours, theirs):  # what both keep is there before
        net.warm(conf)
    before = net.state()
    result = net.well("ADD", conf).json
    net.plugins = ours
    outcome = net.check(conf, result)
    assert outcome.status == 0, outcome
    net.well("DEL", {**conf, "prevResult": result})
    assert not difference(before, net.state())


# GC


@pytest.mark.ours_alone
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (BridgeNetwork, "finished"),
        (BridgeNetwork, "killed"),
        (BridgeNetwork, "namespace gone"),
        (PtpNetwork, "finished"),
        # A vlan network has one container at a time
        *(row(name, "finished") for name in CHILDREN if name != "vlan"),
    ],
    indirect=["kind"],
)
def test_gc_removes_the_stale_and_nothing_of_the_valid_or_of_another_network(
    net: BridgeNetwork, other: BridgeNetwork, how: str
) -> None:
    conf, others = net.full(), other.full(ipam={"routes": []})
    if net.plugin == "bridge":
        others |= {"bridge": net.bridge, "isGateway": False}  # even on the same bridge
    net.well("ADD", conf)
    other.well("ADD", others)
    net.b  # noqa: B018  made before the state is taken
    net.well("GC", {**conf, **valid(net.a)})  # with it go chains of subnets that other tests have left
    before, theirs = net.state(), other.state()
    net.well("ADD", conf, net.b)
    if how == "killed":
        record = f"/{net.attachment(net.b)}/{net.plugins.keeper(net.plugin)}.json"
        (path,) = [path for path in net.records() if path.endswith(record)]
        net.do("host", f"mv {path} {path.replace('.json', '.adding')}")
    if how == "namespace gone":
        net.lab.remove(net.b)
        net.lab.add_container(net.b)
    for _ in range(2):
        assert net.well("GC", {**conf, **valid(net.a)}).stdout == ""
        assert not difference(before, net.state())
        assert not difference(theirs, other.state())
    net.well("GC", {**conf, **valid()})
    assert (net.reservations(), set(net.links(net.a))) == ({}, {"lo"})
