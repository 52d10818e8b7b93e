"""What nft's expressions load from a packet and from what the kernel keeps with it: payload, meta, ct, fib, socket."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from cni_py.explain import fib
from cni_py.explain.values import (
    ETHERTYPES,
    PROTOCOLS,
    STATES,
    STATUS,
    TCP_FLAGS,
    Json,
    Value,
    absent,
    name_number,
    number,
    one_of,
    span,
    unknown,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.explain.packet import Hook, Packet
    from cni_py.host.model import Link, Namespace

ADDRESS_KIND = {4: "ipv4_addr", 6: "ipv6_addr"}
TRANSPORT = ("tcp", "udp", "udplite", "sctp", "dccp")
CLIENT_PORTS = (1024, 65535)  # what a client's own port may be
DONE_BITS = (0x80, 0x100)  # IPS_SRC_NAT_DONE, IPS_DST_NAT_DONE: set beside those that nft names
IPS_CONFIRMED = 8
LINK_HOOKS = ("output", "postrouting")  # where a packet has no Ethernet header yet


@dataclass(frozen=True, slots=True)
class World:
    """What the rules of a namespace may ask beside the packet."""

    namespace: Namespace
    indexes: dict[str, int]
    links: dict[str, Link]


@dataclass(frozen=True, slots=True)
class View:
    """A packet as a chain of a hook sees it."""

    world: World
    hook: Hook
    family: str  # of the table: "inet", "ip", "ip6", "bridge", "netdev"
    packet: Packet
    tracked: bool  # conntrack has looked at it

    @property
    def iif(self) -> str:
        """The link that it came by, as this family sees it."""
        return self.packet.bridge_in if self.family == "bridge" else self.packet.iif

    @property
    def oif(self) -> str:
        """The link that it leaves by."""
        return self.packet.bridge_out if self.family == "bridge" else self.packet.oif


def payload(view: View, field: Json) -> Value:
    """A field of a header. Of a header that the packet does not have: nothing."""
    if not isinstance(field, dict) or "protocol" not in field:
        return unknown("", "raw payload")
    protocol, name = str(field["protocol"]), str(field.get("field"))
    load = HEADERS.get(protocol)
    return load(view, protocol, name) if load else unknown("", f"payload {protocol} {name}", maybe_absent=True)


def _ip(view: View, protocol: str, name: str) -> Value:
    family = 4 if protocol == "ip" else 6
    return _network(view.packet, protocol, name) if view.packet.family == family else absent()


def _any_transport(view: View, _: str, name: str) -> Value:
    return _transport(view.packet, name) if view.packet.protocol in TRANSPORT else unknown("", f"th {name}")


def _one_transport(view: View, protocol: str, name: str) -> Value:
    return _transport(view.packet, name) if view.packet.protocol == protocol else absent()


def _icmp(view: View, protocol: str, name: str) -> Value:
    if PROTOCOLS.get(view.packet.protocol) != PROTOCOLS[protocol]:
        return absent()
    return unknown(f"{protocol}_type" if name == "type" else "", f"{protocol} {name}")


def _vlan(_: View, protocol: str, name: str) -> Value:
    return unknown("", f"{protocol} {name}", maybe_absent=True)


def _network(packet: Packet, protocol: str, name: str) -> Value:
    if name in ("saddr", "daddr"):
        return address(packet, packet.source if name == "saddr" else packet.destination, name)
    if name in ("protocol", "nexthdr"):
        return l4proto(packet)
    if name == "version":
        return number("", packet.family)
    if name == "hdrlength":
        return number("", 5)
    if name == "frag-off":
        return one_of("", [0, 0x4000], "ip frag-off")  # the first packet of a connection is whole
    kinds = {"dscp": "dscp"}
    return unknown(kinds.get(name, ""), f"{protocol} {name}")


def address(packet: Packet, text: str, what: str) -> Value:
    """An address of the packet; "" is one that is not known yet."""
    kind = ADDRESS_KIND.get(packet.family, "ipv4_addr")
    found = span(kind, text, {})
    if found is None or what in packet.unsure:
        return unknown(kind, f"{what} is not known here")
    return number(kind, found[0])


def _transport(packet: Packet, name: str) -> Value:
    if name == "sport":
        if packet.source_port and "source_port" not in packet.unsure:
            return number("inet_service", packet.source_port)
        return Value("inet_service", (CLIENT_PORTS,), "the client's port is not known")
    if name == "dport":
        if "destination_port" in packet.unsure:
            return unknown("inet_service", "the port that NAT chose is not known")
        return number("inet_service", packet.destination_port)
    if name == "flags" and packet.protocol == "tcp" and packet.ct_state == "new":
        flags = TCP_FLAGS["syn"]
        return one_of(
            "tcp_flag", [flags, flags | TCP_FLAGS["ecn"] | TCP_FLAGS["cwr"]], "tcp flags: with ECN or without"
        )
    return unknown("tcp_flag" if name == "flags" else "", f"{packet.protocol} {name}")


def _ethernet(view: View, _: str, name: str) -> Value:
    packet = view.packet
    if name == "type":
        kind = ETHERTYPES["ip" if packet.family == 4 else "ip6"]
        if view.family in ("bridge", "netdev"):
            return one_of("ether_type", [kind, ETHERTYPES["vlan"]], "ether type: with a VLAN tag or without")
        return number("ether_type", kind)
    if view.iif == "lo":  # is no Ethernet link
        return absent()
    if view.hook in LINK_HOOKS and view.family not in ("bridge", "netdev"):
        return unknown("ether_addr", f"ether {name} before the packet has that header", maybe_absent=True)
    if name == "saddr" and packet.source_mac:
        found = span("ether_addr", packet.source_mac, {})
        if found is not None:
            return number("ether_addr", found[0])
    return unknown("ether_addr", f"ether {name}")


HEADERS: dict[str, Callable[[View, str, str], Value]] = {
    **dict.fromkeys(("ip", "ip6"), _ip),
    **dict.fromkeys(TRANSPORT, _one_transport),
    **dict.fromkeys(("icmp", "icmpv6"), _icmp),
    **dict.fromkeys(("arp", "ah", "esp", "comp", "igmp"), lambda *_: absent()),
    "th": _any_transport,
    "ether": _ethernet,
    "vlan": _vlan,
}


def l4proto(packet: Packet) -> Value:
    """The number of the transport protocol."""
    known = PROTOCOLS.get(packet.protocol)
    return number("inet_proto", known) if known is not None else unknown("inet_proto", "the protocol")


def meta(view: View, key: str) -> Value:
    """`meta KEY`."""
    loader = META.get(key)
    if loader is not None:
        return loader(view)
    return unknown("", f"meta {key}", maybe_absent=key.startswith(("sk", "cgroup", "rt")))


def _ifname(name: str) -> Value:
    return number("ifname", name_number(name))


def _ifindex(view: View, name: str) -> Value:
    if not name:
        return number("iface_index", 0)
    index = view.world.indexes.get(name)
    return number("iface_index", index) if index is not None else unknown("iface_index", f"the index of {name}")


def _ifkind(view: View, name: str) -> Value:
    """Hardware and lo have no kind, and then the rule does not match."""
    if not name:
        return absent("ifkind")
    link = view.world.links.get(name)
    if link is None:
        return unknown("ifkind", f"the kind of {name}", maybe_absent=True)
    return number("ifkind", name_number(link.kind)) if link.kind else absent("ifkind")


def _ifgroup(view: View, name: str) -> Value:
    if not name:
        return absent()
    link = view.world.links.get(name)
    return number("", link.group) if link is not None else unknown("", f"the group of {name}", maybe_absent=True)


def _bridge_of(view: View, port: str, otherwise: str) -> Value:
    """The bridge that a port belongs to."""
    if view.family != "bridge":
        return unknown("ifname", "the bridge's name", maybe_absent=True)
    link = view.world.links.get(port)
    name = link.master if link is not None and link.master else otherwise
    return _ifname(name) if name else unknown("ifname", "the bridge's name", maybe_absent=True)


def _mark(view: View) -> Value:
    if "mark" in view.packet.unsure:
        return unknown("mark", "a rule before may have set another mark")
    return number("mark", view.packet.mark)


def _packet_type(view: View) -> Value:
    """A packet that this namespace itself sends is `host`, too."""
    if view.family in ("bridge", "netdev") or "pkttype" in view.packet.unsure:
        return unknown("pkt_type", "meta pkttype of a frame")
    found = span(ADDRESS_KIND.get(view.packet.family, ""), view.packet.destination, {})
    if found is None:
        return unknown("pkt_type", "meta pkttype")
    if ipaddress.ip_address(view.packet.destination).is_multicast or found[0] == 0xFFFFFFFF:
        return unknown("pkt_type", "meta pkttype of a multicast")
    return number("pkt_type", 0)


def _owner(kind: str) -> Callable[[View], Value]:
    """User, group and control group of the sender: only its own host's packets have one, on their way out."""

    def load(view: View) -> Value:
        if view.packet.iif and view.hook in ("forward", "postrouting"):
            return absent()
        return unknown("", f"meta {kind}", maybe_absent=True)

    return load


