"""CHECK of the executable bridge: it sees what was damaged by hand, and changes nothing."""

from __future__ import annotations

import pytest

from tests.plugins.bridge_network import BridgeNetwork, Conf, ours_alone

# what is done, where ("host" or "a"), to {veth} and {bridge}; and how to mend it, when that is one command
NOTICED_BY_ALL = {
    "address gone": ("a", "ip address delete {a4}/24 dev eth0"),
    "IPv6 address gone": ("a", "ip address delete {a6}/64 dev eth0"),
    "default route gone": ("a", "ip route delete default"),
    "IPv6 default route gone": ("a", "ip -6 route delete default"),
    "interface down": ("a", "ip link set eth0 down"),
    "interface gone": ("a", "ip link delete eth0"),
    "interface renamed": ("a", "ip link set eth0 name eth9"),
    "another MAC": ("a", "ip link set eth0 address 02:00:00:00:00:99"),
    "host veth not on the bridge": ("host", "ip link set {veth} nomaster"),
    "host veth with another MAC": ("host", "ip link set {veth} address 02:00:00:00:00:98"),
    "host veth renamed": ("host", "ip link set {veth} name other{number}"),
    "bridge gone": ("host", "ip link delete {bridge}"),
    "bridge with another MAC": ("host", "ip link set {bridge} address 02:00:00:00:00:97"),
    "bridge promiscuous": ("host", "ip link set {bridge} promisc on"),
    "reservations gone": ("host", "rm /var/lib/cni/networks/{name}/{a4} /var/lib/cni/networks/{name}/{a6}"),
}
NOTICED_BY_US = {
    "bridge down": ("host", "ip link set {bridge} down"),
    "host veth down": ("host", "ip link set {veth} down"),
    "gateway address gone": ("host", "ip address delete {gateway}/24 dev {bridge}"),
    "hairpin mode off": ("host", "bridge link set dev {veth} hairpin off"),
    "port isolated": ("host", "bridge link set dev {veth} isolated on"),
    "forwarding off": ("host", "sysctl -q -w net.ipv4.ip_forward=0"),
    "masquerading gone": ("host", "nft flush map inet cni_py masquerade4"),
    "IPv6 masquerading gone": ("host", "nft flush map inet cni_py masquerade6"),
    "table gone": ("host", "nft delete table inet cni_py"),
}
DAMAGES = {**NOTICED_BY_ALL, **NOTICED_BY_US}


@pytest.mark.parametrize("name", [*NOTICED_BY_ALL, *map(ours_alone, NOTICED_BY_US)])
def test_check_notices_damage_done_by_hand_and_mends_nothing(net: BridgeNetwork, name: str) -> None:
    conf = net.conf(families=(4, 6), hairpinMode=True, ipMasq=name in NOTICED_BY_US)
    assert net.damaged(conf, *DAMAGES[name]).json["msg"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"prevResult": None}, "prevResult"),
        ({"promiscMode": True}, "Promisc Mode true doesn't match current state: false"),
        ({"bridge": "br-other"}, "missing"),
    ],
    ids=["no prevResult", "promiscMode", "another bridge"],
)
def test_check_compares_with_the_configuration_too(net: BridgeNetwork, change: Conf, complaint: str) -> None:
    conf = net.conf()
    result = net.well("ADD", conf).json
    outcome = net.run("CHECK", {**conf, "prevResult": result, **change})
    assert outcome.status == 1
    assert complaint in outcome.json["msg"]


def test_check_of_another_namespace_than_the_results_fails(net: BridgeNetwork) -> None:
    conf = net.conf()
    result = net.well("ADD", conf).json
    outcome = net.run("CHECK", {**conf, "prevResult": result}, netns=f"/run/netns/{net.b}")
    assert "doesn't match" in outcome.json["msg"]


@pytest.mark.ours_alone
def test_check_of_an_attachment_without_addresses_succeeds(net: BridgeNetwork) -> None:
    """The Go plugin asks for an IPAM plugin there."""
    conf = net.conf()
    del conf["ipam"]
    result = net.well("ADD", conf).json
    assert net.check(conf, result).status == 0
