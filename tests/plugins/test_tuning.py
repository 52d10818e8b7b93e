"""The executable tuning: what it sets, puts back, compares and leaves on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from runtime import ALL, REFUSALS, Plugins
from snapshot import difference

from tests.conftest import GO
from tests.plugins.bridge_network import ours_alone
from tests.plugins.veth_attachment import MAC, Conf, VethAttachment

NEW_MAC = "c2:11:22:33:44:55"
GO_CAN = {"mac": NEW_MAC, "mtu": 1300, "promisc": True, "allmulti": True}  # Debian's 1.1.1
EVERYTHING = {**GO_CAN, "txQLen": 777}
BEFORE = {"mac": MAC, "promisc": False, "mtu": 1500, "allmulti": False, "txQLen": 1000}
SAVED = "/run/cni/tuning"
ALLOW_LIST = "/etc/cni/tuning/allowlist.conf"


@pytest.fixture
def net(shared_lab: Lab, plugins: Plugins) -> Iterator[VethAttachment]:
    attachment = VethAttachment(shared_lab, plugins, "tuning")
    attachment.well("ADD", attachment.conf(mtu=1400))  # makes the folders that stay
    attachment.well("DEL", attachment.conf(mtu=1400))
    yield attachment
    shared_lab["host"].run(["rm", "-rf", "/etc/cni/tuning", SAVED])
    attachment.close()


def settings(net: VethAttachment, ifname: str = "eth0") -> Conf:
    """What the interface is set to, in the words of the configuration."""
    link = net.link(ifname)
    flags = link["flags"]
    return {
        "mac": link["address"],
        "promisc": "PROMISC" in flags,
        "mtu": link["mtu"],
        "allmulti": "ALLMULTI" in flags,
        "txQLen": link.get("txqlen", 0),
    }


def saved(net: VethAttachment) -> dict[str, str]:
    """The files of settings before, by name."""
    return {Path(path).name: text for path, text in net.files(SAVED).items()}


def allow(net: VethAttachment, text: str) -> None:
    net.lab["host"].python(put, ALLOW_LIST, text)


def put(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def sysctl(net: VethAttachment, key: str) -> str:
    return net.inside(f"sysctl -n {key}").strip()


@pytest.mark.parametrize("version", ALL)
def test_with_nothing_to_set_the_result_is_passed_on(net: VethAttachment, version: str) -> None:
    if version not in net.plugins.versions:
        pytest.skip(f"these plugins do not know {version}")
    before = net.state()
    conf = net.conf(version)
    result = net.well("ADD", conf).json
    assert {"dns": {}, **result} == {"dns": {}, **conf["prevResult"]}
    if version >= "0.4.0":
        net.well("CHECK", conf)
    net.well("DEL", conf)
    assert not difference(before, net.state())


@pytest.mark.parametrize("key", [*GO_CAN, *map(ours_alone, ("txQLen", "everything"))])
def test_del_puts_back_what_add_set(net: VethAttachment, key: str) -> None:
    wanted = EVERYTHING if key == "everything" else {key: EVERYTHING[key]}
    before = net.state()
    conf = net.conf("1.0.0", **wanted)
    result = net.well("ADD", conf).json
    assert settings(net) == {**BEFORE, **wanted}
    assert [link["mac"] for link in result["interfaces"]] == ["02:00:00:00:00:02", str(wanted.get("mac", MAC))]
    assert saved(net) == {
        f"{net.id}_eth0.json": json.dumps({name: BEFORE[name] for name in BEFORE if name in wanted}, indent=1)
    }
    net.well("CHECK", {**conf, "prevResult": result})
    for _ in range(2):
        assert net.well("DEL", {**conf, "prevResult": result}).stdout == ""
        assert not difference(before, net.state())


SOURCES: dict[str, tuple[Conf, dict[str, str]]] = {
    "CNI_ARGS over the plugin's own": ({"mac": "02:00:00:00:00:99"}, {"CNI_ARGS": f"MAC={NEW_MAC}"}),
    "CNI_ARGS among unknown ones": ({}, {"CNI_ARGS": f"K8S_POD_NAME=p;MAC={NEW_MAC};IgnoreUnknown=1"}),
    "runtimeConfig over CNI_ARGS": ({"runtimeConfig": {"mac": NEW_MAC}}, {"CNI_ARGS": "MAC=02:00:00:00:00:99"}),
    "args.cni over runtimeConfig": (
        {"args": {"cni": {"mac": NEW_MAC}}, "runtimeConfig": {"mac": "02:00:00:00:00:99"}},
        {},
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_mac_address_may_come_from_the_runtime(net: VethAttachment, source: str) -> None:
    keys, env = SOURCES[source]
    net.well("ADD", net.conf("1.0.0", **keys), **env)
    assert settings(net)["mac"] == NEW_MAC
    net.well("DEL", net.conf("1.0.0", **keys), **env)
    assert settings(net) == BEFORE


@pytest.mark.ours_alone
def test_args_go_over_the_plugins_own_keys(net: VethAttachment) -> None:
    args = {
        "cni": {"mtu": 1310, "promisc": False, "allmulti": False, "txQLen": 9, "sysctl": {"net.core.somaxconn": "501"}}
    }
    net.well("ADD", net.conf("1.0.0", **EVERYTHING, sysctl={"net.core.somaxconn": "500"}, args=args))
    assert settings(net) == {"mac": NEW_MAC, "promisc": False, "mtu": 1310, "allmulti": False, "txQLen": 9}
    assert sysctl(net, "net.core.somaxconn") == "501"


# Sysctls


def test_sysctls_are_set_in_the_container_and_stay(net: VethAttachment) -> None:
    conf = net.conf("1.0.0", sysctl={"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"})
    host_before = net.lab.snapshot("host")
    net.well("ADD", conf)
    assert [sysctl(net, key) for key in ("net.core.somaxconn", "net.ipv4.conf.eth0.arp_filter")] == ["500", "1"]
    assert net.host("sysctl -n net.core.somaxconn").strip() != "500"
    if net.plugins.whose != GO:  # whose CHECK looks for an interface called IFNAME
        net.well("CHECK", conf)
    net.well("DEL", conf)
    assert sysctl(net, "net.core.somaxconn") == "500"
    assert not difference(host_before, net.lab.snapshot("host"))


@pytest.mark.ours_alone
@pytest.mark.parametrize(
    "key", ["net/ipv4/conf/eth0.5/arp_filter", "net.ipv4.conf.eth0/5.arp_filter", "net.ipv4.conf.IFNAME.arp_filter"]
)
def test_an_interface_may_have_a_dot_in_its_name(net: VethAttachment, key: str) -> None:
    net.inside("ip link add eth0.5 type veth peer name other")
    result = net.result(ifname="eth0.5")
    net.well("ADD", net.conf("1.0.0", sysctl={key: "1"}, prevResult=result), ifname="eth0.5")
    assert sysctl(net, "net/ipv4/conf/eth0.5/arp_filter") == "1"


@pytest.mark.ours_alone
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("net.ipv4.tcp_rmem", "4096 131072 6291456"),  # tabs are printed between them
        ("net.ipv4.tcp_rmem", "  4096   131072 6291457 "),
        ("net.ipv4.ip_forward", "0x1"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
        ("net.ipv4.route.flush", "1"),  # can only be written
    ],
)
def test_check_compares_sysctls_as_the_kernel_prints_them(net: VethAttachment, key: str, value: str) -> None:
    conf = net.conf("1.0.0", sysctl={key: value})
    net.well("ADD", conf)
    net.well("CHECK", conf)


@pytest.mark.parametrize(
    "key",
    ["kernel.hostname", "net/../kernel/hostname", "", "net", "net.", ours_alone("net.ipv4..ip_forward"), "/net/core"],
)
def test_sysctls_outside_of_net_are_refused(net: VethAttachment, key: str) -> None:
    before = net.state()
    outcome = net.run("ADD", net.conf("1.0.0", sysctl={key: "x"}))
    assert outcome.code in REFUSALS
    assert not difference(before, net.state())
    net.well("DEL", net.conf("1.0.0", sysctl={key: "x"}))


@pytest.mark.parametrize(
    ("text", "well"),
    [
        ("^net\\.core\\.\n", True),
        ("maxconn", True),
        ("^net\\.ipv6\\.\n\n  ^net\\.core\\.somaxconn$  \n", True),
        *(ours_alone(text, False) for text in ("", "^net\\.ipv6\n", "([\n")),  # younger than Debian's
    ],
)
def test_only_what_the_administrator_lists_may_be_set(net: VethAttachment, text: str, well: bool) -> None:
    allow(net, text)
    before = sysctl(net, "net.core.somaxconn")
    conf = net.conf("1.0.0", sysctl={"net.core.somaxconn": "321"})
    outcome = net.run("ADD", conf)
    assert (outcome.code == 0) if well else (outcome.code in REFUSALS)
    assert sysctl(net, "net.core.somaxconn") == ("321" if well else before)
    net.well("DEL", conf)


@pytest.mark.ours_alone
def test_status_says_whether_the_list_allows_the_sysctls(net: VethAttachment) -> None:
    conf = net.conf("1.1.0", sysctl={"net.core.somaxconn": "321"})
    net.well("STATUS", conf)
    allow(net, "^net\\.ipv4\\.\n")
    outcome = net.run("STATUS", conf)
    assert (outcome.code, "net.core.somaxconn" in outcome.json["msg"]) == (50, True)
    net.well("STATUS", net.conf("1.1.0", mtu=1300))


# What cannot be

REFUSED: dict[str, Conf] = {
    "no MAC address": {"mac": "zz"},
    "a multicast MAC address": {"mac": "01:00:5e:00:00:01", "mtu": 1300},
    "too small an MTU": {"mtu": 10, "mac": NEW_MAC},
    "a negative MTU": {"mtu": -1},
    "a sysctl that is none": {"sysctl": {"net.core.somaxconn": "500", "net.ipv4.nosuch": "1"}},
    "a value that cannot be": {"sysctl": {"net.core.somaxconn": "500", "net.ipv4.ip_forward": "abc"}},
    "a number for a text": {"sysctl": {"net.ipv4.ip_forward": 1}},
    "a text for a number": {"mtu": "1300"},
    "a list for an object": {"sysctl": []},
}


@pytest.mark.ours_alone
@pytest.mark.parametrize("name", REFUSED)
def test_an_add_that_fails_leaves_nothing(net: VethAttachment, name: str) -> None:
    before, queue = net.state(), sysctl(net, "net.core.somaxconn")
    outcome = net.run("ADD", net.conf("1.0.0", **REFUSED[name]))
    assert outcome.code in REFUSALS
    assert "Traceback" not in outcome.stderr
    assert not difference(before, net.state())
    assert sysctl(net, "net.core.somaxconn") == queue


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_without_a_result_before_it_is_an_error(net: VethAttachment, verb: str) -> None:
    conf = net.conf("1.0.0", mtu=1300)
    del conf["prevResult"]
    outcome = net.run(verb, conf)
    assert (outcome.code in REFUSALS, outcome.json["msg"]) == (True, "Required prevResult missing")
    net.well("DEL", conf)


@pytest.mark.ours_alone
def test_a_sysctl_named_twice_is_refused(net: VethAttachment) -> None:
    text = json.dumps(net.conf("1.0.0", sysctl={"net.core.somaxconn": "1", "@": "2"}))
    outcome = net.plugins.run(net.lab, "ADD", "tuning", text.replace("@", "net.core.somaxconn"), net.id)
    assert (outcome.code in REFUSALS, outcome.json["msg"]) == (True, "duplicated sysctl keys are not allowed")


@pytest.mark.parametrize(
    ("wanted", "damage"),
    [
        ({"mtu": 1300}, "ip link set eth0 mtu 1500"),
        ({"mac": NEW_MAC}, "ip link set eth0 address 02:00:00:00:00:77"),
        ({"promisc": True}, "ip link set eth0 promisc off"),
        ({"allmulti": True}, "ip link set eth0 allmulticast off"),
        ours_alone({"txQLen": 777}, "ip link set eth0 txqueuelen 778"),
        ({"sysctl": {"net.ipv4.ip_forward": "1"}}, "sysctl -q -w net.ipv4.ip_forward=0"),
        ({"mtu": 1300}, "ip link delete eth0"),
    ],
)
def test_check_notices_what_was_changed_by_hand(net: VethAttachment, wanted: Conf, damage: str) -> None:
    conf = net.conf("1.0.0", **wanted)
    net.well("ADD", conf)
    net.well("CHECK", conf)
    net.inside(damage)
    assert net.run("CHECK", conf).code == 999


@pytest.mark.ours_alone
def test_check_does_not_mind_what_is_not_configured(net: VethAttachment) -> None:
    """Such as a container that captures packets: the Go plugin's CHECK fails over it."""
    conf = net.conf("1.0.0", mtu=1300, mac=NEW_MAC.upper())
    net.well("ADD", conf)
    net.inside("ip link set eth0 promisc on")
    net.well("CHECK", conf)


