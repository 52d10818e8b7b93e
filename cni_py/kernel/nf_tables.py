"""nf_tables: elements of the sets and maps of our tables, read and written by netlink messages of our own.

One message does what libnftables reads everybody's tables for. Chains and rules are made by kernel/libnftables.py, rarely:
once a boot, and once for each subnet (nftables/ruleset.py has their text).

Numbers in attributes are in network byte order here, other than in rtnetlink; a value of a set has the order of its type.

Sources: Linux include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c; libnftnl src/set_elem.c and
include/libnftnl/udata.h.
"""

import _socket
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
    refused_at,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FIRST_ATTRIBUTE = 20  # bytes: behind struct nlmsghdr and struct nfgenmsg
TABLE = "cni_py"
INET, BRIDGE = 1, 7  # NFPROTO_*, linux/netfilter.h

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
NFT_MSG_NEWCHAIN = _SUBSYSTEM | 3
NFT_MSG_GETCHAIN = _SUBSYSTEM | 4
NFT_MSG_DELCHAIN = _SUBSYSTEM | 5
NFT_MSG_NEWRULE = _SUBSYSTEM | 6
NFT_MSG_GETRULE = _SUBSYSTEM | 7
NFT_MSG_NEWSET = _SUBSYSTEM | 9
NFT_MSG_GETSET = _SUBSYSTEM | 10
NFT_MSG_DELSET = _SUBSYSTEM | 11
NFT_MSG_NEWSETELEM = _SUBSYSTEM | 12
NFT_MSG_GETSETELEM = _SUBSYSTEM | 13
NFT_MSG_DELSETELEM = _SUBSYSTEM | 14
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY = 1, 3, 5
NFTA_RULE_TABLE, NFTA_RULE_CHAIN = 1, 2
NFTA_SET_TABLE, NFTA_SET_NAME = 1, 2
NF_DROP, NF_ACCEPT = 0, 1  # linux/netfilter.h
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
# Elements in a message. They are inside one attribute, whose length has 16 bits: the largest element, with two IPv6 addresses
# and a comment of 128 bytes, has some 200 bytes.
_CHUNK = 200
_GET_CHUNK = 64  # keys in a message: all answers, a datagram each, must fit into the receive buffer before we read


class NftUnavailable(CniError):
    """The kernel has no nf_tables for us, or libnftables is needed and not there."""


