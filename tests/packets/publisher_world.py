"""A host with every kind of client and container that can meet at a published port, for test_publisher_paths.py.

    client ── LAN ── host ─┬─ cni0    c1 (published), c2        IPv4 and IPv6
                           ├─ four0   c4 (published)            IPv4 alone
                           ├─ six0    c6 (published)            IPv6 alone
                           └─ guard0  c5 (published)            directAccess: block (where NAT is used)

c4 and c6 also are the clients on another bridge.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from conversation import CLIENT, HOST
from lab import ANSWER_S, Lab, Wire
from runtime import GATEWAY, SUBNETS, Network, Outcome, Plugins, mapping

if TYPE_CHECKING:
    from scapy.packet import Packet

    from tests.portfwd.publisher import Publisher

Ports = list[dict[str, object]]

SPANS = {
    "lab": SUBNETS,
    "four": {4: "203.0.113.0/25"},
    "six": {6: "2001:db8:66::/64"},
    "guard": {4: "203.0.113.128/25", 6: "2001:db8:99::/64"},
}
GATEWAYS = {
    "lab": GATEWAY,
    "four": {4: "203.0.113.1"},
    "six": {6: "2001:db8:66::1"},
    "guard": {4: "203.0.113.129", 6: "2001:db8:99::1"},
}
NETWORK_OF = {"c1": "lab", "c2": "lab", "c4": "four", "c6": "six", "c5": "guard"}
INSIDE = {"tcp": 80, "udp": 53}
UNPUBLISHED = 81
# What everybody's hostIP is left out of, by container.
PUBLISHED = {
    "c1": {"tcp": 8080, "udp": 8053},
    "c4": {"tcp": 8084, "udp": 8054},
    "c6": {"tcp": 8086, "udp": 8056},
    "c5": {"tcp": 8085, "udp": 8055},
}
# c1's with a hostIP, tcp and udp.
HOST_IPS = {"127.0.0.1": 8101, "::1": 8102, "0.0.0.0": 8103, "::": 8104, HOST[4]: 8105, HOST[6]: 8106}
EPHEMERAL = 32768  # ports below are those of servers
QUIET_S = 1.0  # after which nobody answers
REFUSED, SILENT = "refused", "no answer"


def both(host_port: int, host_ip: str = "") -> Ports:
    """A port of each protocol with one number."""
    return [mapping(host_port, inside, protocol, host_ip) for protocol, inside in INSIDE.items()]


def usual(name: str) -> Ports:
    """A container's ports on every address."""
    return [mapping(PUBLISHED[name][protocol], inside, protocol) for protocol, inside in INSIDE.items()]


class Net(Network):
    """A bridge network with its own subnets and more keys for portmap; remembers what portmap said on stderr."""

    def __init__(self, lab: Lab, plugins: Plugins, name: str, *, masquerade: bool = True, **keys: object) -> None:
        super().__init__(lab, plugins, name)
        self.masquerade = masquerade
        self.keys = keys
        self.said: dict[str, str] = {}

    def bridge(self, ips: list[str] | None = None) -> dict[str, object]:
        spans = SPANS[self.name]
        return {
            **super().bridge(ips),
            "bridge": "cni0" if self.name == "lab" else f"{self.name}0",
            "ipMasq": self.masquerade,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": span}] for span in spans.values()],
                "routes": [{"dst": "0.0.0.0/0" if family == 4 else "::/0"} for family in spans],
            },
        }

    def portmap(self, container_id: str) -> dict[str, object]:
        return {**super().portmap(container_id), **self.keys}

    def _well(self, verb: str, plugin: str, conf: dict[str, object], container_id: str) -> Outcome:
        outcome = super()._well(verb, plugin, conf, container_id)
        if plugin == "portmap":
            self.said[container_id] = outcome.stderr
        return outcome


