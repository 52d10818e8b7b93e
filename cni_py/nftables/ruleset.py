"""The rules of cni-py in nft's language: the constant part of its tables, and the chains made once per subnet or condition.

    remote client ─ prerouting ─┐                            ┌ conditional_*: jump conditions, then maps of their own
    this host ───── output ─────┴ published4/6: which map? ──┼ specific*: the host address and port ─→ dnat
                                                             └ any*, range*: the port ─────────────→ dnat
    container ───── postrouting: DNATed to a container from its own subnet or the host's loopback? hairpin* ─→ masquerade
                                 from a container and leaving its subnet? masquerade* ─→ masquerade

Traps that these rules avoid, each shown by a packet test:

- a DNAT rule that matches ::1 or a link-local address turns "refused" into a hang: the kernel forwards neither
- a packet for 127/8 from outside must not be DNATed, also not by iptables' rules for published ports: that happens before
  the kernel's martian check. A VRF is its own loopback device
- route_localnet would open the host's own loopback to that link, and let who is there pass for 127.0.0.2: local_links is
  looked at before it is set
- hairpin: the answer of a container must come back through the host whenever client and container share a subnet

- `ether type ip` does not match an IP packet with a VLAN tag, and its receiver strips a tag of VLAN 0: so nothing passes
  between isolated ports, of whatever type, ARP included. The one exception is a frame to the bridge's own MAC (pkttype
  host): it is forwarded only where br_netfilter has sent a packet for a published port to its new destination. The
  chain is in front of br_netfilter's own forward hook (NF_BR_PRI_BRNF - 1), which marks all frames as pkttype host

The priority on the output hook is a number because nft 1.0.6 knows no names there. `dnat ip` does not look at the family of
a packet, hence a chain for each.
"""

from cni_py.addr import Address
from cni_py.kernel.nf_tables import BRIDGE, INET, mark

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.nf_tables import Nft

FAMILIES = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}
LAYOUT = 3  # raise it with every change of table(): an older table is then brought up to date
RANGE_PROTOCOLS = ("tcp", "udp", "sctp")
MADE_WHEN_NEEDED = ("inside_", "outside_", "conditions", "shared")  # how the names of such chains begin

CHAINS = """
add chain inet cni_py loopback_guard { type filter hook prerouting priority -300; policy accept; }
add chain inet cni_py prerouting { type nat hook prerouting priority -100; policy accept; }
add chain inet cni_py output { type nat hook output priority -100; policy accept; }
add chain inet cni_py postrouting { type nat hook postrouting priority 100; policy accept; }
add chain inet cni_py published4
add chain inet cni_py published6
add chain inet cni_py masquerade_all
flush chain inet cni_py loopback_guard
flush chain inet cni_py prerouting
flush chain inet cni_py output
flush chain inet cni_py postrouting
flush chain inet cni_py published4
flush chain inet cni_py published6
flush chain inet cni_py masquerade_all
add rule inet cni_py loopback_guard iifname @local_links ip daddr 127.0.0.0/8 drop
add rule inet cni_py loopback_guard iifname @local_links ip saddr 127.0.0.0/8 drop
add rule inet cni_py loopback_guard ip daddr 127.0.0.0/8 meta iifkind "vrf" return
add rule inet cni_py loopback_guard ip daddr 127.0.0.0/8 iifname != "lo" drop
add rule inet cni_py prerouting ip daddr 127.0.0.0/8 return
add rule inet cni_py prerouting ip6 daddr { ::1, fe80::/10 } return
add rule inet cni_py prerouting fib daddr type local meta nfproto vmap { ipv4 : jump published4, ipv6 : jump published6 }
add rule inet cni_py output ip6 daddr { ::1, fe80::/10 } return
add rule inet cni_py output fib daddr type local meta nfproto vmap { ipv4 : jump published4, ipv6 : jump published6 }
add rule inet cni_py postrouting ct status dnat ip daddr vmap @hairpin4
add rule inet cni_py postrouting ct status dnat ip6 daddr vmap @hairpin6
add rule inet cni_py postrouting ip daddr 224.0.0.0/4 return
add rule inet cni_py postrouting ip6 daddr ff00::/8 return
add rule inet cni_py postrouting ip saddr vmap @masquerade4
add rule inet cni_py postrouting ip6 saddr vmap @masquerade6
add rule inet cni_py masquerade_all masquerade
"""
MAPS = """
add map inet cni_py specific{n} {{ type {addr} . inet_proto . inet_service : {addr} . inet_service; }}
add map inet cni_py any{n} {{ type inet_proto . inet_service : {addr} . inet_service; }}
add map inet cni_py conditional_specific{n} {{ type {addr} . inet_proto . inet_service : verdict; }}
add map inet cni_py conditional_any{n} {{ type inet_proto . inet_service : verdict; }}
add map inet cni_py claims{n} {{ type inet_proto . inet_service : mark; }}
add map inet cni_py hairpin{n} {{ type {addr} : verdict; }}
add map inet cni_py masquerade{n} {{ type {addr} : verdict; }}
"""
PUBLISHED = """
add rule inet cni_py published{n} {ip} daddr . meta l4proto . th dport vmap @conditional_specific{n}
add rule inet cni_py published{n} dnat {ip} to {ip} daddr . meta l4proto . th dport map @specific{n}
add rule inet cni_py published{n} meta l4proto . th dport vmap @conditional_any{n}
add rule inet cni_py published{n} dnat {ip} to meta l4proto . th dport map @any{n}
"""
BRIDGE_TABLE = """
add table bridge cni_py
add set bridge cni_py layout {{ type mark; }}
add set bridge cni_py spoof_checked {{ type ifname; }}
add set bridge cni_py spoof_allowed {{ type ifname . ether_addr; }}
add set bridge cni_py isolated {{ type ifname; }}
add chain bridge cni_py prerouting {{ type filter hook prerouting priority -300; policy accept; }}
add chain bridge cni_py isolation {{ type filter hook forward priority -10; policy accept; }}
flush chain bridge cni_py prerouting
flush chain bridge cni_py isolation
add rule bridge cni_py prerouting iifname @spoof_checked iifname . ether saddr != @spoof_allowed drop
add rule bridge cni_py isolation iifname @isolated oifname @isolated ether type {{ ip, ip6 }} meta pkttype host accept
add rule bridge cni_py isolation iifname @isolated oifname @isolated drop
flush set bridge cni_py layout
add element bridge cni_py layout {{ {layout} }}
"""


