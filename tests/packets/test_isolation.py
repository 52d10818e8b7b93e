"""What passes a bridge's policies as a frame of another type: tags, ARP, neighbour discovery, PPPoE, broadcasts.

A receiver strips any number of tags of VLAN 0 and takes what is inside for plain IP; a rule on `ether type ip` does not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conversation import HOST, WEB
from lab import Lab
from runtime import ALL, Plugins

from tests.conftest import OURS
from tests.packets.bridges_site import FAMILIES, Site
from tests.packets.conftest import together

if TYPE_CHECKING:
    from scapy.packet import Packet

SITES = [
    ("nftables", "isolated", "0"),
    ("nftables", "isolated", "1"),
    ("iptables", "isolated", "0"),
    ("nftables", "same-bridge", "1"),
    ("iptables", "same-bridge", "0"),
    ("nftables", "open", "0"),
]
BRIDGE_NF = (
    "bridge-nf-call-iptables",
    "bridge-nf-call-ip6tables",
    "bridge-nf-filter-vlan-tagged",
    "bridge-nf-filter-pppoe-tagged",
)
CNI_PY = str(Path(sys.executable).with_name("cni-py"))
MARK = 47123  # the source port of crafted packets


@pytest.fixture(scope="module", params=together("isolation", *SITES), ids="-".join)
def site(request: pytest.FixtureRequest, our_bin_dir: Path) -> Iterator[Site]:
    backend, policy, bridge_nf = request.param
    with Lab.from_yaml("bridges.yaml") as lab:
        found = Site(lab, Plugins(OURS, our_bin_dir, ALL), policy, backend)
        lab["host"].run(["sysctl", "-q", "-w", *(f"net.bridge.{key}={bridge_nf}" for key in BRIDGE_NF)], check=True)
        for container_id in ("a1", "a2", "b1"):
            found.attach(container_id)
            lab.serve(container_id, 80)
        yield found


def mac(site: Site, container_id: str, name: str = "eth0") -> str:
    return next(str(link["mac"]) for link in site.results[container_id]["interfaces"] if link["name"] == name)


def tagged(site: Site, link: Packet, target: str) -> dict[str, Packet]:
    """Packets to a container, in tags of every kind."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Dot1AD, Dot1Q

    inner = {
        "ip": IP(src=site.address("a2", 4), dst=site.address(target, 4)) / UDP(sport=MARK, dport=9) / b"x",
        "ip6": IPv6(src=site.address("a2", 6), dst=site.address(target, 6)) / UDP(sport=MARK, dport=9) / b"x",
    }
    tags: dict[str, Any] = {
        "plain": lambda: link,
        "802.1Q vlan 0": lambda: link / Dot1Q(vlan=0),
        "802.1Q priority 5": lambda: link / Dot1Q(vlan=0, prio=5),
        "802.1ad vlan 0": lambda: link / Dot1AD(vlan=0),
        "two of vlan 0": lambda: link / Dot1Q(vlan=0) / Dot1Q(vlan=0),
        "three of vlan 0": lambda: link / Dot1AD(vlan=0) / Dot1Q(vlan=0) / Dot1Q(vlan=0),
    }
    return {f"{kind} in {name}": make() / packet for name, make in tags.items() for kind, packet in inner.items()}


