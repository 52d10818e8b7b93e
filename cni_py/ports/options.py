"""What a port is given beyond its mapping: runtimes pass four fields per mapping, so it stands in portmap's configuration. Pure.

    "ports": {"8080/tcp": {"share": true, "allow": ["192.0.2.0/24", "2001:db8::7"]}}

The key names host port and protocol; a port that is not published is passed over, since the containers of a network differ.

    share   other containers that say so too may have the same host port; new connections are spread over them
    allow   the networks of the only clients; a family of which none is listed has no clients (::/0 is IPv6 alone, and
            ::ffff:192.0.2.0/120 is 192.0.2.0/24)

A pod says the same by the annotation `cni-py/ports`, which holds that JSON text (capability io.kubernetes.cri.pod-annotations).
What the configuration says of a port stands: a pod may only add what is left open there. A stranger may have written that text,
so what is read of it is bounded, and a DEL does not read it.
"""

from cni_py.addr import Address, parse_address, parse_ip
from cni_py.errors import DecodingFailure, InvalidNetworkConfig
from cni_py.protocol.gojson import Object, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ANNOTATION = "cni-py/ports"
ANNOTATION_MAX = 256 << 10  # bytes: Kubernetes' own limit for all annotations of an object
PORTS_MAX = 1000  # that an annotation names
NETWORKS_MAX = 1000  # of one port's `allow`
SHOWN_MAX = 64  # characters of a wrong value that an error repeats
KNOWN = ("share", "allow")
PROTOCOLS = ("tcp", "udp", "sctp")


class PortOptions:
    """Of one host port; None for what is not said."""

    __slots__ = ("allow", "share_said")

    def __init__(self, share: bool | None = None, allow: "Sequence[Address] | None" = None) -> None:
        self.share_said = share
        self.allow = allow

    @property
    def share(self) -> bool:
        return bool(self.share_said)

    def serves(self, family: int) -> bool:
        """Whether any client of the family may come."""
        return self.allow is None or any(network.family == family for network in self.allow)

    def clients(self, family: int) -> list[str]:
        """The networks that clients must come from; none when all may."""
        ours = [network for network in self.allow or () if network.family == family]
        return [] if any(network.prefixlen == 0 for network in ours) else list(map(str, ours))

    def over(self, other: "PortOptions") -> "PortOptions":
        """These, and of `other` what they leave open."""
        return PortOptions(
            other.share_said if self.share_said is None else self.share_said,
            other.allow if self.allow is None else self.allow,
        )


def port_options(ports: object, annotation: object) -> dict[tuple[str, int], PortOptions]:
    """By protocol and host port; None for what is not there. InvalidNetworkConfig names the place."""
    if not isinstance(ports, Object | None):
        raise InvalidNetworkConfig('ports must be an object {...}, such as {"8080/tcp": {"share": true}}')
    found = _read(ports or Object(), "ports")
    if annotation is not None:
        place = f"annotation {ANNOTATION}"
        said = _annotated(annotation)
        if len(said.pairs) > PORTS_MAX:
            raise InvalidNetworkConfig(f"{place} names {len(said.pairs)} ports", f"at most {PORTS_MAX} are read")
        for port, options in _read(said, place).items():
            found[port] = found[port].over(options) if port in found else options
    return found


def _annotated(text: object) -> Object:
    if isinstance(text, str) and len(text) > ANNOTATION_MAX:
        raise InvalidNetworkConfig(
            f"annotation {ANNOTATION} is {len(text)} characters long", f"at most {ANNOTATION_MAX} are read"
        )
    try:
        ports = decode(text.encode("utf-8", "replace")) if isinstance(text, str) else None
    except DecodingFailure as error:
        raise InvalidNetworkConfig(f"annotation {ANNOTATION}: {error}") from None
    if not isinstance(ports, Object):
        raise InvalidNetworkConfig(f"annotation {ANNOTATION} must be the text of a JSON object {{...}}")
    return ports


def _read(ports: Object, place: str) -> dict[tuple[str, int], PortOptions]:
    found: dict[tuple[str, int], PortOptions] = {}
    for name, value in ports.pairs:
        where = f'{place}: "{_shown(name)}"'
        number, _, protocol = name.lower().partition("/")
        if protocol not in PROTOCOLS or not is_port(number):
            raise InvalidNetworkConfig(
                f"{where} names no port: a key is a host port and its protocol, such as 8080/tcp"
            )
        if (protocol, int(number)) in found:
            raise InvalidNetworkConfig(f"{where} stands there twice")
        found[protocol, int(number)] = _options(value, where)
    return found


def is_port(text: str) -> bool:
    """Whether it is a port's number as one writes it."""
    return text.isascii() and text.isdigit() and len(text) <= 5 and text[0] != "0" and int(text) <= 65535


def _options(value: object, where: str) -> PortOptions:
    if not isinstance(value, Object):
        raise InvalidNetworkConfig(f"{where} must be an object {{...}} with the keys {' and '.join(KNOWN)}")
    for key in value:
        if key not in KNOWN:
            raise InvalidNetworkConfig(f'{where}: unknown key "{_shown(key)}"; known are {" and ".join(KNOWN)}')
    share, allow = value.get("share"), value.get("allow")
    if not isinstance(share, bool | None):
        raise InvalidNetworkConfig(f"{where}: share must be true or false")
    if not isinstance(allow, list | None):
        raise InvalidNetworkConfig(f'{where}: allow must be a list of networks, such as ["192.0.2.0/24"]')
    return PortOptions(share, None if allow is None else _networks(allow, where))


def _networks(texts: "Sequence[object]", where: str) -> list[Address]:
    """The networks in one order, none inside another: so equal lists are equal texts, and nft takes them."""
    if len(texts) > NETWORKS_MAX:
        what = f"{where}: allow lists {len(texts)} networks"
        raise InvalidNetworkConfig(what, f"at most {NETWORKS_MAX} are possible")
    found: list[Address] = []
    for text in texts:
        try:
            if not isinstance(text, str):
                raise ValueError(text)
            found.append(_network(text) if "/" in text else _host(text))
        except ValueError:
            what = "a list or object" if isinstance(text, list | Object) else _shown(repr(text))
            raise InvalidNetworkConfig(f"{where}: allow: {what} is no network, such as 192.0.2.0/24") from None
    if not found:
        raise InvalidNetworkConfig(f"{where}: allow lists nobody: do not publish the port, or leave allow out")
    kept: list[Address] = []
    for network in sorted(found, key=lambda one: (one.family, one.packed, one.prefixlen)):
        if not (kept and kept[-1].contains(network.packed)):  # in this order a network's parts come right after it
            kept.append(network)
    return sorted(kept, key=lambda one: (one.family, one.prefixlen, one.packed))


def _shown(text: str) -> str:
    """As much of a stranger's text as an error repeats."""
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."


def _network(text: str) -> Address:
    """An IPv4 network may be written as one of ::ffff:0:0/96; anything larger there is none of IPv4."""
    found = parse_address(text)
    if found.family == 4 and ":" in text and int(text.partition("/")[2]) < 96:
        raise ValueError(text)
    return found.network()


def _host(text: str) -> Address:
    packed = parse_ip(text)
    return Address(packed, 8 * len(packed))
