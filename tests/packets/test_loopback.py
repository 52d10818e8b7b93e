"""What must not get in: packets to 127.0.0.0/8 from a neighbour, and anything to a port published on 127.0.0.1 alone.

Publishing on loopback needs route_localnet, and DNAT happens before the kernel drops such packets as martians: without a
rule of its own every neighbour of the host reaches the port (plugins#481, CVE-2020-8558). The Go plugins have none.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from conversation import CLIENT, DNS, HOST, WEB, conversation
from lab import Lab, Wire
from runtime import GATEWAY, Network, Plugins, mapping

LOCAL_WEB = 8081  # published on 127.0.0.1 alone
CNI_PY = str(Path(sys.executable).with_name("cni-py"))
HOST_SERVICE = 9000  # the host's own, listening on 127.0.0.1


def ifmac(lab: Lab, name: str, ifname: str) -> str:
    def read() -> str:
        with open(f"/sys/class/net/{ifname}/address", encoding="ascii") as file:
            return file.read().strip()

    return lab[name].python(read)


def attack(lab: Lab, name: str, ifname: str, source: str, mac: str) -> None:
    """Frames to 127.0.0.1 and 127.0.0.9, addressed at the link layer to the host."""
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.l2 import Ether

    frames = []
    for target in ("127.0.0.1", "127.0.0.9"):
        packet = Ether(src=ifmac(lab, name, ifname), dst=mac) / IP(src=source, dst=target)
        frames += [
            packet / UDP(sport=40000, dport=DNS) / b"attack",
            packet / TCP(sport=40000, dport=WEB, flags="S"),
            packet / TCP(sport=40000, dport=LOCAL_WEB, flags="S"),
            packet / UDP(sport=40000, dport=HOST_SERVICE) / b"attack",
        ]
    lab.send(name, ifname, *frames)


def arrived(wire: Wire) -> list[str]:
    """Frames of the attack, whatever became of their destination."""
    from scapy.layers.inet import TCP, UDP

    found = []
    for packet in wire.packets():
        transport = packet.getlayer(TCP) or packet.getlayer(UDP)
        if transport is not None and 40000 in (transport.sport, transport.dport):
            found.append(packet.summary())
    return found


@pytest.fixture
def local(network: Network) -> Network:
    """c1 published on every address and, on another port, on 127.0.0.1 alone; the host has a service on 127.0.0.1."""
    network.attach("c1", mapping(WEB, 80), mapping(DNS, 53, "udp"), mapping(LOCAL_WEB, 80, host_ip="127.0.0.1"))
    network.attach("c2")
    network.lab.serve("c1", 80)
    network.lab.serve("c1", 53, "udp")
    network.lab.serve("host", HOST_SERVICE, "udp", address="127.0.0.1")
    return network


def test_port_on_loopback_answers_the_host_alone(local: Network) -> None:
    assert local.lab.fetch("host", "127.0.0.1", LOCAL_WEB).peer == GATEWAY[4]
    for name in ("client", "c2", "host"):
        with pytest.raises(ConnectionRefusedError):
            local.lab.fetch(name, HOST[4], LOCAL_WEB)


@pytest.mark.ours_alone
def test_neighbour_on_the_lan_reaches_nothing_through_loopback_addresses(local: Network) -> None:
    lab = local.lab
    with (
        lab.capture("c1", "eth0") as container,
        lab.capture("host", "lo") as loopback,
        lab.capture("client", "eth0") as wire,
    ):
        attack(lab, "client", "eth0", CLIENT[4], ifmac(lab, "host", "lan0"))
        assert lab.fetch("client", HOST[4], WEB).name == "c1"  # what came after it has arrived
    assert conversation(local, container) == ["client > c1:80", "c1:80 > client"]
    assert arrived(container) == []
    assert arrived(loopback) == []
    assert len(arrived(wire)) == 8  # sent, and not one answer


@pytest.mark.ours_alone
def test_container_reaches_nothing_through_loopback_addresses(local: Network) -> None:
    """The bridge is the interface that has route_localnet, so this is where the host's own loopback would be open."""
    lab = local.lab
    with (
        lab.capture("c1", "eth0") as container,
        lab.capture("host", "lo") as loopback,
        lab.capture("c2", "eth0") as wire,
    ):
        attack(lab, "c2", "eth0", local.address("c2", 4), local.mac("c2", "cni0"))
        assert lab.fetch("c2", HOST[4], WEB).name == "c1"
    assert conversation(local, container) == ["gateway > c1:80", "c1:80 > gateway"]
    assert arrived(container) == []
    assert arrived(loopback) == []
    assert len(arrived(wire)) == 8


