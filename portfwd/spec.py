"""What people write to publish a port: docker's `-p`, and where it leads. Pure.

    [[HOST_IP:][HOST_PORT[-LAST]]:]CONTAINER_PORT[-LAST][/PROTOCOL]

In place of HOST_IP stands an interface or, as name=HOST, a host name, whose addresses are followed: see follow.py.

    80                      a random port of the host          127.0.0.1::80        the same on one address
    8080:80                 on every address, 0.0.0.0 and ::   [::1]:8080:80        brackets may be left out: ::1:8080:80
    8000-8010:8000-8010     one by one                         8000-8010:80         the first of them that is free
    80-82                   each a random port of its own      53:53/udp

Which random port, or which "first that is free", is known only after bind(2): candidates() yields the ports to try in turn.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace

from portfwd import follow
from portfwd.errors import Usage
from portfwd.mapping import (
    ANY,
    CONNECT,
    LISTEN,
    PORT_MAX,
    PROTOCOLS,
    Mapping,
    Place,
    Target,
    peculiar,
    refuse_peculiar,
    span,
)

RANDOM_TRIES = 10  # docker's; what somebody is known to have does not count as one
INSIDE = "127.0.0.1"  # the target in a namespace, unless another is named
GRAMMAR = "[[HOST_IP:][HOST_PORT[-LAST]]:]CONTAINER_PORT[-LAST][/PROTOCOL]"


@dataclass(frozen=True, slots=True)
class Publish:
    """One SPEC as a value. `host_ports` None: random ones."""

    host_ips: tuple[str, ...]
    host_ports: range | None
    container_ports: range
    protocol: str
    follow: str = ""  # in place of `host_ips`: see follow.py

    @property
    def pool(self) -> bool:
        """Whether any one free port of several is wanted."""
        return self.host_ports is not None and len(self.host_ports) > len(self.container_ports)

    @property
    def exact(self) -> bool:
        """Whether the SPEC names the host's ports one by one."""
        return self.host_ports is not None and not self.pool

    def __str__(self) -> str:
        """A SPEC that parse() reads as the same value."""
        host = "" if self.host_ports is None else span(self.host_ports[0], self.host_ports[-1])
        text = f"{host}:{span(self.container_ports[0], self.container_ports[-1])}/{self.protocol}"
        if self.follow:
            return f"{follow.written(self.follow)}:{text}"
        if self.host_ips == ANY:
            return text.removeprefix(":")
        ip = self.host_ips[0]
        return f"[{ip}]:{text}" if ":" in ip else f"{ip}:{text}"


@dataclass(frozen=True, slots=True)
class Destination:
    """A target whose port is not known yet. `port` 0: the SPEC's container port."""

    address: str
    port: int = 0
    place: Place = field(default_factory=Place)

    def target(self, port: int) -> Target:
        """The target that answers for the container port `port`."""
        return Target(self.address, self.port or port, self.place)


@dataclass(frozen=True, slots=True)
class Template:
    """All fields of a mapping but its ports."""

    destinations: tuple[Destination, ...]
    balance: str = "round-robin"
    allow: tuple[str, ...] = ()
    limit: int = 0
    limit_per_client: int = 0
    proxy_protocol: int = 0
    connect_timeout_s: float = 5.0
    idle_s: float = 0.0
    sticky: str = ""  # the name that random ports are remembered by

    def mapping(self, name: str, publish: Publish, first: int) -> Mapping:
        """The mapping of as many ports as `publish` has container ports, from `first` on. Usage."""
        ports = publish.container_ports
        return Mapping(
            id=name,
            protocol=publish.protocol,
            host_ips=publish.host_ips,
            first=first,
            last=first + len(ports) - 1,
            targets=tuple(destination.target(ports[0]) for destination in self.destinations),
            balance=self.balance,
            allow=self.allow,
            limit=self.limit,
            limit_per_client=self.limit_per_client,
            proxy_protocol=self.proxy_protocol,
            connect_timeout_s=self.connect_timeout_s,
            idle_s=self.idle_s,
            follow=publish.follow,
            sticky=self.sticky if publish.host_ports is None else "",
        )


def parse(text: str) -> Publish:
    """Read one SPEC. Usage, with a sentence, for a malformed one."""
    ports, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol == "sctp":
        raise Usage(f"{text}: portfwd does not relay SCTP", "publish it with portmap, which the kernel forwards")
    if protocol not in PROTOCOLS:
        raise Usage(f"{text}: unknown protocol {protocol!r}", " or ".join(PROTOCOLS))
    host_ip, host, container = _split(text, ports)
    if not container:
        raise Usage(f"{text}: the container port is missing", GRAMMAR)
    container_ports = _range(text, container)
    host_ports = _range(text, host) if host not in ("", "0") else None
    if host_ports is not None and len(host_ports) != len(container_ports) and len(container_ports) > 1:
        raise Usage(
            f"{text}: {len(host_ports)} host ports cannot lead to {len(container_ports)} container ports one by one"
        )
    followed = "" if ports.startswith("[") else _followed(text, host_ip)
    host_ips = () if followed else _host_ips(text, host_ip)
    return Publish(host_ips, host_ports, container_ports, protocol, followed)


