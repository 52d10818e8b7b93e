"""The model in the order in which people look for things: links of the host, what hangs on each, and what is beside them. Pure.

    Trunk    a link of the host: an uplink, a bridge, the host's end of a ptp pair; its branches are links on it
    Plug     an interface of a container: with its attachment, runtime's container, namespace, both ends, published ports

A plug hangs on its bridge, on the parent of its macvlan, or on its own veth (ptp). One that has lost its link hangs on the
bridge that its record names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cni_py.host.model import (
    Attachment,
    Container,
    Host,
    Link,
    Masquerade,
    Namespace,
    Network,
    Pool,
    Port,
    Process,
    Relay,
    Route,
    Socket,
    Source,
)

ON_A_PARENT = ("macvlan", "ipvlan", "vlan", "macvtap")  # kinds whose `peer_index` is the link below them
ID_DIGITS = 32  # at least: what runtimes make
STRANGERS = ("docker", "podman", "kubernetes", "other")


@dataclass(frozen=True, slots=True)
class Plug:
    """An interface of a container, or of a namespace that no runtime and no plugin of this model knows."""

    ifname: str
    container_id: str = ""
    network: str = ""
    source: Source = ""
    attachment: Attachment | None = None
    containers: tuple[Container, ...] = ()  # its own first; others share the namespace (a pod)
    namespace: Namespace | None = None
    inner: Link | None = None
    outer: Link | None = None  # the host's end; of a macvlan: None
    ports: tuple[Port, ...] = ()
    masquerades: tuple[Masquerade, ...] = ()

    @property
    def name(self) -> str:
        """What people call it: the runtime's name, that of its namespace, or the start of its id."""
        named = self.containers[0].name if self.containers else ""
        if named:
            return named
        if self.attachment is None and self.namespace is not None and self.namespace.names:
            return self.namespace.names[0].rpartition("/")[2]
        key = self.namespace.key if self.namespace else ""
        return short(self.container_id) or key or (self.outer.name if self.outer else "")

    @property
    def addresses(self) -> tuple[str, ...]:
        """With prefix length: those of the interface; where it cannot be seen, those of the record."""
        if self.inner is not None:
            return addresses(self.inner)
        return self.attachment.addresses if self.attachment else ()

    @property
    def processes(self) -> tuple[Process, ...]:
        return self.namespace.processes if self.namespace else ()

    @property
    def is_ours(self) -> bool:
        """Whether a CNI plugin connected it: ours, or one in Go."""
        return self.attachment is not None

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is wrong, by the model alone: a few words each."""
        return tuple(_troubles(self))


def _troubles(plug: Plug) -> Iterator[str]:
    yield from _of_record(plug.attachment, plug)
    for link in (plug.outer, plug.inner):
        if link is not None and not link.up:
            yield f"{link.name} is down"


def _of_record(record: Attachment | None, plug: Plug) -> Iterator[str]:
    """Where the kernel has not what the record says."""
    if record is None:
        return
    if record.live == "dead":
        yield f"dead: {record.reason}" if record.reason else "dead"
    elif plug.namespace is None:
        yield "its namespace is not found"
    if record.unfinished:
        yield "its ADD has not finished"
    if plug.outer is None and record.host_links:
        yield f"{', '.join(record.host_links)} is missing"
    if plug.outer is not None and record.bridge and plug.outer.master != record.bridge:
        yield f"{plug.outer.name} is not in bridge {record.bridge}"
    if plug.namespace is not None and plug.inner is None:
        yield f"{plug.ifname} is missing"
    lost = [one for one in record.addresses if one not in addresses(plug.inner)] if plug.inner else []
    if lost:
        yield f"address {', '.join(lost)} is missing"


@dataclass(frozen=True, slots=True)
class Trunk:
    """A link of the host, and what hangs on it."""

    link: Link
    networks: tuple[Network, ...] = ()  # one whose configuration is gone has no path
    plugs: tuple[Plug, ...] = ()
    branches: tuple[Trunk, ...] = ()  # other links on it: a port that leads to no container, a VLAN
    gateways: tuple[Route, ...] = ()  # default routes

    @property
    def is_bridge(self) -> bool:
        return self.link.kind == "bridge"

    @property
    def is_pair(self) -> bool:
        """Whether it is the host's end of a pair without a bridge."""
        return len(self.plugs) == 1 and self.plugs[0].outer is self.link

    @property
    def is_stranger(self) -> bool:
        """Whether others than CNI plugins made it, or use it for themselves."""
        return self.link.source in STRANGERS and not any(plug.is_ours for plug in self.plugs)


