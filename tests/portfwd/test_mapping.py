"""Mappings as values, and the readers of JSON that requests, files and predecessors go through."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields

import pytest

from portfwd import mapping as mappings
from portfwd import values
from portfwd.errors import Unfit, Usage
from portfwd.mapping import ANY, Place, Target
from tests.portfwd.stage import mapping_of

EVERY_FIELD: dict[str, object] = {
    "id": "web",
    "protocol": "udp",
    "host_ips": ["192.0.2.1", "2001:db8::1"],
    "first": 8000,
    "last": 8010,
    "targets": [{"address": "::1", "port": 80, "path": "/run/netns/web"}, {"address": "192.0.2.2", "port": 90}],
    "balance": "source",
    "allow": ["10.0.0.0/8"],
    "limit": 7,
    "limit_per_client": 3,
    "proxy_protocol": 2,
    "connect_timeout_s": 1.5,
    "idle_s": 60.0,
    "steer": "never",
    "owner": "pid 1 2",
    "label": "net/c1/eth0",
    "follow": "name=db.example",
    "port_file": "/run/port",
    "port_line": 2,
}


def test_every_field_survives_json() -> None:
    known = {one.name for one in fields(mappings.Mapping)} - {"sticky"}  # of one port only
    assert EVERY_FIELD.keys() == known
    read = mappings.Mapping.from_json(json.loads(json.dumps(EVERY_FIELD)))
    assert read.to_json() == EVERY_FIELD


def test_defaults_are_not_written_and_the_earlier_name_of_a_field_is_read() -> None:
    assert mapping_of().to_json().keys() == {"id", "protocol", "host_ips", "first", "last", "targets"}
    assert mapping_of(redirect="never").steer == "never"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "../web"}, "name of a mapping"),
        ({"protocol": "sctp"}, "SCTP"),
        ({"first": 0}, "range of ports"),
        ({"first": 9, "last": 8}, "range of ports"),
        ({"first": True}, "first is a whole number"),
        ({"host_ips": []}, "at least one address"),
        ({"host_ips": ["127.0.0.1", "127.0.0.1"]}, "each once"),
        ({"host_ips": ["127.1"]}, "not an IP address"),
        ({"host_ips": ["2001:DB8::1"]}, "write the address as 2001:db8::1"),
        ({"host_ips": "127.0.0.1"}, "list of texts"),
        ({"targets": []}, "at least one target"),
        ({"targets": [{"address": "::1", "port": 65535}], "last": 8081}, "do not fit"),
        ({"targets": [{"address": "::1", "port": 80, "pid": 1, "path": "/p"}]}, "not by several"),
        ({"targets": [{"address": "::1", "port": 80, "path": "p"}]}, "absolute path"),
        ({"allow": ["10.0.0.1/8"]}, "network to allow"),
        ({"proxy_protocol": 1, "protocol": "udp"}, "knows TCP only"),
        ({"limit": -1}, "a limit"),
        ({"connect_timeout_s": 0}, "connect_timeout_s"),
        ({"idle_s": "1"}, "idle_s is a number"),
        ({"label": "two\nlines"}, "printable"),
        ({"sticky": "web", "last": 8081}, "one port"),
        ({"port_file": "web.port"}, "absolute path"),
        ({"colour": "red"}, "no field 'colour'"),
    ],
)
def test_a_malformed_mapping_is_refused_in_a_sentence(change: dict[str, object], words: str) -> None:
    with pytest.raises(Usage, match=words):
        mapping_of(**change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"host_ips": ["224.0.0.1"]}, "cannot listen on 224.0.0.1: it is a multicast address"),
        ({"host_ips": ["fe80::1"]}, "link-local"),
        ({"targets": [{"address": "255.255.255.255", "port": 80}]}, "cannot connect to .* broadcast"),
    ],
)
def test_addresses_that_cannot_work_are_refused_for_use_but_still_read(change: dict[str, object], words: str) -> None:
    """A file of an earlier version may hold them: one mapping fails then, and not the start."""
    found = mapping_of(**change)
    with pytest.raises(Unfit, match=words):
        mappings.check_use(found)


def test_a_mapping_in_words() -> None:
    web = mapping_of(host_ips=list(ANY), last=8090)
    assert str(web) == "8080-8090/tcp on 0.0.0.0, [::] to 127.0.0.1:8081"
    assert web.without(["::"]).host_ips == ("0.0.0.0",)
    assert web.without(ANY) is web
    assert web.target_port(web.targets[0], 8085) == 8086
    assert str(Target("::1", 80, Place(pid=7))) == "[::1]:80 in pid 7"
    assert mappings.span(80, 80) == "80"


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (values.text, ["", "a"], [None, 1, ["a"]]),
        (values.integer, [0, -3], [None, True, 1.0, "1"]),
        (values.number, [0, 1.5], [None, False, "1"]),
        (values.flag, [True, False], [None, 0, 1, "true"]),
        (values.items, [[], [1]], [None, {}, "ab"]),
        (values.objects, [[], [{}]], [None, {}, [1], [{}, None]]),
        (values.obj, [{}, {"a": 1}], [None, [], "a"]),
    ],
)
def test_readers_take_their_own_type_alone(
    read: Callable[[Mapping[str, object], str], object], good: list[object], bad: list[object]
) -> None:
    assert [read({"x": one}, "x") for one in good] == good
    for one in bad:
        with pytest.raises(Usage, match=r"^x is"):
            read({"x": one}, "x")


def test_a_row_has_its_types_in_their_order() -> None:
    assert values.row(["a", 1, {}], str, int, object) == ["a", 1, {}]
    for bad in (None, "ab", ["a"], ["a", "b", 1], [1, "a", 1], ["a", 1, 2, 3]):
        with pytest.raises(Usage, match="is no list of str, int, int"):
            values.row(bad, str, int, int)
