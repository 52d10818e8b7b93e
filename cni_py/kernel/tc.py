"""Traffic control: limits for both directions of an interface, and a filter that guards the host's loopback.

    root 1:  tbf                             limits what leaves by the interface: on a host's veth what the container receives
    ffff:    ingress, u32 prio 1 -> mirred   sends what comes in to an ifb device, whose own tbf limits it
             bpf prio 1, u32 prio 2          with guard_loopback(): drops what comes in to or from 127.0.0.0/8, the ifb is second

An interface has queues for what leaves alone, hence the ifb for the other direction. Qdiscs ingress and clsact have one handle,
ffff:, and an interface has one of the two. Filters of one priority are of one kind (tcf_proto_lookup_ops(); EINVAL otherwise).

Sources: tc-tbf(8), tc-mirred(8), tc-bpf(8), Linux include/uapi/linux/{pkt_sched,pkt_cls,filter}.h, tc_act/tc_mirred.h,
net/sched/{sch_tbf,cls_bpf}.c.
"""

import _struct
import errno

from cni_py.kernel import rtnl, sysctl
from cni_py.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_ECHO,
    NLM_F_EXCL,
    attr,
    attrs,
    nested,
    number,
    text,
    u32,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.rtnl import Link, Rtnl

    Program = tuple[tuple[int, int, int, int], ...]  # lines of classic BPF

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38  # rtnetlink.h
RTM_NEWTFILTER, RTM_GETTFILTER = 44, 46
TCA_KIND, TCA_OPTIONS = 1, 2
LOOPBACK_INDEX = 1  # LOOPBACK_IFINDEX, include/net/flow.h

TC_H_ROOT, TC_H_INGRESS = 0xFFFFFFFF, 0xFFFFFFF1  # pkt_sched.h
TBF_HANDLE, INGRESS_HANDLE = 0x0001_0000, 0xFFFF_0000  # 1: and ffff:
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6
NS_PER_TICK = 64  # 1 << PSCHED_SHIFT, include/net/pkt_sched.h: the unit of the "buffer" below
LATENCY_MS = 25  # how long a packet may wait, as the Go plugin has it
U32_MAX = 0xFFFFFFFF

TCA_U32_CLASSID, TCA_U32_SEL, TCA_U32_ACT = 1, 5, 7  # pkt_cls.h
TC_U32_TERMINAL = 1
TCA_ACT_KIND, TCA_ACT_OPTIONS = 1, 2
TCA_MIRRED_PARMS = 2
_TC_ACT_STOLEN, _TCA_EGRESS_REDIR = 4, 1
_PRIORITY = 1
_ETH_P_ALL = 0x0300  # in network byte order

