"""The firewall plugin's policies between VLANs of one bridge, whose traffic the host routes by `br-a.100` and `br-a.200`.

The development kernel has no VLAN filtering; Debian's have: `make test-kernels` runs these.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conversation import CLIENT, HOST, WEB
from lab import Lab
from runtime import ALL, Plugins

from tests.conftest import OURS
from tests.packets.bridges_site import FAMILIES, Site
from tests.plugins.conftest import need_kind

pytestmark = pytest.mark.debian_kernel


class VlanSite(Site):
    """Both networks are on one bridge, in VLANs of their own; or the second is in none."""

    vlans = "VLANs"

    def conf(self, plugin: str, container_id: str) -> dict[str, object]:
        conf = super().conf(plugin, container_id)
        if plugin != "bridge":
            return conf
        vlan = {"a": 100, "b": 200 if self.vlans == "VLANs" else 0}[container_id[0]]
        return {**conf, "bridge": "br-a", "vlan": vlan}


@pytest.mark.parametrize(
    ("backend", "policy", "networks"),
    [
        ("nftables", "open", "VLANs"),
        ("nftables", "same-bridge", "VLANs"),
        ("nftables", "isolated", "a VLAN and none"),
        ("iptables", "same-bridge", "a VLAN and none"),
        ("iptables", "isolated", "VLANs"),
    ],
)
def test_a_policy_holds_between_vlans(our_bin_dir: Path, backend: str, policy: str, networks: str) -> None:
    with Lab.from_yaml("bridges.yaml") as lab:
        need_kind(lab, "VLAN-filtering bridge")
        site = VlanSite(lab, Plugins(OURS, our_bin_dir, ALL), policy, backend)
        site.vlans = networks
        # Where it is on, frames to the gateway in a VLAN pass the rules of iptables as sent from the bridge to itself
        settings = [f"net.bridge.bridge-nf-call-{name}=0" for name in ("iptables", "ip6tables")]
        lab["host"].run(["sysctl", "-q", "-e", "-w", *settings])
        for container_id in ("a1", "a2", "b1"):
            site.attach(container_id)
            lab.serve(container_id, 80)
        lab.serve("client", 80)
        site.route_from_client()
        for family in FAMILIES:
            here, there = site.address("a1", family), site.address("b1", family)
            across, near = policy == "open", policy != "isolated"
            for source, target in (("b1", here), ("a1", there)):
                assert site.is_reached(source, target, wanted=across) == across
            assert site.is_reached("a2", here, wanted=near) == near
            assert [site.is_reached(who, HOST[family], WEB) for who in ("client", "b1", "a2", "a1")] == [True] * 4
            assert site.is_reached("a1", CLIENT[family])
            assert site.is_reached("client", here)
        for container_id in ("a1", "a2", "b1"):
            site.run("CHECK", "firewall", container_id)
        site.detach("a1")
        for family in FAMILIES:  # what it shared with a2 is still there
            across = policy == "open"
            assert site.is_reached("b1", site.address("a2", family), wanted=across) == across
        # One without its record and list, as after a boot that kept the interfaces
        lab["host"].run(["sh", "-ec", "rm -r /run/cni-py/policies /run/cni-py/attachments/*/firewall.*"])
        for container_id in ("a2", "b1"):
            site.detach(container_id)
        assert site.policies() == ""
        assert "CNI" not in site.rules()
