"""What the service takes on and what it turns away: descriptors, clients, sizes; commands are served whatever clients do."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab import Lab

from cni_py.ports import relay
from cni_py.ports.options import port_options
from cni_py.protocol import gojson
from portfwd.errors import PortfwdError, Usage
from portfwd.relay.admission import Admission
from portfwd.relay.counters import SAY_S, Tally
from portfwd.service.client import Client
from portfwd.service.descriptors import Descriptors
from portfwd.service.requests import LINE_MAX
from portfwd.service.store import SIZE_MAX, Store
from tests.portfwd import talk
from tests.portfwd.publisher import SOCKET, STATE, exchange, serving
from tests.portfwd.stage import Log, Stage, mapping_of
from tests.portfwd.talk import HOST, INSIDE, PORT

if TYPE_CHECKING:
    from cni_py.protocol.gojson import Encodable

LIMIT = 301
PATIENCE_S = 10.0


def ask(verb: str, **fields: object) -> dict[str, object]:
    return exchange(SOCKET, {"verb": verb, **fields})


def wanted(name: str, first: int, last: int = 0, **fields: object) -> dict[str, object]:
    return mapping_of(id=name, first=first, last=last or first, **fields).to_json()


# Descriptors


def test_the_fence_stands_below_what_commands_and_listeners_may_use() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        room = Descriptors(1024)
        room.lower()
        found = [soft_limit()]
        with room.for_commands():
            found.append(soft_limit())
            with room.for_listeners():
                found.append(soft_limit())
            found.append(soft_limit())
        assert [*found, soft_limit()] == [896, 1024, 960, 1024, 896]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def soft_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def commands_beside_a_crowd() -> dict[str, object]:
    """Clients take every descriptor that clients may have; then commands of every kind."""
    found: dict[str, object] = {}
    with talk.listening(), contextlib.ExitStack() as crowd:
        with contextlib.suppress(OSError):
            for _ in range(LIMIT):
                crowd.enter_context(socket.create_connection((HOST, PORT), 1.0))
        starved = lambda: ask("stats")["mappings"][f"m{PORT}"]["starved"] > 0  # type: ignore[index]  # noqa: E731
        assert talk.until(starved)
        for name, mapping in {
            "one": wanted("one", 9000),
            "many": wanted("many", 9100, 9163, targets=[{"address": HOST, "port": 1}]),
            "inside": wanted("inside", 9001, targets=[{"address": HOST, "port": 1, "path": "/proc/self/ns/net"}]),
        }.items():
            answer = ask("publish", mappings=[mapping])
            found[name] = answer["ok"] or answer["error"]["kind"] + ": " + answer["error"]["details"]  # type: ignore[index]
        found["reload"] = ask("reload")["ok"]
        found["again"] = ask("publish", mappings=[wanted("one", 9000)], replace=True)["ok"]
        found["removed"] = ask("remove", ids=["one", "inside", f"m{PORT}"])["ok"]
    found["left"] = ask("list")["mappings"]
    return found


@pytest.mark.parametrize("most", [LIMIT, LIMIT + 1])
def test_commands_are_served_when_clients_hold_all_descriptors(machine: Lab, most: int) -> None:
    """An even and an odd number: what is left is not enough for a connection, and one more."""
    with serving(machine["host"], "--no-redirect", prefix=["prlimit", f"--nofile={most}:{most}", "--"]) as service:
        service.publish(HOST, PORT, (HOST, INSIDE))
        found = service.node.python(commands_beside_a_crowd)
        logged = service.end()
    refusal = found.pop("many")
    assert refusal == "lacking: no descriptor is left: raise LimitNOFILE, or use a range"
    assert found == {"one": True, "inside": True, "reload": True, "again": True, "removed": True, "left": []}
    assert logged.count("clients had to wait") <= 4  # of two processes: at once, and at the end


# Reloads


def clients_at_every_stage() -> list[object]:
    """Clients that have said nothing, a part, and more than one request while the service is replaced."""
    silent, halfway, eager = (open_client() for _ in range(3))
    socket.send_fds(halfway, [b'{"verb":'], [0])
    eager.sendall(b'{"verb":"reload"}\n{"verb":"list"}\n{"verb":"li')
    lines = eager.makefile("rb")
    found: list[object] = [json.loads(lines.readline())["ok"], "mappings" in json.loads(lines.readline())]
    eager.sendall(b'st"}\n')
    halfway.sendall(b'"stats"}\n')
    silent.sendall(b'{"verb":"list"}\n')
    found.append("mappings" in json.loads(lines.readline()))
    for one in (halfway, silent):
        found.append(json.loads(one.makefile("rb").readline())["ok"])
        one.close()
    lines.close()
    eager.close()
    return found


def open_client() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE_S)
    sock.connect(SOCKET)
    return sock


def crowd_through_reloads(workers: int, reloads: int) -> tuple[list[str], set[str], set[str]]:
    """Commands by several at once while the service is replaced: what failed, what should be published, and what is."""
    failed: list[str] = []
    kept: set[str] = set()
    ended = threading.Event()

    def work(number: int) -> None:
        for step in range(500):
            if ended.is_set():
                return
            name = f"w{number}-{step}"
            try:
                with contextlib.closing(Client.connect(SOCKET)) as client:
                    client.request({"verb": "publish", "mappings": [wanted(name, 10000 + 500 * number + step)]})
                    if step % 2:
                        client.request({"verb": "remove", "ids": [name]})
                    else:
                        kept.add(name)
            except PortfwdError as error:
                failed.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for _ in range(reloads):
        assert ask("reload")["ok"] is True
    enough = talk.until(lambda: len(kept) > 10)
    ended.set()
    for thread in threads:
        thread.join()
    assert enough
    listed = ask("list")["mappings"]
    assert isinstance(listed, list)
    return failed, kept, {str(one["id"]) for one in listed}


def test_commands_around_a_reload_are_answered_once_and_in_full(machine: Lab) -> None:
    with serving(machine["host"], "--no-redirect") as service:
        assert service.node.python(clients_at_every_stage) == [True] * 5
        failed, kept, there = service.node.python(crowd_through_reloads, 3, 2)
        assert failed == []
        assert there == kept
        service.ask("remove", ids=sorted(kept))


# Sizes


def largest() -> dict[str, object]:
    """A mapping that fills a request with texts that take three times as much room on disk."""
    text = "\N{FOUR LEAF CLOVER}" * 4000
    targets = [{"address": HOST, "port": 1, "path": f"/{number}{text}"} for number in range(64)]
    return wanted("large", PORT, targets=targets, label=text)


def publish_as_utf8(mapping: dict[str, object]) -> dict[str, object]:
    request = json.dumps({"verb": "publish", "mappings": [mapping]}, ensure_ascii=False).encode() + b"\n"
    assert LINE_MAX - (1 << 14) < len(request) <= LINE_MAX
    with open_client() as sock, sock.makefile("rb") as answers:
        sock.sendall(request)
        return dict(json.loads(answers.readline()))


def test_the_largest_mapping_that_is_accepted_is_there_after_a_kill(machine: Lab) -> None:
    mapping = largest()
    with serving(machine["host"]) as service:
        assert service.node.python(publish_as_utf8, mapping)["ok"] is True
        service.end(signal.SIGKILL)
    with serving(machine["host"]) as service:
        [found] = service.ask("list")["mappings"]
        assert {name: found[name] for name in mapping} == mapping
        service.ask("remove", ids=["large"])


def test_what_could_not_be_restored_is_refused(machine: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(size: int, total: int, count: int) -> str:
        monkeypatch.setattr("portfwd.service.store.SIZE_MAX", size)
        monkeypatch.setattr("portfwd.service.store.TOTAL_MAX", total)
        monkeypatch.setattr("portfwd.service.store.MAPPINGS_MAX", count)
        store = Store(f"{STATE}-small")
        store.load()
        one, other = mapping_of(id="one"), mapping_of(id="other", first=9, last=9)
        try:
            store.save([one])
            store.save([one])  # in its own place
            store.save([other])
        except Usage as error:
            return error.msg
        finally:
            store.forget([one, other])
        store.save([other])
        store.forget([other])
        return ""

    run = machine["host"].python
    assert run(keep, SIZE_MAX, 400, 9) == "this service cannot keep more mappings"
    assert run(keep, SIZE_MAX, 10**6, 1) == "this service cannot keep more mappings"
    assert run(keep, 10, 10**6, 9) == "mapping one is too large to be kept"
    assert run(keep, SIZE_MAX, 10**6, 2) == ""


# Clients that have left


def full(stage: Stage) -> socket.socket:
    """A target that takes no more connections until one is accepted: the kernel drops their SYN."""
    target = stage.target(backlog=0)
    stage.sockets.append(socket.create_connection((HOST, INSIDE)))
    return target


def left_while_a_target_is_dialled() -> dict[str, object]:
    """The target takes no more connections for now; the limit is two clients."""
    found: dict[str, object] = {}
    with Stage() as stage, Log() as log:
        port = stage.publish(limit=2, connect_timeout_s=60.0)
        full(stage)
        stage.client()
        stage.until(lambda: port.counters.active == 1)
        for number in range(3):
            gone = stage.client()
            stage.until(lambda: port.counters.active == 2)
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, talk.RESET)
            gone.close()
            found[f"reset {number}"] = stage.until(lambda: port.counters.active == port.admission.present == 1)
        ended = stage.client()
        ended.send(b"question")
        ended.shutdown(socket.SHUT_WR)
        stage.until(lambda: len(port.ended) == 1)
        found["refused with room"] = port.counters.limited
        stage.client()
        stage.until(lambda: port.counters.connections == 6)
        found["the ended one made room"] = (stage.all_of(ended)[1], port.admission.present, port.counters.limited)
        found["then"] = stage.all_of(stage.client())[1], port.counters.limited, port.counters.refused
        stage.relay.sweep()
        found["said"] = [line for line in log.lines if "turned away" in line]
    return found


def test_clients_that_left_while_a_target_was_dialled_do_not_count(machine: Lab) -> None:
    found = machine["host"].python(left_while_a_target_is_dialled)
    assert [found[f"reset {number}"] for number in range(3)] == [True] * 3
    assert found["refused with room"] == 0
    assert found["the ended one made room"] == ("ConnectionResetError", 2, 0)
    assert found["then"] == ("ConnectionResetError", 1, 1)
    assert found["said"] == ["m: turned away: 1 clients beyond the limit of 2 connections"]


def ended_while_a_target_is_dialled() -> list[tuple[bytes, str, bytes, str]]:
    """Clients that say all they will before there is a target, or nothing, and wait for what it says."""
    found = []
    with Stage() as stage:
        port = stage.publish(connect_timeout_s=60.0)
        target = full(stage)
        for question in (b"question", b""):
            client = stage.client()
            client.send(question)
            client.shutdown(socket.SHUT_WR)
            stage.until(lambda: len(port.ended) == 1)
            stage.accepted(target)  # the one that fills the backlog
            server = stage.accepted(target)
            asked = stage.all_of(server)
            server.send(b"answer")
            server.close()
            found.append((*asked, *stage.all_of(client)))
            stage.sockets.append(socket.create_connection((HOST, INSIDE)))
    return found


def test_a_client_that_ends_its_side_before_there_is_a_target_gets_its_answer(machine: Lab) -> None:
    found = machine["host"].python(ended_while_a_target_is_dialled)
    assert found == [(b"question", "end", b"answer", "end"), (b"", "end", b"answer", "end")]


# Who is turned away


@pytest.mark.parametrize(
    ("allow", "client", "allowed"),
    [
        ("::ffff:192.0.2.0/120", "192.0.2.7", True),
        ("::ffff:192.0.2.0/120", "192.0.3.7", False),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("192.0.2.0/24", "::ffff:192.0.2.7", True),
        ("::ffff:0:0/96", "203.0.113.1", True),
        ("::ffff:0:0/96", "2001:db8::1", False),
        ("::/0", "192.0.2.7", False),
        ("::/0", "::ffff:192.0.2.7", False),
        ("::/0", "fe80::1%eth0", True),
        ("0.0.0.0/0", "2001:db8::1", False),
    ],
)
def test_an_ipv4_network_may_be_written_as_ipv6(allow: str, client: str, allowed: bool) -> None:
    assert Admission(mapping_of(allow=[allow]), 1).allows(client) is allowed
    family = 4 if "." in client else 6
    options = port_options(gojson.decode(json.dumps({"80/tcp": {"allow": [allow]}}).encode()), None)["tcp", 80]
    assert options.serves(family) is (allowed or client == "192.0.3.7")


def test_what_is_turned_away_is_said_at_once_and_then_once_in_a_while() -> None:
    tally = Tally()
    assert tally.due(0.0) == ""
    for _ in range(3):
        tally.add("clients")
    assert tally.due(1.0) == "3 clients"
    tally.add("clients")
    tally.add("flows")
    assert tally.due(SAY_S) == ""
    assert tally.due(1.0 + SAY_S) == "1 clients, 1 flows"
    tally.add("flows")
    assert tally.due(2.0 + SAY_S, last=True) == "1 flows"


# A service that hangs up, as an older one does on those whom it has not answered when it is replaced


@pytest.fixture
def hangs_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The path of a socket at which the first request is cut off, and the second answered."""
    path = str(tmp_path / "portfwd.sock")
    monkeypatch.setattr("cni_py.files.run_dir", lambda: str(tmp_path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(PATIENCE_S)

        def serve() -> None:
            for answer in (b"", b'{"ok":true,"mappings":[],"notes":["well"]}\n'):
                with contextlib.suppress(OSError), listener.accept()[0] as peer:
                    peer.recv(LINE_MAX)
                    peer.sendall(answer)

        with talk.beside(serve):
            yield path
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as last:  # where nobody asked again
                last.connect(path)


def test_what_can_be_asked_twice_is_asked_again(hangs_up_once: str) -> None:
    with contextlib.closing(Client.connect(hangs_up_once)) as client:
        assert client.request({"verb": "list"})["mappings"] == []


def test_what_would_do_more_the_second_time_is_not(hangs_up_once: str) -> None:
    with contextlib.closing(Client.connect(hangs_up_once)) as client, pytest.raises(PortfwdError, match="hung up"):
        client.request({"verb": "publish", "mappings": [wanted("m", PORT)]})


def test_portmap_asks_again(hangs_up_once: str) -> None:
    with relay.Service.connect(PATIENCE_S) or contextlib.nullcontext() as service:
        assert service is not None
        assert service.publish([{"id": "m"}], may_fail=False) == ["well"]


def test_what_portmap_asks_for_at_once_fits_into_a_request() -> None:
    allow = [f"2001:db8:{number:x}::/64" for number in range(1000)]
    ports: list[dict[str, Encodable]] = [{"id": f"portmap-0-{number}", "allow": allow} for number in range(300)]
    chunks = list(relay.requests(ports))
    assert [one for chunk in chunks for one in chunk] == ports
    assert 1 < len(chunks) < 12
    assert all(len(gojson.encode({"mappings": chunk}, None)) < LINE_MAX - 1000 for chunk in chunks)
