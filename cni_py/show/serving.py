"""`cni-py show --serve`: the page over HTTP, live, for people on this host: loopback addresses and Unix sockets alone.

The URL holds a random token; without it the answer is 403. Requests whose header Host names anything but this host are refused: a
page of another site could otherwise reach the server under a name that it lets lead to 127.0.0.1 (DNS rebinding). Requests are
short, connections few, answers end the connection, and nothing is read but GET.

Changes reach the page as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html). The model is made
anew when the kernel tells of a change, and when a page is opened; in a thread, so that the server goes on answering.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import ipaddress
import json
import os
import re
import secrets
import signal
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from cni_py.host.model import Host
from cni_py.show.page import page, page_policy, state

ADDRESS = re.compile(r"(?:\[([^]]*)\]|([^:]+))(?::([0-9]{1,5}))?")
PORT_MAX = 65535
HEAD_MAX = 8192  # bytes of a request, which has no body
HEAD_S = 10.0  # to send it
WRITE_S = 30.0  # to take an answer
CONNECTIONS_MAX = 32
REFUSED_S = 1.0  # that one more than those may take
HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Refused(Exception):
    """The server cannot listen there: a sentence."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen: an address and a port (0 for any that is free), or the path of a Unix socket."""

    address: str = ""
    port: int = 0
    path: str = ""


def place(text: str) -> Place:
    """Of "127.0.0.1:8000", "[::1]:8000", "localhost" (any free port), "unix:PATH". Refused."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise Refused("--serve unix: needs the path of a socket after it")
        return Place(path=os.path.abspath(path))
    found = ADDRESS.fullmatch(text)
    try:
        name = (found[1] or found[2]) if found else ""
        address = ipaddress.ip_address("127.0.0.1" if name == "localhost" else name)
    except ValueError:
        raise Refused(f"--serve {text}: neither an address and a port, as in 127.0.0.1:8000, nor unix:PATH") from None
    port = int(found[3] or 0) if found else 0
    if port > PORT_MAX:
        raise Refused(f"--serve {text}: {port} is not a port")
    if not address.is_loopback:
        raise Refused(
            f"--serve {text}: it listens on this host's loopback addresses and on Unix sockets alone, since the page tells all "
            "about the host; from elsewhere, use `ssh -L`"
        )
    return Place(str(address), port)


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request."""

    method: str
    path: str
    since: str  # the number of the state that the page has
    host: str


class BadRequest(Exception):
    """Not a request that is answered."""


def parsed(head: bytes) -> Request:
    """The head of a request, which ends with an empty line. BadRequest."""
    try:
        first, *lines = head.decode("ascii").split("\r\n")
        method, target, version = first.split(" ")
        url = urlsplit(target)
    except ValueError:
        raise BadRequest from None
    fields = [(name.lower(), value.strip()) for name, colon, value in (line.partition(":") for line in lines) if colon]
    hosts = [value for name, value in fields if name == "host"]
    if not version.startswith("HTTP/1.") or not target.startswith("/") or len(hosts) != 1:
        raise BadRequest
    last = [value for name, value in fields if name == "last-event-id"] or parse_qs(url.query).get("since", [""])
    return Request(method, url.path, last[0], hosts[0])


def is_local(host: str, address: str) -> bool:
    """Whether a header Host names this host. Its port may be another: that of `ssh -L`."""
    found = ADDRESS.fullmatch(host)
    name = (found[1] or found[2]).lower() if found else ""
    return name in {"localhost", "127.0.0.1", "::1", address} - {""}


class Changes(Protocol):
    """What tells of changes."""

    def wait(self) -> bool:
        """Return when something changed; false after stop()."""

    def stop(self) -> None:
        """End wait(), from another thread."""


