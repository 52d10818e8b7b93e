"""nerdctl's default chain (bridge, portmap, firewall, tuning) under its hooks, and what it and others read of iptables.

Each test of a container runs twice: with nftables, which is the default, and with `backend: iptables` for the whole host.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from lab import Lab

from tests.clients import nerdctl_neighbours as neighbours
from tests.clients import nerdctl_replay as nerdctl
from tests.clients.nerdctl_host import CLIENT4, HOST4, HOST6, LOCALHOST, NerdctlHost, Running
from tests.conftest import need_root

DEFAULT, OTHER, DUAL, INTERNAL, ISOLATED = "bridge", "foo", "six", "inside", "apart"
SUBNETS = {
    DEFAULT: (nerdctl.DEFAULT_SUBNET,),
    OTHER: ("10.4.1.0/24",),
    DUAL: ("10.4.2.0/24", "2001:db8:4::/64"),
    INTERNAL: ("10.4.3.0/24",),
    ISOLATED: ("10.4.4.0/24",),
}
GATEWAY = "10.4.0.1"
PORT, UDP_PORT = 8080, 8053
REFUSED = "ConnectionRefusedError"


def backend(name: str) -> ParameterSet:
    """One process at a time for the tests that share a host."""
    return pytest.param(name, marks=pytest.mark.xdist_group(f"nerdctl-{name}"))


@pytest.fixture(scope="module", params=[backend("nftables"), backend("iptables")])
def host(request: pytest.FixtureRequest, our_bin_dir: Path) -> Iterator[NerdctlHost]:
    """A host with nerdctl's networks, each of which has had a container: what is shared has been made."""
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        found = NerdctlHost(lab, our_bin_dir, request.param)
        for name, subnets in SUBNETS.items():
            found.create_network(name, *subnets, internal=name == INTERNAL, icc=name != ISOLATED)
        yield found


@pytest.fixture(scope="module")
def first(host: NerdctlHost) -> Running:
    """The first container, which is over."""
    with host.running("first", f"{PORT}:80", networks=tuple(SUBNETS), mac="02:00:5e:10:00:02") as run:
        return run


@pytest.fixture(scope="module")
def before(host: NerdctlHost, first: Running) -> dict[str, object]:
    return host.state()


@pytest.fixture(params=["nftables", "iptables"])
def other_host(request: pytest.FixtureRequest, our_bin_dir: Path) -> Iterator[NerdctlHost]:
    """A host for one test, with two networks."""
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        found = NerdctlHost(lab, our_bin_dir, request.param)
        for name in (DEFAULT, OTHER):
            found.create_network(name, *SUBNETS[name])
        yield found


on_nftables = pytest.mark.parametrize("host", [backend("nftables")], indirect=True)
on_iptables = pytest.mark.parametrize("host", [backend("iptables")], indirect=True)


def test_nerdctl_takes_the_firewall_for_one_that_knows_isolated(our_bin_dir: Path) -> None:
    assert nerdctl.firewall_version(our_bin_dir) >= (1, 7, 1)


def test_the_first_container_of_a_host_leaves_nothing_of_its_own(host: NerdctlHost, first: Running) -> None:
    assert len(first.results) == len(SUBNETS)
    assert host.traces(first) == []


def test_addresses_and_result_of_the_default_network(host: NerdctlHost, before: dict[str, object]) -> None:
    with host.running("web", f"{PORT}:80") as web:
        (result,) = web.results
        addresses, routes = web.addresses(), web.default_routes()
    assert [link["name"] for link in result["interfaces"]][::2] == ["nerdctl0", "eth0"]
    assert [link.get("sandbox", "") for link in result["interfaces"]] == ["", "", web.container.netns]
    assert [(ip["interface"], ip["gateway"]) for ip in result["ips"]] == [(2, GATEWAY)]
    assert addresses == {"eth0": [result["ips"][0]["address"]]}
    assert routes == [GATEWAY]
    assert not host.change_since(before)


