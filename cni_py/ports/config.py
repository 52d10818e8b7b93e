"""portmap's configuration: what it says, checked. Pure."""

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

PORT_MAX = 65535
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
            entries = netconf.objects(runtime, "portMappings") if runtime is not None else []
            sticky = _one_of(raw, "randomHostPort", RANDOM_PORTS) == "sticky"
            self.entries = [Entry(entry, random=sticky) for entry in entries]
            self.userland_proxy = _one_of(raw, "userlandProxy", PROXY_USES)
            self.block_direct = _one_of(raw, "directAccess", ("allow", "block")) == "block"
        except CniError as error:
            raise CniError(f"failed to parse config: {error}", code=7 if error.code == 999 else error.code) from error
        for entry in self.entries:
            entry.check_host_ip()
        self.options = _options(raw, runtime)
        self.words = conditions
        self.conditions = {family: _condition(words, f"conditionsV{family}") for family, words in conditions.items()}

    @property
    def has_random(self) -> bool:
        """Whether host ports are to be found."""
        return not all(entry.host_port for entry in self.entries)


class Entry:
    """One element of runtimeConfig.portMappings. `host_port` is 0 where a random one is to be found: see randomports.py."""

    __slots__ = ("container_port", "host_ip", "host_port", "protocol")

    def __init__(self, entry: "Object", *, random: bool = False) -> None:
        self.container_port = netconf.integer(entry, "containerPort")
        self.host_port = netconf.integer(entry, "hostPort")
        self.protocol = netconf.string(entry, "protocol")
        self.host_ip = netconf.string(entry, "hostIP")
        if self.container_port <= 0:
            raise InvalidNetworkConfig(f"Invalid container port number: {self.container_port} (1 to {PORT_MAX})")
        if self.host_port <= 0 and not (random and self.host_port == 0):
            raise InvalidNetworkConfig(f"Invalid host port number: {self.host_port} (1 to {PORT_MAX})")

    def check_host_ip(self) -> None:
        """InvalidNetworkConfig for a hostIP that is no address: nothing would be published, and nobody told."""
        try:
            if self.host_ip:
                parse_ip(self.host_ip)
        except ValueError:
            raise InvalidNetworkConfig(
                f"hostIP {self.host_ip[:SHOWN_MAX]!r} of host port {self.host_port}/{self.protocol} is not an IP address",
                "write an IPv4 or IPv6 address without brackets, prefix length, zone or blanks, or leave hostIP out",
            ) from None


def _options(raw: "Object", runtime: "Object | None") -> "dict[tuple[str, int], PortOptions]":
    """What ports are given beyond their mappings, by protocol and host port; see portoptions.py."""
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
