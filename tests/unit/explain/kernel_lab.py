"""A router of namespaces whose kernel is asked what it does with a packet, hook by hook, to compare explain/netfilter.py with it.

    client 192.0.2.9, 2001:db8::9 ── lan0 ┐                     ┌ web0 ── web 10.88.0.2, fd00:88::2
                                          ├ router ── cni0 ─────┤
                     the router itself  lo┘  10.88.0.1          └ db0 ─── db 10.88.0.3, fd00:88::3

A table `probe` notes at the end of every hook each packet that got there, by its addresses, ports and marks.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from cni_py.explain.netfilter import decide
from cni_py.explain.packet import Hook, Outcome, Packet
from cni_py.host.model import Address, Link, Namespace, Route
from cni_py.kernel import libnftables, netns
from cni_py.kernel.netlink import NETLINK_NETFILTER, NLM_F_DUMP, Socket, attr, attrs, iter_attrs, text
from cni_py.kernel.nf_tables import INET, NFT_MSG_GETSETELEM, NFT_MSG_NEWSETELEM, Element

HOOKS: tuple[Hook, ...] = ("prerouting", "input", "forward", "output", "postrouting")
ROUTER = {4: "192.0.2.1", 6: "2001:db8::1"}
CLIENT = {4: "192.0.2.9", 6: "2001:db8::9"}
GATEWAY = {4: "10.88.0.1", 6: "fd00:88::1"}
WEB = {4: "10.88.0.2", 6: "fd00:88::2"}
DB = {4: "10.88.0.3", 6: "fd00:88::3"}
MAC = "02:00:00:00:00:%02x"
ARRIVES_S = 2  # of one that never comes; what comes later is waited for in lasting_disagreements()
BRIDGED: tuple[Hook, ...] = ("prerouting", "forward", "postrouting")
NFT_MSG_GETTABLE = 10 << 8 | 1  # linux/netfilter/nf_tables.h
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_*
TYPES = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}

SETUP = f"""
link set lo up
link add lan0 address {MAC % 1} type veth peer name eth0 address {MAC % 9} netns CLIENT
link add cni0 address {MAC % 2} type bridge
link add web0 type veth peer name eth0 address {MAC % 0x12} netns WEB
link add db0 type veth peer name eth0 address {MAC % 0x13} netns DB
link set web0 master cni0
link set db0 master cni0
address add 192.0.2.1/24 dev lan0
address add 2001:db8::1/64 dev lan0 nodad
address add 10.88.0.1/24 dev cni0
address add fd00:88::1/64 dev cni0 nodad
link set lan0 up
link set cni0 up
link set web0 up
link set db0 up
neighbour replace 192.0.2.9 lladdr {MAC % 9} dev lan0 nud permanent
neighbour replace 2001:db8::9 lladdr {MAC % 9} dev lan0 nud permanent
neighbour replace 10.88.0.2 lladdr {MAC % 0x12} dev cni0 nud permanent
neighbour replace fd00:88::2 lladdr {MAC % 0x12} dev cni0 nud permanent
neighbour replace 10.88.0.3 lladdr {MAC % 0x13} dev cni0 nud permanent
neighbour replace fd00:88::3 lladdr {MAC % 0x13} dev cni0 nud permanent
"""
PEER = """
link set lo up
address add {v4}/24 dev eth0
address add {v6}/64 dev eth0 nodad
link set eth0 up
route add default via {router4}
route add default via {router6}
neighbour replace {router4} lladdr {mac} dev eth0 nud permanent
neighbour replace {router6} lladdr {mac} dev eth0 nud permanent
"""
SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/all/route_localnet": "1",
    # An ICMP redirect has the connection of the packet that it is sent for, whose mark rules of `output` may then set
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/bridge/bridge-nf-call-iptables": "0",
    "net/bridge/bridge-nf-call-ip6tables": "0",
}
KEPT = "flags dynamic, timeout; timeout 60s; size 65535;"
LASTING_S = 10  # less than elements are kept
PROBE_SETS = f"""
  set ip_{{hook}} {{{{ typeof ip saddr . ip daddr . th sport . th dport . meta mark; {KEPT} }}}}
  set ip6_{{hook}} {{{{ typeof ip6 saddr . ip6 daddr . th sport . th dport . meta mark; {KEPT} }}}}
  set ct_{{hook}} {{{{ typeof th sport . ct mark; {KEPT} }}}}