@pytest.mark.ours_alone
def test_container_cannot_pass_for_the_hosts_loopback(local: Network) -> None:
    """With route_localnet the kernel takes a packet from 127.0.0.2 that comes from outside, where rp_filter is off."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    lab = local.lab
    lab["host"].run(["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.cni0.rp_filter=0"], check=True)
    lab.serve("host", HOST_SERVICE + 1, "udp")
    ether = Ether(src=ifmac(lab, "c2", "eth0"), dst=local.mac("c2", "cni0"))
    with lab.capture("host", "lo") as loopback:
        for source in ("127.0.0.1", "127.0.0.2"):
            lab.send(
                "c2",
                "eth0",
                ether / IP(src=source, dst=GATEWAY[4]) / UDP(sport=40000, dport=HOST_SERVICE + 1) / b"attack",
            )
        assert lab.fetch("c2", GATEWAY[4], HOST_SERVICE + 1, "udp").peer == local.address("c2", 4)
    assert arrived(loopback) == []  # not one answer to it


FLUSHES = ("flush ruleset", "delete table inet cni_py", "flush table inet cni_py", "flush set inet cni_py local_links")


class ByIptables(Network):
    """The same with portmap's other backend."""

    def portmap(self, container_id: str) -> dict[str, object]:
        return super().portmap(container_id) | {"backend": "iptables"}


def answers_to_tagged(local: Network, source: str) -> list[str]:
    """What the host answers to packets from c2 to its own loopback, in tags that it strips."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

    lab = local.lab
    link = Ether(src=ifmac(lab, "c2", "eth0"), dst=local.mac("c2", "cni0"))
    packet = IP(src=source, dst="127.0.0.1") / UDP(sport=40000, dport=HOST_SERVICE) / b"attack"
    frames = [
        link / packet,
        link / Dot1Q(vlan=0, prio=3) / packet,
        link / Dot1AD(vlan=0) / packet,
        link / Dot1Q(vlan=0) / Dot1Q(vlan=0) / packet,
        link / Dot1AD(vlan=0) / Dot1Q(vlan=0) / Dot1Q(vlan=0) / packet,
    ]
    with lab.capture("c2", "eth0") as wire:
        lab.send("c2", "eth0", *frames)
        assert lab.fetch("c2", GATEWAY[4], HOST_SERVICE + 2, "udp").peer == local.address("c2", 4)
    received = [frame.packet for frame in wire.frames if not frame.outgoing]
    return [packet.summary() for packet in received if UDP in packet and packet[UDP].dport == 40000]


@pytest.mark.ours_alone
@pytest.mark.parametrize("bridge_nf", [0, 1])
@pytest.mark.parametrize("backend", [Network, ByIptables], ids=["nftables", "iptables"])
def test_a_flush_does_not_open_the_hosts_loopback(
    lab: Lab, plugins: Plugins, backend: type[Network], bridge_nf: int
) -> None:
    """route_localnet stays then: the guard must. With br_netfilter it sees answers to the host as packets to 127.0.0.1."""
    network = backend(lab, plugins)
    network.attach("c1", mapping(WEB, 80), mapping(DNS, 53, "udp"))
    network.attach("c2")
    lab["host"].run(["sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={bridge_nf}"], check=True)
    for port, protocol in ((WEB, "tcp"), (DNS, "udp")):
        lab.serve("c1", 80 if port == WEB else 53, protocol)
        for address in ("127.0.0.1", "127.0.0.9"):
            assert lab.fetch("host", address, port, protocol).name == "c1"
    lab.serve("host", HOST_SERVICE, "udp", address="127.0.0.1")
    lab.serve("host", HOST_SERVICE + 2, "udp")
    source = network.address("c2", 4)
    assert answers_to_tagged(network, source) == []
    for flush in FLUSHES if backend is Network else FLUSHES[:1]:
        lab["host"].run(["nft", flush], check=True)
        assert answers_to_tagged(network, source) == []
        lab["host"].run([CNI_PY, "restore"], check=True)
    lab["host"].run(["nft", "flush", "ruleset"], check=True)
    for tool in ("iptables", "iptables -t nat", "iptables -t raw"):
        lab["host"].run([*tool.split(), "-F"], check=True)
    with lab.capture("client", "eth0") as wire:
        attack(lab, "client", "eth0", CLIENT[4], ifmac(lab, "host", "lan0"))
        assert lab.fetch("client", HOST[4], HOST_SERVICE + 2, "udp").name == "host"
    assert len(arrived(wire)) == 8  # sent, and not one answer
    assert answers_to_tagged(network, source) == []
    lab["host"].run(["tc", "qdisc", "del", "dev", "cni0", "clsact"], check=True)
    assert len(answers_to_tagged(network, source)) >= 3  # so it was that which kept them out
    lab["host"].run([CNI_PY, "restore"], check=True)
    assert answers_to_tagged(network, source) == []
    lab["host"].run(["nft", "flush", "ruleset"], check=True)
    assert answers_to_tagged(network, source) == []
    network.detach("c1")
    assert answers_to_tagged(network, source) == []


@pytest.mark.ours_alone
@pytest.mark.parametrize("backend", [Network, ByIptables], ids=["nftables", "iptables"])
@pytest.mark.parametrize("source", ["client", "c2"])
def test_nobody_else_reaches_a_port_of_loopback_alone(
    lab: Lab, plugins: Plugins, backend: type[Network], source: str
) -> None:
    """By either backend: DNAT comes before the kernel looks for martians."""
    network = backend(lab, plugins)
    network.attach("c1", mapping(LOCAL_WEB, 80, host_ip="127.0.0.1"), mapping(WEB, 80))
    network.attach("c2")
    lab.serve("c1", 80)
    assert lab.fetch("host", "127.0.0.1", LOCAL_WEB).name == "c1"
    own, mac = (CLIENT[4], ifmac(lab, "host", "lan0")) if source == "client" else (network.address("c2", 4), "")
    with lab.capture("c1", "eth0") as wire:
        attack(lab, source, "eth0", own, mac or network.mac("c2", "cni0"))
        assert lab.fetch(source, HOST[4], WEB).name == "c1"
    assert arrived(wire) == []


@pytest.mark.ours_alone
def test_a_pair_of_ptp_is_guarded_too_beside_a_limit_of_its_rate(lab: Lab, plugins: Plugins) -> None:
    """bandwidth wants the same qdisc of the host's veth: the guard stays in front of its filter."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    ranges = [[{"subnet": "192.0.2.0/24"}]]
    ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    rates: dict[str, object] = {
        "ingressRate": 1_000_000,
        "ingressBurst": 800_000,
        "egressRate": 1_000_000,
        "egressBurst": 800_000,
    }
    confs: dict[str, dict[str, object]] = {
        "ptp": {"ipam": ipam, "ipMasq": True},
        "portmap": {"runtimeConfig": {"portMappings": [mapping(WEB, 80)]}},
        "bandwidth": rates,
    }
    result: dict[str, object] = {}
    for plugin, keys in confs.items():
        conf = {"cniVersion": "1.0.0", "name": "pair", "type": plugin, **keys, **result}
        outcome = plugins.run(lab, "ADD", plugin, conf, "c1")
        assert outcome.status == 0, outcome.stdout
        result = {"prevResult": outcome.json}
        confs[plugin] = conf
    answer: dict[str, Any] = outcome.json
    veth = answer["interfaces"][0]
    address = answer["ips"][0]["address"].partition("/")[0]
    lab.serve("host", HOST_SERVICE, "udp", address="127.0.0.1")
    lab.serve("host", HOST_SERVICE + 2, "udp")
    lab.serve("c1", 80)
    assert lab.fetch("host", "127.0.0.1", WEB).name == "c1"
    lab["host"].run(["nft", "flush", "ruleset"], check=True)
    link = Ether(src=ifmac(lab, "c1", "eth0"), dst=veth["mac"])
    packet = link / IP(src=address, dst="127.0.0.1") / UDP(sport=40000, dport=HOST_SERVICE) / b"attack"
    with lab.capture("c1", "eth0", lambda packet: UDP in packet and packet[UDP].dport == 40000) as wire:
        lab.send("c1", "eth0", packet)
        assert lab.fetch("c1", HOST[4], HOST_SERVICE + 2, "udp").name == "host"
    assert wire.frames == []
    shown = lab["host"].run(["tc", "filter", "show", "dev", veth["name"], "parent", "ffff:"]).stdout
    assert ("mirred" in shown, "bpf" in shown) == (True, True)
    lab["host"].run([CNI_PY, "restore"], check=True)
    for verb, plugin in [("CHECK", plugin) for plugin in confs] + [("DEL", "bandwidth"), ("CHECK", "portmap")]:
        outcome = plugins.run(lab, verb, plugin, {**confs[plugin], **result}, "c1")
        assert outcome.status == 0, f"{verb} {plugin}: {outcome.stdout}"


