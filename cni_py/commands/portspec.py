"""The text of a published port, as `docker run -p` takes it. Pure.

    [HOST_IP:]HOST_PORT:CONTAINER_PORT[/PROTOCOL]      8080:80   127.0.0.1:53:53/udp   [2001:db8::1]:8000-8009:80-89

split() and port_range() are the grammar; portfwd shares them. parse() is cni-py-exec's part of it: every port is named, an IPv6
address stands in brackets, and ranges have equal lengths and become single mappings. HOST_PORT 0 asks for a random port, where
the network's portmap chooses one.
"""

import ipaddress
from dataclasses import dataclass

from cni_py.protocol.gojson import Object

PROTOCOLS = ("tcp", "udp", "sctp")
PORT_MAX = 65535


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of `text` as they are written, unchecked; "" for a part that is left out."""

    text: str
    host_ip: str
    host_ports: str
    container_ports: str
    protocol: str  # in lower case; "tcp" where there is no "/"

    @property
    def in_brackets(self) -> bool:
        """Whether the host address is written in brackets."""
        return self.text.startswith("[")


@dataclass(frozen=True, slots=True)
class PortMapping:
    """One host port that leads to one container port; `host_ip` "" means every address of the host."""

    host_ip: str
    host_port: int
    container_port: int
    protocol: str

    def to_json(self) -> Object:
        """An element of the capability portMappings."""
        fields = Object(
            [("hostPort", self.host_port), ("containerPort", self.container_port), ("protocol", self.protocol)]
        )
        if self.host_ip:
            fields["hostIP"] = self.host_ip
        return fields


def split(text: str) -> Parts:
    """The parts of [[HOST_IP:][HOST_PORTS]:]CONTAINER_PORTS[/PROTOCOL]. ValueError, with a sentence, for wrong brackets.

    Without brackets the last two colons separate, so that an IPv6 address may be written without them.
    """
    ports, slash, protocol = text.rpartition("/")
    if not slash or ":" in protocol:  # the slash of a prefix length (192.0.2.1/24:80:80) belongs to the address
        ports, protocol = text, "tcp"
    if ports.startswith("["):
        host_ip, bracket, rest = ports[1:].partition("]:")
        if not bracket:
            raise ValueError(f'{text}: the "[" of the address is not closed by "]:"')
        host, colon, container = rest.partition(":")
        if not colon or not host_ip:
            raise ValueError(f"{text}: write [HOST_IP]:HOST_PORT:CONTAINER_PORT")
    else:
        rest, _, container = ports.rpartition(":")
        host_ip, _, host = rest.rpartition(":")
    return Parts(text, host_ip, host, container, protocol.lower())


def port_range(text: str, written: str) -> range:
    """The ports of "80" or "80-89". ValueError with a sentence that begins with `text`, the whole mapping."""
    first, dash, last = written.partition("-")
    start, end = _port(first), _port(last if dash else first)
    if not (start and end):
        raise ValueError(f'{text}: "{written}" is not a port or range of ports between 1 and {PORT_MAX}')
    if end < start:
        raise ValueError(f"{text}: the range {written} ends before it begins")
    return range(start, end + 1)


def parse(text: str, *, random: bool = False) -> list[PortMapping]:
    """The mappings that `text` stands for; host port 0 only if `random`. ValueError with a sentence that begins with `text`."""
    parts = split(text)
    if parts.protocol not in PROTOCOLS:
        raise ValueError(f'{text}: the protocol is one of {", ".join(PROTOCOLS)}, not "{parts.protocol}"')
    if not parts.host_ports:
        raise ValueError(f"{text}: write HOST_PORT:CONTAINER_PORT (no host port is chosen for you)")
    if parts.host_ip or text.startswith(":"):
        _check_address(parts)
    container_ports = port_range(text, parts.container_ports)
    if random and parts.host_ports == "0":
        return [PortMapping(parts.host_ip, 0, port, parts.protocol) for port in container_ports]
    host_ports = port_range(text, parts.host_ports)
    if len(host_ports) != len(container_ports):
        raise ValueError(
            f"{text}: {len(host_ports)} host ports cannot lead to {len(container_ports)} container ports one by one"
        )
    pairs = zip(host_ports, container_ports, strict=True)
    return [PortMapping(parts.host_ip, *pair, parts.protocol) for pair in pairs]


def _check_address(parts: Parts) -> None:
    """ValueError unless the host address is IPv4, or IPv6 in brackets and without a zone."""
    text, host_ip = parts.text, parts.host_ip
    try:
        version = ipaddress.ip_address(host_ip).version
    except ValueError:
        hint = "; write an IPv6 address in brackets" if not parts.in_brackets and ":" in host_ip else ""
        raise ValueError(f'{text}: "{host_ip}" is not an IP address{hint}') from None
    if parts.in_brackets and version == 4:
        raise ValueError(f"{text}: only an IPv6 address is written in brackets")
    if version == 6 and not parts.in_brackets:
        raise ValueError(f"{text}: write an IPv6 address in brackets")
    if "%" in host_ip:
        raise ValueError(f"{text}: write the address without a zone (%...)")


def _port(text: str) -> int:
    """The port number; 0 for what is not one."""
    digits = text.lstrip("0")
    number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= len(str(PORT_MAX)) else 0
    return number if number <= PORT_MAX else 0
