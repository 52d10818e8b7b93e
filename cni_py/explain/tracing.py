"""What the kernel says of packets that it traces, and of connections that it tracks: netlink messages as values. Pure.

Sources: Linux include/uapi/linux/netfilter/nf_tables.h (enum nft_trace_attributes) and nfnetlink_conntrack.h,
net/netfilter/nf_tables_trace.c, nf_conntrack_netlink.c.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from cni_py.kernel.conntrack import (
    CTA_PROTO_NUM,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO,
    CTA_TUPLE_REPLY,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_NEW,
    ends,
)
from cni_py.kernel.netlink import NFNL_SUBSYS_NFTABLES, NLM_F_CREATE, attrs, messages, number, text

NFT_MSG_TRACE = NFNL_SUBSYS_NFTABLES << 8 | 17
(
    NFTA_TRACE_TABLE,
    NFTA_TRACE_CHAIN,
    NFTA_TRACE_RULE_HANDLE,
    NFTA_TRACE_TYPE,
    NFTA_TRACE_VERDICT,
    NFTA_TRACE_ID,
    NFTA_TRACE_LL_HEADER,
    NFTA_TRACE_NETWORK_HEADER,
    NFTA_TRACE_TRANSPORT_HEADER,
    NFTA_TRACE_IIF,
    NFTA_TRACE_IIFTYPE,
    NFTA_TRACE_OIF,
    NFTA_TRACE_OIFTYPE,
    NFTA_TRACE_MARK,
    NFTA_TRACE_NFPROTO,
    NFTA_TRACE_POLICY,
) = range(1, 17)
NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN = 1, 2
KINDS = {1: "policy", 2: "return", 3: "rule"}  # NFT_TRACETYPE_*
VERDICTS = {  # linux/netfilter.h, and enum nft_verdicts
    0: "drop", 1: "accept", 2: "stolen", 3: "queue", -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"
}  # fmt: skip
VERDICT_MASK = 0xFF  # above it, the number of a queue
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_*
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg")
CTA_STATUS, CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE = 3, 4, 1, 1
STATUS = {1 << 1: "answered", 1 << 2: "assured", 1 << 4: "snat", 1 << 5: "dnat"}  # IPS_*, linux/nf_conntrack_common.h
TCP_STATES = (  # enum tcp_conntrack
    "none", "syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close", "syn_sent2"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ends:
    """Who sends to whom."""

    source: str
    source_port: int
    destination: str
    destination_port: int


@dataclass(frozen=True, slots=True)
class Headers:
    """What a packet's headers say."""

    protocol: str  # "tcp", "udp", "sctp", or a number
    ends: Ends
    flags: tuple[str, ...] = ()  # of TCP
    sequence: tuple[int, int] = (0, 0)  # of TCP: its number, and what it acknowledges


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a chain does with a traced packet."""

    id: int  # the same for all that happens to the packet, until it is sent or has reached a program
    family: str  # of the table
    table: str
    chain: str
    kind: str  # "rule", "return", "policy"
    verdict: str
    target: str = ""  # chain of "jump" and "goto"
    handle: int = 0  # of a rule
    iif: int = 0
    oif: int = 0
    mark: int = 0
    headers: Headers | None = None  # of the first event of each hooked chain


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked connection that has begun, changed or ended."""

    event: str  # "new", "update", "destroy"
    protocol: str
    original: Ends
    reply: Ends
    status: tuple[str, ...] = ()
    state: str = ""  # of TCP


def decode(data: bytes) -> list[Event | Flow]:
    """What a datagram says; what it says of something else, or in another form, is left out. OSError if it is cut off."""
    found: list[Event | Flow] = []
    for kind, flags, _, body in messages(data):
        try:
            if kind == NFT_MSG_TRACE:
                found.append(event(body))
            elif kind in (IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_DELETE):
                began = "new" if flags & NLM_F_CREATE else "update"  # ctnetlink_conntrack_event()
                found.append(flow("destroy" if kind == IPCTNL_MSG_CT_DELETE else began, body))
        except (KeyError, IndexError, ValueError, StopIteration, struct.error):  # ICMP has no ports
            continue
    return found


