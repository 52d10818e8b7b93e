"""What is damaged in the lab of explain_scene.py, one thing at a time: how, whom it hits, and what `explain` must name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.commands.explain_scene import Scene


@dataclass(frozen=True)
class Case:
    """A damage: scripts that make and undo it, the code of the hop that it breaks, and the clients that it hits."""

    name: str
    code: str
    hits: str
    damage: str = ""
    undo: str = ""
    port: str = "8080"
    node: str = "host"
    mended: bool = False  # what explain says does mend it
    restore: bool = False  # `cni-py restore` undoes it
    before: Callable[[Scene], None] | None = None
    after: Callable[[Scene], None] | None = None
    server: str = "a1"
    unsure: bool = False  # which clients are served depends on chance: explain says that it cannot say
    verdict: str = ""  # of the answer, where it is not that some are hit
    other_codes: dict[str, str] = field(default_factory=dict)  # of some of the hit clients: "loopback4": "martian"


ROUTED4 = "lan4 neighbour4 other-bridge4 itself4"  # those whose packets this host forwards
ROUTED = f"{ROUTED4} lan6 neighbour6 other-bridge6 itself6"


def stop_web(scene: Scene) -> None:
    scene.stop("a1", 80)


def start_web(scene: Scene) -> None:
    scene.serve("a1")


def only_on(address: str) -> Callable[[Scene], None]:
    return lambda scene: scene.serve("a1", 80, address)


def host_server(scene: Scene) -> None:
    scene.serve("host", 8080)


def stop_host_server(scene: Scene) -> None:
    scene.stop("host", 8080)


UFW = """
iptables -N ufw-before-forward; iptables -N ufw-before-input
iptables -A ufw-before-input -i lo -j ACCEPT
iptables -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A INPUT -j ufw-before-input; iptables -A FORWARD -j ufw-before-forward
iptables -P INPUT DROP
"""
UFW_OFF = """
iptables -P INPUT ACCEPT; iptables -P FORWARD ACCEPT
iptables -D INPUT -j ufw-before-input; iptables -D FORWARD -j ufw-before-forward
iptables -F ufw-before-input; iptables -F ufw-before-forward; iptables -X ufw-before-input; iptables -X ufw-before-forward
"""
AGAIN = "ip link set {v1} nomaster; ip link set {v1} master cni0; bridge link set dev {v1} hairpin on"
DROPS = "nft delete table inet drops"


def nft(hook: str, priority: str, rule: str, policy: str = "accept") -> str:
    """A table of a stranger with one chain."""
    text = f"add table inet drops; add chain inet drops one {{ type filter hook {hook} priority {priority}; policy {policy}; }}"
    return f"nft '{text}; add rule inet drops one {rule}'"


CASES = (
    Case("healthy", "", ""),
    Case("healthy-udp", "", "", port="8053/udp"),
    Case("healthy-direct", "", "", port="192.0.2.2:80"),
    # Publication
    Case("element-gone", "element-missing", "all4", "nft delete element inet cni_py any4 { tcp . 8080 }",
         restore=True, mended=True),
    Case("element-gone-udp", "element-missing", "lan6 host6 neighbour6 other-bridge6 itself6",
         "nft delete element inet cni_py any6 { udp . 8053 }", port="8053/udp", restore=True),
    Case("table-flushed", "table-missing", "all4 all6", "nft delete table inet cni_py", restore=True, mended=True),
    Case("allow-list", "not-allowed", "", port="8083"),
    Case("not-this-address", "not-this-address", "", port="8085"),
    Case("nobody", "", "", port="8099", verdict="fails"),
    Case("host-process", "host-process", "all4", "nft delete element inet cni_py any4 { tcp . 8080 }", restore=True,
         before=host_server, after=stop_host_server),
    Case("host-process-beside", "", "", before=host_server, after=stop_host_server),  # NAT comes first
    # The other backend
    Case("healthy-iptables", "", "", port="8082", server="b1"),
    Case("rule-gone", "element-missing", "lan4 host4 loopback4 other-bridge4 itself4", "iptables -t nat -F CNI-HOSTPORT-DNAT",
         port="8082", server="b1", restore=True),
    Case("forward-drop-8082", "filtered-forward", "lan4 other-bridge4 itself4",
         "iptables -I FORWARD -d 203.0.113.2 -j DROP", "iptables -D FORWARD -d 203.0.113.2 -j DROP", port="8082", server="b1"),
    # Rules
    Case("forward-policy-iptables", "filtered-forward", ROUTED4, "iptables -P FORWARD DROP",
         "iptables -P FORWARD ACCEPT; iptables -F FORWARD", mended=True),
    Case("forward-policy-nft", "filtered-forward", ROUTED, nft("forward", "10", "udp dport 9 accept",
         "drop"), DROPS, mended=True),
    Case("foreign-drop", "filtered-forward", ROUTED4,
         nft("forward", "-150", "ip daddr 192.0.2.2 tcp dport 80 drop"), DROPS, mended=True),
    Case("foreign-drop-udp", "filtered-forward", ROUTED,
         nft("forward", "300", "meta l4proto udp th dport 53 reject"), DROPS, port="8053/udp"),
    Case("forward-one-client", "filtered-forward", "lan4 lan6", nft("forward", "0", "iifname lan0 drop"), DROPS),
    Case("ufw", "filtered-forward", ROUTED4, f"{UFW}iptables -P FORWARD DROP", UFW_OFF),
    Case("ufw-input-alone", "", "", UFW, UFW_OFF),  # NAT passes INPUT by
    Case("raw-published", "filtered-prerouting", "lan4",
         "iptables -t raw -A PREROUTING -i lan0 -p tcp --dport 8080 -j DROP",
         "iptables -t raw -D PREROUTING -i lan0 -p tcp --dport 8080 -j DROP"),
    Case("raw-direct", "filtered-prerouting", "lan4 other-bridge4",
         "iptables -t raw -A PREROUTING -d 192.0.2.2 ! -i cni0 -j DROP",
         "iptables -t raw -D PREROUTING -d 192.0.2.2 ! -i cni0 -j DROP", port="192.0.2.2:80"),
    Case("bridge-family", "filtered-bridge", "neighbour4",
         "nft 'add table bridge drops; add chain bridge drops one { type filter hook forward priority 0; };"
         " add rule bridge drops one ip daddr 192.0.2.2 drop'", "nft delete table bridge drops", port="192.0.2.2:80"),
    Case("output", "filtered-output", "host4 host6 loopback4", nft("output", "-150", "tcp dport 8080 drop"), DROPS),
    Case("postrouting", "filtered-postrouting", "all4",
         nft("postrouting", "0", "ip daddr 192.0.2.2 tcp dport 80 drop"), DROPS),
    Case("answers-input", "filtered-input", "host4 host6 loopback4", nft("input", "0", "iifname cni0 drop"), DROPS),
    Case("answers-forward", "filtered-forward", "lan4 other-bridge4 neighbour4 itself4",
         nft("forward", "0", "ip saddr 192.0.2.2 tcp sport 80 drop"), DROPS, mended=True),
    Case("container-firewall", "container-firewall", "all4 all6", nft("input", "0", "tcp dport 80 drop"), DROPS, node="a1"),
    Case("chance", "rule-unknown", "", nft("forward", "0", "ip daddr 192.0.2.2 numgen random mod 2 0 drop"), DROPS,
         verdict="unknown", unsure=True),
    Case("chance-elsewhere", "", "", nft("forward", "0", "ip daddr 192.0.2.99 numgen random mod 2 0 drop"), DROPS),
    # Routes
    Case("no-route", "no-route", "all4", "ip route del 192.0.2.0/24 dev cni0",
         "ip route del 192.0.2.2; ip route add 192.0.2.0/24 dev cni0 proto kernel scope link src 192.0.2.1", mended=True),
    Case("no-route-6", "no-route", "all6", "ip -6 route del 2001:db8:42::/64 dev cni0",
         "ip -6 route del 2001:db8:42::2; ip -6 route add 2001:db8:42::/64 dev cni0 proto kernel", mended=True),
    Case("route-elsewhere", "route-elsewhere", "lan4 other-bridge4 neighbour4 itself4 host4 loopback4",
         "ip route del 192.0.2.0/24 dev cni0; ip route add default via 198.51.100.7",
         "ip route del default; ip route add 192.0.2.0/24 dev cni0 proto kernel scope link src 192.0.2.1"),
    Case("blackhole", "route-blocked", "all4", "ip route add blackhole 192.0.2.2", "ip route del blackhole 192.0.2.2"),
    Case("prohibited", "route-blocked", "all4", "ip rule add to 192.0.2.2 prohibit", "ip rule del to 192.0.2.2 prohibit"),
    Case("rp-filter", "rp-filter", "lan4",
         "ip link add d0 type bridge; ip link set d0 up; ip route add 198.51.100.7 dev d0;"
         "sysctl -qw net.ipv4.conf.lan0.rp_filter=1",
         "ip link del d0; sysctl -qw net.ipv4.conf.lan0.rp_filter=0"),
    Case("ip-forward-off", "forwarding-off", ROUTED4, "sysctl -qw net.ipv4.ip_forward=0",
         "sysctl -qw net.ipv4.ip_forward=1", mended=True),
    Case("forwarding6-off", "forwarding-off", "lan6 neighbour6 other-bridge6 itself6",
         "sysctl -qw net.ipv6.conf.all.forwarding=0",
         "sysctl -qw net.ipv6.conf.all.forwarding=1"),
    Case("route-localnet-off", "route-localnet-off", "loopback4", "sysctl -qw net.ipv4.conf.cni0.route_localnet=0",
         "sysctl -qw net.ipv4.conf.cni0.route_localnet=1", mended=True),
    # Links and bridges
    Case("veth-down", "link-down", "all4 all6", "ip link set {v1} down", "ip link set {v1} up",
         other_codes={"itself4 itself6": "no-carrier"}, mended=True),
    Case("out-of-bridge", "not-in-bridge", "all4 all6", "ip link set {v1} nomaster",
         "ip link set {v1} master cni0; bridge link set dev {v1} hairpin on", mended=True),
    Case("in-another-bridge", "not-in-bridge", "all4 all6", "ip link set {v1} master cni1",
         "ip link set {v1} master cni0; bridge link set dev {v1} hairpin on; ip -n a1 neigh flush dev eth0"),
    Case("stp", "stp-blocked", "all4 all6", f"ip link set cni0 type bridge stp_state 1; {AGAIN}",
         f"ip link set cni0 type bridge stp_state 0; {AGAIN}"),
    Case("isolated", "isolated", "neighbour4", "bridge link set dev {v1} isolated on; bridge link set dev {v2} isolated on",
         "bridge link set dev {v1} isolated off; bridge link set dev {v2} isolated off", port="192.0.2.2:80", mended=True),
    Case("isolated-published", "", "", "bridge link set dev {v1} isolated on; bridge link set dev {v2} isolated on",
         "bridge link set dev {v1} isolated off; bridge link set dev {v2} isolated off"),
    Case("wrong-neighbour", "neighbour-wrong", "all4",
         "ip neigh replace 192.0.2.2 lladdr 02:00:00:00:00:99 dev cni0 nud permanent",
         "ip neigh del 192.0.2.2 dev cni0", mended=True),
    Case("neighbour-of-another", "neighbour-wrong", "all4", "ip neigh replace 192.0.2.2 lladdr {m2} dev cni0 nud permanent",
         "ip neigh del 192.0.2.2 dev cni0"),
    Case("container-neighbour", "neighbour-wrong", "all4",
         "ip neigh replace 192.0.2.1 lladdr 02:00:00:00:00:98 dev eth0 nud permanent",
         "ip neigh del 192.0.2.1 dev eth0", node="a1"),
    Case("arp-off", "arp-off", "all4 all6", "ip link set cni0 arp off", "ip link set cni0 arp on", mended=True),
    # From a request of the container for the host's address the host would learn the container's
    Case("arp-off-inside", "arp-off", "all4",
         "ip -n a1 neigh replace 192.0.2.1 lladdr $(cat /sys/class/net/cni0/address) dev eth0 nud permanent; "
         "ip netns exec a1 sysctl -qw net.ipv4.conf.eth0.arp_ignore=8; ip neigh flush dev cni0",
         "ip netns exec a1 sysctl -qw net.ipv4.conf.eth0.arp_ignore=0; ip -n a1 neigh del 192.0.2.1 dev eth0", mended=True),
    Case("fdb", "fdb-wrong", "all4 all6", "bridge fdb replace {m1} dev {v2} master permanent",
         "bridge fdb del {m1} dev {v2} master", mended=True),
    Case("fdb-own", "fdb-wrong", "neighbour4", "bridge fdb replace {m1} dev {v1} master permanent",
         "bridge fdb del {m1} dev {v1} master", port="192.0.2.2:80"),
    Case("address-twice", "address-twice", "", "ip -n a2 addr add 192.0.2.2/24 dev eth0; ip neigh flush dev cni0",
         "ip -n a2 addr del 192.0.2.2/24 dev eth0; ip neigh flush dev cni0", verdict="unknown", unsure=True),
    # The container
    Case("eth0-down", "no-carrier", "all4 all6", "sysctl -qw net.ipv6.conf.eth0.keep_addr_on_down=1; ip link set eth0 down",
         "ip link set eth0 up; ip route add default via 192.0.2.1; ip -6 route replace default via 2001:db8:42::1", node="a1",
         other_codes={"itself4 itself6": "no-route"}, mended=True),
    Case("address-gone", "address-missing", "all4", "ip addr del 192.0.2.2/24 dev eth0",
         "ip addr add 192.0.2.2/24 brd 192.0.2.255 dev eth0; ip route add default via 192.0.2.1", node="a1",
         other_codes={"itself4": "no-route"}),
    Case("no-default-route", "no-route", "lan4 host4 itself4", "ip route del default",
         "ip route add default via 192.0.2.1", node="a1", mended=True),
    Case("nothing-listens", "nothing-listens", "all4 all6", before=stop_web, after=start_web),
    Case("loopback-only", "listens-on-loopback", "all4 all6", before=only_on("127.0.0.1"), after=start_web),
    Case("other-family-only", "listens-on-other-family", "all4", before=only_on("::"), after=start_web),
    Case("other-family-only-6", "listens-on-other-family", "all6", before=only_on("0.0.0.0"), after=start_web),
    Case("nothing-listens-udp", "nothing-listens", "all4 all6", port="8053/udp",
         before=lambda scene: scene.stop("a1", 53), after=start_web),
    Case("dead-namespace-kept", "container-dead", "all4 all6", port="8086"),
    Case("address-moved", "address-moved", "all4",
         "ip -n a1 addr del 192.0.2.2/24 dev eth0; ip -n a2 addr add 192.0.2.2/24 dev eth0; ip neigh flush dev cni0",
         "ip -n a2 addr del 192.0.2.2/24 dev eth0; ip neigh flush dev cni0;"
         "ip -n a1 addr add 192.0.2.2/24 brd 192.0.2.255 dev eth0;"
         "ip -n a1 route add default via 192.0.2.1", other_codes={"itself4": "no-route"}),
    Case("br-netfilter", "", "", "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
         "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0"),
    Case("br-netfilter-forward", "filtered-forward", "lan4 neighbour4 other-bridge4",
         f"{nft('forward', '0', 'ct state established accept', 'drop')}; sysctl -qw net.bridge.bridge-nf-call-iptables=1",
         f"{DROPS}; sysctl -qw net.bridge.bridge-nf-call-iptables=0", port="192.0.2.2:80"),
    Case("br-netfilter-link-forwards-not", "forwarding-off", ROUTED4,
         "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.ipv4.conf.cni0.forwarding=0",
         "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.ipv4.conf.cni0.forwarding=1"),
    Case("forward-without-br-netfilter", "filtered-forward", "lan4 other-bridge4",
         nft("forward", "0", "ct state established accept", "drop"), DROPS, port="192.0.2.2:80"),
    Case("hairpin-off", "hairpin-off", "itself4",
         "sysctl -qw net.bridge.bridge-nf-call-iptables=1; bridge link set dev {v1} hairpin off",
         "sysctl -qw net.bridge.bridge-nf-call-iptables=0; bridge link set dev {v1} hairpin on", mended=True),
    # The way back
    Case("no-hairpin-masquerade", "answer-bypasses", "neighbour4 itself4",
         "nft delete element inet cni_py hairpin4 { 192.0.2.2 }",
         restore=True, other_codes={"loopback4 itself4": "martian"}),
)  # fmt: skip
RELAYED = (
    Case("healthy-8080-and-its-relay", "", ""),
    Case("healthy-relay", "", "", port="8084", server="r1"),
    Case("relay-input", "filtered-input", "all4", "iptables -A INPUT -p tcp --dport 8084 -j REJECT",
         "iptables -D INPUT -p tcp --dport 8084 -j REJECT", port="8084", server="r1"),
    Case("relay-forward", "", "", "iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT", port="8084", server="r1"),
    Case("relay-target-silent", "nothing-listens", "all4 all6", port="8084", server="r1",
         before=lambda scene: scene.stop("r1", 80), after=lambda scene: scene.serve("r1")),
)  # fmt: skip
STOPPED = (
    Case("relay-not-running", "relay-not-running", "all4 all6", port="8084", server="r1"),
    Case("port-taken", "port-taken", "all4 all6", port="8084", server="r1",
         before=lambda scene: scene.serve("host", 8084), after=lambda scene: scene.stop("host", 8084)),
    Case("healthy-without-relay", "", ""),
)  # fmt: skip
