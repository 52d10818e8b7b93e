"""The server of the live page: who is answered, with what, and that changes reach the page. Sockets of this process alone."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cni_py.host.model import Host
from cni_py.show.serving import CONNECTIONS_MAX, HEAD_MAX, Place, Refused, Server, is_local, place
from tests.unit.show import models

LIMIT_S = 30.0
Client = Callable[["Talk"], Awaitable[None]]


class Button:
    """Changes that a test makes."""

    def __init__(self) -> None:
        self.pressed = threading.Semaphore(0)
        self.stopped = False

    def wait(self) -> bool:
        self.pressed.acquire()
        return not self.stopped

    def stop(self) -> None:
        self.stopped = True
        self.pressed.release()


class Talk:
    """A server at a Unix socket, and requests to it."""

    def __init__(self, path: Path) -> None:
        self.button = Button()
        self.path = path
        self.looks = 0
        self.server = Server(Place(path=str(path)), self.look, self.button)

    def look(self) -> Host:
        self.looks += 1
        return dataclasses.replace(models.lone(), hostname=f"look{self.looks}")

    async def open(self, text: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(str(self.path), limit=1 << 24)
        writer.write(text.encode())
        return reader, writer

    async def ask(
        self, target: str | None = None, *, method: str = "GET", host: str = "localhost", more: str = ""
    ) -> tuple[int, str, str]:
        """Status, head and body."""
        target = f"/{self.server.token}/" if target is None else target
        reader, writer = await self.open(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n")
        text = (await reader.read()).decode()
        writer.close()
        head, _, body = text.partition("\r\n\r\n")
        return int(head.split(" ")[1]), head, body


def talk(tmp_path: Path, client: Client) -> Talk:
    """Run a client beside a server."""

    async def both() -> None:
        stop, ready = asyncio.Event(), asyncio.Event()
        serving = asyncio.create_task(made.server.run(lambda _: ready.set(), stop))
        serving.add_done_callback(lambda _: ready.set())
        await asyncio.wait_for(ready.wait(), LIMIT_S)
        try:
            if not serving.done():
                await asyncio.wait_for(client(made), LIMIT_S)
        finally:
            stop.set()
            await serving

    made = Talk(tmp_path / "page.sock")
    asyncio.run(both())
    return made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8000", Place("127.0.0.1", 8000)),
        ("127.0.0.1", Place("127.0.0.1", 0)),
        ("localhost:80", Place("127.0.0.1", 80)),
        ("[::1]:8000", Place("::1", 8000)),
        ("[::1]", Place("::1", 0)),
        ("unix:/run/x", Place(path="/run/x")),
    ],
)
def test_places(text: str, expected: Place) -> None:
    assert place(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.0.0.0:80", "loopback addresses and on Unix sockets alone"),
        ("[::]:80", "loopback addresses and on Unix sockets alone"),
        ("192.0.2.1", "loopback addresses and on Unix sockets alone"),
        ("127.0.0.1:65536", "65536 is not a port"),
        *(
            (text, "neither an address and a port")
            for text in ("", "8000", ":80", "::1", "127.1:80", "example.org:80", "127.0.0.1:x")
        ),
        ("unix:", "needs the path"),
    ],
)
def test_places_that_are_refused(text: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        place(text)


def test_hosts_that_are_this_one() -> None:
    assert all(
        is_local(one, "127.0.0.9") for one in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:9", "127.0.0.9:1")
    )
    assert not any(
        is_local(one, "")
        for one in ("", "rebound.example", "rebound.example:80", "127.0.0.1.example", "[", "localhost@x")
    )


def test_the_page_needs_its_token_and_a_local_name(tmp_path: Path) -> None:
    async def client(made: Talk) -> None:
        token = made.server.token
        status, head, body = await made.ask()
        assert status == 200
        assert "look2" in body  # made when the page was asked for
        for line in (
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Referrer-Policy: no-referrer",
            "frame-ancestors 'none'",
        ):
            assert line in head
        assert (await made.ask(method="HEAD"))[::2] == (200, "")
        for wrong in ("/", f"/{token[:-1]}/", f"/{token}x/", "/é/", f"//{token}/"):
            assert (await made.ask(wrong))[0] in (400, 403)
        assert (await made.ask(host="rebound.example"))[0] == 403
        assert (await made.ask(f"/{token}/other"))[0] == 404
        assert (await made.ask(f"/{token}/../"))[0] == 404
        assert (await made.ask(method="POST"))[0] == 405
        assert token not in "".join([(await made.ask("/"))[2], (await made.ask(host="x"))[2]])

    made = talk(tmp_path, client)
    assert not made.path.exists()


def test_requests_that_are_none(tmp_path: Path) -> None:
    async def client(made: Talk) -> None:
        for text in ("GET\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n",
                     "\x00\xff\r\n\r\n", f"GET /{'x' * HEAD_MAX} HTTP/1.1\r\n"):  # fmt: skip
            reader, writer = await made.open(text)
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
            writer.close()

    talk(tmp_path, client)


def test_connections_have_a_limit(tmp_path: Path) -> None:
    async def client(made: Talk) -> None:
        idle = [await made.open("GET ") for _ in range(CONNECTIONS_MAX)]
        assert (await made.ask())[0] == 503
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()
        await asyncio.gather(*made.server.tasks)
        assert (await made.ask())[0] == 200

    talk(tmp_path, client)


def test_a_change_reaches_the_page(tmp_path: Path) -> None:
    async def client(made: Talk) -> None:
        head = f"GET /{made.server.token}/events?since=1 HTTP/1.1\r\nHost: localhost\r\n"
        reader, writer = await made.open(f"{head}\r\n")
        assert b"text/event-stream" in await reader.readuntil(b"\r\n\r\n")
        made.button.pressed.release()
        assert await reader.readline() == b"id: 2\n"
        state = json.loads((await reader.readline()).removeprefix(b"data: "))
        assert state["title"] == "look2"
        assert state["drawing"].startswith("<svg")
        writer.close()
        # One that comes again gets what it has missed, and one that has it waits for the next
        reader, writer = await made.open(f"{head}Last-Event-ID: 1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readline() == b"id: 2\n"
        writer.close()

    talk(tmp_path, client)


def test_an_error_of_the_look_ends_the_server(tmp_path: Path) -> None:
    made = Talk(tmp_path / "page.sock")

    def look() -> Host:
        raise OSError(5, "the look failed")

    made.server.look = look
    with pytest.raises(OSError, match="the look failed"):
        asyncio.run(made.server.run(lambda _: None, asyncio.Event()))
    assert not made.path.exists()


def test_a_socket_that_is_in_use_or_no_socket_is_left(tmp_path: Path) -> None:
    path = tmp_path / "page.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    talk(tmp_path, lambda made: asyncio.sleep(0))  # a dead one is replaced
    path.write_text("kept")
    with pytest.raises(Refused, match=r"cannot listen at .*page.sock: a file is there that is no socket"):
        talk(tmp_path, lambda made: asyncio.sleep(0))
    assert path.read_text() == "kept"
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(Refused, match="another program listens there"):
            talk(tmp_path, lambda made: asyncio.sleep(0))


def test_it_listens_on_loopback() -> None:
    urls: list[str] = []

    async def one(where: Place) -> None:
        stop = asyncio.Event()

        def ready(url: str) -> None:
            urls.append(url)
            stop.set()

        await Server(where, models.lone, Button()).run(ready, stop)

    asyncio.run(one(Place("127.0.0.1")))
    assert urls[0].startswith("http://127.0.0.1:")
    assert urls[0].endswith("/")
