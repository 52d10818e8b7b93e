"""What the kernel's notifications say was taken away from containers: of nftables, and of links and addresses.

Every change of nftables is sent to a netlink group. A message only says where to look: so do those of the plugins' own changes.
A table, a chain, a set or the rules of a chain of the tables inet and bridge cni_py that are gone are a loss, and so are elements
of an attachment that still has its record. When messages were lost, everything counts as gone.

Each deleted element is tracked until it is seen again: a DEL, the successor of a port and `cni-py restore` delete elements, too,
and without that every container that ends would start `cni-py restore`. portfwd's service and `cni-py restore --watch` use it.
"""

import os
import re
import socket
import struct
from collections.abc import Iterator

from cni_py import files
from cni_py.attachment import holders, locks
from cni_py.kernel.netlink import NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, attrs, iter_attrs, text
from cni_py.kernel.nf_tables import BRIDGE, INET, Element
from cni_py.kernel.nf_tables import TABLE as CNI_PY
from cni_py.protocol.netconf import CHAIN

NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1  # linux/netlink.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
# linux/netfilter/nf_tables.h
NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_NEWRULE, NFT_MSG_DELRULE, NFT_MSG_DELSET = 2, 5, 6, 8, 11
NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM = 12, 14
NFTA_TABLE, NFTA_RULE_CHAIN, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3  # the table has the same number in all of them
NFTA_NAME = 2  # of a set, and of the set of elements; of a chain it is 3
NFTA_CHAIN_NAME = 3
IPTABLES = (b"nat", b"filter")  # tables of iptables-nft that have rules of ours
NFPROTO_IPV4, NFPROTO_IPV6 = 2, 10
FAMILIES = {INET: "inet", BRIDGE: "bridge", NFPROTO_IPV4: "ip", NFPROTO_IPV6: "ip6"}
BASE = (
    b"PREROUTING",
    b"OUTPUT",
    b"POSTROUTING",
    b"FORWARD",
)  # what leads to our chains of iptables; no DEL takes that away
BUFFER = 1 << 20  # bytes of queued messages; beyond it the kernel drops them and says ENOBUFS once
EVERY_MAX_S = 60.0  # when restorations do not last: another program deletes the rules again and again
OF_BRIDGES = (
    "firewall "  # comments of elements that the containers of a bridge share, and that go with the last of them
)
WATCHER = "restore-watch"  # the lock of `cni-py restore --watch`
SHOWN = 5  # things in a sentence
GUARDS = b"local_links"  # the set of interfaces that must not reach the host's loopback
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTACHMENT = re.compile("[0-9a-f]{16}")  # what a comment of ours begins with


