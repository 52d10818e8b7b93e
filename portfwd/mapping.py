"""A mapping as a value: which ports of the host lead to which targets, and how. Pure.

One form serves the command line, the control socket and the disk: `Mapping.to_json()` and `Mapping.from_json()`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from sys import intern  # a host has thousands of mappings that share few addresses

from portfwd import follow, values
from portfwd.errors import Unfit, Usage

PROTOCOLS = ("tcp", "udp")
PORT_MAX = 65535
RANGE_MIN = 64  # ports of a range that is steered to one socket; a shorter one has a socket per port
ANY = ("0.0.0.0", "::")  # noqa: S104  every address of the host
BALANCES = ("round-robin", "source")
STEERS = ("auto", "always", "fallback", "never")
STEER_BEFORE = "redirect"  # the earlier name of the field `steer`: files on disk and older plugins have it
ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
ID_MAX = 64
# what an address is for, and advice for when it cannot be used
LISTEN = ("listen on", "publish on another address of this host, or on every one")
CONNECT = ("connect to", "name the target's own address, global or unique local")
TEXT_MAX = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """The network namespace to connect from. At most one field is set; none means the namespace of this process.

    `container` is looked up at each use, since a restarted container has a new namespace.
    """

    path: str = ""  # /run/netns/web, /proc/4711/ns/net
    pid: int = 0
    container: str = ""  # a container ID, or a prefix of one that is unique

    def __bool__(self) -> bool:
        return bool(self.path or self.pid or self.container)

    def __str__(self) -> str:
        return self.path or (f"pid {self.pid}" if self.pid else f"container {self.container}" if self.container else "")


HERE = Place()


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect to: `port` serves the mapping's first port, `port` + 1 the second, and so on."""

    address: str  # in text form, without brackets; in a namespace 127.0.0.1 and ::1 mean that namespace's loopback
    port: int
    place: Place = HERE

    def __str__(self) -> str:
        bracketed = f"[{self.address}]" if ":" in self.address else self.address
        return f"{bracketed}:{self.port}" + (f" in {self.place}" if self.place else "")


