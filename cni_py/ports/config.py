"""portmap's configuration, checked: the first step of an ADD. Pure."""

from cni_py.addr import parse_ip
from cni_py.errors import CniError, InvalidNetworkConfig
from cni_py.protocol import netconf, result
from cni_py.sha import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.ports.options import PortOptions
    from cni_py.protocol.gojson import Object
    from cni_py.protocol.netconf import NetConf
    from cni_py.protocol.result import Result

    Said = tuple[int, int, str, str]

PORT_MAX = 65535
RANGE_MIN = 64  # ports in a row that are one interval; fewer are single elements, which a packet finds in one lookup
SHOWN_MAX = 64  # characters of a wrong value that an error repeats
POD_ANNOTATIONS = "io.kubernetes.cri.pod-annotations"  # a capability
MARK_BIT = 13  # of the packet mark that iptables' rules masquerade by: 0x2000
BACKENDS = ("iptables", "nftables")
PROXY_USES = ("auto", "always", "never")
RANDOM_PORTS = ("refuse", "sticky")
IPTABLES_FIRST = ("-", "!")  # how the first word of an iptables condition begins, as the Go plugin tells them apart
HEX_DIGITS = "0123456789abcdefABCDEF"
HEX_WORD = frozenset(HEX_DIGITS + ":./-,{}!=")
# A condition is words of an nft match. What acts, or refers to something else, is refused.
CONDITION_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:/,-!=<>&|*{}")
CONDITION_REFUSED = (
    " accept add comment continue counter dnat drop dup flow fwd goto include jump last limit log map masquerade meter notrack "
    "queue quota redirect reject reset return set snat synproxy tproxy update vmap xt "
)


class PortmapConf:
    """portmap's configuration, checked. CniError for what cannot be honoured."""

    __slots__ = (
        "asked_backend",
        "block_direct",
        "conditions",
        "entries",
        "mark_bit",
        "mark_chain",
        "masq_all",
        "options",
        "prev_result",
        "snat",
        "userland_proxy",
        "words",
    )

    def __init__(self, conf: "NetConf") -> None:
        raw = conf.raw
        try:
            self.prev_result: Result | None = result.prev_result(conf)
            self.snat = netconf.boolean(raw, "snat", True)
            self.masq_all = netconf.boolean(raw, "masqAll")
            self.mark_bit, self.mark_chain = _mark(raw)
            conditions = {family: netconf.strings(raw, f"conditionsV{family}") for family in (4, 6)}
            self.asked_backend = _backend(raw, conditions)
            runtime = netconf.child(raw, "runtimeConfig")
            listed = netconf.objects(runtime, "portMappings") if runtime is not None else []
            sticky = _one_of(raw, "randomHostPort", RANDOM_PORTS) == "sticky"
            entries = [_entry(one, random=sticky) for one in listed] + _of_pod(raw, runtime)
            self.userland_proxy = _one_of(raw, "userlandProxy", PROXY_USES)
            self.block_direct = _one_of(raw, "directAccess", ("allow", "block")) == "block"
        except CniError as error:
            raise CniError(f"failed to parse config: {error}", code=7 if error.code == 999 else error.code) from error
        _check_host_ips(entries)
        self.options = _options(raw, runtime)
        self.entries = _joined(entries, self.options)
        self.words = conditions
        self.conditions = {family: _condition(words, f"conditionsV{family}") for family, words in conditions.items()}

    @property
    def has_random(self) -> bool:
        """Whether host ports are to be found."""
        return not all(entry.host_port for entry in self.entries)


class Entry:
    """An element of runtimeConfig.portMappings, or RANGE_MIN and more of them, whose ports are in a row on both sides.

    `host_port` and `container_port` are the first of `count`. A host_port of 0 means that a random one is to be found: see
    random_ports. Such a one, and one with options of its own, stands alone.
    """

    __slots__ = ("container_port", "count", "host_ip", "host_port", "protocol")

    def __init__(self, host_port: int, container_port: int, protocol: str, host_ip: str, count: int = 1) -> None:
        self.host_port = host_port
        self.container_port = container_port
        self.protocol = protocol
        self.host_ip = host_ip
        self.count = count

    def apart(self) -> "list[Entry]":
        """The same, an entry for each port."""
        ports = range(self.count)
        return [Entry(self.host_port + n, self.container_port + n, self.protocol, self.host_ip) for n in ports]

    @property
    def numbers(self) -> str:
        """8080, or 8000-8999."""
        return f"{self.host_port}-{self.host_port + self.count - 1}" if self.count > 1 else str(self.host_port)


def _entry(entry: "Object", *, random: bool) -> "Said":
    """One element as it is said: host port, container port, protocol, hostIP. InvalidNetworkConfig."""
    container_port = netconf.integer(entry, "containerPort")
    host_port = netconf.integer(entry, "hostPort")
    if container_port <= 0:
        raise InvalidNetworkConfig(f"Invalid container port number: {container_port} (1 to {PORT_MAX})")
    if host_port <= 0 and not (random and host_port == 0):
        raise InvalidNetworkConfig(f"Invalid host port number: {host_port} (1 to {PORT_MAX})")
    return host_port, container_port, netconf.string(entry, "protocol"), netconf.string(entry, "hostIP")


