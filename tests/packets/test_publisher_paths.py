"""Every path to a published port with portmap and portfwd together: who answers, and which client the container sees.

The paths are those of the table in section 1.4 of the study of port publishers, by row. `auto`: NAT serves what it can and
portfwd the rest. `always`: portfwd serves all, on a host without one nftables rule of ours. See publisher_world.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from conversation import CLIENT, HOST
from lab import Lab, Wire
from runtime import Plugins, mapping

from tests.conftest import need_root
from tests.packets.conftest import together
from tests.packets.publisher_world import (
    GATEWAYS,
    HOST_IPS,
    INSIDE,
    PUBLISHED,
    QUIET_S,
    REFUSED,
    SILENT,
    UNPUBLISHED,
    World,
    ask_link_local,
    both,
    described,
    know_the_way_in,
    link_local,
    usual,
    world,
)
from tests.portfwd.publisher import PORTFWD, serving

pytestmark = pytest.mark.ours_alone

PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
FAMILIES = pytest.mark.parametrize("family", [4, 6])
WITH_NAT = pytest.mark.parametrize("place", together("paths", "auto"), indirect=True, scope="module")
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
HELD = {"bound": 8120, "listening": 8121}  # by another process, as podman's and nerdctl's ports are
HELD_FOUR, HELD_UDP = 8122, 8123
LONG = range(8200, 8264)  # steered to one socket
SCTP_PORT = 8132
G = {family: GATEWAYS["lab"][family] for family in (4, 6)}
G4, G6 = GATEWAYS["four"][4], GATEWAYS["six"][6]  # of the containers with one family


@pytest.fixture(scope="module", params=together("paths", "auto", "always"))
def place(request: pytest.FixtureRequest, plugins: Plugins) -> Iterator[World]:
    """All containers published, the service running. The same for all tests that only look."""
    need_root()
    with world(plugins, str(request.param)) as found, serving(found.lab["host"]) as publisher:
        found.publisher = publisher
        more = [one for host_ip, port in HOST_IPS.items() for one in both(port, host_ip)]
        if found.use == "auto":
            for how, port in HELD.items():
                found.hold(how, "tcp", port)
                more.append(mapping(port, 80))
            found.hold("bound", "udp", HELD_UDP)
            found.hold("bound", "tcp", HELD_FOUR)
            more += [mapping(HELD_UDP, 53, "udp"), mapping(SCTP_PORT, 80, "sctp")]
            more += [mapping(port, port) for port in LONG]
            found.attach("c5", *usual("c5"))
            found.serve("c5")
            found.lab.serve("c5", UNPUBLISHED)
        found.attach("c1", *usual("c1"), *more)
        found.attach("c2")
        found.attach("c4", *usual("c4"), *([mapping(HELD_FOUR, 80)] if found.use == "auto" else []))
        found.attach("c6", *usual("c6"))
        found.serve("c1", "c4", "c6")
        for port in (UNPUBLISHED, LONG[0], LONG[-1]):
            found.lab.serve("c1", port)
        know_the_way_in(found)
        yield found


@pytest.fixture(autouse=True)
def _bridge_nf(request: pytest.FixtureRequest) -> None:
    if "place" in request.fixturenames:
        found: World = request.getfixturevalue("place")
        found.set_bridge_nf(request.node.callspec.params.get("bridge_nf", 0))


@dataclass(frozen=True, slots=True)
class Path:
    """A row of the table: who goes where, and the client that the container sees by NAT and by portfwd."""

    row: str
    words: str
    client: str
    address: str
    container: str
    nat: str
    relayed: str
    bridge_nf: tuple[int, ...] = (0,)

    def __str__(self) -> str:
        return f"{self.row} {self.words}"


def direct(row: str, words: str, client: str, family: int, nat: str, bridge_nf: tuple[int, ...] = (0,)) -> Path:
    return Path(row, words, client, HOST[family], "c1", nat, G[family], bridge_nf)


PATHS = [
    direct("1", "remote client to the host's IPv4", "client", 4, CLIENT[4]),
    direct("2", "remote client to the host's IPv6", "client", 6, CLIENT[6]),
    Path("3", "remote IPv6 client to an IPv4 container", "client", HOST[6], "c4", G4, G4),
    Path("3", "remote IPv4 client to an IPv6 container", "client", HOST[4], "c6", G6, G6),
    direct("4", "host to its own IPv4", "host", 4, HOST[4]),
    direct("4", "host to its own IPv6", "host", 6, HOST[6]),
    Path("4", "host's IPv6 to an IPv4 container", "host", HOST[6], "c4", G4, G4),
    Path("5", "host to 127.0.0.1", "host", "127.0.0.1", "c1", G[4], G[4]),
    Path("5", "host's 127.0.0.1 to an IPv6 container", "host", "127.0.0.1", "c6", G6, G6),
    Path("6", "host to 127.0.0.9", "host", "127.0.0.9", "c1", G[4], G[4]),
    Path("7", "host to [::1]", "host", "::1", "c1", G[6], G[6]),
    Path("7", "host's [::1] to an IPv4 container", "host", "::1", "c4", G4, G4),
    direct("8, 9", "peer on the bridge to the host's IPv4", "c2", 4, G[4], (0, 1)),
    direct("10", "peer on the bridge to the host's IPv6", "c2", 6, G[6], (0, 1)),
    direct("11, 12", "container to itself by the host's IPv4", "c1", 4, G[4], (0, 1)),
    direct("11, 12", "container to itself by the host's IPv6", "c1", 6, G[6], (0, 1)),
    Path("11, 12", "IPv4 container to itself by the gateway", "c4", G4, "c4", G4, G4, (0, 1)),
    direct("13", "container of another bridge to the host's IPv4", "c4", 4, G[4], (0, 1)),
    direct("13", "container of another bridge to the host's IPv6", "c6", 6, G[6], (0, 1)),
    Path("13", "IPv4 peer of another bridge to an IPv6 container", "c2", HOST[4], "c6", G6, G6, (0, 1)),
]


@PROTOCOLS
@pytest.mark.parametrize(
    ("path", "bridge_nf"),
    [
        pytest.param(path, value, id=f"{path}{', br_netfilter' if value else ''}")
        for path in PATHS
        for value in path.bridge_nf
    ],
)
def test_path_leads_to_the_container_from(place: World, path: Path, bridge_nf: int, protocol: str) -> None:
    source = path.relayed if place.use == "always" else path.nat
    found = place.ask(path.client, path.address, PUBLISHED[path.container][protocol], protocol)
    assert found == f"{path.container} saw {source}"


@PROTOCOLS
@pytest.mark.parametrize("container", ["c1", "c4"])
@pytest.mark.parametrize(("node", "towards"), [("client", "lan0"), ("c2", "cni0"), ("c1", "cni0")])
def test_link_local_client_is_served_from_the_gateway(
    place: World, node: str, towards: str, container: str, protocol: str
) -> None:
    """Row 19: a remote client, a peer on the bridge, and the container itself."""
    lab = place.lab
    lab[node].python(link_local, "eth0")
    host = lab["host"].python(link_local, towards)
    found = lab[node].python(ask_link_local, host, "eth0", PUBLISHED[container][protocol], protocol)
    assert found == f"{container} saw {G[6] if container == 'c1' else G4}"


def test_host_without_nat_has_no_table_of_ours(place: World) -> None:
    tables = place.tables()
    if place.use == "always":
        assert tables == ""
    else:
        assert "table inet cni_py" in tables


# On the wire


def watch(place: World, container: str) -> tuple[Wire, Wire]:
    """What the client and a container see while the client asks the other family's address of the host."""
    lab, family = place.lab, 6 if container == "c4" else 4
    with lab.capture("client", "eth0") as outside, lab.capture(container, "eth0") as inside:
        for protocol, port in PUBLISHED[container].items():
            assert place.ask("client", HOST[family], port, protocol).startswith(container)
    return outside, inside


