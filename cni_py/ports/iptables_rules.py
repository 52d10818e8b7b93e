"""The rules in iptables' nat table that publish a container's ports, by value."""

from cni_py.addr import Address, ip_text, parse_address, parse_ip
from cni_py.errors import InvalidNetworkConfig
from cni_py.iptables.masquerade_rules import in_subnet, said, value_of
from cni_py.iptables.names import ENTRIES, POSTROUTING
from cni_py.iptables.tool import quote, split
from cni_py.kernel.xtables import NAME_CHARACTERS, NAT
from cni_py.ports.config import PORT_MAX
from cni_py.ports.conflicts import meet
from cni_py.ports.mapping import PROTOCOLS, ByPort, Mapping, bracketed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cni_py.iptables.tool import Rule, Rules

SETMARK, MASQ = "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"
PORTS_MAX = 15  # XT_MULTI_PORTS, linux/netfilter/xt_multiport.h
# As in nftables/ruleset.py: the kernel forwards nothing of these, so what is DNATed is lost, and not refused
UNROUTED = ("fe80::/10", "::1/128")
TO_HOST: "Rule" = ("-m", "addrtype", "--dst-type", "LOCAL", "-j", ENTRIES)
# A condition is words of an iptables match. What acts, or speaks of another rule, is refused; so is what getopt(3) reads
# as a short form of it.
SHORT_OPTIONS = ("-s", "-d", "-i", "-o", "-m", "-f")
REFUSED_OPTIONS = (
    *("append", "check", "delete", "delete-chain", "exact", "flush", "goto", "help", "insert", "ipv4", "ipv6"),
    *("jump", "line-numbers", "list", "list-rules", "modprobe", "new-chain", "numeric", "policy", "proto"),
    *("rename-chain", "replace", "set-counters", "table", "verbose", "version", "wait", "wait-interval", "zero"),
)


# Published ports


class Port:
    """A host port, or `count` in a row, and the first of the container's. `host_ip` None: of both families; all zeros: any
    address of its own.
    """

    __slots__ = ("container_port", "count", "host_ip", "host_port", "protocol")

    def __init__(
        self, protocol: str, host_ip: bytes | None, host_port: int, container_port: int, count: int = 1
    ) -> None:
        self.protocol = protocol
        self.host_ip = host_ip
        self.host_port = host_port
        self.container_port = container_port
        self.count = count

    def __str__(self) -> str:
        at = f"{bracketed(self.host_ip)}:" if self.host_ip is not None else ""
        return f"{self.protocol} {at}{_span(self.host_port, self.count)} to {_span(self.container_port, self.count)}"

    def mapping(self, address: Address) -> Mapping | None:
        """What it means for a container with that address; None in the other family."""
        if self.host_ip is not None and len(self.host_ip) != len(address.packed):
            return None
        host_ip = self.host_ip if self.host_ip is not None and any(self.host_ip) else None
        last = self.host_port + self.count - 1
        return Mapping(self.protocol, host_ip, self.host_port, address.packed, self.container_port, last)


def _span(first: int, count: int, dash: str = "-") -> str:
    """80, or 8000-8999; iptables has a colon for the dash."""
    return f"{first}{dash}{first + count - 1}" if count > 1 else str(first)


def parse_ports(texts: "Iterable[str]") -> list[Port]:
    """The ports in the texts that str() made of them. ValueError when it was not."""
    found = []
    for text in texts:
        protocol, at, to, inside = text.split(" ")
        ip, colon, outside = at.rpartition(":")
        (first, last), (to_first, to_last) = ([int(number) for number in _ends(span)] for span in (outside, inside))
        port = Port(protocol, parse_ip(ip.strip("[]")) if colon else None, first, to_first, last - first + 1)
        numbers = 0 < first <= last <= PORT_MAX and to_first > 0 and to_last - to_first == last - first
        if protocol not in PROTOCOLS or to != "to" or not numbers or to_last > PORT_MAX:
            raise ValueError(f"not a published port: {text}")
        found.append(port)
    return found


def _ends(span: str, dash: str = "-") -> tuple[str, str]:
    """First and last number of a span."""
    first, _, last = span.partition(dash)
    return first, last or first


