"""Traffic control: two classes of what leaves by an interface, one that is limited and one that is not.

    root 1:  htb, default one of the two
    1:30     limited (0x30)         1:1  not limited
    u32      packets of one of the networks to the class that is not the default; IPv6 at priority 15, IPv4 at 16

Numbers and parameters are those of the Go plugin 1.5.1, the last that had them.

Sources: tc-htb(8), tc-u32(8), Linux include/uapi/linux/pkt_sched.h, net/sched/sch_htb.c.
"""

import _socket
import _struct
import errno

from cni_py.addr import Address
from cni_py.kernel import tc
from cni_py.kernel.netlink import NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, attr, attrs, nested, number, u32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.kernel.rtnl import Rtnl

RTM_NEWTCLASS, RTM_GETTCLASS = 40, 42  # rtnetlink.h
TCA_HTB_PARMS, TCA_HTB_INIT, TCA_HTB_DIRECT_QLEN, TCA_HTB_RATE64, TCA_HTB_CEIL64 = 1, 2, 5, 6, 7  # pkt_sched.h
HANDLE = 0x0001_0000  # 1:
LIMITED, UNLIMITED = 0x30, 1  # the classes 1:30 and 1:1
UNLIMITED_RATE = 100_000_000_000  # bytes/s
QUEUE = 1000  # packets that may wait in a class
_VERSION, _RATE_TO_QUANTUM = 3, 10
_QUANTUM_MIN, _QUANTUM_MAX = 1000, 200_000  # bytes; beyond them the kernel takes them and complains in its log
_LINKLAYER_ETHERNET = 1
_GLOBAL = _struct.Struct("=IIIII")  # version, rate to quantum, default class, debug, packets past all classes
_CLASS = _struct.Struct("=BBHhHI BBHhHI IIIII")  # two tc_ratespec; buffer, cbuffer (ticks), quantum, level, prio
_KEY = _struct.Struct("=IIii")  # mask and value in network order, offset, mask of the offset
_SELECTOR = _struct.Struct("=BBBxHHhhI")  # flags, shift, number of keys, ...
_PROTOCOLS = {4: (0x0800, 16), 6: (0x86DD, 15)}  # EtherType, priority; one priority has filters of one protocol
_SOURCE, _DESTINATION = {4: 12, 6: 8}, {4: 16, 6: 24}  # offsets in the IP header

Filter = tuple[int, int, tuple[tuple[bytes, bytes, int], ...]]  # EtherType; class; mask, value and offset of each word


def add(
    side: "Rtnl", index: int, bucket: tc.TokenBucket, networks: "Iterable[Address]", *, exempt: bool, source: bool
) -> None:
    """Limit what leaves by an interface which is of `networks`, or (`exempt`) all but that.

    A packet is of a network when its destination, or (`source`) its source is. A burst that takes longer than 4 min 35 s is
    cut to that, which is the most that htb knows. FileExistsError when it has a root already that somebody made; ENOENT when
    the kernel has no htb or u32, EINVAL for a rate of 0.
    """
    default = LIMITED if exempt else UNLIMITED
    options = attr(TCA_HTB_INIT, _GLOBAL.pack(_VERSION, _RATE_TO_QUANTUM, default, 0, 0))
    options += attr(TCA_HTB_DIRECT_QLEN, u32(QUEUE))
    body = tc.qdisc(index, HANDLE, tc.TC_H_ROOT, "htb") + nested(tc.TCA_OPTIONS, options)
    side.request(tc.RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)
    _add_class(side, index, LIMITED, bucket.rate, 2 * bucket.rate, ticks(bucket))
    _add_class(side, index, UNLIMITED, UNLIMITED_RATE, UNLIMITED_RATE, 0)
    link = side.link(index)
    # A class's queue takes the interface's length for its own, and would drop everything with 0
    if link is not None and not link.tx_queue:
        for minor in (LIMITED, UNLIMITED):
            queue = tc.qdisc(index, 0, HANDLE | minor, "pfifo") + attr(tc.TCA_OPTIONS, u32(QUEUE))
            side.request(tc.RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, queue)
    for wanted in dict.fromkeys(wanted_filters(networks, exempt=exempt, source=source)):
        _add_filter(side, index, wanted)


def ticks(bucket: tc.TokenBucket) -> int:
    """How long a burst takes, as the limited class has it."""
    return min(bucket.ticks, tc.U32_MAX)


