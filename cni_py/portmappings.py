"""Port mappings: what portmap's configuration says, and which host ports lead where. Pure.

A mapping is published for each family the container has an address of, unless hostIP belongs to one of them. As with
bind(2), an absent hostIP, 0.0.0.0 and :: mean any address. Nothing can be published on ::1: the kernel does not forward it.
"""

from _sha256 import sha256

from cni_py import netconf, result
from cni_py.addr import Address, ip_text, parse_ip
from cni_py.errors import CniError, InvalidNetworkConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.jsontext import Object
    from cni_py.netconf import NetConf
    from cni_py.result import Result

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}  # IANA protocol numbers
PORT_MAX = 65535
RANGE_MIN = 64  # consecutive ports; fewer are single elements, which the packet path finds in one lookup
LOOPBACK6 = b"\0" * 15 + b"\1"
IPTABLES_FIRST = ("-", "!")  # how the first word of an iptables condition begins, as the Go plugin tells them apart

HEX_DIGITS = "0123456789abcdefABCDEF"
HEX_WORD = frozenset(HEX_DIGITS + ":./-,{}!=")

# A condition is words of an nft match. What acts, or refers to something else, is refused.
CONDITION_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:/,-!=<>&|*{}")
CONDITION_REFUSED = (
    " accept add comment continue counter dnat drop dup flow fwd goto include jump last limit log map masquerade meter notrack "
    "queue quota redirect reject reset return set snat synproxy tproxy update vmap xt "
)


class Mapping:
    """Host ports `first` to `last` of one protocol and family, on `host_ip` or (None) any address, to a container.

    Of several ports each leads to the container's port of the same number.
    """

    __slots__ = ("container_ip", "container_port", "first", "host_ip", "last", "protocol")

    def __init__(
        self, protocol: str, host_ip: bytes | None, first: int, container_ip: bytes, container_port: int, last: int = 0
    ) -> None:
        self.protocol = protocol
        self.host_ip = host_ip
        self.first = first
        self.last = last or first
        self.container_ip = container_ip
        self.container_port = container_port

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"Mapping({self})"

    def __str__(self) -> str:
        any_ip = bytes(len(self.container_ip))
        upto, container_upto = "", ""
        if self.last > self.first:
            upto, container_upto = f"-{self.last}", f"-{self.container_port + self.last - self.first}"
        host = f"{bracketed(self.host_ip or any_ip)}:{self.first}{upto}"
        return f"{self.protocol} {host} to {bracketed(self.container_ip)}:{self.container_port}{container_upto}"

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if len(self.container_ip) == 4 else 6

    @property
    def ports(self) -> range:
        """The host's ports."""
        return range(self.first, self.last + 1)


def bracketed(ip: bytes) -> str:
    """The address as it stands before a port."""
    return ip_text(ip) if len(ip) == 4 else f"[{ip_text(ip)}]"


def parse_mappings(text: str) -> list[Mapping]:
    """The mappings in the text that str() made of them, joined with ", ". ValueError when it was not."""
    return [_parse_mapping(part) for part in text.split(", ") if part]


def _parse_mapping(text: str) -> Mapping:
    protocol, host, to, container = text.split(" ")
    if protocol not in PROTOCOLS or to != "to":
        raise ValueError(f"not a port mapping: {text}")
    (host_ip, first, last), (container_ip, container_port, container_last) = _parse_end(host), _parse_end(container)
    if len(host_ip) != len(container_ip) or last - first != container_last - container_port:
        raise ValueError(f"two ends that do not fit: {text}")
    return Mapping(protocol, host_ip if any(host_ip) else None, first, container_ip, container_port, last)


def _parse_end(text: str) -> tuple[bytes, int, int]:
    ip, _, ports = text.rpartition(":")
    texts = ports.split("-")
    first, last = int(texts[0]), int(texts[-1])
    if not 1 <= first <= last <= PORT_MAX:
        raise ValueError(f"not ports: {ports}")
    return parse_ip(ip.strip("[]")), first, last


