"""Models of hosts, built in code: one with something of everything, and others with one thing each."""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
from collections.abc import Sequence
from typing import Any, Literal

from cni_py.host.model import (
    SCHEMA,
    Address,
    Attachment,
    Container,
    FdbEntry,
    Finding,
    Flow,
    Host,
    Link,
    Masquerade,
    Namespace,
    Neighbour,
    Network,
    Operation,
    Pool,
    Port,
    Process,
    Relay,
    Reservation,
    Route,
    Rule,
    Socket,
    Source,
    Vlan,
)

ROOT = "net:[4026531840]"
TAKEN = 1_790_000_000.0
HOSTILE = '[red]no "markup"</text><script>alert(1)</script>\x1b[31m\n\u202etxt'
WIDE = "数据库-データ"


def link(index: int, name: str, kind: str = "", addresses: Sequence[str] = (), **more: Any) -> Link:
    """An interface that is up. `addresses` have a prefix length."""
    values: dict[str, Any] = {"mac": f"02:00:00:00:00:{index % 256:02x}", "mtu": 1500, "up": True, "operstate": "up"}
    return Link(index=index, name=name, kind=kind, addresses=tuple(map(address, addresses)), **values | more)


def address(text: str) -> Address:
    """Of "192.0.2.1/24"."""
    parsed = ipaddress.ip_interface(text)
    return Address(
        str(parsed.ip), parsed.network.prefixlen, "link" if parsed.is_link_local else "global", ("permanent",)
    )


def loopback() -> Link:
    return link(1, "lo", "", ["127.0.0.1/8", "::1/128"], mac="00:00:00:00:00:00", mtu=65536, flags=("loopback",))


def default(gateway: str, by: str) -> Route:
    family = 6 if ":" in gateway else 4
    return Route(family, 254, "::/0" if family == 6 else "0.0.0.0/0", gateway=gateway, link=by, protocol="static")


def inside(key: int, name: str, links: Sequence[Link], processes: Sequence[Process] = (), **more: Any) -> Namespace:
    """A container's namespace. `name`: of the file in /run/netns; "" for none."""
    names = (f"/run/netns/{name}",) if name else ()
    return Namespace(
        f"net:[{4026532000 + key}]", names, key, tuple(processes), len(processes), (loopback(), *links), **more
    )


class Builder:
    """Connects containers to the bridges of a host, and gathers what the model has of them."""

    def __init__(self, links: Sequence[Link], routes: Sequence[Route] = ()) -> None:
        self.links = list(links)
        self.routes = list(routes)
        self.numbers = itertools.count(1)
        self.namespaces: list[Namespace] = []
        self.attachments: list[Attachment] = []
        self.containers: list[Container] = []
        self.ports: list[Port] = []
        self.masquerades: list[Masquerade] = []

    def connect(
        self,
        network: str,
        bridge: str,
        name: str,
        addresses: Sequence[str],
        ports: Sequence[Port] = (),
        *,
        runtime: str = "containerd",
        program: str = "nginx",
        source: Source = "cni-py",
        veth: dict[str, Any] | None = None,
        **more: Any,
    ) -> str:
        """A container with a veth to a bridge ("" for none: ptp). Returns its id."""
        number = next(self.numbers)
        index = 10 + number
        key = f"net:[{4026532000 + number}]"
        container_id = f"{number:04x}{'5f3c9a1be27d4608' * 4}"[:64]
        process = Process(4000 + number, program, container_id, 1)
        eth0 = link(2, "eth0", "veth", addresses, peer_index=index, peer_namespace=ROOT)
        gateways = [str(next(ipaddress.ip_interface(one).network.hosts())) for one in addresses]
        self.namespaces.append(
            inside(
                number,
                f"cni-{number}",
                [eth0],
                [process],
                routes=tuple(default(gateway, "eth0") for gateway in gateways),
                sockets=tuple(
                    Socket(one.protocol, "::", one.target_port, inode=number, pid=process.pid, program=program)
                    for one in ports[:1]
                ),
            )
        )
        values: dict[str, Any] = {"alias": f"{number:016x} {network}/{container_id}/eth0", "source": source}
        host = link(index, f"veth{number:08x}", "veth", master=bridge, peer_index=2, peer_namespace=key)
        self.links.append(dataclasses.replace(host, **values | (veth or {})))
        attachment = Attachment(
            network, container_id, "eth0", f"{number:016x}", f"/run/netns/cni-{number}", key, "alive",
            plugins=("bridge", "host-local", "portmap", "firewall"), addresses=tuple(addresses),
            host_links=(host.name,), bridge=bridge, source=source, since=TAKEN - 60 * number,
            operations=(Operation("bridge", f"host: veth {host.name} to eth0"),),
        )  # fmt: skip
        self.attachments.append(dataclasses.replace(attachment, **more))
        if runtime:
            networks = (network,)
            self.containers.append(
                Container(container_id, runtime, name, f"docker.io/library/{program}", process.pid, True, "", networks)
            )
        mark: dict[str, Any] = {"container_id": container_id, "ifname": "eth0", "network": network}
        self.ports += [dataclasses.replace(port, **mark) for port in ports]
        self.masquerades += [
            Masquerade(one.partition("/")[0], source, network=network, container_id=container_id) for one in addresses
        ]
        return container_id

    def host(self, *, sockets: Sequence[Socket] = (), root: dict[str, Any] | None = None, **more: Any) -> Host:
        """The model."""
        own = Namespace(
            ROOT, (), 1, (Process(1, "systemd"), Process(900, "sshd", "", 1)), 2,
            (loopback(), *self.links), tuple(self.routes), sockets=tuple(sockets), **root or {},
        )  # fmt: skip
        return Host(
            SCHEMA, "0.1.0", TAKEN, "node7", "6.12.41", (own, *self.namespaces), attachments=tuple(self.attachments),
            containers=tuple(self.containers), ports=tuple(self.ports), masquerades=tuple(self.masquerades), **more,
        )  # fmt: skip


