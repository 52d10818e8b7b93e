"""The encoding of Go's package encoding/gob, against what Go 1.26 wrote of libcni's and net/rpc's own types."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies

from cni_py.addr import Address, parse_ip
from cni_py.errors import CniError
from cni_py.ipam import dhcp, gob
from cni_py.ipam.gob import Decoder, Encoder, GobError, Slice, Struct
from cni_py.protocol.result import IPConfig, Result, Route

# Two calls of one connection: DHCP.Allocate with an Args, DHCP.Release of c1
CALLS = bytes.fromhex(
    "2e7f030101075265717565737401ff80000102010d536572766963654d6574686f64010c000103536571010600000012ff80010d444843"
    "502e416c6c6f63617465006cff8103010107436d644172677301ff82000107010b436f6e7461696e65724944010c0001054e65746e7301"
    "0c00010649664e616d65010c00010441726773010c00010450617468010c00010d4e65746e734f76657272696465010c00010953746469"
    "6e44617461010a00000029ff8201026331010d2f72756e2f6e65746e732f63310104657468300103413d6201022f7002027b7d0013ff80"
    "010c444843502e52656c6561736501010007ff820102633100"
)
# A Response, a Result with an address (of 16 bytes), two routes and a resolver; a Response and nothing; one with an Error
ANSWERS = bytes.fromhex(
    "3aff8303010108526573706f6e736501ff84000103010d536572766963654d6574686f64010c00010353657101060001054572726f7201"
    "0c00000012ff84010d444843502e416c6c6f636174650051ff8503010106526573756c7401ff86000105010a434e4956657273696f6e01"
    "0c00010a496e746572666163657301ff8a00010349507301ff90000106526f7574657301ff94000103444e5301ff9600000024ff890201"
    "01155b5d2a74797065733130302e496e7465726661636501ff8a0001ff8800004aff87030102ff8800010601044e616d65010c0001034d"
    "6163010c0001034d7475010400010753616e64626f78010c00010a536f636b657450617468010c0001055063694944010c00000023ff8f"
    "020101145b5d2a74797065733130302e4950436f6e66696701ff900001ff8c000033ff8b030102ff8c0001030109496e74657266616365"
    "01040001074164647265737301ff8e00010747617465776179010a00000023ff8d0301010549504e657401ff8e00010201024950010a00"
    "01044d61736b010a0000001dff930201010e5b5d2a74797065732e526f75746501ff940001ff92000050ff91030102ff92000107010344"
    "737401ff8e0001024757010a0001034d545501040001064164764d535301040001085072696f7269747901040001055461626c65010400"
    "010553636f7065010400000046ff9503010103444e5301ff96000104010b4e616d657365727665727301ff98000106446f6d61696e010c"
    "00010653656172636801ff980001074f7074696f6e7301ff9800000016ff97020101085b5d737472696e6701ff9800010c000071ff8601"
    "05312e302e30020102011000000000000000000000ffffc00002070104ffffff00000104c0000201000102010104000000000104000000"
    "00000104c0000201030e00010104c00002000104ffffff000001040000000005fe01fa000101010a3139322e302e322e35330101780000"
    "13ff84010c444843502e52656c656173650101000aff99030102ff9a00000003ff9a0013ff840108444843502e466f6f010201026e6f00"
    "03ff9a00"
)


def test_what_go_writes_is_read() -> None:
    request, args, second, nobody = Decoder().feed(CALLS)
    assert request == {"ServiceMethod": "DHCP.Allocate"}
    assert args == {
        "ContainerID": "c1", "Netns": "/run/netns/c1", "IfName": "eth0", "Args": "A=b", "Path": "/p", "StdinData": b"{}",
    }  # fmt: skip
    assert second == {"ServiceMethod": "DHCP.Release", "Seq": 1}
    assert nobody == {"ContainerID": "c1"}
    head, found, _, nothing, refusal, _ = Decoder().feed(ANSWERS)
    assert head == {"ServiceMethod": "DHCP.Allocate"}
    assert nothing == {}
    assert refusal["Error"] == "no"
    result = dhcp.to_result(found)
    assert [(str(ip.address), ip.gateway) for ip in result.ips] == [("192.0.2.7/24", parse_ip("192.0.2.1"))]
    routes = [(str(route.dst), route.gw, route.priority, route.scope) for route in result.routes]
    assert routes == [("0.0.0.0/0", parse_ip("192.0.2.1"), 7, None), ("192.0.2.0/24", bytes(4), 0, 253)]
    assert (result.dns.nameservers, result.dns.domain) == (["192.0.2.53"], "x")


def test_it_does_not_matter_in_which_pieces_a_stream_comes() -> None:
    whole = list(Decoder().feed(ANSWERS))
    for size in (1, 7):
        decoder = Decoder()
        pieces = [ANSWERS[at : at + size] for at in range(0, len(ANSWERS), size)]
        assert [value for piece in pieces for value in decoder.feed(piece)] == whole


def test_calls_are_written_as_go_writes_them() -> None:
    """To the byte."""
    encoder = Encoder()
    args: dict[str, gob.Value] = {"Netns": "/run/netns/c1", "IfName": "eth0", "Args": "A=b", "Path": "/p"}
    written = [
        encoder.encode(dhcp.REQUEST, {"ServiceMethod": "DHCP.Allocate", "Seq": 0}),
        encoder.encode(dhcp.ARGS, {"ContainerID": "c1", **args, "StdinData": b"{}"}),
        encoder.encode(dhcp.REQUEST, {"ServiceMethod": "DHCP.Release", "Seq": 1}),
        encoder.encode(dhcp.ARGS, {"ContainerID": "c1"}),
    ]
    assert b"".join(written) == CALLS


def test_a_result_survives_the_way() -> None:
    far = Route(Address(parse_ip("198.51.100.0"), 25), parse_ip("192.0.2.9"), priority=5)
    routes = [far, Route(Address(bytes(4), 0), bytes(4), scope=253)]
    result = Result(ips=[IPConfig(Address(parse_ip("192.0.2.50"), 24), parse_ip("192.0.2.1"))], routes=routes)
    (sent,) = Decoder().feed(Encoder().encode(dhcp.RESULT, dhcp.from_result(result)))
    found = dhcp.to_result(sent)
    assert [(ip.address, ip.gateway) for ip in found.ips] == [(ip.address, ip.gateway) for ip in result.ips]
    assert [(one.dst, one.gw, one.priority, one.scope) for one in found.routes] == [
        (one.dst, one.gw, one.priority, one.scope) for one in routes
    ]


@pytest.mark.parametrize(
    "number", [0, 1, -1, 63, 64, -64, -65, 127, 128, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63)]
)
def test_numbers(number: int) -> None:
    kind = Struct("N", ("A", gob.INT), ("B", Slice(gob.INT)))
    several: list[gob.Value] = [number, 0]
    (found,) = Decoder().feed(Encoder().encode(kind, {"A": number, "B": several}))
    assert (found.get("A", 0), found["B"]) == (number, [number, 0])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("f8ffffffffffffffff", "a message of"),
        ("f7ffffffffffffffffff", "not a length"),
        ("02f680", "a number of 10 bytes"),
        ("03ff8200", "was not described"),
        ("0104", "the type 2, which"),
        ("077f0301010141ff", "bytes, where"),
    ],
)
def test_nonsense_is_refused(text: str, why: str) -> None:
    with pytest.raises(GobError, match=why):
        list(Decoder().feed(bytes.fromhex(text)))


def test_a_type_within_itself_ends_at_a_limit() -> None:
    """struct T {A T}, with the number 66; its value says that A is there, over and over."""
    described = bytes.fromhex("ff83030101015401ff8400010101014101ff84000000")
    stream = gob.message(described) + gob.message(gob.integer(66) + b"\1" * 100 + b"\0" * 101)
    with pytest.raises(GobError, match="within"):
        list(Decoder().feed(stream))


@hypothesis.given(strategies.binary(max_size=300))
@hypothesis.settings(deadline=None, max_examples=300)
def test_anything_is_read_or_refused(data: bytes) -> None:
    read(data)


@hypothesis.given(strategies.integers(0, len(ANSWERS) - 1), strategies.integers(0, 255))
@hypothesis.settings(deadline=None, max_examples=500)
def test_a_damaged_answer_is_read_or_refused(place: int, byte: int) -> None:
    for found in read(ANSWERS[:place] + bytes([byte]) + ANSWERS[place + 1 :]):
        try:
            dhcp.to_result(found)
        except CniError:
            continue


def read(data: bytes) -> list[dict[str, gob.Value]]:
    """The values up to the first damage."""
    found: list[dict[str, gob.Value]] = []
    try:
        found.extend(Decoder().feed(data))
    except GobError:
        pass
    return found
