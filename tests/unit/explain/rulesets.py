"""Rulesets and packets that the kernel and explain/netfilter.py are both asked about."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
Sent = tuple[str, str, int, socket.SocketKind]

FORWARDED: tuple[Sent, ...] = (
    ("client", "10.88.0.2", 80, TCP),
    ("client", "10.88.0.3", 81, UDP),
    ("client", "fd00:88::2", 80, TCP),
    ("web", "192.0.2.9", 443, TCP),
    ("web", "2001:db8::9", 53, UDP),
)
LOCAL: tuple[Sent, ...] = (
    ("client", "192.0.2.1", 80, TCP),
    ("client", "192.0.2.1", 8080, TCP),
    ("client", "192.0.2.1", 8081, UDP),
    ("client", "2001:db8::1", 8080, TCP),
    ("web", "192.0.2.1", 8080, TCP),
    ("router", "192.0.2.1", 8080, TCP),
    ("router", "127.0.0.1", 8080, TCP),
    ("router", "::1", 8080, TCP),
    ("router", "10.88.0.2", 80, UDP),
)
ALL = (*FORWARDED, *LOCAL)


@dataclass(frozen=True, slots=True)
class Case:
    """Rules, and what is sent."""

    name: str
    nft: str = ""
    iptables: str = ""
    ip6tables: str = ""
    legacy: str = ""
    sent: tuple[Sent, ...] = ALL
    unknown: int = 0  # packets that the rules do not decide for certain


def table(body: str, family: str = "inet", before: str = "") -> str:
    """A table whose chain `c` is at that hook."""
    return f"table {family} t {{\n{before}\n{body}\n}}\n"


def at(
    hook: str, rules: str, *, kind: str = "filter", priority: int = 0, policy: str = "accept", name: str = "c"
) -> str:
    """A base chain."""
    text = f"chain {name} {{ type {kind} hook {hook} priority {priority}; policy {policy};\n"
    return text + "\n".join(rules.split(";")) + "\n}\n"


def nft(name: str, rules: str, hook: str = "forward", family: str = "inet", before: str = "", **how: str | int) -> Case:
    """One chain."""
    kind, priority = str(how.get("kind", "filter")), int(how.get("priority", 0))
    policy, unknown = str(how.get("policy", "accept")), int(how.get("unknown", 0))
    return Case(
        name, table(at(hook, rules, kind=kind, priority=priority, policy=policy), family, before), unknown=unknown
    )


def dnat(name: str, rules: str, before: str = "", family: str = "inet", unknown: int = 0) -> Case:
    """The same rules for packets that come, and that the router sends."""
    chains = at("prerouting", rules, kind="nat", priority=-100, name="p") + at(
        "output", rules, kind="nat", priority=-100, name="o"
    )
    return Case(name, table(chains, family, before), unknown=unknown)


MATCHES = (
    nft("port", "tcp dport 80 drop"),
    nft("port set", "tcp dport { 80, 443 } drop"),
    nft("port range", "th dport 80-81 drop"),
    nft("port not", "tcp dport != 80 drop"),
    nft("port not in a set", "udp dport != { 53, 54-60 } drop"),
    nft("port compared", "tcp dport > 80 drop; udp dport <= 53 drop"),
    nft("address", "ip daddr 10.88.0.2 drop"),
    nft("prefix", "ip saddr 192.0.2.0/24 drop"),
    nft("not a prefix", "ip saddr != 192.0.2.0/24 drop"),
    nft("address of the other family", "ip6 daddr != fd00:88::3 drop"),
    nft("masked address", "ip daddr & 0.0.0.255 == 0.0.0.2 drop"),
    nft("prefixes in a set", "ip saddr { 192.0.0.0/16, 10.0.0.0/30 } drop"),
    nft("interfaces", 'iifname "lan0" oifname "cni0" drop'),
    nft("interface wildcard", 'iifname "lan*" drop'),
    nft("interface not a wildcard", 'iifname != "cni*" drop'),
    nft("interface set", 'iifname { "cni*", "x" } drop'),
    nft("interface index", "iif lan0 drop"),
    nft("interface kind", 'meta iifkind "bridge" drop'),
    nft("interface kind of what has none", 'meta iifkind != "veth" drop', "input"),
    nft("no interface yet", 'iifname != "lan0" drop', "output"),
    nft("no interface index", "iif != lan0 drop", "output"),
    nft("protocol family", "meta nfproto ipv6 drop"),
    nft("transport", "meta l4proto udp drop"),
    nft("transports", "meta l4proto { tcp, sctp } drop"),
    nft("ethertype", "meta protocol ip6 drop", "prerouting"),
    nft("source MAC", "ether saddr 02:00:00:00:00:09 drop", "prerouting"),
    nft("ct state new", "ct state new drop"),
    nft("ct state set", "ct state { established, related } accept; ct state invalid drop"),
    nft("ct state not", "ct state != new drop"),
    nft("ct state verdicts", "ct state vmap { established : accept, new : drop }"),
    nft("ct state in raw", "ct state invalid drop", "prerouting", priority=-300),
    nft("ct mark in raw", "ct mark 0 drop", "prerouting", priority=-300),
    nft("ct mark not in raw", "ct mark != 5 drop", "prerouting", priority=-300),
    nft("ct direction", "ct direction original tcp dport 80 drop"),
    nft("ct original", "ct original ip daddr 10.88.0.2 drop"),
    nft("TCP flags", "tcp flags syn / fin,syn,rst,ack drop"),
    nft("TCP flag", "tcp flags syn drop"),
    nft("TCP flags not", "tcp flags & (fin|syn|rst|ack) != syn drop"),
    nft("fragment", "ip frag-off & 0x1fff != 0 drop; meta l4proto udp drop"),
    nft("local address", "fib daddr type local drop", "prerouting"),
    nft("not a local address", "fib daddr type != local drop", "prerouting"),
    nft("local address at a link", "fib daddr . iif type local drop", "prerouting"),
    nft("reverse path", "fib saddr . iif oif missing drop; fib daddr oif missing drop", "prerouting"),
    nft("way back", "fib daddr . iif oif exists drop", "prerouting"),
    nft("way", 'fib daddr oifname "cni0" drop', "prerouting"),
    nft("packet type", "meta pkttype host drop", "prerouting"),
    nft("concatenation", "ip daddr . tcp dport { 10.88.0.2 . 80, 10.88.0.3 . 81 } drop"),
    nft("concatenated ranges", "ip saddr . th dport { 192.0.2.0/24 . 80-81, 10.88.0.0/16 . 400-500 } drop"),
    nft("not in a concatenation", 'iifname . oifname != { "lan0" . "cni0" } drop'),
    nft("policy", "tcp dport 80 accept", policy="drop"),
    nft("reject", "tcp dport 80 reject with tcp reset; reject"),
    nft("reject of a family, which the listing does not name", "meta nfproto ipv4 reject"),
    nft("reject of the other", "reject with icmpv6 no-route"),
    nft("reject of TCP", "reject with tcp reset", "input"),
)
SETS = "set s { type ipv4_addr; flags interval; elements = { 10.88.0.0/31, 10.88.0.3-10.88.0.9 } }"
VERDICTS = (
    nft("named set", "ip daddr @s drop", before=SETS),
    nft("not in a named set", "ip daddr != @s drop", before=SETS),
    nft("empty set", "ip daddr @e drop; ip daddr != @e tcp dport 80 drop", before="set e { type ipv4_addr; }"),
    nft("verdict map", "tcp dport vmap { 80 : drop, 443 : accept }"),
    nft(
        "verdict map of ranges and all else",
        "ip saddr vmap { 192.0.2.0/28 : continue, 10.0.0.0/8 : return, * : accept }; drop",
    ),
    nft(
        "jump and return",
        "jump d; tcp dport 80 drop",
        before="chain d { udp dport 81 drop; tcp dport 80 return; drop; }",
    ),
    nft("goto ends", "goto d; drop", before="chain d { udp dport 81 drop; }"),
    nft("goto in a jump", "jump d; drop", before="chain e { tcp dport 80 accept; }\nchain d { goto e; accept; }"),
    nft("return in a base chain", "tcp dport 80 return; accept", policy="drop"),
    nft(
        "jump by a map",
        "ip daddr vmap @m",
        before="chain d { tcp dport 80 drop; }\nmap m { type ipv4_addr : verdict; elements = { 10.88.0.2 : jump d } }",
    ),
    nft("counter and log alone", 'counter; log prefix "x"; tcp dport 80 counter drop'),
    Case(
        "accept ends its own chain alone",
        table(at("forward", "accept", priority=-10) + at("forward", "tcp dport 80 drop", priority=10, name="d")),
    ),
    Case(
        "drop is final",
        table(at("forward", "tcp dport 80 drop", priority=-10) + at("forward", "accept", priority=10, name="d")),
    ),
    Case(
        "tables in turn",
        table(at("forward", "tcp dport 80 drop", priority=5), "ip") + table(at("forward", "udp dport 53 drop"), "ip6"),
    ),
    nft("unknown in front of accept", "limit rate 1/second accept"),
    nft("unknown in front of log", 'limit rate 1/second log prefix "x"; meta l4proto udp drop'),
    nft("unknown in front of drop", "limit rate 1/second tcp dport 80 drop", unknown=2),
    nft("unknown length", "meta length 1-2000 udp dport 81 drop; meta length 5000-9000 tcp dport 80 drop", unknown=3),
    nft("random", "meta random < 5 udp dport 81 drop", unknown=1),
)
MARKS = (
    nft("mark", "meta mark set 0x10; meta mark 0x10 tcp dport 80 drop"),
    nft("mark bits", "meta mark set meta mark or 0x12; meta mark & 0xf == 2 meta mark set meta mark and 0xf0"),
    nft("mark xor", "meta mark set 0xff xor 0x0f; meta mark 0xf0 tcp dport 80 drop", "prerouting"),
    nft("mark by a map", "meta mark set tcp dport map { 80 : 1, 443 : 2 }; meta mark 1 drop"),
    nft("connection mark", "ct mark set 7; ct mark 7 tcp dport 80 drop", "prerouting", priority=-150),
    nft("connection mark saved", "meta mark set 9; ct mark set meta mark", "prerouting", priority=-150),
    nft("mark of a random number", "meta mark set numgen random mod 2; meta mark < 2 udp dport 81 drop", unknown=1),
    nft("destination rewritten", "ip daddr 10.88.0.2 tcp dport 80 tcp dport set 88", priority=-10),
    Case(
        "not tracked",
        table(
            at("prerouting", "tcp dport 8080 notrack", priority=-300, name="r")
            + at("prerouting", "tcp dport 8080 dnat ip to 10.88.0.2:80", kind="nat", priority=-100)
            + at("input", "ct state untracked drop", name="i")
        ),
    ),
    nft("not tracked too late", "notrack; ct state untracked drop", "prerouting"),
    replace(
        nft(
            "dynamic set",
            "tcp dport 80 add @d { ip saddr }; ip saddr @d drop",
            before="set d { type ipv4_addr; flags dynamic; size 100; }",
        ),
        sent=(("client", "10.88.0.2", 80, TCP),),
        unknown=1,
    ),
)
GUARDED = at("forward", "ct status dnat accept; ct status & (snat|dnat) == 0 tcp dport 80 drop", name="f")
NAT = (
    dnat("dnat", "tcp dport 8080 dnat ip to 10.88.0.2:80"),
    dnat("dnat without a port", "udp dport 8081 dnat ip to 10.88.0.3"),
    dnat(
        "dnat of both families",
        "meta nfproto ipv4 tcp dport 8080 dnat ip to 10.88.0.2:80; tcp dport 8080 dnat ip6 to [fd00:88::2]:80",
    ),
    dnat(
        "dnat of the other family goes on",
        "tcp dport 8080 dnat ip6 to [fd00:88::2]:80; tcp dport 8080 dnat ip to 10.88.0.3:81",
    ),
    dnat("dnat by a map", "dnat ip to tcp dport map { 8080 : 10.88.0.2, 80 : 10.88.0.3 }"),
    dnat(
        "dnat by a map with ports",
        "meta nfproto ipv4 dnat ip to meta l4proto . th dport map @m",
        before="map m { type inet_proto . inet_service : ipv4_addr . inet_service;"
        "elements = { tcp . 8080 : 10.88.0.2 . 80, udp . 8081 : 10.88.0.3 . 81 } }",
    ),
    dnat("dnat to networks", "dnat ip prefix to ip daddr map { 192.0.2.0/24 : 10.88.0.0/24 }"),
    dnat("port range that holds the port", "tcp dport 8080 dnat ip to 10.88.0.2:8000-8090"),
    dnat("to where it goes anyway", "ip daddr 10.88.0.2 dnat ip to 10.88.0.2; tcp dport 8080 dnat ip to 10.88.0.2:80"),
    dnat("redirect", "tcp dport 8080 redirect to :80"),
    dnat("redirect elsewhere", "udp dport 81 redirect to :8081; tcp dport 443 redirect"),
    dnat("first translation wins", "tcp dport 8080 dnat ip to 10.88.0.2:80; tcp dport 8080 dnat ip to 10.88.0.3:81"),
    dnat("drop in a nat chain", "tcp dport 8080 drop"),
    dnat(
        "one of several",
        "tcp dport 8080 dnat ip to numgen random mod 2 map { 0 : 10.88.0.2, 1 : 10.88.0.3 }",
        unknown=4,
    ),
    Case(
        "of equal priority the newest first",
        "".join(
            f"table ip {name} {{\n"
            + at("prerouting", f"meta l4proto tcp dnat to {to}:80", kind="nat", priority=-100)
            + "}\n"
            for name, to in (("z", "10.88.0.2"), ("a", "10.88.0.3"))
        ),
    ),
    Case(
        "a second nat chain is not asked after the first",
        table(
            at("prerouting", "tcp dport 8080 dnat ip to 10.88.0.2:80", kind="nat", priority=-110)
            + at(
                "prerouting",
                "meta nfproto ipv4 meta l4proto { tcp, udp } dnat ip to 10.88.0.3:81",
                kind="nat",
                priority=-100,
                name="d",
            )
        ),
    ),
    Case(
        "accept in a nat chain leads to the next",
        table(
            at("prerouting", "accept", kind="nat", priority=-110)
            + at("prerouting", "tcp dport 8080 dnat ip to 10.88.0.2:80", kind="nat", priority=-100, name="d")
        ),
    ),
    Case(
        "nat chains are called at their common place",
        table(
            at("prerouting", "tcp dport 8080 dnat ip to 10.88.0.2:80", kind="nat", priority=-10)
            + at("prerouting", "ip daddr 10.88.0.2 tcp dport 80 drop", priority=-50, name="d")
        ),
    ),
    Case(
        "translated before the filter",
        table(at("prerouting", "tcp dport { 80, 8080 } dnat ip to 10.88.0.2:80", kind="nat", priority=-100) + GUARDED),
    ),
    Case(
        "original destination",
        table(
            at("prerouting", "tcp dport 8080 dnat ip to 10.88.0.2:80", kind="nat", priority=-100)
            + at(
                "forward",
                "meta l4proto tcp ct original proto-dst 8080 drop; ct original ip daddr 192.0.2.1 drop",
                name="f",
            )
        ),
    ),
    nft("masquerade", 'oifname "lan0" masquerade', "postrouting", kind="nat", priority=100),
    nft("snat", 'ip saddr 10.88.0.0/24 oifname "lan0" snat ip to 192.0.2.77', "postrouting", kind="nat", priority=100),
    nft(
        "snat with a port",
        "meta nfproto ipv4 meta l4proto udp snat ip to 192.0.2.77:5000-65000",
        "postrouting",
        kind="nat",
        priority=100,
    ),
    nft("snat on input", "ip saddr 192.0.2.9 snat ip to 192.0.2.78", "input", kind="nat", priority=100),
    Case(
        "masqueraded as it was",
        table(
            at("postrouting", "masquerade", kind="nat", priority=100)
            + at("prerouting", "ct status & snat == 0 accept; ct status snat drop", priority=110, name="d")
        ),
        sent=(("client", "10.88.0.2", 80, TCP), ("router", "192.0.2.1", 8080, TCP)),
        unknown=1,
    ),
    Case(
        "after masquerade",
        table(
            at("postrouting", 'oifname "lan0" masquerade', kind="nat", priority=100)
            + at("postrouting", "ct status snat meta mark set 5", priority=110, name="d")
        ),
    ),
)


def frame(name: str, rules: str, hook: str = "forward", priority: int = 0) -> Case:
    """A chain of the family bridge."""
    return nft(name, rules, hook, "bridge", priority=priority)


FRAMES = (
    frame("ports", 'iifname "web0" oifname "db0" drop'),
    frame("port alone", 'oifname "web0" drop'),
    frame("no port yet", 'oifname != "db0" drop', "prerouting", -300),
    frame("MAC", "ether saddr 02:00:00:00:00:12 drop", "prerouting"),
    frame(
        "port and MAC",
        'iifname . ether saddr != { "web0" . 02:00:00:00:00:12, "db0" . 02:00:00:00:00:99 } drop',
        "prerouting",
    ),
    frame("addresses", "ip daddr 10.88.0.3 drop; ip6 daddr fd00:88::/64 drop"),
    frame("ethertype", "ether type ip6 drop"),
    frame("protocol", "meta protocol ip meta l4proto udp drop"),
    frame("transport", "tcp dport 80 drop"),
    frame("mark", "meta mark set 5; meta mark 5 tcp dport 80 drop"),
    frame("verdict map", "ip daddr vmap { 10.88.0.2 : drop, 10.88.0.3 : accept }; drop"),
)
