"""Messages of nftables' trace and of conntrack, built byte by byte: as values, as journeys, as text."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import struct
from pathlib import Path

import pytest

from cni_py.explain import journeys, marking, trace_text
from cni_py.explain.journeys import Journey, Met, Passage, Trace
from cni_py.explain.marking import Wanted
from cni_py.explain.trace_text import Report
from cni_py.explain.tracing import Ends, Event, Flow, Headers, decode
from cni_py.kernel.netlink import attr, nested
from tests.unit.explain.models import explained, host

OWN = "cni_py_trace_1"
CLIENT, HOST, WEB = "198.51.100.7", "198.51.100.1", "192.0.2.2"
DOCUMENT = (Path(__file__).parents[3] / "docs/explain.md").read_text()


def message(kind: int, flags: int, family: int, *attributes: bytes) -> bytes:
    body = bytes((family, 0, 0, 0)) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def packet(ends: Ends, flags: int = 2, sequence: int = 100) -> bytes:
    """The attributes NETWORK_HEADER and TRANSPORT_HEADER of a TCP packet."""
    source, destination = (ipaddress.ip_address(one).packed for one in (ends.source, ends.destination))
    network = bytes((0x45,)) + bytes(8) + b"\x06" + bytes(2) + source + destination
    if len(source) == 16:
        network = bytes((0x60, 0, 0, 0, 0, 20, 6, 64)) + source + destination
    transport = struct.pack("!HHIIBB", ends.source_port, ends.destination_port, sequence, 0, 0x50, flags) + bytes(6)
    return attr(8, network) + attr(9, transport)


def number(kind: int, value: int, size: int = 4) -> bytes:
    return attr(kind, value.to_bytes(size, "big", signed=value < 0))


def told(
    table: str, chain: str, verdict: int = -1, *, number_of: int = 7, handle: int = 0, target: str = "", kind: int = 3,
    head: bytes = b"", family: int = 2,
) -> bytes:  # fmt: skip
    """A message NFT_MSG_TRACE."""
    inner = [number(1, verdict), *([attr(2, target.encode() + b"\0")] if target else [])]
    said = number(16, 1) if kind == 1 else nested(5, *inner)
    place = attr(1, table.encode() + b"\0") + attr(2, chain.encode() + b"\0")
    rule = number(3, handle, 8) if handle else b""
    return message(
        10 << 8 | 17, 0, family, number(6, number_of), number(4, kind), place, rule, said, number(10, 2), head
    )


def tracked(kind: int, flags: int, original: Ends, reply: Ends, status: int) -> bytes:
    def direction(which: int, ends: Ends) -> bytes:
        ips = [attr(n, ipaddress.ip_address(one).packed) for n, one in ((1, ends.source), (2, ends.destination))]
        ports = [attr(1, b"\x06"), number(2, ends.source_port, 2), number(3, ends.destination_port, 2)]
        return nested(which, nested(1, *ips), nested(2, *ports))

    tcp = nested(4, nested(1, attr(1, b"\x01")))
    return message(1 << 8 | kind, flags, 2, direction(1, original), direction(2, reply), number(3, status), tcp)


ASKED = Ends(CLIENT, 40000, HOST, 8080)
INNER = Ends(CLIENT, 40000, WEB, 80)
ANSWER = Ends(WEB, 80, CLIENT, 40000)
MARKED = told(OWN, "asked_prerouting", handle=3, head=packet(ASKED), family=1)
WAY = (
    told("t", "prerouting", -3, handle=12, target="deeper", head=packet(ASKED))
    + told("t", "deeper", handle=1)
    + told("t", "deeper")
    + told("t", "prerouting", kind=1)
)


def read(*data: bytes) -> Trace:
    events = [one for each in data for one in decode(each)]
    return journeys.read(events, host().root, OWN, Wanted("tcp", 8080))


def test_a_rule_that_jumps() -> None:
    (found,) = decode(WAY[: len(told("t", "prerouting", -3, handle=12, target="deeper", head=packet(ASKED)))])
    assert found == Event(
        7, "ip", "t", "prerouting", "rule", "jump", "deeper", 12, 2, 0, 0, Headers("tcp", ASKED, ("syn",), (100, 0))
    )


def test_ipv6() -> None:
    ends = Ends("2001:db8::7", 1, "2001:db8::1", 8080)
    (found,) = decode(told("t", "c", 0, kind=3, handle=1, head=packet(ends, 0x12), family=10))
    assert isinstance(found, Event)
    assert (found.family, found.verdict) == ("ip6", "drop")
    assert found.headers == Headers("tcp", ends, ("syn", "ack"), (100, 0))


def test_a_tracked_connection() -> None:
    new = tracked(0, 0x600, ASKED, ANSWER, 0x2A)
    update, destroy = tracked(0, 0, ASKED, ANSWER, 0), tracked(2, 0, ASKED, ANSWER, 0)
    found = decode(new + update + destroy)
    assert [one.event for one in found if isinstance(one, Flow)] == ["new", "update", "destroy"]
    assert found[0] == Flow("new", "tcp", ASKED, ANSWER, ("answered", "dnat"), "syn_sent")


@pytest.mark.parametrize(
    "data",
    [
        message(10 << 8 | 17, 0, 2),  # no attribute
        message(10 << 8 | 17, 0, 2, number(6, 1), number(4, 9)),  # an unknown kind
        message(10 << 8 | 17, 0, 2, number(6, 1), number(4, 3), nested(5, attr(1, b"\0"))),  # a short number
        message(1 << 8, 0x600, 2, nested(1, nested(2, attr(1, b"\x01")))),  # ICMP
        message(1 << 8, 0x600, 2),
        message(10 << 8 | 15, 0, 2, number(1, 1)),  # something else of nftables
    ],
)
def test_what_cannot_be_read_is_left_out(data: bytes) -> None:
    assert decode(data + MARKED)[-1:] == decode(MARKED)
    assert len(decode(data + MARKED)) == 1


def test_a_journey_has_rules_by_their_handles() -> None:
    (journey,) = read(MARKED, WAY, told("u", "forward", 0, handle=4, head=packet(INNER))).journeys
    assert journey.asks
    assert journey.headers.ends == ASKED
    first, last = journey.passages
    assert [(one.chain, one.handle, one.verdict, one.depth) for one in first.met] == [
        ("prerouting", 12, "jump deeper", 0),
        ("deeper", 1, "continue", 1),
        ("deeper", 0, "end", 1),
        ("prerouting", 0, "policy accept", 0),
    ]
    assert first.met[0].text.endswith("dnat to 192.0.2.2:80")
    assert (first.hook, first.iif) == ("prerouting", "lan0")
    assert journey.dropped is last
    assert last.met[0].text == ""  # a table that was made meanwhile


def test_a_packet_that_is_sent_again_is_counted() -> None:
    again = told(OWN, "asked_prerouting", handle=3, head=packet(ASKED), family=1, number_of=8)
    (journey,) = read(MARKED, WAY, again, told("t", "prerouting", kind=1, number_of=8, head=packet(ASKED))).journeys
    assert journey.repeated == 1
    assert len(journey.passages) == 1


def test_a_number_that_is_used_again_is_another_packet() -> None:
    answer = told(OWN, "answered_prerouting", handle=5, head=packet(ANSWER, 0x12, 9), family=1)
    trace = read(MARKED, WAY, answer)
    assert [one.asks for one in trace.journeys] == [True, False]
    assert journeys.outcome(trace) == "answered"
    assert journeys.outcome(read(MARKED, WAY)) == "silent"
    assert journeys.outcome(read(WAY[:0])) == ""


def test_our_own_chains_are_not_told() -> None:
    policy = told(OWN, "answered_prerouting", kind=1, head=packet(ASKED), family=1)
    (journey,) = read(MARKED, policy, WAY).journeys
    assert journey.repeated == 0
    assert [one.table for one in journey.passages] == ["ip t"]


def test_packets_that_are_marked() -> None:
    text = marking.ruleset(
        OWN, Wanted("tcp", 8080, source_port=40000), owner=True, tracked=True, bridges=True
    ).splitlines()
    assert f"add table inet {OWN} {{ flags owner; }}" in text
    assert f"add table bridge {OWN} {{ flags owner; }}" in text
    assert all("40000" in line and "8080" in line for line in text if line.startswith("add rule"))
    untracked = marking.ruleset(OWN, Wanted("udp", 53, iif=2), owner=False, tracked=False, bridges=True)
    assert "ct " not in untracked
    assert "bridge" not in untracked
    assert "asked_output" not in untracked


def report(result: str = "dropped") -> Report:
    way = Passage("forward", "ip \x1b[31mevil", "f\n", "lan0", "cni0", Headers("tcp", INNER))
    way.met.append(Met("f\n", 4, "tcp dport 80 \x1b]0;x\x07drop", "drop", "", 0))
    journey = Journey(Headers("tcp", ASKED, ("syn",), (1, 0)), True, [way], repeated=2)
    flow = Flow("new", "tcp", ASKED, ANSWER, ("dnat",), "syn_sent")
    return Report("one packet", Trace((journey,), (flow,), lost=True), result, "by f", False, "no", ("\x1b[2J",))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_text_fits_and_obeys_nobody(width: int) -> None:
    text = trace_text.render(report(), detail=1, width=width, colour=False)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert f"now {CLIENT}:40000 > {WEB}:80" in words
    assert "sent 3 times" in words
    assert "parts are missing" in words
    assert text.splitlines()[-1] == "no"


def test_the_document_lists_the_keys() -> None:
    found = json.loads(json.dumps(trace_text.as_json(report())))
    section = DOCUMENT.partition("## A real packet")[2].partition("\n## ")[0]
    keys = set(found)
    for kind in (Journey, Passage, Met, Headers, Ends, Flow):
        keys |= {field.name for field in dataclasses.fields(kind)}
    assert {key for key in keys if f"`{key}`" not in section} == set()


@pytest.mark.parametrize(
    ("result", "agrees"), [("answered", True), ("refused", False), ("dropped", False), ("silent", False)]
)
def test_what_happened_is_compared(result: str, agrees: bool) -> None:
    (way,) = explained(host(), "8080", "lan").ways
    assert way.verdict == "answers"
    assert journeys.compared(way, Trace((), ()), result)[0] is agrees
