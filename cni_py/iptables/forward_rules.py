"""The firewall plugin's rules in iptables' filter table, by value: what goes into a reading of it, and what comes out.

    FORWARD ─ CNI-ISOLATION-STAGE-1 ─ came by a published port? ─→ go on        same-bridge, isolated
            │                       └ from one bridge to another? CNI-ISOLATION-STAGE-2 ─→ drop
            └ CNI-FORWARD ─ CNI-ADMIN (the administrator's own rules), then each container's addresses ─→ accept

Names, comments and order are the Go plugin's, whose rules an administrator's scripts know. Beyond them: published ports pass,
both where FORWARD drops by policy and from other bridges; and chains that serve nobody are removed.
"""

from cni_py.addr import Address, parse_address
from cni_py.iptables.names import ACCEPTED, FORWARD, STAGE_1
from cni_py.kernel.xtables import FILTER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.iptables.tool import Rule, Rules

STAGE_2 = "CNI-ISOLATION-STAGE-2"
COMMENT = "CNI firewall plugin rules"
SHARED = f"{COMMENT} (ingressPolicy: same-bridge|isolated)"


def said(comment: str) -> "Rule":
    """The words of a comment."""
    return ("-m", "comment", "--comment", comment)


def of_policy(policy: str) -> "Rule":
    """The comment of a rule that one policy makes."""
    return said(f"{COMMENT} (ingressPolicy: {policy})")


TO_ACCEPTED = (*said(COMMENT), "-j", ACCEPTED)
TO_STAGE_1 = (*said(SHARED), "-j", STAGE_1)
BACK = (*said(SHARED), "-j", "RETURN")
PUBLISHED = ("-m", "conntrack", "--ctstate", "DNAT", *said(SHARED), "-j", "RETURN")


def to_admin(chain: str) -> "Rule":
    """CNI-FORWARD's first rule."""
    return (*said("CNI firewall plugin admin overrides"), "-j", chain)


def accepted(address: Address) -> "list[Rule]":
    """What a container may send, and the answers to it."""
    answers = ("-d", str(address.host()), "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")
    return [answers, ("-s", str(address.host()), "-j", "ACCEPT")]


def published(address: Address) -> "Rule":
    """New connections to a container's published ports: of no use where FORWARD accepts by policy."""
    return ("-d", str(address.host()), "-m", "conntrack", "--ctstate", "DNAT", "-j", "ACCEPT")


def accept(rules: "Rules", addresses: "Iterable[Address]", admin_chain: str) -> None:
    """Let FORWARD accept what the addresses send and are sent."""
    rules.ensure_chain(FILTER, ACCEPTED)
    rules.ensure_chain(FILTER, admin_chain)
    rules.ensure(FILTER, FORWARD, TO_ACCEPTED, first=True)
    rules.ensure(FILTER, ACCEPTED, to_admin(admin_chain), first=True)
    for address in addresses:
        for rule in accepted(address):
            rules.ensure(FILTER, ACCEPTED, rule)
        if rules.policies.get((FILTER, FORWARD)) == "DROP":
            rules.ensure(FILTER, ACCEPTED, published(address))


def is_accepted(rules: "Rules", address: Address) -> bool:
    """Whether FORWARD accepts what an address sends and is sent."""
    needed = accepted(address)
    if rules.policies.get((FILTER, FORWARD)) == "DROP":
        needed.append(published(address))
    return rules.has(FILTER, FORWARD, TO_ACCEPTED) and all(rules.has(FILTER, ACCEPTED, rule) for rule in needed)


def refuse(rules: "Rules", addresses: "Iterable[Address]", admin_chain: str) -> None:
    """Take the addresses out, and the chains with the last; the administrator's chain stays when it has rules."""
    for address in addresses:
        gone = (*accepted(address), published(address))
        rules.remove(FILTER, ACCEPTED, gone.__contains__)
    left = rules.chains.get((FILTER, ACCEPTED))
    if left is None or any(rule[-1] == "ACCEPT" for rule in left):
        return
    rules.remove_chain(FILTER, ACCEPTED)
    if not rules.chains.get((FILTER, admin_chain)) and not rules.leads_to(FILTER, admin_chain):
        rules.remove_chain(FILTER, admin_chain)


