"""The firewall plugin: who reaches whom under each policy, with either backend, and where FORWARD drops."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversation import CLIENT, HOST, WEB
from lab import Lab
from runtime import ALL, Plugins

from tests.conftest import OURS
from tests.packets.bridges_site import BACKENDS, FAMILIES, POLICIES, Site
from tests.packets.conftest import together


@pytest.fixture(
    scope="module",
    params=together(
        "firewall", *itertools.product(BACKENDS, POLICIES, "0"), *itertools.product(BACKENDS, POLICIES[1:], "1")
    ),
    ids=lambda param: "-".join([*param[:2], f"br_nf={param[2]}"]),
)
def site(request: pytest.FixtureRequest, our_bin_dir: Path) -> Iterator[Site]:
    backend, policy, bridge_nf = request.param
    with Lab.from_yaml("bridges.yaml") as lab:
        found = Site(lab, Plugins(OURS, our_bin_dir, ALL), policy, backend)
        settings = [f"net.bridge.bridge-nf-call-{name}={bridge_nf}" for name in ("iptables", "ip6tables")]
        lab["host"].run(["sysctl", "-q", "-w", *settings], check=True)
        for container_id in ("a1", "a2", "b1"):
            found.attach(container_id)
            lab.serve(container_id, 80)
        lab.serve("client", 80)
        found.route_from_client()
        yield found


@pytest.mark.parametrize("family", FAMILIES)
def test_bridges_reach_each_other_only_under_the_open_policy(site: Site, family: int) -> None:
    wanted = site.policy == "open"
    for source, target in (("b1", "a1"), ("a1", "b1")):
        assert site.is_reached(source, site.address(target, family), wanted=wanted) == wanted, source


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_reach_each_other_unless_isolated(site: Site, family: int) -> None:
    wanted = site.policy != "isolated"
    assert site.is_reached("a2", site.address("a1", family), wanted=wanted) == wanted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("source", ["client", "b1", "a2", "a1"])
def test_published_port_is_reached_from_everywhere(site: Site, source: str, family: int) -> None:
    assert site.is_reached(source, HOST[family], WEB)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_way_out_and_the_way_in_are_open(site: Site, family: int) -> None:
    """Policies are between bridges: the reference's too."""
    assert site.is_reached("a1", CLIENT[family])
    assert site.is_reached("client", site.address("a1", family))


def test_check_and_a_second_add_are_content(site: Site) -> None:
    before = site.rules()
    site.run("CHECK", "firewall", "a1")
    site.run("ADD", "firewall", "a1")
    assert site.rules() == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_left_after_the_last(backend: str, policy: str, our_bin_dir: Path) -> None:
    with Lab.from_yaml("bridges.yaml") as lab:
        site = Site(lab, Plugins(OURS, our_bin_dir, ALL), policy, backend)
        for container_id in ("a1", "a2"):
            site.attach(container_id)
        held = site.policies()
        site.detach("a1")
        site.run("CHECK", "firewall", "a2")  # what they share is still there
        site.detach("a2")
        assert (held != "") == (policy != "open")
        assert site.policies() == ""
        assert "CNI" not in site.rules()
        assert lab["host"].run(["find", "/run/cni-py", "-type", "f", "-not", "-path", "*/lock/*"]).stdout == ""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_traffic_passes_where_forward_drops(backend: str, family: int, our_bin_dir: Path) -> None:
    with Lab.from_yaml("bridges.yaml") as lab:
        for tool in ("iptables", "ip6tables"):
            lab["host"].run([tool, "-P", "FORWARD", "DROP"], check=True)
        site = Site(lab, Plugins(OURS, our_bin_dir, ALL), "same-bridge", backend)
        for container_id in ("a1", "b1"):
            site.attach(container_id)
        lab.serve("a1", 80)
        lab.serve("client", 80)
        site.route_from_client()
        assert site.is_reached("a1", CLIENT[family])
        for source in ("client", "b1", "a1"):
            assert site.is_reached(source, HOST[family], WEB), source
        assert not site.is_reached("client", site.address("a1", family), wanted=False)  # what the policy is for
        site.run("CHECK", "firewall", "a1")
        for container_id in ("a1", "b1"):
            site.detach(container_id)
        assert "CNI" not in site.rules()
        assert lab["host"].run(["iptables", "-S", "FORWARD"]).stdout == "-P FORWARD DROP\n"


def test_a_policy_of_drop_that_came_later_is_seen_and_answered(our_bin_dir: Path) -> None:
    """Docker may be started after the containers: CHECK says so, `cni-py restore` mends it."""
    with Lab.from_yaml("bridges.yaml") as lab:
        site = Site(lab, Plugins(OURS, our_bin_dir, ALL), "open", "nftables")
        site.attach("a1")
        lab["host"].run(["iptables", "-P", "FORWARD", "DROP"], check=True)
        checked = site.plugins.run(
            lab, "CHECK", "firewall", {**site.conf("firewall", "a1"), "prevResult": site.results["a1"]}, "a1"
        )
        assert "FORWARD" in checked.json["msg"]
        lab["host"].run([str(Path(sys.executable).with_name("cni-py")), "restore"], check=True)
        lab.serve("client", 80)
        assert site.is_reached("a1", CLIENT[4])


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_backend_in_the_configuration_is_no_difference_to_check(backend: str, our_bin_dir: Path) -> None:
    """It holds from the next ADD on."""
    with Lab.from_yaml("bridges.yaml") as lab:
        site = Site(lab, Plugins(OURS, our_bin_dir, ALL), "same-bridge", backend)
        site.attach("a1")
        (site.backend,) = set(BACKENDS) - {backend}
        site.run("CHECK", "firewall", "a1")
        site.detach("a1")
        assert site.policies() == ""
        assert "CNI" not in site.rules()


def test_administrators_rules_come_first_and_stay(our_bin_dir: Path) -> None:
    with Lab.from_yaml("bridges.yaml") as lab:
        site = Site(lab, Plugins(OURS, our_bin_dir, ALL), "open", "iptables")
        for words in ("-N CNI-ADMIN", "-A CNI-ADMIN -d 198.51.100.7/32 -j REJECT"):
            lab["host"].run(["iptables", *words.split()], check=True)
        site.attach("a1")
        lab.serve("client", 80)
        assert not site.is_reached("a1", CLIENT[4], wanted=False)
        assert site.is_reached("a1", CLIENT[6])
        site.detach("a1")
        left = lab["host"].run(["iptables", "-S"]).stdout
        assert "-A CNI-ADMIN -d 198.51.100.7/32" in left
        assert "CNI-FORWARD" not in left


def test_gc_takes_out_what_lost_its_record(our_bin_dir: Path) -> None:
    with Lab.from_yaml("bridges.yaml") as lab:
        site = Site(lab, Plugins(OURS, our_bin_dir, ALL), "isolated", "nftables")
        site.attach("a1")
        lab["host"].run(["rm", "-r", "/run/cni-py/attachments"], check=True)
        conf = {**site.conf("firewall", "a1"), "cniVersion": "1.1.0", "cni.dev/valid-attachments": []}
        outcome = site.plugins.run(lab, "GC", "firewall", conf)
        assert outcome.status == 0, outcome.stdout
        assert site.policies() == ""
