"""JSON text, with Python's json as the oracle and Go's encoding/json where the two differ."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py.errors import DecodingFailure
from cni_py.protocol import gojson
from cni_py.protocol.gojson import Object, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Value

VALUES: "st.SearchStrategy[Value]" = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.lists(st.tuples(st.text(), inner), unique_by=lambda pair: pair[0]).map(Object),
    max_leaves=20,
)


@given(VALUES, st.sampled_from([None, 0, 2, 4]))
def test_what_is_encoded_reads_back(value: "Value", indent: int | None) -> None:
    text = encode(value, indent)
    assert json.loads(text) == value
    assert decode(text.encode()) == value


@given(VALUES)
def test_the_layout_is_that_of_json_dumps(value: "Value") -> None:
    plain = json.dumps(value, ensure_ascii=False, indent=4)
    for character in "<>&\u2028\u2029":
        plain = plain.replace(character, f"\\u{ord(character):04x}")
    assert json.loads(encode(value)) == json.loads(plain)
    if "e" not in plain and ".0" not in plain:  # Go and Python write floats differently
        assert encode(value) == plain


@given(st.text(alphabet='{}[]",:0123456789.eE+- \\nulltrefas\n\t', max_size=30))
def test_what_json_refuses_is_refused_and_the_rest_is_the_same(text: str) -> None:
    try:
        theirs = json.loads(text)
    except ValueError:
        with pytest.raises(DecodingFailure):
            decode(text.encode())
    else:
        assert decode(text.encode()) == theirs


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_a_decoding_failure(text: bytes) -> None:
    try:
        value = decode(text)
    except DecodingFailure:
        return
    encode(value).encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "there is no JSON: it is empty"),
        (b" \n", "there is no JSON: it is empty"),
        (b"{", "line 1, column 2: the JSON ends too early"),
        (b'{"name":', "line 1, column 9: the JSON ends too early"),
        (b'["a",', "line 1, column 6: the JSON ends too early"),
        (b'{"a": 1,\n "b": {\n', "line 3, column 1: the JSON ends too early"),
        (b"hello", 'line 1, column 1: a value is expected, not "h"'),
        (b'{"a":1} x', 'line 1, column 9: the JSON value has ended; "x" is too much'),
        (b"{}{}", "line 1, column 3"),
        (b"{'a':1}", """line 1, column 2: a key in double quotes is expected, not "'\""""),
        (b'{"a":1,}', 'line 1, column 7: there is a "," too many'),
        (b'{\n "a": [1,\n  2 , ]\n}', 'line 3, column 5: there is a "," too many'),
        (b'{"a" 1}', 'line 1, column 6: a ":" is expected after the key, not "1"'),
        (b'{"a": 1\n "b": 2}', 'line 2, column 2: a "," or the closing bracket is expected, not a text'),
        ('{"a": 1}'.encode("utf-16"), "line 1, column 1: this is not UTF-8 but perhaps UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "line 1, column 1: this is not UTF-8 but perhaps UTF-16"),
        (b'{"a": True}', 'line 1, column 7: a value is expected, not "T"'),
        (b'{"a":1, /* c */ "b":2}', "line 1, column 9: JSON has no comments"),
        (b"{\n// c\n}", "line 2, column 1: JSON has no comments"),
        (b"\xef\xbb\xbf{}", "line 1, column 1: a byte order mark (U+FEFF) comes before the JSON"),
        (b'"a\nb"', "line 1, column 3: a line break or another control character"),
        (b'{"a": "b}', "line 1, column 7: the text that begins here has no closing quote"),
        (b'"a\\xb"', "no such escape"),
        (b"[01]", "line 1, column 3"),
        (b"NaN", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[" * 20000, "nested too deeply"),
    ],
)
def test_failures_have_code_6_and_say_where(text: bytes, message: str) -> None:
    with pytest.raises(DecodingFailure) as caught:
        decode(text)
    assert caught.value.code == 6
    assert message.lower() in str(caught.value).lower()


@pytest.mark.parametrize("text", ["{", "[1,", '{"a" 1}', "'", '"\\q"', "nul", "[NaN]", "[1] 2"])
def test_failures_are_the_same_in_a_process_that_never_loaded_json(text: str) -> None:
    """CPython 3.11's scanner answers SystemError there."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from cni_py import errors\nfrom cni_py.protocol import gojson\n"
        "try: gojson.decode(sys.argv[2].encode())\n"
        "except errors.DecodingFailure as error: print(error, end='')"
    )
    root = gojson.__file__.rpartition("/cni_py/")[0]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, root, text], capture_output=True, check=True, text=True
    )
    with pytest.raises(DecodingFailure) as caught:
        decode(text.encode())
    assert done.stdout == str(caught.value)


def test_an_interpreter_without_the_c_half_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'{"a": [1, 2.5, "x", null, true, {"b": {}}], "a": 2}'
    fast = decode(text)
    monkeypatch.setattr(gojson, "_scan", None)
    slow = decode(text)
    assert isinstance(fast, Object)
    assert isinstance(slow, Object)
    assert (slow, slow.pairs) == (fast, fast.pairs)


@pytest.mark.parametrize("sign", ["", "-"])
def test_a_number_with_more_digits_than_python_takes_is_beyond_64_bits(sign: str) -> None:
    value = decode(f"[{sign}{'8' * 5000}]".encode())
    assert isinstance(value, list)
    assert isinstance(value[0], int)
    assert abs(value[0]) > 1 << 64


def test_an_object_keeps_equal_keys_in_their_order() -> None:
    value = decode(b'{"a": 1, "b": 2, "a": 3, "A": 4}')
    assert isinstance(value, Object)
    assert value == {"a": 3, "b": 2, "A": 4}
    assert list(value.pairs) == [("a", 1), ("b", 2), ("a", 3), ("A", 4)]
    assert list(Object([("x", 1)]).pairs) == [("x", 1)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'"\\ud800x"', "\ufffdx"),
        (b'"\\uDC00"', "\ufffd"),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'{"\\ud800": ["\\ud800"]}', {"\ufffd": ["\ufffd"]}),
        (b'"\xff"', "\ufffd"),
        (b'"\xc3\xa9"', "é"),
    ],
)
def test_what_utf_8_cannot_carry_becomes_the_replacement_character(text: bytes, value: "Value") -> None:
    assert decode(text) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("<a&b>", '"\\u003ca\\u0026b\\u003e"'),
        ("\u2028\u2029", '"\\u2028\\u2029"'),
        ("é\x7f", '"é\x7f"'),
        ('"\\/\b\f\n\r\t\x01', '"\\"\\\\/\\b\\f\\n\\r\\t\\u0001"'),
        ("\udc80", '"\ufffd"'),
        (1.0, "1"),
        (-2.5, "-2.5"),
        (Object(), "{}"),
        ([], "[]"),
        (
            {"<": [1, {"b": None}]},
            '{\n    "\\u003c": [\n        1,\n        {\n            "b": null\n        }\n    ]\n}',
        ),
    ],
)
def test_the_form_is_that_of_go(value: "gojson.Encodable", text: str) -> None:
    assert encode(value) == text


def test_compact_form_is_one_line_without_blanks() -> None:
    assert encode({"a": [1, True], "b": {"c": "x y"}}, indent=None) == '{"a":[1,true],"b":{"c":"x y"}}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_json_has_no_such_number(value: float) -> None:
    with pytest.raises(ValueError, match="JSON has no number"):
        encode([value])