class Publication:
    """The rules of an attachment's published ports for one of its addresses.

    `mark` is the packet mark that asks for masquerading, `clients` says whose connections need it: those of the container's
    "subnet" and of the host's loopback, "all" or "none". A `mark_chain` of somebody else's sets another mark.
    """

    __slots__ = ("address", "chain", "clients", "comment", "conditions", "mark", "mark_chain", "ports")

    def __init__(
        self,
        label: str,
        chain: str,
        address: Address,
        ports: "Sequence[Port]",
        *,
        clients: str,
        mark: int,
        mark_chain: str,
        conditions: "Sequence[str]",
    ) -> None:
        self.comment = f"dnat {label}"
        self.chain = chain
        self.address = address
        self.ports = ports
        self.clients = clients
        self.mark = f"{mark:#x}/{mark:#x}"
        self.mark_chain = mark_chain
        self.conditions = tuple(conditions)

    @property
    def mappings(self) -> list[Mapping]:
        """What is published in this family."""
        found = [port.mapping(self.address) for port in self.ports]
        return [mapping for mapping in found if mapping is not None]

    def shared(self) -> "Iterator[tuple[str, Rule, bool]]":
        """The rules that all attachments have in common, by chain; and whether one must be its chain's first.

        That in POSTROUTING must be: the accepting rules of the container's own subnet (masquerade_rules) come after it.
        """
        if self.clients != "none" and not self.mark_chain:
            mark = ("-j", "MARK", "--set-xmark", self.mark)
            yield SETMARK, (*said("CNI portfwd masquerade mark"), *mark), False
            yield MASQ, ("-m", "mark", "--mark", self.mark, "-j", "MASQUERADE"), False
            yield POSTROUTING, (*said("CNI portfwd requiring masquerade"), "-j", MASQ), True
        yield "PREROUTING", TO_HOST, False
        yield "OUTPUT", TO_HOST, False

    def entries(self) -> "Iterator[Rule]":
        """What leads into the attachment's chain, but for the conditions."""
        for protocol in sorted({port.protocol for port in self.ports}):
            ours = [port for port in self.ports if port.protocol == protocol]
            numbers = list(dict.fromkeys(str(port.host_port) for port in ours if port.count == 1))
            listed = [",".join(numbers[start : start + PORTS_MAX]) for start in range(0, len(numbers), PORTS_MAX)]
            listed += dict.fromkeys(_span(port.host_port, port.count, ":") for port in ours if port.count > 1)
            for ports in listed:
                yield ("-p", protocol, *said(self.comment), "-m", "multiport", "--dports", ports)

    def own(self) -> "list[Rule]":
        """The attachment's chain."""
        found = [rule for mapping in self.mappings for rule in self.of_mapping(mapping)]
        return list(dict.fromkeys(found))

    def of_mapping(self, mapping: Mapping) -> "Iterator[Rule]":
        """Its rules: who must be masqueraded, then where it leads. Of several ports each stays as it is."""
        protocol = mapping.protocol
        at = ("-d", str(Address(mapping.host_ip, 0).host())) if mapping.host_ip is not None else ()
        ports = _span(mapping.first, len(mapping.ports), ":")
        words = (*at, "-p", protocol, "-m", protocol, "--dport", ports)
        to_mark = (*words, "-j", self.mark_chain or SETMARK)
        if self.clients == "all":
            yield to_mark
        elif self.clients == "subnet":
            yield (*in_subnet("-s", self.address), *to_mark)
            if mapping.family == 4:
                yield ("-s", "127.0.0.1/32", *to_mark)
        target = f"{bracketed(mapping.container_ip)}:{mapping.container_port}"
        if mapping.first < mapping.last:  # DNAT to an address alone leaves the port as it is (nf_nat_core.c)
            target = ip_text(mapping.container_ip)
        yield (*words, "-j", "DNAT", "--to-destination", target)

    def make(self, rules: "Rules", stays: "Callable[[bytes], bool]") -> None:
        """Publish, in place of whatever the chain has that leads to addresses that do not stay."""
        for chain, rule, _ in self.shared():
            # The rule of another markMasqBit must go: --set-xmark of both rules would set both bits
            if chain in (SETMARK, MASQ) and not rules.has(NAT, chain, rule):
                rules.fill(NAT, chain, [rule])
        rules.ensure_chain(NAT, ENTRIES)
        for chain, rule, first in self.shared():
            rules.ensure(NAT, chain, rule, first=first)
        for destination in UNROUTED if self.address.family == 6 else ():
            rules.ensure(NAT, ENTRIES, ("-d", destination, "-j", "RETURN"), first=True)
        there = rules.chains.get((NAT, self.chain), [])
        others, own = rules_towards(there, stays), self.own()
        rules.ensure_chain(NAT, self.chain)
        if not set(own) <= set(there) <= {*own, *others}:
            rules.fill(NAT, self.chain, list(dict.fromkeys((*others, *own))))
        self._enter(rules, stay=bool(others))

    def _enter(self, rules: "Rules", *, stay: bool) -> None:
        """Let the entries lead to the chain, which have no other form than these unless others `stay`.

        How iptables prints conditions is its own affair: entries with them are made anew.
        """
        wanted = [(*entry, *self.conditions, "-j", self.chain) for entry in self.entries()]
        if self.conditions:
            same = [entry[-1] for entry in self.entries()]
            rules.remove(NAT, ENTRIES, lambda rule: rule[-1] == self.chain and value_of(rule, "--dports") in same)
        if not stay:
            rules.remove(NAT, ENTRIES, lambda rule: rule[-1] == self.chain and rule not in wanted)
        there = set(rules.chains[NAT, ENTRIES])
        for rule in wanted:
            if rule not in there:
                rules.ensure(NAT, ENTRIES, rule)

    def lacking(self, rules: "Rules") -> str:
        """The first rule that is not there, "" when all are."""
        there = set(rules.chains.get((NAT, self.chain), ()))
        for chain, rule in [(chain, rule) for chain, rule, _ in self.shared()] + [
            (self.chain, one) for one in self.own()
        ]:
            if rule not in there if chain == self.chain else not rules.has(NAT, chain, rule):
                return f"-A {chain} {' '.join(map(quote, rule))}"
        leading = [rule for rule in rules.chains.get((NAT, ENTRIES), ()) if rule[-1] == self.chain and "-p" in rule]
        heads = {rule[rule.index("-p") :][: len(entry)] for entry in self.entries() for rule in leading}
        for entry in self.entries():
            if entry not in heads:
                return f"-A {ENTRIES} {' '.join(map(quote, entry))} -j {self.chain}"
        return ""