TCA_BPF_OPS_LEN, TCA_BPF_OPS, TCA_BPF_FLAGS = 4, 5, 8  # pkt_cls.h
_TCA_BPF_FLAG_ACT_DIRECT = 1
_CLSACT_INGRESS, _CLSACT_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_CLSACT | TC_H_MIN_INGRESS: qdisc ingress takes it, too
# Classic BPF (filter.h): operation, jumps if true and if false, operand. A frame comes by here with its outer tag taken off its
# data; the kernel strips as many tags of VLAN 0 as there are and then takes what is inside for IP, so a second tag is dropped.
_LOAD_BYTE, _LOAD_HALF, _AND, _IF_EQUAL, _RETURN = 0x30, 0x28, 0x54, 0x15, 0x06
_LOAD_BYTE_AT_X, _LOAD_HALF_AT_X, _HEADER_TO_X, _IF_ANY, _IF_AT_LEAST = 0x50, 0x48, 0xB1, 0x45, 0x35
_PROTOCOL, _VLAN_TCI = 0xFFFFF000, 0xFFFFF02C  # SKF_AD_OFF + SKF_AD_PROTOCOL, SKF_AD_VLAN_TAG
_SOURCE, _DESTINATION = 0xFFF0000C, 0xFFF00010  # SKF_NET_OFF + the offsets in struct iphdr
_IP, _FRAGMENT, _IP_PROTOCOL = 0xFFF00000, 0xFFF00006, 0xFFF00009
_TCP_FLAGS, _UDP_PORT = _IP + 13, _IP + 2  # after the IP header: in struct tcphdr, and the destination in struct udphdr
_TC_ACT_SHOT, _TC_ACT_UNSPEC = 2, 0xFFFFFFFF  # dropped; left to the filters after this one
_GUARD = (
    (_LOAD_HALF, 0, 0, _PROTOCOL),
    (_IF_EQUAL, 0, 4, 0x0800),  # IPv4
    (_LOAD_BYTE, 0, 0, _DESTINATION),
    (_IF_EQUAL, 7, 0, 127),
    (_LOAD_BYTE, 0, 0, _SOURCE),
    (_IF_EQUAL, 5, 6, 127),
    (_IF_EQUAL, 1, 0, 0x8100),  # 802.1Q
    (_IF_EQUAL, 0, 4, 0x88A8),  # 802.1ad
    (_LOAD_HALF, 0, 0, _VLAN_TCI),
    (_AND, 0, 0, 0x0FFF),
    (_IF_EQUAL, 0, 1, 0),
    (_RETURN, 0, 0, _TC_ACT_SHOT),
    (_RETURN, 0, 0, _TC_ACT_UNSPEC),
)
# What comes in by a bridge may be the container's answer to a process of the host: where br_netfilter is on, conntrack has put
# 127.0.0.1 back as its destination before the bridge passes it up. So new TCP connections are dropped there, and UDP to ports
# below those that the host's clients have (the operand in line _FROM_PORT); and nothing from 127.0.0.0/8 goes out, without
# which no connection comes about.
_BRIDGE_GUARD = (
    (_LOAD_HALF, 0, 0, _PROTOCOL),
    (_IF_EQUAL, 0, 17, 0x0800),  # IPv4
    (_LOAD_BYTE, 0, 0, _SOURCE),
    (_IF_EQUAL, 20, 0, 127),
    (_LOAD_BYTE, 0, 0, _DESTINATION),
    (_IF_EQUAL, 0, 19, 127),
    (_LOAD_HALF, 0, 0, _FRAGMENT),
    (_IF_ANY, 16, 0, 0x3FFF),  # more to come, or an offset: the ports may be in another fragment
    (_LOAD_BYTE, 0, 0, _IP_PROTOCOL),
    (_IF_EQUAL, 6, 0, 17),  # UDP
    (_IF_EQUAL, 14, 0, 1),  # ICMP
    (_IF_EQUAL, 0, 12, 6),  # TCP
    (_HEADER_TO_X, 0, 0, _IP),
    (_LOAD_BYTE_AT_X, 0, 0, _TCP_FLAGS),
    (_AND, 0, 0, 0x12),
    (_IF_EQUAL, 8, 9, 0x02),  # SYN without ACK
    (_HEADER_TO_X, 0, 0, _IP),
    (_LOAD_HALF_AT_X, 0, 0, _UDP_PORT),
    (_IF_AT_LEAST, 6, 5, 32768),
    (_IF_EQUAL, 1, 0, 0x8100),  # 802.1Q
    (_IF_EQUAL, 0, 4, 0x88A8),  # 802.1ad
    (_LOAD_HALF, 0, 0, _VLAN_TCI),
    (_AND, 0, 0, 0x0FFF),
    (_IF_EQUAL, 0, 1, 0),
    (_RETURN, 0, 0, _TC_ACT_SHOT),
    (_RETURN, 0, 0, _TC_ACT_UNSPEC),
)
_FROM_PORT = 18
_WAY_OUT = (
    (_LOAD_HALF, 0, 0, _PROTOCOL),
    (_IF_EQUAL, 0, 3, 0x0800),
    (_LOAD_BYTE, 0, 0, _SOURCE),
    (_IF_EQUAL, 0, 1, 127),
    (_RETURN, 0, 0, _TC_ACT_SHOT),
    (_RETURN, 0, 0, _TC_ACT_UNSPEC),
)
_LINE = _struct.Struct("=HBBI")

TCMSG = _struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
_TBF = _struct.Struct("=BBHhHI 12x III")  # tc_ratespec with the rate last, no peak rate; limit, buffer, mtu
_SELECTOR = _struct.Struct("=BBBxHHhhI IIii")  # flags, shifts, one key: mask, value, offset, mask of the offset
_MIRRED = _struct.Struct("=IIiiiiI")  # index, capabilities, action, reference counts, eaction, interface


