"""chain against the same plugins run one by one: the same result and state of the host, and each undoes the other's work."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from runtime import Plugins
from snapshot import difference

from cni_py.version import spoken_by
from tests.plugins.two_ways import CHAIN, LIST, OTHER, WAYS, TwoWays, read

pytestmark = [pytest.mark.ours_alone, pytest.mark.unchained]
COMMAND = Path(sys.executable).with_name("cni-py")
ways = pytest.mark.parametrize("form", WAYS)
PASS_ON = "python3 -c 'import json,sys; print(json.dumps(json.load(open(sys.argv[1]))[\"prevResult\"]))' "


@pytest.fixture
def net(shared_lab: Lab, plugins: Plugins) -> Iterator[TwoWays]:
    network = TwoWays(shared_lab, plugins)
    yield network
    network.close()


# The same as a list


def test_every_version_has_the_result_and_the_state_of_a_list(net: TwoWays) -> None:
    for net.version in ("0.2.0", "0.4.0", "1.1.0"):  # one of each form
        net.members = [net.bridge(), net.portmap(), net.tuning()]
        if net.version in spoken_by("firewall"):
            net.members[2:2] = [{"type": "firewall", "ingressPolicy": "same-bridge"}]
        net.warm()
        before = net.state()
        found: dict[str, Any] = {}
        for form in WAYS:
            net.well("ADD", form)
            found[form] = net.result, net.state(records=False)
            if net.version >= "0.4.0":
                net.well("CHECK", form)
            if net.version < "0.4.0":
                net.result = None  # as libcni has it
            net.well("DEL", form)
            assert not difference(before, net.state()), f"{net.version} {form}"
        assert found[LIST][0] == found[CHAIN][0], net.version
        assert not difference(found[LIST][1], found[CHAIN][1])


def test_there_is_one_record(net: TwoWays) -> None:
    net.well("ADD", CHAIN)
    assert net.records() == ["chain.json"]
    net.well("DEL", CHAIN)
    assert net.records() == []


# Changing over while containers run


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@ways
def test_a_network_changes_over_with_containers_running(net: TwoWays, form: str, backend: str) -> None:
    net.members[0] |= {"ipMasqBackend": backend}
    net.members[1] |= {"backend": backend}
    net.members[2] |= {"backend": backend, "ingressPolicy": "same-bridge"}
    net.warm()
    before = net.state()
    for known in (True, False):
        net.well("ADD", form)
        net.well("CHECK", OTHER[form])
        if not known:
            net.result = None
        net.well("DEL", OTHER[form], **({} if known else {"CNI_NETNS": ""}))
        net.well("DEL", OTHER[form])
        assert not difference(before, net.state())


@ways
def test_garbage_collection_knows_both(net: TwoWays, form: str) -> None:
    net.warm()
    net.gc(LIST)  # with it go chains of subnets that other tests have left
    before = net.state()
    for collecting in WAYS:
        net.well("ADD", form)
        with_one = net.state()
        net.gc(collecting, net.id)
        assert not difference(with_one, net.state())
        net.result = None
        net.gc(collecting)
        assert not difference(before, net.state())


def test_garbage_collection_runs_every_plugin_that_can_be_run(net: TwoWays, tmp_path: Path) -> None:
    net.members = [net.bridge(), {"type": "nowhere"}, {"type": "../x"}, {"type": "theirs"}]
    path = net.script(tmp_path / "x", "theirs", "")
    outcome = net.run("GC", {**net.confs(CHAIN)[0], "cni.dev/valid-attachments": []}, CNI_PATH=path)
    assert outcome.json["msg"].startswith('plugin type="nowhere" failed (gc): failed to find plugin')
    assert "invalid plugin name: ../x" in outcome.json["details"]
    assert (tmp_path / "x/calls").read_text().split() == ["GC"]


@ways
def test_a_killed_add_is_taken_back_by_the_other_way(net: TwoWays, form: str) -> None:
    """Its record still says .adding."""
    net.warm()
    before = net.state()
    for verb in ("ADD", "DEL"):
        net.well("ADD", form)
        rename = f'for f in $(grep -l {net.name} -r /run/cni-py/attachments); do mv "$f" "${{f%json}}adding"; done'
        net.lab["host"].run(["sh", "-c", rename], check=True)
        if verb == "ADD":
            net.well("ADD", OTHER[form])
            net.well("CHECK", OTHER[form])
        net.well("DEL", OTHER[form])
        assert not difference(before, net.state())


@ways
def test_del_without_a_readable_record_finds_what_is_marked(net: TwoWays, form: str) -> None:
    net.warm()
    before = net.state()
    for damage in ("rm", "truncate -s 99"):
        net.well("ADD", form)
        net.lab["host"].run(["sh", "-c", f"{damage} /run/cni-py/attachments/*/*.json"], check=True)
        net.well("DEL", CHAIN)
        assert not difference(before, net.state())


def test_restore_puts_back_what_a_flush_took(net: TwoWays) -> None:
    net.well("ADD", CHAIN)
    net.lab["host"].run(["nft", "flush", "ruleset"], check=True)
    assert net.every("CHECK", CHAIN)[-1].status == 1
    net.lab["host"].run([str(COMMAND), "restore"], check=True)
    net.well("CHECK", CHAIN)
    net.well("DEL", CHAIN)


# Lists of all kinds


def test_a_plugin_may_come_twice_and_leave_the_list(net: TwoWays) -> None:
    net.members += [{"type": "tuning", "mac": "c2:11:22:33:44:55"}]
    net.warm()
    before = net.state()
    net.well("ADD", CHAIN)
    assert net.result is not None
    assert net.result["interfaces"][2]["mac"] == "c2:11:22:33:44:55"
    net.well("CHECK", CHAIN)
    del net.members[1]  # portmap
    net.well("DEL", CHAIN)
    assert not difference(before, net.state())


def test_a_list_may_have_plugins_beside_a_chain_and_two_chains(net: TwoWays) -> None:
    net.warm()
    before = net.state()
    first, *others = net.confs(LIST)
    for split in ([[first], others], [[first, others[0]], others[1:]]):
        prev: dict[str, Any] = {}
        chains = [TwoWays.chained(part) for part in split]
        for conf in chains:
            outcome = net.run("ADD", {**conf, **prev})
            assert outcome.status == 0, outcome
            prev = {"prevResult": outcome.json}
        for conf in chains[::-1]:
            assert net.run("DEL", {**conf, **prev}).status == 0
        assert not difference(before, net.state())


# Plugins of others


def test_a_plugin_of_others_gets_what_libcni_would_give_it(net: TwoWays, tmp_path: Path) -> None:
    theirs: dict[str, Any] = {"type": "theirs", "key": [1, {"b": 2}], "runtimeConfig": {"mac": "02:00:00:00:00:09"}}
    net.members[1:] = [theirs, net.tuning()]
    body = f'[ "$CNI_COMMAND" = ADD ] && {PASS_ON}{tmp_path}/SIDE/ADD.json; exit 0'
    asked: dict[str, Any] = {}
    for form in WAYS:
        folder = tmp_path / form
        path = net.script(folder, "theirs", body.replace("SIDE", form))
        net.well("ADD", form, CNI_PATH=path)
        net.well("CHECK", form, CNI_PATH=path)
        net.well("DEL", form, CNI_PATH=path)
        environment = (folder / "environment").read_text().replace(str(folder), "FOLDER")
        stdins = {verb: read(folder / f"{verb}.json") for verb in ("ADD", "CHECK", "DEL")}
        for stdin in stdins.values():
            assert stdin.pop("capabilities", {"mac": True}) == {"mac": True}
        asked[form] = environment, (folder / "calls").read_text(), stdins
    assert asked[LIST] == asked[CHAIN]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_failure_anywhere_undoes_the_whole_list(net: TwoWays, tmp_path: Path, place: int) -> None:
    net.warm()
    before = net.state()
    net.members.insert(1, {"type": "theirs"})
    net.members.insert(1 + place, {"type": "broken"})
    pass_on = f'[ "$CNI_COMMAND" = ADD ] && {PASS_ON}{tmp_path}/theirs/ADD.json; exit 0'
    error = json.dumps({"code": 123, "msg": "no way", "details": "none"})
    fail = f"[ $CNI_COMMAND = DEL ] && exit; echo '{error}'; exit 1"
    path = net.script(tmp_path / "theirs", "theirs", pass_on)
    path += ":" + net.script(tmp_path / "broken", "broken", fail).rpartition(":")[2]
    outcome = net.add(CHAIN, CNI_PATH=path)
    assert outcome.json == {"code": 123, "msg": 'plugin type="broken" failed (add): no way', "details": "none"}
    assert not difference(before, net.state())
    assert (tmp_path / "broken/calls").read_text().split() == ["ADD", "DEL"]
    assert not place or (tmp_path / "theirs/calls").read_text().split() == ["ADD", "DEL"]


def test_an_add_after_a_killed_one_takes_back_what_others_made(net: TwoWays, tmp_path: Path) -> None:
    net.warm()
    net.members = [{"type": "theirs"}, net.bridge()]
    before = net.state()
    body = """[ $CNI_COMMAND = ADD ] && echo '{"cniVersion": "1.1.0"}'; exit 0"""
    path = net.script(tmp_path / "x", "theirs", body)
    for _ in range(2):
        net.well("ADD", CHAIN, CNI_PATH=path)
        rename = f'for f in $(grep -l {net.name} -r /run/cni-py/attachments); do mv "$f" "${{f%json}}adding"; done'
        net.lab["host"].run(["sh", "-c", rename], check=True)
    net.well("DEL", CHAIN, CNI_PATH=path)
    assert (tmp_path / "x/calls").read_text().split() == ["ADD", "DEL", "ADD", "DEL"]
    assert not difference(before, net.state())


def test_the_first_del_that_fails_ends_it_and_it_can_be_repeated(net: TwoWays, tmp_path: Path) -> None:
    net.warm()
    before = net.state()
    net.members.insert(3, {"type": "theirs"})
    body = f"[ $CNI_COMMAND = ADD ] && {PASS_ON}{tmp_path}/x/ADD.json; [ $CNI_COMMAND = ADD -o -e {tmp_path}/x/now ]"
    path = net.script(tmp_path / "x", "theirs", body)
    net.well("ADD", CHAIN, CNI_PATH=path)
    outcome = net.every("DEL", CHAIN, CNI_PATH=path)[0]
    assert outcome.json["msg"].startswith('plugin type="theirs" failed (del): netplugin failed')
    assert net.result is not None
    assert net.every("CHECK", LIST, net.confs(LIST)[:2])[-1].status == 0  # no address is free yet, no port closed
    (tmp_path / "x/now").touch()
    net.well("DEL", CHAIN, CNI_PATH=path)
    assert not difference(before, net.state())


def test_a_port_in_use_is_told_with_its_code(net: TwoWays, shared_lab: Lab, plugins: Plugins) -> None:
    other = TwoWays(shared_lab, plugins)
    try:
        other.warm()
        net.well("ADD", CHAIN)
        before = other.state()
        other.members[1]["runtimeConfig"] = net.members[1]["runtimeConfig"]
        outcome = other.add(CHAIN)
        assert outcome.code == 110
        assert outcome.json["msg"].startswith('plugin type="portmap" failed (add): ')
        assert f"{net.name}/{net.id}" in f"{outcome.json}"
        assert not difference(before, other.state())
    finally:
        net.well("DEL", CHAIN)
        other.close()


# Configurations that cannot be run

WRONG: dict[str, tuple[dict[str, object], int, str]] = {
    "no plugins": ({}, 7, 'chain needs "plugins"'),
    "none": ({"plugins": []}, 7, 'chain needs "plugins"'),
    "a text": ({"plugins": "bridge"}, 6, "plugins must be a list"),
    "no objects": ({"plugins": ["bridge"]}, 6, "an element of plugins must be an object"),
    "no type": ({"plugins": [{"bridge": "x"}]}, 7, 'plugin 1 of the chain: it has no "type"'),
    "a path": ({"plugins": [{"type": "../bridge"}]}, 7, "invalid plugin name: ../bridge"),
    "a chain": (
        {"plugins": [{"type": "loopback"}, {"type": "chain"}]},
        7,
        "plugin 2 of the chain: a chain cannot hold",
    ),
    "not there": ({"plugins": [{"type": "nowhere"}]}, 7, 'failed to find plugin "nowhere"'),
    "capability": (
        {"plugins": [{"type": "portmap", "capabilities": {"portMappings": True}}]},
        7,
        "portmap has the capability portMappings, and the chain has not",
    ),
    "a wrong key": ({"plugins": [{"type": "loopback", "dns": 5}]}, 6, 'plugin type="loopback" failed (add): dns'),
    "an old version": ({"cniVersion": "0.3.1", "plugins": [{"type": "firewall"}]}, 1, "incompatible CNI versions"),
    "a thousand": ({"plugins": [{"type": "tuning"}] * 1000}, 7, "Required prevResult missing"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_list_is_refused_before_anything_is_done(net: TwoWays, what: str) -> None:
    keys, code, text = WRONG[what]
    net.well("DEL", LIST)  # makes the folder of locks
    before = net.state()
    conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": net.name, "type": "chain", **keys}
    outcome = net.run("ADD", conf)
    assert (outcome.code, text in outcome.json["msg"]) == (code, True), outcome
    assert net.run("DEL", conf).status == (1 if what == "not there" else 0)
    assert not difference(before, net.state())


def test_hundreds_of_plugins_are_run(net: TwoWays) -> None:
    net.members = [net.bridge(), *[{"type": "tuning", "mtu": 1300 + number} for number in range(200)]]
    net.well("ADD", CHAIN)
    net.well("DEL", CHAIN)
    assert net.records() == []


def test_switches_of_a_list_count(net: TwoWays) -> None:
    conf = net.confs(CHAIN)[0]
    assert net.run("CHECK", {**conf, "disableCheck": True}).status == 0
    assert net.run("CHECK", conf).status == 1
    net.well("ADD", CHAIN)
    kept = net.state()
    assert net.run("GC", {**conf, "disableGC": True, "cni.dev/valid-attachments": []}).status == 0
    assert not difference(kept, net.state())
    net.well("DEL", CHAIN)