# When things are gone, or come twice


@pytest.mark.parametrize("netns", ["", "/run/netns/never-was", "/proc/999999/ns/net"])
def test_del_without_a_namespace_succeeds(net: VethAttachment, netns: str) -> None:
    conf = net.conf("1.0.0", **EVERYTHING)
    for _ in range(2):
        assert net.run("DEL", conf, netns=netns).status == 0


@pytest.mark.ours_alone
@pytest.mark.parametrize("netns", ["", None])
@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_nothing_is_left_when_the_namespace_is_gone(net: VethAttachment, verb: str, netns: str | None) -> None:
    before = net.lab.snapshot("host")
    net.well("ADD", net.conf("1.0.0", **EVERYTHING, sysctl={"net.core.somaxconn": "500"}))
    assert saved(net)
    assert net.records()
    net.lab.remove(net.id)
    keys: Conf = {"cni.dev/valid-attachments": []} if verb == "GC" else {}
    for _ in range(2):
        assert net.run(verb, net.conf("1.1.0", **EVERYTHING, **keys), netns=netns).status == 0
    after = net.lab.snapshot("host")
    assert after["files"] != {}
    assert not saved(net)
    assert not net.records()
    trees_before, trees_after = before["files"], after["files"]
    assert isinstance(trees_before, dict)
    assert isinstance(trees_after, dict)
    trees_before["/run"].pop(net.netns)
    assert trees_before == trees_after


