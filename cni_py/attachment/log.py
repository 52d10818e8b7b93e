"""A line for each call, to see what the runtime asked for: the key `log` of a plugin's configuration.

    "log": "/var/log/cni-py.log"     appended to a file (0600)
    "log": "journal"                 sent to journald (systemd.journal-fields(7), native protocol)

    2026-01-02T03:04:05Z bridge ADD net1/c1/eth0 12.3 ms ok
    2026-01-02T03:04:06Z bridge ADD net1/c2/eth0 4.1 ms error 999: bridge port in error state: down

A log that cannot be written never fails a call.
"""

import time

from cni_py.errors import CniError, warn
from cni_py.lean import os
from cni_py.protocol.netconf import string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from cni_py.attachment.call import Call

    T = TypeVar("T")

JOURNAL = "/run/systemd/journal/socket"


def logged(call: "Call", perform: "Callable[[], T]") -> "T":
    """Perform the call and log its end and its duration."""
    target = string(call.conf.raw, "log")
    begun = time.monotonic()
    outcome = "interrupted"
    try:
        done = perform()
        outcome = "ok"
        return done
    except CniError as error:
        outcome = f"error {error.code}: {error}"
        raise
    finally:
        what = call.key.label if call.container_id else call.conf.name
        _write(target, f"{call.plugin} {call.verb} {what} {(time.monotonic() - begun) * 1000:.1f} ms {outcome}")


def _write(target: str, line: str) -> None:
    line = line.replace("\n", " ")
    try:
        if target == "journal":
            _send(f"MESSAGE={line}\nSYSLOG_IDENTIFIER=cni-py\nPRIORITY=6\n".encode("utf-8", "replace"))
        elif target:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            fd = os.open(
                target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
            )
            with open(fd, "wb") as file:
                file.write(f"{stamp} {line}\n".encode("utf-8", "replace"))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        warn(f"cannot log to {target!a}: {error}")


def _send(message: bytes) -> None:
    import _socket

    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        sock.sendto(message, JOURNAL)
    finally:
        sock.close()
