"""D-Bus: method calls with texts as arguments, and their answers. Nothing else of it.

A library would be the larger part of a plugin's start: see docs/backends.md. What another program answers is not trusted: every
length is checked against what was read, sizes have limits, and so has the time until the answer.

    greeting   \\0AUTH EXTERNAL, DATA, BEGIN: the bus takes the user from the socket (SCM_CREDENTIALS), as it also is in a user
               namespace; then messages. All of it goes out at once, and the answers come in that order
    message    16 bytes, an array of fields (code, signature, value), padding to 8, the body

Source: the D-Bus Specification 0.43, "Message Protocol" and "Authentication Protocol".
"""

import _socket
import _struct
import time

from cni_py.errors import CniError, TryAgainLater

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_AUTO_START = 2  # a program that does not run is not started for us
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE = 1, 2, 3, 4, 5, 6, 7, 8
KINDS = {PATH: "o", INTERFACE: "s", MEMBER: "s", DESTINATION: "s", SIGNATURE: "g"}
GREETING = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n"
LINE_MAX = 512  # bytes of an answer to the greeting
MESSAGE_MAX = 8 << 20  # bytes: the sources of a zone are 20 each
TEXT_MAX = 1 << 12  # bytes of a text that we send
SHOWN = 300  # characters of an error
PART = 1 << 16
HEAD = 16  # bytes of a message that say how long it is
_U32 = _struct.Struct("<I")
_HEADER = _struct.Struct("<cBBBII")  # byte order, type, flags, version, bytes of the body, serial number

DBUS = "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus"


class BusError(CniError):
    """There is no bus, or none that can be talked to. Code 999, as for any other program that fails."""


class NoBus(BusError):
    """Nobody listens there: the socket is missing, or was left behind."""


class NoAnswer(TryAgainLater):
    """There was none in time."""


class Refused(CniError):
    """A program on the bus answers with an error: its name and text."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = printable(name), printable(text)
        super().__init__(f"{self.name}: {self.text}" if text else self.name)


def printable(text: str) -> str:
    """A text of another program, fit for a line of an error."""
    return "".join(each if each.isprintable() else "?" for each in text[:SHOWN])


class Question:
    """A method call: where to, `object` being name, path and interface there; and the type of its answer, "" for none."""

    __slots__ = ("answer", "member", "object", "texts")

    def __init__(self, target: "tuple[str, str, str]", member: str, texts: "Sequence[str]", answer: str) -> None:
        self.object, self.member, self.texts, self.answer = target, member, texts, answer

    def encode(self, serial: int) -> bytes:
        """The message. ValueError for a text that D-Bus cannot carry."""
        name, path, interface = self.object
        fields = [(PATH, path), (DESTINATION, name), (INTERFACE, interface), (MEMBER, self.member)]
        if self.texts:
            fields.append((SIGNATURE, "s" * len(self.texts)))
        listed = b""
        for code, value in fields:
            kind = KINDS[code]
            listed += b"\0" * (-len(listed) % 8) + bytes((code, 1)) + kind.encode() + b"\0"
            listed += bytes((len(value),)) + value.encode() + b"\0" if kind == "g" else _text(value)
        body = b""
        for value in self.texts:
            body += b"\0" * (-len(body) % 4) + _text(value)
        head = _HEADER.pack(b"l", METHOD_CALL, NO_AUTO_START, 1, len(body), serial) + _U32.pack(len(listed)) + listed
        return head + b"\0" * (-len(head) % 8) + body


def _text(value: str) -> bytes:
    data = value.encode()  # UnicodeEncodeError, which is a ValueError, for half of a surrogate pair
    if b"\0" in data or len(data) > TEXT_MAX:
        raise ValueError(f"no text for D-Bus: {value!a:.80}")
    return _U32.pack(len(data)) + data + b"\0"


HELLO = Question(DBUS, "Hello", (), "s")  # before all others


class Message:
    """A message that was read: its header's fields by code, and the body, still in bytes."""

    __slots__ = ("body", "fields", "kind", "order")

    def __init__(self, kind: int, fields: "dict[int, str | int]", body: bytes, order: str) -> None:
        self.kind, self.fields, self.body, self.order = kind, fields, body, order

    def value(self, kind: str) -> "str | int | list[str]":
        """The whole body, of that type ("" for an empty one). ValueError."""
        if self.fields.get(SIGNATURE, "") != kind:
            raise ValueError(f"its signature is {self.fields.get(SIGNATURE)!r}")
        return Reader(self.body, self.order).value(kind) if kind else ""

    def texts(self, count: int) -> list[str]:
        """The body's first texts. ValueError when it has fewer."""
        if not str(self.fields.get(SIGNATURE, "")).startswith("s" * count):
            raise ValueError(f"its signature is {self.fields.get(SIGNATURE)!r}")
        reader = Reader(self.body, self.order)
        return [str(reader.value("s")) for _ in range(count)]

    def refusal(self) -> Refused:
        """The error that it is."""
        told = str(self.fields.get(SIGNATURE, "")).startswith("s")
        return Refused(str(self.fields.get(ERROR_NAME)), self.texts(1)[0] if told else "")