class Server:
    """The pages of one host."""

    def __init__(self, where: Place, look: Callable[[], Host], changes: Changes) -> None:
        self.where = where
        self.look = look
        self.changes = changes
        self.token = secrets.token_urlsafe(24)
        self.host: Host | None = None
        self.number = 0  # of the state; each look makes a new one
        self.changed = asyncio.Condition()
        self.looking = asyncio.Lock()
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self, ready: Callable[[str], None], stop: asyncio.Event) -> None:
        """Serve until `stop`; `ready` gets the URL. Refused."""
        listener = listening(self.where)
        server = await asyncio.start_server(self._connected, sock=listener, limit=HEAD_MAX)
        following = asyncio.create_task(self._follow())
        following.add_done_callback(lambda _: stop.set())
        try:
            await self._refresh()
            ready(self.url(listener))
            await stop.wait()
        finally:
            server.close()
            self.changes.stop()
            for task in (following, *self.tasks):
                task.cancel()
            ended = await asyncio.gather(following, *self.tasks, return_exceptions=True)
            if self.where.path:
                os.unlink(self.where.path)
        if isinstance(ended[0], Exception):
            raise ended[0]

    def url(self, listener: socket.socket) -> str:
        """Where a browser finds the page."""
        if self.where.path:
            return f"http://localhost/{self.token}/ at the Unix socket {self.where.path}"
        address = f"[{self.where.address}]" if ":" in self.where.address else self.where.address
        return f"http://{address}:{listener.getsockname()[1]}/{self.token}/"

    # The model

    async def _follow(self) -> None:
        """Make the model anew after each change."""
        while await asyncio.to_thread(self.changes.wait):
            await self._refresh()

    async def _refresh(self) -> Host:
        """Look at the host, and tell the pages."""
        async with self.looking:
            self.host = await asyncio.to_thread(self.look)
        async with self.changed:
            self.number += 1
            self.changed.notify_all()
        return self.host

    # Requests

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self.tasks.add(task)
        try:
            if len(self.tasks) > CONNECTIONS_MAX:
                await answer(writer, HTTPStatus.SERVICE_UNAVAILABLE)
                # A close with a request that was not read resets the connection, and the answer may be lost with it
                await asyncio.wait_for(reader.read(HEAD_MAX), REFUSED_S)
            else:
                await self._answered(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side is gone or slow, or the server ends
        finally:
            self.tasks.discard(task)
            writer.close()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = parsed(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_S))
        except (BadRequest, asyncio.LimitOverrunError):
            await answer(writer, HTTPStatus.BAD_REQUEST)
            return
        status, name = self._checked(request)
        if status != HTTPStatus.OK:
            await answer(writer, status)
        elif request.method == "HEAD":
            await answer(writer, status, page_headers(""))
        elif name == "events":
            await self._events(reader, writer, request.since)
        else:
            host = await self._refresh()
            text = await asyncio.to_thread(page, host, live=self.number)
            await answer(writer, status, page_headers(text), text.encode())

    def _checked(self, request: Request) -> tuple[HTTPStatus, str]:
        """Whether it is answered, and what it asks for: "" for the page, or "events"."""
        _, token, *rest = request.path.split("/")
        if not is_local(request.host, self.where.address) or not hmac.compare_digest(token, self.token):
            return HTTPStatus.FORBIDDEN, ""
        if request.method not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, ""
        return (HTTPStatus.OK, rest[0]) if rest in ([""], ["events"]) else (HTTPStatus.NOT_FOUND, "")

    async def _events(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, since: str) -> None:
        """Send each state that the page does not have yet, until it is closed. A slow page gets the latest alone."""
        await sent(writer, head(HTTPStatus.OK, {"Content-Type": "text/event-stream"}))
        closed = asyncio.create_task(reader.read(1))
        try:
            while not closed.done():
                if since != str(self.number) and self.host is not None:
                    number, host = self.number, self.host
                    text = await asyncio.to_thread(event, number, host)
                    await sent(writer, text)
                    since = str(number)
                    continue
                newer = asyncio.create_task(self._newer(since))
                await asyncio.wait((newer, closed), return_when=asyncio.FIRST_COMPLETED)
                newer.cancel()
        finally:
            closed.cancel()

    async def _newer(self, since: str) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: str(self.number) != since)


def page_headers(text: str) -> dict[str, str]:
    """Those of the page: its policy, which forbids frames, too."""
    policy = f"{page_policy(live=True)}; frame-ancestors 'none'"
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "Content-Length": str(len(text.encode())),
    }


def event(number: int, host: Host) -> bytes:
    """A state as a server-sent event. JSON has no line ends."""
    return f"id: {number}\ndata: {json.dumps(state(host))}\n\n".encode()


def head(status: HTTPStatus, more: dict[str, str]) -> bytes:
    """The head of an answer."""
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        *(f"{name}: {value}" for name, value in (HEADERS | more).items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def answer(
    writer: asyncio.StreamWriter, status: HTTPStatus, more: dict[str, str] | None = None, body: bytes | None = None
) -> None:
    """A whole answer. An error's body is its name."""
    if more is None:
        body = f"{status.value} {status.phrase}\n".encode()
        more = {"Content-Type": "text/plain", "Content-Length": str(len(body))}
    await sent(writer, head(status, more) + (body or b""))


async def sent(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write, and wait until the other side takes it. TimeoutError."""
    writer.write(data)
    await asyncio.wait_for(writer.drain(), WRITE_S)


# Sockets


def listening(where: Place) -> socket.socket:
    """The listening socket. Refused."""
    try:
        return _at_path(where.path) if where.path else _at_address(where)
    except OSError as error:
        shown = where.path or f"{where.address} port {where.port}"
        raise Refused(f"cannot listen at {shown}: {error.strerror or error}") from error


def _at_address(where: Place) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in where.address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((where.address, where.port))
    except OSError:
        sock.close()
        raise
    return sock


def _at_path(path: str) -> socket.socket:
    """A socket for its owner alone. One that a killed server left is replaced, anything else is not."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead(path)
        umask = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(umask)
    except OSError:
        sock.close()
        raise
    return sock


def _remove_dead(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "a file is there that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.connect(path)
        raise OSError(errno.EADDRINUSE, "another program listens there")
    except FileNotFoundError:
        pass
    except ConnectionRefusedError:
        os.unlink(path)


def serve(where: Place, look: Callable[[], Host], changes: Changes, ready: Callable[[str], None]) -> bool:
    """Serve at a place until SIGINT (then true) or SIGTERM. Refused."""

    async def until_signal() -> bool:
        stop = asyncio.Event()
        came: list[int] = []

        def end(number: int) -> None:
            came.append(number)
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, end, number)
        await Server(where, look, changes).run(ready, stop)
        return signal.SIGINT in came

    return asyncio.run(until_signal())