META: dict[str, Callable[[View], Value]] = {
    "iifname": lambda view: _ifname(view.iif),
    "oifname": lambda view: _ifname(view.oif),
    "iif": lambda view: _ifindex(view, view.iif),
    "oif": lambda view: _ifindex(view, view.oif),
    "iifkind": lambda view: _ifkind(view, view.iif),
    "oifkind": lambda view: _ifkind(view, view.oif),
    "iifgroup": lambda view: _ifgroup(view, view.iif),
    "oifgroup": lambda view: _ifgroup(view, view.oif),
    "ibrname": lambda view: _bridge_of(view, view.packet.bridge_in, view.packet.iif),
    "obrname": lambda view: _bridge_of(view, view.packet.bridge_out, view.packet.oif),
    "ibriport": lambda view: _bridge_of(view, view.packet.bridge_in, view.packet.iif),
    "obriport": lambda view: _bridge_of(view, view.packet.bridge_out, view.packet.oif),
    "physdev-in": lambda view: _ifname(view.packet.bridge_in),  # of iptables
    "physdev-out": lambda view: _ifname(view.packet.bridge_out),
    "l4proto": lambda view: l4proto(view.packet),
    "nfproto": lambda view: (
        number("nf_proto", 2 if view.packet.family == 4 else 10)
        if view.family in ("inet", "ip", "ip6")
        else unknown("nf_proto", "meta nfproto of a frame")
    ),
    "protocol": lambda view: number("ether_type", ETHERTYPES["ip" if view.packet.family == 4 else "ip6"]),
    "mark": _mark,
    "pkttype": _packet_type,
    "skuid": _owner("skuid"),
    "skgid": _owner("skgid"),
    "cgroup": _owner("cgroup"),
}


