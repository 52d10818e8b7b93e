"""Port mappings as people write them: the part of `docker run -p` that CNI can serve. Pure.

    [HOST_IP:]HOST_PORT:CONTAINER_PORT[/PROTOCOL]      8080:80   127.0.0.1:53:53/udp   [2001:db8::1]:8000-8009:80-89

Ranges have equal lengths and become single mappings. HOST_PORT 0 is a random one, for a network whose portmap finds it.
"""

import ipaddress
from dataclasses import dataclass

from cni_py.protocol.gojson import Object

PROTOCOLS = ("tcp", "udp", "sctp")
PORT_MAX = 65535


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


def parse(text: str, *, random: bool = False) -> list[PortMapping]:
    """The mappings that `text` stands for. ValueError with a sentence for what cannot be meant; host port 0 only if `random`."""
    ports, slash, protocol = text.rpartition("/")
    if not slash or ":" in protocol:  # none, or that of a prefix length, which is told with the address
        ports, slash, protocol = text, "", ""
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise ValueError(f'{text}: the protocol is one of {", ".join(PROTOCOLS)}, not "{protocol}"')
    host_ip, host, container = _split(text, ports)
    if random and host == "0":
        return [PortMapping(host_ip, 0, port, protocol) for port in _range(text, container)]
    host_ports, container_ports = _range(text, host), _range(text, container)
    if len(host_ports) != len(container_ports):
        raise ValueError(
            f"{text}: {len(host_ports)} host ports cannot lead to {len(container_ports)} container ports one by one"
        )
    return [PortMapping(host_ip, *pair, protocol) for pair in zip(host_ports, container_ports, strict=True)]


def _split(text: str, ports: str) -> tuple[str, str, str]:
    """Host address, host ports, container ports."""
    if ports.startswith("["):
        host_ip, bracket, rest = ports[1:].partition("]:")
        if not bracket:
            raise ValueError(f'{text}: the "[" of the IPv6 address is not closed by "]:"')
        wanted = 6
    else:
        host_ip, _, rest = ports.rpartition(":")[0].rpartition(":")
        rest = ports[len(host_ip) + 1 :] if host_ip or ports.startswith(":") else ports
        wanted = 4
    host, colon, container = rest.partition(":")
    if not colon:
        raise ValueError(f"{text}: write HOST_PORT:CONTAINER_PORT; no host port is chosen for you here")
    if wanted == 6 or host_ip or ports.startswith(":"):
        _check_address(text, host_ip, wanted)
    return host_ip, host, container


def _check_address(text: str, host_ip: str, wanted: int) -> None:
    try:
        version = ipaddress.ip_address(host_ip).version
    except ValueError:
        hint = "" if wanted == 6 or ":" not in host_ip else "; an IPv6 address stands in brackets"
        raise ValueError(f'{text}: "{host_ip}" is no address of the host{hint}') from None
    if version != wanted or "%" in host_ip:
        how = "an IPv6 address stands in brackets" if wanted == 4 else "only an IPv6 address stands in brackets"
        raise ValueError(f"{text}: {how}, and has no zone")


def _range(text: str, ports: str) -> range:
    first, dash, last = ports.partition("-")
    try:
        numbers = [_port(number) for number in ([first, last] if dash else [first, first])]
    except ValueError:
        raise ValueError(f'{text}: "{ports}" is no port or range of ports between 1 and {PORT_MAX}') from None
    if numbers[1] < numbers[0]:
        raise ValueError(f"{text}: the range {ports} ends before it begins")
    return range(numbers[0], numbers[1] + 1)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= PORT_MAX):
        raise ValueError(text)
    return int(text)