class TokenBucket:
    """A limit: `rate` in bytes/s, `burst` in bytes."""

    __slots__ = ("burst", "rate")

    def __init__(self, rate: int, burst: int) -> None:
        self.rate = rate
        self.burst = burst

    @property
    def limit(self) -> int:
        """Bytes that may wait: what the rate sends within the latency, and a burst."""
        return min(self.rate * LATENCY_MS // 1000 + self.burst, U32_MAX)

    @property
    def ticks(self) -> int:
        """How long a burst takes at the rate, in ticks; rounded to microseconds on the way, as the Go plugin does."""
        return self.burst * 1_000_000 // self.rate * 1000 // NS_PER_TICK

    def options(self) -> bytes:
        """The attributes of the queueing discipline.

        A burst that takes longer than the ticks of 32 bits last (4 min 35 s) goes in a field of its own.
        """
        # A rate above 32 bits is all ones there and goes into an attribute (psched_ratecfg_precompute()).
        parameters = _TBF.pack(0, 0, 0, 0, 0, min(self.rate, U32_MAX), self.limit, min(self.ticks, U32_MAX), 0)
        given = attr(TCA_TBF_PARMS, parameters)
        if self.rate > U32_MAX:
            given += attr(TCA_TBF_RATE64, _struct.pack("=Q", self.rate))
        if self.ticks > U32_MAX:
            given += attr(TCA_TBF_BURST, u32(self.burst))
        return given


class ShownBucket:
    """A token bucket as the kernel showed it: the burst in ticks, of which the kernel shows the lower 32 bits."""

    __slots__ = ("limit", "rate", "ticks")

    def __init__(self, options: bytes) -> None:
        found = attrs(options)
        *_, rate, self.limit, self.ticks, _ = _TBF.unpack(found[TCA_TBF_PARMS])
        self.rate: int = number(found.get(TCA_TBF_RATE64)) or rate

    def is_like(self, wanted: TokenBucket) -> bool:
        """Whether it has the rate, limit and burst of `wanted`.

        The kernel keeps a burst in nanoseconds by a multiplication that rounds, so ticks may differ (psched_l2t_ns()).
        """
        off = (self.ticks - wanted.ticks) % (U32_MAX + 1)
        most = 16 + wanted.ticks // 1_000_000
        return (self.rate, self.limit) == (wanted.rate, wanted.limit) and min(off, U32_MAX + 1 - off) <= most


# Queueing disciplines


def add_tbf(side: "Rtnl", index: int, bucket: TokenBucket) -> None:
    """Add a token bucket as root 1: of an interface.

    FileExistsError when it has a root already that somebody made; ENOENT when the kernel has no tbf, EINVAL for a rate of 0.
    """
    options = nested(TCA_OPTIONS, bucket.options())
    side.request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, qdisc(index, TBF_HANDLE, TC_H_ROOT, "tbf") + options)


def tbf(side: "Rtnl", index: int) -> ShownBucket | None:
    """The token bucket at root 1: of an interface; None when there is none."""
    options = qdisc_options(side, qdisc(index, TBF_HANDLE, TC_H_ROOT, "tbf"))
    return None if options is None else ShownBucket(options)


def root_kind(side: "Rtnl", index: int) -> str:
    """The kind of an interface's root 1:, "" where it has none."""
    answers = _ask(side, TCMSG.pack(0, index, TBF_HANDLE, TC_H_ROOT, 0))
    return text(attrs(answers[0][TCMSG.size :]).get(TCA_KIND)) if answers else ""


def delete_tbf(side: "Rtnl", index: int) -> bool:
    """Delete the token bucket at root 1:. False when there is none; a root of another kind or handle stays."""
    return side.delete(RTM_DELQDISC, qdisc(index, TBF_HANDLE, TC_H_ROOT, "tbf"), ABSENT)


def add_ingress(side: "Rtnl", index: int) -> None:
    """Add an ingress qdisc. FileExistsError when the interface has one; ENOENT when the kernel has none."""
    side.request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, qdisc(index, INGRESS_HANDLE, TC_H_INGRESS, "ingress"))