def ensure_table(nft: "Nft", family: int = INET) -> None:
    """Make the table with its chains, rules and empty maps, unless it is there in this layout. CniError."""
    if family not in nft.current and not has_table(nft, family):
        nft.make(table(family == BRIDGE))
    nft.current.add(family)


def has_table(nft: "Nft", family: int = INET) -> bool:
    """Whether our table is there in this layout: an element says so."""
    return bool(nft.get("layout", (mark(LAYOUT),), family))


def table(bridge: bool) -> str:
    """The text that makes a table, or brings it up to date; elements that are there stay."""
    if bridge:
        return BRIDGE_TABLE.format(layout=LAYOUT)
    maps, rules = "", ""
    for n, (ip, addr) in FAMILIES.items():
        maps += MAPS.format(n=n, addr=addr)
        rules += PUBLISHED.format(n=n, ip=ip)
        for protocol in RANGE_PROTOCOLS:
            name = f"range{n}_{protocol}"
            maps += f"add map inet cni_py {name} {{ type inet_service : {addr}; flags interval; }}\n"
            rules += f"add rule inet cni_py published{n} meta l4proto {protocol} dnat {ip} to th dport map @{name}\n"
    return (
        "add table inet cni_py\n"
        "add set inet cni_py layout { type mark; }\n"
        "add set inet cni_py local_links { type ifname; }\n"
        f"{maps}{CHAINS}{rules}"
        f"flush set inet cni_py layout\nadd element inet cni_py layout {{ {LAYOUT} }}\n"
    )


def chain_name(kind: str, address: Address) -> str:
    """inside_10.1.2.0_24, outside_fd00--_64: the chain of a subnet, in characters that nft takes."""
    return f"{kind}_{address.network()}".replace(":", "-").replace("/", "_")


def maps_of(chain: str) -> list[str]:
    """The maps that the rules of a chain of conditions, or of shared ports, look into; a subnet's has none."""
    if chain.startswith("shared"):
        return [f"shared_{kind}{chain.removeprefix('shared')}" for kind in ("specific", "any")]
    if chain.startswith("conditions"):
        return [f"{kind}{chain.removeprefix('conditions')}" for kind in ("specific", "any")]
    return []