@dataclass(slots=True)
class World:
    """The lab, its networks, and questions to published ports."""

    lab: Lab
    use: str  # userlandProxy
    networks: dict[str, Net]
    publisher: Publisher | None = None
    bridge_nf: int = -1
    held: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def service(self) -> Publisher:
        assert self.publisher is not None
        return self.publisher

    def attach(self, name: str, *ports: dict[str, object]) -> None:
        self.networks[NETWORK_OF[name]].attach(name, *ports)

    def detach(self, name: str) -> None:
        self.networks[NETWORK_OF[name]].detach(name)

    def attached(self) -> list[str]:
        return [name for network in self.networks.values() for name in network.results]

    def said(self, name: str) -> str:
        """What portmap's last call for a container wrote on stderr."""
        return self.networks[NETWORK_OF[name]].said[name]

    def address(self, name: str, family: int) -> str:
        return self.networks[NETWORK_OF[name]].address(name, family)

    def serve(self, *names: str) -> None:
        for name in names:
            for protocol, port in INSIDE.items():
                self.lab.serve(name, port, protocol)

    def ask(self, node: str, address: str, port: int, protocol: str = "tcp", timeout_s: float = ANSWER_S) -> str:
        """Who answers, and the client that it saw: "c1 saw 198.51.100.7"; or REFUSED, or SILENT."""
        try:
            answer = self.lab.fetch(node, address, port, protocol, timeout_s=timeout_s)
        except ConnectionRefusedError:
            return REFUSED
        except TimeoutError:
            return SILENT
        return f"{answer.name} saw {answer.peer}"

    def set_bridge_nf(self, value: int) -> None:
        """Whether bridged traffic passes the IP hooks too (br_netfilter)."""
        if value != self.bridge_nf:
            settings = [f"net.bridge.bridge-nf-call-{name}={value}" for name in ("iptables", "ip6tables")]
            self.lab["host"].run(["sysctl", "-q", "-w", *settings], check=True)
            self.bridge_nf = value

    def tables(self) -> str:
        return self.lab["host"].run(["nft", "list", "tables"], check=True).stdout

    def hold(self, how: str, protocol: str, port: int) -> None:
        """Another process of the host has this port, as a runtime keeps it for its container."""
        holder = self.lab["host"].popen(
            [sys.executable, "-I", "-S", "-c", HOLDER, how, protocol, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.held.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"

    def let_go(self) -> None:
        """End those processes: each ends with its standard input."""
        for holder in self.held:
            holder.communicate(timeout=10)
        self.held.clear()

    def words(self) -> dict[str, str]:
        """Address -> the word for it."""
        found = dict.fromkeys(HOST.values(), "host") | dict.fromkeys(CLIENT.values(), "client")
        for network in self.networks.values():
            found |= dict.fromkeys(GATEWAYS[network.name].values(), "gateway")
            for name, result in network.results.items():
                found |= {str(ip["address"]).partition("/")[0]: name for ip in result["ips"]}
        return found

    def conversation(self, wire: Wire) -> set[str]:
        """Each direction of each connection or exchange: "client > host:8080"."""
        words = self.words()
        return {line for packet in wire.packets() if (line := described(packet, words))}


def described(packet: Packet, words: dict[str, str]) -> str:
    """One of a TCP handshake's first two segments, or a UDP datagram; empty for anything else."""
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.inet6 import IPv6

    network = packet.getlayer(IP) or packet.getlayer(IPv6)
    transport = network.payload if network is not None else None
    if network is None or not isinstance(transport, TCP | UDP):
        return ""
    if isinstance(transport, TCP) and "S" not in transport.flags:
        return ""
    src, dst = (words.get(address, address) for address in (network.src, network.dst))
    if transport.dport < EPHEMERAL:
        return f"{src} > {dst}:{transport.dport}"
    return f"{src}:{transport.sport} > {dst}"


# conmon binds one socket for both families and does not listen; nerdctl's process listens, on IPv4.
HOLDER = """
import socket, sys
how, protocol, port = sys.argv[1:]
kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
if how == "bound":
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", int(port)))
else:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", int(port)))
    sock.listen()
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def world(plugins: Plugins, use: str) -> Iterator[World]:
    """Nothing attached, no service. For `always` nothing at all is done with nf_tables."""
    nat = use != "always"
    with Lab.from_yaml("lan.yaml") as lab:
        for name in NETWORK_OF.keys() - {"c1", "c2"}:
            lab.add_container(name)
        # Many datagrams to closed ports in a short time: each is to be refused.
        limits = ["net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"]
        lab["host"].run(["sysctl", "-q", "-w", *limits], check=True)
        networks = {name: Net(lab, plugins, name, masquerade=nat, userlandProxy=use) for name in SPANS}
        if nat:
            networks["guard"].keys["directAccess"] = "block"
        found = World(lab, use, networks)
        found.set_bridge_nf(0)
        try:
            yield found
        finally:
            found.let_go()


def know_the_way_in(found: World) -> None:
    """The client has routes to containers, as a neighbour has who wants to go round the published ports."""
    for network in found.networks.values():
        for family, span in SPANS[network.name].items():
            if network.results:
                args = ["ip", f"-{family}", "route", "add", span, "via", HOST[family]]
                found.lab["client"].run(args, check=True)


# Called inside a node


def link_local(ifname: str) -> str:
    """The address of the link, once the kernel has made sure that nobody else has it."""
    tentative, end = 0x40, time.monotonic() + 10.0  # IFA_F_TENTATIVE, linux/if_addr.h
    while time.monotonic() < end:
        with open("/proc/net/if_inet6", encoding="ascii") as file:  # address, index, prefix length, scope, flags, name
            for packed, _, _, scope, flags, name in map(str.split, file):
                if (name, scope) == (ifname, "20") and not int(flags, 16) & tentative:
                    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(packed))
        time.sleep(0.02)
    raise TimeoutError(f"{ifname} has no link-local address")


def ask_link_local(address: str, ifname: str, port: int, protocol: str) -> str:
    """The same as World.ask() for an address of a link."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET6, kind) as client:
        client.settimeout(ANSWER_S)
        try:
            client.connect((address, port, 0, socket.if_nametoindex(ifname)))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            text = client.recv(4096)
            while protocol == "tcp" and (part := client.recv(4096)):
                text += part
        except ConnectionRefusedError:
            return REFUSED
        except TimeoutError:
            return SILENT
    name, peer, _ = text.decode().rpartition("\r\n\r\n")[2].split()
    return f"{name} saw {peer}"