def uplink(*more: Link) -> list[Link]:
    """eth0, on the LAN."""
    return [link(2, "eth0", "", ["198.51.100.1/24", "2001:db8:1::1/64", "fe80::1/64"]), *more]


def port(
    first: int,
    target: str,
    target_port: int,
    way: Literal["nat", "relay", "both"] = "nat",
    *,
    last: int = 0,
    at: str = "0.0.0.0",
    **more: Any,
) -> Port:
    """A published port; `Builder.connect` says whose."""
    return Port(
        **{"protocol": "tcp", "backend": "nftables"} | more,
        host_address=at, first=first, last=last or first, target=target, target_port=target_port, way=way,
    )  # fmt: skip


def lone() -> Host:
    """One container, one port, IPv4."""
    made = Builder([*uplink(), link(3, "cni-py0", "bridge", ["10.88.0.1/24"])], [default("198.51.100.254", "eth0")])
    web = made.connect("cni-py", "cni-py0", "web", ["10.88.0.2/24"], [port(8080, "10.88.0.2", 80)])
    pool = Pool(
        "cni-py", "/var/lib/cni/networks/cni-py", ("10.88.0.2-10.88.0.254",), (253,), 253,
        (Reservation("10.88.0.2", web, "eth0", TAKEN - 60, "alive"),), ("10.88.0.2",),
    )  # fmt: skip
    return made.host(networks=(of_bridge("cni-py", "cni-py0", "10.88.0.0/24"),), pools=(pool,), portfwd="not running")


def of_bridge(name: str, bridge: str, *subnets: str) -> Network:
    types = ("bridge", "host-local", "portmap", "firewall")
    return Network(name, f"/etc/cni/net.d/10-{name}.conflist", "1.1.0", types, bridge, subnets)


def crowd(networks: int = 3, containers: int = 20, *, dual: bool = True) -> Host:
    """That many networks of that many containers each, every fifth with a published port."""
    made = Builder([*uplink()], [default("198.51.100.254", "eth0")])
    configured, pools = [], []
    for number in range(networks):
        bridge, name = f"cni{number}", f"net{number}"
        v4, v6 = f"10.{100 + number}", f"fd00:{number + 1:x}"
        gateways = [f"{v4}.0.1/16", *([f"{v6}::1/64"] if dual else [])]
        made.links.append(link(100_000 + number, bridge, "bridge", gateways))
        held = []
        for one in range(containers):
            own = f"{v4}.{(one + 2) // 256}.{(one + 2) % 256}"
            addresses = [f"{own}/16", *([f"{v6}::{one + 2:x}/64"] if dual else [])]
            ports = [port(8000 + 1000 * number + one, own, 80)] if one % 5 == 0 else []
            made.connect(name, bridge, f"{name}-app{one}", addresses, ports)
            held += [
                Reservation(text.partition("/")[0], made.attachments[-1].container_id, "eth0", TAKEN - one, "alive")
                for text in addresses
            ]
        subnets = [f"{v4}.0.0/16", *([f"{v6}::/64"] if dual else [])]
        configured.append(of_bridge(name, bridge, *subnets))
        ranges = (f"{v4}.0.2-{v4}.255.254",)
        pools.append(Pool(name, f"/var/lib/cni/networks/{name}", ranges, (65533,), 65533, tuple(held)))
    return made.host(networks=tuple(configured), pools=tuple(pools), portfwd="running 0.1.0")


