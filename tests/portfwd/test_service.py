"""`portfwd serve` as a process: its mappings, who may ask, what survives a kill, and what systemd hears of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import need_root
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab import Lab
from node import Node

from portfwd import owners, requests
from portfwd.control import Client, Json
from portfwd.errors import Lacking, NotFound, PortfwdError, PortInUse, Usage
from portfwd.mapping import Mapping
from portfwd.store import Store

PORTFWD = str(Path(sys.executable).with_name("portfwd"))
WAIT_S = 10.0
HEX = "0123456789abcdef"
UNITS = Path(__file__).parents[2] / "conf"


def raw(port: int = 8080, name: str = "", **fields: object) -> Json:
    """A mapping of one TCP port on the loopback to the port after it."""
    target = {"address": "127.0.0.1", "port": port + 1}
    here = {"id": name or f"m{port}", "protocol": "tcp", "host_ips": ["127.0.0.1"], "first": port, "last": port}
    return {**here, "targets": [target], **fields}


def until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Service:
    """A service in a node; its control socket is reached from outside, its ports from inside."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.path = str(folder / "portfwd.sock")
        self.state = str(folder / "state")
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *given: str, command: tuple[str, ...] = (), env: dict[str, str] | None = None) -> None:
        """Start it, and return when it answers."""
        options = ["--socket", self.path, "--state", self.state, "--drain", "0.5", *given]
        with open(self.log, "ab") as log:
            self.process = self.node.popen([*command, PORTFWD, "serve", *options], env=env, stdout=log, stderr=log)
        assert until(self.answers), self.log.read_text()

    def answers(self) -> bool:
        try:
            self.ask("list")
        except PortfwdError:
            return False
        return True

    def ask(self, verb: str, fds: tuple[int, ...] = (), **fields: object) -> Json:
        with contextlib.closing(Client.connect(self.path)) as client:
            return client.request({"verb": verb, **fields}, fds)

    def publish(self, *mappings: Json, fds: tuple[int, ...] = (), **fields: object) -> Json:
        return self.ask("publish", fds, mappings=list(mappings), **fields)

    def names(self) -> list[str]:
        return sorted(str(one["id"]) for one in self.listing())

    def listing(self) -> list[Json]:
        found = self.ask("list")["mappings"]
        assert isinstance(found, list)
        return found

    def on_disk(self) -> list[str]:
        return sorted(path.stem for path in Path(self.state, "mappings").glob("*.json"))

    def pid(self) -> int:
        """As this test sees it."""
        pids = subprocess.run(
            ["pgrep", "-f", f"serve --socket {self.path} .*"], capture_output=True, text=True, check=False
        ).stdout.split()
        service = [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == "portfwd"]
        assert len(service) == 1, pids
        return service[0]

    def clear(self) -> None:
        """As if it had just started for the first time."""
        self.ask("remove", ids=self.names())

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it; the exit status."""
        assert self.process is not None
        try:
            os.kill(self.pid(), number)
            return self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def lan() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab


@pytest.fixture
def idle(lan: Lab, tmp_path: Path) -> Iterator[Service]:
    """One that is not running yet."""
    tmp_path.chmod(0o700)
    service = Service(lan["host"], tmp_path)
    try:
        yield service
    finally:
        if service.process is not None:
            service.end()


@pytest.fixture(scope="module")
def shared(lan: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(lan["host"], tmp_path_factory.mktemp("service"))
    service.start()
    try:
        yield service
    finally:
        service.end()


@pytest.fixture
def service(shared: Service) -> Iterator[Service]:
    """One that has no mappings."""
    yield shared
    shared.clear()


def listens(node: Node, port: int) -> bool:
    return node.python(can_connect, port)


def can_connect(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def holding(node: Node, port: int) -> contextlib.AbstractContextManager[object]:
    """Somebody else has the port."""
    script = (
        f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); print('.', flush=True); time.sleep(60)"
    )

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        process = node.popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            process.stdout.read(1)
            yield
        finally:
            process.kill()
            process.communicate()

    return held()


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
    assert [one["targets"] for one in service.listing()][0] == elsewhere["targets"]
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
    pid = service.pid()
    service.publish(raw(8090))
    before = len(os.listdir(f"/proc/{pid}/fd"))
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
    assert until(lambda: len(os.listdir(f"/proc/{pid}/fd")) == before)
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
        with contextlib.suppress(BrokenPipeError):
            peer.sendall(b'{"verb": "list"}\n')
        return peer.recv(1000)


def test_another_user_is_refused_twice(idle: Service, tmp_path: Path) -> None:
    idle.start()
    folders = [folder for folder in (tmp_path, *tmp_path.parents) if folder != Path("/tmp")]
    with pytest.raises(PermissionError):
        idle.node.python(ask_as_nobody, idle.path)
    link = Path("/run/portfwd-test.sock")  # in the node alone, whose /run others can enter
    idle.node.python(os.link, idle.path, str(link)) if same_device(idle.node, idle.path, link) else open_way(folders)
    os.chmod(idle.path, 0o666)
    path = str(link) if idle.node.python(link.exists) else idle.path
    answer = json.loads(idle.node.python(ask_as_nobody, path))
    assert answer["ok"] is False
    assert "root and its own user" in answer["error"]["msg"]
    assert "refused a command of user 65534" in idle.log.read_text()
