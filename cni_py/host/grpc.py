"""One call of a gRPC service on a Unix socket, for containerd and CRI-O: as much of HTTP/2 and protocol buffers as that takes.

HTTP/2 is RFC 9113, its headers RFC 7541, gRPC's framing PROTOCOL-HTTP2.md of grpc. The headers of an answer are not read: a call
that succeeds answers with exactly one message, one that fails with none, so that the state in the trailers says no more.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
ENABLE_PUSH, INITIAL_WINDOW_SIZE = 2, 4
WINDOW_MAX, WINDOW_FIRST = 2**31 - 1, 65535
FRAME_MAX = 1 << 14  # SETTINGS_MAX_FRAME_SIZE, which we leave as it is: a longer frame is not HTTP/2
ANSWER_MAX = 1 << 26  # bytes; a container takes some kilobytes
CALL_S = 5.0
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


class NoAnswer(Exception):
    """The service is not there, refuses, or is silent; the text says which."""


def call(path: str, method: str, request: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The message that answers `request`. `method`: "/package.Service/Method". NoAnswer."""
    deadline = time.monotonic() + CALL_S
    try:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(CALL_S)
            stream.connect(path)
            stream.sendall(_opening(method, request, headers))
            body = _body(stream, deadline)
    except TimeoutError:
        raise NoAnswer(f"no answer within {CALL_S:g} s") from None
    except OSError as error:
        raise NoAnswer(error.strerror or str(error)) from error
    if len(body) < 5 or body[0] != 0 or int.from_bytes(body[1:5]) != len(body) - 5:
        raise NoAnswer(f"it refuses {method}")
    return body[5:]


def _opening(method: str, request: bytes, headers: tuple[tuple[str, str], ...]) -> bytes:
    """All that we have to say: the windows so wide that no answer waits for us, the call's headers, its message."""
    settings = struct.pack("!HIHI", ENABLE_PUSH, 0, INITIAL_WINDOW_SIZE, WINDOW_MAX)
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *headers,
    )
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)
    return b"".join(
        (
            PREFACE,
            _frame(SETTINGS, 0, 0, settings),
            _frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", WINDOW_MAX - WINDOW_FIRST)),
            _frame(HEADERS, END_HEADERS, 1, block),
            _frame(DATA, END_STREAM, 1, struct.pack("!BI", 0, len(request)) + request),
        )
    )


def _text(text: str) -> bytes:
    """A string of a header, without Huffman's code. Of at most 126 bytes: longer ones have another length."""
    data = text.encode()
    if len(data) > 126:
        raise NoAnswer(f"the name {text[:40]!r}... is too long")
    return bytes((len(data),)) + data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + struct.pack("!BBI", kind, flags, stream) + payload


def _body(stream: socket.socket, deadline: float) -> bytes:
    """The data of the answer, to its end. NoAnswer, OSError."""
    body = bytearray()
    while True:
        head = _read(stream, 9, deadline)
        size = int.from_bytes(head[:3])
        if size > FRAME_MAX or len(body) > ANSWER_MAX:
            raise NoAnswer("its answer is too long, or not HTTP/2")
        kind, flags, number = struct.unpack("!BBI", head[3:])
        payload = _read(stream, size, deadline)
        if kind in (SETTINGS, PING) and not flags & ACK:
            with contextlib.suppress(BrokenPipeError):  # all is said, and it has closed: the answer is still to be read
                stream.sendall(_frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == GOAWAY or (kind == RST_STREAM and number == 1):
            raise NoAnswer("it has ended the call")
        elif kind == DATA and number == 1:
            body += payload[1 : len(payload) - payload[0]] if flags & PADDED and payload else payload
        if kind in (DATA, HEADERS) and number == 1 and flags & END_STREAM:
            return bytes(body)


def _read(stream: socket.socket, size: int, deadline: float) -> bytes:
    """Exactly so many bytes. NoAnswer, OSError."""
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        stream.settimeout(left)
        piece = stream.recv(size - len(data))
        if not piece:
            raise NoAnswer("it has closed the connection")
        data += piece
    return bytes(data)


class Message:
    """A message of protocol buffers: its fields by number. ValueError, from the constructor, for what is none."""

    def __init__(self, data: bytes) -> None:
        self.numbers: dict[int, int] = {}
        self.parts: dict[int, list[bytes]] = {}
        at = 0
        while at < len(data):
            key, at = _varint(data, at)
            kind, field = key & 7, key >> 3
            if kind == VARINT:
                self.numbers[field], at = _varint(data, at)
                continue
            if kind not in (FIXED64, BYTES, FIXED32):
                raise ValueError(f"wire type {kind}")
            size, at = _varint(data, at) if kind == BYTES else (8 if kind == FIXED64 else 4, at)
            if at + size > len(data):
                raise ValueError("the message is cut")
            if kind == BYTES:
                self.parts.setdefault(field, []).append(data[at : at + size])
            at += size

    def text(self, field: int) -> str:
        """A string; "" when it is not there."""
        return self.parts.get(field, [b""])[-1].decode("utf-8", "replace")

    def number(self, field: int) -> int:
        """An integer or enum; 0 when it is not there."""
        return self.numbers.get(field, 0)

    def one(self, field: int) -> Message:
        """A message within; an empty one when it is not there."""
        return Message(self.parts.get(field, [b""])[-1])

    def all(self, field: int) -> list[Message]:
        """Repeated messages."""
        return [Message(part) for part in self.parts.get(field, [])]

    def map(self, field: int) -> dict[str, str]:
        """A map of strings."""
        return {entry.text(1): entry.text(2) for entry in self.all(field)}


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at that place, and where the next begins. ValueError."""
    number = shift = 0
    while shift < 70:
        if at >= len(data):
            raise ValueError("the message is cut")
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return number, at
    raise ValueError("a number has too many bytes")
