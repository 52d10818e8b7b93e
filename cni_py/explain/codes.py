"""The codes of hops: a closed list, documented in docs/explain.md. Pure.

Words in braces are filled in for each hop: {at} is the prefix of a command that runs in the hop's namespace ("" for this host's).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """What a hop of this code says; for one that fails, the usual cause and the command that mends it."""

    meaning: str
    cause: str = ""
    mend: str = ""


PASSING = {
    "sent": Code("the client sends the first packet"),
    "hook": Code("the rules of a netfilter hook let the packet pass"),
    "translated": Code("a rule or map element changes the packet's destination or source (NAT)"),
    "routed": Code("the routing tables lead the packet on"),
    "local": Code("the destination is an address of the namespace"),
    "bridged": Code("a bridge hands the packet to one of its ports, or to its own namespace"),
    "neighbour": Code("the next address is on the link, so its MAC address can be found"),
    "listening": Code("a program listens on the port"),
    "relayed": Code("a relay accepts the connection and makes another one to its target"),
    "restored": Code("connection tracking translates the answer back"),
    "flow": Code("an earlier flow of the client leads elsewhere; a client that takes a new port begins a new one"),
    "left": Code("the packet leaves this host: the way beyond it is assumed to work"),
    "answered": Code("the answer reaches the client from the address that it asked"),
}

FAILING = {
    # Publication
    "not-published": Code(
        "no rule, map element or relay leads the port anywhere, and no program of this host listens on it",
        "nobody publishes this port on this address",
        "publish it when the container is made, or with `portfwd publish {port}:CONTAINER_PORT --container ID`",
    ),
    "table-missing": Code(
        "the nftables table inet cni_py, which publishes the port, does not exist",
        "somebody flushed the ruleset (`nft flush ruleset`, a firewall's reload)",
        "cni-py restore",
    ),
    "element-missing": Code(
        "the map element or iptables rule that should publish the port does not exist",
        "somebody removed it, or flushed its map, chain or table",
        "cni-py restore",
    ),
    "not-this-address": Code(
        "the port is published, but not on the address that the client asks",
        "the port is published on a specific address of this host",
        "publish it on all addresses (without a host address), or connect to {address}",
    ),
    "family-not-published": Code(
        "the port is published for the other address family only",
        "the container has no address of this family, and no relay serves the clients",
        "portfwd serve (then make the container again), or connect by the other family",
    ),
    "loopback6": Code(
        "[::1] leads nowhere: NAT cannot serve it, and no relay listens",
        "the kernel does not forward packets of ::1; a relay serves them, and it does not run",
        "portfwd serve (then make the container again), or connect to 127.0.0.1",
    ),
    "not-allowed": Code(
        "the publication has a list of allowed clients, and the client's address is not in it",
        "the key `allow` of portmap's `ports`, or `--allow` of portfwd",
        "add the client's network to the list",
    ),
    "host-process": Code(
        "a program of this host answers in place of the container",
        "the program listens on the published port, and no rule or relay takes the client to the container",
        "stop the program, or let it listen on another port: {process}",
    ),
    "port-taken": Code(
        "a relay should listen on the port, but a program of this host has it",
        "the program began to listen before the relay did",
        "stop the program ({process}), then: portfwd reload",
    ),
    # Netfilter
    "filtered-prerouting": Code(
        "a rule drops the packet before it is routed (raw or mangle table, prerouting hook)",
        "a firewall's rule, or one that protects containers from direct access",
        "{mend}",
    ),
    "filtered-input": Code(
        "a rule of this host drops packets to its own programs (input hook)",
        "the host's firewall does not allow the port",
        "{mend}",
    ),
    "filtered-forward": Code(
        "a rule or policy drops forwarded packets (forward hook)",
        "the policy of FORWARD is drop (Docker, ufw and firewalld set it), or a rule rejects the packet",
        "{mend}",
    ),
    "filtered-output": Code(
        "a rule drops what the namespace itself sends (output hook)",
        "a firewall's rule for outgoing packets",
        "{mend}",
    ),
    "filtered-postrouting": Code(
        "a rule drops the packet before it leaves (postrouting hook)",
        "a firewall's rule",
        "{mend}",
    ),
    "filtered-ingress": Code(
        "a rule drops the packet as soon as the interface has received it (ingress hook)",
        "a firewall's rule of the netdev or inet family",
        "{mend}",
    ),
    "filtered-bridge": Code(
        "a rule of the bridge family drops the frame between two ports of a bridge",
        "an isolation policy (firewall's ingressPolicy), or a check of MAC addresses",
        "{mend}",
    ),
    "container-firewall": Code(
        "a rule inside the container drops the packet",
        "the container has a firewall of its own, or a service mesh",
        "{at}nft list ruleset   # then remove the rule, or allow the port in it",
    ),
    # Routing
    "no-route": Code(
        "no route leads to the destination",
        "the route was removed, or its interface is down",
        "{mend}",
    ),
    "route-blocked": Code(
        "a route or routing rule of the kind blackhole, unreachable or prohibit matches",
        "somebody blocks the network on purpose",
        "{at}ip route del {route}",
    ),
    "route-elsewhere": Code(
        "the route leads out by another interface than the one to the container",
        "the bridge lost its address, or another route is more specific",
        "{mend}",
    ),
    "forwarding-off": Code(
        "the namespace does not forward packets of this family",
        "net.ipv4.ip_forward or net.ipv6.conf.all.forwarding is 0: a program or sysctl.d file switched it off",
        "{at}sysctl -w {sysctl}=1",
    ),
    "rp-filter": Code(
        "reverse path filtering drops the packet: the route to its source leads out by another interface",
        "rp_filter is 1 (strict) and routing is asymmetric",
        "{at}sysctl -w net.ipv4.conf.{link}.rp_filter=2 net.ipv4.conf.all.rp_filter=2, or mend the route to {source}",
    ),
    "martian": Code(
        "the kernel drops the packet, since its source address is one of the namespace itself or of loopback",
        "a packet that should have been masqueraded was not, or an address exists twice",
        "cni-py restore",
    ),
    "route-localnet-off": Code(
        "packets of 127.0.0.0/8 may not pass the interface",
        "net.ipv4.conf.{link}.route_localnet is 0: somebody switched it off, or made the bridge again",
        "sysctl -w net.ipv4.conf.{link}.route_localnet=1   # or: cni-py restore",
    ),
    "source-missing": Code(
        "the namespace has no address of this family that it could send from",
        "the interface lost its address",
        "{at}ip addr add ADDRESS/PREFIX dev {link}",
    ),
    # Links and bridges
    "link-down": Code("an interface on the way is down", "somebody set it down", "{at}ip link set {link} up"),
    "no-carrier": Code(
        "an interface on the way has no carrier: the other end of its link is down or gone",
        "the other end (the container's side of a veth pair) is down",
        "{mend}",
    ),
    "not-in-bridge": Code(
        "the host's end of the container's veth pair is no port of the bridge that the packet takes",
        "somebody took it out, or put it into another bridge",
        "{at}ip link set {link} master {bridge}",
    ),
    "stp-blocked": Code(
        "the bridge port is not in the state forwarding",
        "the spanning tree protocol blocks it, or it has just been added (forward_delay)",
        "{at}bridge link set dev {link} state 3",
    ),
    "vlan": Code(
        "the bridge filters VLANs, and the ports on the way have none in common",
        "the port has another VLAN, or none",
        "{at}bridge vlan add dev {link} vid {vid} pvid untagged",
    ),
    "isolated": Code(
        "both bridge ports are isolated: the bridge hands nothing from one to the other",
        "the flag `isolated` of the ports (portIsolation of the bridge plugin)",
        "{at}bridge link set dev {link} isolated off",
    ),
    "hairpin-off": Code(
        "the bridge would have to send the frame back by the port it came from, and the port has no hairpin mode",
        "br_netfilter redirects within the bridge, and hairpinMode of the network is off",
        "{at}bridge link set dev {link} hairpin on",
    ),
    "neighbour-wrong": Code(
        "a neighbour entry has a MAC address that is not the one of the destination",
        "an entry that somebody made, or one of before the address moved",
        "{at}ip neigh del {address} dev {link}",
    ),
    "arp-off": Code(
        "an interface does not ask for MAC addresses, or does not tell its own",
        "somebody turned ARP off (`ip link set ... arp off`, the sysctl arp_ignore)",
        "{mend}",
    ),
    "fdb-wrong": Code(
        "an entry of the bridge's forwarding database leads the MAC address elsewhere",
        "somebody added it (`bridge fdb add` makes entries permanent, which means: of this host), or the container moved",
        "{at}bridge fdb del {mac} dev {link} master",
    ),
    # The container
    "address-missing": Code(
        "no interface that the packet can reach has the address",
        "the container is gone, or its address was removed or changed",
        "{mend}",
    ),
    "address-moved": Code(
        "another container than the published one has the address",
        "the published container is gone or was given another address",
        "cni-py gc   # then make the container again",
    ),
    "address-twice": Code(
        "two interfaces on the link have the address",
        "somebody chose it by hand, or two networks give out the same addresses on one bridge",
        "give each network ranges of its own; cni-py ipam list",
    ),
    "address-unusable": Code(
        "the address is not usable: duplicate address detection is not finished, or has failed",
        "another machine on the link has the same IPv6 address",
        "{at}ip -6 addr show dev {link}   # then give it another address",
    ),
    "container-dead": Code(
        "the container's namespace has no process: the container is dead, its namespace was kept",
        "the container ended and the runtime has not called DEL",
        "start the container again, or remove it: cni-py gc",
    ),
    "nothing-listens": Code(
        "no program listens on the port",
        "the service is not started, crashed, or listens on another port",
        "{at}ss -ln   # shows what listens",
    ),
    "listens-on-loopback": Code(
        "the program listens on a loopback address only",
        "it is configured to listen on 127.0.0.1, ::1 or localhost",
        "let it listen on 0.0.0.0 or [::]   # or relay to it: portfwd publish OTHER_PORT:{target_port} --container ID",
    ),
    "listens-on-other-family": Code(
        "the program listens on addresses of the other family only",
        "it is configured for one family",
        "let it listen on [::] and 0.0.0.0",
    ),
    "listens-on-other-address": Code(
        "the program listens on another address of its namespace",
        "it is configured for that address or interface",
        "let it listen on 0.0.0.0 or [::]",
    ),
    # Relays
    "relay-not-running": Code(
        "a relay should serve the client, and it does not run",
        "the service of portfwd, or docker-proxy, has ended",
        "portfwd serve   # or: systemctl start portfwd",
    ),
    "relay-target-gone": Code(
        "the relay listens, but the namespace of its target does not exist",
        "the container is gone",
        "start the container again, or remove the mapping: portfwd rm {port}",
    ),
    # The way back
    "flow-elsewhere": Code(
        "a tracked flow of this client leads to another place than the port does now",
        "the flow began before the port was published or moved; its packets keep it alive",
        "conntrack -D -p {protocol} --orig-src {source} --orig-port-dst {port}",
    ),
    "answer-bypasses": Code(
        "the answer reaches the client from the container's own address, since it does not pass the namespace that translated",
        "client and container share a bridge, and the client's packets are not masqueraded (hairpin)",
        "cni-py restore   # the network's portmap needs `snat: true`, which is the default",
    ),
    # What cannot be said
    "rule-unknown": Code(
        "a rule has an expression that cannot be evaluated from the model",
        "it depends on time, chance, a counter, an extension, or on something that this program does not know",
        "nft monitor trace   # with a rule that sets `meta nftrace`, shows what the kernel does",
    ),
    "route-unknown": Code(
        "a routing rule has a condition that the model does not hold",
        "policy routing by marks, ports or users",
        "{at}ip route get {destination}",
    ),
    "outside": Code(
        "the packet would leave this host before it has reached the container",
        "the target is another machine, or an interface whose other end is not in the model",
        "run `cni-py explain` on that machine",
    ),
    "not-seen": Code(
        "something that the answer depends on could not be looked at",
        "no right to, or a program that is missing: `gaps` of the model",
        "run it as root, with nft and iptables installed",
    ),
    "too-many-hops": Code(
        "the packet goes round in circles",
        "rules or relays lead to each other",
        "look at the hops that repeat",
    ),
}

CODES = PASSING | FAILING
UNKNOWN = {"rule-unknown", "route-unknown", "outside", "not-seen", "too-many-hops"}  # they never say "fails"