def conntrack(view: View, field: Json) -> Value:
    """`ct KEY`. Before conntrack has seen a packet its state is invalid, and all else is absent."""
    if not isinstance(field, dict):
        return unknown("", "ct")
    key, packet = str(field.get("key")), view.packet
    tracked = view.tracked and packet.ct_state not in ("untracked", "invalid")
    if key == "state":
        state = packet.ct_state if view.tracked or packet.ct_state == "untracked" else "invalid"
        return number("ct_state", STATES[state]) if state in STATES else unknown("ct_state", "ct state")
    if not tracked:
        return absent() if view.family not in ("bridge", "netdev") else unknown("", f"ct {key}", maybe_absent=True)
    load = CONNECTION.get(key)
    return load(packet) if load else _tuple(packet, key, str(field.get("dir", "")))


def _connection_mark(packet: Packet) -> Value:
    return unknown("mark", "ct mark") if "ct_mark" in packet.unsure else number("mark", packet.ct_mark)


def _direction(packet: Packet) -> Value:
    return number("ct_dir", 0) if packet.ct_state == "new" else unknown("ct_dir", "ct direction")


def _status(packet: Packet) -> Value:
    """The bits that are known of a connection, with all that those which nft does not name may be."""
    known = sum(STATUS.get(name, 0) for name in packet.ct_status)
    free = [*DONE_BITS, IPS_CONFIRMED]
    if packet.ct_state != "new":
        free += [STATUS["seen-reply"], STATUS["assured"]]
        free += [STATUS[name] for name in ("snat", "dnat") if name not in packet.ct_status and packet.ct_state != "new"]
    elif "snat" in packet.unsure and "snat" not in packet.ct_status:
        free.append(STATUS["snat"])
    if packet.ct_state == "related":
        free.append(STATUS["expected"])
    values = [known + sum(chosen) for chosen in product(*((0, bit) for bit in free))]
    return one_of("ct_status", values, "ct status")