class Losses:
    """What may be gone since the last look, according to messages. Pure."""

    __slots__ = ("chains", "elements", "structure", "words")

    def __init__(self) -> None:
        self.structure = False  # a table, chain or set of cni-py
        self.words: dict[str, None] = {}  # what that was, and the chains, for people
        self.chains: set[tuple[int, bytes]] = set()  # family and name of those whose rules went and did not come again
        # elements that went and did not come again: by family, set and key, the attachment's hex and the time
        self.elements: dict[tuple[int, bytes, bytes], tuple[str, float]] = {}

    def __bool__(self) -> bool:
        return bool(self.structure or self.chains or self.elements)

    def take_settled(self, until: float) -> "Losses":
        """Split off the elements that went before `until`, and everything that is not an element."""
        settled = Losses()
        settled.structure, settled.chains, settled.words = self.structure, self.chains, self.words
        settled.elements = {key: (whose, went) for key, (whose, went) in self.elements.items() if went <= until}
        self.structure, self.chains, self.words = False, set(), {}
        self.elements = {key: loss for key, loss in self.elements.items() if key not in settled.elements}
        return settled

    def everything(self) -> None:
        """Count everything as gone: messages were lost."""
        self.structure = True
        self.words["unknown, since notifications were lost"] = None

    def note(self, data: bytes, now: float) -> None:
        """A datagram of the kernel, read `now` (time(2))."""
        for kind, family, body in _messages(data):
            if _table(body) == CNI_PY.encode() and family in (INET, BRIDGE):
                self._note_cni_py(kind, family, body, now)

    def _note_cni_py(self, kind: int, family: int, body: bytes, now: float) -> None:
        if kind == NFT_MSG_DELSET and attrs(body).get(NFTA_NAME, b"").startswith(b"__"):
            return  # one that stands in a rule, and goes with it
        if kind in (NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELSET):
            self.structure = True
            self.words[_named(kind, family, attrs(body))] = None
        elif kind == NFT_MSG_DELRULE:
            self.chains.add((family, attrs(body).get(NFTA_RULE_CHAIN, b"")))
        elif kind == NFT_MSG_NEWRULE:  # a chain was written anew
            self.chains.discard((family, attrs(body).get(NFTA_RULE_CHAIN, b"")))
        elif kind in (NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM):
            self._note_elements(family, attrs(body), None if kind == NFT_MSG_NEWSETELEM else now)

    def _note_elements(self, family: int, fields: dict[int, bytes], went: float | None) -> None:
        name = fields.get(NFTA_NAME, b"").rstrip(b"\0")
        if name == GUARDS and went is not None:  # the plugins never delete from it
            self.structure = True
            self.words["elements of the set local_links"] = None
        for _, raw in iter_attrs(fields.get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")):
            element = Element.decode(raw)
            found = _ATTACHMENT.match(element.comment)
            if went is None:
                self.elements.pop((family, name, element.key), None)
            elif found:
                self.elements[family, name, element.key] = found.group(), went
            elif element.comment.startswith(OF_BRIDGES):
                self.elements[family, name, element.key] = "", went

    def described(self) -> str:
        """What is gone, in words. A table goes with all that is in it."""
        tables = [words for words in self.words if words.startswith("table ")]
        if tables:
            return ", ".join(tables)
        rules = sorted({f"the rules of chain {text(name)}" for _, name in self.chains})
        sets = sorted({f"elements of {text(name)}" for _, name, _ in self.elements})
        listed = [*self.words, *rules, *sets]
        more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        return ", ".join(listed[:SHOWN]) + more


def _named(kind: int, family: int, fields: dict[int, bytes]) -> str:
    """The object that a message deletes."""
    if kind == NFT_MSG_DELTABLE:
        return f"table {FAMILIES[family]} {CNI_PY}"
    what, name = ("chain", NFTA_CHAIN_NAME) if kind == NFT_MSG_DELCHAIN else ("set", NFTA_NAME)
    return f"{what} {text(fields.get(name))}"


def of_iptables(data: bytes) -> bool:
    """Whether a datagram says that what leads to our chains of iptables is gone from a table of iptables-nft."""
    for kind, family, body in _messages(data):
        if family not in (NFPROTO_IPV4, NFPROTO_IPV6) or _table(body) not in IPTABLES:
            continue
        if kind == NFT_MSG_DELTABLE:
            return True
        chain = attrs(body).get(NFTA_RULE_CHAIN, b"").rstrip(b"\0")
        if kind == NFT_MSG_DELRULE and chain in BASE and b"CNI-" in body:
            return True
    return False


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type without its subsystem, family and attributes of each nf_tables message in a datagram."""
    offset = 0
    while offset + _HEADER.size + 4 <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size + 4:
            return
        if kind >> 8 == NFNL_SUBSYS_NFTABLES:
            yield kind & 0xFF, data[offset + _HEADER.size], data[offset + _HEADER.size + 4 : offset + length]
        offset += (length + 3) & ~3


def _table(body: bytes) -> bytes:
    for kind, value in iter_attrs(body):
        if kind == NFTA_TABLE:
            return value.rstrip(b"\0")
    return b""


class Pace:
    """When something may be done again: every_s after the last time, twice as late each time while it does not last. Pure.

    It does not last when it is to be done again within three pauses, or within_s.
    """

    __slots__ = ("_every_s", "_last", "_pause_s", "_within_s")

    def __init__(self, every_s: float, within_s: float = 0.0) -> None:
        self._every_s = every_s
        self._within_s = within_s
        self._pause_s = every_s
        self._last = float("-inf")

    def earliest(self) -> float:
        """The earliest time for it."""
        return self._last + self._pause_s

    def done(self, now: float) -> None:
        """Note that it is done now."""
        again = now - self._last < max(3 * self._pause_s, self._within_s)
        self._pause_s = min(EVERY_MAX_S, 2 * self._pause_s) if again else self._every_s
        self._last = now


def concerns_attachments(losses: Losses) -> bool:
    """Whether something went that an attachment needs. After a DEL its record is gone, too."""
    if losses.structure or losses.chains:
        return has_attachments()
    return any(
        _stands(hexed, key[1], went) if hexed else has_attachments() for key, (hexed, went) in losses.elements.items()
    )


def is_watched() -> bool:
    """Whether `cni-py restore --watch` runs, which puts back what is lost."""
    return locks.is_held(WATCHER)


def has_attachments() -> bool:
    """Whether there are attachments."""
    top = f"{files.run_dir()}/attachments"
    return os.path.isdir(top) and bool(os.listdir(top))


def _stands(hexed: str, set_name: bytes, went: float) -> bool:
    """Whether the plugin that put an element into this set still has its record, and wrote it before the element went.

    A newer record is another ADD's, with its own elements. A DEL of a chain removes the plugins' records one by one.
    """
    of_portmap = not set_name.startswith((b"masquerade", b"spoof", b"isolated"))
    try:
        with os.scandir(f"{files.run_dir()}/attachments/{hexed}") as entries:
            return any(
                entry.name.endswith(".json")
                and (entry.name == f"{CHAIN}.json" or (entry.name == f"{holders.PLUGIN}.json") == of_portmap)
                and entry.stat().st_mtime < went
                for entry in entries
            )
    except OSError:
        return False


def subscribe(protocol: int, *groups: int, buffer: int) -> socket.socket:
    """A socket that receives the changes that the kernel sends to these groups. OSError where it gives none."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.bind((0, 0))
        for group in groups:
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
    except OSError:
        sock.close()
        raise
    return sock


def of_nftables(buffer: int = 0) -> socket.socket:
    """The changes of nftables. OSError."""
    return subscribe(NETLINK_NETFILTER, NFNLGRP_NFTABLES, buffer=buffer or BUFFER)
