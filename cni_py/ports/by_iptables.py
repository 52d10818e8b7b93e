"""Publish ports by iptables: the operation, and what DEL, GC and the other backend ask of iptables' rules."""

from cni_py.addr import Address, by_family, parse_ip
from cni_py.attachment import naming, records
from cni_py.attachment.engine import Op, split_texts
from cni_py.errors import InvalidNetworkConfig, warn
from cni_py.iptables import masquerade_rules, tool
from cni_py.iptables.masquerade import Siblings, own_chain, own_label, records_of, siblings
from cni_py.iptables.names import ENTRIES, MASQUERADE, OBSOLETE, POSTROUTING, PUBLISH, chain_name, concerned
from cni_py.iptables.tool import Rules
from cni_py.kernel.nf_tables import NftUnavailable, ifname_key
from cni_py.kernel.xtables import NAT, is_chain_name
from cni_py.nftables.elements import GUARDS
from cni_py.ports import claims, conflicts, go_tables, host_clients, iptables_rules
from cni_py.ports.flows import forget_flows
from cni_py.ports.iptables_rules import Publication, parse_ports
from cni_py.ports.mapping import MASQUERADED, entries_of, mappings, separated
from cni_py.ports.successors import sweep_ports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from cni_py.attachment.context import Kernel
    from cni_py.attachment.naming import Attachment
    from cni_py.kernel.rtnl import Link
    from cni_py.ports.config import Entry, PortmapConf
    from cni_py.ports.mapping import Mapping

CLIENTS = ("subnet", "all", "none")
MARK_BITS = 32
PORTMAP = "portmap"


class PublishByIptables(Op):
    """Host ports lead to the container.

    `ports` are texts of iptables_rules.Port. `clients` says whose connections must be masqueraded for the answer to come
    back, by the packet mark of bit `mark_bit` or by the chain `mark_chain` of somebody else's.
    """

    ports: list[str]
    addresses: list[str]
    clients: str
    mark_bit: int
    mark_chain: str
    conditions4: str
    conditions6: str
    owned = True
    restorable = True
    deed = "publish {ports} (iptables)"

    @classmethod
    def translated(cls, fields: "dict[str, object]") -> "dict[str, object]":
        return separated(split_texts(fields, "addresses"), "ports")

    def validate(self) -> None:
        parse_ports(self.ports)  # ValueError
        by_family(self.addresses)
        for text in (self.conditions4, self.conditions6):
            iptables_rules.words_of(text)
        if self.clients not in CLIENTS or not 0 <= self.mark_bit < MARK_BITS:
            raise ValueError(f"not options of a publication: {self.clients} {self.mark_bit}")
        if self.mark_chain and not is_chain_name(self.mark_chain):
            raise ValueError(f"not the name of a chain: {self.mark_chain}")

    def shown(self) -> "dict[str, object]":
        return {**super().shown(), "ports": ", ".join(self.ports)}

    def describe(self) -> str:
        texts = {4: self.conditions4, 6: self.conditions6}
        where = "".join(f", for IPv{n} if {text}" for n, text in texts.items() if text)
        whose = MASQUERADED.get(self.clients, "").format(" ".join(self.addresses))
        return f"host: iptables: publish {', '.join(self.ports)}{where}{whose}"

    def publications(self, key: "Attachment") -> dict[int, Publication]:
        """By family."""
        ports = parse_ports(self.ports)
        return {
            family: Publication(
                own_label(key),
                own_chain(key, PUBLISH),
                addresses[0],
                ports,
                clients=self.clients,
                mark=1 << self.mark_bit,
                mark_chain=self.mark_chain,
                conditions=iptables_rules.words_of(self.conditions4 if family == 4 else self.conditions6),
            )
            for family, addresses in by_family(self.addresses).items()
        }

    def apply(self, kernel: "Kernel") -> bool:
        found = self.publications(kernel.key)
        staying = siblings(kernel.key, PORTMAP)
        wanted = [mapping for publication in found.values() for mapping in publication.mappings]
        for hexed in claims.dead_holders(kernel, wanted):
            sweep_ports(kernel, "", [], hexed)

        gone: list[Mapping] = []

        def decide(rules: Rules) -> None:
            publication = found[rules.family]
            gone.extend(take_out_dead(rules, publication.mappings, kernel.key, strangers=True))
            gone.extend(take_out_unrecorded(rules, {publication.address.packed}, kernel.key))
            publication.make(rules, staying.__contains__)

        changed = tool.change(found, (NAT,), decide)
        go_tables.clear(kernel, {publication.address.packed for publication in found.values()})
        forget_flows(kernel, gone, added=False)
        for publication in found.values():
            forget_flows(kernel, publication.mappings, added=True)
        return changed

    def undo(self, kernel: "Kernel") -> None:
        gone = {address.packed for each in by_family(self.addresses).values() for address in each}
        withdraw(kernel, kernel.key, lambda ip: ip not in gone)
        for publication in self.publications(kernel.key).values():  # also when a killed DEL has taken out the rules
            forget_flows(kernel, publication.mappings, added=False)

    def check(self, kernel: "Kernel") -> str | None:
        for family, publication in self.publications(kernel.key).items():
            lost = publication.lacking(Rules.read(family, NAT))
            if lost:
                return f"{tool.TOOLS[family]} has lost a rule: {lost}"
        return None