CONNECTION: dict[str, Callable[[Packet], Value]] = {
    "status": _status,
    "mark": _connection_mark,
    "direction": _direction,
    "l3proto": lambda packet: number("nf_proto", 2 if packet.family == 4 else 10),
    "protocol": l4proto,
}


def _tuple(packet: Packet, key: str, direction: str) -> Value:
    """The connection's addresses and ports, as they were before NAT."""
    what = {"ip": 4, "ip6": 6}.get(key.split(" ", maxsplit=1)[0])
    name = key.rsplit(" ", maxsplit=1)[-1]
    if direction != "original" or packet.ct_state != "new" or "snat" in packet.ct_status:
        return unknown("", f"ct {direction} {key}")
    if what is not None and what != packet.family:
        return absent()
    if name == "daddr":
        return address(packet, packet.original_destination or packet.destination, "daddr")
    if name == "saddr":
        return address(packet, packet.source, "saddr")
    if name == "proto-dst":
        return number("inet_service", packet.original_port or packet.destination_port)
    return _transport(packet, "sport") if name == "proto-src" else unknown("", f"ct {key}")


def routing(view: View, field: Json) -> Value:
    """`fib ADDRESS RESULT`."""
    if not isinstance(field, dict) or not isinstance(flags := field.get("flags", []), list | str):
        return unknown("", "fib")
    flags = [flags] if isinstance(flags, str) else flags
    packet = view.packet
    asked = packet.source if "saddr" in flags else packet.destination
    if ("saddr" if "saddr" in flags else "daddr") in packet.unsure:
        asked = ""
    link = view.iif if "iif" in flags else view.oif if "oif" in flags else None
    if field.get("result") == "type":
        return fib.address_type(view.world.namespace, asked, link)
    if field.get("result") in ("oif", "oifname", "check"):  # `check` in newer nft: whether there is one
        if view.hook == "prerouting" and view.iif == "lo":  # nft_fib_is_loopback
            return _ifindex(view, "lo") if field["result"] != "oifname" else _ifname("lo")
        mark = None if "mark" not in flags else packet.mark if "mark" not in packet.unsure else None
        found = fib.way_to(view.world.namespace, asked, 0 if "mark" not in flags else mark, link)
        if field["result"] != "oifname" or found.exact is None:
            return found
        names = {index: name for name, index in view.world.indexes.items()}
        return _ifname(names.get(found.exact, "")) if found.exact else _ifname("")
    return unknown("", "fib")


def socket(view: View, field: Json) -> Value:
    """`socket KEY`: of a socket of this host that waits for the packet."""
    key = field.get("key") if isinstance(field, dict) else ""
    return (
        unknown("mark" if key == "mark" else "", f"socket {key}", maybe_absent=True) if view.packet.socket else absent()
    )


def number_of(what: str, field: Json) -> Value:
    """`numgen`, `jhash` and `symhash`: any number below the modulus."""
    modulus, offset = (field.get("mod"), field.get("offset", 0)) if isinstance(field, dict) else (None, 0)
    if not isinstance(modulus, int) or not isinstance(offset, int) or not 0 < modulus <= 1 << 32:
        return unknown("", what)
    why = f"{what} {field['mode']}" if isinstance(field.get("mode"), str) else what
    return Value("", ((offset, offset + modulus - 1),), f"`{why}` gives any of {modulus} numbers")