def test_every_path_to_a_published_port(host: NerdctlHost, before: dict[str, object]) -> None:
    ports, everybody = (f"{PORT}:80", f"{UDP_PORT}:53/udp"), ("client", "host", "web", "peer", "other")
    with (
        host.running("web", *ports) as web,
        host.running("peer") as peer,
        host.running("other", networks=(OTHER,)) as other,
        host.serving("web", 53, "udp"),
        host.serving("client"),
    ):
        seen: dict[tuple[str, ...], str] = {
            **{(who, HOST4): host.ask(who, HOST4, PORT) for who in everybody},
            **{(who, "udp"): host.ask(who, HOST4, UDP_PORT, "udp") for who in everybody},
            ("host", LOCALHOST): host.ask("host", LOCALHOST, PORT),
            ("host", "udp", LOCALHOST): host.ask("host", LOCALHOST, UDP_PORT, "udp"),
            ("other", "gateway of web"): host.ask("other", GATEWAY, PORT),
            ("host", "web"): host.ask("host", web.address()),
            ("peer", "web"): host.ask("peer", web.address()),
            ("client", HOST6): host.ask("client", HOST6, PORT),
            ("web", "client"): host.ask("web", CLIENT4),
        }
        other_is_blocked = host.is_blocked("other", web.address())
        peer_address, other_address = peer.address(), other.address()
    by_gateway = f"web saw {GATEWAY}"
    assert seen == {
        ("client", HOST4): f"web saw {CLIENT4}",
        ("client", "udp"): f"web saw {CLIENT4}",
        ("client", HOST6): REFUSED,  # nerdctl asks for 0.0.0.0
        ("host", HOST4): f"web saw {HOST4}",
        ("host", "udp"): f"web saw {HOST4}",
        ("host", LOCALHOST): by_gateway,
        ("host", "udp", LOCALHOST): by_gateway,
        ("host", "web"): by_gateway,
        ("web", HOST4): by_gateway,
        ("web", "udp"): by_gateway,
        ("web", "client"): f"client saw {HOST4}",
        ("peer", HOST4): by_gateway,
        ("peer", "udp"): by_gateway,
        ("peer", "web"): f"web saw {peer_address}",
        ("other", HOST4): by_gateway,
        ("other", "udp"): by_gateway,
        ("other", "gateway of web"): by_gateway,
    }
    assert other_is_blocked
    assert other_address.startswith("10.4.1.")
    assert not host.change_since(before)


def test_a_range_of_ports_on_one_address(host: NerdctlHost, before: dict[str, object]) -> None:
    """One mapping for each port, all on 127.0.0.1: nobody else's."""
    with host.running("web", "127.0.0.1:9000-9002:80-82", "9100-9101:80-81") as web, host.serving("web", 81):
        mappings = [(port["HostIP"], port["HostPort"], port["ContainerPort"]) for port in web.container.ports]
        seen = [host.ask("host", LOCALHOST, port) for port in (9000, 9001, 9002, 9101)]
        far = [host.ask("client", HOST4, port) for port in (9000, 9001, 9002, 9101)]
    assert mappings[:3] == [(LOCALHOST, 9000, 80), (LOCALHOST, 9001, 81), (LOCALHOST, 9002, 82)]
    assert mappings[3:] == [("0.0.0.0", 9100, 80), ("0.0.0.0", 9101, 81)]
    assert seen == [f"web saw {GATEWAY}", f"web saw {GATEWAY}", REFUSED, f"web saw {GATEWAY}"]
    assert far == [REFUSED, REFUSED, REFUSED, f"web saw {CLIENT4}"]
    assert not host.change_since(before)


def test_two_networks_at_once(host: NerdctlHost, before: dict[str, object]) -> None:
    with (
        host.running("web", f"{PORT}:80", networks=(DEFAULT, OTHER)) as web,
        host.running("peer") as peer,
        host.running("other", networks=(OTHER,)) as other,
    ):
        addresses = web.addresses()
        seen = [host.ask(who, HOST4, PORT) for who in ("client", "host", "peer", "other")]
        direct = [host.ask("peer", web.address(0)), host.ask("other", web.address(1))]
        inside = [peer.address(), other.address()]
    assert addresses == {f"eth{index}": [result["ips"][0]["address"]] for index, result in enumerate(web.results)}
    assert [answer.split(" saw ")[0] for answer in seen] == ["web"] * 4
    assert direct == [f"web saw {address}" for address in inside]
    assert not host.change_since(before)


def test_an_ipv6_network(host: NerdctlHost, before: dict[str, object]) -> None:
    asked = "2001:db8:4::77"
    with (
        host.running("web", f"{PORT}:80", networks=(DUAL,), ip6=asked) as web,
        host.running("peer", networks=(DUAL,)) as peer,
        host.running("other", networks=(OTHER, DUAL)) as other,
    ):
        addresses = web.addresses()
        direct = [host.ask("peer", asked), host.ask("host", asked), host.ask("other", asked)]
        published = [
            host.ask("client", HOST4, PORT),
            host.ask("client", HOST6, PORT),
            host.ask("host", LOCALHOST, PORT),
        ]
        expected = [peer.address(0, 6), "2001:db8:4::1", other.address(1, 6)]
    assert addresses == {"eth0": [f"{web.address()}/24", f"{asked}/64"]}
    assert direct == [f"web saw {address}" for address in expected]
    assert published == [f"web saw {CLIENT4}", REFUSED, "web saw 10.4.2.1"]
    assert not host.change_since(before)