class Element:
    """One element of a set or map.

    `value` is the data of a map as bytes, or the name of the chain to jump to, or None for a set. An interval is two
    elements: its first key, and the first key behind it with `end` and without a value (EINVAL otherwise:
    nft_add_set_elem()). One that reaches to the last key of the type has no end.
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
    """A key of several values, as in `ip daddr . th dport`. Each takes whole registers of 4 bytes, padded with zeros."""
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
    """A part of a transaction: add elements to a set, or (`add` False) delete them.

    Adding fails with EEXIST when an element is there: without NLM_F_EXCL the kernel takes the same key and value for done and
    keeps the comment of the first (nft_add_set_elem()), so two attachments would believe that it is theirs. Deleting one
    that is not there fails with ENOENT.
    """

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
            # A deletion names the key alone: a value or comment that differs by now does not keep the element.
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
    """A socket for our tables in the network namespace that the process is in when it is first used.

    `current` are the families whose table nftables/ruleset.py has found, or made, up to date through it.
    """

    __slots__ = ("_deleted", "_socket", "current")

    def __init__(self) -> None:
        self._socket: Socket | None = None
        self._deleted = False  # whether a transaction of ours has deleted something: see leave()
        self.current: set[int] = set()

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
        """The elements with these keys, by key, without those that are not there. A missing set or table has none."""
        found: dict[bytes, Element] = {}
        for start in range(0, len(keys), _GET_CHUNK):
            chunk = keys[start : start + _GET_CHUNK]
            answers = self._ask(set_name, chunk, family)
            # The kernel stops at the first that is missing: nf_tables_getsetelem().
            if answers is None and len(chunk) > 1:
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
        """All elements of a set; none for a set or table that is missing. Costs time for each: not for the usual ADD or DEL."""
        try:
            answers = self.socket().request(NFT_MSG_GETSETELEM, NLM_F_DUMP, _body(family, set_name, (), key_only=True))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return []
            raise _unavailable(error) from error
        return list(_elements(answers))

    def chain_policy(self, family: int, table: str, *chains: str) -> int | None:
        """The policy of the first of these chains that is there, NF_DROP or NF_ACCEPT; None when the table has none of them.

        A chain without a hook has no policy: NF_ACCEPT.
        """
        for chain in chains:
            names = attr(NFTA_CHAIN_TABLE, table.encode() + b"\0") + attr(NFTA_CHAIN_NAME, chain.encode() + b"\0")
            try:
                answers = self.socket().request(NFT_MSG_GETCHAIN, 0, bytes((family, 0, 0, 0)) + names)
            except OSError as error:
                # ENOENT: no such table or chain; the others: no nf_tables, or none for the family, as in _unavailable().
                if error.errno not in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                    raise CniError(f"cannot look for chain {chain} of table {table}", str(error)) from error
                if refused_at(error) == FIRST_ATTRIBUTE:
                    return None  # it is the table that is not there (nf_tables_getchain())
                continue
            policies = [attrs(body[4:]).get(NFTA_CHAIN_POLICY) for kind, body in answers if kind == NFT_MSG_NEWCHAIN]
            if policies:
                return NF_ACCEPT if policies[0] is None else int.from_bytes(policies[0], "big")
        return None

    def chains(self, family: int = INET) -> list[str]:
        """The names of the chains in our table."""
        return self._names(NFT_MSG_GETCHAIN, NFT_MSG_NEWCHAIN, NFTA_CHAIN_NAME, family)

    def rules(self, family: int = INET) -> list[str]:
        """The name of its chain for each rule in our table."""
        return self._names(NFT_MSG_GETRULE, NFT_MSG_NEWRULE, NFTA_RULE_CHAIN, family)

    def sets(self, family: int = INET) -> list[str]:
        """The names of the sets and maps in our table."""
        return self._names(NFT_MSG_GETSET, NFT_MSG_NEWSET, NFTA_SET_NAME, family)

    def _names(self, asked: int, answered: int, name: int, family: int) -> list[str]:
        """The name in each answer that is about our table. The number of the table's attribute is the same in all of them."""
        try:
            # A dump of chains is of all tables of the family: the kernel heeds no name of a table (nf_tables_dump_chains()).
            body = bytes((family, 0, 0, 0)) + attr(NFTA_RULE_TABLE, TABLE.encode() + b"\0")
            answers = self.socket().request(asked, NLM_F_DUMP, body if asked != NFT_MSG_GETCHAIN else body[:4])
        except OSError as error:
            if error.errno == errno.ENOENT:  # of sets, where there is no such table
                return []
            raise _unavailable(error) from error
        found = [attrs(body[4:]) for kind, body in answers if kind == answered]
        ours = [fields for fields in found if fields.get(NFTA_RULE_TABLE) == TABLE.encode() + b"\0"]
        return [fields.get(name, b"").rstrip(b"\0").decode("utf-8", "replace") for fields in ours]

    def make(self, text: str) -> None:
        """Make chains, rules and sets by libnftables, which is loaded for it. CniError."""
        from cni_py.kernel import libnftables

        libnftables.run(text)

    def remove_unused(self, chain: str, sets: "Sequence[str]") -> bool:
        """Delete a chain with its rules, and the sets that only these rules use. False when a rule or element jumps to it.

        OSError for another refusal.
        """
        # The chain first: its rules go with it, and a set that a rule uses is EBUSY (nf_tables_delset()). A chain that
        # something jumps to is EBUSY as well (nf_tables_delchain()), so an ADD that has just added such an element is safe.
        head, table = bytes((INET, 0, 0, 0)), TABLE.encode() + b"\0"
        messages = [
            (NFT_MSG_DELCHAIN, 0, head + attr(NFTA_CHAIN_TABLE, table) + attr(NFTA_CHAIN_NAME, chain.encode() + b"\0"))
        ]
        for name in sets:
            names = attr(NFTA_SET_TABLE, table) + attr(NFTA_SET_NAME, name.encode() + b"\0")
            messages.append((NFT_MSG_DELSET, 0, head + names))
        try:
            self.socket().batch(messages)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOENT):
                return False
            raise
        self._deleted = True
        return True

    def transaction(self, changes: "Sequence[Change]") -> None:
        """Make all changes or none, with OSError: EEXIST when an element is there, ENOENT when it, its chain or set is not."""
        messages = [message for change in changes for message in change.messages()]
        if messages:
            self.socket().batch(messages)
        self._deleted |= not all(change.add for change in changes)

    def leave(self) -> None:
        """Close the socket at the end of a call without waiting. A second call is harmless.

        close(), and so exit(), of an nfnetlink socket waits until everything deleted in the namespace has been freed: for
        an RCU grace period, 4 to 20 ms (nft_rcv_nl_event() flushes nf_tables_trans_destroy_work()). A socket that is in
        flight inside itself is closed by the collector of such sockets instead, in a kernel thread (unix_gc(),
        net/unix/garbage.c, since Linux 6.10; before, it ran in our own close() and nothing was won). Linux 6.18: the
        process ends 0.03 ms after a deletion instead of 6.8 ms.
        """
        if self._socket is None or not self._deleted:
            return
        inner, outer = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        try:
            fds = _struct.pack("@ii", inner.fileno(), self._socket._socket.fileno())
            outer.sendmsg([b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
        except OSError:
            pass  # too many in flight (RLIMIT_NOFILE): then we wait
        self.close()  # first: the collector may be quicker than we are, and then this close() would be the last
        self._socket = None
        inner.close()
        outer.close()


def mark(value: int) -> bytes:
    """A value of type mark. nft has it in the host's byte order, unlike ports and addresses."""
    return _struct.pack("=I", value)


def _elements(answers: "Iterable[tuple[int, bytes]]") -> "Iterator[Element]":
    for kind, body in answers:
        if kind == NFT_MSG_NEWSETELEM:
            for _, element in iter_attrs(attrs(body[4:]).get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")):
                yield Element.decode(element)


def _unavailable(error: OSError) -> CniError:
    """The error for a refusal other than "not there".

    EINVAL is nfnetlink's own answer when no nf_tables is loaded or can be (nfnetlink_rcv_msg()).
    """
    if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
        return NftUnavailable("this kernel has no nf_tables for this family (CONFIG_NF_TABLES)", str(error))
    return CniError("cannot read the nftables table cni_py", str(error))