@pytest.mark.ours_alone
def test_gc_leaves_valid_attachments_and_other_networks_alone(net: VethAttachment) -> None:
    conf = net.conf("1.1.0", mtu=1300)
    net.well("ADD", conf)
    valid = {"cni.dev/valid-attachments": [{"containerID": net.id, "ifname": "eth0"}]}
    net.well("GC", {**conf, **valid})
    net.well("GC", {**conf, "name": "another", "cni.dev/valid-attachments": []})
    net.well("GC", conf)
    assert (settings(net)["mtu"], len(saved(net)), len(net.records())) == (1300, 1, 1)
    net.well("GC", {**conf, "cni.dev/valid-attachments": []})
    assert (settings(net)["mtu"], saved(net), net.records()) == (1500, {}, [])


@pytest.mark.ours_alone
def test_another_namespace_of_the_same_name_is_left_as_it_is(net: VethAttachment) -> None:
    """The container was started anew without a DEL: its new interface never had the old one's settings."""
    conf = net.conf("1.0.0", mtu=1300, mac=NEW_MAC)
    net.well("ADD", conf)
    net.lab.remove(net.id)
    net.host("sh -c :")
    net.lab.add_container(net.id)
    net.lab["host"].run(["ip", "link", "delete", net.host_veth])
    net.add_veth("eth0", "02:00:00:00:00:44")
    net.inside("ip link set eth0 mtu 1350")
    net.well("DEL", conf)
    assert settings(net) == {**BEFORE, "mtu": 1350, "mac": "02:00:00:00:00:44"}
    assert not saved(net)
    assert not net.records()