def test_an_internal_network(host: NerdctlHost, before: dict[str, object]) -> None:
    """No gateway, no route, no portmap: the ports that were asked for go nowhere."""
    with (
        host.running("web", f"{PORT}:80", networks=(INTERNAL,)) as web,
        host.running("peer", networks=(INTERNAL,)) as peer,
    ):
        routes = web.default_routes()
        direct = host.ask("peer", web.address())
        outside = host.ask("web", CLIENT4)
        is_published = not host.is_blocked("client", HOST4, PORT)
        expected = f"web saw {peer.address()}"
    assert (direct, routes, outside) == (expected, [], "OSError")
    assert not is_published
    assert not host.change_since(before)


def test_containers_of_an_isolated_network(host: NerdctlHost, before: dict[str, object]) -> None:
    """icc=false: neighbours do not reach each other, everybody reaches published ports."""
    with (
        host.running("web", f"{PORT}:80", networks=(ISOLATED,)) as web,
        host.running("peer", networks=(ISOLATED,)) as peer,
        host.running("other") as other,
        host.serving("client"),
    ):
        blocked = [host.is_blocked(who, web.address()) for who in ("peer", "other")]
        blocked += [host.is_blocked("web", container.address()) for container in (peer, other)]
        seen = {who: host.ask(who, HOST4, PORT) for who in ("client", "host", "peer", "other", "web")}
        seen |= {"127.0.0.1": host.ask("host", LOCALHOST, PORT), "direct": host.ask("host", web.address())}
        out = host.ask("web", CLIENT4)
    assert blocked == [True] * 4
    by_gateway = "web saw 10.4.4.1"
    assert seen == {
        "client": f"web saw {CLIENT4}",
        "host": f"web saw {HOST4}",
        "peer": by_gateway,
        "other": by_gateway,
        "web": by_gateway,
        "127.0.0.1": by_gateway,
        "direct": by_gateway,
    }
    assert out == f"client saw {HOST4}"
    assert not host.change_since(before)


@on_nftables
def test_an_address_and_a_mac_that_were_asked_for(host: NerdctlHost, before: dict[str, object]) -> None:
    with host.running("web", f"{PORT}:80", ip="10.4.0.77", mac="02:00:5e:10:00:01") as web:
        addresses = web.addresses()
        link = web.run("ip", "-brief", "link", "show", "eth0")
        seen = host.ask("client", HOST4, PORT)
    assert addresses == {"eth0": ["10.4.0.77/24"]}
    assert web.results[0]["interfaces"][2]["mac"] == "02:00:5e:10:00:01"
    assert "02:00:5e:10:00:01" in link
    assert seen == f"web saw {CLIENT4}"
    assert not host.change_since(before)


def test_an_address_that_is_taken_fails_the_second_container_alone(
    host: NerdctlHost, before: dict[str, object]
) -> None:
    """All is taken back, also in the other network that was being connected at the same time."""
    with host.running("web", f"{PORT}:80", ip="10.4.0.77"):
        meanwhile = host.state()
        late = host.container("late", "8081:80", networks=(OTHER, DEFAULT), ip="10.4.0.77")
        with pytest.raises(nerdctl.PluginFailed, match=r"10\.4\.0\.77"):
            late.start()
        late.die()
        change = host.change_since(meanwhile)
        seen = host.ask("client", HOST4, PORT)
    assert not change
    assert seen == f"web saw {CLIENT4}"
    assert not host.change_since(before)


def test_the_end_is_told_while_the_namespace_is_still_there(host: NerdctlHost, before: dict[str, object]) -> None:
    """Another process may have joined it; DEL is not told its path."""
    with host.running("web", f"{PORT}:80", networks=(DEFAULT, DUAL)) as web:
        web.told()
        assert not host.change_since(before)
        assert "eth" not in web.run("ip", "-brief", "link")


def test_a_container_is_stopped_and_started(host: NerdctlHost, before: dict[str, object]) -> None:
    """Then containerd is restarted: the hook of a start comes again for the same id, with another process, and no end before."""
    with host.running("web", f"{PORT}:80", networks=(DEFAULT, OTHER)) as web:
        assert web.stop() == []
        assert not host.change_since(before)
        assert host.ask("client", HOST4, PORT) == REFUSED
        for _ in range(2):
            earlier = web.address()
            web.reborn()
            assert web.addresses() == {
                f"eth{index}": [result["ips"][0]["address"]] for index, result in enumerate(web.results)
            }
            assert web.address() != earlier
            assert host.ask("client", HOST4, PORT) == f"web saw {CLIENT4}"
    assert not host.change_since(before)


