"""Sockets that wait for clients, in the network namespace of this process: TCP listeners, and UDP sockets without a peer.

The kernel lists them (NETLINK_SOCK_DIAG, sock_diag(7)), each family by its own request. A filter in inet_diag's bytecode names
the wanted ports, so ten thousand listeners cost a walk through the kernel's table and no more. Sockets that connect, are
connected, or are in TIME_WAIT do not wait.

Sources: Linux include/uapi/linux/inet_diag.h, net/ipv4/inet_diag.c (inet_diag_bc_run) and udp_diag.c.
"""

import _struct

from cni_py.kernel.netlink import NLM_F_DUMP, Socket, attr, attrs, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Runs = Sequence[tuple[int, int]]  # first and last port of each

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
AF_INET, AF_INET6 = 2, 10
PROTOCOLS = {"tcp": 6, "udp": 17}
TCP_CLOSE, TCP_LISTEN, TCP_BOUND_INACTIVE = 7, 10, 13  # include/net/tcp_states.h; the last since Linux 6.8
WAITING = {"tcp": TCP_LISTEN, "udp": TCP_CLOSE}
MAPPED = bytes(10) + b"\xff\xff"  # IPv4 in IPv6

_REQUEST = _struct.Struct("=BBBBI")  # struct inet_diag_req_v2 up to its inet_diag_sockid
_SOCKET_ID = _struct.Struct("!HH16s16s4s8s")  # ports, addresses, index of the link (host's order), cookie
_ANSWER = _struct.Struct("=IIIII")  # struct inet_diag_msg behind it: expires, queues, uid, inode
_ATTRIBUTES = 4 + _SOCKET_ID.size + _ANSWER.size
_REQ_BYTECODE = 1  # INET_DIAG_REQ_BYTECODE
_SKV6ONLY = 11  # INET_DIAG_SKV6ONLY, of sockets that wait
_JUMP, _SOURCE_GE, _SOURCE_LE = 1, 2, 3  # INET_DIAG_BC_*
_OP = _struct.Struct("=BBH")  # struct inet_diag_bc_op: code, how far to go for yes, and for no
_TEST = 2 * _OP.size  # a comparison: the number is in an operation of its own
_RUN = 2 * _TEST + _OP.size
_RUNS_MAX = 256  # each is looked at for each socket; of more, what lies between is passed over here


class Listener:
    """A socket that waits on `port` of `ip` (packed). An IPv6 socket bound to an IPv4 address (::ffff:a.b.c.d) is IPv4 here.

    `v6only`: one on :: does not take IPv4. `link`: the index of the only link that it takes clients from, 0 for all.
    """

    __slots__ = ("inode", "ip", "link", "port", "protocol", "uid", "v6only")

    def __init__(
        self, protocol: str, ip: bytes, port: int, uid: int, inode: int, *, v6only: bool = False, link: int = 0
    ) -> None:
        self.protocol = protocol
        self.ip = ip.removeprefix(MAPPED)
        self.port = port
        self.uid = uid
        self.inode = inode
        self.v6only = v6only
        self.link = link


def waiting(wanted: "Iterable[tuple[str, int, int]]") -> list[Listener]:
    """The sockets that wait on the wanted ports (protocol, first and last): as the kernel lists them, else from /proc/net.

    None for a protocol other than TCP and UDP, or where neither source can be read.
    """
    by_protocol: dict[str, list[tuple[int, int]]] = {}
    for protocol, first, last in wanted:
        by_protocol.setdefault(protocol, []).append((first, last))
    return [one for protocol in PROTOCOLS if protocol in by_protocol for one in _on(protocol, by_protocol[protocol])]


def _on(protocol: str, ports: "Runs") -> list[Listener]:
    """The sockets of a protocol on some ports."""
    try:
        found = dump(protocol, WAITING[protocol], joined(ports))
    except OSError:  # no inet_diag in this kernel, or none for us
        from cni_py.kernel import procnet

        # one on :: is taken for one that takes IPv4 as well, as is usual
        there = (one for one in procnet.lines(protocol) if one.state == WAITING[protocol])
        found = [Listener(protocol, one.ip, one.port, one.uid, one.inode) for one in there]
    if not found:
        return found
    wanted = bytearray(1 << 16)
    for first, last in ports:
        wanted[first : last + 1] = b"\1" * (last - first + 1)
    return [one for one in found if wanted[one.port]]


def joined(ports: "Runs") -> list[tuple[int, int]]:
    """The runs in ascending order, those that touch or overlap as one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ports):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def dump(protocol: str, state: int, runs: "Runs" = ()) -> list[Listener]:
    """The sockets in one state, on ports of `runs` (and, of more than 256 runs, between them); () for any port. OSError.

    A kernel whose module for the protocol (tcp_diag, udp_diag) is missing answers ENOENT.
    """
    if len(runs) > _RUNS_MAX:
        runs = [(runs[0][0], runs[-1][1])]
    chosen = attr(_REQ_BYTECODE, bytecode(runs)) if runs else b""
    socket = Socket(NETLINK_SOCK_DIAG)
    found: list[Listener] = []
    try:
        for family in (AF_INET, AF_INET6):
            head = _REQUEST.pack(family, PROTOCOLS[protocol], 0, 0, 1 << state)
            body = head + bytes(_SOCKET_ID.size) + chosen
            for kind, answer in socket.request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, body):
                if kind == SOCK_DIAG_BY_FAMILY:
                    found.append(_listener(protocol, answer))
    finally:
        socket.close()
    return found


def _listener(protocol: str, body: bytes) -> Listener:
    port, _, source, _, bound, _ = _SOCKET_ID.unpack_from(body, 4)
    uid, inode = _ANSWER.unpack_from(body, 4 + _SOCKET_ID.size)[3:]
    link = number(bound)
    if body[0] == AF_INET:
        return Listener(protocol, source[:4], port, uid, inode, link=link)
    v6only = any(attrs(body[_ATTRIBUTES:]).get(_SKV6ONLY, b""))
    return Listener(protocol, source, port, uid, inode, v6only=v6only, link=link)


def bytecode(runs: "Runs") -> bytes:
    """A program that passes the sockets whose port is in one of the runs.

    Each run is `port >= first`, `port <= last`, and a jump to the end of the program, where a socket passes. A "no" continues
    with the next run; that of the last run jumps four bytes beyond the end, where a socket is dropped (inet_diag_bc_run()).
    The kernel accepts jumps forward only, in multiples of 4 (inet_diag_bc_audit()).
    """
    parts: list[bytes] = []
    left = len(runs) * _RUN
    for first, last in runs:
        beyond = _OP.size if left == _RUN else 0
        parts += (
            _OP.pack(_SOURCE_GE, _TEST, _RUN + beyond) + _OP.pack(0, 0, first),
            _OP.pack(_SOURCE_LE, _TEST, _RUN - _TEST + beyond) + _OP.pack(0, 0, last),
            _OP.pack(_JUMP, _OP.size, left - 2 * _TEST),
        )
        left -= _RUN
    return b"".join(parts)
