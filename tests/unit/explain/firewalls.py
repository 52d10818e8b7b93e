"""Rulesets as the programs make them that are on hosts of containers, and what iptables can ask for."""

from __future__ import annotations

from pathlib import Path

from cni_py.addr import parse_address
from cni_py.nftables import ruleset
from tests.unit.explain.rulesets import ALL, TCP, Case, Sent

FOLDER = Path(__file__).parent / "programs"


def of(name: str) -> str:
    """A ruleset as a program makes it."""
    return (FOLDER / name).read_text()


DOCKER = of("docker.iptables")
SUBNET = parse_address("10.88.0.2/24")
OURS = "".join(
    (
        ruleset.table(bridge=False),
        ruleset.policy_chain(),
        ruleset.direct_access_chain(),
        ruleset.inside_chain(SUBNET),
        ruleset.outside_chain(SUBNET),
        ruleset.conditions_chain(4, "4_x", "ip saddr 198.51.100.0/24"),
        ruleset.shared_chain(4, "4_y", ""),
        """
add element inet cni_py any4 { tcp . 8080 comment "0123456789abcdef net/web/eth0" : 10.88.0.2 . 80 }
add element inet cni_py specific4 { 192.0.2.1 . udp . 8081 : 10.88.0.3 . 81 }
add element inet cni_py any6 { tcp . 8080 : fd00:88::2 . 80 }
add element inet cni_py range4_tcp { 9000-9100 : 10.88.0.2 }
add element inet cni_py conditional_any4 { tcp . 80 : jump conditions4_x, tcp . 90 : jump shared4_y }
add element inet cni_py any4_x { tcp . 80 : 10.88.0.2 . 80 }
add element inet cni_py shared_any4_y { 0 . tcp . 90 : 10.88.0.2 . 80, 1 . tcp . 90 : 10.88.0.3 . 80 }
add element inet cni_py hairpin4 { 10.88.0.2 : jump inside_10.88.0.0_24 }
add element inet cni_py masquerade4 { 10.88.0.2 : jump outside_10.88.0.0_24 }
add element inet cni_py local_links { "cni0" }
add element inet cni_py guarded4 { 10.88.0.3 }
add element inet cni_py policed { "cni0", "cni1" }
""",
    )
)
OURS_SENT: tuple[Sent, ...] = (
    *ALL,
    ("client", "192.0.2.1", 9044, TCP),
    ("client", "192.0.2.1", 90, TCP),
    ("web", "127.0.0.1", 80, TCP),
    ("client", "10.88.0.3", 99, TCP),
)
OUR_BRIDGE = (
    ruleset.table(bridge=True)
    + """
add element bridge cni_py spoof_checked { "web0", "db0" }
add element bridge cni_py spoof_allowed { "web0" . 02:00:00:00:00:12 }
add element bridge cni_py isolated { "web0" }
"""
)


def chain(rules: str, name: str = "FORWARD", table: str = "filter") -> str:
    """iptables-restore's text for rules of one chain."""
    lines = "\n".join(f"-A {name} {rule.strip()}" for rule in rules.split(";"))
    return f"*{table}\n{lines}\nCOMMIT\n"


def iptables(name: str, rules: str, at: str = "FORWARD", table: str = "filter", unknown: int = 0) -> tuple[Case, ...]:
    """The same rules for iptables-nft, and for iptables-legacy."""
    text = chain(rules, at, table)
    return (
        Case(f"{name} (nft)", iptables=text, unknown=unknown),
        Case(f"{name} (legacy)", legacy=text, unknown=unknown),
    )


