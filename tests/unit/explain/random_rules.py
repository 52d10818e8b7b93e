"""Random rulesets of what explain/netfilter.py evaluates, as nft's text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random

ADDRESSES = {
    "ip": ("10.88.0.2", "10.88.0.3", "192.0.2.1", "192.0.2.9"),
    "ip6": ("fd00:88::2", "2001:db8::1", "2001:db8::9"),
}
PREFIXES = {"ip": ("10.88.0.0/24", "192.0.2.0/28", "10.0.0.0/8"), "ip6": ("fd00::/8", "2001:db8::/64")}
SETS = {"ip": "@a4", "ip6": "@a6"}
PORTS = ("53", "80", "81", "443", "8080", "8081")
RANGES = ("80-100", "1000-9000")
LINKS = ('"lan0"', '"cni0"', '"lo"', '"cni*"', '"x"')
CONNTRACK = -200  # nat chains come later
PRIORITIES = (-310, -150, -110, -90, -5, 0, 10, 90, 110)
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
OTHERS = (
    *(
        "ct state new",
        "ct state != new",
        "ct state { new, untracked }",
        "ct state invalid",
        "ct state != { established, new }",
    ),
    *("ct status dnat", "ct status snat", "ct status & (snat|dnat) == 0", "ct direction original", "ct mark & 3 == 1"),
    *("meta nfproto ipv4", "meta nfproto != ipv4", "meta l4proto != tcp"),
    *("fib daddr type local", "fib daddr type != local", "fib saddr type local"),
    *('meta iifkind "veth"', 'meta oifkind != "bridge"', 'iif "lan0"', 'oif != "cni0"'),
    *(
        "tcp flags syn",
        "tcp flags & (syn|ack) == syn",
        "tcp flags != syn / fin,syn,rst,ack",
        "ip frag-off & 0x1fff == 0",
    ),
    *(
        "meta l4proto tcp ct original proto-dst 8080",
        "ct original ip daddr 192.0.2.1",
        "ether saddr 02:00:00:00:00:09",
    ),
    *("limit rate 5/second", "meta length 1-3000", "ip saddr & 255.255.0.255 == 10.88.0.2", "meta pkttype host"),
)
WAYS = ("fib saddr . iif oif missing", "fib daddr . iif oif exists", "fib daddr oif missing")
MARKS = (
    *(
        "meta mark set 0",
        "meta mark set 1",
        "meta mark set 4",
        "meta mark set meta mark or 1",
        "meta mark set meta mark and 4",
    ),
    *(
        "meta mark set meta mark xor 5",
        "meta mark set ct mark",
        "ct mark set 1",
        "ct mark set 6",
        "ct mark set meta mark",
    ),
    *(
        "meta mark set tcp dport map { 80 : 1, 8080 : 4 }",
        "meta mark set numgen random mod 4",
        "counter",
        'log prefix "x"',
    ),
    'meta mark set iifname map { "lan0" : 6, "cni0" : 1 }',
)
DNAT = (
    *(
        "meta nfproto ipv4 meta l4proto tcp dnat ip to 10.88.0.2:80",
        "meta nfproto ipv4 meta l4proto udp dnat ip to 10.88.0.3:8081",
    ),
    *(
        "dnat ip to 10.88.0.3",
        "dnat ip6 to fd00:88::2",
        "meta l4proto tcp redirect to :80",
        "meta l4proto udp redirect to :8081",
    ),
    *(
        "dnat ip to tcp dport map { 8080 : 10.88.0.2, 80 : 10.88.0.3 }",
        "meta l4proto tcp dnat ip to 10.88.0.2:8000-8090",
    ),
    "meta nfproto ipv4 dnat ip to tcp dport map { 8080 : 10.88.0.2 . 80, 443 : 10.88.0.3 . 81 }",
)
SNAT = ("masquerade", "meta nfproto ipv4 snat ip to 192.0.2.77", "snat ip6 to 2001:db8::77")
LEADS = {"b": ("c1", "c2", "c3"), "c1": ("c2", "c3"), "c2": ("c3",), "c3": ()}  # no chain leads to itself


class Maker:
    """Makes rules by chance."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.hook = ""  # of the chain that is being made; "" where several lead to it

    def one(self, *values: str) -> str:
        return self.random.choice(values)

    def negation(self) -> str:
        return self.one("", "", "!= ")

    def some(self, values: tuple[str, ...]) -> str:
        """A set of some of them."""
        return "{ " + ", ".join(self.random.sample(values, self.random.randint(1, 3))) + " }"

    def address(self) -> str:
        ip = self.one("ip", "ip", "ip6")
        value = self.one(*ADDRESSES[ip], *PREFIXES[ip], self.some(ADDRESSES[ip]), SETS[ip])
        return f"{ip} {self.one('saddr', 'daddr')} {self.negation()}{value}"

    def port(self) -> str:
        protocol = self.one("tcp", "udp", "meta l4proto { tcp, udp } th")
        return f"{protocol} dport {self.negation()}{self.one(*PORTS, *RANGES, self.some(PORTS), '> 100')}".replace(
            "!= >", ">"
        )

    def concatenation(self) -> str:
        ip, protocol = self.one("ip", "ip6"), self.one("tcp", "udp")
        values = self.random.choice((self.random.sample(ADDRESSES[ip], 2), [self.one(*PREFIXES[ip])]))
        members = {f"{value} . {self.one(*PORTS)}" for value in values}
        return f"{ip} daddr . {protocol} dport {self.negation()}{{ {', '.join(sorted(members))} }}"

    def link(self) -> str:
        return f"{self.one('iifname', 'oifname')} {self.negation()}{self.one(*LINKS, self.some(LINKS[:3]))}"

    def mark(self) -> str:
        field = self.one("meta mark", "meta mark & 0xf", "meta mark & 5", "ct mark")
        return f"{field} {self.one('', '!= ', '> ')}{self.one('0', '1', '4', '5')}"

    def match(self) -> str:
        kinds: tuple[Callable[[], str], ...] = (self.address, self.port, self.concatenation, self.link, self.mark)
        others = (*OTHERS, *WAYS) if self.hook == "prerouting" else OTHERS  # elsewhere the kernel refuses these
        return self.one(*others) if self.random.random() < 0.4 else self.random.choice(kinds)()

    def verdict(self, leads: tuple[str, ...]) -> str:
        plain = (
            "accept",
            "accept",
            "drop",
            "return",
            "reject" if self.hook in ("input", "forward", "output") else "drop",
        )
        return self.one(*plain, *(f"{how} {to}" for to in leads for how in ("jump", "jump", "goto")))

    def vmap(self, leads: tuple[str, ...]) -> str:
        verdicts = [self.verdict(leads).replace("reject", "continue") for _ in range(3)]
        keys = self.random.sample(PORTS, 2)
        members = [f"{key} : {verdict}" for key, verdict in zip(keys, verdicts, strict=False)]
        if self.random.random() < 0.3:
            return f"ip daddr vmap {{ 10.88.0.0/24 : {verdicts[0]}, 192.0.2.1 : {verdicts[1]} }}"
        return f"{self.one('tcp', 'udp')} dport vmap {{ {', '.join(members)} }}"

    def rule(self, leads: tuple[str, ...], actions: tuple[str, ...]) -> str:
        matches = " ".join(self.match() for _ in range(self.random.choice((0, 1, 1, 2, 2, 3))))
        chance = self.random.random()
        if actions and chance < 0.5:
            return f"{matches} {self.one(*actions)}"
        if chance < 0.6:
            return f"{matches} {self.vmap(leads)}"
        return f"{matches} {self.one(*MARKS) if chance < 0.75 else self.verdict(leads)}"

    def chain(
        self, name: str, head: str = "", leads: tuple[str, ...] = (), actions: tuple[str, ...] = ()
    ) -> Iterator[str]:
        yield f"  chain {name} {{"
        yield from (head,) if head else ()
        yield from (f"    {self.rule(leads, actions)}" for _ in range(self.random.randint(1, 6)))
        yield "  }"

    def base_chain(self, name: str) -> Iterator[str]:
        hook = self.hook = self.one(*HOOKS)
        priority: int = self.random.choice(PRIORITIES)
        if priority > CONNTRACK and hook != "forward" and self.random.random() < 0.5:
            head = f"    type nat hook {hook} priority {priority}; policy accept;"
            actions = DNAT if hook in ("prerouting", "output") else SNAT if hook == "postrouting" else SNAT[1:]
            yield from self.chain(name, head, ("c3",), actions)
            return
        raw = hook in ("prerouting", "output") and self.random.random() < 0.2
        head = f"    type filter hook {hook} priority {-300 if raw else priority};"
        policy = f" policy {self.one('accept', 'accept', 'accept', 'drop')};"
        yield from self.chain(name, head + policy, LEADS["b"], ("notrack",) if raw else ())

    def table(self, name: str) -> Iterator[str]:
        yield f"table inet {name} {{"
        yield "  set a4 { type ipv4_addr; flags interval; elements = { 10.88.0.0/31, 192.0.2.0/28 } }"
        yield "  set a6 { type ipv6_addr; elements = { fd00:88::2 } }"
        self.hook = ""
        for chain in ("c3", "c2", "c1"):
            yield from self.chain(chain, leads=LEADS[chain])
        for number in range(self.random.randint(2, 5)):
            yield from self.base_chain(f"b{number}")
        yield "}"