def chain_of(name: str) -> str:
    """The chain made when needed whose rules look into a set or map; "" for one of the table's constant part."""
    if name.startswith("guarded"):
        return "direct_access"
    if name in ("policed", "same_bridge"):
        return "policies"
    for kind in ("specific", "any"):
        if name.startswith(f"shared_{kind}"):
            return f"shared{name.removeprefix(f'shared_{kind}')}"
        if name.startswith(kind) and "_" in name:
            return f"conditions{name.removeprefix(kind)}"
    return ""


def inside_chain(address: Address) -> str:
    """Text for the chain that masquerades what a published port's client in the container's own subnet sends.

    So does a client on the host's loopback. Otherwise the answer would not come back through the host, or not at all.
    """
    ip, _ = FAMILIES[address.family]
    sources = [str(address.network())] + (["127.0.0.0/8"] if address.family == 4 else [])
    return _chain(chain_name("inside", address), [f"{ip} saddr {source} masquerade" for source in sources])


def outside_chain(address: Address) -> str:
    """Text for the chain that masquerades whatever leaves the subnet."""
    ip, _ = FAMILIES[address.family]
    return _chain(chain_name("outside", address), [f"{ip} daddr {address.network()} return", "masquerade"])


def conditions_chain(family: int, name: str, condition: str) -> str:
    """Text for the chain and maps of a set of conditions, whose words have been vetted."""
    ip, addr = FAMILIES[family]
    maps = (
        f"add map inet cni_py specific{name} {{ type {addr} . inet_proto . inet_service : {addr} . inet_service; }}\n"
        f"add map inet cni_py any{name} {{ type inet_proto . inet_service : {addr} . inet_service; }}\n"
    )
    rules = [
        f"{condition} dnat {ip} to {ip} daddr . meta l4proto . th dport map @specific{name}",
        f"{condition} dnat {ip} to meta l4proto . th dport map @any{name}",
    ]
    return maps + _chain(f"conditions{name}", rules)


def shared_chain(family: int, name: str, condition: str) -> str:
    """Text for the chain and maps of ports that are shared under vetted conditions, or none: ports/shares.py has the slots.

    nft knows the type of a number that it makes up only by `typeof`.
    """
    ip, _ = FAMILIES[family]
    slot = "numgen random mod 60"
    specific, any_address = f"{slot} . {ip} daddr . meta l4proto . th dport", f"{slot} . meta l4proto . th dport"
    maps = "".join(
        f"add map inet cni_py shared_{kind}{name} {{ typeof {key} : {ip} daddr . th dport; }}\n"
        for kind, key in (("specific", specific), ("any", any_address))
    )
    rules = [
        f"{condition} dnat {ip} to {specific} map @shared_specific{name}".strip(),
        f"{condition} dnat {ip} to {any_address} map @shared_any{name}".strip(),
    ]
    return maps + _chain(f"shared{name}", rules)


def direct_access_chain() -> str:
    """Text for the chain that keeps others than a container's own network from its addresses, but for published ports.

    At -90 the destination is the container's already where a port was published. A route that does not lead back to
    where the packet came from is that of another network. What the container began is `established`.
    """
    sets, rules = "", []
    for n, (ip, addr) in FAMILIES.items():
        sets += f"add set inet cni_py guarded{n} {{ type {addr}; }}\n"
        unasked = f"{ip} daddr @guarded{n} ct state {{ new, invalid, untracked }} ct status & dnat == 0"
        rules.append(f"{unasked} fib daddr . iif oif missing drop")
    chain = "add chain inet cni_py direct_access { type filter hook prerouting priority -90; policy accept; }\n"
    return sets + chain + _chain("direct_access", rules)


def policy_chain() -> str:
    """Text for the chain that keeps bridges apart: of two that have a policy none is reached from the other.

    What came by a published port may pass. `same_bridge` has the bridges whose containers may reach each other.
    """
    sets = "".join(
        f"add set inet cni_py {name} {{ type {kind}; }}\n"
        for name, kind in (("policed", "ifname"), ("same_bridge", "ifname . ifname"))
    )
    chain = "add chain inet cni_py policies { type filter hook forward priority 0; policy accept; }\n"
    apart = "ct status & dnat == 0 iifname @policed oifname @policed iifname . oifname != @same_bridge drop"
    return sets + chain + _chain("policies", [apart])


def _chain(name: str, rules: list[str]) -> str:
    lines = [f"add chain inet cni_py {name}", f"flush chain inet cni_py {name}"]
    return "\n".join(lines + [f"add rule inet cni_py {name} {rule}" for rule in rules]) + "\n"
