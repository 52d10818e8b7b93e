"""The executable loopback: lo is up, and says so in the form of every version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from lab import Lab
from runtime import FORMS, Outcome, Plugins
from snapshot import difference

from tests.plugins.bridge_network import Conf, ours_alone

LO = {"name": "lo", "mac": "00:00:00:00:00:00"}


class Loopback:
    """Runs loopback for a container of its own, called `lo1`."""

    def __init__(self, lab: Lab, plugins: Plugins) -> None:
        self.lab = lab
        self.plugins = plugins
        self.netns = "/run/netns/lo1"
        self.ifnames: set[str] = set()
        lab.add_container("lo1")
        lab["lo1"].run(["ip", "link", "set", "lo", "down"], check=True)

    def run(self, verb: str, conf: Conf, netns: str | None = None, ifname: str = "lo") -> Outcome:
        self.ifnames.add(ifname)
        return self.plugins.run(self.lab, verb, "loopback", conf, "lo1", netns, ifname)

    def well(self, verb: str, conf: Conf) -> Outcome:
        outcome = self.run(verb, conf)
        assert outcome.status == 0, outcome
        return outcome

    @property
    def is_up(self) -> bool:
        shown = self.lab["lo1"].run(["ip", "-json", "link", "show", "lo"], check=True).stdout
        return "UP" in json.loads(shown)[0]["flags"]

    def state(self) -> dict[str, object]:
        return {name: self.lab.snapshot(name) for name in ("host", "lo1") if name in self.lab.nodes}


@pytest.fixture
def loopback(shared_lab: Lab, plugins: Plugins) -> Iterator[Loopback]:
    runner = Loopback(shared_lab, plugins)
    runner.well("ADD", conf())  # makes the folders that stay
    runner.well("DEL", conf())
    runner.lab["lo1"].run(["ip", "link", "set", "lo", "down"], check=True)
    yield runner
    for ifname in list(runner.ifnames):
        runner.run("DEL", conf(), ifname=ifname)
    if "lo1" in shared_lab.nodes:
        shared_lab.remove("lo1")


def conf(version: str = "1.0.0", **keys: object) -> Conf:
    return {"cniVersion": version, "name": "cni-loopback", "type": "loopback", **keys}


@pytest.mark.parametrize("version", FORMS)
def test_versions_get_lo_up_and_del_takes_it_down(loopback: Loopback, version: str) -> None:
    if version not in loopback.plugins.versions:
        pytest.skip(f"these plugins do not know {version}")
    before = loopback.state()
    result = loopback.well("ADD", conf(version)).json
    assert loopback.is_up
    assert result["cniVersion"] == version
    if "ips" in result:
        assert result["interfaces"] == [{**LO, "sandbox": loopback.netns}]
        assert [(ip["address"], ip["interface"]) for ip in result["ips"]] == [("127.0.0.1/8", 0), ("::1/128", 0)]
    else:  # the Go plugin has the newer form under the old versions too
        assert version < "0.3.0"
        assert [result[key]["ip"] for key in ("ip4", "ip6")] == ["127.0.0.1/8", "::1/128"]
    if version >= "0.4.0":
        loopback.well("CHECK", conf(version, prevResult=result))
    for _ in range(2):
        assert loopback.well("DEL", conf(version)).stdout == ""
        assert not difference(before, loopback.state())


@pytest.mark.parametrize("ifname", ["lo", "eth0", "anything"])
def test_the_interface_is_lo_whatever_its_name_is_said_to_be(loopback: Loopback, ifname: str) -> None:
    result = loopback.run("ADD", conf(), ifname=ifname).json
    assert result["interfaces"][0]["name"] == "lo"
    assert loopback.is_up


@pytest.mark.parametrize("netns", ["", "/run/netns/never-was", "/proc/999999/ns/net"])
def test_del_without_a_namespace_succeeds(loopback: Loopback, netns: str) -> None:
    before = loopback.state()
    for _ in range(2):
        assert loopback.run("DEL", conf(), netns=netns).status == 0
    assert not difference(before, loopback.state())


def test_del_after_the_namespace_is_gone_leaves_nothing(loopback: Loopback) -> None:
    loopback.well("ADD", conf())
    loopback.lab.remove("lo1")
    for _ in range(2):
        loopback.well("DEL", conf())
    files: Any = loopback.lab.snapshot("host")["files"]
    assert not [path for path in files["/run"] if path.startswith("/run/cni-py/attachments/")]


def test_check_needs_lo_to_be_up_and_leaves_it_as_it_is(loopback: Loopback) -> None:
    result = loopback.well("ADD", conf()).json
    loopback.lab["lo1"].run(["ip", "link", "set", "lo", "down"], check=True)
    outcome = loopback.run("CHECK", conf(prevResult=result))
    assert (outcome.code, "loopback interface is down" in outcome.json["msg"]) == (999, True)
    assert not loopback.is_up


def test_a_second_add_changes_nothing(loopback: Loopback) -> None:
    first = loopback.well("ADD", conf()).json
    before = loopback.state()
    assert loopback.well("ADD", conf()).json == first
    assert not difference(before, loopback.state())


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_the_result_of_the_plugin_before_is_passed_on(loopback: Loopback, version: str) -> None:
    family = {"version": "4"} if version < "1.0.0" else {}
    earlier = {
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": loopback.netns}],
        "ips": [{**family, "address": "192.0.2.2/24", "interface": 0}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    assert loopback.well("ADD", conf(version, prevResult=earlier)).json == earlier
    assert loopback.is_up


@pytest.mark.parametrize("prev_result", ["text", {"cniVersion": "1.0.0", "ips": [{"address": "no"}]}])
def test_a_result_before_that_is_none_is_an_error(loopback: Loopback, prev_result: object) -> None:
    outcome = loopback.run("ADD", conf(prevResult=prev_result))
    assert outcome.status == 1
    assert "Traceback" not in outcome.stderr
    if loopback.plugins.whose == "ours":
        assert not loopback.is_up


@pytest.mark.parametrize("netns", ["/run/netns/none", "/etc/passwd"])
def test_an_add_to_what_is_no_namespace_fails(loopback: Loopback, netns: str) -> None:
    outcome = loopback.run("ADD", conf(), netns=netns)
    assert outcome.status == 1
    assert netns in outcome.json["msg"]


@pytest.mark.ours_alone
@pytest.mark.parametrize("verb", ["GC", "STATUS"])
def test_gc_and_status_have_nothing_to_do(loopback: Loopback, verb: str) -> None:
    loopback.well("ADD", conf())
    before = loopback.state()
    keys = {"cni.dev/valid-attachments": [{"containerID": "lo1", "ifname": "lo"}]} if verb == "GC" else {}
    assert loopback.well(verb, conf("1.1.0", **keys)).stdout == ""
    assert not difference(before, loopback.state())


@pytest.mark.parametrize("address", ["192.0.2.1/32", ours_alone("2001:db8::1/128")])
def test_an_address_of_another_kind_first_on_lo_is_an_error(loopback: Loopback, address: str) -> None:
    loopback.lab["lo1"].run(["ip", "address", "flush", "dev", "lo"], check=True)
    loopback.lab["lo1"].run(["ip", "address", "add", address, "dev", "lo"], check=True)
    outcome = loopback.run("ADD", conf())
    assert outcome.status == 1
    assert "non-loopback" in outcome.json["msg"]
    if loopback.plugins.whose == "ours":
        assert not loopback.is_up


@pytest.mark.ours_alone
@pytest.mark.parametrize("override", ["1", "true", "TRUE"])
def test_the_plugins_own_namespace_may_be_asked_for(shared_lab: Lab, plugins: Plugins, override: str) -> None:
    env = {"CNI_NETNS": "/proc/self/ns/net", "CNI_NETNS_OVERRIDE": override}
    for verb in ("ADD", "DEL"):
        outcome = plugins.run(shared_lab, verb, "loopback", conf(), "self", None, "lo", **env)
        assert outcome.status == 0, outcome
    shared_lab["host"].run(["ip", "link", "set", "lo", "up"], check=True)
