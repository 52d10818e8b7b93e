"""A bridge's policy stays while a container there needs it, whatever became of the files that list the containers.

a1 and a2 are on one bridge, b1 on another. Something below /run/cni-py is damaged; then a1 goes, by DEL or GC: b1 and a2 must
not reach each other. When a2 is gone too, nothing is left, at the latest after a GC.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from runtime import ALL, Plugins

from cni_py.attachment.naming import Attachment
from tests.conftest import OURS
from tests.packets.bridges_site import PLUGINS, Site

A2 = Attachment("net-a", "a2", "eth0").hex
LISTS = "/run/cni-py/policies"
OF_A = f"{LISTS}/*/*-{b'br-a'.hex()}"
RECORD = f"/run/cni-py/attachments/{A2}/firewall.json"
DAMAGES = {
    "nothing": "true",
    "mark lost": f"rm {OF_A}/{A2}",
    "mark is a FIFO": f"f=$(ls {OF_A}/{A2}); rm $f; mkfifo $f",
    "mark is a folder": f"f=$(ls {OF_A}/{A2}); rm $f; mkdir $f",
    "a list lost": f"rm -r {OF_A}",
    "all lists lost": f"rm -r {LISTS}",
    "list is a FIFO": f"d=$(ls -d {OF_A}); rm -r $d; mkfifo $d",
    "list is a file": f"d=$(ls -d {OF_A}); rm -r $d; echo garbage > $d",
    "list leads elsewhere": f"d=$(ls -d {OF_A}); rm -r $d; ln -s /nowhere $d",
    "lists lost, record damaged": f"rm -r {LISTS}; echo garbage > {RECORD}",
    "record lost": f"rm {RECORD}",
    "all of /run/cni-py lost": "rm -r /run/cni-py/attachments /run/cni-py/policies",
}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.from_yaml("bridges.yaml") as found:
        yield found


def prepared(lab: Lab, our_bin_dir: Path, policy: str, backend: str = "nftables") -> Site:
    site = Site(lab, Plugins(OURS, our_bin_dir, ALL), policy, backend)
    for container_id in ("a1", "a2", "b1"):
        site.attach(container_id)
        lab.serve(container_id, 80)
    return site


def damage(site: Site, command: str) -> None:
    site.lab["host"].run(["sh", "-ec", command], check=True)


def collect(site: Site, network: str, *valid: str) -> None:
    """GC of the whole chain."""
    attachments = [{"containerID": container_id, "ifname": "eth0"} for container_id in valid]
    for plugin in reversed(PLUGINS):
        conf = {**site.conf(plugin, f"{network}9"), "cniVersion": "1.1.0", "cni.dev/valid-attachments": attachments}
        outcome = site.plugins.run(site.lab, "GC", plugin, conf)
        assert outcome.status == 0, outcome.stdout


def holds(site: Site) -> bool:
    """Whether b1 and a2 are apart."""
    ways = (("b1", "a2"), ("a2", "b1"))
    return not any(site.is_reached(source, site.address(target, 4), wanted=False) for source, target in ways)


@pytest.mark.parametrize("verb", ["DEL", "GC"])
@pytest.mark.parametrize("what", DAMAGES)
def test_policy_holds_for_those_who_stay(lab: Lab, our_bin_dir: Path, what: str, verb: str) -> None:
    site = prepared(lab, our_bin_dir, "same-bridge")
    damage(site, DAMAGES[what])
    if verb == "DEL":
        site.detach("a1")
    else:
        collect(site, "a", "a2")
        del site.results["a1"]
    assert holds(site), site.rules()
    collect(site, "b", "b1")  # another network's
    assert holds(site), site.rules()
    site.detach("a2")
    collect(site, "a")
    assert site.policies() == ""
    assert lab["host"].run(["sh", "-c", f"ls {OF_A}"]).stdout == ""
    site.detach("b1")
    assert "firewall br-" not in site.rules()


@pytest.mark.parametrize("what", ["mark lost", "all lists lost", "all of /run/cni-py lost"])
def test_the_last_del_cleans_an_isolated_bridge_after_a_loss(lab: Lab, our_bin_dir: Path, what: str) -> None:
    site = prepared(lab, our_bin_dir, "isolated")
    damage(site, DAMAGES[what])
    site.detach("a1")
    assert holds(site)
    assert "firewall br-a" in site.rules()
    site.detach("a2")
    assert "br-a" not in site.policies()
    assert "net-a" not in site.policies()


def test_a_container_of_another_subnet_on_the_bridge_keeps_its_rules_of_iptables(lab: Lab, our_bin_dir: Path) -> None:
    """They say which addresses are allowed, not which bridge they are on."""

    class TwoSubnets(Site):
        def conf(self, plugin: str, container_id: str) -> dict[str, object]:
            conf = super().conf(plugin, container_id)
            if plugin == "bridge" and container_id == "a2":
                ranges = [[{"subnet": "203.0.113.0/24"}]]
                ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
                conf |= {"ipam": ipam, "forceAddress": True}
            return conf

    site = TwoSubnets(lab, Plugins(OURS, our_bin_dir, ALL), "same-bridge", "iptables")
    for container_id in ("a1", "a2", "b1"):
        site.attach(container_id)
        lab.serve(container_id, 80)
    assert holds(site)
    site.detach("a1")
    assert holds(site)
    site.run("CHECK", "firewall", "a2")
    site.detach("a2")
    assert "br-b" in site.policies()
    assert "br-a" not in site.policies()


def test_two_that_leave_at_once_leave_nothing(lab: Lab, our_bin_dir: Path) -> None:
    """When the last firewall goes, the port of the one before may still be there."""
    site = prepared(lab, our_bin_dir, "same-bridge")
    for plugin in reversed(PLUGINS):
        for container_id in ("a1", "a2"):
            site.run("DEL", plugin, container_id)
    assert site.policies() == ""