def test_the_policy_of_an_admin_is_to_drop(other_host: NerdctlHost) -> None:
    """Docker, where it is installed too, leaves it like that."""
    other_host.run("iptables", "--policy", "FORWARD", "DROP")
    with (
        other_host.running("web", f"{PORT}:80") as web,
        other_host.running("peer") as peer,
        other_host.running("other", networks=(OTHER,)),
        other_host.serving("client"),
    ):
        seen = [other_host.ask(who, HOST4, PORT) for who in ("client", "host", "peer", "other")]
        direct = other_host.ask("peer", web.address())
        out = other_host.ask("web", CLIENT4)
        blocked = other_host.is_blocked("other", web.address())
        expected = f"web saw {peer.address()}"
    by_gateway = f"web saw {GATEWAY}"
    assert seen == [f"web saw {CLIENT4}", f"web saw {HOST4}", by_gateway, by_gateway]
    assert (direct, out, blocked) == (expected, f"client saw {HOST4}", True)
    assert other_host.traces(web) == []


def test_the_backend_is_switched_while_a_container_runs(other_host: NerdctlHost) -> None:
    """Its DEL takes away what the other backend has of it; the next container finds its port free."""
    next_backend = {"nftables": "iptables", "iptables": "nftables"}[other_host.backend]
    with other_host.running("web", f"{PORT}:80") as web:
        other_host.switch_to(next_backend)
    assert other_host.traces(web) == []
    with other_host.running("web", f"{PORT}:80") as web:
        seen = other_host.ask("client", HOST4, PORT)
    assert seen == f"web saw {CLIENT4}"
    assert other_host.traces(web) == []


@pytest.mark.parametrize("other_host", ["nftables"], indirect=True)
def test_a_user_has_written_the_backend_into_the_conflist(other_host: NerdctlHost) -> None:
    iptables = {"backend": "iptables"}
    changes = {"bridge": {"ipMasqBackend": "iptables"}, "portmap": iptables, "firewall": iptables}
    for name in (DEFAULT, OTHER):
        other_host.create_network(name, *SUBNETS[name], changes=changes)
    with other_host.running("web", f"{PORT}:80", networks=(OTHER,)) as web, other_host.running("far"):
        seen = [other_host.ask(who, HOST4, PORT) for who in ("client", "host", "web", "far")]
        ports = other_host.node.python(nerdctl.mapped_ports, "")
        blocked = other_host.is_blocked("far", web.address())
    by_gateway = "web saw 10.4.1.1"
    assert seen == [f"web saw {CLIENT4}", f"web saw {HOST4}", by_gateway, by_gateway]
    assert (ports, blocked) == ({PORT}, True)
    assert other_host.traces(web) == []


# What others read of iptables


def test_a_port_that_is_held_is_refused_by_nerdctl(host: NerdctlHost, before: dict[str, object]) -> None:
    """The port reserver's sockets are in /proc/net, whatever the backend."""
    with host.running("web", f"{PORT}:80", "9000-9003:80-83", f"{UDP_PORT}:53/udp"):
        for port in (f"{PORT}:80", "9003:80"):
            with pytest.raises(nerdctl.Refused, match="port is already allocated"):
                host.node.python(nerdctl.publish, port)
        (free,) = host.node.python(nerdctl.publish, "80")
        held = {protocol: host.node.python(nerdctl.held_ports, "", protocol) for protocol in ("tcp", "udp")}
    assert free["HostPort"] == nerdctl.AUTOMATIC_PORTS[0]
    assert held == {"tcp": {PORT, 9000, 9001, 9002, 9003}, "udp": {UDP_PORT}}
    assert not host.change_since(before)


@on_iptables
def test_nerdctl_reads_ports_from_the_iptables_rules(host: NerdctlHost, before: dict[str, object]) -> None:
    """Also without a reserver, as nerdctl was before 2.1: every port, and the address it is for."""
    with host.running("web", f"{PORT}:80", "9000-9003:80-83", f"127.0.0.1:{UDP_PORT}:53/udp") as web:
        host.node.python(nerdctl.stop_reserver, web.container)
        ports = host.node.python(nerdctl.mapped_ports, "")
        elsewhere = host.node.python(nerdctl.mapped_ports, HOST4)
        with pytest.raises(nerdctl.Refused, match="port is already allocated"):
            host.node.python(nerdctl.publish, "9002:80")
    assert ports == {PORT, 9000, 9001, 9002, 9003, UDP_PORT}
    assert elsewhere == ports - {UDP_PORT}
    assert not host.change_since(before)