@pytest.mark.parametrize("container", ["c4", "c6"])
def test_each_side_speaks_its_own_family(place: World, container: str) -> None:
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6

    outside, inside = watch(place, container)
    for protocol, port in PUBLISHED[container].items():
        assert {f"client > host:{port}", f"host:{port} > client"} <= place.conversation(outside)
        number = INSIDE[protocol]
        assert {f"gateway > {container}:{number}", f"{container}:{number} > gateway"} <= place.conversation(inside)
    ours, theirs = (IPv6, IP) if container == "c4" else (IP, IPv6)
    for wire, wrong in ((outside, theirs), (inside, ours)):
        assert not [packet for packet in wire.packets() if wrong in packet and described(packet, {})]


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("bridge_nf", [0, 1])
def test_container_that_reaches_itself_hears_the_host(place: World, family: int, protocol: str, bridge_nf: int) -> None:
    port, number = PUBLISHED["c1"][protocol], INSIDE[protocol]
    with place.lab.capture("c1", "eth0") as wire:
        place.ask("c1", HOST[family], port, protocol)
    assert place.conversation(wire) == {
        f"c1 > host:{port}",
        f"gateway > c1:{number}",
        f"c1:{number} > gateway",
        f"host:{port} > c1",
    }


# What hostIP opens, and nothing else