def has_ingress(side: "Rtnl", index: int) -> bool:
    """Whether the interface has an ingress qdisc in use: not merely with the guard of the host's loopback in it."""
    there = qdisc_options(side, qdisc(index, INGRESS_HANDLE, TC_H_INGRESS, "ingress")) is not None
    return there and not (guards_loopback(side, index) and not redirects(side, index))


def delete_ingress(side: "Rtnl", index: int) -> bool:
    """Delete the ingress qdisc with all its filters. False when there is none."""
    return side.delete(RTM_DELQDISC, qdisc(index, INGRESS_HANDLE, TC_H_INGRESS, "ingress"), ABSENT)


# What the kernel answers where there is no such interface; no such root or handle; one of another kind (tc_get_qdisc()).
ABSENT = (errno.ENODEV, errno.ENOENT, errno.EINVAL)


def qdisc_options(side: "Rtnl", body: bytes) -> bytes | None:
    """The options of a qdisc; None when the interface does not have this one."""
    answers = _ask(side, body)
    return attrs(answers[0][TCMSG.size :]).get(TCA_OPTIONS, b"") if answers else None


def _ask(side: "Rtnl", body: bytes) -> list[bytes]:
    """What the kernel tells of a qdisc; empty when the interface does not have it."""
    try:
        # Without NLM_F_ECHO the answer goes to the listeners of a group, and not to us (qdisc_notify()).
        return [answer for _, answer in side.request(RTM_GETQDISC, NLM_F_ECHO, body)]
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise


def qdisc(index: int, handle: int, parent: int, kind: str) -> bytes:
    return TCMSG.pack(0, index, handle, parent, 0) + attr(TCA_KIND, kind.encode() + b"\0")


# What comes in


def add_redirect(side: "Rtnl", index: int, target: int) -> None:
    """Send all that comes in by an interface, which has an ingress qdisc, out by the interface `target`.

    ENOENT when the kernel has no u32 filters or no mirred action.
    """
    selector = _SELECTOR.pack(TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    mirred = _MIRRED.pack(0, 0, _TC_ACT_STOLEN, 0, 0, _TCA_EGRESS_REDIR, target)
    action = attr(TCA_ACT_KIND, b"mirred\0") + nested(TCA_ACT_OPTIONS, attr(TCA_MIRRED_PARMS, mirred))
    options = nested(
        TCA_OPTIONS,
        attr(TCA_U32_CLASSID, u32(TBF_HANDLE | 1)),
        attr(TCA_U32_SEL, selector),
        nested(TCA_U32_ACT, nested(1, action)),
    )
    head = _filter(index, _PRIORITY + guards_loopback(side, index))
    side.request(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, head + attr(TCA_KIND, b"u32\0") + options)


def redirects(side: "Rtnl", index: int) -> list[int]:
    """The interfaces that an interface's redirects lead to, 0 for one that is gone (mirred_device_event())."""
    try:
        answers = side.request(RTM_GETTFILTER, NLM_F_DUMP, TCMSG.pack(0, index, 0, INGRESS_HANDLE, 0))
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise
    targets = []
    for _, answer in answers:
        options = attrs(attrs(answer[TCMSG.size :]).get(TCA_OPTIONS, b""))
        for action in attrs(options.get(TCA_U32_ACT, b"")).values():
            found = attrs(action)
            parameters = attrs(found.get(TCA_ACT_OPTIONS, b"")).get(TCA_MIRRED_PARMS, b"")
            if found.get(TCA_ACT_KIND) == b"mirred\0" and len(parameters) >= _MIRRED.size:
                targets.append(int(_MIRRED.unpack_from(parameters)[-1]))
    return targets


def _filter(index: int, priority: int) -> bytes:
    return TCMSG.pack(0, index, 0, INGRESS_HANDLE, priority << 16 | _ETH_P_ALL)


# The guard of the host's loopback


def filter_loopback(side: "Rtnl", link: "Link") -> str:
    """guard_loopback() for an interface of any kind. Why it is impossible, or ""."""
    # clsact, which others that want a qdisc there (Cilium) expect; a veth gets ingress, which is what bandwidth knows.
    try:
        if link.kind == "bridge":
            guard_loopback(side, link.index, kind="clsact", program=_bridge_guard())
            _add_guard(side, link.index, _CLSACT_EGRESS, _WAY_OUT)
        else:
            guard_loopback(side, link.index, kind="ingress" if link.kind == "veth" else "clsact")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "the kernel lacks CONFIG_NET_SCH_INGRESS or CONFIG_NET_CLS_BPF"
        return f"{error.strerror or error}"
    return ""


def _bridge_guard() -> "Program":
    """The program for a bridge, with the first of the ports that this host's clients get (net.ipv4.ip_local_port_range)."""
    lines = list(_BRIDGE_GUARD)
    first = int(sysctl.read("ipv4/ip_local_port_range").split()[0])
    lines[_FROM_PORT] = (*lines[_FROM_PORT][:3], first)
    return tuple(lines)


def guard_loopback(side: "Rtnl", index: int, *, kind: str, program: "Program" = _GUARD) -> None:
    """Drop what comes in by an interface to or from 127.0.0.0/8. `kind` (ingress or clsact) is that of a missing qdisc.

    OSError: ENOENT when the kernel has no such qdisc or no bpf filters, another when somebody's filter has our place.
    """
    try:
        side.request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, qdisc(index, INGRESS_HANDLE, TC_H_INGRESS, kind))
    except FileExistsError:
        pass
    _add_guard(side, index, _CLSACT_INGRESS, program)


