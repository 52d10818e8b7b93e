"""`ports` of portmap's configuration and a pod's annotation: what they say, and how much of a stranger's text is read."""

from __future__ import annotations

import json
import random
import time

import pytest

from cni_py.errors import CniError
from cni_py.ports.options import ANNOTATION_MAX, NETWORKS_MAX, PORTS_MAX, port_options
from cni_py.protocol.gojson import Object, decode

LINEAR_S = 5.0  # the quadratic way took 60 s for as much


def of(ports: dict[str, object]) -> object:
    return decode(json.dumps(ports).encode())


def refusal(ports: object, annotation: object) -> CniError:
    with pytest.raises(CniError) as refused:
        port_options(ports, annotation)
    assert refused.value.code == 7
    assert len(str(refused.value)) < 1000
    return refused.value


def networks(number: int) -> list[str]:
    return [f"10.{index >> 8}.{index & 255}.0/24" for index in range(number)]


def test_networks_come_in_one_order_and_none_inside_another() -> None:
    texts = [
        "2001:db8::/32",
        "192.0.2.7",
        "192.0.2.0/24",
        "192.0.0.0/16",
        "10.0.0.1",
        "2001:db8:1::/48",
        "192.0.2.0/25",
    ]
    for _ in range(20):
        random.shuffle(texts)
        options = port_options(of({"80/tcp": {"allow": texts}}), None)["tcp", 80]
        assert list(map(str, options.allow or ())) == ["192.0.0.0/16", "10.0.0.1/32", "2001:db8::/32"]


def test_a_pod_adds_what_is_left_open() -> None:
    found = port_options(
        of({"80/tcp": {"share": False}}), json.dumps({"80/tcp": {"share": True, "allow": ["10.0.0.1"]}})
    )
    assert not found["tcp", 80].share
    assert list(map(str, found["tcp", 80].allow or ())) == ["10.0.0.1/32"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no JSON", "annotation cni-py/ports"),
        ("", "annotation cni-py/ports"),
        ("[]", "JSON object"),
        (7, "JSON object"),
        (Object(), "JSON object"),
        ("[" * 200_000, "nested too deeply"),
        ('{"80/tcp": ' + "[" * 900 + "]" * 900 + "}", "nested more than"),
        ('{"80/tcp": {"allow": [' + "[" * 900 + "]" * 900 + "]}}", "nested more than"),
        ('{"80/tcp": {"allow": [' + "9" * 4000 + "]}}", "is no network"),
        (json.dumps({"80/tcp": {"allow": ["y" * 100_000]}}), "is no network"),
        (json.dumps({"80/tcp": {"z" * 100_000: 1}}), "unknown key"),
        (json.dumps({"q" * 100_000: {}}), "names no port"),
        ('{"80/tcp": {}, "80/TCP": {}}', "twice"),
        ("{" + ",".join(['"80/tcp": {}'] * 10_000) + "}", f"at most {PORTS_MAX}"),
        (json.dumps({f"{port}/tcp": {} for port in range(1, PORTS_MAX + 2)}), f"at most {PORTS_MAX}"),
        (json.dumps({"80/tcp": {"allow": networks(NETWORKS_MAX + 1)}}), f"at most {NETWORKS_MAX}"),
        (" " * (ANNOTATION_MAX + 1), f"at most {ANNOTATION_MAX}"),
        ('{"80/tcp": {"share": true}}' + "\0", "annotation cni-py/ports"),
        ("\ud800", "annotation cni-py/ports"),
    ],
)
def test_a_strangers_text_is_an_error_that_names_the_place(text: object, says: str) -> None:
    assert says in str(refusal(None, text))


def test_the_configuration_has_the_same_bound_of_networks() -> None:
    assert f"at most {NETWORKS_MAX}" in str(refusal(of({"80/tcp": {"allow": networks(10_000)}}), None))
    assert (
        len(port_options(of({"80/tcp": {"allow": networks(NETWORKS_MAX)}}), None)["tcp", 80].allow or ())
        == NETWORKS_MAX
    )


def test_the_longest_text_costs_no_more_than_its_length() -> None:
    ports = {f"{port}/tcp": {"allow": networks(NETWORKS_MAX)} for port in range(1, 16)}
    text = json.dumps(ports)
    assert len(text) > ANNOTATION_MAX * 0.9
    before = time.process_time()
    assert len(port_options(None, text)) == 15
    assert time.process_time() - before < LINEAR_S
