"""The gRPC client against another implementation of HTTP/2 (h2), and against what is none."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from cni_py.host import containers, grpc
from cni_py.host.grpc import Message, NoAnswer
from tests.clients.cri_client import entries, message

Answer = Callable[[socket.socket], None]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Answer], str]]:
    """serve(answer): the path of a socket, on which `answer` is called with one connection."""
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(10)
    path = str(tmp_path / "socket")
    listener.bind(path)
    listener.listen()
    threads = []

    def start(answer: Answer) -> str:
        def once() -> None:
            stream, _ = listener.accept()
            with stream:
                answer(stream)

        threads.append(threading.Thread(target=once))
        threads[-1].start()
        return path

    yield start
    for thread in threads:
        thread.join()
    listener.close()


def service(reply: bytes | None, seen: dict[str, str]) -> Answer:
    """A server that answers each call with `reply`, or, if that is None, with an error in the trailers."""

    def answer(stream: socket.socket) -> None:
        http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        http.initiate_connection()
        http.ping(b"12345678")
        stream.sendall(http.data_to_send())
        ended = False
        while not ended:
            for event in http.receive_data(stream.recv(1 << 16)):
                if isinstance(event, h2.events.RequestReceived):
                    seen.update({str(name): str(value) for name, value in event.headers})
                ended |= isinstance(event, h2.events.StreamEnded)
            stream.sendall(http.data_to_send())
        head = [(":status", "200"), ("content-type", "application/grpc")]
        if reply is None:
            http.send_headers(1, [*head, ("grpc-status", "12"), ("grpc-message", "unimplemented")], end_stream=True)
        else:
            http.send_headers(1, head)
            framed = struct.pack("!BI", 0, len(reply)) + reply
            size = http.max_outbound_frame_size - 300
            for at in range(0, len(framed), size):
                http.send_data(1, framed[at : at + size], pad_length=at % 200)
            http.send_headers(1, [("grpc-status", "0")], end_stream=True)
        stream.sendall(http.data_to_send())
        stream.recv(1 << 16)  # until the client closes

    return answer


def test_a_call_and_an_answer_longer_than_a_window(serve: Callable[[Answer], str]) -> None:
    seen: dict[str, str] = {}
    reply = message(*((1, message((1, f"c{number}" * 40), *entries(2, {"a": "b"}))) for number in range(2000)))
    assert len(reply) > 2 * 65535
    found = grpc.call(serve(service(reply, seen)), "/a.B/C", b"", (("containerd-namespace", "k8s.io"),))
    assert found == reply
    assert (seen[":path"], seen[":method"], seen["containerd-namespace"]) == ("/a.B/C", "POST", "k8s.io")
    last = Message(found).all(1)[-1]
    assert (last.text(1), last.map(2)) == ("c1999" * 40, {"a": "b"})


def test_an_empty_answer_is_one(serve: Callable[[Answer], str]) -> None:
    assert grpc.call(serve(service(b"", {})), "/a.B/C") == b""


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
        b"\xff" * 100,
        b"\0\0\4\7\0\0\0\0\0\0\0\0\0",  # GOAWAY
        b"\0\0\4\3\0\0\0\0\1\0\0\0\7",  # RST_STREAM
        b"\0\0\3\0\1\0\0\0\1\0\0\0",  # half a message
        b"\0\0\6\0\1\0\0\0\1\1\0\0\0\1x",  # a compressed one, which nobody asked for
    ],
)
def test_what_is_no_answer(serve: Callable[[Answer], str], said: bytes) -> None:
    def answer(stream: socket.socket) -> None:
        stream.recv(1 << 16)
        stream.sendall(said)

    with pytest.raises(NoAnswer):
        grpc.call(serve(answer), "/a.B/C")


def test_an_error_is_no_answer(serve: Callable[[Answer], str]) -> None:
    with pytest.raises(NoAnswer, match=r"refuses /a\.B/C"):
        grpc.call(serve(service(None, {})), "/a.B/C")


def test_one_that_says_nothing(serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc, "CALL_S", 0.05)

    def answer(stream: socket.socket) -> None:
        while stream.recv(1 << 16):
            pass

    with pytest.raises(NoAnswer, match=r"no answer within 0\.05 s"):
        grpc.call(serve(answer), "/a.B/C")


@pytest.mark.parametrize("data", [b"\x0a\xff", b"\x0a\x05ab", b"\x0b", b"\x80" * 20, b"\x08", b"\x11abc"])
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"message is cut|wire type|too many bytes"):
        Message(data)


def test_a_runtime_that_does_not_answer_is_a_gap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A socket file that nobody listens on: the runtime has ended, its containers have not."""
    for name, path in (("CRIO", str(tmp_path / "crio.sock")), ("DOCKER", str(tmp_path / "docker.sock"))):
        monkeypatch.setattr(containers, name, path)
    monkeypatch.setattr(
        containers, "RUNTIMES", tuple(one for one in containers.RUNTIMES if one[0] in ("cri-o", "docker"))
    )
    assert containers.containers() == containers.Answers()
    for path in (containers.CRIO, containers.DOCKER):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
    found = containers.containers()
    assert found.silent == {"cri-o", "docker"}
    assert found.answered == frozenset()
    assert os.path.exists(containers.CRIO)