def _add_guard(side: "Rtnl", index: int, hook: int, program: "Program") -> None:
    options = nested(
        TCA_OPTIONS,
        attr(TCA_BPF_OPS_LEN, _struct.pack("=H", len(program))),
        attr(TCA_BPF_OPS, _ops(program)),
        attr(TCA_BPF_FLAGS, u32(_TCA_BPF_FLAG_ACT_DIRECT)),
    )
    try:
        side.request(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, _guard(index, hook) + options)
    except FileExistsError:
        if not _has_guard(side, index, hook):
            raise


def guards_loopback(side: "Rtnl", index: int) -> bool:
    """Whether guard_loopback()'s filter is there."""
    return _has_guard(side, index, _CLSACT_INGRESS)


def _has_guard(side: "Rtnl", index: int, hook: int) -> bool:
    try:
        answers = side.request(RTM_GETTFILTER, 0, _guard(index, hook))
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise
    options = [attrs(attrs(answer[TCMSG.size :]).get(TCA_OPTIONS, b"")) for _, answer in answers]
    return any(_is_guard(found.get(TCA_BPF_OPS, b"")) for found in options)


def _is_guard(ops: bytes) -> bool:
    """Whether a program is one of ours, whatever the host's range of local ports was."""
    if ops in (_ops(_GUARD), _ops(_WAY_OUT)):
        return True
    start = _LINE.size * _FROM_PORT
    cut = [each[:start] + each[start + _LINE.size :] for each in (ops, _ops(_BRIDGE_GUARD))]
    return cut[0] == cut[1]


def _ops(program: "Program") -> bytes:
    return b"".join(_LINE.pack(*line) for line in program)


def _guard(index: int, hook: int) -> bytes:
    return TCMSG.pack(0, index, 1, hook, _PRIORITY << 16 | _ETH_P_ALL) + attr(TCA_KIND, b"bpf\0")


# ifb devices


def add_ifb(side: "Rtnl", name: str, mac: bytes, mtu: int) -> None:
    """Add an ifb device, down, with a queue of length 0 as the Go plugin has it. EOPNOTSUPP when the kernel has none."""
    side.add_link("ifb", name, mac, mtu, given=attr(rtnl.IFLA_TXQLEN, u32(0)))


def lacking(side: "Rtnl") -> str:
    """Name the missing kernel module (tbf, ifb), or "". Probes with requests that always fail, so nothing changes."""
    try:  # without options tbf_init() refuses it; an unknown kind is refused before
        body = qdisc(LOOPBACK_INDEX, TBF_HANDLE, TC_H_ROOT, "tbf")
        side.request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "tbf (CONFIG_NET_SCH_TBF)"
    return "" if rtnl.has_kind(side, "ifb") else "ifb (CONFIG_IFB)"