REACHED = {
    "127.0.0.1": {"127.0.0.1"},
    "::1": {"::1"},
    "0.0.0.0": {"127.0.0.1", "127.0.0.9", HOST[4]},
    "::": {"::1", HOST[6]},
    HOST[4]: {HOST[4]},
    HOST[6]: {HOST[6]},
}


@PROTOCOLS
@pytest.mark.parametrize("host_ip", REACHED)
def test_host_ip_opens_its_own_addresses_alone(place: World, host_ip: str, protocol: str) -> None:
    """What is closed refuses at once, as it would if nothing was published."""
    port, wanted = HOST_IPS[host_ip], REACHED[host_ip]
    for node, addresses in (
        ("host", ("127.0.0.1", "127.0.0.9", "::1", HOST[4], HOST[6])),
        ("client", (HOST[4], HOST[6])),
        ("c1", (HOST[4], HOST[6])),
    ):
        found = {address: place.ask(node, address, port, protocol) for address in addresses}
        for address, answer in found.items():
            assert answer.startswith("c1 saw") if address in wanted else answer == REFUSED, (node, address, answer)
    if host_ip == "::1":
        assert place.ask("host", "::1", port, protocol) == f"c1 saw {G[6]}"


def attack(lab: Lab, ifname: str, node: str, mac: str, sources: dict[int, str]) -> int:
    """Frames to loopback addresses, addressed at the link layer to the host; how many."""
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    tcp = [
        HOST_IPS["127.0.0.1"],
        HOST_IPS["::1"],
        PUBLISHED["c1"]["tcp"],
        PUBLISHED["c6"]["tcp"],
        HELD["bound"],
        LONG[0],
    ]
    udp = [HOST_IPS["127.0.0.1"], HOST_IPS["::1"], PUBLISHED["c1"]["udp"], PUBLISHED["c6"]["udp"]]
    frames = []
    for target in ("127.0.0.1", "127.0.0.9", "::1"):
        kind, source = (IPv6, sources[6]) if ":" in target else (IP, sources[4])
        packet = Ether(src=ifmac(lab, node, "eth0"), dst=mac) / kind(src=source, dst=target)
        frames += [packet / TCP(sport=40000, dport=port, flags="S") for port in tcp]
        frames += [packet / UDP(sport=40000, dport=port) / b"attack" for port in udp]
    lab.send(node, ifname, *frames)
    return len(frames)


def ifmac(lab: Lab, name: str, ifname: str) -> str:
    def read() -> str:
        with open(f"/sys/class/net/{ifname}/address", encoding="ascii") as file:
            return file.read().strip()

    return lab[name].python(read)


def of_attack(wire: Wire) -> list[str]:
    from scapy.layers.inet import TCP, UDP

    found = []
    for packet in wire.packets():
        transport = packet.getlayer(TCP) or packet.getlayer(UDP)
        if transport is not None and 40000 in (transport.sport, transport.dport):
            found.append(packet.summary())
    return found


@pytest.mark.parametrize("node", ["client", "c2"])
def test_neighbour_reaches_nothing_through_loopback_addresses(place: World, node: str) -> None:
    """Row 14. Neither a container nor the service gets one of the frames, nor is one answered."""
    lab = place.lab
    towards, sources = ("lan0", CLIENT) if node == "client" else ("cni0", {f: place.address("c2", f) for f in (4, 6)})
    before = connections(place)
    with (
        lab.capture("c1", "eth0") as first,
        lab.capture("c6", "eth0") as second,
        lab.capture("host", "lo") as loopback,
        lab.capture(node, "eth0") as wire,
    ):
        count = attack(lab, "eth0", node, ifmac(lab, "host", towards), sources)
        assert place.ask(node, HOST[4], PUBLISHED["c1"]["tcp"]).startswith("c1")  # what came before it has arrived
        assert place.ask(node, HOST[6], PUBLISHED["c1"]["tcp"]).startswith("c1")
    assert [of_attack(found) for found in (first, second, loopback)] == [[], [], []]
    assert len(of_attack(wire)) == count
    assert connections(place) - before == (2 if place.use == "always" else 0)


def connections(place: World) -> int:
    found = place.service.ask("stats")["service"]["connections"]
    assert isinstance(found, int)
    return found


@FAMILIES
def test_neighbour_goes_round_the_published_ports(place: World, family: int) -> None:
    """Rows 15 and 16, as with the reference."""
    for protocol, port in INSIDE.items():
        assert place.ask("client", place.address("c1", family), port, protocol) == f"c1 saw {CLIENT[family]}"
    assert place.ask("client", place.address("c1", family), UNPUBLISHED) == f"c1 saw {CLIENT[family]}"