@dataclass(frozen=True, slots=True)
class View:
    """All of a host."""

    host: Host
    trunks: tuple[Trunk, ...] = ()
    lost: tuple[Plug, ...] = ()  # attachments whose bridge is not there, or that had none
    beside: tuple[Namespace, ...] = ()  # namespaces that nothing connects to the host
    idle: tuple[Network, ...] = ()  # networks without a bridge or parent on the host
    ports: tuple[Port, ...] = ()  # published, and neither a plug's nor a mapping's of portfwd below
    relays: tuple[Relay, ...] = ()  # mappings of portfwd, but for those that serve a plug's port without trouble
    listeners: tuple[Socket, ...] = ()  # other programs of the host that listen
    pools: dict[str, Pool] = field(default_factory=dict)

    @property
    def plugs(self) -> tuple[Plug, ...]:
        return (*(plug for trunk in walk(self.trunks) for plug in trunk.plugs), *self.lost)


def walk(trunks: Iterable[Trunk]) -> Iterator[Trunk]:
    """Each, and its branches after it."""
    for trunk in trunks:
        yield trunk
        yield from walk(trunk.branches)


def short(container_id: str) -> str:
    """As runtimes shorten them; an id that somebody chose is left whole."""
    chosen = len(container_id) < ID_DIGITS or container_id.strip("0123456789abcdef")
    return container_id if chosen else container_id[:12]


def addresses(link: Link) -> tuple[str, ...]:
    """With prefix length, link-local ones left out."""
    return tuple(f"{one.address}/{one.prefix}" for one in link.addresses if one.scope != "link")


def view(host: Host) -> View:
    """Sort a model."""
    found = _Sorter(host)
    trunks = found.trunks()
    shown = {one.name for trunk in walk(trunks) if not trunk.is_pair for one in trunk.networks}
    claimed = [port for plugs in found.plugs.values() for plug in plugs for port in plug.ports]
    served = {_asked(port) for port in claimed if port.way != "nat"}
    relays = tuple(one for one in host.relays if one.problem or _asked(one) not in served)
    told = {id(port) for port in claimed}
    mapped = {_asked(one) for one in relays}
    return View(
        host,
        trunks,
        tuple(found.plugs[""]),
        tuple(one for one in host.namespaces[1:] if one.key not in found.connected),
        tuple(network for network in host.networks if network.name not in shown),
        tuple(one for one in host.ports if id(one) not in told and not (one.way == "relay" and _asked(one) in mapped)),
        relays,
        tuple(one for one in host.root.sockets if one.program not in ("portfwd", "docker-proxy")),
        {pool.network: pool for pool in host.pools},
    )


def _asked(one: Port | Relay) -> tuple[str, str, int]:
    """Where clients ask."""
    return one.protocol, one.host_address, one.first


