"""JSON text as Go's encoding/json reads and writes it.

The C half of Python's json is used directly: the package imports `re`, and together they cost as much as the interpreter's
start. An interpreter without the C half uses the package.
"""

from cni_py.errors import DecodingFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn, TypeAlias

    Value: TypeAlias = "bool | int | float | str | list[Value] | Object | None"
    Encodable: TypeAlias = "bool | int | float | str | Sequence[Encodable] | Mapping[str, Encodable] | None"

BLANK = " \t\r\n"  # RFC 8259 section 2, "ws"
DIGITS_MAX = 100  # digits that are read of a whole number with too many for int()
DEPTH_MAX = 256  # levels of objects and lists; Go takes 10,000, configurations have 10


class Object(dict[str, "Value"]):
    """A JSON object. As a dict it holds the last of several equal keys; `pairs` are all keys, in the order of the text."""

    __slots__ = ("_written",)

    def __init__(self, pairs: "Sequence[tuple[str, Value]]" = ()) -> None:
        super().__init__(pairs)
        self._written = pairs if len(pairs) != len(self) else ()

    @property
    def pairs(self) -> "Sequence[tuple[str, Value]]":
        return self._written or list(self.items())


def _reject_constant(name: str) -> "NoReturn":
    raise ValueError(f"invalid value {name}")


class _Context:
    """The options of the scanner, which reads them from attributes (as of json.decoder.JSONDecoder)."""

    strict = True
    object_hook = None
    object_pairs_hook = Object
    parse_float = float
    parse_int = int
    parse_constant = _reject_constant


try:
    from _json import encode_basestring as _quote
    from _json import make_scanner

    _scan: "Callable[[str, int], tuple[Value, int]] | None"
    _scan = make_scanner(_Context)  # type: ignore[arg-type]  # any object with these attributes
except ImportError:  # an interpreter without the C half
    from json.encoder import encode_basestring as _quote

    _scan = None


def decode(text: bytes) -> "Value":
    """The value in the text. DecodingFailure with line and column.

    Bytes that are not UTF-8, and halves of surrogate pairs, become U+FFFD.
    """
    characters = text.decode("utf-8", "replace")
    start = len(characters) - len(characters.lstrip(BLANK))
    value: Value
    try:
        value, end = (_scan or _scan_slowly)(characters, start)
    except StopIteration as stop:
        raise _failure(characters, stop.value) from None
    except RecursionError:
        raise DecodingFailure("the JSON is nested too deeply") from None
    except (ValueError, SystemError):
        # SystemError: CPython 3.11's scanner while json.decoder, where its exception lives, is not loaded
        value, end = _scan_slowly(characters, start)
    end += len(characters) - end - len(characters[end:].lstrip(BLANK))
    if end < len(characters):
        raise _failure(characters, end, "the JSON value has ended; {} is too much")
    if text.count(b"[") + text.count(b"{") > DEPTH_MAX:
        _check_depth(value)
    return _without_surrogates(value) if b"\\ud" in text.lower() else value


def _check_depth(value: "Value") -> None:
    """DecodingFailure for a value that is nested too deeply for recursive functions, such as encode()."""
    level: list[Value] = [value]
    for _ in range(DEPTH_MAX):
        level = [part for whole in level for part in _parts(whole) if isinstance(part, list | Object)]
        if not level:
            return
    raise DecodingFailure(f"invalid JSON: nested more than {DEPTH_MAX} deep")


def _parts(whole: "Value") -> "Sequence[Value]":
    if isinstance(whole, Object):
        return [part for _, part in whole.pairs]
    return whole if isinstance(whole, list) else ()


def _scan_slowly(characters: str, start: int) -> "tuple[Value, int]":
    """The scanner of the package json: its errors tell what is wrong, and where."""
    from json.decoder import JSONDecodeError, JSONDecoder

    try:
        decoder = JSONDecoder(object_pairs_hook=Object, parse_int=_whole_number, parse_constant=_reject_constant)
        return decoder.raw_decode(characters, start)
    except JSONDecodeError as error:
        raise _failure(characters, error.pos, error.msg) from None
    except ValueError as error:  # a constant
        raise DecodingFailure(f"the JSON cannot be read: {error}") from None


def _whole_number(text: str) -> int:
    """The number. int() refuses more than 4300 digits: of those, the first ones, which are enough to exceed 64 bits."""
    return int(text[:DIGITS_MAX])


