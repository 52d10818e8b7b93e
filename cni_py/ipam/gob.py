"""Go's encoding/gob, for the few types that the DHCP daemon's calls carry. Pure.

A stream is a row of messages: a length, a type's number, a value. A negative number -N stands before a value of the type
`wireType`, which describes the type N. Of a struct only the fields that are not zero are sent, each with its distance from
the one before. Fields are matched by name, so either side may have more. Source: documentation of Go's package encoding/gob.

Here a struct is a dict, a slice a list, a map a list of pairs; a zero field is missing. What comes in is from another process: a
message has a limit, types and depth have, and no count is believed that the message is too short for.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    Value = bool | int | float | str | bytes | None | list["Value"] | list[tuple["Value", "Value"]] | dict[str, "Value"]
    Kind: TypeAlias = "int | Struct | Slice"  # what is encoded
    # Of a type that was described: form, parts, fields
    Known = tuple[str, tuple[int, ...], tuple[tuple[str, int], ...]]

BOOL, INT, UINT, FLOAT, BYTES, STRING = range(1, 7)
FIRST_OWN = 64  # numbers below are Go's own types
MESSAGE_MAX = 17 << 20  # bytes; a configuration has 16 MiB at most (skel.STDIN_MAX)
TYPES_MAX, FIELDS_MAX, DEPTH_MAX = 128, 128, 24
LENGTH_MAX = 9  # bytes of a number

# The types that describe types
_COMMON, _FIELDS = 17, 22
_WIRE_TYPE = 16
_DESCRIBED: "dict[int, Known]" = {
    _WIRE_TYPE: (
        "struct",
        (),
        (
            ("ArrayT", 18), ("SliceT", 19), ("StructT", 20), ("MapT", 23),
            ("GobEncoderT", 24), ("BinaryMarshalerT", 24), ("TextMarshalerT", 24),
        ),
    ),
    _COMMON: ("struct", (), (("Name", STRING), ("Id", INT))),
    18: ("struct", (), (("CommonType", _COMMON), ("Elem", INT), ("Len", INT))),
    19: ("struct", (), (("CommonType", _COMMON), ("Elem", INT))),
    20: ("struct", (), (("CommonType", _COMMON), ("Field", _FIELDS))),
    21: ("struct", (), (("Name", STRING), ("Id", INT))),
    _FIELDS: ("slice", (21,), ()),
    23: ("struct", (), (("CommonType", _COMMON), ("Key", INT), ("Elem", INT))),
    24: ("struct", (), (("CommonType", _COMMON),)),
}  # fmt: skip


class GobError(ValueError):
    """What came in is no gob, or is beyond a limit."""


class Struct:
    """A type: the fields in the order of Go's struct."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, *fields: "tuple[str, Kind]") -> None:
        self.name = name
        self.fields = fields


class Slice:
    """A type: a slice of `elem`. Not of bytes, which are BYTES."""

    __slots__ = ("elem",)

    def __init__(self, elem: "Kind") -> None:
        self.elem = elem


# Writing