def test_host_still_reaches_its_own_loopback(local: Network) -> None:
    assert local.lab.fetch("host", "127.0.0.1", HOST_SERVICE, "udp").peer == "127.0.0.1"


def test_port_on_one_host_address_is_closed_on_the_others(network: Network) -> None:
    lab = network.lab
    lab["host"].run(["ip", "addr", "add", "198.51.100.2/24", "dev", "lan0"], check=True)
    network.attach("c1", mapping(WEB, 80, host_ip="198.51.100.2"))
    lab.serve("c1", 80)
    assert lab.fetch("client", "198.51.100.2", WEB).peer == CLIENT[4]
    for address in (HOST[4], HOST[6]):
        with pytest.raises(ConnectionRefusedError):
            lab.fetch("client", address, WEB)


def test_traffic_through_the_host_to_somebody_elses_port_is_left_alone(network: Network) -> None:
    """A published 8080 is the host's; 8080 of another machine is not (advisory GHSA-jv3w-x3r3-g6rm)."""
    lab = network.lab
    network.attach("c1", mapping(WEB, 80))
    network.attach("c2")
    lab.serve("c1", 80)
    lab.serve("client", WEB)
    for family in (4, 6):
        assert lab.fetch("c2", CLIENT[family], WEB).name == "client"
        assert lab.fetch("host", CLIENT[family], WEB).name == "client"