class Reader:
    """Reads values from bytes, one after the other. ValueError when they end too early, or are no such values."""

    __slots__ = ("at", "data", "order")

    def __init__(self, data: bytes, order: str, at: int = 0) -> None:
        self.data, self.order, self.at = data, order, at

    def align(self, size: int) -> None:
        self.at += -self.at % size

    def take(self, size: int) -> bytes:
        part = self.data[self.at : self.at + size]
        if len(part) < size:
            raise ValueError("it ends too early")
        self.at += size
        return part

    def number(self) -> int:
        self.align(4)
        found: int = _struct.unpack(f"{self.order}I", self.take(4))[0]
        return found

    def value(self, kind: str) -> "str | int | list[str]":
        """The next value: of a text (s, o, g), a number (u), a truth value (b) or a list of texts (as)."""
        if kind in ("s", "o"):
            return self.take(self.number() + 1)[:-1].decode("utf-8", "replace")
        if kind == "g":
            return self.take(self.take(1)[0] + 1)[:-1].decode("ascii", "replace")
        if kind in ("u", "b"):
            return self.number()
        if kind != "as":
            raise ValueError(f"a value of type {kind!r}")
        size = self.number()
        end, found = self.at + size, list[str]()
        while self.at < end:
            found.append(str(self.value("s")))
        if self.at != end:
            raise ValueError("a list that does not end where it says")
        return found

    def fields(self, end: int) -> "dict[int, str | int]":
        """The fields of a header, which end there."""
        found: dict[int, str | int] = {}
        while self.at < end:
            self.align(8)
            code = self.take(1)[0]
            value = self.value(str(self.value("g")))
            if not isinstance(value, list):
                found[code] = value
        return found


def size_of(head: bytes) -> int:
    """How long the message is that begins with these 16 bytes. ValueError when none does."""
    order = {b"l": "<", b"B": ">"}.get(head[:1])
    if order is None or head[3] != 1:
        raise ValueError("no message of D-Bus")
    body, _, fields = _struct.unpack_from(f"{order}III", head, 4)
    size: int = _HEADER.size + 4 + fields + (-fields % 8) + body
    if size > MESSAGE_MAX:
        raise ValueError(f"a message of {size} bytes")
    return size


def decode(data: bytes) -> Message:
    """A whole message. ValueError."""
    order = "<" if data[:1] == b"l" else ">"
    reader = Reader(data, order, _HEADER.size)
    end = reader.number() + reader.at
    fields = reader.fields(end)
    reader.align(8)
    return Message(data[1], fields, data[reader.at :], order)


def places(address: str) -> "list[str]":
    """The names of the sockets in an address of D-Bus, in the form of bind(2). BusError when it has none that is understood.

    `unix:path=/run/dbus/system_bus_socket;unix:abstract=/tmp/x,guid=...`; a percent sign stands before two hexadecimal digits.
    """
    found = []
    for one in address.split(";"):
        transport, _, text = one.partition(":")
        values = dict(pair.partition("=")[::2] for pair in text.split(","))
        for key, start in (("path", ""), ("abstract", "\0")) if transport == "unix" else ():
            if key in values:
                found.append(start + _unescaped(values[key]))
    if not found or not all(found):
        raise BusError(f'no address of a bus that cni-py can reach (unix:path= or unix:abstract=): "{address:.200}"')
    return found


def _unescaped(text: str) -> str:
    """ "" when it is none."""
    first, *others = text.split("%")
    try:
        return first + "".join(bytes.fromhex(each[:2]).decode("latin-1") + each[2:] for each in others)
    except ValueError:
        return ""


