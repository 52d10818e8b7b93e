"""The control socket, a command's side: ask, and wait for the answer. control.py is the service's side.

Two other programs ask for themselves, since what this module imports (json, socket: 30 ms) would be most of their running time:
portmap (cni_py/ports/relay.py, with the plugins' JSON and errors) and portfwd-docker-proxy, which asks once (docker/proxy.py).
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import struct
from collections.abc import Sequence

from portfwd import rights
from portfwd.errors import KINDS, Lacking, PortfwdError
from portfwd.values import Json

ANSWER_S = 60.0  # that a command waits for an answer: a reload starts a process
CHUNK = 1 << 16


class Cut(PortfwdError):
    """The service hung up before it answered: it has ended, or is of an earlier version and was replaced meanwhile."""


class Client:
    """A connection to the service."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self._sock = sock
        self._path = path
        self._received = bytearray()

    @classmethod
    def connect(cls, path: str) -> Client:
        """Lacking when no service is there, or this user may not ask it."""
        return cls(connected(path, ANSWER_S), path)

    def request(self, request: Json, fds: Sequence[int] = ()) -> Json:
        """The answer. PortfwdError of the kind that the service names. A repeatable request is asked again if it was cut off."""
        try:
            return opened(self._ask(request, fds))
        except Cut:
            if fds or not repeatable(request):
                raise
        self._sock.close()
        self._sock = connected(self._path, ANSWER_S)
        self._received.clear()
        return opened(self._ask(request, fds))

    def _ask(self, request: Json, fds: Sequence[int]) -> bytes:
        data = memoryview(json.dumps(request, separators=(",", ":")).encode() + b"\n")
        try:
            # The answer, sent before hanging up, says why
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                data = data[self._sock.sendmsg([data], rights.message(fds)) :]
                self._sock.sendall(data)
            return self._line()
        except ConnectionResetError as error:
            raise Cut("the portfwd service hung up in the middle of a request", "its log may say why") from error
        except OSError as error:
            raise PortfwdError("the portfwd service does not answer", error.strerror or str(error)) from error

    def _line(self) -> bytes:
        while (end := self._received.find(b"\n")) < 0:
            part = self._sock.recv(CHUNK)
            if not part:
                raise Cut("the portfwd service hung up in the middle of a request", "its log may say why")
            self._received += part
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


def repeatable(request: Json) -> bool:
    """Whether the request can be repeated without harm if the first one was carried out."""
    match request.get("verb"):
        case "list" | "stats":
            return True
        case "publish":
            return request.get("replace") is True
        case "remove":
            return "owner" in request
        case _:
            return False


def connected(path: str, limit_s: float) -> socket.socket:
    """A connection whose operations wait up to `limit_s`. Lacking when no service is there, or this user may not ask it.

    Python's own time limit makes a socket non-blocking, and connect(2) of a non-blocking Unix socket fails at once when the
    backlog is full (unix(7), EAGAIN), as it may be while a successor takes over. So connecting has the kernel's limit.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(limit_s), 0))  # struct timeval
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise Lacking(f"no portfwd service answers at {path}", _advice(error)) from error
    sock.settimeout(limit_s)
    return sock


def _advice(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "it takes commands from root and its own user only"
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return "start one with 'portfwd serve', or publish in the foreground with 'portfwd run'"
    if error.errno == errno.EAGAIN:
        return "it runs, but is too busy to accept commands"
    return error.strerror or str(error)


def opened(line: bytes) -> Json:
    """The answer of a line. PortfwdError for an error that it reports, and for a malformed line."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PortfwdError("unexpected reply of the portfwd service; has it another version?", repr(line[:80]))
    if found.get("ok") is True:
        return found
    error = found.get("error")
    fields: Json = error if isinstance(error, dict) else {}
    kind = KINDS.get(str(fields.get("kind")), PortfwdError)
    raise kind(str(fields.get("msg") or "the portfwd service refused"), str(fields.get("details") or ""))
