"""nf_tables: the tables of cni-py. Their rules are constant; containers come and go as set and map elements.

Elements are written, read and deleted by the small codec below: one netlink message for what libnftables needs a cache of
everybody's tables for. Rules and chains are made by libnftables itself, rarely: once a boot, and once for each subnet.

Sources: Linux include/uapi/linux/netfilter/nf_tables.h, libnftnl src/set_elem.c and include/libnftnl/udata.h. A bare
concatenation of values is a key: each is padded to 4 bytes.
"""

import _struct
import errno

from cni_py.errors import CniError
from cni_py.kernel.netlink import (
    NETLINK_NETFILTER,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    Socket,
    attr,
    attrs,
    iter_attrs,
    nested,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

TABLE = "cni_py"
INET, BRIDGE = 1, 7  # NFPROTO_*, linux/netfilter.h
LAYOUT = 1  # raise with every change of the texts below: an older table is then brought up to date

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
NFT_MSG_NEWSETELEM = _SUBSYSTEM | 12
NFT_MSG_GETSETELEM = _SUBSYSTEM | 13
NFT_MSG_DELSETELEM = _SUBSYSTEM | 14
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_LIST_ELEM = 1
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_USERDATA = 1, 2, 3, 6
NFTA_DATA_VALUE, NFTA_DATA_VERDICT = 1, 2
NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN = 1, 2
NFT_JUMP = -3
NFT_SET_ELEM_INTERVAL_END = 1
NFTNL_UDATA_SET_ELEM_COMMENT = 0
COMMENT_MAX = 128  # NFTNL_UDATA_COMMENT_MAXLEN

_U32 = _struct.Struct("!I")
_I32 = _struct.Struct("!i")
_CHUNK = 200  # elements a message; a netlink attribute holds at most 64 KiB
_GET_CHUNK = 64  # each is answered by a datagram of its own, which must fit into the receive buffer together

FAMILIES = (("4", "ip", "ipv4", "ipv4_addr"), ("6", "ip6", "ipv6", "ipv6_addr"))
RANGE_PROTOCOLS = ("tcp", "udp", "sctp")

# Traps that these rules avoid, each shown by a packet test:
# - a DNAT rule that matches ::1 or a link-local address turns "refused" into a hang: the kernel forwards neither
# - a packet for 127/8 from outside must not be DNATed: that happens before the kernel's martian check
# - route_localnet would open the host's own loopback to that link: local_links is looked at before it is set
# - hairpin: the answer of a container must come back through the host whenever client and container share a subnet
# The priority on the output hook is a number because nft 1.0.6 knows no names there; `dnat ip` does not look at the
# family of the packet, hence the two chains.
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
add chain bridge cni_py prerouting {{ type filter hook prerouting priority -300; policy accept; }}
flush chain bridge cni_py prerouting
add rule bridge cni_py prerouting iifname @spoof_checked iifname . ether saddr != @spoof_allowed drop
flush set bridge cni_py layout
add element bridge cni_py layout {{ {layout} }}
"""


def skeleton(family: int) -> str:
    """The text that makes a table, or brings it up to date; elements that are there stay."""
    if family == BRIDGE:
        return BRIDGE_TABLE.format(layout=LAYOUT)
    maps, rules = "", ""
    for n, ip, _, addr in FAMILIES:
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


class NftUnavailable(CniError):
    """The kernel has no nf_tables for us, or libnftables is needed and not there."""


class Element:
    """One element of a set or map.

    `value` is the data of a map as bytes, or the name of the chain to jump to, or None for a set. `end` marks the first
    key after an interval.
    """

    __slots__ = ("comment", "end", "key", "value")

    def __init__(self, key: bytes, value: bytes | str | None = None, comment: str = "", *, end: bool = False) -> None:
        self.key = key
        self.value = value
        self.comment = comment
        self.end = end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Element) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        return f"Element({self.key.hex()}, {self.value!r}, {self.comment!r}, end={self.end})"

    def _fields(self) -> tuple[bytes, bytes | str | None, str, bool]:
        return self.key, self.value, self.comment, self.end

    def encode(self, *, key_only: bool = False) -> bytes:
        """As an attribute of a list of elements, in libnftnl's order."""
        parts = [attr(NFTA_SET_ELEM_FLAGS, _U32.pack(NFT_SET_ELEM_INTERVAL_END))] if self.end else []
        parts.append(nested(NFTA_SET_ELEM_KEY, attr(NFTA_DATA_VALUE, self.key)))
        if self.value is not None and not key_only:
            parts.append(nested(NFTA_SET_ELEM_DATA, _encode_value(self.value)))
        if self.comment and not key_only:
            text = self.comment.encode()[:COMMENT_MAX] + b"\0"
            parts.append(attr(NFTA_SET_ELEM_USERDATA, bytes((NFTNL_UDATA_SET_ELEM_COMMENT, len(text))) + text))
        return nested(NFTA_LIST_ELEM, *parts)

    @classmethod
    def decode(cls, data: bytes) -> "Element":
        """From what is inside such an attribute."""
        found = attrs(data)
        key = attrs(found[NFTA_SET_ELEM_KEY])[NFTA_DATA_VALUE]
        value = _decode_value(found[NFTA_SET_ELEM_DATA]) if NFTA_SET_ELEM_DATA in found else None
        flags = _U32.unpack(found.get(NFTA_SET_ELEM_FLAGS, bytes(4)))[0]
        end = bool(flags & NFT_SET_ELEM_INTERVAL_END)
        return cls(key, value, _comment(found.get(NFTA_SET_ELEM_USERDATA, b"")), end=end)


def concat(*values: bytes) -> bytes:
    """A concatenation, as in `ip daddr . th dport`."""
    return b"".join(value + b"\0" * (-len(value) & 3) for value in values)


def ifname_key(name: str) -> bytes:
    """An interface's name as a key of type ifname: 16 bytes (IFNAMSIZ, linux/if.h)."""
    return name.encode().ljust(16, b"\0")


def _encode_value(value: bytes | str) -> bytes:
    if isinstance(value, bytes):
        return attr(NFTA_DATA_VALUE, value)
    code = attr(NFTA_VERDICT_CODE, _I32.pack(NFT_JUMP))
    return nested(NFTA_DATA_VERDICT, code, attr(NFTA_VERDICT_CHAIN, value.encode() + b"\0"))


def _decode_value(data: bytes) -> bytes | str:
    found = attrs(data)
    if NFTA_DATA_VALUE in found:
        return found[NFTA_DATA_VALUE]
    verdict = attrs(found.get(NFTA_DATA_VERDICT, b""))
    return verdict.get(NFTA_VERDICT_CHAIN, b"").rstrip(b"\0").decode("utf-8", "replace")


def _comment(userdata: bytes) -> str:
    """The comment among the (type, length, value) entries of an element's user data."""
    while len(userdata) >= 2:
        kind, length = userdata[0], userdata[1]
        if kind == NFTNL_UDATA_SET_ELEM_COMMENT:
            return userdata[2 : 2 + length].rstrip(b"\0").decode("utf-8", "replace")
        userdata = userdata[2 + length :]
    return ""


class Change:
    """One line of a transaction: put elements into a set, each of which must not be there yet, or take them out."""

    __slots__ = ("add", "elements", "family", "set_name")

    def __init__(self, add: bool, set_name: str, elements: "Sequence[Element]", family: int = INET) -> None:
        self.add = add
        self.set_name = set_name
        self.elements = elements
        self.family = family

    def messages(self) -> "Iterator[tuple[int, int, bytes]]":
        """As netlink messages."""
        kind = NFT_MSG_NEWSETELEM if self.add else NFT_MSG_DELSETELEM
        flags = NLM_F_CREATE | NLM_F_EXCL if self.add else 0
        for start in range(0, len(self.elements), _CHUNK):
            chunk = self.elements[start : start + _CHUNK]
            yield kind, flags, _body(self.family, self.set_name, chunk, key_only=not self.add)


def _body(family: int, set_name: str, elements: "Iterable[Element]", *, key_only: bool) -> bytes:
    """struct nfgenmsg, the set, and a list of elements."""
    return (
        bytes((family, 0, 0, 0))
        + attr(NFTA_SET_ELEM_LIST_TABLE, TABLE.encode() + b"\0")
        + attr(NFTA_SET_ELEM_LIST_SET, set_name.encode() + b"\0")
        + nested(NFTA_SET_ELEM_LIST_ELEMENTS, *(element.encode(key_only=key_only) for element in elements))
    )


class Nft:
    """Our tables in the network namespace the process is in when it is first used."""

    __slots__ = ("_socket", "current")

    def __init__(self) -> None:
        self._socket: Socket | None = None
        self.current: set[int] = set()  # families whose table was seen to be up to date

    def socket(self) -> Socket:
        """The nfnetlink socket. NftUnavailable when the kernel has none."""
        if self._socket is None:
            try:
                self._socket = Socket(NETLINK_NETFILTER)
            except OSError as error:
                raise NftUnavailable("this kernel has no nfnetlink (CONFIG_NETFILTER_NETLINK)", f"{error}") from error
        return self._socket

    def close(self) -> None:
        """A second call is harmless."""
        if self._socket is not None:
            self._socket.close()

    def get(self, set_name: str, keys: "Sequence[bytes]", family: int = INET) -> dict[bytes, Element]:
        """Those of the elements with `keys` that are there, by key. No set or table: none."""
        found: dict[bytes, Element] = {}
        for start in range(0, len(keys), _GET_CHUNK):
            chunk = keys[start : start + _GET_CHUNK]
            answers = self._ask(set_name, chunk, family)
            if answers is None and len(chunk) > 1:  # the kernel stops at the first that is missing
                for key in chunk:
                    found.update(self._ask(set_name, (key,), family) or {})
            found.update(answers or {})
        return found

    def _ask(self, set_name: str, keys: "Sequence[bytes]", family: int) -> dict[bytes, Element] | None:
        """The elements with all of `keys`; None when one is missing."""
        body = _body(family, set_name, [Element(key) for key in keys], key_only=True)
        try:
            answers = self.socket().request(NFT_MSG_GETSETELEM, 0, body)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise _unavailable(error) from error
        return {element.key: element for element in _elements(answers)}

    def dump(self, set_name: str, family: int = INET) -> list[Element]:
        """All elements of a set, which costs time for each of them: for looking around, not for a plugin's usual way."""
        try:
            answers = self.socket().request(NFT_MSG_GETSETELEM, NLM_F_DUMP, _body(family, set_name, (), key_only=True))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return []
            raise _unavailable(error) from error
        return list(_elements(answers))

    def transaction(self, changes: "Iterable[Change]") -> None:
        """All of the changes, or OSError and none: EEXIST when an element is there already, ENOENT when a chain is not."""
        messages = [message for change in changes for message in change.messages()]
        if messages:
            self.socket().batch(messages)

    def ensure_table(self, family: int = INET) -> None:
        """Make the table with its chains, rules and empty maps, unless it is there in this layout."""
        if family not in self.current and not self.has_table(family):
            from cni_py.kernel import libnftables

            libnftables.run(skeleton(family))
        self.current.add(family)

    def has_table(self, family: int = INET) -> bool:
        """Whether the table is there in this layout."""
        return bool(self.get("layout", (mark(LAYOUT),), family))


def mark(value: int) -> bytes:
    """A value of type mark: a number in the host's byte order."""
    return _struct.pack("=I", value)


def _elements(answers: "Iterable[tuple[int, bytes]]") -> "Iterator[Element]":
    for kind, body in answers:
        if kind == NFT_MSG_NEWSETELEM:
            for _, element in iter_attrs(attrs(body[4:]).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")):
                yield Element.decode(element)


def _unavailable(error: OSError) -> CniError:
    """What a refusal other than "not there" means: EINVAL comes from nfnetlink itself when nf_tables is missing."""
    if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
        return NftUnavailable("this kernel has no nf_tables for this family (CONFIG_NF_TABLES)", str(error))
    return CniError("cannot read the nftables table cni_py", str(error))
