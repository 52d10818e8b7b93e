"""Podman, unchanged, runs containers with the plugins: on networks of its own making, through all that it does to them.

Its conflists are bridge, portmap, firewall and tuning at 0.4.0. `isolate` is its word for firewall's `same-bridge`: such
networks are kept apart from each other. The network `apart` has `isolated` instead, which only an editor can put there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime import Plugins

from tests.clients.containerd_host import CLIENT4, CLIENT6, HOST4, HOST6, Namespaces, NoNamespaces
from tests.clients.docker_host import ask, ask_udp
from tests.clients.podman_host import NET_D, Container, NoCni, PodmanHost, reached
from tests.lacking import missing, unavailable

pytestmark = [pytest.mark.xdist_group("podman"), pytest.mark.ours_alone]

LOCALHOST = "127.0.0.1"
WEB, DNS, WEB_ISO, WEB_APART = 8080, 8053, 8081, 8082  # ports of the host
PUBLISHED = (f"--publish={WEB}:80", f"--publish={DNS}:53/udp")
FIREWALL = 2  # its place in a conflist of podman's
BY_ITSELF = "containers"  # of a state: what podman knows of a container that has stopped
BRIDGE_NF = "net.bridge.bridge-nf-call-iptables"

NETWORKS = {
    "dual": ("--ipv6", "--subnet=10.90.2.0/24", "--subnet=2001:db8:90:2::/64"),
    "inner": ("--internal", "--subnet=10.90.3.0/24"),
    "iso1": ("--opt=isolate=true", "--ipv6", "--subnet=10.90.4.0/24", "--subnet=2001:db8:90:4::/64"),
    "iso2": ("--opt=isolate=true", "--ipv6", "--subnet=10.90.5.0/24", "--subnet=2001:db8:90:5::/64"),
    "apart": ("--opt=isolate=true", "--ipv6", "--subnet=10.90.6.0/24", "--subnet=2001:db8:90:6::/64"),
}
PLAIN = "podman"  # the network that is always there
SUBNETS = {
    PLAIN: ["10.88.0.0/16"],
    "dual": ["10.90.2.0/24", "2001:db8:90:2::/64"],
    "inner": ["10.90.3.0/24"],
    "iso1": ["10.90.4.0/24", "2001:db8:90:4::/64"],
    "iso2": ["10.90.5.0/24", "2001:db8:90:5::/64"],
    "apart": ["10.90.6.0/24", "2001:db8:90:6::/64"],
}
GATEWAYS = {
    PLAIN: ["10.88.0.1"],
    "dual": ["10.90.2.1", "2001:db8:90:2::1"],
    "inner": [],
    "iso1": ["10.90.4.1", "2001:db8:90:4::1"],
    "iso2": ["10.90.5.1", "2001:db8:90:5::1"],
    "apart": ["10.90.6.1", "2001:db8:90:6::1"],
}
GATEWAY4, GATEWAY6 = GATEWAYS["dual"]

Json = dict[str, Any]


@pytest.fixture(scope="module")
def podman(of_release: Path, archive: Path, plugins: Plugins) -> Iterator[PodmanHost]:
    host = PodmanHost(of_release, plugins.directory)
    try:
        host.__enter__()
    except NoNamespaces as error:
        missing(str(error))
    except NoCni as error:
        unavailable(str(error))
    try:
        host.load(archive)
        for name, options in NETWORKS.items():
            host.create_network(name, *options)
        conflist = host.conflist("apart")
        conflist["plugins"][FIREWALL]["ingressPolicy"] = "isolated"
        conflist["cniVersions"] = [conflist["cniVersion"], "1.1.0"]  # a key that it does not know
        host.run("tee", f"{NET_D}/apart.conflist", given=json.dumps(conflist))
        yield host
    finally:
        host.close()


@pytest.fixture(scope="module")
def before(podman: PodmanHost) -> Json:
    return podman.warm_up()


def subnets(container: Container, ifname: str = "eth0") -> list[str]:
    return [str(ipaddress.ip_interface(address).network) for address in container.addresses(ifname)]


def test_podman_made_the_conflists_that_are_tested(podman: PodmanHost) -> None:
    conflists = [podman.conflist(name) for name in NETWORKS]
    chains = {tuple(plugin["type"] for plugin in conflist["plugins"]) for conflist in conflists}
    policies = [conflist["plugins"][FIREWALL].get("ingressPolicy") for conflist in conflists]
    assert chains == {("bridge", "portmap", "firewall", "tuning")}
    assert policies == [None, None, "same-bridge", "same-bridge", "isolated"]
    assert [conflist["plugins"][0]["isGateway"] for conflist in conflists] == [True, False, True, True, True]


# (network, further options)
TOWN = {
    "web": ("dual", *PUBLISHED),
    "peer": ("dual",),
    "plain": (PLAIN,),
    "one": ("iso1", f"--publish={WEB_ISO}:80"),
    "mate": ("iso1",),
    "two": ("iso2",),
    "flat": ("apart", f"--publish={WEB_APART}:80"),
    "flatmate": ("apart",),
    "inmate": ("inner",),
    "cellmate": ("inner",),
}

# (who asks, which address, the source address that the container sees)
PATHS = {
    "LAN client, IPv4": ("client", HOST4, CLIENT4),
    "LAN client, IPv6": ("client", HOST6, CLIENT6),
    "host, own address, IPv4": ("host", HOST4, HOST4),
    "host, own address, IPv6": ("host", HOST6, HOST6),
    "host, 127.0.0.1": ("host", LOCALHOST, GATEWAY4),
    "same bridge, IPv4": ("peer", HOST4, GATEWAY4),
    "same bridge, IPv6": ("peer", HOST6, GATEWAY6),
    "another bridge": ("plain", HOST4, GATEWAY4),
    "another bridge, isolated": ("one", HOST4, GATEWAY4),
    "the container itself, IPv4": ("web", HOST4, GATEWAY4),
    "the container itself, IPv6": ("web", HOST6, GATEWAY6),
}

# Who of these does not reach whom by the own address of a container. `plain` is on no isolated network.
WALLS = (({"one", "mate"}, {"two"}), ({"one", "mate", "two"}, {"flat", "flatmate"}), ({"flat"}, {"flatmate"}))
APART = {pair for these, those in WALLS for one in these for other in those for pair in ((one, other), (other, one))}


@pytest.fixture(scope="class")
def town(podman: PodmanHost, before: Json) -> Iterator[dict[str, Container]]:
    with podman.several({name: (f"--network={network}", *more) for name, (network, *more) in TOWN.items()}) as town:
        yield town
    assert podman.change_since(before) == ""


@pytest.fixture(scope="class")
def places(podman: PodmanHost, town: dict[str, Container]) -> dict[str, Namespaces]:
    return {"host": podman, "client": podman.client} | {name: each.network for name, each in town.items()}


class TestTenContainersStartedAtOnce:
    """And removed at once, which leaves nothing: see the fixture."""

    def test_each_has_addresses_and_routes_of_its_network(self, town: dict[str, Container]) -> None:
        addresses = [address for container in town.values() for address in container.addresses()]
        assert {name: subnets(container) for name, container in town.items()} == by_container(SUBNETS)
        assert {name: container.gateways() for name, container in town.items()} == by_container(GATEWAYS)
        assert len(set(addresses)) == len(addresses)

    def test_our_commands_know_them_by_name(self, podman: PodmanHost, town: dict[str, Container]) -> None:
        command = str(Path(sys.executable).with_name("cni-py"))
        said = podman.json(command, "gc", "--dry-run", "--json")
        assert not [line for line in said["removed"] + said["left"] + said["failed"] if line["owner"]]
        inside = podman.run(command, "enter", "web", "--", "ip", "-br", "address", "show", "eth0").stdout
        assert town["web"].ip(4) in inside
        (pool,) = podman.json(command, "ipam", "list", "--json", "--network", "apart")["pools"]
        assert {one["live"] for one in pool["reservations"]} == {"alive"}

    def test_every_path_to_a_published_port_works_and_tells_the_source(
        self, town: dict[str, Container], places: dict[str, Namespaces]
    ) -> None:
        with town["web"].serving_udp(53):
            pages = {path: ask(places[who], address, WEB) for path, (who, address, _) in PATHS.items()}
            datagrams = {path: ask_udp(places[who], address, DNS) for path, (who, address, _) in PATHS.items()}
        expected = {path: f"web {source}" for path, (_, _, source) in PATHS.items()}
        assert pages == expected
        assert datagrams == expected

    @pytest.mark.parametrize("version", [4, 6])
    def test_isolated_networks_do_not_reach_each_other(self, town: dict[str, Container], version: int) -> None:
        everyone = ["one", "mate", "two", "flat", "flatmate", *["plain"][: version == 4]]
        names = {town[name].ip(version): name for name in everyone}
        met = {
            (who, names[address])
            for who in everyone
            for address, _ in reached(town[who].network, *((address, 80) for address in names))
        }
        assert met == {(who, whom) for who in everyone for whom in everyone} - APART

    def test_published_ports_of_isolated_networks_are_reached_from_all(self, places: dict[str, Namespaces]) -> None:
        asking = ["client", "host", "plain", "one", "mate", "two", "flat"]
        sources = [CLIENT4, HOST4, *[GATEWAYS["iso1"][0]] * 5]
        assert [ask(places[who], HOST4, WEB_ISO) for who in asking] == [f"one {source}" for source in sources]

    @pytest.mark.parametrize("br_netfilter", ["0", "1"])
    def test_published_ports_of_a_network_whose_members_are_apart(
        self, podman: PodmanHost, places: dict[str, Namespaces], br_netfilter: str
    ) -> None:
        asking = ["client", "host", "plain", "two", "flat", "flatmate"]
        sources = [CLIENT4, HOST4, *[GATEWAYS["apart"][0]] * 4]
        with bridge_nf(podman, br_netfilter):
            answers = [ask(places[who], HOST4, WEB_APART) for who in asking]
        assert answers == [f"flat {source}" for source in sources]

    def test_an_internal_network_has_no_way_out(
        self, town: dict[str, Container], places: dict[str, Namespaces]
    ) -> None:
        outside = [(HOST4, WEB), (CLIENT4, WEB), *((town[name].ip(), 80) for name in ("plain", "web"))]
        inside = town["cellmate"].ip()
        assert reached(town["inmate"].network, *outside, (inside, 80)) == [(inside, 80)]
        assert [reached(places[who], (inside, 80)) for who in ("host", "client", "plain")] == [[], [], []]


def by_container(by_network: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: by_network[network] for name, (network, *_) in TOWN.items()}


@contextlib.contextmanager
def bridge_nf(host: Namespaces, value: str) -> Iterator[None]:
    """Whether what crosses a bridge passes the rules of IP, too; without the module it does not."""
    found = host.run("sysctl", "--values", BRIDGE_NF, check=False)
    if found.returncode and value == "1":
        unavailable("this kernel has no br_netfilter")
    if not found.returncode:
        host.run("sysctl", "--write", f"{BRIDGE_NF}={value}")
    try:
        yield
    finally:
        if not found.returncode:
            host.run("sysctl", "--write", f"{BRIDGE_NF}={found.stdout.strip()}")


def test_ranges_of_ports_lead_to_their_own(podman: PodmanHost, before: Json) -> None:
    options = ("--network=dual", "--publish=9000-9003:80-83", "--publish=127.0.0.1:9100-9101:82-83")
    with podman.running("web", *options, ports=(80, 81, 82, 83)):
        ends = [(address, port) for address in (HOST4, HOST6) for port in (*range(8999, 9005), 9100, 9101)]
        opened = reached(podman.client, *ends)
        own = [ask(podman, LOCALHOST, port) for port in (9000, 9003, 9100, 9101)]
    assert opened == [(address, port) for address in (HOST4, HOST6) for port in range(9000, 9004)]
    assert own == [f"web {GATEWAY4}"] * 4
    assert podman.change_since(before) == ""


@pytest.mark.parametrize(
    ("network", "asked"),
    [(PLAIN, ["10.88.7.7/16"]), ("dual", ["10.90.2.77/24", "2001:db8:90:2::77/64"])],
    ids=["by CNI_ARGS", "by a capability"],
)
def test_the_addresses_that_were_asked_for(podman: PodmanHost, before: Json, network: str, asked: list[str]) -> None:
    mac = "92:d0:c6:0a:29:33"
    wanted = [ipaddress.ip_interface(address) for address in asked]
    options = [f"--ip{'6' if address.version == 6 else ''}={address.ip}" for address in wanted]
    with podman.running("web", f"--network={network}", *options, f"--mac-address={mac}", f"--publish={WEB}:80") as web:
        assert web.addresses() == asked
        assert web.mac() == mac
        assert ask(podman.client, HOST4, WEB) == f"web {CLIENT4}"
    assert podman.change_since(before) == ""


def test_a_port_stays_open_while_one_of_two_networks_is_there(podman: PodmanHost, before: Json) -> None:
    """The reference's nftables backend closes it with the first: it looks its rules up by the container alone."""
    with podman.running("web", f"--network={PLAIN},dual", f"--publish={WEB}:80") as web:
        found = {ifname: subnets(web, ifname) for ifname in ("eth0", "eth1")}
        assert sorted(found.values()) == [SUBNETS[PLAIN], SUBNETS["dual"]]
        dual = next(ifname for ifname in found if found[ifname] == SUBNETS["dual"])  # podman attaches them in any order
        assert ask(podman.client, HOST4, WEB) == f"web {CLIENT4}"
        podman.podman("network", "disconnect", "dual", "web")
        assert subnets(web, dual) == []
        assert ask(podman.client, HOST4, WEB) == f"web {CLIENT4}"
        podman.podman("network", "connect", "dual", "web")
        podman.podman("network", "disconnect", PLAIN, "web")
        podman.container("web")
        assert subnets(web, dual) == SUBNETS["dual"]
        assert [ask(podman.client, address, WEB) for address in (HOST4, HOST6)] == [f"web {CLIENT4}", f"web {CLIENT6}"]
        podman.podman("network", "disconnect", "dual", "web")
        assert podman.change_since(before, BY_ITSELF, "cgroups", "files") == ""
    assert podman.change_since(before) == ""


