"""systemd's protocols: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), and levels in the journal."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
from collections.abc import MutableMapping

FIRST_FD = 3  # SD_LISTEN_FDS_START, systemd/sd-daemon.h
PASSED_MAX = 64
LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}  # syslog(3)
FOR_ONE_PROCESS = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID")

Environment = MutableMapping[str, str]


def notify(*words: str) -> None:
    """Tell the service manager, if there is one. Raises nothing."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        _sender().sendto("\n".join(words).encode(), address)
    except OSError as error:
        logging.getLogger("portfwd").debug("the service manager does not listen: %s", error.strerror)


@functools.cache
def _sender() -> socket.socket:
    """A socket that is kept open: when clients hold all descriptors, the watchdog still has to be told."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)


def activated(environment: Environment) -> list[int]:
    """The descriptors that the service manager passed to this process, made close-on-exec."""
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for fd in range(FIRST_FD, FIRST_FD + min(int(count), PASSED_MAX)):
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
            found.append(fd)
    return found


def listening(fd: int) -> socket.socket | None:
    """A passed descriptor as a Unix socket that listens; None, and it is closed, when it is something else."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.close(fd)
        return None
    kind = (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
    if kind and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return sock
    sock.close()
    return None


def watchdog_s(environment: Environment) -> float:
    """Seconds between two messages to the watchdog, half of its limit; 0 for no watchdog."""
    pid, limit = environment.get("WATCHDOG_PID", ""), environment.get("WATCHDOG_USEC", "")
    if not limit.isdecimal() or pid not in ("", str(os.getpid())):
        return 0.0
    return int(limit) / 2 / 10**6


def for_successor(environment: Environment) -> dict[str, str]:
    """The environment for a process that takes this one's place."""
    return {name: value for name, value in environment.items() if name not in FOR_ONE_PROCESS}


def is_journal(fd: int, environment: Environment) -> bool:
    """Whether a descriptor leads to systemd's journal, which takes <N> at the beginning of a line for the level."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class Formatter(logging.Formatter):
    """Lines for a terminal, or for the journal."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__("%(message)s" if journal else "portfwd: %(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """A record as lines. Unprintable characters of requests are replaced: a newline would forge a line of the log."""
        text = super().format(record)
        if record.exc_info is None:
            text = "".join(char if char.isprintable() else "?" for char in text)
        if self._journal:
            level = LEVELS.get(record.levelno, LEVELS[logging.INFO])
            text = "\n".join(f"<{level}>{line}" for line in text.split("\n"))
        return text