def other_types(site: Site, link: Packet) -> dict[str, Packet]:
    """What else two ports of a bridge may send each other."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6ND_RA, IPv6
    from scapy.layers.l2 import ARP, LLC, Dot1Q, Dot3, Ether
    from scapy.layers.ppp import PPP, PPPoE, PPPoED
    from scapy.packet import Raw

    own, other = site.address("a2", 4), site.address("a1", 4)
    everybody = Ether(src=link.src, dst="ff:ff:ff:ff:ff:ff")
    routers = Ether(src=link.src, dst="33:33:00:00:00:01")
    return {
        "ARP question": everybody / ARP(op="who-has", hwsrc=link.src, psrc=own, pdst=other),
        "ARP answer": link / ARP(op="is-at", hwsrc=link.src, psrc=own, hwdst=link.dst, pdst=other),
        "neighbour solicitation": link / IPv6(dst=site.address("a1", 6)) / ICMPv6ND_NS(tgt=site.address("a1", 6)),
        "router advertisement": routers / IPv6(dst="ff02::1") / ICMPv6ND_RA(),
        "IP broadcast": everybody / IP(src=own, dst="255.255.255.255") / UDP(sport=MARK, dport=9),
        "VLAN 5": link / Dot1Q(vlan=5) / IP(src=own, dst=other) / UDP(sport=MARK, dport=9),
        "PPPoE session": link / PPPoE(sessionid=1) / PPP() / IP(src=own, dst=other) / UDP(sport=MARK, dport=9),
        "PPPoE discovery": everybody / PPPoED(),
        "MPLS": Ether(src=link.src, dst=link.dst, type=0x8847) / Raw(bytes(46)),
        "local experiment": Ether(src=link.src, dst=link.dst, type=0x88B5) / Raw(bytes(46)),
        "802.3 length": Dot3(src=link.src, dst=link.dst) / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / Raw(bytes(40)),
    }


def test_between_isolated_ports_nothing_passes_whatever_its_type(site: Site) -> None:
    from scapy.layers.inet import TCP
    from scapy.layers.l2 import Ether

    link = Ether(src=mac(site, "a2"), dst=mac(site, "a1"))
    sent = tagged(site, link, "a1") | other_types(site, link)
    with site.lab.capture("a1", "eth0", lambda packet: packet.src == link.src and TCP not in packet) as wire:
        site.lab.send("a2", "eth0", *sent.values())
        assert site.is_reached("a2", HOST[4], WEB)  # what was sent before has arrived, or was dropped
    arrived = [frame.packet for frame in wire.frames if not frame.outgoing]
    if site.policy == "isolated":
        assert [frame.summary() for frame in arrived] == []
    else:  # they can pass: it is the policy that stops them
        assert len(arrived) >= len(sent)


def test_a_tag_is_no_way_to_the_other_bridge(site: Site) -> None:
    from scapy.layers.inet import UDP
    from scapy.layers.l2 import Ether

    sent = tagged(site, Ether(src=mac(site, "a2"), dst=mac(site, "a2", "br-a")), "b1")

    def is_ours(packet: Packet) -> bool:
        return UDP in packet and packet[UDP].sport == MARK

    wanted = site.policy == "open"
    for family in FAMILIES:  # the host knows b1's MAC then
        assert site.is_reached("a2", site.address("b1", family), wanted=wanted) == wanted
    with site.lab.capture("b1", "eth0", is_ours) as wire:
        site.lab.send("a2", "eth0", *sent.values())
        assert site.is_reached("a2", HOST[4], WEB)
    # This kernel hands packets in nested tags to its own sockets, and forwards none of them.
    passing = [name for name in sent if "of vlan 0" not in name]
    assert len(wire.frames) == (len(passing) if site.policy == "open" else 0)


def on_bridge(our_bin_dir: Path, lab: Lab, **keys: object) -> Site:
    """a1 and a2 attached by the bridge plugin alone."""

    class Bridge(Site):
        def conf(self, plugin: str, container_id: str) -> dict[str, object]:
            return super().conf(plugin, container_id) | keys

    found = Bridge(lab, Plugins(OURS, our_bin_dir, ALL), "open", "nftables")
    for container_id in ("a1", "a2"):
        found.results[container_id] = found.run("ADD", "bridge", container_id).json
    return found


def test_frames_of_another_source_are_dropped_in_whatever_tag(our_bin_dir: Path) -> None:
    """macspoofchk: also those to link-local groups, from which a bridge learns without asking any rule."""
    from scapy.layers.l2 import LLC, Dot3, Ether
    from scapy.packet import Raw

    with Lab.from_yaml("bridges.yaml") as lab:
        site = on_bridge(our_bin_dir, lab, macspoofchk=True)
        own, other = mac(site, "a2"), mac(site, "a1")
        honest, spoofed = (Ether(src=source, dst=other) for source in (own, "02:00:5e:00:53:01"))
        for link, passes in ((honest, True), (spoofed, False)):
            sent = tagged(site, link, "a1") | other_types(site, link)
            with lab.capture("a1", "eth0") as wire:
                lab.send("a2", "eth0", *sent.values())
                lab["a2"].run(["ip", "neigh", "flush", "all"], check=True)
            arrived = [packet for packet in wire.packets() if packet.src == link.src]
            assert (len(arrived) >= len(sent)) if passes else not arrived
        victim = "02:00:5e:00:53:02"
        groups = [f"01:80:c2:00:00:{number:02x}" for number in range(16)]
        lab.send("a2", "eth0", *(Ether(src=victim, dst=group, type=0x88CC) / Raw(bytes(46)) for group in groups))
        lab.send("a2", "eth0", *(Dot3(src=victim, dst=group) / LLC() / Raw(bytes(43)) for group in groups))
        assert victim not in lab["host"].run(["bridge", "fdb", "show", "br", "br-a"]).stdout


def test_isolated_ports_of_the_bridge_plugin_exchange_nothing(our_bin_dir: Path) -> None:
    from scapy.layers.l2 import Ether

    with Lab.from_yaml("bridges.yaml") as lab:
        site = on_bridge(our_bin_dir, lab, portIsolation=True)
        link = Ether(src=mac(site, "a2"), dst=mac(site, "a1"))
        sent = tagged(site, link, "a1") | other_types(site, link)
        with lab.capture("a1", "eth0", lambda packet: packet.src == link.src) as wire:
            lab.send("a2", "eth0", *sent.values())
        assert wire.frames == []


OLD_RULE = "iifname @isolated oifname @isolated ether type { ip, ip6 } meta pkttype != host drop"
LOSSES = {  # what is done, and whether CHECK sees it
    "flush ruleset": True,
    "flush set inet cni_py policed": True,
    "flush set bridge cni_py isolated": True,
    "delete table bridge cni_py": True,
    "flush table inet cni_py": True,
    "flush table bridge cni_py": True,
    "flush chain inet cni_py policies": True,
    "flush chain bridge cni_py isolation": True,
    f"flush set bridge cni_py layout; add element bridge cni_py layout {{ 2 }}; "
    f"flush chain bridge cni_py isolation; add rule bridge cni_py isolation {OLD_RULE}": False,  # right in an earlier version
}


@pytest.mark.parametrize("bridge_nf", ["0", "1"])
def test_what_keeps_ports_apart_is_missed_by_check_and_put_back(our_bin_dir: Path, bridge_nf: str) -> None:
    from scapy.layers.l2 import Ether

    with Lab.from_yaml("bridges.yaml") as lab:
        site = Site(lab, Plugins(OURS, our_bin_dir, ALL), "isolated", "nftables")
        lab["host"].run(["sysctl", "-q", "-w", *(f"net.bridge.{key}={bridge_nf}" for key in BRIDGE_NF)], check=True)
        for container_id in ("a1", "a2", "b1"):
            site.attach(container_id)
            lab.serve(container_id, 80)
        link = Ether(src=mac(site, "a2"), dst=mac(site, "a1"))
        sent = tagged(site, link, "a1") | other_types(site, link)
        given = {**site.conf("firewall", "a2"), "prevResult": site.results["a2"]}
        for loss, seen in LOSSES.items():
            lab["host"].run(["nft", loss], check=True)
            checked = site.plugins.run(lab, "CHECK", "firewall", given, "a2")
            assert (checked.status != 0) == seen, f"{loss}: {checked.stdout}"
            lab["host"].run([CNI_PY, "restore"], check=True)
            site.run("CHECK", "firewall", "a2")
            with lab.capture("a1", "eth0", lambda packet: packet.src == link.src) as wire:
                lab.send("a2", "eth0", *sent.values())
            assert wire.frames == [], loss
            assert not site.is_reached("a2", site.address("b1", 4), wanted=False), loss
            assert site.is_reached("b1", HOST[4], WEB), loss
