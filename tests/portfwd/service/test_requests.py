"""Requests to a service: its mappings, their owners, and who may ask."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lab import Lab

from portfwd.errors import NotFound, PortfwdError, PortInUse, Usage
from portfwd.service import owners, requests
from portfwd.service.client import Client
from portfwd.values import Json
from tests.portfwd.service.running import HEX, WAIT_S, Service, holding, listens, raw
from tests.portfwd.talk import until

NO_SHRINKING = (Phase.explicit, Phase.generate)  # a failure may have changed the service, and takes WAIT_S each time


# Mappings


def test_what_is_published_listens_and_is_on_disk_before_the_answer(service: Service) -> None:
    answer = service.publish(raw(8080, "web"), raw(8090, host_ips=["127.0.0.1", "::1"]))
    assert answer == {"ok": True, "ids": ["web", "m8090"], "notes": []}
    assert service.on_disk() == ["m8090", "web"]
    assert listens(service.node, 8080)
    assert service.ask("remove", ids=["web"]) == {"ok": True, "ids": ["web"]}
    assert not listens(service.node, 8080)
    assert service.on_disk() == service.names() == ["m8090"]


def test_the_service_chooses_an_id_that_is_not_given(service: Service) -> None:
    ids = service.publish(raw(8080) | {"id": ""}, raw(8090) | {"id": ""})["ids"]
    assert isinstance(ids, list)
    assert sorted(ids) == service.names()
    assert len(set(ids)) == 2


def test_several_are_published_all_or_none(service: Service) -> None:
    with holding(service.node, 8095), pytest.raises(PortInUse, match="port 8095/tcp"):
        service.publish(raw(8080), raw(8090), raw(8095))
    assert service.names() == service.on_disk() == []
    assert not listens(service.node, 8080)
    with pytest.raises(Usage, match="there is a mapping"):
        service.publish(raw(8080, "twice"), raw(8081, "twice"))
    assert service.names() == service.on_disk() == []


def test_those_that_cannot_be_are_left_out_when_that_was_asked_for(service: Service) -> None:
    with holding(service.node, 8095):
        answer = service.publish(raw(8080), raw(8095), may_fail=True)
    assert answer["ids"] == service.names() == service.on_disk() == ["m8080"]
    assert "port 8095/tcp" in str(answer["notes"])


def test_a_replacement_that_fails_in_part_changes_nothing(service: Service) -> None:
    service.publish(raw(8080))
    elsewhere = raw(8080, targets=[{"address": "127.0.0.2", "port": 1}])
    with holding(service.node, 8095), pytest.raises(PortInUse):
        service.publish(elsewhere, raw(8095), replace=True)
    assert [one["targets"] for one in service.listing()] == [raw(8080)["targets"]]
    service.publish(elsewhere, raw(8095), replace=True)
    assert service.listing()[0]["targets"] == elsewhere["targets"]
    assert "127.0.0.2" in Path(service.state, "mappings", "m8080.json").read_text()


def test_when_the_disk_refuses_nothing_is_published(service: Service) -> None:
    service.publish(raw(8080))
    folder = Path(service.state, "mappings")
    folder.rename(folder.with_name("away"))
    folder.write_text("in the way")
    try:
        with pytest.raises(PortfwdError, match="cannot keep mappings"):
            service.publish(raw(8090))
        assert service.names() == ["m8080"]
    finally:
        folder.unlink()
        folder.with_name("away").rename(folder)


def test_remove_says_what_is_not_there_and_removes_nothing_then(service: Service) -> None:
    service.publish(raw(8080))
    with pytest.raises(NotFound, match="there is no mapping other"):
        service.ask("remove", ids=["m8080", "other"])
    assert service.names() == ["m8080"]
    assert service.ask("remove", owner=f"attachment {HEX}") == {"ok": True, "ids": []}


def test_all_of_an_owner_are_removed(service: Service) -> None:
    owner = f"attachment {HEX}"
    service.publish(raw(8080, owner=owner), raw(8090, owner=owner), raw(8100))
    assert service.ask("remove", owner=owner, drain_s=1.0)["ids"] == ["m8080", "m8090"]
    assert service.names() == service.on_disk() == ["m8100"]


def test_stats_tell_of_the_service(service: Service) -> None:
    service.publish(raw(8080))
    answer = service.ask("stats")
    about, counters = answer["service"], answer["mappings"]
    assert isinstance(about, dict)
    assert isinstance(counters, dict)
    assert (about["mappings"], about["waiting"], about["active"]) == (1, 0, 0)
    assert abs(float(about["started"]) - time.time()) < 600
    assert list(counters) == ["m8080"]


def bound(port: int) -> int:
    """A descriptor of a socket that is bound, as dockerd gives it."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", port))
    return sock.detach()


def publish_on_a_socket(path: str, mapping: Json, port: int) -> Json:
    fd = bound(port)
    try:
        with contextlib.closing(Client.connect(path)) as client:
            return client.request({"verb": "publish", "mappings": [mapping]}, [fd])
    finally:
        os.close(fd)