REASONS = (  # the start of each error of the package json, and our words for it; {} is the character found
    ("Expecting value", "a value is expected, not {}"),
    ("Expecting property name", "a key in double quotes is expected, not {}"),
    ("Expecting ':'", 'a ":" is expected after the key, not {}'),
    ("Expecting ','", 'a "," or the closing bracket is expected, not {}'),
    ("Illegal trailing comma", 'there is a "," too many: nothing follows it before the closing bracket'),
    ("Unterminated string", "the text that begins here has no closing quote"),
    (
        "Invalid control character",
        "a line break or another control character is inside a text: is a closing quote missing?",
    ),
    ("Invalid \\", 'there is no such escape after the "\\" (\\\\ is the backslash itself)'),
)


def _failure(characters: str, position: int, reason: str = REASONS[0][1]) -> DecodingFailure:
    """The error at a position, with its line and column (from 1)."""
    if not characters.strip(BLANK):
        return DecodingFailure("there is no JSON: it is empty")
    if characters.startswith("\ufeff"):
        return DecodingFailure(
            "line 1, column 1: a byte order mark (U+FEFF) comes before the JSON: save it as plain UTF-8"
        )
    if "\0" in characters[:4] or characters.startswith("\ufffd\ufffd"):  # U+FEFF of UTF-16 is no UTF-8
        return DecodingFailure("line 1, column 1: this is not UTF-8 but perhaps UTF-16: save it as plain UTF-8")
    reason = next((words for start, words in REASONS if reason.startswith(start)), reason)
    before = characters[:position].rstrip(BLANK)
    if characters[position : position + 1] in ("]", "}") and before.endswith(","):
        position, reason = len(before) - 1, REASONS[4][1]
    elif characters[position : position + 2] in ("//", "/*") or characters[position : position + 1] == "#":
        reason = "JSON has no comments"
    elif not characters[position:].strip(BLANK):
        reason = "the JSON ends too early: a closing bracket is missing"
    line = characters.count("\n", 0, position) + 1
    column = position - characters.rfind("\n", 0, position)
    found = characters[position : position + 1]
    return DecodingFailure(f"line {line}, column {column}: {reason.replace('{}', _shown(found))}")


def _shown(character: str) -> str:
    if character == '"':
        return "a text"
    return f'"{character}"' if character.isprintable() else f"U+{ord(character):04X}"


def _without_surrogates(value: "Value") -> "Value":
    if isinstance(value, str):
        return scalar_text(value)
    if isinstance(value, list):
        return [_without_surrogates(element) for element in value]
    if isinstance(value, Object):
        return Object([(scalar_text(key), _without_surrogates(element)) for key, element in value.pairs])
    return value


def scalar_text(text: str) -> str:
    """`text` with U+FFFD for each surrogate, which UTF-8 cannot encode; os.environ has them for bytes that are not UTF-8."""
    return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)


def encode(value: "Encodable", indent: int | None = 4) -> str:
    """The text, without a final newline; on one line when `indent` is None."""
    if indent is None:
        return _encode(value, "", "", "")
    return _encode(value, "\n", " " * indent, " ")


def _encode(value: "Encodable", line: str, step: str, space: str) -> str:
    """`line`: line break and indentation of this level. `step`: indentation that a level adds. `space`: follows a colon."""
    if isinstance(value, str):
        return _encode_text(value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return _encode_number(value)
    deeper = line + step
    if hasattr(value, "items"):
        parts = [f"{_encode_text(key)}:{space}{_encode(part, deeper, step, space)}" for key, part in value.items()]
        opening, closing = "{", "}"
    else:
        parts = [_encode(part, deeper, step, space) for part in value]
        opening, closing = "[", "]"
    if not parts:
        return opening + closing
    return f"{opening}{deeper}{f',{deeper}'.join(parts)}{line}{closing}"


def _encode_text(text: str) -> str:
    quoted = _quote(text)
    if text.isascii() and not ("<" in text or ">" in text or "&" in text):
        return quoted
    # Go's HTML-safe form; U+2028 and U+2029 because JavaScript once took them for line ends
    for character, escape in (("<", "3c"), (">", "3e"), ("&", "26"), ("\u2028", "2028"), ("\u2029", "2029")):
        quoted = quoted.replace(character, f"\\u{escape:>04}")
    return scalar_text(quoted)


def _encode_number(value: float) -> str:
    if not float("-inf") < value < float("inf"):
        raise ValueError(f"JSON has no number {value}")
    return repr(value).removesuffix(".0")
