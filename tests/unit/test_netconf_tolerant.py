"""netconf: keys given many times, and what a DEL passes over."""

from __future__ import annotations

import time

import pytest

from cni_py.errors import CniError, DecodingFailure
from cni_py.protocol import netconf
from cni_py.protocol.gojson import DEPTH_MAX, Object, decode
from cni_py.protocol.netconf import Tolerant, Undecodable

MANY = 20_000
LIMIT_S = 5.0  # quadratic: minutes


def parsed(text: str) -> Object:
    value = decode(text.encode())
    assert isinstance(value, Object)
    return value


@pytest.mark.parametrize("value", ['{"a":1}', '[{"a":1}]', '[[{"a":[1]}]]', "1", "null"])
def test_a_key_given_many_times_costs_its_size(value: str) -> None:
    obj = parsed("{" + ",".join([f'"k":{value}'] * MANY) + "}")
    begun = time.monotonic()
    netconf.lookup(obj, "K")
    assert time.monotonic() - begun < LIMIT_S


@pytest.mark.parametrize(
    ("text", "merged"),
    [
        ('{"k":{"a":1},"k":{"b":2},"K":{"a":3}}', {"a": 3, "b": 2}),
        ('{"k":[{"a":1},{"b":1}],"k":[{"c":2}]}', [{"a": 1, "c": 2}]),
        ('{"k":[{"a":1},{"b":1}],"k":[{"c":2}],"k":[{},{"d":1}]}', [{"a": 1, "c": 2}, {"d": 1}]),
        ('{"k":[{"a":1}],"k":[null]}', [{"a": 1}]),
        ('{"k":{"a":1},"k":5,"k":{"b":1}}', {"b": 1}),
        ('{"k":{"a":1},"k":null}', {"a": 1}),
    ],
)
def test_what_is_read_into_one_place_merges(text: str, merged: object) -> None:
    assert netconf.lookup(parsed(text), "k") == merged


def test_a_del_passes_over_what_it_cannot_read_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    obj = parsed('{"s":5,"b":"x","i":true,"o":[],"l":{},"t":["a",5],"e":[{},5]}')
    with Tolerant():
        for _ in range(2):
            assert (netconf.string(obj, "s", "d"), netconf.boolean(obj, "b"), netconf.integer(obj, "i", 7)) == (
                "d",
                False,
                7,
            )
        assert (netconf.child(obj, "o"), netconf.values(obj, "l")) == (None, None)
        assert (netconf.strings(obj, "t"), netconf.objects(obj, "e")) == (["a"], [{}])
    assert capsys.readouterr().err.count("field s ") <= 1
    with pytest.raises(Undecodable):
        netconf.string(obj, "s")


def test_json_is_as_deep_as_functions_that_call_themselves_can_go() -> None:
    decode(b"[" * DEPTH_MAX + b"]" * DEPTH_MAX)
    for depth in (DEPTH_MAX + 1, 900, 100_000):
        with pytest.raises(DecodingFailure, match="nested"):
            decode(b"[" * depth + b"]" * depth)
    assert issubclass(DecodingFailure, CniError)