class PortmapConf:
    """portmap's configuration, checked. CniError for what cannot be honoured."""

    __slots__ = ("backend", "conditions", "entries", "masq_all", "prev_result", "snat")

    def __init__(self, conf: "NetConf") -> None:
        raw = conf.raw
        try:
            self.prev_result: Result | None = result.prev_result(conf)
            self.snat = netconf.boolean(raw, "snat", True)
            self.masq_all = netconf.boolean(raw, "masqAll")
            _check_mark(raw)
            conditions = {family: netconf.strings(raw, f"conditionsV{family}") for family in (4, 6)}
            self.backend = _backend(raw, conditions)
            runtime = netconf.child(raw, "runtimeConfig")
            entries = netconf.objects(runtime, "portMappings") if runtime is not None else []
            self.entries = [Entry(entry) for entry in entries]
        except CniError as error:
            raise CniError(f"failed to parse config: {error}") from error
        self.conditions: dict[int, str] = {}
        if self.backend == "nftables":
            self.conditions = {family: vetted(words, f"conditionsV{family}") for family, words in conditions.items()}


class Entry:
    """One element of runtimeConfig.portMappings."""

    __slots__ = ("container_port", "host_ip", "host_port", "protocol")

    def __init__(self, entry: "Object") -> None:
        self.container_port = netconf.integer(entry, "containerPort")
        self.host_port = netconf.integer(entry, "hostPort")
        self.protocol = netconf.string(entry, "protocol")
        self.host_ip = netconf.string(entry, "hostIP")
        if self.container_port <= 0:
            raise CniError(f"Invalid container port number: {self.container_port}")
        if self.host_port <= 0:
            raise CniError(f"Invalid host port number: {self.host_port}")


def _check_mark(raw: "Object") -> None:
    bit = netconf.optional_integer(raw, "markMasqBit")
    if bit is not None and netconf.optional_string(raw, "externalSetMarkChain") is not None:
        raise CniError("Cannot specify externalSetMarkChain and markMasqBit")
    if bit is not None and not 0 <= bit <= 31:
        raise CniError("MasqMarkBit must be between 0 and 31")


def _backend(raw: "Object", conditions: dict[int, list[str]]) -> str:
    """The backend asked for by name, or else by the kind of options that only one has, or else nftables."""
    backend = netconf.string(raw, "backend")
    if backend not in ("", "iptables", "nftables"):
        raise CniError(f'unrecognized backend "{backend}"')
    specific: dict[str, list[str]] = {"iptables": [], "nftables": []}
    if netconf.optional_string(raw, "externalSetMarkChain") is not None:
        specific["iptables"].append("externalSetMarkChain")
    for family, words in conditions.items():
        if words:
            kind = "iptables" if words[0].startswith(IPTABLES_FIRST) else "nftables"
            specific[kind].append(f"conditionsV{family}")
    if not backend:
        backend = "iptables" if specific["iptables"] and not specific["nftables"] else "nftables"
    other = "iptables" if backend == "nftables" else "nftables"
    if specific[other]:
        options = " ".join(specific[other])
        raise CniError(
            f"{backend} backend was requested but configuration contains {other}-specific options [{options}]"
        )
    return backend


def vetted(conditions: list[str], name: str) -> str:
    """The words of a condition, each checked, joined by single blanks."""
    words = [word.strip('"') for word in " ".join(conditions).split()]
    for word in words:
        acts = any(f" {found} " in CONDITION_REFUSED for found in names_in(word))
        if acts or not CONDITION_CHARACTERS.issuperset(word):
            raise InvalidNetworkConfig(f"{name} may hold the words of an nft match only", repr(word))
    return " ".join(words)


def names_in(word: str) -> list[str]:
    """The names that nft reads in a word: "{80}log" is a set and a statement, "80log" a number and a statement."""
    if ":" in word and HEX_WORD.issuperset(word):
        return []  # an IPv6 address, in which "add" is a number
    found = []
    for part in "".join(char if char.isalnum() or char in "_.-/" else " " for char in word).split():
        rest = part[2:].lstrip(HEX_DIGITS) if part.startswith("0x") else part
        found.append(rest.lstrip("0123456789.-/"))
    return [name for name in found if name]


def condition_id(family: int, condition: str) -> str:
    """What chain and maps of a set of conditions are named by; "" for no conditions."""
    return f"{family}_{sha256(condition.encode()).hexdigest()[:12]}" if condition else ""