def rules_towards(chain: "Sequence[Rule]", stays: "Callable[[bytes], bool]") -> "list[Rule]":
    """The rules of an attachment's chain that lead to addresses that stay, with those that mark for them."""
    led = {rule: mapping_of(rule) for rule in chain}
    found = {match_of(rule) for rule, mapping in led.items() if mapping is not None and stays(mapping.container_ip)}
    return [
        rule
        for rule, mapping in led.items()
        if match_of(rule) in found and (mapping is None or stays(mapping.container_ip))
    ]


def match_of(rule: "Rule") -> tuple[str, str, str]:
    """The host's port that a rule of an attachment's chain speaks of."""
    return value_of(rule, "-d"), value_of(rule, "-p"), value_of(rule, "--dport")


def mapping_of(rule: "Rule") -> Mapping | None:
    """Where a rule of an attachment's chain leads; None for one that leads nowhere, or is not like ours."""
    at, protocol, ports = match_of(rule)
    target = value_of(rule, "--to-destination")
    first, last = _ends(ports, ":")
    ip, inside = (target, first) if first != last else _address_and_port(target)
    try:
        host_ip = parse_address(at).packed if at else None
        return Mapping(protocol, host_ip, int(first), parse_ip(ip), int(inside), int(last))
    except ValueError:
        return None


def _address_and_port(target: str) -> tuple[str, str]:
    ip, _, port = target.rpartition(":")
    return ip.strip("[]"), port


def withdraw(rules: "Rules", chain: str, stays: "Callable[[bytes], bool]") -> list[Mapping]:
    """Take out the chain and what leads there, but for what leads to addresses that stay; returns what led elsewhere."""
    there = rules.chains.get((NAT, chain), [])
    kept = set(rules_towards(there, stays))
    gone = [mapping_of(rule) for rule in there if rule not in kept]
    if kept:
        rules.remove(NAT, chain, lambda rule: rule not in kept)
    else:
        rules.remove_chain(NAT, chain)
    return [mapping for mapping in gone if mapping is not None]


def conflicting(rules: "Rules", mappings: "Iterable[Mapping]", chain: str) -> "Iterator[tuple[Mapping, Mapping, Rule]]":
    """Which of the mappings has a port, as bind(2) sees it, that another attachment than the chain's publishes.

    Each with the other's mapping, and with what leads to its chain.
    """
    wanted = ByPort(mappings)
    for entry in list(rules.chains.get((NAT, ENTRIES), ())):
        protocol, spans = value_of(entry, "-p"), value_of(entry, "--dports").split(",")
        ends = [_ends(span, ":") for span in spans]
        ports = [(int(first), int(last)) for first, last in ends if first.isdigit() and last.isdigit()]
        if entry[-1] == chain or not any(wanted.having(protocol, *span) for span in ports):
            continue
        found = map(mapping_of, rules.chains.get((NAT, entry[-1]), ()))
        for other in [led for led in found if led is not None]:
            for mapping in wanted.having(other.protocol, other.first, other.last):
                if meet(mapping, other):
                    yield mapping, other, entry


# Conditions


def vetted(words: "Sequence[str]", name: str) -> str:
    """The words of a condition, each checked, as one text. InvalidNetworkConfig."""
    for place, word in enumerate(words):
        module = place > 0 and words[place - 1] in ("-m", "--match")
        if not is_harmless(word) or (module and not NAME_CHARACTERS.issuperset(word)):
            raise InvalidNetworkConfig(f"{name} may hold the words of an iptables match only", repr(word))
    return " ".join(map(quote, words))


def is_harmless(word: str) -> bool:
    """Whether a word matches, and does nothing."""
    if not word or not word.isprintable():
        return False
    if not word.startswith("-"):
        return True
    name = word[2:].partition("=")[0]
    if not word.startswith("--"):
        return word in SHORT_OPTIONS
    return word == "--pol" or not any(option.startswith(name) for option in REFUSED_OPTIONS)


def words_of(conditions: str) -> list[str]:
    """The words in the text that vetted() made of them. ValueError when it was not."""
    words = split(conditions)
    try:
        same = vetted(words, "") == conditions
    except InvalidNetworkConfig as error:
        raise ValueError(str(error)) from error
    if not same:
        raise ValueError(f"not a condition: {conditions}")
    return words