def example() -> Host:
    """A host with something of everything: dual stack, VLANs, ptp, macvlan, the Go plugins, Docker, broken and hostile things."""
    made = Builder(_links(), [default("198.51.100.254", "eth0"), default("2001:db8:1::fe", "eth0")])
    ids = _containers(made)
    _without_bridge(made, ids)
    return made.host(
        sockets=(
            Socket("tcp", "0.0.0.0", 22, inode=1, pid=900, program="sshd"),
            Socket("tcp", "::", 22, v6only=True, inode=2, pid=900, program="sshd"),
            Socket("udp", "127.0.0.53", 53, link="lo", inode=3, pid=700, program="systemd-resolve"),
            Socket("tcp", "::1", 8080, inode=4, pid=800, program="portfwd"),
        ),
        root={
            "rules": (Rule(4, 0, "lookup", 255), Rule(4, 32766, "lookup", 254)),
            "neighbours": (
                Neighbour("10.88.0.2", "02:00:00:00:00:02", "cni-py0", "reachable"),
                Neighbour("198.51.100.254", "02:00:00:00:00:fe", "eth0", "stale"),
            ),
            "fdb": (FdbEntry("02:00:00:00:00:02", "veth00000001", "cni-py0"),),
            "flows": (
                Flow("tcp", "198.51.100.7", 40000, "198.51.100.1", 8080, "10.88.0.2", 80, "198.51.100.7", 40000,
                     "established", ("assured", "dnat")),
            ),
            "sysctls": (("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")),
        },
        networks=(
            of_bridge("cni-py", "cni-py0", "10.88.0.0/24", "fd00:88::/64"),
            of_bridge("tenants", "br-tenants", "10.89.0.0/24"),
            of_bridge("old", "cni0", "10.22.0.0/16"),
            Network("direct", "/etc/cni/net.d/20-direct.conflist", "1.0.0", ("ptp", "host-local"), "", ("10.90.0.0/30",)),
            Network("lan", "/etc/cni/net.d/30-lan.conflist", "1.0.0", ("macvlan", "static")),
            Network("lost", "/etc/cni/net.d/90-lost.conflist", problem="line 7: ',' expected"),
        ),
        pools=_pools(ids),
        relays=(
            Relay("p1", "[::1]:8080/tcp", "[fd00:88::2]:80", "cni-py/web", "serving", active=2, host_address="::1",
                  first=8080, last=8080),
            Relay("p2", "0.0.0.0:9090/tcp", "127.0.0.1:9000 in /run/netns/cni-2", "alice", "failing",
                  "connection refused", host_address="0.0.0.0", first=9090, last=9090),
        ),
        portfwd="running 0.1.0",
        findings=(
            Finding("error", "link-down", "link veth00000003", f"veth00000003 is down, and {WIDE} depends on it",
                    do="ip link set veth00000003 up"),
            Finding("warning", "attachment-dead", f"container {ids['gone']}",
                    "what was made for eth0 in network cni-py is still there: /run/netns/cni-4 is gone", do="cni-py gc"),
            Finding("warning", "address-leaked", "network cni-py", "10.88.0.5 is reserved for a container that is gone",
                    "no other container gets it", "cni-py gc"),
            Finding("note", "nothing-listens", f"container {ids['web']}",
                    "nothing listens on 5000/udp; clients of the published port are refused"),
        ),
        gaps=(Finding("note", "not-seen", "podman", "podman did not answer: /run/podman/podman.sock is missing"),),
    )  # fmt: skip


def _links() -> list[Link]:
    return [
        *uplink(link(3, "eth1", "", ["203.0.113.4/24"])),
        link(4, "cni-py0", "bridge", ["10.88.0.1/24", "fd00:88::1/64"], source="cni-py"),
        link(5, "br-tenants", "bridge", ["10.89.0.1/24"], vlan_filtering=True, source="cni-py", vlans=(Vlan(1, True, True),)),
        link(6, "cni0", "bridge", ["10.22.0.1/16"], source="go", flags=("promisc",)),
        link(7, "docker0", "bridge", ["172.17.0.1/16"], source="docker"),
        link(8, "virbr0", "bridge", ["192.168.122.1/24"], source="other", operstate="down", up=False),
        link(9, "wg0", "wireguard", ["192.0.2.9/32"], operstate="unknown"),
    ]  # fmt: skip


