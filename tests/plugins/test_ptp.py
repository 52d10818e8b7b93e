"""The executable ptp: a pair of links with routes on both ends, over the life of an attachment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from runtime import FORMS, REFUSALS, Plugins
from snapshot import difference

from tests.conftest import OURS
from tests.plugins.bridge_network import FAMILIES, BridgeNetwork, Conf, ours_alone
from tests.plugins.link_networks import PtpNetwork

if TYPE_CHECKING:
    pass


@pytest.fixture
def kind() -> type[BridgeNetwork]:
    return PtpNetwork


# The life of an attachment


def check_routes(net: PtpNetwork, veth: str, family: int) -> None:
    """The container's subnet is behind the gateway, which is the host alone; the host has a route to the container."""
    address, gateway = net.address(family, 3), net.address(family, 1)
    scope = " scope link" if family == 4 else ""
    assert sorted(net.routes(net.a, family)) == sorted(
        [
            f"default via {gateway} dev eth0",
            f"{net.subnets[family]} via {gateway} dev eth0 src {address}",
            f"{gateway} dev eth0{scope} src {address}",
        ]
    )
    assert net.held("host", veth)[family == 6] == f"{gateway}/{32 if family == 4 else 128}"
    assert [line for line in net.routes("host", family, "dev", veth) if line.split()[0] == address]


@pytest.mark.parametrize("version", FORMS)
def test_versions_get_a_connected_container_and_their_own_form_of_the_result(
    net: PtpNetwork, plugins: Plugins, version: str
) -> None:
    if version not in plugins.versions:
        pytest.skip(f"these plugins do not know {version}")
    conf = net.conf(version, (4, 6))
    net.lab.serve(net.a, 80)
    net.warm(conf)
    before, earlier = net.state(), set(net.links("host"))
    result = net.well("ADD", conf).json
    (veth,) = set(net.links("host")) - earlier
    for family in (4, 6):
        check_routes(net, veth, family)
        if plugins.whose == OURS or family == 4:  # Go's IPv6 gateway cannot be used for the first seconds
            answer = net.lab.fetch("host", net.address(family, 3), 80)
            assert (answer.name, answer.peer) == (net.a, net.address(family, 1))
    assert result["cniVersion"] == version
    if version < "0.3.0":
        assert [result[key]["ip"] for key in ("ip4", "ip6")] == net.held(net.a, "eth0")
    else:
        assert [ip["address"] for ip in result["ips"]] == net.held(net.a, "eth0")
        assert {ip["interface"] for ip in result["ips"]} == {1}
        assert result["interfaces"] == [
            {"name": veth, "mac": net.links("host")[veth]["address"]},
            {"name": "eth0", "mac": net.links(net.a)["eth0"]["address"], "sandbox": f"/run/netns/{net.a}"},
        ]
    if version >= "0.4.0":
        assert net.check(conf, result).status == 0
    for _ in range(2):
        assert net.well("DEL", conf).stdout == ""
        assert not difference(before, net.state())


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_containers_of_one_network_reach_each_other_through_the_host(
    net: PtpNetwork, families: tuple[int, ...]
) -> None:
    conf = net.conf(families=families, mtu=1400)
    net.lab.serve(net.b, 80)
    net.well("ADD", conf)
    net.well("ADD", conf, net.b)
    assert {net.links(name)["eth0"]["mtu"] for name in (net.a, net.b)} == {1400}
    for family in families:
        answer = net.lab.fetch(net.a, net.address(family, 3), 80)
        assert (answer.name, answer.peer) == (net.b, net.address(family, 2))
    net.well("DEL", conf)
    for family in families:
        assert net.lab.fetch("host", net.address(family, 3), 80).name == net.b
    net.well("DEL", conf, net.b)


@pytest.mark.ours_alone
def test_what_masquerading_hides_is_the_address_beyond_the_subnet(net: PtpNetwork) -> None:
    conf = net.conf(families=(4, 6), ipMasq=True)
    net.warm(conf)
    before = net.state()
    net.well("ADD", conf)
    net.lab.serve("client", 8000 + net.number)
    for target in ("198.51.100.7", "2001:db8:1::7"):
        answer = net.lab.fetch(net.a, target, 8000 + net.number)
        assert answer.peer in ("198.51.100.1", "2001:db8:1::1")
    net.well("DEL", conf)
    assert not difference(before, net.state())


@pytest.mark.ours_alone
def test_an_address_without_a_subnet_is_as_good(net: PtpNetwork) -> None:
    addresses = [
        {"address": f"{net.address(4, 9)}/32", "gateway": "169.254.1.1"},
        {"address": f"{net.address(6, 9)}/128", "gateway": net.address(6, 1)},
    ]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    conf = {**net.conf(), "ipam": {"type": "static", "addresses": addresses, "routes": routes}}
    result = net.well("ADD", conf).json
    assert net.check(conf, result).status == 0
    assert sorted(net.routes(net.a, 4)) == [
        f"169.254.1.1 dev eth0 scope link src {net.address(4, 9)}",
        "default via 169.254.1.1 dev eth0",
    ]
    net.lab.serve(net.a, 80)
    assert net.lab.fetch("host", net.address(4, 9), 80).peer == "169.254.1.1"
    assert net.lab.fetch("host", net.address(6, 9), 80).peer == net.address(6, 1)