@on_nftables
def test_nerdctl_reads_no_ports_with_nftables(host: NerdctlHost, before: dict[str, object]) -> None:
    """Without a reserver it would give the port to a second container, which portmap then refuses, and says who has it."""
    with host.running("web", f"{PORT}:80") as web:
        host.node.python(nerdctl.stop_reserver, web.container)
        assert host.node.python(nerdctl.mapped_ports, "") == set()
        late = host.container("late", f"{PORT}:80")
        with pytest.raises(nerdctl.PluginFailed, match=web.container.full_id):
            late.start()
        late.die()
        seen = host.ask("client", HOST4, PORT)
    assert seen == f"web saw {CLIENT4}"
    assert not host.change_since(before)


@on_iptables
def test_nerdctl_deletes_the_rules_of_a_container_before_its_end(host: NerdctlHost, before: dict[str, object]) -> None:
    """The DEL after that has nothing to complain of."""
    with host.running("web", f"{PORT}:80", networks=(DEFAULT, OTHER)) as web:
        rules = host.node.python(nerdctl.clean_up_rules, web.container)
        again = host.node.python(nerdctl.clean_up_rules, web.container)
        is_published = not host.is_blocked("client", HOST4, PORT)
    chains = {nerdctl.chain_name(name, web.container.full_id) for name in web.container.networks}
    assert {rule.split()[-1] for rule in rules if "-A POSTROUTING" in rule} == chains
    assert len([rule for rule in rules if "-A CNI-HOSTPORT-DNAT" in rule]) == len(chains)
    assert again == []
    assert not is_published
    assert not host.change_since(before)


@on_nftables
def test_nerdctl_finds_no_rules_with_nftables(host: NerdctlHost, before: dict[str, object]) -> None:
    with host.running("web", f"{PORT}:80") as web:
        assert host.node.python(nerdctl.clean_up_rules, web.container) == []
        seen = host.ask("client", HOST4, PORT)
    assert seen == f"web saw {CLIENT4}"
    assert not host.change_since(before)


def test_nomad_repairs_masquerading_rules_of_iptables_alone(other_host: NerdctlHost) -> None:
    with other_host.allocated("alloc", PORT) as run:
        seen = other_host.ask("client", HOST4, PORT)
        if other_host.backend == "iptables":
            other_host.node.python(neighbours.nomad_repair, run.container)
        with pytest.raises(neighbours.NotFound, match="failed to find postrouting rule"):
            other_host.node.python(neighbours.nomad_repair, run.container)
    assert seen == f"alloc saw {CLIENT4}"
    assert other_host.traces(run) == []


def test_k3s_kills_traffic_rules_of_iptables_alone(other_host: NerdctlHost) -> None:
    """It takes the reservations and libcni's cache, too: DEL comes without a result, and leaves nothing."""
    with other_host.running("web", f"{PORT}:80") as web:
        rules = other_host.node.python(neighbours.k3s_kill_all)
        is_published = not other_host.is_blocked("client", HOST4, PORT)
    assert "CNI-" not in rules
    assert "web" not in rules
    assert is_published == (other_host.backend == "nftables")
    assert other_host.traces(web) == []
    with other_host.running("web", f"{PORT}:80"):
        seen = other_host.ask("client", HOST4, PORT)
    assert seen == f"web saw {CLIENT4}"


def test_the_reserver_is_not_in_the_way_of_its_container(other_host: NerdctlHost) -> None:
    """Where portmap refuses ports that programs of the host listen on: the reserver listens on those of the container."""
    refusing = {"portmap": {"hostListener": "refuse"}}
    other_host.create_network(ISOLATED, *SUBNETS[ISOLATED], changes=refusing)
    networks = (ISOLATED, DEFAULT)  # the second one's portmap would only say so
    with other_host.running("web", f"{PORT}:80", f"{UDP_PORT}:53/udp", networks=networks) as web:
        assert other_host.lines_listening(PORT) == 1
        assert other_host.ask("client", HOST4, PORT) == f"web saw {CLIENT4}"
        web.reborn()  # with its ports reserved anew
        assert other_host.ask("client", HOST4, PORT) == f"web saw {CLIENT4}"
    assert other_host.lines_listening(PORT) == 0
    late = other_host.container("late", f"{PORT}:80", networks=(ISOLATED,))
    with (
        other_host.serving("host", PORT),
        pytest.raises(nerdctl.PluginFailed, match=r"8080/tcp on 0\.0\.0\.0 is in use by"),
    ):
        late.start()