def _containers(made: Builder) -> dict[str, str]:
    """Those on bridges: name -> id."""
    both = [
        port(8080, "10.88.0.2", 80, "both", allow=("198.51.100.0/24", "2001:db8:1::/48"), place="inet cni_py any4"),
        port(8080, "fd00:88::2", 80, "both", at="::", place="inet cni_py any6"),
        port(5000, "10.88.0.2", 5000, last=5099, protocol="udp", shared=True, place="inet cni_py any4"),
    ]
    ids = {"web": made.connect("cni-py", "cni-py0", "web", ["10.88.0.2/24", "fd00:88::2/64"], both)}
    ids["hostile"] = made.connect(
        "cni-py", "cni-py0", HOSTILE, ["10.88.0.3/24"], runtime="docker", program="\x1b]0;x\x07sh"
    )
    ids["wide"] = made.connect(
        "cni-py", "cni-py0", WIDE, ["10.88.0.4/24", "fd00:88::4/64"], [port(5432, "10.88.0.4", 5432, at="127.0.0.1")],
        runtime="podman", program="postgres", veth={"up": False, "operstate": "down"},
    )  # fmt: skip
    lost: dict[str, Any] = {"namespace": "", "live": "dead", "reason": "/run/netns/cni-4 is gone"}
    ids["gone"] = made.connect("cni-py", "cni-py0", "gone", ["10.88.0.5/24"], [port(8443, "10.88.0.5", 443)], **lost)
    vlans = {"vlans": (Vlan(10, True, True), Vlan(20)), "isolated": True, "hairpin": True}
    ids["tenant"] = made.connect(
        "tenants", "br-tenants", "", ["10.89.0.2/24"], runtime="", program="sleep", unfinished=True, veth=vlans
    )
    ids["old"] = made.connect(
        "old", "cni0", "old-web", ["10.22.0.2/16"],
        [port(80, "10.22.0.2", 8080, source="go", backend="iptables", place="CNI-DN-0123456789abcdef")], source="go",
    )  # fmt: skip
    # The namespace and the veth of `gone` are gone
    made.namespaces = [one for one in made.namespaces if one.key != "net:[4026532004]"]
    made.links = [one for one in made.links if one.peer_namespace != "net:[4026532004]"]
    made.containers = [one for one in made.containers if one.name != "gone"]
    return ids


def _without_bridge(made: Builder, ids: dict[str, str]) -> None:
    """ptp, macvlan, a namespace that no CNI plugin connected, and a Docker container."""
    ids["direct"] = made.connect(
        "direct", "", "direct", ["10.90.0.2/30"], veth={"addresses": (address("10.90.0.1/30"),)}
    )
    key = "net:[4026532050]"
    ids["lan"] = "beef" * 16
    child = link(2, "eth0", "macvlan", ["203.0.113.50/24"], peer_index=3, peer_namespace=ROOT)
    made.namespaces.append(inside(50, "lan", [child], [Process(5050, "camera", ids["lan"], 1)]))
    made.attachments.append(
        Attachment("lan", ids["lan"], "eth0", "b" * 16, "/run/netns/lan", key, "alive", plugins=("macvlan", "static"),
                   addresses=("203.0.113.50/24",), since=TAKEN - 9)
    )  # fmt: skip
    made.containers.append(Container(ids["lan"], "containerd", "camera", "camera:1", 5050, pod="home/camera-0"))
    docker = "d0c4" * 16
    theirs = link(2, "eth0", "veth", ["172.17.0.2/16"], peer_index=90, peer_namespace=ROOT)
    made.namespaces.append(inside(60, "", [theirs], [Process(6060, "redis-server", docker, 1)]))
    made.links.append(
        link(90, "vethd0c4", "veth", master="docker0", peer_index=2, peer_namespace="net:[4026532060]", source="docker")
    )
    made.containers.append(Container(docker, "docker", "cache", "redis:7", 6060, networks=("bridge",)))
    made.ports.append(
        port(6379, "172.17.0.2", 6379, "both", source="docker", backend="docker-proxy", container_id=docker)
    )
    made.namespaces.append(inside(70, "lab", [link(2, "dummy0", "dummy", ["192.0.2.77/32"])]))


