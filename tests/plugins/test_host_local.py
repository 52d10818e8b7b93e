"""The executable host-local: what it answers and what it leaves in its directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni_py.attachment.call import Call
from cni_py.plugins import host_local
from cni_py.protocol.netconf import NetConf

if TYPE_CHECKING:
    from lab import Lab
    from runtime import Outcome, Plugins

    from tests.conftest import Cni

Conf = dict[str, object]
FAMILIES = {
    "ipv4": [[{"subnet": "10.1.2.0/24"}]],
    "ipv6": [[{"subnet": "fd00:1:2::/64"}]],
    "both": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1:2::/64"}]],
}


@pytest.fixture
def conf(tmp_path: Path) -> Callable[..., Conf]:
    """conf(ranges, version, key=value ...): a configuration whose further keys go into `ipam`."""

    def build(ranges: object = FAMILIES["ipv4"], version: str = "1.0.0", name: str = "net1", **ipam: object) -> Conf:
        ipam = {"type": "host-local", "dataDir": str(tmp_path / "data"), "ranges": ranges, **ipam}
        return {"cniVersion": version, "name": name, "type": "bridge", "ipam": ipam}

    return build


def files(tmp_path: Path, name: str = "net1") -> dict[str, str]:
    """The reservations."""
    return {
        path.name: path.read_bytes().decode()
        for path in (tmp_path / "data" / name).iterdir()
        if path.name != "lock" and not path.name.startswith("last_reserved_ip.")
    }


def addresses(outcome: Outcome) -> list[object]:
    assert outcome.status == 0, outcome
    ips = outcome.json["ips"]
    assert isinstance(ips, list)
    return [ip["address"] for ip in ips]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_version_gets_its_addresses_in_its_own_form_and_gives_them_back(
    cni: Cni, plugins: Plugins, conf: Callable[..., Conf], tmp_path: Path, family: str
) -> None:
    expected = [
        text for text, name in (("10.1.2.2/24", "ipv4"), ("fd00:1:2::2/64", "ipv6")) if family in (name, "both")
    ]
    for number, version in enumerate(plugins.versions):
        asked = conf(FAMILIES[family], version, name=f"net{number}", routes=[{"dst": "0.0.0.0/0"}])
        answer = cni("ADD", "host-local", asked)
        assert answer.status == 0, answer
        assert answer.json["cniVersion"] == version
        if version < "0.3.0":
            blocks = [answer.json[key] for key in ("ip4", "ip6") if key in answer.json]
            assert [block["ip"] for block in blocks if isinstance(block, dict)] == expected
        else:
            assert addresses(answer) == expected
            assert ("version" in json.dumps(answer.json["ips"])) == (version < "1.0.0")
        if version >= "0.4.0":
            assert cni("CHECK", "host-local", {**asked, "prevResult": answer.json}).status == 0
        names = {text.partition("/")[0] for text in expected}
        assert files(tmp_path, f"net{number}") == dict.fromkeys(names, "c1\r\neth0")
        for _ in range(2):
            gone = cni("DEL", "host-local", asked, netns="")
            assert (gone.status, gone.stdout) == (0, "")
        assert files(tmp_path, f"net{number}") == {}
        if version >= "0.4.0":
            assert cni("CHECK", "host-local", {**asked, "prevResult": answer.json}).status == 1


@pytest.mark.parametrize("netns", ["", "/run/netns/gone", "/proc/999999/ns/net"])
def test_del_needs_no_namespace_and_nothing_to_delete(cni: Cni, conf: Callable[..., Conf], netns: str) -> None:
    assert cni("DEL", "host-local", conf(), netns=netns).status == 0
    assert cni("ADD", "host-local", conf()).status == 0
    assert cni("DEL", "host-local", conf(), netns=netns).status == 0


def test_del_takes_only_what_this_interface_of_this_container_has(
    cni: Cni, conf: Callable[..., Conf], tmp_path: Path
) -> None:
    for container_id, ifname in (("c1", "eth0"), ("c1", "eth1"), ("c2", "eth0")):
        assert cni("ADD", "host-local", conf(), container_id=container_id, ifname=ifname, netns="/gone").status == 0
    assert cni("DEL", "host-local", conf()).status == 0
    assert sorted(files(tmp_path).values()) == ["c1\r\neth1", "c2\r\neth0"]


def test_del_frees_what_was_added_under_other_ranges(cni: Cni, conf: Callable[..., Conf], tmp_path: Path) -> None:
    assert cni("ADD", "host-local", conf()).status == 0
    assert cni("DEL", "host-local", conf([[{"subnet": "10.55.0.0/24"}]])).status == 0
    assert files(tmp_path) == {}


def test_a_second_add_is_refused_and_changes_nothing(cni: Cni, conf: Callable[..., Conf], tmp_path: Path) -> None:
    assert cni("ADD", "host-local", conf()).status == 0
    again = cni("ADD", "host-local", conf())
    assert again.code == 999
    assert "10.1.2.2 has been allocated to c1, duplicate allocation is not allowed" in str(again.json["msg"])
    assert files(tmp_path) == {"10.1.2.2": "c1\r\neth0"}


def test_requests_come_three_ways_and_a_taken_one_is_refused(
    cni: Cni, conf: Callable[..., Conf], tmp_path: Path
) -> None:
    sets = [[{"subnet": f"10.1.{number}.0/24"}] for number in (2, 3, 4)]
    asked = {**conf(sets), "args": {"cni": {"ips": ["10.1.3.33"]}}, "runtimeConfig": {"ips": ["10.1.4.44/24"]}}
    first = cni("ADD", "host-local", asked, CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=p;IP=10.1.2.22")
    assert addresses(first) == ["10.1.2.22/24", "10.1.3.33/24", "10.1.4.44/24"]
    second = cni("ADD", "host-local", asked, container_id="c2")
    assert "requested IP address 10.1.3.33 is not available in range set 10.1.3.1-10.1.3.254" in str(second.json["msg"])
    elsewhere = cni("ADD", "host-local", conf(), container_id="c3", netns="/gone", CNI_ARGS="IP=192.0.2.1")
    assert "failed to allocate all requested IPs: 192.0.2.1" in elsewhere.json["msg"]
    assert set(files(tmp_path).values()) == {"c1\r\neth0"}


@pytest.mark.parametrize("suffix", ["", "/32"])
def test_an_address_asked_for_has_the_prefix_length_and_the_gateway_of_its_range(
    cni: Cni, conf: Callable[..., Conf], suffix: str
) -> None:
    sets = [[{"subnet": "10.1.2.0/24"}, {"subnet": "10.1.3.0/25", "gateway": "10.1.3.99"}]]
    outcome = cni("ADD", "host-local", {**conf(sets), "runtimeConfig": {"ips": [f"10.1.3.7{suffix}"]}})
    assert outcome.json["ips"] == [{"address": "10.1.3.7/25", "gateway": "10.1.3.99"}]


def test_a_set_that_is_full_gives_back_what_the_others_gave(
    cni: Cni, conf: Callable[..., Conf], tmp_path: Path
) -> None:
    asked = conf([[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/30"}]])
    assert addresses(cni("ADD", "host-local", asked)) == ["10.1.2.2/24", "10.1.3.2/30"]
    failed = cni("ADD", "host-local", asked, container_id="c2")
    assert "no IP addresses available in range set: 10.1.3.1-10.1.3.2" in str(failed.json["msg"])
    assert set(files(tmp_path).values()) == {"c1\r\neth0"}


def test_fifty_at_once_get_fifty_addresses_and_give_them_back(
    cni: Cni, conf: Callable[..., Conf], tmp_path: Path
) -> None:
    def all_at_once(verb: str) -> list[Outcome]:
        with ThreadPoolExecutor(50) as pool:
            return list(pool.map(lambda number: cni(verb, "host-local", conf(), f"x{number}", "/gone"), range(50)))

    added = [addresses(outcome)[0] for outcome in all_at_once("ADD")]
    assert sorted(added, key=str) == sorted(f"10.1.2.{number}/24" for number in range(2, 52))
    assert sorted(files(tmp_path).values()) == sorted(f"x{number}\r\neth0" for number in range(50))
    assert [outcome.status for outcome in all_at_once("DEL")] == [0] * 50
    assert files(tmp_path) == {}


@pytest.mark.ours_alone
def test_excluded_addresses_are_given_only_to_who_asks(cni: Cni, conf: Callable[..., Conf]) -> None:
    asked = conf([[{"subnet": "10.1.2.0/28", "exclude": ["10.1.2.4"]}]], exclude=["10.1.2.2-10.1.2.3", "10.1.2.8/29"])
    assert addresses(cni("ADD", "host-local", asked)) == ["10.1.2.5/28"]
    assert addresses(cni("ADD", "host-local", asked, container_id="c2", CNI_ARGS="IP=10.1.2.3")) == ["10.1.2.3/28"]
    bad = cni("ADD", "host-local", conf(exclude=["10.1.2.9-10.1.2.3"]), container_id="c3", netns="/gone")
    assert bad.code == 7
    assert "10.1.2.9-10.1.2.3" in str(bad.json["msg"])


@pytest.mark.ours_alone
def test_status_says_when_a_set_is_full(cni: Cni, conf: Callable[..., Conf], tmp_path: Path) -> None:
    asked = conf([[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/30"}]], "1.1.0")
    assert cni("STATUS", "host-local", asked).status == 0
    assert not (tmp_path / "data").exists()
    assert cni("ADD", "host-local", asked).status == 0
    assert cni("STATUS", "host-local", asked).code == 50
    assert cni("DEL", "host-local", asked).status == 0
    (tmp_path / "data" / "net1" / "10.1.3.2").write_text("")  # what a power loss leaves
    assert cni("STATUS", "host-local", asked).status == 0


@pytest.mark.ours_alone
def test_gc_removes_the_stale_and_leaves_other_networks_and_strange_files(
    cni: Cni, conf: Callable[..., Conf], tmp_path: Path
) -> None:
    ours, other = conf(version="1.1.0"), conf(version="1.1.0", name="net2")
    for container_id in ("c1", "c2"):
        for asked in (ours, other):
            assert cni("ADD", "host-local", asked, container_id=container_id).status == 0
    directory = tmp_path / "data" / "net1"
    (directory / "readme").write_text("hello")
    (directory / "10.1.2.77").write_text("c2")
    (directory / "10.1.2.78").write_text("c9")
    (directory / "10.1.2.79").write_text("somebody's notes")
    assert cni("GC", "host-local", ours).status == 0  # no list: nothing is known to be stale
    assert len(files(tmp_path)) == 6
    listed = {**ours, "cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}
    assert cni("GC", "host-local", listed).status == 0
    assert files(tmp_path) == {
        "readme": "hello", "10.1.2.3": "c2\r\neth0", "10.1.2.77": "c2", "10.1.2.79": "somebody's notes",
    }  # fmt: skip
    assert len(files(tmp_path, "net2")) == 2


@pytest.mark.ours_alone
def test_after_a_reboot_what_was_reserved_before_it_is_free_again(
    lab: Lab, cni: Cni, conf: Callable[..., Conf], tmp_path: Path
) -> None:
    asked = conf([[{"subnet": "10.1.2.0/29"}]])  # five addresses
    for number in range(5):
        assert cni("ADD", "host-local", asked, container_id=f"x{number}", netns="/gone").status == 0
    assert cni("ADD", "host-local", asked).code == 999
    (tmp_path / "boot_id").write_text("00000000-1111-2222-3333-444444444444\n")
    lab["host"].run(["mount", "--bind", str(tmp_path / "boot_id"), "/proc/sys/kernel/random/boot_id"], check=True)
    lab["host"].run(["rm", "-rf", "/run/cni-py"], check=True)
    assert cni("STATUS", "host-local", {**asked, "cniVersion": "1.1.0"}).status == 0
    assert len(files(tmp_path)) == 5
    assert cni("ADD", "host-local", asked, container_id="x3", netns="/gone").status == 0
    assert list(files(tmp_path).values()) == ["x3\r\neth0"]


@pytest.mark.ours_alone
def test_a_data_dir_that_is_no_path_is_a_configuration_error(cni: Cni, conf: Callable[..., Conf]) -> None:
    assert cni("ADD", "host-local", conf(dataDir="a\0b")).code == 7
    assert cni("DEL", "host-local", conf(dataDir="a\0b")).status == 0  # nothing can be there


def test_a_plan_names_the_addresses_and_an_add_then_takes_them(
    cni: Cni, conf: Callable[..., Conf], tmp_path: Path
) -> None:
    asked = conf(FAMILIES["both"])
    for number in (2, 3):
        call = Call(
            "ADD",
            "host-local",
            NetConf.parse(json.dumps(asked).encode()),
            container_id="c1",
            ifname="eth0",
            dry_run=True,
        )
        result = host_local.add(call)
        plan = [op.describe() for op in call.executor.plan]  # type: ignore[attr-defined]  # a dry run's is a Planner
        assert plan == [
            f"host: reserve {ip} for c1/eth0 in {tmp_path}/data/net1"
            for ip in (f"10.1.2.{number}", f"fd00:1:2::{number}")
        ]
        assert (tmp_path / "data").exists() == (number == 3)
        assert addresses(cni("ADD", "host-local", asked)) == [str(ip.address) for ip in result.ips]
        assert cni("DEL", "host-local", asked).status == 0


@pytest.mark.ours_alone  # Go waits for ever
@pytest.mark.parametrize("path", ["/proc/kmsg", "/dev/zero", "fifo"])
def test_resolv_conf_without_an_end_does_not_hang_the_call(
    cni: Cni, conf: Callable[..., Conf], tmp_path: Path, path: str, way: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    answer = cni("ADD", "host-local", conf(resolvConf=str(tmp_path / path))).json
    if path == "/proc/kmsg" and way != "direct":  # the service's unit leaves it without CAP_SYSLOG
        assert answer["details"] == "Operation not permitted"
        return
    assert ("ips" in answer) == (path != "fifo")  # without a writer it is empty now: no DNS would be the answer
    assert path != "fifo" or "it is a pipe (FIFO)" in answer["details"]
