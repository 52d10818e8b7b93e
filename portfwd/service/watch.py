"""Notice that another program emptied the plugins' nftables tables (`nft flush ruleset`), and have them restored.

What the kernel's messages say is told by cni_py/restore/losses.py. After a loss `cni-py restore` runs in a process of its own;
where `cni-py restore --watch` runs, that puts things back, and nothing is started here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import cni_py
from cni_py.kernel.nf_tables import TABLE as CNI_PY
from cni_py.restore import losses
from cni_py.restore.losses import Losses, Pace

log = logging.getLogger("portfwd")

DEBOUNCE_S = 0.2  # after a change, so that a flush that is followed by new rules at once is one event
DEL_S = 0.5  # after an element went: a DEL removes its elements first, and its record last
EVERY_S = 1.0  # between two restorations, at least
READ_MAX = 64  # messages read in one go
HOME = os.path.dirname(os.path.dirname(cni_py.__file__))  # for the child, which must import this cni_py
WATCHED_S = 1.0  # what `cni-py restore --watch` may take on a full host
RESTORE = (sys.executable, "-P", "-m", "cni_py.commands.main", "restore")


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
                self._losses.note(self._socket.recv(losses.BUFFER), time.time())
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
        if losses.has_attachments():
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
        settled = self._losses.take_settled(time.time() - DEL_S)
        now = self._loop.time()
        if self._losses:
            self._look_at(now + DEL_S)
        self._wanted = self._wanted or losses.concerns_attachments(settled)
        if self._wanted and losses.is_watched():
            self._wanted = False
            self._loop.call_later(WATCHED_S, self._restored)
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


def _subscribe() -> socket.socket | None:
    """A socket that receives the changes; None, with a line in the log, where the kernel gives none."""
    try:
        return losses.of_nftables()
    except OSError as error:
        log.info("cannot watch nftables for flushed rules: %s", error.strerror)
        return None