def _pools(ids: dict[str, str]) -> tuple[Pool, ...]:
    held = [("10.88.0.2", "web"), ("fd00:88::2", "web"), ("10.88.0.3", "hostile"), ("10.88.0.4", "wide")]
    dead = Reservation("10.88.0.5", ids["gone"], "eth0", TAKEN - 86400, "dead", "/run/netns/cni-4 is gone")
    return (
        Pool(
            "cni-py", "/var/lib/cni/networks/cni-py", ("10.88.0.2-10.88.0.6", "fd00:88::2-fd00:88:0:0:ffff:ffff:ffff:ffff"),
            (5, 2**64 - 2), 2**64 + 3,
            (*(Reservation(one, ids[whose], "eth0", TAKEN - 99, "alive") for one, whose in held), dead),
            ("10.88.0.5", "fd00:88::4"),
        ),
        Pool("old", "/var/lib/cni/networks/old", (), (), 0, (Reservation("10.22.0.2", ids["old"], "eth0", TAKEN),)),
    )  # fmt: skip


def documented() -> Host:
    """The host that docs/show.md draws."""
    made = Builder(
        [
            *uplink(link(3, "cni-py0", "bridge", ["10.88.0.1/24", "fd00:88::1/64"], source="cni-py")),
            link(4, "docker0", "bridge", ["172.17.0.1/16"], source="docker"),
        ],
        [default("198.51.100.254", "eth0"), default("2001:db8:1::fe", "eth0")],
    )
    web = [port(8080, "10.88.0.2", 80, "both"), port(8080, "fd00:88::2", 80, "both", at="::")]
    ids = [made.connect("cni-py", "cni-py0", "web", ["10.88.0.2/24", "fd00:88::2/64"], web)]
    only = [port(5432, "10.88.0.3", 5432, allow=("198.51.100.0/24",))]
    down = {"up": False, "operstate": "down"}
    ids.append(
        made.connect("cni-py", "cni-py0", "db", ["10.88.0.3/24"], only, runtime="podman", program="postgres", veth=down)
    )
    lost: dict[str, Any] = {"namespace": "", "live": "dead", "reason": "its network namespace is gone"}
    ids.append(made.connect("cni-py", "cni-py0", "job", ["10.88.0.4/24"], runtime="", **lost))
    docker = "d0c4" * 16
    theirs = link(2, "eth0", "veth", ["172.17.0.2/16"], peer_index=90, peer_namespace=ROOT)
    made.namespaces = [*made.namespaces[:2], inside(60, "", [theirs], [Process(6060, "redis-server", docker, 1)])]
    made.links = [one for one in made.links if one.name != "veth00000003"]
    made.links.append(
        link(90, "vethd0c4", "veth", master="docker0", peer_index=2, peer_namespace="net:[4026532060]", source="docker")
    )
    made.containers.append(Container(docker, "docker", "cache", "redis:7", 6060))
    made.ports.append(port(6379, "172.17.0.2", 6379, source="docker", backend="iptables", container_id=docker))
    held = [("10.88.0.2", ids[0]), ("fd00:88::2", ids[0]), ("10.88.0.3", ids[1]), ("10.88.0.4", ids[2])]
    pool = Pool(
        "cni-py", "/var/lib/cni/networks/cni-py", ("10.88.0.2-10.88.0.254", "fd00:88::2-fd00:88::ffff:ffff:ffff:ffff"),
        (253, 2**64 - 2), reservations=tuple(Reservation(text, whose, "eth0", TAKEN) for text, whose in held),
    )  # fmt: skip
    sidecar = "127.0.0.1:9000 in /run/netns/cni-1"
    return made.host(
        sockets=(Socket("tcp", "::", 22, pid=900, program="sshd"),),
        networks=(of_bridge("cni-py", "cni-py0", "10.88.0.0/24", "fd00:88::/64"),),
        pools=(pool,),
        relays=(Relay("m1", "0.0.0.0:9090/tcp", sidecar, "", "listening", host_address="0.0.0.0", first=9090, last=9090),),
        portfwd="running 0.1.0",
        findings=(
            Finding("error", "link-down", "link veth00000002", "veth00000002 is down, and db depends on it",
                    do="ip link set veth00000002 up"),
            Finding("warning", "attachment-dead", f"container {ids[2]}",
                    "what was made for eth0 in network cni-py is still there: its network namespace is gone",
                    do="cni-py gc"),
        ),
    )  # fmt: skip