def _of_pod(raw: "Object", runtime: "Object | None") -> "list[Said]":
    """What the pod asks for by an annotation: see pod_ports.py."""
    allowed = netconf.strings(raw, "podHostPorts")
    annotations = netconf.child(runtime, POD_ANNOTATIONS) if runtime is not None else None
    text = annotations.get("cni-py/host-ports") if annotations is not None else None
    if text is None and not allowed:
        return []
    from cni_py.ports.pod_ports import entries

    return entries(text, allowed)


def _check_host_ips(entries: "Sequence[Said]") -> None:
    """InvalidNetworkConfig for a hostIP that is no address: nothing would be published, and nobody told."""
    known = {""}
    for host_port, _, protocol, host_ip in entries:
        try:
            if host_ip not in known:
                parse_ip(host_ip)
                known.add(host_ip)
        except ValueError:
            raise InvalidNetworkConfig(
                f"hostIP {host_ip[:SHOWN_MAX]!r} of host port {host_port}/{protocol} is not an IP address",
                "write an IPv4 or IPv6 address without brackets, prefix length, zone or blanks, or leave hostIP out",
            ) from None


def _joined(entries: "Sequence[Said]", options: "dict[tuple[str, int], PortOptions]") -> list[Entry]:
    """Elements with ports in a row become one entry, so that 65535 of them cost what ten cost from here on.

    A runtime lists a range as single ports (nerdctl: in ascending order).
    """
    runs: list[list[Said]] = []
    follows: tuple[int, int, str, str] | None = None  # what would continue the last run
    for one in entries:
        host_port, container_port, protocol, host_ip = one
        if one == follows and (protocol.lower(), host_port) not in options:
            runs[-1].append(one)
        else:
            runs.append([one])
        is_plain = 0 < host_port < PORT_MAX > container_port and (protocol.lower(), host_port) not in options
        follows = (host_port + 1, container_port + 1, protocol, host_ip) if is_plain else None
    found: list[Entry] = []
    for run in runs:
        found += [Entry(*run[0], len(run))] if len(run) >= RANGE_MIN else [Entry(*one) for one in run]
    return found


def _options(raw: "Object", runtime: "Object | None") -> "dict[tuple[str, int], PortOptions]":
    """Options of single ports, by protocol and host port: see options.py."""
    ports = netconf.lookup(raw, "ports")
    annotations = netconf.child(runtime, POD_ANNOTATIONS) if runtime is not None else None
    annotation = annotations.get("cni-py/ports") if annotations is not None else None
    if isinstance(ports, netconf.Missing):
        if annotation is None:
            return {}
        ports = None
    from cni_py.ports.options import port_options

    return port_options(ports, annotation)


def _one_of(raw: "Object", name: str, known: "Sequence[str]") -> str:
    """The value of a key of ours, the first of the known ones when there is none."""
    value = netconf.string(raw, name, known[0])
    if value not in known:
        raise InvalidNetworkConfig(f'unrecognized {name} "{value}": it is one of {", ".join(known)}')
    return value


def _mark(raw: "Object") -> tuple[int, str]:
    """For iptables: the bit of a packet's mark that asks for masquerading, or somebody else's chain that marks."""
    bit = netconf.optional_integer(raw, "markMasqBit")
    chain = netconf.optional_string(raw, "externalSetMarkChain")
    if bit is not None and chain is not None:
        raise InvalidNetworkConfig("Cannot specify externalSetMarkChain and markMasqBit: leave out one of the two")
    if bit is not None and not 0 <= bit <= 31:
        raise InvalidNetworkConfig(f"markMasqBit must be between 0 and 31, not {bit}")
    return MARK_BIT if bit is None else bit, chain or ""


def _backend(raw: "Object", conditions: dict[int, list[str]]) -> str:
    """The backend asked for by name, or else by the kind of options that only one has; "" when nothing is said."""
    backend = netconf.string(raw, "backend")
    if backend not in ("", *BACKENDS):
        raise InvalidNetworkConfig(f'unrecognized backend "{backend}": it is one of {", ".join(BACKENDS)}')
    specific: dict[str, list[str]] = {"iptables": [], "nftables": []}
    if netconf.optional_string(raw, "externalSetMarkChain") is not None:
        specific["iptables"].append("externalSetMarkChain")
    for family, words in conditions.items():
        if words:
            specific["iptables" if _is_of_iptables(words) else "nftables"].append(f"conditionsV{family}")
    if not backend:
        backend = "nftables" if specific["nftables"] else "iptables" if specific["iptables"] else ""
    other = "iptables" if backend == "nftables" else "nftables"
    if specific[other]:
        options = " ".join(specific[other])
        raise InvalidNetworkConfig(
            f"{backend} backend was requested but configuration contains {other}-specific options [{options}]"
        )
    return backend


def _is_of_iptables(condition: list[str]) -> bool:
    """Whether a condition is words of iptables, not of nft; in the Go plugin's way of telling."""
    return bool(condition) and condition[0].startswith(IPTABLES_FIRST)


def _condition(words: list[str], name: str) -> str:
    """As one text. The words of nft's are checked here, those of iptables where its rules are made."""
    return " ".join(words) if _is_of_iptables(words) else vetted(words, name)


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
