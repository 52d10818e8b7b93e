"""Which subnets are told to be somebody else's already."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path

import pytest

from cni_py.commands import overlaps
from cni_py.protocol import conflist


def write(folder: Path, name: str, *subnets: str, kind: str = "bridge") -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in subnets]}
    plugins = [{"type": kind, "ipam": ipam}]
    (folder / f"{name}.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": plugins}))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[tuple[overlaps.Subnet, str]]:
    """A host with a LAN and a VPN."""
    held: list[tuple[overlaps.Subnet, str]] = [
        (ip_network("198.51.100.0/24"), "lan0, an interface of this host"),
        (ip_network("10.0.0.0/8"), "vpn0, an interface of this host"),
        (ip_network("2001:db8:1::/64"), "lan0, an interface of this host"),
    ]
    monkeypatch.setattr(overlaps, "of_host", lambda _own=(): held)
    return held


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("subnet", "says"),
    [
        (
            "10.87.0.0/16",
            ["subnet 10.87.0.0/16 of network mine overlaps with 10.0.0.0/8 of vpn0, an interface of this host"],
        ),
        ("198.51.100.128/25", ["198.51.100.0/24 of lan0, an interface of this host"]),
        ("198.51.0.0/16", ["198.51.100.0/24 of lan0, an interface of this host"]),
        ("2001:db8::/32", ["2001:db8:1::/64 of lan0, an interface of this host"]),
        ("192.0.2.0/25", ["192.0.2.0/24 of network other ("]),
        ("203.0.113.0/24", []),
        ("2001:db8:2::/64", []),
    ],
)
def test_what_overlaps_is_named(subnet: str, says: list[str], tmp_path: Path) -> None:
    write(tmp_path, "other", "192.0.2.0/24")
    write(tmp_path, "mine", subnet)
    (tmp_path / "00-broken.conflist").write_text("{")
    found = overlaps.of_network(conflist.read(tmp_path / "mine.conflist"), tmp_path)
    assert len(found) == len(says)
    assert all(text in sentence for text, sentence in zip(says, found, strict=True))


@pytest.mark.usefixtures("host")
def test_the_network_is_not_its_own_neighbour_and_a_macvlan_is_meant_to_share(tmp_path: Path) -> None:
    write(tmp_path, "mine", "192.0.2.0/24")
    write(tmp_path, "lan", "198.51.100.0/24", kind="macvlan")
    assert overlaps.of_network(conflist.read(tmp_path / "mine.conflist"), tmp_path) == []
    assert overlaps.of_network(conflist.read(tmp_path / "lan.conflist"), tmp_path) == []


@pytest.mark.parametrize(
    ("name", "alias", "ours"),
    [
        ("cni0", "", True),
        ("cni0.7", "", True),
        ("lan0", "", False),
        ("cni00", "", False),
        ("veth1", "0123456789abcdef net/c1/eth0", True),
        ("veth1", "a description", False),
    ],
)
def test_links_of_the_network_itself(name: str, alias: str, ours: bool) -> None:
    assert overlaps.is_ours(name, alias, {"cni0"}) is ours


def test_of_ranges_that_cannot_be_the_rest_is_looked_at() -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "x"}, {"subnet": "192.0.2.0/24"}]], "subnet": "203.0.113.0/24"}
    plugins = [{"type": "ptp", "ipam": ipam}, {"type": "bridge", "ipam": {"type": "host-local", "ranges": 5}}]
    network = conflist.parse(json.dumps({"name": "n", "plugins": plugins}).encode(), "a")
    found = [overlaps.subnets_of(plugin) for plugin in network.plugins]
    assert found == [[ip_network("203.0.113.0/24"), ip_network("192.0.2.0/24")], []]
    assert overlaps.bridges(network) == {"cni0"}
