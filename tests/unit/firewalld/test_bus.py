"""D-Bus: what goes out, what comes in, and what may answer that is no bus. A real one is in tests/packets/test_firewalld.py."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni_py.errors import CniError, TryAgainLater
from cni_py.firewalld import bus, zones
from cni_py.firewalld.bus import Bus, BusError, NoBus, Question, Refused
from tests.unit.firewalld.fake_bus import GREETING, HELLO, LIMIT_S, FakeBus, field, message, text

ASKED = Question(("org.example", "/org/example", "org.example.It"), "say", ("é", "two"), "s")
PATIENCE_S = 0.2

Serve = Callable[[bytes], str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A program that answers whoever connects with these bytes, and waits; the address of its socket."""
    fake = FakeBus(tmp_path)
    yield fake.answer
    fake.close()


def test_a_question_is_what_the_specification_says() -> None:
    data = ASKED.encode(9)
    body, serial, fields = 16, 9, 96
    assert data[:16] == struct.pack("<cBBBIII", b"l", 1, 2, 1, body, serial, fields)
    assert data[16 + 96 :] == b"\2\0\0\0\xc3\xa9\0\0" + b"\3\0\0\0two\0"
    read = bus.decode(data)
    named = {1: "/org/example", 2: "org.example.It", 3: "say", 6: "org.example", 8: "ss"}
    assert (read.kind, read.fields, read.texts(2)) == (1, named, ["é", "two"])


@pytest.mark.parametrize("words", ["\0", "\ud800", "x" * 5000])
def test_what_is_no_text_is_not_sent(words: str) -> None:
    with pytest.raises(ValueError, match=r"text for D-Bus|surrogates"):
        Question(ASKED.object, "say", (words,), "s").encode(1)


@pytest.mark.parametrize("order", ["<", ">"])
def test_answers_come_in_any_order_of_bytes_and_between_signals(serve: Serve, order: str) -> None:
    signal = message(4, 2, "s", text(b"no answer, though it has its number"))
    error = message(
        3, 3, "s", text(b"ZONE_CONFLICT: \x1b[2Jit", order), field(4, "s", text(b"org.example.E", order)), order=order
    )
    pair = text(b"a", order) + b"\0\0" + text(b"bc", order)
    listed = message(2, 4, "as", struct.pack(f"{order}I", len(pair)) + pair, order=order)
    answer = message(2, 2, "b", struct.pack(f"{order}I", 1), order=order)
    questions = [Question(ASKED.object, "say", (), kind) for kind in ("b", "s", "as")]
    with Bus(serve(GREETING + HELLO + signal + listed + error + answer), LIMIT_S) as there:
        found = there.ask(*questions)
    assert found[0] == 1
    assert isinstance(found[1], Refused)
    assert (str(found[1]), zones.reason_of(found[1])) == ("org.example.E: ZONE_CONFLICT: ?[2Jit", "ZONE_CONFLICT")
    assert found[2] == ["a", "bc"]


HOSTILE: dict[str, bytes] = {
    "nothing": b"END",
    "not admitted": b"REJECTED EXTERNAL\r\n",
    "no greeting": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "no end of the line": b"x" * 4096,
    "half a greeting": b"DATA\r\nEND",
    "no message": GREETING + b"x" * 64,
    "too long": GREETING + b"l\2\0\1" + struct.pack("<III", 0xFFFFFFF0, 1, 0),
    "fields too long": GREETING + b"l\2\0\1" + struct.pack("<III", 0, 1, 0xFFFFFFF0),
    "fields beyond the end": GREETING + b"l\2\0\1" + struct.pack("<III", 0, 1, 8) + b"\5\1u\0\1\0\0\0",
    "an unknown type": GREETING + message(2, 1, "s", text(b":1.7"), field(9, "v", b"\0" * 8)),
    "another type": GREETING + message(2, 1, "u", b"\0\0\0\0"),
    "text beyond the end": GREETING + message(2, 1, "s", struct.pack("<I", 99) + b"x"),
    "list beyond its end": GREETING + HELLO + message(2, 2, "as", struct.pack("<I", 3) + text(b"a")),
    "no introduction": GREETING + message(3, 1, "s", text(b"no"), field(4, "s", text(b"org.example.E"))),
    "error without a text": GREETING + HELLO + message(3, 2, "s", b"", field(4, "s", text(b"org.example.E"))),
    "it goes": GREETING + HELLO + b"END",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_bus_is_one_plain_error_at_once(serve: Serve, what: str) -> None:
    question = Question(ASKED.object, "say", (), "as" if "list" in what else "s")
    with Bus(serve(HOSTILE[what]), LIMIT_S) as there, pytest.raises(BusError) as error:
        there.ask(question)
    assert "unix:path=" in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("data", [b"", GREETING, GREETING + HELLO, GREETING + HELLO + b"l\2\0\1"], ids=range(4))
def test_a_bus_that_is_silent_has_its_time(serve: Serve, data: bytes) -> None:
    with Bus(serve(data), PATIENCE_S) as there, pytest.raises(TryAgainLater, match=r"within 0\.2 s"):
        there.ask(ASKED)


def test_a_bus_that_never_ends_has_its_time(serve: Serve) -> None:
    """Signals alone, more than can be read meanwhile."""
    flood = message(4, 0, "s", text(b"x" * 4000)) * 5000
    begin = time.monotonic()
    with Bus(serve(GREETING + HELLO + flood), PATIENCE_S) as there, pytest.raises(CniError):
        there.ask(ASKED)
    assert time.monotonic() - begin < LIMIT_S


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("unix:path=/run/dbus/bus", ["/run/dbus/bus"]),
        ("unix:guid=12,path=/run/a%20b%2fc", ["/run/a b/c"]),
        ("tcp:host=h,port=1;unix:abstract=/tmp/x;unix:path=/y", ["\0/tmp/x", "/y"]),
    ],
)
def test_addresses(address: str, found: list[str]) -> None:
    assert bus.places(address) == found


@pytest.mark.parametrize(
    "address", ["", "unix:", "unix:path=", "tcp:host=localhost,port=1", "unix:path=%zz", "nonsense"]
)
def test_what_is_no_address_says_so(address: str) -> None:
    with pytest.raises(BusError, match="no address of a bus"):
        Bus(address, PATIENCE_S)


@pytest.mark.parametrize(("place", "kind"), [("{}/none", NoBus), ("{}/file", NoBus), ("{}/" + "x" * 200, BusError)])
def test_a_bus_that_is_not_there(tmp_path: Path, place: str, kind: type[BusError]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BusError) as error:
        Bus("unix:path=" + place.format(tmp_path), PATIENCE_S)
    assert type(error.value) is kind


@pytest.mark.parametrize(
    ("zone", "can_be"), [("trusted", True), ("my_zone-1", True), ("", False), ("a b", False), ("é", False)]
)
def test_names_of_zones(zone: str, can_be: bool) -> None:
    assert zones.is_zone(zone) is can_be