IPTABLES = (
    *iptables("port", "-p tcp --dport 80 -j DROP; -p udp ! --dport 81 -j DROP"),
    *iptables(
        "multiport", "-p tcp -m multiport --dports 80,443 -j DROP; -p udp -m multiport ! --dports 50:60,81 -j DROP"
    ),
    *iptables("addresses", "-s 192.0.2.0/24 -d 10.88.0.2 -j DROP; ! -s 192.0.2.0/24 -p tcp -j REJECT"),
    *iptables("mask", "-d 10.0.0.2/255.0.0.255 -j DROP"),
    *iptables("interfaces", "-i lan+ ! -o lan0 -p tcp -j DROP; ! -i lan0 -j DROP"),
    *iptables("states", "-m conntrack --ctstate NEW,RELATED -p tcp -j DROP; -m state ! --state NEW -j DROP"),
    *iptables(
        "states and translation",
        "-m conntrack ! --ctstate DNAT -p tcp -j DROP; -m conntrack --ctstate SNAT,ESTABLISHED -j DROP",
    ),
    *iptables(
        "original destination",
        "-m conntrack --ctorigdst 10.88.0.2 --ctorigdstport 80 -p tcp -j DROP; -m conntrack --ctdir REPLY -j DROP",
    ),
    *iptables(
        "local addresses",
        "-m addrtype --dst-type LOCAL -p tcp --dport 8080 -j DROP; -m addrtype ! --dst-type LOCAL -p udp -j DROP",
        "PREROUTING",
        "mangle",
    ),
    *iptables(
        "marks",
        "-j MARK --set-mark 0x12; -j MARK --or-mark 0x100; -j MARK --and-mark 0x1f2; -m mark --mark 0x2/0xf -p tcp -j DROP",
    ),
    *iptables(
        "connection marks",
        "-j MARK --set-mark 0x12; -j CONNMARK --save-mark; -j MARK --set-mark 1; -j CONNMARK --set-xmark 0xf0/0xf0; "
        "-j CONNMARK --restore-mark --nfmask 0xf0 --ctmask 0xf0",
        "PREROUTING",
        "mangle",
    ),
    *iptables("flags", "-p tcp --syn -j DROP; -p tcp ! --syn -j DROP; -p udp -j DROP"),
    *iptables(
        "range",
        "-m iprange --dst-range 10.88.0.1-10.88.0.2 -j DROP; -m iprange ! --src-range 10.0.0.0-193.0.0.0 -j DROP",
    ),
    *iptables("MAC", "-m mac --mac-source 02:00:00:00:00:09 -p tcp -j DROP"),
    *iptables("log and clamp", '-j LOG --log-prefix "a b"; -p tcp --syn -j TCPMSS --clamp-mss-to-pmtu; -p udp -j DROP'),
    *iptables("limit", "-m limit --limit 1/s -j ACCEPT; -p udp -j DROP", unknown=1),
    *iptables("comment", '-m comment --comment "-j DROP ! x" -p udp -j DROP'),
    *iptables("reverse path", "-m rpfilter --invert -j DROP", "PREROUTING", "raw"),
    *iptables("not tracked", "-p tcp --dport 8080 -j CT --notrack", "PREROUTING", "raw"),
    *iptables(
        "redirect",
        "-p tcp --dport 8080 -j REDIRECT --to-ports 80; -p udp -j DNAT --to-destination 10.88.0.2",
        "PREROUTING",
        "nat",
    ),
    *iptables("snat", "-o lan0 -p tcp -j SNAT --to-source 192.0.2.70-192.0.2.70:1024-65535", "POSTROUTING", "nat"),
    *iptables("fragments", "-f -j DROP; ! -f -p udp -j DROP"),
    *iptables("packet type", "-m pkttype --pkt-type unicast -p udp -j DROP"),
    Case(
        "chains",
        iptables="*filter\n:FORWARD DROP [0:0]\n:A - [0:0]\n:B - [0:0]\n-A FORWARD -p udp -g B\n-A FORWARD -j A\n"
        "-A FORWARD -d 10.88.0.2 -j ACCEPT\n-A A -s 10.88.0.0/24 -j RETURN\n-A A -d 10.88.0.3 -j DROP\n-A B -j A\nCOMMIT\n",
    ),
    Case(
        "iptables drops, nft accepts",
        nft="table inet t { chain c { type filter hook forward priority -1; accept; }\n }",
        iptables=chain("-p tcp -j DROP"),
    ),
    Case("both iptables", iptables=chain("-p tcp -j ACCEPT"), legacy=chain("-p tcp --dport 80 -j DROP")),
    Case("IPv6", ip6tables=chain("-p tcp --dport 80 -j DROP; -s fd00:88::/64 -j REJECT")),
    Case(
        "IPv6 translation",
        ip6tables=chain(
            "-p tcp --dport 8080 -m addrtype --dst-type LOCAL -j DNAT --to-destination [fd00:88::2]:80",
            "PREROUTING",
            "nat",
        ),
    ),
    Case(
        "a table of iptables with a rule that only nft can make",
        nft="table ip filter { chain FORWARD { type filter hook forward priority 0; tcp dport { 80, 443 } drop; }\n }",
        iptables="*nat\nCOMMIT\n",
    ),
)
PROGRAMS = (
    Case("cni-py", nft=OURS, sent=OURS_SENT, unknown=1),
    Case("cni-py beside Docker", nft=OURS, iptables=DOCKER, unknown=0),
    Case("Docker", iptables=DOCKER),
    Case("Docker (legacy)", legacy=DOCKER),
    Case("ufw", iptables=of("ufw.iptables")),
    Case("firewalld", nft=of("firewalld.nft")),
    Case("kube-proxy", iptables=of("kube-proxy.iptables"), unknown=1),
    Case("kube-proxy (legacy)", legacy=of("kube-proxy.iptables"), unknown=1),
    Case("kube-proxy (nftables)", nft=of("kube-proxy.nft")),
    Case("the Go plugins", iptables=of("go-plugins.iptables")),
    Case("the Go plugins (nftables)", nft=of("go-plugins.nft")),
    Case(
        "Docker and firewalld beside the Go plugins",
        iptables=of("go-plugins.iptables"),
        nft=of("firewalld.nft"),
        legacy=DOCKER.replace("FORWARD DROP", "FORWARD ACCEPT"),
    ),
)
BRIDGED = (
    Case("physdev in", iptables=chain("-m physdev --physdev-in web0 -j DROP")),
    Case("physdev out", iptables=chain("-m physdev --physdev-is-bridged ! --physdev-out web+ -j DROP")),
    Case("not bridged", iptables=chain("-m physdev ! --physdev-is-bridged -j DROP")),
    Case("the bridge's name", iptables=chain("-i cni0 -o cni0 -p tcp -j DROP")),
    Case("FORWARD drops", iptables="*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"),
    Case("raw", iptables=chain("-p udp -j DROP", "PREROUTING", "raw")),
)