def event(body: bytes) -> Event:
    """Of a message NFT_MSG_TRACE. KeyError when something is missing that is always there."""
    fields = attrs(body[4:])
    kind = KINDS[_number(fields[NFTA_TRACE_TYPE])]
    verdict, target = "accept", ""
    if NFTA_TRACE_VERDICT in fields:
        inner = attrs(fields[NFTA_TRACE_VERDICT])
        (code,) = struct.unpack("!i", inner[NFTA_VERDICT_CODE])
        verdict = VERDICTS.get(code if code < 0 else code & VERDICT_MASK, str(code))
        target = text(inner.get(NFTA_VERDICT_CHAIN))
    elif NFTA_TRACE_POLICY in fields:
        verdict = VERDICTS[_number(fields[NFTA_TRACE_POLICY]) & VERDICT_MASK]
    return Event(
        _number(fields[NFTA_TRACE_ID]),
        FAMILIES.get(body[0], str(body[0])),
        text(fields.get(NFTA_TRACE_TABLE)),
        text(fields.get(NFTA_TRACE_CHAIN)),
        kind,
        verdict,
        target,
        _number(fields.get(NFTA_TRACE_RULE_HANDLE)),
        _number(fields.get(NFTA_TRACE_IIF)),
        _number(fields.get(NFTA_TRACE_OIF)),
        _number(fields.get(NFTA_TRACE_MARK)),
        headers(fields.get(NFTA_TRACE_NETWORK_HEADER, b""), fields.get(NFTA_TRACE_TRANSPORT_HEADER, b"")),
    )


def headers(network: bytes, transport: bytes) -> Headers | None:
    """Of an IP packet; None for another one, or without its headers."""
    version = network[0] >> 4 if network else 0
    if version == 4 and len(network) >= 20:
        protocol, source, destination = network[9], network[12:16], network[16:20]
    elif version == 6 and len(network) >= 40:
        protocol, source, destination = network[6], network[8:24], network[24:40]
    else:
        return None
    if protocol not in PROTOCOLS or len(transport) < 4:
        return Headers(str(protocol), Ends(_address(source), 0, _address(destination), 0))
    ports = struct.unpack_from("!HH", transport)
    between = Ends(_address(source), ports[0], _address(destination), ports[1])
    if PROTOCOLS[protocol] != "tcp" or len(transport) < 14:
        return Headers(PROTOCOLS[protocol], between)
    flags = tuple(name for bit, name in enumerate(TCP_FLAGS) if transport[13] >> bit & 1)
    return Headers("tcp", between, flags, struct.unpack_from("!II", transport, 4))


def flow(happened: str, body: bytes) -> Flow:
    """Of a message of conntrack. KeyError or StopIteration for protocols without ports."""
    fields = attrs(body[4:])
    protocol = attrs(attrs(fields[CTA_TUPLE_ORIG])[CTA_TUPLE_PROTO])[CTA_PROTO_NUM][0]
    status = _number(fields.get(CTA_STATUS))
    tcp = attrs(attrs(fields.get(CTA_PROTOINFO, b"")).get(CTA_PROTOINFO_TCP, b""))
    state = number(tcp.get(CTA_PROTOINFO_TCP_STATE))
    return Flow(
        happened,
        PROTOCOLS[protocol],
        _ends(fields[CTA_TUPLE_ORIG]),
        _ends(fields[CTA_TUPLE_REPLY]),
        tuple(word for bit, word in STATUS.items() if status & bit),
        TCP_STATES[state] if 0 < state < len(TCP_STATES) else "",
    )


def _ends(direction: bytes) -> Ends:
    source, source_port, destination, destination_port = ends(direction)
    return Ends(_address(source), source_port, _address(destination), destination_port)


def _address(raw: bytes) -> str:
    return str(ipaddress.ip_address(bytes(raw)))


def _number(payload: bytes | None) -> int:
    """Numbers of nfnetlink are in network byte order."""
    return int.from_bytes(payload or b"", "big")
