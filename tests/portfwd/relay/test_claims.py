"""Who has which port, and who may come in: pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from portfwd.mapping import Mapping
from portfwd.relay.admission import Admission
from portfwd.relay.claims import Claims


def mapping(
    name: str, *host_ips: str, first: int = 8080, last: int = 0, protocol: str = "tcp", **more: object
) -> Mapping:
    target = {"address": "192.0.2.2", "port": 80}
    fields = {"id": name, "protocol": protocol, "host_ips": list(host_ips), "first": first, "last": last or first}
    return Mapping.from_json({**fields, "targets": [target], **more})


@pytest.mark.parametrize(
    ("one", "other", "port"),
    [
        (mapping("a", "0.0.0.0"), mapping("b", "127.0.0.1"), 8080),
        (mapping("a", "127.0.0.1"), mapping("b", "0.0.0.0"), 8080),
        (mapping("a", "127.0.0.1"), mapping("b", "127.0.0.1"), 8080),
        (mapping("a", "0.0.0.0", "::"), mapping("b", "::1"), 8080),
        (mapping("a", "::", first=8000, last=8100), mapping("b", "::1", first=8100, last=8200), 8100),
        (mapping("a", "0.0.0.0", first=8000, last=8100), mapping("b", "127.0.0.1", first=8100), 8100),
        (mapping("a", "127.0.0.1", first=8100), mapping("b", "0.0.0.0", first=8000, last=8100), 8100),
    ],
)
def test_two_mappings_conflict_as_two_sockets_would(one: Mapping, other: Mapping, port: int) -> None:
    claims = Claims()
    claims.put(one)
    assert claims.holder(other) == ("a", port)
    claims.take(one)
    assert claims.holder(other) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (mapping("a", "0.0.0.0"), mapping("b", "::")),
        (mapping("a", "127.0.0.1"), mapping("b", "127.0.0.2")),
        (mapping("a", "0.0.0.0"), mapping("b", "0.0.0.0", protocol="udp")),
        (mapping("a", "0.0.0.0"), mapping("b", "0.0.0.0", first=8081)),
        (mapping("a", "0.0.0.0", first=8000, last=8100), mapping("b", "0.0.0.0", first=8101, last=8200)),
        (mapping("a", "127.0.0.1", first=8000, last=8100), mapping("b", "127.0.0.2", first=8000, last=8100)),
        (mapping("a", "0.0.0.0"), mapping("a", "0.0.0.0")),
    ],
)
def test_others_do_not(one: Mapping, other: Mapping) -> None:
    claims = Claims()
    claims.put(one)
    assert claims.holder(other) is None


@given(
    some.lists(some.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"])), some.integers(1, 4), some.integers(0, 2)
)
def test_never_more_clients_than_the_limits_say(clients: list[str], limit: int, per_client: int) -> None:
    admission = Admission(mapping("a", "0.0.0.0", limit=limit, limit_per_client=per_client), 100)
    inside = [client for client in clients if admission.enter(client)]
    assert len(inside) <= limit
    assert not per_client or all(inside.count(client) <= per_client for client in set(inside))
    for client in inside:
        admission.leave(client)
    assert admission.present == 0


def test_the_allow_list_takes_a_client_without_its_zone() -> None:
    admission = Admission(mapping("a", "::", allow=["fe80::/10"]), 100)
    assert admission.allows("fe80::1%eth0")
    assert not admission.allows("2001:db8::1")


def test_connections_taken_over_are_counted_whatever_the_limit_now_is() -> None:
    admission = Admission(mapping("a", "::", limit=2, limit_per_client=1), 100)
    for _ in range(3):
        admission.admit("192.0.2.1")
    assert admission.present == 3
    for _ in range(3):
        admission.leave("192.0.2.1")
    assert admission.present == 0
    assert admission.enter("192.0.2.1")
    assert not admission.enter("192.0.2.1")


def test_a_limit_per_client_that_comes_later_counts_who_is_in() -> None:
    admission = Admission(mapping("a", "::"), 100)
    assert admission.enter("192.0.2.1")
    admission = admission.successor(mapping("a", "::", limit_per_client=1), 100, ["192.0.2.1"])
    assert not admission.enter("192.0.2.1")
    admission.leave("192.0.2.1")
    assert admission.enter("192.0.2.1")
