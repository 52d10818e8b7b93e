"""Start a successor: a process of the program as it is on disk now, which asks this one for everything (handover.py)."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from portfwd.errors import PortfwdError
from portfwd.service import systemd
from portfwd.service.requests import failure

log = logging.getLogger("portfwd")

START_S = 30.0  # for a successor to take over; it takes well under one as a rule

Answer = Callable[[dict[str, object]], None]


class Succession:
    """At most one successor at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, arguments: Sequence[str]) -> None:
        self._loop = loop
        self._arguments = list(arguments)
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._timer: asyncio.TimerHandle | None = None
        self._asker: Answer | None = None

    def start(self, asker: Answer | None) -> None:
        """Start a successor; `asker` gets the answer, unless the successor gives it. PortfwdError."""
        if self._child is not None:
            raise PortfwdError("a successor is starting already", f"pid {self._child.pid}")
        command = [*own_command(), "serve", *self._arguments]
        log.info("starting a successor: %s", " ".join(command))
        try:
            self._child = subprocess.Popen(  # noqa: S603  our own command
                command, stdin=subprocess.DEVNULL, env=systemd.for_successor(os.environ)
            )
        except OSError as error:
            raise PortfwdError("cannot start a successor", f"{command[0]}: {error.strerror}") from error
        self._asker = asker
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._pidfd = os.pidfd_open(self._child.pid)
        self._loop.add_reader(self._pidfd, self._ended)
        self._timer = self._loop.call_later(START_S, self._child.kill)

    def _ended(self) -> None:
        """The successor ended before it took over."""
        assert self._child is not None
        status = self._child.wait()
        log.error("the successor (pid %d) ended with status %d; serving on", self._child.pid, status)
        systemd.notify("READY=1")
        asker = self._asker
        self._forget()
        if asker is not None:
            asker(
                failure(PortfwdError("the successor did not take over", f"it ended with status {status}; see the log"))
            )

    def succeeded(self) -> None:
        """The successor took over: answer who asked, since this process is about to end."""
        if self._asker is not None:
            self._asker({"ok": True, "notes": []})
            self._asker = None

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._child = self._timer = self._asker = None

    def close(self) -> None:
        """Kill a successor that has not taken over: this process ends."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._forget()


def own_command() -> list[str]:
    """The command that started this program, without its arguments. A script is run directly, so that ps(1) shows its name."""
    if os.access(sys.argv[0], os.X_OK) and os.path.isfile(sys.argv[0]):
        return [os.path.abspath(sys.argv[0])]
    return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]]