class Bus:
    """A connection. With a limit for all that is asked until the next call of within()."""

    __slots__ = ("address", "buffer", "due", "limit_s", "serial", "sock")

    def __init__(self, address: str, limit_s: float) -> None:
        """Connect. BusError."""
        self.address, self.buffer, self.serial = address, b"", 0
        self.within(limit_s)
        self.sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            self._connect()
        except BaseException:
            self.sock.close()
            raise

    def _connect(self) -> None:
        for place in places(self.address):
            self.sock.settimeout(self.limit_s)
            try:
                self.sock.connect(place)
            except (OSError, ValueError) as error:
                last = error
            else:
                return
        absent = isinstance(last, FileNotFoundError | ConnectionRefusedError)
        raise (NoBus if absent else BusError)(f"no bus at {self.address:.200}", str(last)) from last

    def __enter__(self) -> "Bus":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def within(self, limit_s: float) -> None:
        """Allow that long from now on."""
        self.limit_s = limit_s
        self.due = time.monotonic() + limit_s

    def ask(self, *questions: Question) -> "list[str | int | list[str] | Refused]":
        """The answers, in the order of the questions. BusError; NoAnswer when there are none in time.

        The first call introduces us to the bus. ValueError for a text that D-Bus cannot carry.
        """
        first, data = not self.serial, b""
        wanted: dict[int, Question] = {}
        for question in [HELLO, *questions] if first else questions:
            self.serial += 1
            wanted[self.serial] = question
            data += question.encode(self.serial)
        try:
            self.sock.settimeout(self.limit_s)
            self.sock.sendall(GREETING + data if first else data, _socket.MSG_NOSIGNAL)
            if first:
                self._read_greeting()
            found = self._answers(wanted)
        except ValueError as error:
            raise BusError(f"what {self.address:.200} answers is not D-Bus", str(error)) from error
        except TimeoutError as error:
            raise NoAnswer(f"no answer on the bus {self.address:.200} within {self.limit_s:g} s") from error
        except OSError as error:
            raise BusError(f"the bus {self.address:.200} is lost", error.strerror or str(error)) from error
        return [found[serial] for serial, question in wanted.items() if question is not HELLO]

    def _answers(self, wanted: "dict[int, Question]") -> "dict[int, str | int | list[str] | Refused]":
        """By serial number. OSError, ValueError, BusError."""
        found: dict[int, str | int | list[str] | Refused] = {}
        while len(found) < len(wanted):
            message = self.read()
            serial = message.fields.get(REPLY_SERIAL)
            if message.kind not in (METHOD_RETURN, ERROR) or not isinstance(serial, int) or serial not in wanted:
                continue
            refused = message.kind == ERROR
            answer = found[serial] = message.refusal() if refused else message.value(wanted[serial].answer)
            if wanted[serial] is HELLO and isinstance(answer, Refused):
                raise BusError(f"the bus {self.address:.200} does not admit us", str(answer))
        return found

    def _read_greeting(self) -> None:
        """DATA, then OK and the bus's id."""
        for word in (b"DATA", b"OK"):
            while b"\r\n" not in self.buffer:
                if len(self.buffer) > LINE_MAX:
                    raise ValueError("a greeting without end")
                self._more()
            line, _, self.buffer = self.buffer.partition(b"\r\n")
            if line.split(b" ")[0] != word:
                raise ValueError(f"it greets with {line[:80]!a}")

    def read(self) -> Message:
        """The next message. OSError, ValueError."""
        while not self._is_whole():
            self._more()
        return self._next()

    def waiting(self) -> "Iterator[Message]":
        """The messages that there are by now, or the first of many; it does not wait. OSError, ValueError."""
        self.sock.settimeout(0)
        try:
            self._receive()
        except BlockingIOError:
            pass
        while self._is_whole():
            yield self._next()

    def _is_whole(self) -> bool:
        return len(self.buffer) >= HEAD and len(self.buffer) >= size_of(self.buffer)

    def _next(self) -> Message:
        size = size_of(self.buffer)
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return decode(data)

    def _more(self) -> None:
        left_s = self.due - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.sock.settimeout(left_s)
        self._receive()

    def _receive(self) -> None:
        part = self.sock.recv(PART)
        if not part:
            raise OSError("it ends the connection")
        self.buffer += part