class OpenLoopback(host_clients.AllowLoopbackClients):
    """The same, also where there is neither nf_tables nor the filter: then nothing guards the host's loopback, as in Go."""

    address: str

    def guard(self, kernel: "Kernel", link: "Link") -> None:
        try:
            super().guard(kernel, link)
        except NftUnavailable as error:
            warn(f"127.0.0.0/8 is open to {link.name}: {error}")

    def check(self, kernel: "Kernel") -> str | None:
        """Only where one of the two guards is there: what the Go plugin built has none, and is to be accepted."""
        from cni_py.kernel import tc

        try:
            differs = super().check(kernel)
        except NftUnavailable:
            return None
        link = host_clients.interface_towards(kernel.host, parse_ip(self.address)) if differs else None
        if link is None:
            return None
        ours = kernel.nft.get(GUARDS, (ifname_key(link.name),)) or tc.guards_loopback(kernel.host, link.index)
        return differs if ours else None


def take_out_dead(
    rules: Rules, mappings: "Iterable[Mapping]", key: "Attachment", *, strangers: bool
) -> "list[Mapping]":
    """Raise PortInUse if another live container publishes one of these ports. Rules of a dead one are removed.

    A container without a record may be dead or alive: `strangers` says whether it counts. Returns the mappings removed.
    """
    gone: list[Mapping] = []
    for mapping, other, entry in iptables_rules.conflicting(rules, mappings, own_chain(key, PUBLISH)):
        network, container_id = masquerade_rules.label_in(entry)
        if container_id == key.container_id or not rules.has_chain(NAT, entry[-1]):
            continue
        known = records_of(network, container_id, PORTMAP)
        if known and conflicts.standing(known, key.container_id) == conflicts.FREE:
            gone += iptables_rules.withdraw(rules, entry[-1], lambda _: False)
        elif known or strangers:
            holder = f"{network}/{container_id}" if network else f"chain {entry[-1]}"
            raise conflicts.refusal(mapping, max(mapping.first, other.first), holder, ", by iptables")
    return gone


def take_out_unrecorded(rules: Rules, addresses: set[bytes], key: "Attachment") -> "list[Mapping]":
    """Take out what leads to the addresses of this attachment under the name of another of which nothing is recorded.

    Returns what went.
    """
    gone: list[Mapping] = []
    for entry in list(rules.chains.get((NAT, ENTRIES), ())):
        chain, (network, container_id) = entry[-1], masquerade_rules.label_in(entry)
        if not chain.startswith(PUBLISH) or chain == own_chain(key, PUBLISH):
            continue
        led = map(iptables_rules.mapping_of, rules.chains.get((NAT, chain), ()))
        here = any(mapping is not None and mapping.container_ip in addresses for mapping in led)
        if here and not (network and records_of(network, container_id, PORTMAP)):
            gone += iptables_rules.withdraw(rules, chain, lambda ip: ip not in addresses)
    return gone


def take_out_unrecorded_of(kernel: "Kernel", families: "Iterable[int]", addresses: set[bytes]) -> None:
    """take_out_unrecorded() alone."""
    take_out(kernel, families, lambda rules: take_out_unrecorded(rules, addresses, kernel.key))


def clear_ports(kernel: "Kernel", wanted: "Sequence[Mapping]") -> None:
    """Before nftables publishes: raise PortInUse if iptables publishes one of the ports for another live container.

    Rules of dead containers, and of those without a record that lead to the same addresses, are removed.
    """
    families = [family for family in concerned(kernel, ENTRIES) if any(one.family == family for one in wanted)]

    def decide(rules: Rules) -> "list[Mapping]":
        ours = [one for one in wanted if one.family == rules.family]
        dead = take_out_dead(rules, ours, kernel.key, strangers=False)
        return dead + take_out_unrecorded(rules, {one.container_ip for one in ours}, kernel.key)

    take_out(kernel, families, decide)


def take_out(kernel: "Kernel", families: "Iterable[int]", decide: "Callable[[Rules], list[Mapping]]") -> None:
    """Let `decide` note rules to be removed, remove them, and forget the UDP flows of the mappings that it returns. CniError."""
    gone: list[Mapping] = []
    if tool.change(families, (NAT,), lambda rules: gone.extend(decide(rules))):
        forget_flows(kernel, gone, added=False)


