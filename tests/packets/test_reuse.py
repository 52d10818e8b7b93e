"""An address that a new container takes over, and UDP flows that outlive the container they went to."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from conversation import CLIENT, DNS, HOST, fetch_at_once
from lab import Lab
from runtime import Network, Plugins, mapping

REUSED = {4: "192.0.2.50", 6: "2001:db8:42::50"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
CLIENT_PORT = 40053  # the same flow in the eyes of conntrack
UDP = 17


def touch(lab: Lab, address: str) -> None:
    """One connection, refused: when it is, an announcement sent before has passed too."""
    with pytest.raises(ConnectionRefusedError):
        lab.fetch("host", address, 80)


@pytest.mark.ours_alone  # Debian 12's Go plugins announce nothing
def test_new_owner_of_an_address_is_announced_by_gratuitous_arp(network: Network) -> None:
    from scapy.layers.l2 import ARP

    network.attach("c1", ips=list(REUSED.values()))
    network.detach("c1")
    with network.lab.capture("host", "cni0") as wire:
        network.attach("c2", ips=list(REUSED.values()))
        touch(network.lab, REUSED[4])
    gratuitous = [
        packet[ARP] for packet in wire.packets(lambda packet: ARP in packet) if packet[ARP].psrc == packet[ARP].pdst
    ]
    assert [(packet.psrc, packet.hwsrc) for packet in gratuitous[:1]] == [(REUSED[4], network.mac("c2", "eth0"))]


@pytest.mark.ours_alone
def test_new_owner_of_an_address_is_announced_by_unsolicited_neighbour_advertisement(network: Network) -> None:
    from scapy.layers.inet6 import ICMPv6ND_NA, IPv6

    network.attach("c1", ips=list(REUSED.values()))
    network.detach("c1")
    with network.lab.capture("host", "cni0") as wire:
        network.attach("c2", ips=list(REUSED.values()))
        touch(network.lab, REUSED[6])
    unsolicited = [
        packet
        for packet in wire.packets(lambda packet: ICMPv6ND_NA in packet)
        if packet[IPv6].dst == "ff02::1" and packet[ICMPv6ND_NA].tgt == REUSED[6]
    ]
    assert [(packet.src, packet[ICMPv6ND_NA].O) for packet in unsolicited[:1]] == [(network.mac("c2", "eth0"), 1)]


@pytest.mark.ours_alone
@FAMILIES
def test_host_and_neighbours_reach_the_new_owner_of_an_address_at_once(network: Network, family: int) -> None:
    """Without the announcement they talk to the old owner's hardware address for a while (plugins#858)."""
    lab = network.lab
    lab.add_container("c3")
    network.attach("c3")
    network.attach("c1", ips=list(REUSED.values()))
    server = lab.serve("c1", 80)
    for name in ("host", "c3"):
        assert lab.fetch(name, REUSED[family], 80).name == "c1"
    server.stop()
    network.detach("c1")
    network.attach("c2", ips=list(REUSED.values()))
    lab.serve("c2", 80)
    for name, ifname in (("host", "cni0"), ("c3", "eth0")):
        assert fetch_at_once(lab, name, ifname, REUSED[family], 80).name == "c2"


@FAMILIES
def test_udp_flow_to_the_host_moves_to_the_container_that_publishes_the_port(network: Network, family: int) -> None:
    lab = network.lab
    network.attach("c2")  # from here on connections are tracked
    host_service = lab.serve("host", DNS, "udp")
    assert lab.fetch("client", HOST[family], DNS, "udp", source_port=CLIENT_PORT).name == "host"
    host_service.stop()
    network.attach("c1", mapping(DNS, 53, "udp"))
    lab.serve("c1", 53, "udp")
    assert lab.fetch("client", HOST[family], DNS, "udp", source_port=CLIENT_PORT).name == "c1"


@FAMILIES
def test_udp_flow_moves_to_the_next_container_with_the_port(network: Network, family: int) -> None:
    lab = network.lab
    for name in ("c1", "c2"):
        network.attach(name, mapping(DNS, 53, "udp"))
        lab.serve(name, 53, "udp")
        assert lab.fetch("client", HOST[family], DNS, "udp", source_port=CLIENT_PORT).name == name
        network.detach(name)


@pytest.mark.ours_alone
@FAMILIES
def test_udp_flow_returns_to_the_host_when_the_container_is_deleted(network: Network, family: int) -> None:
    """Nothing else flushes it: the flow would stick to an address nobody has (plugins#1190)."""
    lab = network.lab
    network.attach("c1", mapping(DNS, 53, "udp"))
    lab.serve("c1", 53, "udp")
    assert lab.fetch("client", HOST[family], DNS, "udp", source_port=CLIENT_PORT).name == "c1"
    network.detach("c1")
    lab.serve("host", DNS, "udp")
    assert lab.fetch("client", HOST[family], DNS, "udp", source_port=CLIENT_PORT).name == "host"


def tracked(lab: Lab) -> set[tuple[str, int, str, int]]:
    """The host's UDP flows: original source and destination with their ports, and the kernel's id of the entry."""

    def read() -> set[tuple[str, int, str, int]]:
        from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

        found = set()
        with NFCTSocket(socket.AF_UNSPEC) as conntrack:
            for entry in conntrack.dump():
                original = entry.get_attr("CTA_TUPLE_ORIG")
                addresses: Any = original.get_attr("CTA_TUPLE_IP")
                ports: Any = original.get_attr("CTA_TUPLE_PROTO")
                if ports.get_attr("CTA_PROTO_NUM") == UDP:
                    destination = addresses.get_attr("CTA_IP_V4_DST") or addresses.get_attr("CTA_IP_V6_DST")
                    source = addresses.get_attr("CTA_IP_V4_SRC") or addresses.get_attr("CTA_IP_V6_SRC")
                    found.add((source, ports.get_attr("CTA_PROTO_DST_PORT"), destination, entry.get_attr("CTA_ID")))
        return found

    return lab["host"].python(read)


@pytest.mark.ours_alone
@FAMILIES
def test_flow_to_somebody_elses_port_survives_add_and_del(plugins: Plugins, family: int) -> None:
    """c1 publishes 53 of the host; c2's conversation with a far server's port 53 passes the host and is none of its business."""
    far = {4: "203.0.113.5", 6: "2001:db8:2::5"}[family]
    with Lab.from_yaml("routed.yaml") as lab:
        network = Network(lab, plugins)
        network.attach("c2")
        assert lab.fetch("c2", far, 53, "udp", source_port=CLIENT_PORT).name == "far"
        before = {flow for flow in tracked(lab) if flow[2] == far}
        assert len(before) == 1
        network.attach("c1", mapping(53, 53, "udp"))
        assert before <= tracked(lab)
        network.detach("c1")
        assert before <= tracked(lab)


@pytest.mark.ours_alone
def test_flow_to_another_published_port_survives_add_and_del(network: Network) -> None:
    lab = network.lab
    network.attach("c2", mapping(5300, 53, "udp"))
    lab.serve("c2", 53, "udp")
    assert lab.fetch("client", HOST[4], 5300, "udp", source_port=CLIENT_PORT).peer == CLIENT[4]
    before = {flow for flow in tracked(lab) if flow[1] == 5300}
    assert len(before) == 1
    network.attach("c1", mapping(DNS, 53, "udp"))
    assert before <= tracked(lab)
    network.detach("c1")
    assert before <= tracked(lab)
