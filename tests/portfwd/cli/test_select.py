"""Which mappings `portfwd rm` means, and which ports a random one is chosen from."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cni_py.ports import local_ports
from portfwd.cli import select
from portfwd.errors import NotFound, Usage


def live(name: str, first: int, last: int = 0, protocol: str = "tcp", **more: object) -> dict[str, object]:
    base: dict[str, object] = {"id": name, "protocol": protocol, "host_ips": ["0.0.0.0", "::"], "first": first}
    return base | {"last": last or first, "targets": [{"address": "192.0.2.2", "port": 80}], "state": {}} | more


LIVE = [
    live("web", 8080),
    live("dns", 53, protocol="udp"),
    live("range", 9000, 9009),
    live("here", 443, host_ips=["127.0.0.1"]),
    live("here6", 443, host_ips=["::1"]),
    live("80", 81),
    live("later", 82, weights=[1]),
    live("portmap-00ff-1", 84, owner="attachment 00ff"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web", "web"),
        ("8080", "web"),
        ("8080/tcp", "web"),
        ("[::]:8080/tcp", "web"),
        ("53/udp", "dns"),
        ("9000-9009", "range"),
        ("127.0.0.1:443", "here"),
        ("[::1]:443/tcp", "here6"),
        ("::1:443", "here6"),
        ("80", "80"),  # a name before a port
        ("later", "later"),  # of a service newer than this command
        ("portmap-00ff-1", "portmap-00ff-1"),
    ],
)
def test_a_mapping_is_meant_by_its_name_or_its_ports(text: str, expected: str) -> None:
    assert select.ids([text], LIVE) == [expected]


@pytest.mark.parametrize(
    "text", ["wep", "8081", "53", "8080/udp", "::1", "", "9000-9010", "127.0.0.2:443", "[::1]:8080"]
)
def test_what_nobody_published_is_not_found(text: str) -> None:
    with pytest.raises(NotFound):
        select.ids([text], LIVE)


def test_a_part_of_a_range_is_not_the_range() -> None:
    with pytest.raises(NotFound, match=r"no mapping of 9004: range is 9000-9009/tcp"):
        select.ids(["9004"], LIVE)


def test_ports_that_two_mappings_have_mean_neither() -> None:
    with pytest.raises(Usage, match=r"here on 127.0.0.1, here6 on ::1"):
        select.ids(["443/tcp"], LIVE)


def test_each_is_named_once() -> None:
    assert select.ids(["web", "8080", "dns"], LIVE) == ["web", "dns"]


def test_all_are_those_of_people() -> None:
    assert "portmap-00ff-1" not in select.of_people(LIVE)
    assert len(select.of_people(LIVE)) == len(LIVE) - 1


@pytest.mark.parametrize(
    ("local", "kept", "lowest", "expected"),
    [
        ("40000\t40003\n", "\n", "1024", [40000, 40001, 40002, 40003]),
        ("40000\t40005\n", "40001,40003-40004,99999\n", "1024", [40000, 40002, 40005]),
        ("1022\t1026\n", "", "1024", [1024, 1025, 1026]),
        ("40000\t40003\n", "", "40002", [40002, 40003]),
        ("40000\t40003\n", "1024-65530", "1024", [65531, 65532, 65533, 65534, 65535]),
        ("40000\t40003\n", "what?,40001-,-,7-", "", [40000, 40002, 40003]),
        ("40000\t40001\n", "0-65535", "1024", range(40000, 40002)),
    ],
)
def test_a_random_port_is_one_that_the_host_may_use(
    local: str, kept: str, lowest: str, expected: Sequence[int]
) -> None:
    files = {"ip_local_port_range": local, "ip_local_reserved_ports": kept, "ip_unprivileged_port_start": lowest}
    assert local_ports.choosable(lambda path: files[path.rpartition("/")[2]]) == expected