def container_addresses(earlier: "Result", ifname: str) -> list[Address]:
    """The container's first address of each family, IPv4 first: one of `ifname`, or of no interface named."""
    found: dict[int, Address] = {}
    for ip in earlier.ips:
        if ip.interface is not None and 0 <= ip.interface < len(earlier.interfaces):
            interface = earlier.interfaces[ip.interface]
            if interface.name != ifname or not interface.sandbox:
                continue
        found.setdefault(ip.address.family, ip.address)
    return [found[family] for family in sorted(found)]


def mappings(conf: PortmapConf, addresses: "Iterable[Address]") -> list[Mapping]:
    """What `conf` publishes for a container with these addresses, long runs of ports put together."""
    found: dict[tuple[bytes | None, int, str, int], Mapping] = {}
    for entry in conf.entries:
        protocol = _checked_protocol(entry)
        for address in addresses:
            host_ip, wanted = _host_ip(entry.host_ip, address.family)
            if wanted:
                one = Mapping(protocol, host_ip, entry.host_port, address.packed, entry.container_port)
                _add(found, one)
    _refuse_shadowed(found)
    return _runs(list(found.values()), conf.conditions)


def _checked_protocol(entry: Entry) -> str:
    """The protocol in lower case, as iptables takes it in any."""
    protocol = entry.protocol.lower()
    if protocol not in PROTOCOLS:
        raise CniError(
            f'unknown protocol "{entry.protocol}" of host port {entry.host_port}', f"one of {', '.join(PROTOCOLS)}"
        )
    for port in (entry.host_port, entry.container_port):
        if port > PORT_MAX:
            raise CniError(f"port {port} is out of range", "1 to 65535")
    return protocol


def _host_ip(text: str, family: int) -> tuple[bytes | None, bool]:
    """The host address in `text` (None: any), and whether anything is published on it in this family.

    A text that is no address publishes nothing, as with the Go plugin.
    """
    if not text:
        return None, True
    try:
        host_ip = parse_ip(text)
    except ValueError:
        return None, False
    wanted = len(host_ip) == (4 if family == 4 else 16) and host_ip != LOOPBACK6
    return host_ip if any(host_ip) else None, wanted


def _add(found: "dict[tuple[bytes | None, int, str, int], Mapping]", one: Mapping) -> None:
    """The same mapping twice is one."""
    known = found.setdefault((one.host_ip, one.family, one.protocol, one.first), one)
    if known != one:
        raise InvalidNetworkConfig(f"host port {one.first}/{one.protocol} is mapped twice", f"{known}; {one}")


def _refuse_shadowed(found: "dict[tuple[bytes | None, int, str, int], Mapping]") -> None:
    """A specific address beside any: the same target needs no mapping of its own, another cannot be bound."""
    for (host_ip, family, protocol, port), one in list(found.items()):
        general = found.get((None, family, protocol, port))
        if host_ip is not None and general is not None:
            if general.container_port != one.container_port:
                raise InvalidNetworkConfig(f"host port {port}/{protocol} is mapped twice", f"{general}; {one}")
            del found[host_ip, family, protocol, port]


def _runs(singles: list[Mapping], conditions: dict[int, str]) -> list[Mapping]:
    """Unconditional mappings of any address to the same port numbers, RANGE_MIN or more in a row, become one."""

    def fits(one: Mapping) -> bool:
        return one.host_ip is None and one.first == one.container_port and not conditions.get(one.family)

    found = [one for one in singles if not fits(one)]
    run: list[Mapping] = []
    for one in sorted((one for one in singles if fits(one)), key=lambda one: (one.family, one.protocol, one.first)):
        if run and (one.family, one.protocol, one.first) != (run[-1].family, run[-1].protocol, run[-1].first + 1):
            found += _joined(run)
            run = []
        run.append(one)
    return found + _joined(run)


def _joined(run: list[Mapping]) -> list[Mapping]:
    if len(run) < RANGE_MIN:
        return run
    head = run[0]
    return [Mapping(head.protocol, None, head.first, head.container_ip, head.container_port, run[-1].last)]
