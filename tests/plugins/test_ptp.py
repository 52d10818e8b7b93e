"""The executable ptp: a pair of links with routes on both ends, over the life of an attachment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runtime import ALL, REFUSALS, Outcome, Plugins
from snapshot import difference

from tests.conftest import OURS
from tests.plugins.bridge_network import FAMILIES, NOTHING, PREFIXLEN, BridgeNetwork, Conf, ForeignIpam, ours_alone

if TYPE_CHECKING:
    from lab import Lab


class PtpNetwork(BridgeNetwork):
    """The same with pairs of links in place of a bridge."""

    def conf(
        self,
        version: str = "1.0.0",
        families: tuple[int, ...] = (4,),
        ipam: Mapping[str, Any] = NOTHING,
        **keys: object,
    ) -> Conf:
        conf = super().conf(version, families, ipam, **keys)
        del conf["bridge"], conf["isGateway"]
        return {**conf, "type": "ptp"}

    def run(
        self,
        verb: str,
        conf: Mapping[str, object],
        container_id: str = "",
        netns: str | None = None,
        ifname: str = "eth0",
        **env: str | None,
    ) -> Outcome:
        return self.plugins.run(self.lab, verb, "ptp", conf, container_id or self.a, netns, ifname, **env)

    def routes(self, node: str, family: int, *words: str) -> list[str]:
        """ip route of a node, one text each, without the kernel's own."""
        shown = self.lab[node].run(["ip", f"-{family}", "route", "show", *words], check=True).stdout
        lines = [line.replace(" metric 1024", "").replace(" pref medium", "") for line in shown.splitlines()]
        return [line.strip() for line in lines if "fe80" not in line and "multicast" not in line]


@pytest.fixture
def net(shared_lab: Lab, plugins: Plugins) -> Iterator[PtpNetwork]:
    network = PtpNetwork(shared_lab, plugins)
    yield network
    network.close()


@pytest.fixture
def other(shared_lab: Lab, plugins: Plugins) -> Iterator[PtpNetwork]:
    network = PtpNetwork(shared_lab, plugins)
    yield network
    network.close()


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