def _split(text: str, ports: str) -> tuple[str, str, str]:
    """Host address, host ports and container ports as written, not checked."""
    if ports.startswith("["):
        host_ip, bracket, rest = ports[1:].partition("]:")
        if not bracket:
            raise Usage(f'{text}: the "[" of the address is not closed by "]:"')
        host, colon, container = rest.partition(":")
        if not colon or not host_ip:
            raise Usage(f"{text}: brackets hold an address, host port and container port follow", "[::1]:8080:80")
        return host_ip, host, container
    rest, _, container = ports.rpartition(":")
    host_ip, _, host = rest.rpartition(":")
    return host_ip, host, container


def _followed(text: str, written: str) -> str:
    """The interface or host name to follow; "" when `written` is an address."""
    if written == "localhost":
        raise Usage(f"{text}: 'localhost' is not an IP address", "name=localhost follows a host name")
    try:
        return follow.parse(written)
    except Usage as error:
        raise Usage(f"{text}: {error.msg}", error.details) from None


def _host_ips(text: str, host_ip: str) -> tuple[str, ...]:
    if not host_ip:
        return ANY
    found = address(text, host_ip)
    refuse_peculiar(found, LISTEN, text)
    return (found,)


def address(text: str, written: str) -> str:
    """An IP address in canonical form; an IPv4-mapped IPv6 one as IPv4, since our IPv6 sockets are V6ONLY. Usage."""
    try:
        found = ipaddress.ip_address(written)
    except ValueError:
        raise Usage(f"{text}: {written!r} is not an IP address") from None
    if isinstance(found, ipaddress.IPv6Address):
        if found.scope_id is not None:
            found = ipaddress.IPv6Address(written.partition("%")[0])
            if not peculiar(str(found)):
                raise Usage(f"{text}: {written!r} names an interface", "write the address alone")
        found = found.ipv4_mapped or found
    return str(found)


def _range(text: str, written: str) -> range:
    """80 or 80-89, from 1 to 65535."""
    first, dash, last = written.partition("-")
    start, end = _port(text, first), _port(text, last if dash else first)
    if end < start:
        raise Usage(f"{text}: the range {written} ends before it begins")
    return range(start, end + 1)


def _port(text: str, written: str) -> int:
    digits = written.lstrip("0")
    number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 5 else 0
    if not 1 <= number <= PORT_MAX:
        raise Usage(f"{text}: {written!r} is not a port", f"1 to {PORT_MAX}")
    return number


def parse_all(texts: Sequence[str]) -> list[Publish]:
    """Read several SPECs, in the order to publish them: exact ports first, so that no pool or random port takes one of them.

    A range of container ports without host ports becomes one value per port: each gets its own random port.
    """
    found = [one for text in texts for one in _parts(parse(text))]
    return sorted(found, key=lambda one: (not one.exact, one.host_ports is None))


def _parts(publish: Publish) -> list[Publish]:
    if publish.host_ports is not None:
        return [publish]
    return [replace(publish, container_ports=range(port, port + 1)) for port in publish.container_ports]


def candidates(publish: Publish, ephemeral: Sequence[int], start: int, taken: Container[int] = ()) -> Iterator[int]:
    """The first host port of each mapping to try, in turn, until one is free on every address of the mapping.

    `ephemeral` are the ports to choose random ones from, beginning at index `start`. Ports in `taken` are skipped. A pool whose
    ports are all taken yields its first one, so that the error can say who has it.
    """
    if publish.host_ports is None:
        yield from _random(ephemeral, start, taken)
    elif publish.pool:
        free = [port for port in publish.host_ports if port not in taken]
        yield from free or publish.host_ports[:1]
    else:
        yield publish.host_ports[0]


def _random(ephemeral: Sequence[int], start: int, taken: Container[int]) -> Iterator[int]:
    tries = 0
    for step in range(len(ephemeral)):
        port = ephemeral[(start + step) % len(ephemeral)]
        if port not in taken:
            yield port
            tries += 1
            if tries == RANDOM_TRIES:
                return


def destination(text: str, place: Place) -> Destination:
    """ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT; an IPv6 address without brackets has no port. Usage."""
    written, port = text, ""
    if text.startswith("["):
        written, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
        if not bracket or (rest and not port) or (rest and not rest.startswith(":")):
            raise Usage(f"{text}: this is neither an address nor an address and a port", "[2001:db8::2]:80")
    elif text.count(":") == 1:
        written, _, port = text.partition(":")
        if not port:
            raise Usage(f"{text}: the port is missing behind the colon")
    found = address(text, written)
    refuse_peculiar(found, CONNECT, text)
    return Destination(found, _port(text, port) if port else 0, place)
