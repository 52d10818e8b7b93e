"""Every path to a published port: what is on the wire at the client, on the bridge and in the container.

The paths and the sources are those of the table in section 1.4 of the study of port publishers, column "CNI portmap
iptables"; where ours does better the test is marked as ours alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from conversation import CLIENT, HOST, INSIDE, PUBLISHED, WEB, conversation, fetch_at_once
from lab import Lab, Wire
from runtime import GATEWAY, Network, mapping

FAMILIES = pytest.mark.parametrize("family", [4, 6])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
BRIDGE_NF = pytest.mark.parametrize("bridge_nf", [0, 1])


@dataclass(slots=True)
class Vantage:
    client: Wire
    bridge: Wire
    container: Wire


@contextlib.contextmanager
def watched(lab: Lab) -> Iterator[Vantage]:
    with (
        lab.capture("client", "eth0") as client,
        lab.capture("host", "cni0") as bridge,
        lab.capture("c1", "eth0") as container,
    ):
        yield Vantage(client, bridge, container)


def set_bridge_nf(lab: Lab, value: int) -> None:
    """Whether bridged traffic passes the IP hooks too (br_netfilter)."""
    settings = [f"net.bridge.bridge-nf-call-{name}={value}" for name in ("iptables", "ip6tables")]
    lab["host"].run(["sysctl", "-q", "-w", *settings], check=True)


@pytest.fixture(autouse=True)
def _bridge_nf(request: pytest.FixtureRequest, published: Network) -> None:
    set_bridge_nf(published.lab, request.node.callspec.params.get("bridge_nf", 0))


@FAMILIES
@PROTOCOLS
def test_remote_client_keeps_its_source(published: Network, family: int, protocol: str) -> None:
    port = PUBLISHED[protocol]
    with watched(published.lab) as wires:
        answer = published.lab.fetch("client", HOST[family], port, protocol)
    inside = [f"client > c1:{INSIDE[protocol]}", f"c1:{INSIDE[protocol]} > client"]
    assert (answer.name, answer.peer, answer.local) == ("c1", CLIENT[family], published.address("c1", family))
    assert conversation(published, wires.client) == [f"client > host:{port}", f"host:{port} > client"]
    assert conversation(published, wires.bridge) == inside
    assert conversation(published, wires.container) == inside


@FAMILIES
@PROTOCOLS
def test_host_through_its_own_address_keeps_it(published: Network, family: int, protocol: str) -> None:
    with watched(published.lab) as wires:
        answer = published.lab.fetch("host", HOST[family], PUBLISHED[protocol], protocol)
    inside = [f"host > c1:{INSIDE[protocol]}", f"c1:{INSIDE[protocol]} > host"]
    assert (answer.name, answer.peer) == ("c1", HOST[family])
    assert conversation(published, wires.client) == []
    assert conversation(published, wires.bridge) == inside
    assert conversation(published, wires.container) == inside


@PROTOCOLS
@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9"])
def test_host_through_loopback_arrives_from_the_gateway(published: Network, address: str, protocol: str) -> None:
    with watched(published.lab) as wires:
        answer = published.lab.fetch("host", address, PUBLISHED[protocol], protocol)
    inside = [f"gateway > c1:{INSIDE[protocol]}", f"c1:{INSIDE[protocol]} > gateway"]
    assert (answer.name, answer.peer) == ("c1", GATEWAY[4])
    assert conversation(published, wires.bridge) == inside
    assert conversation(published, wires.container) == inside


@pytest.mark.ours_alone
@BRIDGE_NF
def test_host_through_the_ipv6_loopback_is_refused_at_once(published: Network, bridge_nf: int) -> None:
    """The reference hangs here: a rule of its matches ::1, and the answer has no way back."""
    with watched(published.lab) as wires, pytest.raises(ConnectionRefusedError):  # and no TimeoutError
        published.lab.fetch("host", "::1", PUBLISHED["tcp"])
    assert conversation(published, wires.bridge) == []


@FAMILIES
@PROTOCOLS
@BRIDGE_NF
def test_neighbour_on_the_bridge_arrives_from_the_gateway(
    published: Network, family: int, protocol: str, bridge_nf: int
) -> None:
    if published.plugins.keys:
        pytest.skip(
            "Go 1.9.1 by nftables masquerades no neighbour: its answer comes from another address, or not at all"
        )
    port, container_port = PUBLISHED[protocol], INSIDE[protocol]
    with watched(published.lab) as wires, published.lab.capture("c2", "eth0") as neighbour:
        answer = published.lab.fetch("c2", HOST[family], port, protocol)
    assert (answer.name, answer.peer) == ("c1", GATEWAY[family])
    assert conversation(published, neighbour) == [f"c2 > host:{port}", f"host:{port} > c2"]
    assert conversation(published, wires.container) == [
        f"gateway > c1:{container_port}",
        f"c1:{container_port} > gateway",
    ]
    assert conversation(published, wires.client) == []


@FAMILIES
@PROTOCOLS
@BRIDGE_NF
def test_container_reaches_itself_through_the_host(
    published: Network, family: int, protocol: str, bridge_nf: int
) -> None:
    port, container_port = PUBLISHED[protocol], INSIDE[protocol]
    with watched(published.lab) as wires:
        answer = published.lab.fetch("c1", HOST[family], port, protocol)
    assert (answer.name, answer.peer) == ("c1", GATEWAY[family])
    assert conversation(published, wires.container) == [
        f"c1 > host:{port}",
        f"gateway > c1:{container_port}",
        f"c1:{container_port} > gateway",
        f"host:{port} > c1",
    ]


@pytest.mark.ours_alone
@FAMILIES
def test_port_answers_as_soon_as_the_first_add_has_returned(network: Network, family: int) -> None:
    """Elsewhere IPv6 is silent for two seconds: a bridge whose addresses are tentative may not ask for its neighbours."""
    network.lab.serve("c1", 80)
    network.attach("c1", mapping(WEB, 80))
    assert fetch_at_once(network.lab, "client", "eth0", HOST[family], WEB).name == "c1"


@pytest.mark.ours_alone
@FAMILIES
def test_container_reaches_itself_with_br_netfilter_without_being_told_hairpin_mode(
    network: Network, family: int
) -> None:
    """Elsewhere the flow times out unless the config says hairpinMode: with br_netfilter it is one bridge port, in and out."""
    network.hairpin_mode = False
    set_bridge_nf(network.lab, 1)
    network.attach("c1", mapping(WEB, 80))
    network.lab.serve("c1", 80)
    assert network.lab.fetch("c1", HOST[family], WEB).peer == GATEWAY[family]


@FAMILIES
@PROTOCOLS
def test_container_on_the_way_out_is_masqueraded(published: Network, family: int, protocol: str) -> None:
    port = INSIDE[protocol]
    server = published.lab.serve("client", port, protocol)
    with watched(published.lab) as wires:
        answer = published.lab.fetch("c2", CLIENT[family], port, protocol)
    server.stop()
    assert (answer.name, answer.peer) == ("client", HOST[family])
    assert conversation(published, wires.client) == [f"host > client:{port}", f"client:{port} > host"]
    assert conversation(published, wires.bridge) == [f"c2 > client:{port}", f"client:{port} > c2"]


@FAMILIES
@PROTOCOLS
@BRIDGE_NF
def test_traffic_inside_the_subnet_keeps_its_source(
    published: Network, family: int, protocol: str, bridge_nf: int
) -> None:
    with watched(published.lab) as wires:
        answer = published.lab.fetch("c2", published.address("c1", family), INSIDE[protocol], protocol)
    assert (answer.name, answer.peer) == ("c1", published.address("c2", family))
    assert conversation(published, wires.container) == [f"c2 > c1:{INSIDE[protocol]}", f"c1:{INSIDE[protocol]} > c2"]


@FAMILIES
def test_host_reaches_the_container_by_its_own_address(published: Network, family: int) -> None:
    answer = published.lab.fetch("host", published.address("c1", family), 80)
    assert (answer.name, answer.peer) == ("c1", GATEWAY[family])


@FAMILIES
def test_port_that_nobody_published_is_refused(published: Network, family: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        published.lab.fetch("client", HOST[family], 8081)