def _add_class(side: "Rtnl", index: int, minor: int, rate: int, ceil: int, burst: int) -> None:
    quantum = min(max(rate // _RATE_TO_QUANTUM, _QUANTUM_MIN), _QUANTUM_MAX)
    spec = [(0, _LINKLAYER_ETHERNET, 0, 0, 0, min(each, tc.U32_MAX)) for each in (rate, ceil)]
    given = attr(TCA_HTB_PARMS, _CLASS.pack(*spec[0], *spec[1], burst, burst, quantum, 0, 0))
    for kind, value in ((TCA_HTB_RATE64, rate), (TCA_HTB_CEIL64, ceil)):
        given += attr(kind, _struct.pack("=Q", value)) if value > tc.U32_MAX else b""
    head = tc.TCMSG.pack(0, index, HANDLE | minor, HANDLE, 0)
    body = head + attr(tc.TCA_KIND, b"htb\0") + nested(tc.TCA_OPTIONS, given)
    side.request(RTM_NEWTCLASS, NLM_F_CREATE | NLM_F_EXCL, body)


def wanted_filters(networks: "Iterable[Address]", *, exempt: bool, source: bool) -> "list[Filter]":
    """The filters that add() makes."""
    found = []
    for network in networks:
        start = (_SOURCE if source else _DESTINATION)[network.family]
        size = 8 * len(network.packed)
        mask = ((1 << size) - (1 << size - network.prefixlen)).to_bytes(size // 8, "big")
        words = range(0, len(mask), 4)
        value = network.network().packed
        keys = [(mask[at : at + 4], value[at : at + 4], start + at) for at in words if any(mask[at : at + 4])]
        minor = UNLIMITED if exempt else LIMITED
        found.append((_PROTOCOLS[network.family][0], minor, tuple(keys or [(bytes(4), bytes(4), 0)])))
    return found


def _add_filter(side: "Rtnl", index: int, wanted: "Filter") -> None:
    protocol, minor, keys = wanted
    priority = next(each for number, each in _PROTOCOLS.values() if number == protocol)
    selector = _SELECTOR.pack(tc.TC_U32_TERMINAL, 0, len(keys), 0, 0, 0, 0, 0)
    for mask, value, offset in keys:
        selector += mask + value + _struct.pack("=ii", offset, 0)
    options = nested(tc.TCA_OPTIONS, attr(tc.TCA_U32_CLASSID, u32(HANDLE | minor)), attr(tc.TCA_U32_SEL, selector))
    head = tc.TCMSG.pack(0, index, 0, HANDLE, priority << 16 | _socket.htons(protocol))
    side.request(tc.RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, head + attr(tc.TCA_KIND, b"u32\0") + options)


def delete(side: "Rtnl", index: int) -> bool:
    """Delete root 1: with its classes and filters. False when there is none; a root of another kind or handle stays."""
    body = tc.qdisc(index, HANDLE, tc.TC_H_ROOT, "htb")
    return side.delete(tc.RTM_DELQDISC, body, tc.ABSENT)


def default_class(side: "Rtnl", index: int) -> int | None:
    """The class of what no filter leads elsewhere; None where root 1: is no htb."""
    options = tc.qdisc_options(side, tc.qdisc(index, HANDLE, tc.TC_H_ROOT, "htb"))
    init = attrs(options or b"").get(TCA_HTB_INIT, b"")
    return int(_GLOBAL.unpack(init)[2]) if len(init) == _GLOBAL.size else None


def classes(side: "Rtnl", index: int) -> dict[int, tuple[int, int]]:
    """Rate (bytes/s) and ticks of a burst of each class."""
    found = {}
    for _, answer in side.request(RTM_GETTCLASS, NLM_F_DUMP, tc.TCMSG.pack(0, index, 0, 0, 0)):
        _, _, handle, _, _ = tc.TCMSG.unpack_from(answer)
        options = attrs(attrs(answer[tc.TCMSG.size :]).get(tc.TCA_OPTIONS, b""))
        parameters = options.get(TCA_HTB_PARMS, b"")
        if handle & 0xFFFF0000 == HANDLE and len(parameters) == _CLASS.size:
            values = _CLASS.unpack(parameters)
            found[handle & 0xFFFF] = (number(options.get(TCA_HTB_RATE64)) or values[5], values[12])
    return found


def filters(side: "Rtnl", index: int) -> "set[Filter]":
    """The filters that lead to classes."""
    try:
        answers = side.request(tc.RTM_GETTFILTER, NLM_F_DUMP, tc.TCMSG.pack(0, index, 0, HANDLE, 0))
    except OSError as error:
        if error.errno in tc.ABSENT:
            return set()
        raise
    found = set()
    for _, answer in answers:
        *_, info = tc.TCMSG.unpack_from(answer)
        options = attrs(attrs(answer[tc.TCMSG.size :]).get(tc.TCA_OPTIONS, b""))
        selector, to = options.get(tc.TCA_U32_SEL, b""), number(options.get(tc.TCA_U32_CLASSID))
        if len(selector) > _SELECTOR.size:
            cut = [selector[at : at + _KEY.size] for at in range(_SELECTOR.size, len(selector), _KEY.size)]
            keys = tuple((key[:4], key[4:8], int(_KEY.unpack(key)[2])) for key in cut if len(key) == _KEY.size)
            found.add((_socket.ntohs(info & 0xFFFF), to & 0xFFFF, keys))
    return found


def is_lacking(side: "Rtnl") -> bool:
    """Whether the kernel has no htb. Asks with a request that always fails: without options htb_init() refuses it."""
    body = tc.qdisc(tc.LOOPBACK_INDEX, HANDLE, tc.TC_H_ROOT, "htb")
    try:
        side.request(tc.RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)
    except OSError as error:
        return error.errno == errno.ENOENT
    return False
