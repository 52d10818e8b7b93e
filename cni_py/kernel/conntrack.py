"""Connection tracking: delete UDP flows that an added or removed port mapping has made wrong.

The kernel decides about NAT once, with the first packet of a flow, and keeps to it. The UDP flow of a client that keeps sending
never ends, so it would go on reaching the host, or a container that is gone.

Sources: Linux include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c; nf_internals.h for the
bits of the filter.
"""

import _struct
import errno

from cni_py.kernel.netlink import NETLINK_NETFILTER, NLM_F_DUMP, Socket, attr, attrs, nested

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE = (_SUBSYSTEM | number for number in (0, 1, 2))
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE, CTA_FILTER = 1, 2, 12, 18, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST = 1, 2, 3, 4
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS = 1, 2
CTA_FILTER_F_CTA_PROTO_NUM, CTA_FILTER_F_CTA_PROTO_SRC_PORT, CTA_FILTER_F_CTA_PROTO_DST_PORT = 1 << 3, 1 << 4, 1 << 5
AF_INET, AF_INET6 = 2, 10
UDP = 17

_U32 = _struct.Struct("=I")


class Flow:
    """A tracked UDP flow: source and destination of its first packet before NAT, and the address that answers it."""

    __slots__ = ("_attributes", "dst", "dst_port", "family", "replier", "src", "src_port")

    def __init__(self, body: bytes) -> None:
        self.family = body[0]
        self._attributes = attrs(body[4:])
        self.src, self.src_port, self.dst, self.dst_port = ends(self._attributes[CTA_TUPLE_ORIG])
        self.replier = _source(self._attributes[CTA_TUPLE_REPLY])

    def body(self) -> bytes:
        """The request body that names this flow."""
        # Without a tuple the kernel deletes every flow of the namespace (ctnetlink_del_conntrack()). The ID keeps a flow safe
        # that has begun since with the same addresses; in the zone of another it would not be found.
        named = (CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID)
        return bytes((self.family, 0, 0, 0)) + b"".join(
            (nested if kind == CTA_TUPLE_ORIG else attr)(kind, self._attributes[kind])
            for kind in named
            if kind in self._attributes
        )


def forget_udp(socket: Socket, ip_length: int, ports: "Collection[int]", wrong: "Callable[[Flow], bool]") -> int:
    """Delete the UDP flows of a family (addresses of 4 or 16 bytes) to one of `ports` that are `wrong`. Returns how many.

    `socket` is that of nftables, where there is one: each of NETLINK_NETFILTER waits when it is closed (see Nft.leave()).
    """
    flows = list(_flows(socket, AF_INET if ip_length == 4 else AF_INET6, ports))
    return sum(_delete(socket, flow) for flow in flows if wrong(flow))


def forget_udp_of(clients: "Collection[tuple[bytes, int]]", port: int) -> int:
    """Delete the UDP flows between a port of this host and clients of one family, whichever side began. Returns how many.

    A program of the host that goes on answering begins a flow of its own when that of its client has been deleted.
    """
    socket = Socket(NETLINK_NETFILTER)
    forgotten = 0
    family = AF_INET if len(next(iter(clients))[0]) == 4 else AF_INET6
    try:
        for kind in (CTA_PROTO_DST_PORT, CTA_PROTO_SRC_PORT):
            for flow in list(_with_port(socket, family, kind, port)):
                begun_there = kind == CTA_PROTO_DST_PORT
                client = (flow.src, flow.src_port) if begun_there else (flow.dst, flow.dst_port)
                if client in clients and port == (flow.dst_port if begun_there else flow.src_port):
                    forgotten += _delete(socket, flow)
    finally:
        socket.close()
    return forgotten


def _delete(socket: Socket, flow: Flow) -> bool:
    try:
        socket.request(IPCTNL_MSG_CT_DELETE, 0, flow.body())
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def _flows(socket: Socket, family: int, ports: "Collection[int]") -> "Iterator[Flow]":
    for flow in _with_port(socket, family, CTA_PROTO_DST_PORT, next(iter(ports)) if len(ports) == 1 else 0):
        if flow.dst_port in ports:
            yield flow


def _with_port(socket: Socket, family: int, kind: int, port: int) -> "Iterator[Flow]":
    """The flows that the kernel chooses by protocol, and by port unless it is 0 (since Linux 5.8; an older one shows all).

    A dump is not of one moment: a flow may end or begin meanwhile, and no message says so (ctnetlink_dump_table()).
    """
    known = [attr(CTA_PROTO_NUM, bytes((UDP,)))]
    flags = CTA_FILTER_F_CTA_PROTO_NUM
    if port:
        known.append(attr(kind, port.to_bytes(2, "big")))
        flags |= CTA_FILTER_F_CTA_PROTO_DST_PORT if kind == CTA_PROTO_DST_PORT else CTA_FILTER_F_CTA_PROTO_SRC_PORT
    body = (
        bytes((family, 0, 0, 0))
        + nested(CTA_TUPLE_ORIG, nested(CTA_TUPLE_PROTO, *known))
        + nested(
            CTA_FILTER,
            attr(CTA_FILTER_ORIG_FLAGS, _U32.pack(flags)),
            attr(CTA_FILTER_REPLY_FLAGS, _U32.pack(0)),
        )
    )
    for message, answer in socket.request(IPCTNL_MSG_CT_GET, NLM_F_DUMP, body):
        if message == IPCTNL_MSG_CT_NEW and _is_udp(answer):
            yield Flow(answer)


def _is_udp(body: bytes) -> bool:
    proto = attrs(attrs(attrs(body[4:]).get(CTA_TUPLE_ORIG, b"")).get(CTA_TUPLE_PROTO, b""))
    return proto.get(CTA_PROTO_NUM) == bytes((UDP,))


def ends(direction: bytes) -> tuple[bytes, int, bytes, int]:
    """Address and port of one direction's source, then of its destination."""
    found = attrs(direction)
    ips, proto = attrs(found[CTA_TUPLE_IP]), attrs(found[CTA_TUPLE_PROTO])
    ports = (int.from_bytes(proto[kind], "big") for kind in (CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT))
    return _source(direction), next(ports), ips.get(CTA_IP_V4_DST) or ips[CTA_IP_V6_DST], next(ports)


def _source(direction: bytes) -> bytes:
    ips = attrs(attrs(direction)[CTA_TUPLE_IP])
    return ips.get(CTA_IP_V4_SRC) or ips[CTA_IP_V6_SRC]