@WITH_NAT
@FAMILIES
def test_neighbour_has_the_published_ports_alone_where_direct_access_is_blocked(place: World, family: int) -> None:
    """Rows 15 and 16."""
    for port in (80, UNPUBLISHED):
        assert place.ask("client", place.address("c5", family), port, timeout_s=QUIET_S) == SILENT
    for protocol, port in PUBLISHED["c5"].items():
        assert place.ask("client", HOST[family], port, protocol) == f"c5 saw {CLIENT[family]}"
        assert place.ask("host", LOOPBACK[family], port, protocol) == f"c5 saw {GATEWAYS['guard'][family]}"


# SCTP


@WITH_NAT
def test_sctp_is_nat_alone(place: World) -> None:
    """Row 20: an association is begun by a frame, since this kernel may have no such sockets."""
    from scapy.layers.inet import IP
    from scapy.layers.l2 import Ether
    from scapy.layers.sctp import SCTP, SCTPChunkInit

    lab = place.lab
    packet = Ether(src=ifmac(lab, "client", "eth0"), dst=ifmac(lab, "host", "lan0")) / IP(src=CLIENT[4], dst=HOST[4])
    begin = packet / SCTP(sport=40000, dport=SCTP_PORT) / SCTPChunkInit(init_tag=7, init_tsn=1)
    with lab.capture("c1", "eth0") as wire:
        lab.send("client", "eth0", begin)
        assert place.ask("client", HOST[4], PUBLISHED["c1"]["tcp"]).startswith("c1")
    found = [(packet[IP].src, packet[IP].dst, packet[SCTP].dport) for packet in wire.packets(lambda one: SCTP in one)]
    assert found[:1] == [(CLIENT[4], place.address("c1", 4), 80)]
    assert "sctp" not in {one["protocol"] for one in place.service.ask("list")["mappings"]}


def test_portfwd_refuses_sctp_in_a_sentence(place: World) -> None:
    done = place.lab["host"].run([str(PORTFWD), "publish", "-p", "8133:80/sctp", "--to", place.address("c1", 4)])
    assert done.returncode != 0
    assert "SCTP" in done.stderr
    assert "Traceback" not in done.stderr


# Ports that the runtime holds with sockets of its own


@WITH_NAT
@pytest.mark.parametrize("how", HELD)
def test_port_held_by_the_runtime_is_served_on_every_path(place: World, how: str) -> None:
    port = HELD[how]
    assert place.ask("host", "::1", port) == f"c1 saw {G[6]}"
    assert place.ask("host", "127.0.0.1", port) == f"c1 saw {G[4]}"
    for family in (4, 6):
        assert place.ask("client", HOST[family], port) == f"c1 saw {CLIENT[family]}"
        assert place.ask("host", HOST[family], port) == f"c1 saw {HOST[family]}"
        assert place.ask("c1", HOST[family], port) == f"c1 saw {G[family]}"
    host = place.lab["host"].python(link_local, "lan0")
    assert place.lab["client"].python(ask_link_local, host, "eth0", port, "tcp") == f"c1 saw {G[6]}"


@WITH_NAT
def test_port_held_by_the_runtime_is_served_in_the_other_family(place: World) -> None:
    assert place.ask("client", HOST[6], HELD_FOUR) == f"c4 saw {G4}"
    assert place.ask("host", "::1", HELD_FOUR) == f"c4 saw {G4}"
    assert place.ask("client", HOST[4], HELD_FOUR) == f"c4 saw {CLIENT[4]}"


@WITH_NAT
def test_udp_port_held_by_the_runtime_costs_ipv6_loopback_and_a_note(place: World) -> None:
    assert f"{HELD_UDP}/udp" in place.said("c1")
    assert f"{HELD['bound']}/tcp" not in place.said("c1")
    for family in (4, 6):
        assert place.ask("client", HOST[family], HELD_UDP, "udp") == f"c1 saw {CLIENT[family]}"
    assert place.ask("host", "127.0.0.1", HELD_UDP, "udp") == f"c1 saw {G[4]}"
    assert place.ask("host", "::1", HELD_UDP, "udp", QUIET_S) == SILENT  # it is the holder's


@WITH_NAT
@pytest.mark.parametrize("port", [LONG[0], LONG[-1]])
def test_long_range_is_served_on_every_path(place: World, port: int) -> None:
    assert place.ask("host", "::1", port) == f"c1 saw {G[6]}"
    assert place.ask("host", "127.0.0.9", port) == f"c1 saw {G[4]}"
    for family in (4, 6):
        assert place.ask("client", HOST[family], port) == f"c1 saw {CLIENT[family]}"
        assert place.ask("c1", HOST[family], port) == f"c1 saw {G[family]}"