@pytest.mark.ours_alone
def test_a_second_add_keeps_what_was_before_the_first(net: VethAttachment) -> None:
    before = net.state()
    for mtu in (1300, 1300, 1280):
        net.well("ADD", net.conf("1.0.0", mtu=mtu))
    assert json.loads(saved(net)[f"{net.id}_eth0.json"]) == {"mtu": 1500}
    assert net.run("ADD", net.conf("1.0.0", mtu=10)).code in REFUSALS
    net.well("DEL", net.conf("1.0.0", mtu=1280))
    assert not difference(before, net.state())


def test_two_interfaces_of_one_container_are_tuned_apart(net: VethAttachment) -> None:
    net.add_veth("eth1", "02:00:00:00:00:13")
    first, second = net.conf("1.0.0", mtu=1300), net.conf("1.0.0", mtu=1250, prevResult=net.result(ifname="eth1"))
    net.well("ADD", first)
    net.well("ADD", second, ifname="eth1")
    assert len(saved(net)) == 2
    net.well("DEL", first)
    assert [settings(net, ifname)["mtu"] for ifname in ("eth0", "eth1")] == [1500, 1250]
    net.well("DEL", second, ifname="eth1")
    assert settings(net, "eth1")["mtu"] == 1500


@pytest.mark.ours_alone
def test_del_with_a_configuration_that_cannot_be_read_still_puts_things_back(net: VethAttachment) -> None:
    before = net.state()
    net.well("ADD", net.conf("1.0.0", mtu=1300))
    net.well("DEL", net.conf("1.0.0", mtu="1300"))
    assert not difference(before, net.state())


