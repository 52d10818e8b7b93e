"""The model of a host: what exists, who owns it, and what is wrong with it. Values alone: nothing here asks the kernel.

The first namespace is the host's. Names in `--json` output and in saved models are those of the fields here; a later version
adds fields, and reads what an earlier one saved (host/saved.py).

What could not be looked at (no right, no program, a kernel without it) is empty *and* named in `Host.gaps`: a reader that
needs it answers "unknown", not "absent".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA = 1

Level = Literal["error", "warning", "note"]
Source = Literal["cni-py", "go", "portfwd", "docker", "podman", "kubernetes", "other", ""]
Liveness = Literal["alive", "dead", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or will be. One sentence each."""

    level: Level
    code: str  # from a closed, documented list: "link-down", "ip-forward-off"
    subject: str  # what it is about: "link cni-py0", "container web", "port 8080/tcp"
    what: str
    why: str = ""  # what follows from it
    do: str = ""  # the command or change that mends it


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a link."""

    address: str
    prefix: int
    scope: str = "global"  # "global", "link", "host", "site"
    flags: tuple[str, ...] = ()  # "tentative", "deprecated", "dadfailed", "permanent"


@dataclass(frozen=True, slots=True)
class Vlan:
    """A VLAN of a bridge port, or of the bridge itself."""

    vid: int
    pvid: bool = False
    untagged: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of a namespace."""

    index: int
    name: str
    kind: str  # "veth", "bridge", "vlan", "macvlan"; "" for lo and hardware
    mac: str
    mtu: int
    up: bool  # IFF_UP
    operstate: str  # "up", "down", "lowerlayerdown", "unknown"
    master: str = ""  # name of the bridge or VRF it is a port of
    peer_index: int = 0  # veth: index of the other end; macvlan, vlan: of the parent (IFLA_LINK)
    peer_namespace: str = ""  # key of the namespace that the other end is in; "" when it is in none of the model
    alias: str = ""
    group: int = 0
    addresses: tuple[Address, ...] = ()
    vlans: tuple[Vlan, ...] = ()
    vlan_filtering: bool = False  # of a bridge
    stp_state: str = ""  # of a bridge port: "forwarding", "disabled", ...
    hairpin: bool = False
    isolated: bool = False
    flags: tuple[str, ...] = ()  # "promisc", "loopback", "noarp"
    vlan_id: int = 0  # of kind "vlan"
    source: Source = ""  # who made it, as far as its name, alias or address tell


@dataclass(frozen=True, slots=True)
class Route:
    """An entry of a routing table."""

    family: int  # 4 or 6
    table: int  # 254 is "main", 255 "local"
    destination: str  # "0.0.0.0/0" and "::/0" for the default
    kind: str = "unicast"  # "local", "broadcast", "blackhole", "unreachable", "prohibit", "throw"
    gateway: str = ""
    link: str = ""  # name; the first of several next hops
    source: str = ""  # preferred source address
    scope: str = "global"
    metric: int = 0
    protocol: str = ""  # "kernel", "boot", "static", "dhcp"


@dataclass(frozen=True, slots=True)
class Rule:
    """A routing rule (ip-rule)."""

    family: int
    priority: int
    action: str  # "lookup", "blackhole", "unreachable", "prohibit", "goto"
    table: int = 0
    source: str = ""  # prefix; "" for all
    destination: str = ""
    iif: str = ""
    oif: str = ""
    mark: int = 0
    mask: int = 0
    other: bool = False  # it has conditions that this model does not hold: what it decides is unknown
    inverted: bool = False  # "not": it holds for the packets that its conditions leave out
    suppress: int = -1  # of "lookup": routes with a prefix of that length or shorter do not count; -1 for none


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the ARP or NDP table."""

    address: str
    mac: str
    link: str
    state: str  # "reachable", "stale", "failed", "permanent", "incomplete"


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A MAC address that a bridge has learnt or was told."""

    mac: str
    port: str  # name of the link
    bridge: str
    vid: int = 0
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket that waits for clients: a TCP or SCTP listener, a UDP socket without a peer."""

    protocol: str  # "tcp", "udp", "sctp"
    address: str  # "0.0.0.0", "::", ...
    port: int
    v6only: bool = False
    link: str = ""  # SO_BINDTODEVICE
    inode: int = 0
    pid: int = 0  # 0: unknown
    program: str = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked connection (conntrack) that was translated, or goes to a published port."""

    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    reply_source: str
    reply_source_port: int
    reply_destination: str
    reply_destination_port: int
    state: str = ""
    status: tuple[str, ...] = ()  # "assured", "dnat", "snat", "seen-reply"