@pytest.mark.parametrize("version", ALL)
def test_every_version_gets_a_connected_container_and_its_own_form_of_the_result(
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
def test_two_interfaces_of_one_container_come_and_go_alone(net: PtpNetwork) -> None:
    """The Go plugin finds the routes of the first in the way of the second's."""
    conf = net.conf(ipMasq=True, families=(4, 6), ipam={"routes": []})
    net.warm(conf)
    before = net.state()
    first = net.well("ADD", conf).json
    with_one = net.state()
    second = net.run("ADD", conf, ifname="eth1")
    assert second.status == 0
    for ifname, result in (("eth0", first), ("eth1", second.json)):
        checked = net.run("CHECK", {**conf, "prevResult": result}, ifname=ifname)
        assert (checked.status, checked.stdout) == (0, ""), ifname
    assert set(net.links(net.a)) == {"lo", "eth0", "eth1"}
    assert net.run("DEL", conf, ifname="eth1").status == 0
    assert not difference(with_one, net.state())
    net.well("DEL", conf)
    assert not difference(before, net.state())


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


@pytest.mark.parametrize("configured", [False, True], ids=["IPAM's", "the configuration's"])
def test_dns_settings(net: PtpNetwork, configured: bool) -> None:
    ipam_dns, own_dns = {"nameservers": ["10.0.0.53"], "search": ["a.test"]}, {"nameservers": ["10.0.0.54"]}
    address = {"address": f"{net.address(4, 9)}/24", "gateway": net.address(4, 1)}
    conf = {**net.conf(), "ipam": {"type": "static", "addresses": [address], "dns": ipam_dns}}
    if configured:
        conf["dns"] = own_dns
    assert net.well("ADD", conf).json["dns"] == (own_dns if configured else ipam_dns)


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


@pytest.mark.parametrize("by", ["somebody else", ours_alone("ourselves")])
def test_an_interface_of_that_name_stays_as_it_is(net: PtpNetwork, by: str) -> None:
    conf = net.conf(families=(4, 6))
    net.warm(conf)
    if by == "ourselves":
        result = net.well("ADD", conf).json
    else:
        net.do(net.a, "ip link add eth0 type veth peer name other")
    before = net.state()
    outcome = net.run("ADD", conf)
    assert outcome.code == 999
    assert "already exists" in outcome.json["msg"]
    assert not difference(before, net.state())
    if by == "ourselves":
        assert net.check(conf, result).status == 0


@pytest.mark.ours_alone
def test_a_failure_at_the_end_takes_all_back(net: PtpNetwork) -> None:
    conf = net.conf(families=(4, 6), ipMasq=True, ipam={"routes": [{"dst": "0.0.0.0/0", "gw": "192.0.2.77"}]})
    net.warm(net.conf(families=(4, 6), ipMasq=True))
    before = net.state()
    outcome = net.run("ADD", conf)
    assert (outcome.code in REFUSALS, "failed to add route" in outcome.json["msg"]) == (True, True)
    assert not difference(before, net.state())


# DEL with little to go by

BARE_DELS: dict[str, tuple[str | None, dict[str, str | None]]] = {
    "without prevResult": (None, {}),
    "with a path that never was": ("/run/netns/never-was", {}),
    "with an empty path": ("", {}),
    "without the variable": ("", {"CNI_NETNS": None}),
}


@pytest.mark.ours_alone
@pytest.mark.parametrize("how", BARE_DELS)
def test_del_with_little_to_go_by_leaves_nothing(net: PtpNetwork, how: str) -> None:
    """The Go plugin leaves pair and masquerading when it is not told the namespace."""
    netns, env = BARE_DELS[how]
    conf = net.conf(families=(4, 6), ipMasq=True)
    net.warm(conf)
    before = net.state()
    net.well("ADD", conf, CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=p")
    for _ in range(2):
        outcome = net.run("DEL", conf, "", netns, "eth0", **env)
        assert (outcome.status, outcome.stdout) == (0, "")
        assert not difference(before, net.state())


@pytest.mark.parametrize("masquerade", [False, ours_alone(True)], ids=["plain", "with ipMasq"])
def test_del_after_the_namespace_is_gone_leaves_nothing(net: PtpNetwork, masquerade: bool) -> None:
    conf = net.conf(families=(4, 6), ipMasq=masquerade)
    net.warm(conf)
    before = net.state()
    result = net.well("ADD", conf, net.b).json
    net.lab.remove(net.b)
    net.well("DEL", {**conf, "prevResult": result}, f"b{net.number}")
    net.wait_for_end_of(result["interfaces"][0]["name"])
    assert not difference(before, net.state())


@pytest.mark.ours_alone
def test_del_does_all_it_can_and_then_tells_what_failed(net: PtpNetwork, foreign: ForeignIpam) -> None:
    conf = net.conf(ipMasq=True)
    net.warm(conf)
    before = net.state()
    result = {"ips": [{"address": f"{net.address(4, 9)}/24", "gateway": net.address(4, 1)}]}
    foreign.does(f"""[ $CNI_COMMAND = DEL ] && echo '{{"code": 123, "msg": "no way"}}' && exit 1
        echo '{json.dumps(result)}'""")
    theirs = {**conf, "ipam": {"type": foreign.name}}
    path = f"{net.plugins.directory}:{foreign.path.parent}"
    net.well("ADD", theirs, CNI_PATH=path)
    outcome = net.run("DEL", theirs, CNI_PATH=path)
    assert (outcome.code, outcome.json["msg"]) == (123, "no way")
    assert not difference(before, net.state())


@pytest.mark.ours_alone
def test_an_add_after_a_killed_one_starts_afresh(net: PtpNetwork) -> None:
    conf = net.conf(families=(4, 6), ipMasq=True)
    net.warm(conf)
    before = net.state()
    net.well("ADD", conf)
    for path in net.records():
        net.do("host", f"mv {path} {path.replace('.json', '.adding')}")
    result = net.well("ADD", conf).json
    assert net.check(conf, result).status == 0
    assert len(net.reservations()) == 2
    net.well("DEL", conf)
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
    result = net.well("ADD", conf).json
    assert net.check(conf, result).status == 0
    where, command = {**NOTICED_BY_ALL, **NOTICED_BY_US}[name]
    words = {"a4": net.address(4, 2), "a6": net.address(6, 2), "gateway": net.address(4, 1), "subnet": net.subnets[4]}
    names = {"veth": result["interfaces"][0]["name"], "name": net.name, "number": net.number}
    net.do("host" if where == "host" else net.a, command.format(**words, **names))
    before = net.state()
    assert net.check(conf, result).code in (3, 999)
    assert not difference(before, net.state())
    net.well("DEL", conf)
    if name == "forwarding off":
        net.do("host", "sysctl -q -w net.ipv4.ip_forward=1")


def test_check_and_del_know_what_the_go_plugin_made(net: PtpNetwork, our_bin_dir: Path) -> None:
    """An administrator may change over while containers run."""
    addresses = [
        {"address": f"{net.address(family, 9)}/{PREFIXLEN[family]}", "gateway": net.address(family, 1)}
        for family in (4, 6)
    ]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    conf = {**net.conf(mtu=1400), "ipam": {"type": "static", "addresses": addresses, "routes": routes}}
    ours, theirs = Plugins(OURS, our_bin_dir, ALL), net.plugins
    for net.plugins in (ours, theirs):  # what both keep is there before
        net.warm(conf)
    before = net.state()
    result = net.well("ADD", conf).json
    net.plugins = ours
    outcome = net.check(conf, result)
    assert outcome.status == 0, outcome
    net.well("DEL", {**conf, "prevResult": result})
    assert not difference(before, net.state())


def test_check_wants_a_result_of_this_namespace(net: PtpNetwork) -> None:
    conf = net.conf()
    result = net.well("ADD", conf).json
    assert net.run("CHECK", conf).code in REFUSALS
    assert net.run("CHECK", {**conf, "prevResult": result}, netns=f"/run/netns/{net.b}").code == 999


# GC and STATUS


def valid(*container_ids: str) -> Conf:
    listed = [{"containerID": container_id, "ifname": "eth0"} for container_id in container_ids]
    return {"cniVersion": "1.1.0", "cni.dev/valid-attachments": listed}


@pytest.mark.ours_alone
def test_gc_removes_the_stale_and_nothing_of_the_valid_or_of_another_network(
    net: PtpNetwork, other: PtpNetwork
) -> None:
    conf, others = net.conf(families=(4, 6), ipMasq=True), other.conf(families=(4, 6), ipMasq=True)
    net.well("ADD", conf)
    other.well("ADD", others)
    net.b  # noqa: B018  made before the state is taken
    net.well("GC", {**conf, **valid(net.a)})  # with it go chains of subnets that other tests have left
    before, theirs = net.state(), other.state()
    net.well("ADD", conf, net.b)
    net.well("GC", {**conf, **valid(net.a)})
    assert not difference(before, net.state())
    assert not difference(theirs, other.state())
    net.well("GC", {**conf, **valid()})
    assert (net.reservations(), set(net.links(net.a))) == ({}, {"lo"})


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
