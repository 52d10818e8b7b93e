"""A program that is asked over D-Bus, and answers with bytes that a test gives it; and D-Bus messages for those."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path

GREETING = b"DATA\r\nOK 1234\r\n"
LIMIT_S = 30.0


def field(code: int, kind: str, value: bytes) -> bytes:
    return bytes((code, 1)) + kind.encode() + b"\0" + value


def message(kind: int, serial: int, signature: str, body: bytes, *fields: bytes, order: str = "<") -> bytes:
    """An answer, put together by the specification and not by the code under test."""
    listed = b""
    number = struct.pack(f"{order}I", serial)
    typed = bytes((len(signature),)) + signature.encode() + b"\0"
    for one in (field(5, "u", number), *([field(8, "g", typed)] if signature else []), *fields):
        listed += b"\0" * (-len(listed) % 8) + one
    head = (
        (b"l" if order == "<" else b"B") + bytes((kind, 0, 1)) + struct.pack(f"{order}III", len(body), 7, len(listed))
    )
    return head + listed + b"\0" * (-len(listed) % 8) + body


def text(value: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}I", len(value)) + value + b"\0"


HELLO = message(2, 1, "s", text(b":1.7"))


class FakeBus:
    """Answers whoever connects first with these bytes; then it listens, or ends where they end with END."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:path={folder}/bus"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / "bus"))
        self.listener.listen()
        self.heard = b""
        self.over = threading.Event()

    def answer(self, data: bytes) -> str:
        """Begin; the address."""
        threading.Thread(target=self._serve, args=(data,), daemon=True).start()
        return self.address

    def _serve(self, data: bytes) -> None:
        connection, _ = self.listener.accept()
        with connection, contextlib.suppress(ConnectionError):  # the client has had enough
            self.heard += connection.recv(1 << 16)
            connection.sendall(data)
            while not data.endswith(b"END"):
                part = connection.recv(1 << 16)
                if not part:
                    break
                self.heard += part
        self.over.set()

    def close(self) -> None:
        self.listener.close()