def test_a_socket_that_came_along_is_listened_on(service: Service) -> None:
    assert service.node.python(publish_on_a_socket, service.path, raw(8080), 8080)["ok"] is True
    assert listens(service.node, 8080)


def test_descriptors_that_cannot_be_meant_are_refused_and_closed(service: Service) -> None:
    service.publish(raw(8090))
    with pytest.raises(Usage, match="not the mapping's"):
        service.node.python(publish_on_a_socket, service.path, raw(8080), 8081)
    with pytest.raises(PortInUse):
        service.node.python(publish_on_a_socket, service.path, raw(8090, "other"), 8091)
    read, write = os.pipe()
    here, there = socket.socketpair()
    with here, there:
        for fds, mappings in (
            ((read, write), [raw(8080)]),
            ((here.fileno(),), [raw(8080)]),
            ((here.fileno(),), [raw(8080), raw(8081)]),
        ):
            with pytest.raises(Usage):
                service.publish(*mappings, fds=fds)
    os.close(read)
    os.close(write)
    assert until(lambda: service.descriptors() == service.at_rest + 1)
    assert service.names() == ["m8090"]


# Owners


def publish_and_end(path: str) -> list[str]:
    """A process that publishes for itself, and ends when this returns."""
    with contextlib.closing(Client.connect(path)) as client:
        client.request({"verb": "publish", "mappings": [raw(8080, owner="pid")]})
        listed = client.request({"verb": "list"})["mappings"]
    assert isinstance(listed, list)
    return [str(one["owner"]) for one in listed]


def test_a_mapping_ends_with_the_process_that_owns_it(service: Service) -> None:
    (owner,) = service.node.python(publish_and_end, service.path)
    assert owner.split()[0] == "pid"
    assert owners.process(owner)[1] > 0
    assert until(lambda: service.names() == [])
    assert service.on_disk() == []
    assert not listens(service.node, 8080)


def test_a_process_that_has_ended_can_own_nothing(service: Service) -> None:
    with pytest.raises(NotFound, match="no process"):
        service.publish(raw(8080, owner="pid 4194303 1"))
    assert service.names() == service.on_disk() == []


# Who may ask


def ask_as_nobody(path: str) -> bytes:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(WAIT_S)
        peer.connect(path)
        with contextlib.suppress(ConnectionError):
            peer.sendall(b'{"verb": "list"}\n')
        return peer.recv(1000)


def test_another_user_is_refused_twice(machine: Lab) -> None:
    """By the modes of the folder and the socket, and, whatever those have become, by the credentials."""
    with tempfile.TemporaryDirectory() as name:  # where others could reach it: pytest's folders are closed
        service = Service(machine["host"], Path(name))
        service.start()
        try:
            with pytest.raises(PermissionError):
                machine["host"].python(ask_as_nobody, service.path)
            os.chmod(name, 0o755)
            with pytest.raises(PermissionError):
                machine["host"].python(ask_as_nobody, service.path)
            os.chmod(service.path, 0o666)
            answer = json.loads(machine["host"].python(ask_as_nobody, service.path))
            assert answer["ok"] is False
            assert "root and its own user" in answer["error"]["msg"]
            assert "refused a command of user 65534" in service.log.read_text()
        finally:
            service.end()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
verbs = st.sampled_from([verb for verb in requests.FIELDS if verb not in ("reload", "handover")])
fields = st.sampled_from(["mappings", "replace", "ids", "owner", "drain_s", "version"])
lines = st.one_of(
    st.binary(max_size=100),
    anything.map(lambda value: json.dumps(value).encode()),
    st.builds(lambda verb, rest: json.dumps({**rest, "verb": verb}).encode(), verbs, st.dictionaries(fields, anything)),
    st.sampled_from(
        [b"[" * 50_000, b"x" * ((1 << 20) + 2), json.dumps({"verb": "publish", "mappings": [raw()]}).encode()]
    ),
)


@settings(
    max_examples=60, deadline=None, phases=NO_SHRINKING, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines, st.booleans(), st.integers(0, 5))
def test_whatever_is_sent_the_service_answers_the_next_and_keeps_nothing_open(
    service: Service, line: bytes, ended: bool, descriptors: int
) -> None:
    with socket.socket(socket.AF_UNIX) as peer, open("/dev/null", "rb") as null:
        peer.settimeout(WAIT_S)
        peer.connect(service.path)
        with contextlib.suppress(ConnectionError):  # a reset, where it hangs up on what it has not read
            socket.send_fds(peer, [line[:1] or b" "], [null.fileno()] * descriptors)
            peer.sendall(line[1:] + (b"\n" if ended else b""))
        if ended and b"\n" not in line:
            assert isinstance(json.loads(peer.recv(1 << 16).split(b"\n")[0])["ok"], bool)
    assert service.answers()
    service.clear()
    assert until(lambda: service.descriptors() == service.at_rest)
