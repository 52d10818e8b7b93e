"""The control socket: a line of JSON asks, a line of JSON answers; several may follow each other on one connection.

    /run/cni-py/portfwd.sock      mode 0600 in a folder of 0700; only root and the service's own user are answered
    /run/cni-py/portfwd.sock.lock held by the service as long as it runs, with its pid

Descriptors (rights.py) belong to the request they came with. A client that sends some waits for the answer before it asks again.
requests.py has the requests, client.py the other side. Nothing here blocks: a slow client holds up itself alone.

A request is carried out in one callback of the loop. So between two callbacks each client has been answered in full, or its
request has not been read. A successor takes over at such a time: it gets the clients' connections, with the bytes that were read
and those still to be sent.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import fcntl
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cni_py import files
from portfwd import rights
from portfwd.errors import Lacking, PortfwdError, Usage
from portfwd.service.descriptors import Descriptors
from portfwd.service.requests import LINE_MAX, Handover, Request, failure, parse
from portfwd.values import Json

log = logging.getLogger("portfwd")

CLIENTS_MAX = 64  # at a time; others wait in the backlog
BACKLOG = 4096  # for the time in which a successor takes over; the kernel cuts it to net.core.somaxconn
CLIENTS_SHARE = 4  # clients may have one in so many of the descriptors kept for commands
PATIENCE_S = 10.0  # for the rest of a request, the next request, or the reading of an answer
PAUSE_S = 0.1  # without accepting, after accept(2) failed for want of descriptors or memory
CHUNK = 1 << 16
UCRED = struct.Struct("iII")  # struct ucred, linux/socket.h


def socket_path() -> str:
    """The usual path of the control socket, for root or for this user."""
    return files.run_dir() + "/portfwd.sock"


# One service per socket


class Lock:
    """The right to serve at a path. flock(2) belongs to the open file: a successor that gets the descriptor has the lock, too."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def take(cls, path: str) -> Lock | None:
        """Take the lock of a path; None when another process has it (see holder()). PortfwdError."""
        lock_path = path + ".lock"
        try:
            fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _cannot(f"cannot open {lock_path}", error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        lock = cls(path, fd)
        lock.sign()
        return lock

    def sign(self) -> None:
        """Write this process's pid into the lock file, for people. A failure is only logged."""
        try:
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            log.warning("cannot write our pid to %s.lock: %s", self.path, error.strerror)

    def close(self) -> None:
        """Close the descriptor: the lock is released with the last one."""
        os.close(self.fd)


def holder(path: str) -> str:
    """The pid of the service at `path`, for people; "" when it cannot be read."""
    try:
        with open(path + ".lock", encoding="ascii") as file:
            return file.read(20).strip()
    except (OSError, ValueError):
        return ""


def listen(path: str) -> socket.socket:
    """Make the control socket. Only for who has the lock: an old socket file is removed. PortfwdError."""
    if _answers(path):
        raise PortfwdError(f"another service listens at {path}", "it does not hold the lock beside it")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)  # bind(2) makes the file with this mode: no other user can connect at any moment
    try:
        if os.path.lexists(path):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise PortfwdError(f"cannot listen at {path}", "the path exists and is not a socket")
            os.unlink(path)  # left by a service that was killed
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot(f"cannot listen at {path}", error) from error
    except PortfwdError:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def make_folder(path: str) -> None:
    """Make the socket's folder, mode 0700. PortfwdError, also when other users can write to it."""
    folder = os.path.dirname(path) or "."
    try:
        files.make_folders(folder, 0o700)
        found = os.stat(folder)
    except OSError as error:
        raise _cannot(f"cannot make the folder {folder}", error) from error
    if found.st_uid not in (0, os.geteuid()) or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
        raise PortfwdError(f"{folder} is not safe for the control socket", "other users can put files there")


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(path)
        except (TimeoutError, BlockingIOError):
            return True  # its backlog is full
        except OSError:
            return False
    return True


def _cannot(msg: str, error: OSError) -> PortfwdError:
    kind = Lacking if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else PortfwdError
    return kind(msg, error.strerror or str(error))


