"""Tracked connections that were translated, or go to a published port, of the namespace that this thread is in.

Sources: Linux include/uapi/linux/netfilter/{nfnetlink_conntrack,nf_conntrack_common,nf_conntrack_tcp}.h.
"""

from __future__ import annotations

import errno
from collections.abc import Collection

from cni_py.addr import ip_text
from cni_py.host.model import Flow
from cni_py.kernel import conntrack, modules
from cni_py.kernel.netlink import NETLINK_NETFILTER, Socket, attrs

CTA_STATUS, CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE = 3, 4, 1, 1
STATUS = {1 << 1: "seen-reply", 1 << 2: "assured", 1 << 3: "confirmed", 1 << 4: "snat", 1 << 5: "dnat"}  # IPS_*
TRANSLATED = 1 << 4 | 1 << 5
TCP_STATES = ("none", "syn-sent", "syn-recv", "established", "fin-wait", "close-wait", "last-ack", "time-wait", "close",
              "syn-sent2")  # enum tcp_conntrack  # fmt: skip
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
FAMILIES = (conntrack.AF_INET, conntrack.AF_INET6)
FLOWS_MAX = 5000
SEEN_MAX = 200_000  # entries that are looked at


def collect(ports: Collection[tuple[str, int]]) -> tuple[list[Flow], list[str]]:
    """The flows that were translated or go to one of `ports` (protocol and number); and sentences on what was left out."""
    if modules.would_load("nf_conntrack_netlink"):
        return [], []
    found: list[Flow] = []
    seen = 0
    for family in FAMILIES:
        socket = Socket(NETLINK_NETFILTER)
        try:
            for _, body in socket.stream(conntrack.IPCTNL_MSG_CT_GET, bytes((family, 0, 0, 0))):
                seen += 1
                flow = _wanted(body, ports)
                if flow is not None:
                    found.append(flow)
                if len(found) >= FLOWS_MAX or seen >= SEEN_MAX:
                    return found, [f"only the first {len(found)} of the tracked connections that matter were read"]
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                return found, ["tracked connections cannot be read: this needs root (CAP_NET_ADMIN)"]
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):  # no conntrack in this kernel
                return found, [f"tracked connections cannot be read: {error.strerror}"]
        finally:
            socket.close()
    return found, []


def _wanted(body: bytes, ports: Collection[tuple[str, int]]) -> Flow | None:
    """The flow in a message of conntrack, if it is one of those; None for other protocols, too: they have no ports."""
    found = attrs(body[4:])
    status = int.from_bytes(found.get(CTA_STATUS, b""), "big")
    try:
        number = attrs(attrs(found[conntrack.CTA_TUPLE_ORIG])[conntrack.CTA_TUPLE_PROTO])[conntrack.CTA_PROTO_NUM][0]
        protocol = PROTOCOLS[number]
        source, source_port, destination, port = conntrack.ends(found[conntrack.CTA_TUPLE_ORIG])
        if not status & TRANSLATED and (protocol, port) not in ports:
            return None
        back = conntrack.ends(found[conntrack.CTA_TUPLE_REPLY])
    except (KeyError, IndexError):
        return None
    tcp = attrs(attrs(found.get(CTA_PROTOINFO, b"")).get(CTA_PROTOINFO_TCP, b"")).get(CTA_PROTOINFO_TCP_STATE, b"")
    state = TCP_STATES[tcp[0]] if tcp and tcp[0] < len(TCP_STATES) else ""
    names = tuple(name for bit, name in STATUS.items() if status & bit)
    return Flow(
        protocol, ip_text(source), source_port, ip_text(destination), port,
        ip_text(back[0]), back[1], ip_text(back[2]), back[3], state, names,
    )  # fmt: skip