class _Sorter:
    """Indexes of a model, so that a thousand containers cost a thousand steps."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.by_index = {link.index: link for link in host.root.links}
        self.by_name = {link.name: link for link in host.root.links}
        self.containers = {one.id: one for one in host.containers}
        self.ports = _by_owner(host.ports)
        self.masquerades = _by_owner(host.masquerades)
        self.attachments: dict[tuple[str, str], Attachment] = {
            (one.namespace, one.ifname): one for one in host.attachments if one.namespace
        }
        self.namespaces = {one.key: one for one in host.namespaces[1:]}
        self.left: dict[str, Link] = {}
        self.connected: set[str] = set()
        self.outers: set[str] = set()
        self.plugs: dict[str, list[Plug]] = defaultdict(list)  # by the name of the trunk; "" for none
        pids = defaultdict(list)
        for one in host.containers:
            pids[one.pid].append(one)
        self.by_pid = pids
        for namespace in host.namespaces[1:]:
            self._look_into(namespace)
        for record in host.attachments:
            self._without_interface(record)
        self.children: dict[str, list[Link]] = defaultdict(list)
        for link in host.root.links:
            self.children[link.master or self._parent(link)].append(link)

    def trunks(self) -> tuple[Trunk, ...]:
        """All links but loopback and the host's ends of pairs, which their plugs show."""
        self.left = {
            link.name: link
            for link in self.host.root.links
            if "loopback" not in link.flags and (link.name not in self.outers or link.name in self.plugs)
        }
        tops = [self.trunk(link) for link in self.children[""] if link.name in self.left]
        # In a damaged model links may be on each other in a circle
        return (*tops, *(self.trunk(self.left[name]) for name in [*self.left] if name in self.left))

    def _parent(self, link: Link) -> str:
        """The link of this host below a VLAN or macvlan of the host."""
        below = self.by_index.get(link.peer_index) if self._is_on_a_host_link(link) else None
        return below.name if below else ""

    def _is_on_a_host_link(self, link: Link) -> bool:
        return link.kind in ON_A_PARENT and link.peer_namespace in ("", self.host.root.key)

    def _look_into(self, namespace: Namespace) -> None:
        """A plug for each interface that leads to the host, or that a record names."""
        for link in namespace.links:
            record = self.attachments.get((namespace.key, link.name))
            outer = self._outer(namespace, link)
            parent = self.by_index.get(link.peer_index) if self._is_on_a_host_link(link) else None
            if "loopback" in link.flags or not (record or outer or parent):
                continue
            self.connected.add(namespace.key)
            if outer:
                self.outers.add(outer.name)
            above = (outer.master or outer.name) if outer else parent.name if parent else ""
            self._plug(above, record, namespace, link, outer)

    def _outer(self, namespace: Namespace, link: Link) -> Link | None:
        """The host's end of a veth pair."""
        if link.kind != "veth" or link.peer_namespace not in ("", self.host.root.key):
            return None
        other = self.by_index.get(link.peer_index)
        return other if other is not None and other.peer_namespace == namespace.key else None

    def _without_interface(self, record: Attachment) -> None:
        """A record whose interface, or whose whole namespace, is gone."""
        namespace = self.namespaces.get(record.namespace)
        if namespace is not None and any(link.name == record.ifname for link in namespace.links):
            return
        if namespace is not None:
            self.connected.add(namespace.key)
        outer = next((self.by_name[name] for name in record.host_links if name in self.by_name), None)
        if outer is not None:
            self.outers.add(outer.name)
        configured = next((one.bridge for one in self.host.networks if one.name == record.network), "")
        above = (outer.master or outer.name) if outer else record.bridge or configured
        self._plug(above, record, namespace, None, outer)

    def _plug(
        self,
        above: str,
        record: Attachment | None,
        namespace: Namespace | None,
        inner: Link | None,
        outer: Link | None,
    ) -> None:
        running = self._running(record, namespace)
        container_id = record.container_id if record else running[0].id if running else _of_processes(namespace)
        ifname = record.ifname if record else inner.name if inner else ""
        keys = [(container_id, ifname), (container_id, "")] if container_id else []
        source: Source = record.source if record else outer.source if outer else ""
        if above not in self.by_name:  # it could not be seen
            above = outer.name if outer else ""
        self.plugs[above].append(
            Plug(
                ifname, container_id, record.network if record else "", source, record, running, namespace, inner, outer,
                tuple(port for key in keys for port in self.ports.pop(key, ())),
                tuple(one for key in keys for one in self.masquerades.pop(key, ())),
            )
        )  # fmt: skip

    def _running(self, record: Attachment | None, namespace: Namespace | None) -> tuple[Container, ...]:
        """The containers of a namespace: the one that the record names first."""
        found = [self.containers.get(record.container_id)] if record else []
        for process in namespace.processes if namespace else ():
            found += [self.containers.get(process.container_id), *self.by_pid.get(process.pid, ())]
        return tuple(dict.fromkeys(one for one in found if one is not None))

    def trunk(self, link: Link) -> Trunk:
        """A link with what hangs on it."""
        del self.left[link.name]
        branches = tuple(self.trunk(one) for one in self.children.get(link.name, ()) if one.name in self.left)
        plugs = sorted(self.plugs.get(link.name, ()), key=lambda plug: plug.outer.index if plug.outer else 1 << 32)
        used = {plug.network for plug in plugs}
        networks = [one for one in self.host.networks if one.name in used or (one.bridge and one.bridge == link.name)]
        configured = {one.name for one in networks}
        networks += [Network(name, "") for name in sorted(used) if name and name not in configured]
        gateways = [
            route
            for route in self.host.root.routes
            if route.link == link.name and route.destination in ("0.0.0.0/0", "::/0") and route.kind == "unicast"
        ]
        return Trunk(link, tuple(networks), tuple(plugs), branches, tuple(gateways))


def _of_processes(namespace: Namespace | None) -> str:
    """The container that the processes of a namespace are in, by their cgroup."""
    return next((one.container_id for one in namespace.processes if one.container_id), "") if namespace else ""


Owned = TypeVar("Owned", Port, Masquerade)


def _by_owner(owned: Sequence[Owned]) -> dict[tuple[str, str], list[Owned]]:
    found: dict[tuple[str, str], list[Owned]] = defaultdict(list)
    for one in owned:
        found[one.container_id, getattr(one, "ifname", "")].append(one)
    return found