class Encoder:
    """The writing end of a stream."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: dict[Struct | Slice, int] = {}

    def encode(self, kind: Struct, value: "dict[str, Value]") -> bytes:
        """The messages that carry a value, those that describe its type first if it is new."""
        found: list[bytes] = []
        number = self._number(kind, found)
        found.append(message(integer(number) + self._value(kind, value)))
        return b"".join(found)

    def _number(self, kind: "Kind", found: list[bytes]) -> int:
        """The number of a type; describes it to the reader when it is new."""
        if isinstance(kind, int):
            return kind
        if kind not in self._numbers:
            own = self._numbers[kind] = FIRST_OWN + len(self._numbers)
            name = kind.name if isinstance(kind, Struct) else ""
            common = (b"\1" + text(name) if name else b"") + (b"\1" if name else b"\2") + integer(own) + b"\0"
            if isinstance(kind, Slice):
                body = b"\2\1" + common + b"\1" + integer(self._number(kind.elem, found))
            else:
                fields = [
                    b"\1" + text(name) + b"\1" + integer(self._number(part, found)) + b"\0"
                    for name, part in kind.fields
                ]
                body = b"\3\1" + common + (b"\1" + unsigned(len(fields)) + b"".join(fields) if fields else b"")
            found.append(message(integer(-own) + body + b"\0\0"))
        return self._numbers[kind]

    def _value(self, kind: "Kind", value: "Value") -> bytes:
        if isinstance(kind, Struct):
            assert isinstance(value, dict)
            found, before = [], -1
            for place, (name, part) in enumerate(kind.fields):
                if given := value.get(name):
                    found.append(unsigned(place - before) + self._value(part, given))
                    before = place
            return b"".join(found) + b"\0"
        if isinstance(kind, Slice):
            assert isinstance(value, list)
            return unsigned(len(value)) + b"".join(self._value(kind.elem, each) for each in value)  # type: ignore[arg-type]  # no pairs
        if kind == STRING:
            return text(str(value))
        if kind == BYTES:
            assert isinstance(value, bytes)
            return unsigned(len(value)) + value
        assert isinstance(value, int)
        return integer(value) if kind == INT else unsigned(value)


def message(body: bytes) -> bytes:
    """A message with its length."""
    return unsigned(len(body)) + body


def unsigned(value: int) -> bytes:
    """A number: itself in one byte, or the negated count of bytes, and these, the highest first."""
    if value < 128:
        return bytes((value,))
    body = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes((256 - len(body),)) + body


def integer(value: int) -> bytes:
    """A number with a sign, which is its lowest bit."""
    return unsigned(~value << 1 | 1 if value < 0 else value << 1)


def text(value: str) -> bytes:
    """A string."""
    body = value.encode("utf-8", "surrogateescape")
    return unsigned(len(body)) + body


# Reading


class Decoder:
    """The reading end of a stream: feed() it what comes, and take the values."""

    __slots__ = ("_buffer", "_types")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._types = dict(_DESCRIBED)

    def feed(self, data: bytes) -> "Iterator[dict[str, Value]]":
        """The values that are complete with `data`. GobError: the stream cannot be read any more."""
        self._buffer += data
        while True:
            part = self._message()
            if part is None:
                return
            number = part.integer()
            if number < 0:
                self._describe(-number, part)
                continue
            form, _, _ = self._known(number)
            if form != "struct":
                raise GobError("a value that is no struct")
            value = self._value(number, part, 0)
            part.end()
            assert isinstance(value, dict)
            yield value

    def _message(self) -> "Part | None":
        """The next message, without its length; None while it is not complete."""
        if not self._buffer:
            return None
        head = 1 if self._buffer[0] < 128 else 257 - self._buffer[0]
        if head > LENGTH_MAX:
            raise GobError("not a length")
        if len(self._buffer) < head:
            return None
        length = Part(bytes(self._buffer[:head])).unsigned()
        if length > MESSAGE_MAX:
            raise GobError(f"a message of {length} bytes")
        if len(self._buffer) < head + length:
            return None
        body = bytes(self._buffer[head : head + length])
        del self._buffer[: head + length]
        return Part(body)

    def _known(self, number: int) -> "Known":
        if number not in self._types:
            raise GobError(f"a value of the type {number}, which was not described")
        return self._types[number]

    def _describe(self, number: int, part: "Part") -> None:
        """Learn a type from the value of wireType that describes it."""
        wire = self._value(_WIRE_TYPE, part, 0)
        part.end()
        if number < FIRST_OWN or number in self._types or len(self._types) > TYPES_MAX:
            raise GobError(f"the type {number} is described, which cannot be")
        self._types[number] = described(wire)

    def _value(self, number: int, part: "Part", depth: int) -> "Value":
        if number <= STRING:
            return basic(number, part)
        if depth > DEPTH_MAX:
            raise GobError("values within values within values")
        form, parts, fields = self._known(number)
        if form == "bytes":
            return part.taken(part.unsigned())
        if form == "struct":
            return self._struct(fields, part, depth)
        count = part.unsigned()
        if count * len(parts) > part.left:  # each takes a byte at least
            raise GobError(f"{count} elements in {part.left} bytes")
        if form == "map":
            key, elem = parts
            return [(self._value(key, part, depth + 1), self._value(elem, part, depth + 1)) for _ in range(count)]
        return [self._value(parts[0], part, depth + 1) for _ in range(count)]

    def _struct(self, fields: "Sequence[tuple[str, int]]", part: "Part", depth: int) -> "dict[str, Value]":
        found: dict[str, Value] = {}
        place = -1
        while distance := part.unsigned():
            place += distance
            if place >= len(fields):
                raise GobError(f"a field {place} of a struct of {len(fields)}")
            name, kind = fields[place]
            found[name] = self._value(kind, part, depth + 1)
        return found


def described(wire: "Value") -> "Known":
    """The type that a value of wireType describes."""
    assert isinstance(wire, dict)
    if len(wire) != 1:
        raise GobError("a type of several forms, or of none")
    ((form, about),) = wire.items()
    assert isinstance(about, dict)
    key, elem = (_number(about.get(name, 0)) for name in ("Key", "Elem"))
    if form == "StructT":
        fields = about.get("Field", [])
        assert isinstance(fields, list)
        if len(fields) > FIELDS_MAX:
            raise GobError(f"a struct of {len(fields)} fields")
        return "struct", (), tuple((str(each.get("Name", "")), _number(each.get("Id", 0))) for each in fields)  # type: ignore[union-attr]
    if form == "MapT":
        return "map", (key, elem), ()
    return ("slice", (elem,), ()) if form in ("SliceT", "ArrayT") else ("bytes", (), ())


def _number(value: "Value") -> int:
    assert isinstance(value, int)
    return value


def basic(number: int, part: "Part") -> "Value":
    """A value of one of Go's own types."""
    if number == BOOL:
        return part.unsigned() != 0
    if number == INT:
        return part.integer()
    if number in (UINT, FLOAT):  # a float's bits: no call has one
        return part.unsigned()
    if number in (BYTES, STRING):
        body = part.taken(part.unsigned())
        return body if number == BYTES else body.decode("utf-8", "surrogateescape")
    raise GobError(f"a value of the type {number}")


class Part:
    """A message that is being read."""

    __slots__ = ("_body", "_place")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._place = 0

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._body) - self._place

    def taken(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.left:
            raise GobError(f"{count} bytes, where {self.left} are left")
        self._place += count
        return self._body[self._place - count : self._place]

    def unsigned(self) -> int:
        """A number without a sign."""
        first = self.taken(1)[0]
        if first < 128:
            return first
        count = 256 - first
        if count >= LENGTH_MAX:
            raise GobError(f"a number of {count} bytes")
        return int.from_bytes(self.taken(count), "big")

    def integer(self) -> int:
        """A number with a sign."""
        value = self.unsigned()
        return ~(value >> 1) if value & 1 else value >> 1

    def end(self) -> None:
        """GobError if anything is left."""
        if self.left:
            raise GobError(f"{self.left} bytes behind a value")