@dataclass(frozen=True, slots=True)
class Mapping:
    """Ports `first` to `last` of one protocol on `host_ips`, and the targets that serve them."""

    id: str
    protocol: str
    host_ips: tuple[str, ...]
    first: int
    last: int
    targets: tuple[Target, ...]
    balance: str = "round-robin"
    allow: tuple[str, ...] = ()  # networks of clients; none means all
    limit: int = 0  # connections (UDP: flows) at a time; 0 means the service's default
    limit_per_client: int = 0
    proxy_protocol: int = 0  # 0, 1 or 2: the version of the header that tells the target who the client is
    connect_timeout_s: float = 5.0
    idle_s: float = 0.0  # 0 means: TCP never, UDP 90 s
    steer: str = "auto"  # whether its ports are steered to one socket instead of having one each: see relay/publish.py
    owner: str = ""  # who asked: "attachment <hex>", "pid <pid> <start time>", "" for a person
    label: str = ""  # for people: network/containerID/ifname
    follow: str = (
        ""  # "if=NAME" or "name=NAME": what host_ips are taken from (they are its present addresses): see follow.py
    )
    sticky: str = ""  # the name under which the port number is remembered: see service/sticky.py
    port_file: str = ""  # the absolute path of a file that holds the port number: see service/portfile.py
    port_line: int = 0  # which of its lines, from 0

    def __post_init__(self) -> None:
        check(self)

    @property
    def ports(self) -> range:
        return range(self.first, self.last + 1)

    def target_port(self, target: Target, port: int) -> int:
        """The port of `target` that serves the host's `port`."""
        return target.port + port - self.first

    def __str__(self) -> str:
        """8080/tcp on 0.0.0.0, [::1] to 192.0.2.2:80."""
        hosts = ", ".join(f"[{ip}]" if ":" in ip else ip for ip in self.host_ips)
        if self.follow:
            hosts = follow.shown(self.follow) + (f" ({hosts})" if hosts else "")
        return f"{self.span} on {hosts} to {', '.join(map(str, self.targets))}"

    @property
    def span(self) -> str:
        """8080/tcp or 8000-8010/tcp."""
        return f"{span(self.first, self.last)}/{self.protocol}"

    def without(self, ips: Collection[str]) -> Mapping:
        """The mapping without these addresses, for people; unchanged when no address would be left."""
        left = tuple(ip for ip in self.host_ips if ip not in ips)
        return replace(self, host_ips=left) if left else self

    def to_json(self) -> dict[str, object]:
        """As JSON, without the fields that have their default."""
        found: dict[str, object] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "targets":
                found["targets"] = [_target_to_json(target) for target in self.targets]
            elif value != one.default:
                found[one.name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_json(cls, raw: object) -> Mapping:
        """Read what to_json() wrote. Usage for anything else: unknown fields, other types, values that check() refuses."""
        if not isinstance(raw, dict):
            raise Usage("a mapping is a JSON object")
        known = {one.name for one in fields(cls)}
        if unknown := sorted(map(repr, raw.keys() - known - {STEER_BEFORE})):
            raise Usage(f"a mapping has no field {', '.join(unknown)}")
        targets = raw.get("targets")
        if not isinstance(targets, list):
            raise Usage("targets is a list of objects")
        return cls(
            id=values.text(raw, "id"),
            protocol=intern(values.text(raw, "protocol")),
            host_ips=tuple(map(intern, values.texts(raw, "host_ips"))),
            first=values.integer(raw, "first"),
            last=values.integer(raw, "last"),
            targets=tuple(map(_target_from_json, targets)),
            balance=values.text(raw, "balance", "round-robin"),
            allow=values.texts(raw, "allow"),
            limit=values.integer(raw, "limit", 0),
            limit_per_client=values.integer(raw, "limit_per_client", 0),
            proxy_protocol=values.integer(raw, "proxy_protocol", 0),
            connect_timeout_s=values.number(raw, "connect_timeout_s", 5.0),
            idle_s=values.number(raw, "idle_s", 0.0),
            steer=values.text(raw, "steer", values.text(raw, STEER_BEFORE, "auto")),
            owner=values.text(raw, "owner", ""),
            label=values.text(raw, "label", ""),
            follow=values.text(raw, "follow", ""),
            sticky=values.text(raw, "sticky", ""),
            port_file=values.text(raw, "port_file", ""),
            port_line=values.integer(raw, "port_line", 0),
        )


def span(first: int, last: int) -> str:
    """8080 or 8000-8010."""
    return str(first) if first == last else f"{first}-{last}"


def is_name(text: str) -> bool:
    """Whether `text` can name a mapping and its file: letters, digits, dots, dashes and underscores, not first a sign."""
    return bool(text) and len(text) <= ID_MAX and ID_CHARACTERS.issuperset(text) and text[0] not in "._-"


def check(mapping: Mapping) -> None:
    """Usage, with a sentence, for a malformed mapping."""
    if not is_name(mapping.id):
        raise Usage(f"{mapping.id!r} cannot be the name of a mapping", "letters, digits, dots, dashes and underscores")
    if mapping.protocol == "sctp":
        raise Usage("portfwd does not relay SCTP", "publish it with portmap, which the kernel forwards")
    if mapping.protocol not in PROTOCOLS:
        raise Usage(f"unknown protocol {mapping.protocol!r}", "tcp or udp")
    if not 1 <= mapping.first <= mapping.last <= PORT_MAX:
        raise Usage(f"{mapping.first}-{mapping.last} is not a range of ports", f"1 to {PORT_MAX}")
    if len(set(mapping.host_ips)) != len(mapping.host_ips) or not (mapping.host_ips or mapping.follow):
        raise Usage("a mapping needs at least one address of the host, each once")
    for text in mapping.host_ips:
        _check_address(follow.unscoped(text) if mapping.follow else text)
    if not mapping.targets:
        raise Usage("a mapping needs at least one target")
    for target in mapping.targets:
        _check_target(mapping, target)
    for text in mapping.allow:
        _check_network(text)
    _check_options(mapping)


def check_use(mapping: Mapping) -> None:
    """Unfit for well-formed addresses that cannot work. Not part of check(): files of earlier versions may hold such mappings."""
    for text in mapping.host_ips:
        if not (mapping.follow and "%" in text):  # a link-local address of the interface that is followed
            refuse_peculiar(text, LISTEN)
    for target in mapping.targets:
        refuse_peculiar(target.address, CONNECT)


def refuse_peculiar(ip: str, use: tuple[str, str], said: str = "") -> None:
    """Unfit for an address that cannot be used so (LISTEN, CONNECT); `said` is what a person wrote."""
    if kind := peculiar(ip):
        raise Unfit(f"{said or ip}: portfwd cannot {use[0]} {ip}: it is {kind}", use[1])


def peculiar(text: str) -> str:
    """Name the kind of an address that means several machines, or another one on each interface; "" for any other."""
    ip = ipaddress.ip_address(text)
    if ip.is_multicast:
        return "a multicast address"
    if text == "255.255.255.255":
        return "the broadcast address"
    if ip.version == 6 and ip.is_link_local:
        return "a link-local address, which belongs to an interface"
    return ""


def _check_options(mapping: Mapping) -> None:
    if mapping.balance not in BALANCES:
        raise Usage(f"unknown way to balance: {mapping.balance!r}", " or ".join(BALANCES))
    if mapping.steer not in STEERS:
        raise Usage(f"unknown value of steer: {mapping.steer!r}", ", ".join(STEERS))
    if mapping.proxy_protocol not in (0, 1, 2):
        raise Usage(f"there is no version {mapping.proxy_protocol} of the PROXY protocol", "1 or 2")
    if mapping.proxy_protocol == 1 and mapping.protocol == "udp":
        raise Usage("version 1 of the PROXY protocol knows TCP only", "use version 2")
    if mapping.limit < 0 or mapping.limit_per_client < 0:
        raise Usage("a limit is a number of connections, 0 for the default")
    if not 0 < mapping.connect_timeout_s <= 3600 or not 0 <= mapping.idle_s <= 10**9:
        raise Usage("connect_timeout_s is between 0 and 3600 seconds, idle_s not negative")
    if any(len(text) > TEXT_MAX or not text.isprintable() for text in (mapping.owner, mapping.label)):
        raise Usage("owner and label are short printable texts")
    _check_names(mapping)


def _check_names(mapping: Mapping) -> None:
    if mapping.follow:
        follow.check(mapping.follow)
    if mapping.sticky and (not is_name(mapping.sticky) or mapping.first != mapping.last):
        raise Usage(f"{mapping.sticky!r} cannot be the name of a sticky port", "it is one port, named as a mapping is")
    path = mapping.port_file
    if path and (not path.startswith("/") or len(path) > TEXT_MAX or not path.isprintable()):
        raise Usage(f"{path[:64]!r} cannot be the file of a port", "an absolute path")
    if mapping.port_line < 0:
        raise Usage("port_line is the number of a line, from 0")


def _check_target(mapping: Mapping, target: Target) -> None:
    _check_address(target.address)
    if not 1 <= target.port <= PORT_MAX or target.port + mapping.last - mapping.first > PORT_MAX:
        raise Usage(f"{target}: the target's ports do not fit between 1 and {PORT_MAX}")
    place = target.place
    if sum(map(bool, (place.path, place.pid, place.container))) > 1:
        raise Usage(f"{target}: a namespace is named by its path, a pid or a container ID, not by several")
    if place.pid < 0 or (place.path and not place.path.startswith("/")):
        raise Usage(f"{target}: a namespace is named by an absolute path, a pid or a container ID")
    if any(len(text) > TEXT_MAX or not text.isprintable() for text in (place.path, place.container)):
        raise Usage("the name of a namespace is a short printable text")


def _check_address(text: str) -> None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise Usage(f"{text!r} is not an IP address") from None
    if str(found) != text or "%" in text:
        raise Usage(f"{text!r}: write the address as {str(found).partition('%')[0]}")


def _check_network(text: str) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise Usage(f"{text!r} is not a network to allow clients from", str(error)) from None


def _target_to_json(target: Target) -> dict[str, object]:
    place: dict[str, object] = {"path": target.place.path, "pid": target.place.pid, "container": target.place.container}
    found: dict[str, object] = {"address": target.address, "port": target.port}
    return found | {name: value for name, value in place.items() if value}


def _target_from_json(raw: object) -> Target:
    if not isinstance(raw, dict):
        raise Usage("a target is a JSON object")
    if unknown := sorted(map(repr, raw.keys() - {"address", "port", "path", "pid", "container"})):
        raise Usage(f"a target has no field {', '.join(unknown)}")
    place = Place(values.text(raw, "path", ""), values.integer(raw, "pid", 0), values.text(raw, "container", ""))
    return Target(intern(values.text(raw, "address")), values.integer(raw, "port"), place or HERE)
