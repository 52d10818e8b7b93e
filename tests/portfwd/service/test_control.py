"""The control socket: requests as values, and the server with clients that mean well and others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.errors import KINDS, Lacking, NotFound, PortfwdError, PortInUse, Usage
from portfwd.relay.poller import Poller
from portfwd.service import client, control, requests
from portfwd.service.client import Client
from portfwd.service.control import Call, Lock, Server
from portfwd.service.descriptors import Descriptors
from portfwd.service.requests import Handover, Listing, Publish, Reload, Remove, Request, Stats
from portfwd.values import Json
from tests.portfwd.talk import until

RAW: Json = {
    "id": "web",
    "protocol": "tcp",
    "host_ips": ["::1"],
    "first": 8080,
    "last": 8080,
    "targets": [{"address": "192.0.2.2", "port": 80}],
}
PATIENCE_S = 0.3  # of a server whose client is to be hung up on; others have all the time they need
CLIENTS_MAX = 4


def parse(request: object) -> Request:
    return requests.parse(json.dumps(request).encode(), lambda: "chosen")


# Requests as values


def test_each_verb_is_understood() -> None:
    found = parse({"verb": "publish", "mappings": [RAW, {**RAW, "id": "", "owner": "pid"}], "may_fail": True})
    assert isinstance(found, Publish)
    assert [one.id for one in found.mappings] == ["web", "chosen"]
    assert (found.replace, found.may_fail) == (False, True)
    assert parse({"verb": "remove", "ids": ["b", "a", "b"], "drain_s": 2}) == Remove(("b", "a"), "", 2.0)
    owner = "attachment 0123456789abcdef"
    assert parse({"verb": "remove", "owner": owner}) == Remove((), owner, 0.0)
    assert parse({"verb": "list"}) == Listing()
    assert parse({"verb": "stats"}) == Stats()
    assert parse({"verb": "reload"}) == Reload()
    assert parse({"verb": "handover", "version": 1}) == Handover(1)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ([], "one JSON object"),
        ({}, "unknown verb None"),
        ({"verb": "explode"}, "unknown verb 'explode'"),
        ({"verb": ["list"]}, "unknown verb"),
        ({"verb": "list", "all": True}, "list has no field 'all'"),
        ({"verb": "publish"}, "mappings is a list"),
        ({"verb": "publish", "mappings": []}, "mappings is a list"),
        ({"verb": "publish", "mappings": [7]}, "a mapping is a JSON object"),
        ({"verb": "publish", "mappings": [{**RAW, "colour": "red"}]}, "no field 'colour'"),
        ({"verb": "publish", "mappings": [{**RAW, "id": "../../etc/passwd"}]}, "cannot be the name"),
        ({"verb": "publish", "mappings": [{**RAW, "owner": "me"}]}, "cannot own a mapping"),
        ({"verb": "publish", "mappings": [{**RAW, "owner": "attachment ../.."}]}, "cannot own a mapping"),
        ({"verb": "publish", "mappings": [RAW], "replace": 1}, "replace is true or false"),
        ({"verb": "remove"}, "ids or an owner"),
        ({"verb": "remove", "ids": ["a"], "owner": "pid"}, "ids or an owner"),
        ({"verb": "remove", "ids": "a"}, "a list of texts"),
        ({"verb": "remove", "ids": [1]}, "a list of texts"),
        ({"verb": "remove", "owner": ""}, "owner is a text"),
        ({"verb": "remove", "ids": [], "drain_s": -1}, "number of seconds"),
        ({"verb": "remove", "ids": [], "drain_s": True}, "number of seconds"),
        ({"verb": "remove", "ids": [], "drain_s": float("nan")}, "NaN is not JSON"),
        ({"verb": "handover"}, "version is a whole number"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(request_: object, words: str) -> None:
    with pytest.raises(Usage) as caught:
        parse(request_)
    assert words in str(caught.value)


@pytest.mark.parametrize("line", [b"", b"\xff", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"Infinity"])
def test_lines_that_are_no_json_are_refused(line: bytes) -> None:
    with pytest.raises(Usage, match="one JSON object"):
        requests.parse(line, lambda: "chosen")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = [*RAW, "owner", "allow", "limit", "steer", "redirect", "idle_s"]
mappings = st.dictionaries(st.sampled_from(FIELDS), anything).map(lambda changed: {**RAW, **changed})
hostile = st.fixed_dictionaries(
    {"verb": st.sampled_from(sorted(requests.FIELDS)) | anything},
    optional={
        "mappings": anything | st.lists(mappings, max_size=3),
        "replace": anything,
        "may_fail": anything,
        "ids": anything,
        "owner": anything,
        "drain_s": anything,
        "version": anything,
    },
)


@given(hostile | anything)
def test_any_json_is_a_request_or_a_usage_error(raw: object) -> None:
    with contextlib.suppress(Usage):
        parse(raw)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_usage_error(line: bytes) -> None:
    with contextlib.suppress(Usage):
        requests.parse(line, lambda: "chosen")


# The socket


def test_the_socket_is_closed_to_others_from_its_first_moment(tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "portfwd.sock")
    before = os.umask(0)
    try:
        control.make_folder(path)
        with control.listen(path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            assert stat.S_IMODE(os.stat(tmp_path / "run").st_mode) == 0o700
    finally:
        os.umask(before)


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "portfwd.sock")
    control.listen(path).close()
    with control.listen(path), pytest.raises(PortfwdError, match="another service listens"):
        control.listen(path)


def test_a_file_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "portfwd.sock"
    path.write_text("mine")
    with pytest.raises(PortfwdError, match="not a socket"):
        control.listen(str(path))
    assert path.read_text() == "mine"


def test_a_folder_in_which_others_can_put_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PortfwdError, match="other users can put files there"):
        control.make_folder(str(tmp_path / "open" / "portfwd.sock"))


def test_a_lock_is_had_once_and_goes_with_its_descriptor(tmp_path: Path) -> None:
    path = str(tmp_path / "portfwd.sock")
    first = Lock.take(path)
    assert first is not None
    assert Lock.take(path) is None
    assert control.holder(path) == str(os.getpid())
    handed_over = Lock(path, os.dup(first.fd))
    first.close()
    assert Lock.take(path) is None
    handed_over.close()
    again = Lock.take(path)
    assert again is not None
    again.close()


# The server


class Answers:
    """Answers as a test wants it."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.later: list[Call] = []

    def new_id(self) -> str:
        return "chosen"

    def hand_over(self, request: Handover, peer: socket.socket) -> None:
        peer.send(b"the raw connection\n")

    def answer(self, request: Request, call: Call) -> Json | None:
        self.asked.append(request)
        match request:
            case Publish(mappings=(mapping, *_)):
                descriptors = call.take_descriptors()
                sizes = [os.fstat(fd).st_size for fd in descriptors]
                control.close_all(descriptors)
                return {"ok": True, "ids": [mapping.id], "sizes": sizes, "pid": call.peer.pid}
            case Remove(ids=(kind, *_)):
                raise KINDS[kind]("no", "because")
            case Stats():
                return {"ok": True, "much": "x" * (4 << 20)}
            case Reload():
                self.later.append(call)
                return None
            case Listing():
                return {"ok": True}
            case _:
                raise ZeroDivisionError


