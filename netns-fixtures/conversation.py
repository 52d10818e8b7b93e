"""The frames of a connection as lines that can be compared: "client > host:8080", "host:8080 > client"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime import GATEWAY

if TYPE_CHECKING:
    from lab import Answer, Lab, Wire
    from runtime import Network
    from scapy.packet import Packet

# lan.yaml
HOST = {4: "198.51.100.1", 6: "2001:db8:1::1"}
CLIENT = {4: "198.51.100.7", 6: "2001:db8:1::7"}
WEB, DNS = 8080, 8053  # published on the host
INSIDE = {"tcp": 80, "udp": 53}  # where they lead
PUBLISHED = {"tcp": WEB, "udp": DNS}
SERVER_PORTS = {WEB, DNS, *INSIDE.values()}


def names(network: Network) -> dict[str, str]:
    """Address -> name, for all addresses of a lab."""
    found: dict[str, str] = {}
    for family in (4, 6):
        found |= {HOST[family]: "host", CLIENT[family]: "client", GATEWAY[family]: "gateway"}
        found |= {network.address(container_id, family): container_id for container_id in network.results}
    return found


def conversation(network: Network, wire: Wire) -> list[str]:
    """Each direction of each connection once, in the order in which it was first seen."""
    words = names(network)
    return list(dict.fromkeys(line for packet in wire.packets() if (line := described(packet, words))))


def described(packet: Packet, words: dict[str, str]) -> str:
    """A line for a segment with SYN or a UDP datagram; "" for every other packet."""
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.inet6 import IPv6

    network = packet.getlayer(IP) or packet.getlayer(IPv6)
    transport = network.payload if network is not None else None  # an ICMP error quotes another packet further in
    if (
        network is None
        or not isinstance(transport, TCP | UDP)
        or (isinstance(transport, TCP) and "S" not in transport.flags)
    ):
        return ""
    src, dst = (words.get(address, address) for address in (network.src, network.dst))
    if transport.dport in SERVER_PORTS:
        return f"{src} > {dst}:{transport.dport}"
    return f"{src}:{transport.sport} > {dst}"


def fetch_at_once(lab: Lab, name: str, ifname: str, address: str, port: int) -> Answer:
    """Ask a server by way of an interface. AssertionError if a segment got lost: the kernel asks again after a second."""
    from scapy.layers.inet import TCP

    with lab.capture(name, ifname, lambda packet: TCP in packet and packet[TCP].flags == "S") as wire:
        answer = lab.fetch(name, address, port)
    assert len(wire.frames) == 1, wire.frames
    return answer