@pytest.mark.ours_alone
@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"mtu": "x", "mac": 5, "promisc": 7, "txQLen": -3, "allmulti": null}']
)
def test_a_damaged_file_of_settings_is_removed(net: VethAttachment, text: str) -> None:
    net.lab["host"].python(put, f"{SAVED}/{net.id}_eth0.json", text)
    net.well("DEL", net.conf("1.0.0", mtu=1300))
    assert settings(net) == BEFORE
    assert not saved(net)


@pytest.mark.ours_alone
@pytest.mark.parametrize("adds", ["go", "ours"])
def test_one_plugin_undoes_the_add_of_the_other(net: VethAttachment, theirs: Plugins, adds: str) -> None:
    first, second = (theirs, net.plugins) if adds == "go" else (net.plugins, theirs)
    conf = net.conf("1.0.0", **GO_CAN, sysctl={"net.core.somaxconn": "500"})
    result = net.run("ADD", conf, plugins=first).json
    for plugins in (first, second):
        assert net.run("CHECK", {**conf, "prevResult": result}, plugins=plugins).status == 0
    assert net.run("DEL", {**conf, "prevResult": result}, plugins=second).status == 0
    assert settings(net) == BEFORE
    assert not saved(net)
    if adds == "ours":  # the record goes with the next GC or DEL
        assert net.run("GC", {**conf, "cniVersion": "1.1.0", "cni.dev/valid-attachments": []}).status == 0
        assert settings(net) == BEFORE
    assert not net.records()


@pytest.mark.ours_alone
@pytest.mark.parametrize("adds", ["go", "ours"])
def test_the_file_of_the_other_is_removed_when_the_namespace_is_gone(
    net: VethAttachment, theirs: Plugins, adds: str
) -> None:
    plugins = theirs if adds == "go" else net.plugins
    conf = net.conf("1.0.0", mtu=1300)
    assert net.run("ADD", conf, plugins=plugins).status == 0
    net.lab.remove(net.id)
    assert net.run("DEL", conf, netns="").status == 0
    assert not saved(net)