def withdraw(kernel: "Kernel", key: "Attachment", stays: "Callable[[bytes], bool]") -> None:
    """Take out an attachment's published ports, but for those of addresses that stay.

    CniError where they are seen and iptables is missing: a DEL that left them would let the port lead to whoever is next to
    have the address.
    """
    chain, obsolete = (own_chain(key, prefix) for prefix in (PUBLISH, OBSOLETE))

    def decide(rules: Rules) -> "list[Mapping]":
        gone = iptables_rules.withdraw(rules, chain, stays)
        rules.remove_chain(NAT, obsolete)
        return gone

    take_out(kernel, concerned(kernel, chain, obsolete, own=chain), decide)


def withdraw_of_container(kernel: "Kernel", key: "Attachment", goes: "Callable[[bytes], bool]") -> None:
    """Take out what a container publishes under other names of the network for addresses that go.

    The rules name no interface: what another interface of it has by our records stays.
    """

    def decide(rules: Rules) -> "list[Mapping]":
        gone: list[Mapping] = []
        for network, chain in chains_of_container(rules, key.container_id):
            other = naming.Attachment(network, key.container_id, key.ifname)
            siblings_of = Siblings(other, PORTMAP)
            if network != key.network and chain == own_chain(other, PUBLISH):
                gone += iptables_rules.withdraw(rules, chain, lambda ip: not goes(ip) or ip in siblings_of)  # noqa: B023
        return gone

    take_out(kernel, concerned(kernel, ENTRIES), decide)


def chains_of_container(rules: Rules, container_id: str) -> list[tuple[str, str]]:
    """The networks and chains of a container's published ports."""
    entries = list(rules.chains.get((NAT, ENTRIES), ()))
    labels = [(*masquerade_rules.label_in(entry), entry[-1]) for entry in entries]
    return list(dict.fromkeys((network, chain) for network, found, chain in labels if found == container_id))


def forget_ports(kernel: "Kernel") -> None:
    """DEL: whatever publishes for the attachment, record or not, the Go plugin's too."""
    withdraw(kernel, kernel.key, Siblings(kernel.key, PORTMAP).__contains__)


def sweep(kernel: "Kernel", network: str, valid: "Container[str]", plugin: str, *, ports: bool) -> None:
    """GC: the same for containers of the network that are not valid and of which we have no record, by their comments."""
    prefix, base = (PUBLISH, ENTRIES) if ports else (MASQUERADE, POSTROUTING)
    recorded = {key.container_id for key in records.keys_of(network, plugin)}

    def decide(rules: Rules) -> "list[Mapping]":
        gone: list[Mapping] = []
        for entry in list(rules.chains.get((NAT, base), ())):
            of, container_id = masquerade_rules.label_in(entry)
            chain = chain_name(prefix, network, container_id)
            if of != network or container_id in valid or container_id in recorded or entry[-1] != chain:
                continue
            if ports:
                gone += iptables_rules.withdraw(rules, chain, lambda _: False)
            else:
                rules.remove_chain(NAT, chain)
        return gone

    take_out(kernel, concerned(kernel, base), decide)


def publish(conf: "PortmapConf", addresses: "Sequence[Address]") -> "list[Op]":
    """What publishes the ports of portmap's configuration. InvalidNetworkConfig for what only nftables can do."""
    for entry in conf.entries:
        options = conf.options.get((entry.protocol.lower(), entry.host_port))
        if options is not None and (options.share or options.allow is not None):
            what = f"host port {entry.host_port}/{entry.protocol.lower()}"
            raise InvalidNetworkConfig(f"the iptables backend can neither share {what} nor choose its clients")
    if conf.mark_chain and not is_chain_name(conf.mark_chain):
        raise InvalidNetworkConfig(f'not the name of a chain: externalSetMarkChain "{conf.mark_chain}"')
    mappings(conf, addresses)  # what contradicts itself is refused with either backend
    ports = [port for entry in entries_of(conf) for port in ports_of(entry)]
    if not ports or not addresses:
        return []
    publication = PublishByIptables(
        ports=list(dict.fromkeys(map(str, ports))),
        addresses=list(map(str, addresses)),
        clients=("all" if conf.masq_all else "subnet") if conf.snat else "none",
        mark_bit=conf.mark_bit,
        mark_chain=conf.mark_chain,
        conditions4=iptables_rules.vetted(conf.words[4], "conditionsV4"),
        conditions6=iptables_rules.vetted(conf.words[6], "conditionsV6"),
    )
    return [publication]


def ports_of(entry: "Entry") -> "Iterator[iptables_rules.Port]":
    """What an entry means. A rule for several ports leaves them as they are: only then it serves a row of them."""
    host_ip = parse_ip(entry.host_ip) if entry.host_ip else None
    for one in [entry] if entry.host_port == entry.container_port else entry.apart():
        yield iptables_rules.Port(one.protocol.lower(), host_ip, one.host_port, one.container_port, one.count)
