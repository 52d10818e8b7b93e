"""The rules in iptables' nat table that masquerade what a container sends, as values, and how they meet those of ports.

    PREROUTING, OUTPUT ─ to an address of the host? ─ CNI-HOSTPORT-DNAT ─ a published port? ─ CNI-DN-<attachment>
    CNI-DN-<attachment> ─ the answer would not come back? CNI-HOSTPORT-SETMARK ─ DNAT to the container
    POSTROUTING ─ CNI-HOSTPORT-MASQ: marked? masquerade
                └ CNI-<attachment>, for each address: to its own subnet? accept ─ not multicast? masquerade

Names, comments and order are the Go plugins', whose rules an administrator's scripts know, in the form that iptables prints.
A chain is named by network and containerID alone, so that two interfaces of a container in one network share it: its
rules are told apart by the address they speak of.
"""

from cni_py.addr import Address, parse_address
from cni_py.iptables.names import POSTROUTING
from cni_py.iptables.tool import COMMENT_MAX
from cni_py.kernel.xtables import NAT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cni_py.iptables.tool import Rule, Rules

MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


def label(network: str, container_id: str) -> str:
    """Whose a rule is, as its comment says it."""
    return f'name: "{network}" id: "{container_id}"'


def said(comment: str) -> "Rule":
    """The words of a comment, cut to what the kernel keeps."""
    text = comment if len(comment) <= COMMENT_MAX else comment[: COMMENT_MAX - 3] + "..."
    return ("-m", "comment", "--comment", text)


def label_in(rule: "Rule") -> tuple[str, str]:
    """Network and containerID that a rule's comment names; empty texts when it names none, or has been cut."""
    comment = value_of(rule, "--comment")
    head, found, rest = comment.partition('name: "')
    network, middle, last = rest.partition('" id: "')
    if head not in ("", "dnat ") or not found or not middle or not last.endswith('"'):
        return "", ""
    return network, last[:-1]


def value_of(rule: "Rule", option: str) -> str:
    """The word after an option; "" without it."""
    return rule[rule.index(option) + 1] if option in rule[:-1] else ""


# Masquerading


def masqueraded(address: Address, chain: str, comment: str) -> "tuple[Rule, Rule, Rule]":
    """What leads into an attachment's chain, and the chain's two rules for an address."""
    words = said(comment)
    return (
        ("-s", str(address.host()), *words, "-j", chain),
        (*in_subnet("-d", address), *words, "-j", "ACCEPT"),
        ("!", "-d", MULTICAST[address.family], *words, "-j", "MASQUERADE"),
    )


def in_subnet(option: str, address: Address) -> "Rule":
    """What matches the address's subnet; any address needs no words."""
    return (option, str(address.network())) if address.prefixlen else ()


def masquerade(rules: "Rules", chain: str, comment: str, addresses: "Iterable[Address]") -> None:
    """Let what the addresses send out of their subnets leave with the host's address."""
    rules.ensure_chain(NAT, chain)
    found = [masqueraded(address, chain, comment) for address in addresses]
    for _, inside, outside in found:
        there = rules.chains[NAT, chain]
        # The rule that masquerades must stay behind all that accept, also that of an address that comes later
        if inside not in there and outside in there:
            rules.fill(NAT, chain, [*(rule for rule in there if rule != outside), inside, outside])
        rules.ensure(NAT, chain, inside)
        rules.ensure(NAT, chain, outside)
    for jump, _, _ in found:
        rules.ensure(NAT, POSTROUTING, jump)


def is_masqueraded(rules: "Rules", chain: str, comment: str, address: Address) -> bool:
    """Whether an address's rules are there."""
    jump, *others = masqueraded(address, chain, comment)
    return rules.has(NAT, POSTROUTING, jump) and all(rules.has(NAT, chain, rule) for rule in others)


def unmasquerade(rules: "Rules", chain: str, stays: "Callable[[bytes], bool]") -> None:
    """Take out the chain and what leads there, but for the addresses that stay."""
    leading = [rule for rule in rules.chains.get((NAT, POSTROUTING), ()) if rule[-1] == chain]
    kept = [address for rule in leading if (address := source_of(rule)) is not None and stays(address.packed)]
    if not kept:
        rules.remove_chain(NAT, chain)
        return
    rules.remove(NAT, POSTROUTING, lambda rule: rule[-1] == chain and source_of(rule) not in kept)
    rules.remove(NAT, chain, lambda rule: rule[-1] == "ACCEPT" and not any(accepts(rule, each) for each in kept))


def accepts(rule: "Rule", address: Address) -> bool:
    """Whether a rule of an attachment's chain is that of the address's subnet."""
    subnet = value_of(rule, "-d")
    return not subnet or str(Address(address.packed, parse_address(subnet).prefixlen).network()) == subnet


def source_of(rule: "Rule") -> Address | None:
    """The source address that a rule asks for."""
    try:
        return parse_address(value_of(rule, "-s"))
    except ValueError:
        return None