@dataclass(frozen=True, slots=True)
class Process:
    """A process in a namespace."""

    pid: int
    name: str
    container_id: str = ""  # from its cgroup
    ppid: int = 0


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace. `key` is "net:[4026531840]", as readlink(/proc/PID/ns/net) says it."""

    key: str
    names: tuple[str, ...] = ()  # paths that lead to it: "/run/netns/web"
    cookie: int = 0
    processes: tuple[Process, ...] = ()  # at most 50; `process_count` is the whole number
    process_count: int = 0
    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    fdb: tuple[FdbEntry, ...] = ()
    sockets: tuple[Socket, ...] = ()
    flows: tuple[Flow, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()  # ("net.ipv4.ip_forward", "1"); which: host/sysctls.py
    nftables: str = (
        ""  # `nft -j list ruleset`, as text; "" when it could not be read, or in namespaces where it was not
    )
    # What iptables-save prints, by program: "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"
    iptables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a runtime that answers."""

    id: str
    runtime: str  # "containerd", "cri-o", "podman", "docker"
    name: str = ""
    image: str = ""
    pid: int = 0
    running: bool = True
    pod: str = ""
    networks: tuple[str, ...] = ()
    namespace: str = ""  # containerd's: "default", "k8s.io"; its CNI ID is then the ID, or "default-ID" (nerdctl)
    state: str = ""  # in the runtime's word: "running", "exited", "created"


@dataclass(frozen=True, slots=True)
class Operation:
    """What a plugin made for an attachment, as its record says it."""

    plugin: str
    text: str  # as `--plan` prints it
    entry: str = ""  # the entry of the record, as JSON


@dataclass(frozen=True, slots=True)
class Attachment:
    """An interface of a container that a CNI plugin connected, by the records of ours, the cache of libcni, or both."""

    network: str
    container_id: str
    ifname: str
    hex: str
    netns: str  # path
    namespace: str = ""  # key; "" when the path leads nowhere
    live: Liveness = "unknown"
    reason: str = ""  # why it is said to be dead, or why it cannot be said
    plugins: tuple[str, ...] = ()
    unfinished: bool = False  # an ADD is under way, or was killed
    addresses: tuple[str, ...] = ()  # with prefix length
    host_links: tuple[str, ...] = ()  # names on the host: the veth, bwp...
    bridge: str = ""
    operations: tuple[Operation, ...] = ()
    source: Source = "cni-py"
    since: float = 0.0  # seconds since 1970: time of the record's file


@dataclass(frozen=True, slots=True)
class Port:
    """A published port, or a range of them that leads to ports of the same offset."""

    protocol: str
    host_address: str  # "0.0.0.0" and "::" for any
    first: int
    last: int
    target: str  # address in the container; "" when a relay enters the namespace
    target_port: int  # of `first`
    way: Literal["nat", "relay", "both"]
    source: Source = "cni-py"
    backend: str = ""  # "nftables", "iptables", "portfwd", "docker-proxy", "rootlessport", "conmon"
    network: str = ""
    container_id: str = ""
    ifname: str = ""
    allow: tuple[str, ...] = ()  # networks of the only clients
    shared: bool = False
    place: str = ""  # the map element, chain or relay that does it: "inet cni_py any4", "CNI-DN-...", "relay id"
    namespace: str = ""  # key of the namespace that a relay enters
    inside: str = ""  # address that the relay connects to in there


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Whose outgoing packets are masqueraded."""

    address: str  # or prefix
    source: Source = "cni-py"
    backend: str = "nftables"
    network: str = ""
    container_id: str = ""
    ifname: str = ""


@dataclass(frozen=True, slots=True)
class Relay:
    """A mapping of portfwd's service."""

    id: str
    listen: str  # as `portfwd ls` prints it
    target: str
    owner: str = ""
    state: str = ""
    problem: str = ""
    active: int = 0
    protocol: str = "tcp"
    host_address: str = ""
    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """An address that host-local's files reserve."""

    address: str
    container_id: str
    ifname: str
    since: float  # time of the file
    live: Liveness = "unknown"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pool:
    """The addresses of a network."""

    network: str
    folder: str
    ranges: tuple[str, ...] = ()  # "10.88.0.2-10.88.255.254"; () when the configuration is gone
    sizes: tuple[int, ...] = ()  # addresses that each range can give out: without the gateway and the excluded
    size: int = 0  # of all ranges together
    reservations: tuple[Reservation, ...] = ()
    last: tuple[str, ...] = ()  # the address that each range set gave out last


@dataclass(frozen=True, slots=True)
class Network:
    """A network configuration list."""

    name: str
    path: str
    cni_version: str = ""
    types: tuple[str, ...] = ()  # "bridge", "portmap"; those within a `chain` too
    bridge: str = ""
    subnets: tuple[str, ...] = ()
    problem: str = ""  # why a runtime cannot load it


@dataclass(frozen=True, slots=True)
class Host:
    """Everything."""

    schema: int
    version: str  # of cni-py
    taken: float  # seconds since 1970
    hostname: str
    kernel: str
    namespaces: tuple[Namespace, ...]  # the host's first
    networks: tuple[Network, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    containers: tuple[Container, ...] = ()
    ports: tuple[Port, ...] = ()
    masquerades: tuple[Masquerade, ...] = ()
    relays: tuple[Relay, ...] = ()
    pools: tuple[Pool, ...] = ()
    portfwd: str = ""  # "running 0.1.0", "not running", "no answer: ..."
    findings: tuple[Finding, ...] = ()  # host/health.py: what is down, missing or foreign
    gaps: tuple[Finding, ...] = ()  # what could not be looked at, code "not-seen"

    @property
    def root(self) -> Namespace:
        """The host's own namespace."""
        return self.namespaces[0]

    def namespace(self, key: str) -> Namespace | None:
        """The namespace of that key."""
        return next((one for one in self.namespaces if one.key == key), None)