"""
SETS = ("arrived", *(f"{kind}_{hook}" for hook in HOOKS for kind in ("ip", "ip6", "ct")))
PROBE_CHAIN = """
  chain {hook} {{ type filter hook {hook} priority 2147483647; policy accept;
    meta l4proto {{ tcp, udp }} add @ip_{hook} {{ ip saddr . ip daddr . th sport . th dport . meta mark }}
    meta l4proto {{ tcp, udp }} add @ip6_{hook} {{ ip6 saddr . ip6 daddr . th sport . th dport . meta mark }}
    meta l4proto {{ tcp, udp }} add @ct_{hook} {{ th sport . ct mark }}
  }}
"""
FIRST = f"""
  set arrived {{{{ typeof th sport; {KEPT} }}}}
  chain first {{{{ type filter hook prerouting priority -2147483648; policy accept;
    meta l4proto {{{{ tcp, udp }}}} add @arrived {{{{ th sport }}}}
  }}}}
"""
PROBE = f"""
table inet probe {{{{ {{sets}} {FIRST} {{chains}} }}}}
table bridge probe {{{{ {{sets}} {FIRST} {{bridge_chains}} }}}}
"""
_MARK = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class Seen:
    """A packet at the end of a hook."""

    source: str
    destination: str
    source_port: int
    destination_port: int
    mark: int
    ct_mark: int | None  # None: not tracked


class Nft:
    """libnftables in this process, in the namespace that it was made in."""

    def __init__(self) -> None:
        self.nft = libnftables.binding().Nftables()
        self.nft.set_json_output(True)

    def run(self, text: str) -> None:
        """AssertionError with nft's words when it refuses."""
        status, _, refusal = self.nft.cmd(text)
        assert status == 0, f"{refusal}\n{text}"

    def accepts(self, text: str) -> bool:
        """Whether it took the commands."""
        return bool(self.nft.cmd(text)[0] == 0)

    def listed(self, what: str) -> list[Any]:
        """The objects of a listing."""
        status, output, refusal = self.nft.cmd(f"list {what}")
        assert status == 0, refusal
        found = json.loads(output)["nftables"]
        assert isinstance(found, list)
        return found


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends: its namespace, and the link of the router that it comes by."""

    fd: int
    sources: dict[int, str]
    link: str
    port: str = ""  # of the bridge
    mac: str = ""


Decide = Callable[[Namespace, Hook, Packet], Outcome]
Way = list[tuple[Hook, Outcome]]


class Kernel:
    """The router, whose namespace is this process's own."""

    def __init__(self) -> None:
        self.port = 20000
        self.holders = {name: _namespace() for name in ("CLIENT", "WEB", "DB")}
        for path, value in SYSCTLS.items():
            write_sysctl(path, value)
        setup = SETUP
        for name, holder in self.holders.items():
            setup = setup.replace(name, str(holder.pid))
        _ip(setup)
        for name, own, gateway, mac in (
            ("CLIENT", CLIENT, ROUTER, MAC % 1),
            ("WEB", WEB, GATEWAY, MAC % 2),
            ("DB", DB, GATEWAY, MAC % 2),
        ):
            peer = PEER.format(v4=own[4], v6=own[6], router4=gateway[4], router6=gateway[6], mac=mac)
            for other, last in ((WEB, 0x12), (DB, 0x13)):
                if own not in (CLIENT, other):
                    peer += "".join(
                        f"neighbour replace {other[n]} lladdr {MAC % last} dev eth0 nud permanent\n" for n in (4, 6)
                    )
            _ip(peer, self.holders[name].pid)
        fds = {name: os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY) for name, holder in self.holders.items()}
        self.senders = {
            "client": Sender(fds["CLIENT"], CLIENT, "lan0", mac=MAC % 9),
            "web": Sender(fds["WEB"], WEB, "cni0", "web0", MAC % 0x12),
            "db": Sender(fds["DB"], DB, "cni0", "db0", MAC % 0x13),
            "router": Sender(os.open("/proc/self/ns/net", os.O_RDONLY), {}, ""),
        }
        self.nft = Nft()
        self.netlink = Socket(NETLINK_NETFILTER)
        self.model = _model()
        self.install_probe()

    def close(self) -> None:
        """End the processes that hold the namespaces."""
        for holder in self.holders.values():
            holder.communicate(b"\n")

    # Rulesets

    def install_probe(self) -> None:
        """The table that notes what gets where. In the family bridge there is no `ct` here."""
        sets = "".join(PROBE_SETS.format(hook=hook) for hook in HOOKS)
        chains = "".join(PROBE_CHAIN.format(hook=hook) for hook in HOOKS)
        bridge = "".join(line for line in chains.splitlines(keepends=True) if "@ct_" not in line)
        self.nft.run(PROBE.format(sets=sets, chains=chains, bridge_chains=bridge))

    def reset(self) -> None:
        """No rules but the probe's, and nothing in its sets."""
        sets = [f"{family} probe {name}" for family in ("inet", "bridge") for name in SETS]
        self.nft.run(
            "".join([f"delete table {one}\n" for one in self._tables()] + [f"flush set {one}\n" for one in sets])
        )
        self.model = replace(self.model, nftables="", iptables=())

    def _tables(self) -> list[str]:
        """Family and name of each but the probe's: without libnftables, which reads all sets for that."""
        answers = self.netlink.request(NFT_MSG_GETTABLE, NLM_F_DUMP, bytes(4))
        found = [(FAMILIES[body[0]], text(attrs(body[4:]).get(1))) for _, body in answers]
        return [f"{family} {name}" for family, name in found if name != "probe"]

    @contextmanager
    def rules(self, nft: str = "", iptables: str = "", ip6tables: str = "", legacy: str = "") -> Iterator[None]:
        """These rules, for the kernel and in the model; gone afterwards."""
        try:
            if nft:
                self.nft.run(nft)
            saved = []
            for program, text in (
                ("iptables-nft", iptables),
                ("ip6tables-nft", ip6tables),
                ("iptables-legacy", legacy),
            ):
                if text:
                    _restore(program, text)
                    saved.append((program, _save(program)))
            self.read(tuple(saved))
            yield
        finally:
            if legacy:
                _restore("iptables-legacy", EMPTY_LEGACY)
            self.reset()

    def read(self, saved: tuple[tuple[str, str], ...] = ()) -> None:
        """The ruleset into the model, without the probe."""
        objects: list[Any] = []
        for one in self._tables():
            objects += self.nft.listed(f"table {one}")
        self.model = replace(self.model, nftables=json.dumps({"nftables": objects}), iptables=saved)

    # Packets

    def send(
        self, who: str, destination: str, port: int, kind: socket.SocketKind = socket.SOCK_DGRAM, mark: int = 0
    ) -> Packet:
        """Send a packet; it is described as its first hook sees it."""
        sender = self.senders[who]
        family = 6 if ":" in destination else 4
        self.port += 1
        source = sender.sources.get(family, "")
        with netns_of(sender.fd), socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind) as sock:
            sock.setblocking(False)
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.bind((source, self.port))
            with suppress(OSError):  # refused here, or later
                if kind == socket.SOCK_STREAM:
                    sock.connect((destination, port))
                else:
                    sock.connect((destination, port))
                    source = source or sock.getsockname()[0]
                    sock.send(b"x")
            source = source or sock.getsockname()[0]
        packet = Packet(family, TYPES[kind], source, self.port, destination, port, mark=mark)
        if who == "router":
            return replace(packet, oif=self.way(destination))
        return replace(packet, iif=sender.link, source_mac=sender.mac)

    def seen(self, packets: list[Packet], family: int = INET, *, wait: bool = True) -> list[dict[str, Seen]]:
        """Of each packet: at the end of which hooks it has been, and how it was there."""
        sent = {packet.source_port for packet in packets if packet.iif and wait}
        deadline = time.monotonic() + ARRIVES_S
        while sent - {_port(key) for key in self._dump("arrived", family)} and time.monotonic() < deadline:
            time.sleep(0.001)
        found: list[dict[str, Seen]] = [{} for _ in packets]
        numbers = {packet.source_port: n for n, packet in enumerate(packets)}
        for hook in HOOKS:
            marks: dict[int, int | None] = {}
            for key in self._dump(f"ct_{hook}", family):  # a later packet of the connection may have come with another
                marks[_port(key)] = None if _port(key) in marks else _MARK.unpack(key[4:8])[0]
            for key in [*self._dump(f"ip_{hook}", family), *self._dump(f"ip6_{hook}", family)]:
                size = 4 if len(key) == 20 else 16
                source, destination, rest = key[:size], key[size : 2 * size], key[2 * size :]
                if (number := numbers.get(_port(rest))) is not None:
                    ends = (str(ipaddress.ip_address(source)), str(ipaddress.ip_address(destination)))
                    mark = _MARK.unpack(rest[8:12])[0]
                    found[number][hook] = Seen(*ends, _port(rest), _port(rest[4:]), mark, marks.get(_port(rest)))
        return found

    def _dump(self, name: str, family: int) -> list[bytes]:
        """The keys of a set of the probe."""
        request = struct.pack("!BBH", family, 0, 0) + attr(1, b"probe\0") + attr(2, name.encode() + b"\0")
        answers = self.netlink.request(NFT_MSG_GETSETELEM, NLM_F_DUMP, request)
        elements = [attrs(body[4:]).get(3, b"") for kind, body in answers if kind == NFT_MSG_NEWSETELEM]
        return [Element.decode(one).key for each in elements for _, one in iter_attrs(each)]

    def compare(self, packets: list[Packet]) -> tuple[list[str], int]:
        """Where the kernel did something else than decide() says, and how many of the packets it could not say all about."""
        ways = [self.walk(packet) for packet in packets]
        unknown = sum(any(outcome.verdict == "unknown" for _, outcome in passed) for passed in ways)
        return self.lasting_disagreements(packets, ways), unknown

    def lasting_disagreements(self, packets: list[Packet], ways: list[Way], family: int = INET) -> list[str]:
        """Those that are still there when every packet has had the time to come to its end: some are still on their way."""
        deadline = time.monotonic() + LASTING_S
        while (wrong := self.disagreements(packets, ways, family)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return wrong

    def disagreements(self, packets: list[Packet], ways: list[Way], family: int = INET) -> list[str]:
        """The same, for what has been decided already."""
        return [
            f"{packet.protocol} {packet.source} -> {packet.destination} {packet.destination_port}: {one}"
            for packet, passed, seen in zip(packets, ways, self.seen(packets, family), strict=True)
            for one in differences(passed, seen)
        ]

    # The way, as decide() has it

    def way(self, destination: str) -> str:
        """The link that leads there."""
        if is_local(destination):
            return "lo"
        return "lan0" if destination.startswith(("192.0.2.", "2001:")) else "cni0"

    def walk(self, packet: Packet) -> Way:
        """What decide() says of each hook, until one lets nothing through."""
        passed: Way = []
        left: list[Hook] = ["prerouting"] if packet.iif else ["output"]
        while left:
            hook = left.pop(0)
            outcome = decide(self.model, hook, packet)
            passed.append((hook, outcome))
            if outcome.verdict != "accept":
                break
            packet = outcome.packet
            way = self.way(packet.destination)
            if hook == "prerouting":
                left = ["input"] if way == "lo" else ["forward"]
                packet = replace(packet, oif="" if way == "lo" else way)
            elif hook in ("forward", "output"):
                left = ["postrouting"]
                packet = replace(packet, oif=way)
            elif hook == "postrouting" and packet.oif == "lo":
                left = ["prerouting"]
                packet = replace(packet, iif="lo", oif="")
        return passed

    def walk_bridge(self, packet: Packet, out: str, decide_at: Decide) -> Way:
        """What is said of each hook of a frame from one port of the bridge to another."""
        passed: Way = []
        packet = replace(packet, bridge_in="web0" if packet.source == WEB[packet.family] else "db0")
        for hook in BRIDGED:
            if hook == "forward":
                packet = replace(packet, oif="cni0", bridge_out=out)
            outcome = decide_at(self.model, hook, packet)
            passed.append((hook, outcome))
            if outcome.verdict != "accept":
                break
            packet = outcome.packet
        return passed


def differences(passed: Way, seen: dict[str, Seen]) -> list[str]:
    """Where the kernel did something else than was decided. What is said to be unknown is no difference."""
    found: list[str] = []
    for hook, outcome in passed:
        there = seen.get(hook)
        if outcome.verdict == "unknown" or outcome.verdict == "queue":
            return found
        if outcome.verdict != "accept":
            return [*found, f"{hook}: said {outcome.verdict}, but it passed"] if there else found
        if there is None:
            return [*found, f"{hook}: said accept, but it did not pass"]
        found += _compared(hook, outcome.packet, there)
    return found


def _compared(hook: str, packet: Packet, there: Seen) -> list[str]:
    unsure = packet.unsure
    pairs = {
        "saddr": (packet.source or there.source, there.source),
        "daddr": (packet.destination, there.destination),
        "destination_port": (packet.destination_port, there.destination_port),
        "mark": (packet.mark, there.mark),
        "ct_mark": (packet.ct_mark, there.ct_mark),
    }
    return [
        f"{hook}: {name} is said to be {said}, and is {is_}"
        for name, (said, is_) in pairs.items()
        if name not in unsure and said != is_ and is_ is not None
    ]


def is_local(address: str) -> bool:
    """Whether the router has it."""
    return address.startswith("127.") or address in ("::1", *ROUTER.values(), *GATEWAY.values())


@contextmanager
def netns_of(fd: int) -> Iterator[None]:
    """This thread in that namespace."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        netns.setns(fd)
        yield
    finally:
        netns.setns(here)
        os.close(here)


# An empty text leaves policies as they are
EMPTY_LEGACY = "".join(
    f"*{table}\n" + "".join(f":{chain} ACCEPT\n" for chain in chains.split()) + "COMMIT\n"
    for table, chains in {
        "filter": "INPUT FORWARD OUTPUT",
        "nat": "PREROUTING INPUT OUTPUT POSTROUTING",
        "mangle": "PREROUTING INPUT FORWARD OUTPUT POSTROUTING",
        "raw": "PREROUTING OUTPUT",
    }.items()
)


def _namespace() -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; read x"], stdin=-1, stdout=-1)
    assert holder.stdout is not None
    holder.stdout.readline()
    return holder


def _ip(text: str, pid: int = 0) -> None:
    command = ["ip", "-batch", "-"]
    if pid:
        command = ["nsenter", f"--net=/proc/{pid}/ns/net", *command]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def write_sysctl(path: str, value: str) -> None:
    with open(f"/proc/sys/{path}", "w") as file:
        file.write(value)


def _restore(program: str, text: str) -> None:
    done = subprocess.run([f"{program}-restore"], input=text.encode(), capture_output=True, check=False)
    assert done.returncode == 0, f"{done.stderr.decode()}\n{text}"


def _save(program: str) -> str:
    return subprocess.run([f"{program}-save"], capture_output=True, text=True, check=True).stdout


def _port(key: bytes) -> int:
    return int.from_bytes(key[:2], "big")


def _model() -> Namespace:
    """The router, as host/collect.py would have it."""
    kinds = {"lo": "", "lan0": "veth", "cni0": "bridge", "web0": "veth", "db0": "veth"}
    links = []
    for one in json.loads(subprocess.run(["ip", "-j", "address"], capture_output=True, check=True).stdout):
        addresses = tuple(Address(each["local"], each["prefixlen"]) for each in one["addr_info"])
        kind = kinds.get(one["ifname"])
        if kind is None:
            continue
        master = one.get("master", "")
        links.append(
            Link(
                one["ifindex"], one["ifname"], kind, one["address"], one["mtu"], True, "up", master, addresses=addresses
            )
        )
    return Namespace("net:[1]", links=tuple(links), routes=tuple(_routes()))


def _routes() -> Iterator[Route]:
    for family in (4, 6):
        for table, number in (("local", 255), ("main", 254)):
            command = ["ip", f"-{family}", "-j", "route", "show", "table", table]
            for one in json.loads(subprocess.run(command, capture_output=True, check=True).stdout or b"[]"):
                everywhere = "0.0.0.0/0" if family == 4 else "::/0"
                destination = everywhere if one["dst"] == "default" else one["dst"]
                yield Route(family, number, destination, one.get("type", "unicast"), link=one.get("dev", ""))