def ruleset(random: Random) -> list[str]:
    """Lines of two tables. Rules that nft refuses, for they ask for two protocols at once, are left out."""
    maker = Maker(random)
    lines = [*maker.table("t1"), *maker.table("t2")]
    return [line for line in lines if not is_rule(line) or not is_contradictory(line)]


def is_contradictory(rule: str) -> bool:
    """Whether it asks for TCP and UDP, or for IPv4 and IPv6: nft refuses that, or lists the rule without the contradiction."""
    transports = set(re.findall(r"\b(tcp|udp|th) (?:dport|flags)|meta l4proto (tcp|udp) [cdr]", rule))
    asked = rule.replace("meta nfproto ipv4", "ip saddr")
    families = set(re.findall(r"\b(ip6?) (?:saddr|daddr|frag)|nat (ip6?) to", asked))
    return len({one or other for one, other in transports}) > 1 or len({one or other for one, other in families}) > 1


def is_rule(line: str) -> bool:
    """Whether a line may be left out."""
    return line.startswith("    ") and not line.startswith("    type ")


def smallest(lines: list[str], fails: Callable[[list[str]], bool]) -> list[str]:
    """The lines without the rules that make no difference to the failure."""
    for line in [one for one in lines if is_rule(one)]:
        shorter = [one for one in lines if one is not line]
        if fails(shorter):
            lines = shorter
    return lines