class Running:
    """A server on a loop in a thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.handler = Answers()
        self.loop = asyncio.SelectorEventLoop(Poller())
        self.server = Server(self.loop, control.listen(path), self.handler, Descriptors(), clients_max=CLIENTS_MAX)
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def connect(self) -> contextlib.closing[Client]:
        return contextlib.closing(Client.connect(self.path))

    def lose_patience(self) -> None:
        """With whom it begins to wait for from now on."""
        self.server.patience_s = PATIENCE_S

    def raw(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(self.path)
        return sock

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.server.close()
        self.loop.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    one = Running(str(tmp_path / "portfwd.sock"))
    try:
        yield one
    finally:
        one.close()


def to_end(sock: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(1 << 16):
            found += part
    return found


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_requests_follow_each_other_on_a_connection(running: Running) -> None:
    with running.connect() as client:
        assert client.request({"verb": "list"}) == {"ok": True}
        answer = client.request({"verb": "publish", "mappings": [RAW]})
        assert answer == {"ok": True, "ids": ["web"], "sizes": [], "pid": os.getpid()}
        assert len(str(client.request({"verb": "stats"})["much"])) == 4 << 20


def test_requests_sent_at_once_are_answered_in_order(running: Running) -> None:
    with running.raw() as sock:
        sock.sendall(b'{"verb":"list"}\n{"verb":"explode"}\n{"verb":"list"}\n')
        sock.shutdown(socket.SHUT_WR)
        assert [json.loads(line)["ok"] for line in to_end(sock).splitlines()] == [True, False, True]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_error_arrives_as_what_it_was(running: Running, kind: str) -> None:
    with running.connect() as client, pytest.raises(PortfwdError) as caught:
        client.request({"verb": "remove", "ids": [kind]})
    assert type(caught.value) is KINDS[kind]
    assert (caught.value.msg, caught.value.details) == ("no", "because")


def test_an_error_of_our_own_costs_one_request(running: Running) -> None:
    with running.connect() as client:
        with pytest.raises(PortfwdError, match="its log says more"):
            client.request({"verb": "remove", "ids": []})
        assert client.request({"verb": "list"}) == {"ok": True}


def test_an_answer_may_come_later(running: Running) -> None:
    with running.raw() as sock, running.connect() as other:
        sock.sendall(b'{"verb":"reload"}\n')
        assert other.request({"verb": "list"}) == {"ok": True}
        running.lose_patience()
        with running.raw() as silent:  # one that came later and is slow itself is hung up on meanwhile
            assert to_end(silent) == b""
        answer: Json = {"ok": True}
        running.loop.call_soon_threadsafe(running.handler.later[0].answer, answer)
        assert sock.recv(100) == b'{"ok":true}\n'


def test_who_hands_over_gets_the_raw_connection(running: Running) -> None:
    with running.raw() as sock:
        sock.sendall(b'{"verb":"handover","version":1}\n')
        assert to_end(sock) == b"the raw connection\n"


def test_descriptors_arrive_with_their_request(running: Running, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with running.connect() as client, open(tmp_path / "file", "rb") as file:
        request: Json = {"verb": "publish", "mappings": [RAW]}
        assert client.request(request, [file.fileno()] * 3)["sizes"] == [5, 5, 5]
        assert client.request(request)["sizes"] == []


def test_descriptors_that_nobody_wants_are_closed(running: Running) -> None:
    before = open_descriptors()
    with open("/dev/null", "rb") as file:
        some = [file.fileno()] * 5
        with running.connect() as client:
            client.request({"verb": "list"}, some)
            with pytest.raises(Usage):
                client.request({"verb": "explode"}, some)
        running.lose_patience()
        with running.raw() as sock:  # a request that never ends
            socket.send_fds(sock, [b"{"], some)
            assert to_end(sock) == b""
    assert until(lambda: open_descriptors() == before)


def test_too_many_descriptors_are_refused(running: Running) -> None:
    before = open_descriptors()
    with running.raw() as sock, open("/dev/null", "rb") as file:
        for _ in range(3):
            with contextlib.suppress(ConnectionError):  # a reset, where it hangs up on what it has not read
                socket.send_fds(sock, [b" "], [file.fileno()] * 100)
        assert b"more descriptors" in to_end(sock)
    assert until(lambda: open_descriptors() == before)


def test_a_line_that_is_too_long_is_refused(running: Running) -> None:
    with running.connect() as client, pytest.raises(Usage, match="too long"):
        client.request({"verb": "x" * (2 * requests.LINE_MAX)})
    with running.connect() as client:
        assert client.request({"verb": "list"}) == {"ok": True}


def test_a_client_that_never_ends_its_line_is_hung_up_on_and_holds_up_nobody(running: Running) -> None:
    with running.connect() as client:
        assert client.request({"verb": "list"}) == {"ok": True}
        running.lose_patience()
        with running.raw() as slow:

            def is_hung_up_on() -> bool:  # a byte now and then wins it no time
                try:
                    slow.sendall(b" ")
                except ConnectionError:
                    return True
                return False

            with contextlib.suppress(ConnectionError):
                slow.sendall(b'{"verb":')
            assert client.request({"verb": "list"}) == {"ok": True}
            assert until(is_hung_up_on)


def test_a_client_that_does_not_read_is_hung_up_on(running: Running) -> None:
    with running.raw() as sock:
        assert until(lambda: bool(running.server.clients))
        running.lose_patience()
        sock.sendall(b'{"verb":"stats"}\n')
        assert until(lambda: not running.server.clients)
        assert 0 < len(to_end(sock)) < 4 << 20


def test_more_clients_than_may_be_are_served_when_others_have_gone(running: Running) -> None:
    running.lose_patience()
    crowd = [running.raw() for _ in range(CLIENTS_MAX)]
    try:
        with running.connect() as client:
            assert client.request({"verb": "list"}) == {"ok": True}
            assert select.select(crowd, [], [], 0)[0]  # one of the crowd had been hung up on before
    finally:
        for sock in crowd:
            sock.close()


def test_without_a_service_a_command_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Lacking, match="portfwd serve"):
        Client.connect(str(tmp_path / "portfwd.sock"))


@pytest.mark.parametrize("line", [b"", b"[]", b"nonsense", b"\xff", b'{"ok":1}'])
def test_an_answer_in_another_language_is_an_error(line: bytes) -> None:
    with pytest.raises(PortfwdError):
        client.opened(line)


def test_an_error_of_a_kind_not_known_is_a_failure() -> None:
    with pytest.raises(PortfwdError) as caught:
        client.opened(b'{"ok":false,"error":{"kind":"new","msg":"m","details":""}}')
    assert type(caught.value) is PortfwdError
    assert not isinstance(caught.value, PortInUse | NotFound)