@pytest.mark.ours_alone
def test_two_addresses_with_one_gateway(net: PtpNetwork) -> None:
    """The Go plugin makes the same route twice, which the kernel refuses."""
    gateways = {4: net.address(4, 1), 6: net.address(6, 1)}
    addresses = [
        {"address": f"{net.address(family, host)}/{bits}", "gateway": gateways[family]}
        for family, bits in ((4, 24), (6, 64))
        for host in (7, 8)
    ]
    conf = {**net.conf(), "ipam": {"type": "static", "addresses": addresses}}
    net.lab.serve(net.a, 80)
    net.warm(conf)
    before = net.state()
    result = net.well("ADD", conf).json
    assert net.check(conf, result).status == 0
    for family in (4, 6):
        for host in (7, 8):
            assert net.lab.fetch("host", net.address(family, host), 80).local == net.address(family, host)
    net.well("DEL", conf)
    assert not difference(before, net.state())


# What ADD refuses


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"ipam": {"type": "static"}}, "missing IP config"),
        ({"ipam": {"type": "static", "addresses": [{"address": "10.9.9.9/24"}]}}, ""),
        ({"ipam": {"type": "nosuch"}}, "failed to find plugin"),
        ({"mtu": "x"}, "mtu"),
        ours_alone({"ipMasq": True, "ipMasqBackend": "x"}, "unknown ipmasq backend"),
    ],
)  # fmt: skip
def test_an_add_that_cannot_be_leaves_nothing(net: PtpNetwork, keys: Conf, complaint: str) -> None:
    net.warm(net.conf())
    before = net.state()
    outcome = net.run("ADD", {**net.conf(), **keys})
    assert outcome.code in REFUSALS
    assert complaint in outcome.json["msg"]
    if net.plugins.whose == "ours":  # Go leaves the pair where no gateway came
        assert not difference(before, net.state())


@pytest.mark.ours_alone
def test_a_failure_at_the_end_takes_all_back(net: PtpNetwork) -> None:
    conf = net.conf(families=(4, 6), ipMasq=True, ipam={"routes": [{"dst": "0.0.0.0/0", "gw": "192.0.2.77"}]})
    net.warm(net.conf(families=(4, 6), ipMasq=True))
    before = net.state()
    outcome = net.run("ADD", conf)
    assert (outcome.code in REFUSALS, "failed to add route" in outcome.json["msg"]) == (True, True)
    assert not difference(before, net.state())


# CHECK

NOTICED_BY_ALL = {
    "address gone": ("a", "ip address delete {a4}/24 dev eth0"),
    "default route gone": ("a", "ip route delete default"),
    "interface down": ("a", "ip link set eth0 down"),
    "interface gone": ("a", "ip link delete eth0"),
    "another MAC": ("a", "ip link set eth0 address 02:00:00:00:00:99"),
    "reservations gone": ("host", "rm /var/lib/cni/networks/{name}/{a4} /var/lib/cni/networks/{name}/{a6}"),
}
NOTICED_BY_US = {
    "host veth with another name": ("host", "ip link set {veth} name other{number}"),
    "host veth down": ("host", "ip link set {veth} down"),
    "gateway address gone": ("host", "ip address delete {gateway}/32 dev {veth}"),
    "route to the container gone": ("host", "ip route delete {a4} dev {veth}"),
    "subnet's route gone": ("a", "ip route delete {subnet}"),
    "route to the gateway gone": ("a", "ip route delete {gateway} dev eth0"),
    "forwarding off": ("host", "sysctl -q -w net.ipv4.ip_forward=0"),
    "masquerading gone": ("host", "nft flush map inet cni_py masquerade4"),
}


@pytest.mark.parametrize("name", [*NOTICED_BY_ALL, *map(ours_alone, NOTICED_BY_US)])
def test_check_notices_damage_done_by_hand_and_mends_nothing(net: PtpNetwork, name: str) -> None:
    conf = net.conf(families=(4, 6), ipMasq=name in NOTICED_BY_US)
    net.damaged(conf, *{**NOTICED_BY_ALL, **NOTICED_BY_US}[name])


# GC and STATUS


@pytest.mark.ours_alone
def test_status_asks_ipam_and_nftables(net: PtpNetwork, without_nftables: Plugins) -> None:
    pool = {"ranges": [[{"subnet": net.subnets[4], "rangeStart": net.address(4, 9), "rangeEnd": net.address(4, 9)}]]}
    conf = net.conf("1.1.0", ipam=pool, ipMasq=True)
    assert net.run("STATUS", conf).status == 0
    net.well("ADD", conf)
    assert net.run("STATUS", conf).code == 50
    net.well("DEL", conf)
    assert net.run("STATUS", {**conf, "ipam": {"type": "nosuch"}}).code == 7


# Subnets of two addresses (RFC 3021, RFC 6164)


@pytest.mark.ours_alone
@pytest.mark.parametrize(("family", "pair"), [(4, "10.95.0.{}/31"), (6, "fd00:95::{:x}/127")])
@pytest.mark.parametrize("explicit", [False, True])
def test_the_two_addresses_of_a_subnet_are_the_two_ends(
    net: PtpNetwork, family: int, pair: str, explicit: bool
) -> None:
    """The other end is the gateway: the second address, or the first where the configuration says so."""
    both = [pair.format(2 * (net.number % 100) + host) for host in (0, 1)]
    inside, outside = both[::-1] if explicit else both
    gateway = outside.partition("/")[0]
    given = {"gateway": gateway} if explicit else {}
    conf = net.conf(families=(family,), ipam={"ranges": [[{"subnet": both[0], **given}]]})
    net.warm(conf)
    before = net.state()
    result = net.well("ADD", conf).json
    assert [(ip["address"], ip["gateway"]) for ip in result["ips"]] == [(inside, gateway)]
    assert net.check(conf, result).status == 0
    net.lab.serve(net.a, 80)
    assert net.lab.fetch("host", inside.partition("/")[0], 80).peer == gateway
    net.well("DEL", conf)
    assert not difference(before, net.state())