# The service's side


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that asks (SO_PEERCRED), as it was at its connect(2)."""

    pid: int
    uid: int

    @classmethod
    def of(cls, sock: socket.socket) -> Peer:
        """The other side of a connection."""
        pid, uid, _ = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        return cls(pid, uid)


class Handler(Protocol):
    """The service, as the control socket sees it."""

    def answer(self, request: Request, call: Call) -> Json | None:
        """The answer; None when call.answer() is called later. PortfwdError."""

    def hand_over(self, request: Handover, peer: socket.socket) -> None:
        """Give everything to a successor and do not return; or return, after which `peer` is closed."""

    def new_id(self) -> str:
        """A new id, for a mapping without one."""


class Server:
    """Serves the control socket on the event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        handler: Handler,
        descriptors: Descriptors,
        *,
        clients_max: int = CLIENTS_MAX,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.loop = loop
        self.listener = listener
        self.handler = handler
        self.clients: set[Call] = set()
        self.descriptors = descriptors
        kept = self.descriptors.commands - self.descriptors.data
        self.clients_max = min(clients_max, max(1, kept // CLIENTS_SHARE))
        self.patience_s = patience_s
        self._listening = False
        self._closed = False
        listener.setblocking(False)
        listener.listen(BACKLOG)  # one of systemd or of a predecessor may have another backlog
        self._listen()

    def _listen(self) -> None:
        if not self._listening and not self._closed:
            self._listening = True
            self.loop.add_reader(self.listener.fileno(), self._accept)

    def _pause(self) -> None:
        if self._listening:
            self._listening = False
            self.loop.remove_reader(self.listener.fileno())

    def _accept(self) -> None:
        try:
            with self.descriptors.for_commands():
                sock, _ = self.listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("cannot accept a command: %s", error.strerror)
            self._pause()
            self.loop.call_later(PAUSE_S, self._listen)
            return
        sock.setblocking(False)
        call = Call(self, sock)
        self.clients.add(call)
        if len(self.clients) >= self.clients_max:
            self._pause()
        call.start()

    def left(self, call: Call) -> None:
        """Forget a client that has hung up."""
        self.clients.discard(call)
        self._listen()

    def pack(self, put: Callable[[int], int], successor: socket.socket) -> list[Json]:
        """All clients but the successor, as JSON for inherited(). Changes nothing."""
        return [call.pack(put) for call in self.clients if call.sock is not successor]

    def adopt(self, one: Inherited) -> None:
        """Serve a client of a predecessor."""
        call = Call(self, one.sock)
        self.clients.add(call)
        call.resume(one)

    def close(self) -> None:
        """Hang up on all clients, and accept no more."""
        self._pause()
        self._closed = True
        for call in list(self.clients):
            call.close()
        self.listener.close()


@dataclass(slots=True)
class Inherited:
    """A client of a predecessor: the bytes of its next requests, and those of an answer that are still to be sent."""

    sock: socket.socket
    received: bytes
    unsent: bytes
    ended: bool
    last: bool
    deferred: bool  # it waits for an answer: it asked for the reload that happens now
    descriptors: list[int] = field(default_factory=list)


def inherited(raw: object, take: Callable[[object], int]) -> list[Inherited]:
    """Read what Server.pack() made; the caller owns what `take` gives. ValueError, LookupError, TypeError."""
    found = []
    for one in raw if isinstance(raw, list) else ():
        state = dict(one)
        found.append(
            Inherited(
                socket.socket(fileno=take(state["sock"])),
                base64.b64decode(str(state["received"]), validate=True),
                base64.b64decode(str(state["unsent"]), validate=True),
                bool(state["ended"]),
                bool(state["last"]),
                bool(state["deferred"]),
                [take(number) for number in state["descriptors"]],
            )
        )
    return found


class Call:
    """A client's connection: requests are read and answered one after the other."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.peer = Peer(0, -1)
        self._descriptors: list[int] = []
        self._received = bytearray()
        self._unsent = memoryview(b"")
        self._ended = False  # the client sends no more
        self._deferred = False  # the handler answers later
        self._last = False  # close after the answer
        self._reading = self._writing = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Read requests, if the client's user may ask."""
        self.peer = Peer.of(self.sock)
        if self.peer.uid not in (0, os.geteuid()):
            log.warning("refused a command of user %d (pid %d)", self.peer.uid, self.peer.pid)
            self.refuse(Lacking("this service takes commands from root and its own user only"))
            return
        self._await(reading=True)

    def pack(self, put: Callable[[int], int]) -> Json:
        """The state of the connection, for a successor."""
        return {
            "sock": put(self.sock.fileno()),
            "received": base64.b64encode(self._received).decode(),
            "unsent": base64.b64encode(self._unsent).decode(),
            "ended": self._ended,
            "last": self._last,
            "deferred": self._deferred,
            "descriptors": [put(fd) for fd in self._descriptors],
        }

    def resume(self, one: Inherited) -> None:
        """Go on from a predecessor's state."""
        self.sock.setblocking(False)
        self.peer = Peer.of(self.sock)
        self._received += one.received
        self._descriptors, self._ended, self._last = one.descriptors, one.ended, one.last
        if one.deferred:
            self.answer({"ok": True, "notes": []})
        else:
            self._unsent = memoryview(one.unsent)
            self._send()

    def refuse(self, error: PortfwdError) -> None:
        """Answer with an error, and hang up."""
        self._last = True
        self.answer(failure(error))

    def take_descriptors(self) -> list[int]:
        """The descriptors that came with the request; the caller closes them."""
        found, self._descriptors = self._descriptors, []
        return found

    def answer(self, answer: Json) -> None:
        """Answer the request at hand."""
        if self.sock.fileno() < 0:
            return
        self._deferred = False
        self._unsent = memoryview(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
        self._send()

    def _await(self, *, reading: bool = False, writing: bool = False) -> None:
        """Have the loop call back for reading or writing. A client that does not go on for PATIENCE_S is hung up on."""
        fd, loop = self.sock.fileno(), self.server.loop
        if reading and not self._reading:
            loop.add_reader(fd, self._receive)
        elif self._reading and not reading:
            loop.remove_reader(fd)
        if writing and not self._writing:
            loop.add_writer(fd, self._send)
        elif self._writing and not writing:
            loop.remove_writer(fd)
        self._reading, self._writing = reading, writing
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(self.server.patience_s, self._too_slow) if reading or writing else None

    def _too_slow(self) -> None:
        if self._received:
            log.info("hung up on pid %d: its command was incomplete after %g s", self.peer.pid, self.server.patience_s)
        self.close()

    def _receive(self) -> None:
        try:
            with self.server.descriptors.for_commands():
                data, descriptors, truncated = rights.receive(self.sock, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._descriptors += descriptors
        if len(self._descriptors) > rights.MOST or truncated:
            self.refuse(Usage("more descriptors than can be taken", f"{rights.MOST} with a request"))
            return
        self._received += data
        self._ended = not data
        self._go_on()

    def _go_on(self) -> None:
        """Carry out the next request, if all of it has been read."""
        end = self._received.find(b"\n")
        if end > LINE_MAX or (end < 0 and len(self._received) > LINE_MAX):
            self.refuse(Usage("a request is too long", f"{LINE_MAX} bytes at most"))
        elif end >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            self._await()  # the next request is read after this one is answered
            self._do(line)
        elif self._ended:
            self.close()
        elif not self._reading:  # only now: PATIENCE_S is for a whole request, not for each byte of it
            self._await(reading=True)

    def _do(self, line: bytes) -> None:
        handler = self.server.handler
        try:
            request = parse(line, handler.new_id)
            if isinstance(request, Handover):
                with self.server.descriptors.for_commands():
                    handler.hand_over(request, self.sock)
                self.close()
                return
            self._deferred = True
            with self.server.descriptors.for_commands():
                found = handler.answer(request, self)
        except PortfwdError as error:
            found = failure(error)
        except Exception as error:  # no request may end the service
            log.error("a request failed: %s", line[:200].decode("utf-8", "backslashreplace"), exc_info=error)
            found = failure(PortfwdError("the service failed; its log says more", repr(error)))
        finally:
            close_all(self.take_descriptors())
        if found is not None:
            self.answer(found)

    def _send(self) -> None:
        try:
            sent = self.sock.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._unsent = self._unsent[sent:]
        if self._unsent:
            self._await(writing=True)
        elif self._last:
            self.close()
        else:
            self._await()
            self.server.loop.call_soon(self._next)

    def _next(self) -> None:
        """Go on after an answer, in a turn of its own: a client with many requests at once does not hold up others."""
        if self.sock.fileno() >= 0 and not self._deferred:
            self._go_on()

    def close(self) -> None:
        """Hang up."""
        if self.sock.fileno() < 0:
            return
        self._await()
        close_all(self.take_descriptors())
        self.sock.close()
        self.server.left(self)


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that were not used."""
    for fd in descriptors:
        os.close(fd)