def bare(rule: "Rule") -> "Rule":
    """The rule without its comment: older Go plugins say "same-bridge" where newer ones, and we, say both policies."""
    if "--comment" not in rule:
        return rule
    at = rule.index("--comment")
    return (*rule[: at - 2], *rule[at + 2 :])


def has_like(rules: "Rules", chain: str, rule: "Rule") -> bool:
    """Whether the chain has the rule, whatever its comment."""
    return any(bare(there) == bare(rule) for there in rules.chains.get((FILTER, chain), ()))


def ensure_like(rules: "Rules", chain: str, rule: "Rule", *, first: bool = False) -> None:
    """Put it in unless it is there, whatever its comment."""
    if not has_like(rules, chain, rule):
        rules.ensure(FILTER, chain, rule, first=first)


def bridge_rules(bridge: str, policy: str) -> "list[Rule]":
    """STAGE-1's rules for a bridge, in their order."""
    away = ("-i", bridge, "!", "-o", bridge, *of_policy(policy), "-j", STAGE_2)
    within = ("-i", bridge, "-o", bridge, *of_policy(policy), "-j", "DROP")
    return [within, away] if policy == "isolated" else [away]


def to_bridge(bridge: str) -> "Rule":
    """STAGE-2's rule for a bridge."""
    return ("-o", bridge, *said(SHARED), "-j", "DROP")


def police(rules: "Rules", bridge: str, policy: str) -> None:
    """Let nothing pass from the bridge to another one of these, nor (isolated) back to itself, but by published ports."""
    for stage in (STAGE_1, STAGE_2):
        rules.ensure_chain(FILTER, stage)
    ensure_like(rules, FORWARD, TO_STAGE_1, first=True)
    for rule in reversed(bridge_rules(bridge, policy)):
        ensure_like(rules, STAGE_1, rule, first=True)
    if rules.chains[FILTER, STAGE_1][0] != PUBLISHED:
        rules.remove(FILTER, STAGE_1, PUBLISHED.__eq__)
        rules.ensure(FILTER, STAGE_1, PUBLISHED, first=True)
    ensure_like(rules, STAGE_1, BACK)
    ensure_like(rules, STAGE_2, to_bridge(bridge), first=True)
    ensure_like(rules, STAGE_2, BACK)


def is_policed(rules: "Rules", bridge: str, policy: str) -> bool:
    """Whether the policy holds for the bridge."""
    needed = [(STAGE_1, rule) for rule in bridge_rules(bridge, policy)]
    needed += [(FORWARD, TO_STAGE_1), (STAGE_2, to_bridge(bridge))]
    return all(has_like(rules, chain, rule) for chain, rule in needed)


def release(rules: "Rules", bridge: str, policy: str, networks: "Iterable[Address]") -> None:
    """Take out the bridge's rules, and the chains with the last bridge's.

    Not while CNI-FORWARD still has an address in one of `networks`, the bridge's: that is another container, ours or not.
    """
    if any(is_inhabited(rules, network) for network in networks):
        return
    gone = [bare(rule) for rule in (*bridge_rules(bridge, policy), to_bridge(bridge))]
    rules.remove(FILTER, STAGE_1, lambda rule: bare(rule) in gone)
    if any(bridge in rule for rule in rules.chains.get((FILTER, STAGE_1), ())):
        return  # the other policy's
    rules.remove(FILTER, STAGE_2, lambda rule: bare(rule) in gone)
    if all(bare(rule) == bare(BACK) for rule in rules.chains.get((FILTER, STAGE_2), ())):
        rules.remove_chain(FILTER, STAGE_1)
        rules.remove_chain(FILTER, STAGE_2)


def is_inhabited(rules: "Rules", network: Address) -> bool:
    """Whether CNI-FORWARD accepts an address of the network."""
    for rule in rules.chains.get((FILTER, ACCEPTED), ()):
        if rule[:1] == ("-s",) and rule[2:] == ("-j", "ACCEPT"):
            address = parse_address(rule[1])
            if Address(address.packed, network.prefixlen).network() == network.network():
                return True
    return False