def test_reload_brings_back_what_a_flush_took(podman: PodmanHost, before: Json) -> None:
    shared = podman.run("nft", "--stateless", "list", "ruleset").stdout  # goes, too, and would come again with use
    networks = {"web": ("--network=dual", *PUBLISHED), "one": ("--network=iso1",), "two": ("--network=iso2",)}
    with podman.several(networks) as containers:
        addresses = {name: container.addresses() for name, container in containers.items()}
        podman.run("nft", "flush", "ruleset")
        assert podman.client.fetch(HOST4, WEB, timeout_s=0.5).startswith("!")
        podman.podman("network", "reload", "--all")
        reloaded = podman.containers(*networks)
        assert {name: container.addresses() for name, container in reloaded.items()} == addresses
        assert [ask(podman.client, address, WEB) for address in (HOST4, HOST6)] == [f"web {CLIENT4}", f"web {CLIENT6}"]
        assert not reached(containers["one"].network, (containers["two"].ip(), 80))
    left = podman.run("nft", "list", "ruleset").stdout
    podman.run("nft", "--file", "-", given=f"flush ruleset\n{shared}")
    assert "/eth0" not in left  # the end of all comments that name an attachment
    assert podman.change_since(before) == ""


def test_a_container_that_is_restarted_has_its_ports_again(podman: PodmanHost, before: Json) -> None:
    with podman.running("web", "--network=dual", *PUBLISHED) as web:
        podman.podman("restart", "--time=5", "web")
        again = podman.container("web")
        assert again.pid != web.pid
        assert subnets(again) == SUBNETS["dual"]
        with again.serving_udp(53):
            assert ask(podman.client, HOST4, WEB) == ask_udp(podman.client, HOST4, DNS) == f"web {CLIENT4}"
        podman.podman("stop", "--time=5", "web")
        assert podman.change_since(before, BY_ITSELF) == ""
    assert podman.change_since(before) == ""


def test_a_killed_container_leaves_nothing_and_can_start_again(podman: PodmanHost, before: Json) -> None:
    with podman.running("web", f"--network={PLAIN},iso1", *PUBLISHED) as web:
        podman.run("kill", "-KILL", web.pid)
        assert podman.change_since(before, BY_ITSELF) == ""
        assert not reached(podman.client, (HOST4, WEB))
        podman.podman("start", "web")
        podman.container("web")
        assert ask(podman.client, HOST4, WEB) == f"web {CLIENT4}"
    assert podman.change_since(before) == ""
