"""Notice that another program emptied the plugins' nftables tables (`nft flush ruleset`), and have them restored.

The kernel sends every change of nftables to a netlink group. A message only says where to look, a moment later, when the other
program has finished: the plugins' own changes send messages, too. When a table, a chain, a set or the rules of a chain of the
tables inet and bridge cni_py are gone, or elements of an attachment that still has its record, `cni-py restore` runs in a process
of its own. When messages were lost, everything counts as gone.

Each deleted element is tracked until it is seen again: a DEL, the successor of a port and `cni-py restore` delete elements, too,
and without that every container that ends would start `cni-py restore`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import cni_py
from cni_py import files
from cni_py.attachment import holders
from cni_py.kernel.netlink import NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, attrs, iter_attrs
from cni_py.kernel.nf_tables import BRIDGE, INET, Element
from cni_py.kernel.nf_tables import TABLE as CNI_PY

log = logging.getLogger("portfwd")

DEBOUNCE_S = 0.2  # after a change, so that a flush that is followed by new rules at once is one event
DEL_S = 0.5  # after an element went: a DEL removes its elements first, and its record last
EVERY_S = 1.0  # between two restorations, at least
EVERY_MAX_S = 60.0  # when restorations do not last: another program deletes the rules again and again
BUFFER = 1 << 20  # bytes of queued messages; beyond it the kernel drops them and says ENOBUFS once
READ_MAX = 64  # messages read in one go
HOME = os.path.dirname(os.path.dirname(cni_py.__file__))  # for the child, which must import this cni_py
RESTORE = (sys.executable, "-P", "-m", "cni_py.commands.main", "restore")

NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1  # linux/netlink.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
# linux/netfilter/nf_tables.h
NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_NEWRULE, NFT_MSG_DELRULE, NFT_MSG_DELSET = 2, 5, 6, 8, 11
NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM = 12, 14
NFTA_TABLE, NFTA_RULE_CHAIN, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3  # the table has the same number in all of them
NFTA_SET_ELEM_LIST_SET = 2
GUARDS = b"local_links"  # the set of interfaces that must not reach the host's loopback
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTACHMENT = re.compile("[0-9a-f]{16}")  # what a comment of ours begins with


class Losses:
    """What may be gone since the last look, according to messages. Pure."""

    __slots__ = ("chains", "elements", "structure")

    def __init__(self) -> None:
        self.structure = False  # a table, chain or set of cni-py
        self.chains: set[tuple[int, bytes]] = set()  # family and name of those whose rules went and did not come again
        # elements that went and did not come again: by family, set and key, the attachment's hex and the time
        self.elements: dict[tuple[int, bytes, bytes], tuple[str, float]] = {}

    def __bool__(self) -> bool:
        return bool(self.structure or self.chains or self.elements)

    def take_settled(self, until: float) -> Losses:
        """Split off the elements that went before `until`, and everything that is not an element."""
        settled = Losses()
        settled.structure, settled.chains = self.structure, self.chains
        settled.elements = {key: (whose, went) for key, (whose, went) in self.elements.items() if went <= until}
        self.structure, self.chains = False, set()
        self.elements = {key: loss for key, loss in self.elements.items() if key not in settled.elements}
        return settled

    def everything(self) -> None:
        """Count everything as gone: messages were lost."""
        self.structure = True

    def note(self, data: bytes, now: float) -> None:
        """A datagram of the kernel, read `now` (time(2))."""
        for kind, family, body in _messages(data):
            if _table(body) == CNI_PY.encode() and family in (INET, BRIDGE):
                self._note_cni_py(kind, family, body, now)

    def _note_cni_py(self, kind: int, family: int, body: bytes, now: float) -> None:
        if kind in (NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELSET):
            self.structure = True
        elif kind == NFT_MSG_DELRULE:
            self.chains.add((family, attrs(body).get(NFTA_RULE_CHAIN, b"")))
        elif kind == NFT_MSG_NEWRULE:  # a chain was written anew
            self.chains.discard((family, attrs(body).get(NFTA_RULE_CHAIN, b"")))
        elif kind in (NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM):
            self._note_elements(family, attrs(body), None if kind == NFT_MSG_NEWSETELEM else now)

    def _note_elements(self, family: int, fields: dict[int, bytes], went: float | None) -> None:
        name = fields.get(NFTA_SET_ELEM_LIST_SET, b"").rstrip(b"\0")
        if name == GUARDS and went is not None:  # the plugins never delete from it
            self.structure = True
        for _, raw in iter_attrs(fields.get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")):
            element = Element.decode(raw)
            found = _ATTACHMENT.match(element.comment)
            if went is None:
                self.elements.pop((family, name, element.key), None)
            elif found:
                self.elements[family, name, element.key] = found.group(), went


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
    """When something may be done again: every_s after the last time, twice as late each time while it does not last. Pure."""

    __slots__ = ("_every_s", "_last", "_pause_s")

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._pause_s = every_s
        self._last = float("-inf")

    def earliest(self) -> float:
        """The earliest time for it."""
        return self._last + self._pause_s

    def done(self, now: float) -> None:
        """Note that it is done now."""
        again = now - self._last < 3 * self._pause_s
        self._pause_s = min(EVERY_MAX_S, 2 * self._pause_s) if again else self._every_s
        self._last = now


class Watch:
    """See the module. Watches the network namespace that the process is in now; for the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        room: Callable[[], AbstractContextManager[None]] = nullcontext,
        restored: Callable[[], None] = lambda: None,
        command: Sequence[str] = RESTORE,
        debounce_s: float = DEBOUNCE_S,
        every_s: float = EVERY_S,
    ) -> None:
        self._loop = loop
        self._restored = restored  # called when cni-py restore has ended
        self._room = room  # raises the limit of descriptors, which clients may have reached
        self._command = tuple(command)
        self._debounce_s = debounce_s
        self._losses = Losses()
        self._timer: asyncio.TimerHandle | None = None
        self._pace = Pace(every_s)
        self._wanted = False  # cni-py restore, once it may run
        self._child: subprocess.Popen[bytes] | None = None
        self._said = b""
        self._socket = _subscribe()
        if self._socket is not None:
            loop.add_reader(self._socket.fileno(), self._read)

    def close(self) -> None:
        """Stop watching. A running `cni-py restore` is ended: it can be ended at any point and run again."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._child is not None:
            self._child.terminate()
            self._reap()

    def _read(self) -> None:
        assert self._socket is not None
        for _ in range(READ_MAX):
            try:
                self._losses.note(self._socket.recv(BUFFER), time.time())
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._losses.everything()
        if self._losses:
            self._look_at(self._loop.time() + self._debounce_s)

    def restore(self) -> None:
        """Run `cni-py restore` now, for ports of containers that were attached while no service ran."""
        if _attachments():
            self._pace.done(self._loop.time())
            self._start("looking for containers' ports that are not relayed yet")

    def _look_at(self, when: float) -> None:
        """Look at that time, unless an earlier look is planned."""
        if self._timer is not None and self._timer.when() <= when:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        with self._room():
            self._look_now()

    def _look_now(self) -> None:
        self._timer = None
        losses = self._losses.take_settled(time.time() - DEL_S)
        now = self._loop.time()
        if self._losses:
            self._look_at(now + DEL_S)
        self._wanted = self._wanted or _concerns_attachments(losses)
        if self._wanted and self._child is None:
            if now < self._pace.earliest():
                self._look_at(self._pace.earliest())
            else:
                self._pace.done(now)
                self._start(f"another program removed nftables elements of containers (table {CNI_PY})")

    def _start(self, why: str) -> None:
        self._wanted = False
        log.info("%s; running cni-py restore", why)
        try:
            self._child = subprocess.Popen(  # noqa: S603  a constant, and our own interpreter
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": HOME},
            )
        except OSError as error:
            log.error("cannot run %s: %s", self._command[0], error.strerror)
            return
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)
        self._loop.add_reader(self._child.stdout.fileno(), self._listen)

    def _listen(self) -> None:
        """Log the output of `cni-py restore`; at its end the process has ended."""
        assert self._child is not None
        assert self._child.stdout is not None
        try:
            part = os.read(self._child.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return
        *lines, self._said = (self._said + part).split(b"\n")
        for line in lines:
            log.info("cni-py restore: %s", line.decode("utf-8", "backslashreplace"))
        if not part:
            self._reap()
            self._restored()

    def _reap(self) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        self._loop.remove_reader(self._child.stdout.fileno())
        child, self._child, self._said = self._child, None, b""
        with child:  # closes and waits: it has ended, or was just sent SIGTERM
            pass
        if child.returncode:
            log.error("cni-py restore ended with %d", child.returncode)
        if self._wanted and self._socket is not None:
            self._look_at(max(self._pace.earliest(), self._loop.time()))


def _concerns_attachments(losses: Losses) -> bool:
    """Whether something went that an attachment needs. After a DEL its record is gone, too."""
    if losses.structure or losses.chains:
        return _attachments()
    return any(_stands(hexed, key[1], went) for key, (hexed, went) in losses.elements.items())


def _attachments() -> bool:
    """Whether there are attachments."""
    top = f"{files.run_dir()}/attachments"
    return os.path.isdir(top) and bool(os.listdir(top))


def _stands(hexed: str, set_name: bytes, went: float) -> bool:
    """Whether the plugin that put an element into this set still has its record, and wrote it before the element went.

    A newer record is another ADD's, with its own elements. A DEL of a chain removes the plugins' records one by one.
    """
    of_portmap = not set_name.startswith((b"masquerade", b"spoof"))
    try:
        with os.scandir(f"{files.run_dir()}/attachments/{hexed}") as entries:
            return any(
                entry.name.endswith(".json")
                and (entry.name == f"{holders.PLUGIN}.json") == of_portmap
                and entry.stat().st_mtime < went
                for entry in entries
            )
    except OSError:
        return False


def _subscribe() -> socket.socket | None:
    """A socket that receives the changes; None, with a line in the log, where the kernel gives none."""
    try:
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
        )
    except OSError as error:
        log.info("cannot watch nftables for flushed rules: %s", error.strerror)
        return None
    try:
        sock.bind((0, 0))
        sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    except OSError as error:
        sock.close()
        log.info("cannot watch nftables for flushed rules: %s", error.strerror)
        return None
    return sock
