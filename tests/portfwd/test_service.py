"""`portfwd serve` as a process: its mappings, who may ask, what survives a kill, and what systemd hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lab import Lab
from node import Node

from portfwd.errors import NotFound, PortfwdError, PortInUse, Usage
from portfwd.mapping import Mapping
from portfwd.netns.sockets import Places
from portfwd.relay.poller import Poller
from portfwd.relay.publish import Relay
from portfwd.service import owners, requests
from portfwd.service.client import Client
from portfwd.service.descriptors import Descriptors
from portfwd.service.registry import Registry
from portfwd.service.store import Store
from portfwd.values import Json
from tests.conftest import need_root
from tests.lacking import unavailable
from tests.portfwd.talk import until

PORTFWD = str(Path(sys.executable).with_name("portfwd"))
WAIT_S = 10.0
NO_SHRINKING = (Phase.explicit, Phase.generate)  # a failure may have changed the service, and takes WAIT_S each time
HEX = "0123456789abcdef"
UNITS = Path(__file__).parents[2] / "conf"


def raw(port: int = 8080, name: str = "", **fields: object) -> Json:
    """A mapping of one TCP port on the loopback to the port after it."""
    target = {"address": "127.0.0.1", "port": port + 1}
    here = {"id": name or f"m{port}", "protocol": "tcp", "host_ips": ["127.0.0.1"], "first": port, "last": port}
    return {**here, "targets": [target], **fields}


class Service:
    """A service in a node; its control socket is reached from outside, its ports from inside."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.path = str(folder / "portfwd.sock")
        self.state = str(folder / "state")
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.at_rest = 0  # its open descriptors without mappings and clients
        self.seen: list[int] = []  # counts of its open descriptors

    def rests(self) -> bool:
        """Whether the count has been the same for a while: it is at_rest then."""
        self.seen.append(self.descriptors())
        self.at_rest = self.seen[-1]
        return self.seen[-9:] == [self.at_rest] * 9

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid()}/fd"))

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

    def ask_pid(self) -> int:
        """As the service itself sees it."""
        about = self.ask("stats")["service"]
        assert isinstance(about, dict)
        return int(about["pid"])

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


def control_clients(path: str) -> int:
    """How many connections the control socket has; inside the node. An accepted socket has the listener's path, proc_net(5)."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return sum(line[-1] == path and line[5] == "03" for line in lines)


@pytest.fixture(scope="module")
def shared(lan: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(lan["host"], tmp_path_factory.mktemp("service"))
    service.start()
    assert until(lambda: not lan["host"].python(control_clients, service.path))  # the first one has been seen to leave
    assert until(service.rests)
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
        with contextlib.suppress(BrokenPipeError):
            peer.sendall(b'{"verb": "list"}\n')
        return peer.recv(1000)


def test_another_user_is_refused_twice(lan: Lab) -> None:
    """By the modes of the folder and the socket, and, whatever those have become, by the credentials."""
    with tempfile.TemporaryDirectory() as name:  # where others could reach it: pytest's folders are closed
        service = Service(lan["host"], Path(name))
        service.start()
        try:
            with pytest.raises(PermissionError):
                lan["host"].python(ask_as_nobody, service.path)
            os.chmod(name, 0o755)
            with pytest.raises(PermissionError):
                lan["host"].python(ask_as_nobody, service.path)
            os.chmod(service.path, 0o666)
            answer = json.loads(lan["host"].python(ask_as_nobody, service.path))
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
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(peer, [line[:1] or b" "], [null.fileno()] * descriptors)
            peer.sendall(line[1:] + (b"\n" if ended else b""))
        if ended and b"\n" not in line:
            assert isinstance(json.loads(peer.recv(1 << 16).split(b"\n")[0])["ok"], bool)
    assert service.answers()
    service.clear()
    assert until(lambda: service.descriptors() == service.at_rest)


# Beginning and ending


def test_a_second_service_is_refused_and_the_first_serves_on(service: Service) -> None:
    done = service.node.run([PORTFWD, "serve", "--socket", service.path, "--state", service.state])
    assert done.returncode == 1
    assert "is running already (pid " in done.stderr
    assert "--take-over replaces it without losing a connection" in done.stderr
    assert service.answers()


def test_ready_means_that_all_ports_listen(idle: Service) -> None:
    idle.start()
    idle.publish(raw(8080), raw(8090))
    idle.end()
    options = ["--socket", idle.path, "--state", idle.state, "--ready-fd", "1"]
    with open(idle.log, "ab") as log:
        idle.process = idle.node.popen([PORTFWD, "serve", *options], stdout=subprocess.PIPE, stderr=log)
    stdout = idle.process.stdout
    assert stdout is not None
    with stdout:
        assert stdout.readline() == b"\n"
    assert listens(idle.node, 8080)
    assert listens(idle.node, 8090)


def test_a_killed_service_publishes_everything_again_but_what_cannot_be_which_waits(idle: Service) -> None:
    idle.start()
    idle.publish(raw(8080), raw(8090), raw(8100))
    assert idle.end(signal.SIGKILL) != 0
    assert os.path.exists(idle.path)  # stale, and replaced
    damaged = Path(idle.state, "mappings", "bad.json")
    damaged.write_text("{")
    with holding(idle.node, 8090):
        idle.start()
        assert idle.names() == idle.on_disk()[1:] == ["m8080", "m8090", "m8100"]
        states = {str(one["id"]): one["state"] for one in idle.listing()}
        assert "port 8090/tcp" in str(states["m8090"])
        assert listens(idle.node, 8080)
        assert listens(idle.node, 8100)
        with pytest.raises(Usage, match="waits to be published"):
            idle.publish(raw(8090, owner=f"attachment {HEX}"))
        assert idle.ask("remove", ids=["m8090"])["ids"] == ["m8090"]
    assert idle.on_disk() == ["bad", "m8080", "m8100"]
    assert damaged.read_text() == "{"
    assert "bad.json is damaged" in idle.log.read_text()


def test_what_waits_is_published_once_its_port_is_free(idle: Service) -> None:
    idle.start()
    idle.publish(raw(8080))
    idle.end()
    with holding(idle.node, 8080):
        idle.start()
        assert "cannot be published now" in idle.log.read_text()
    idle.publish(raw(8080))  # asking again does not wait for the next try
    assert listens(idle.node, 8080)
    assert idle.listing()[0]["state"] != {}


def test_mappings_of_containers_and_processes_that_are_gone_are_not_published_again(idle: Service) -> None:
    here, gone = HEX, HEX[::-1]
    Store(idle.state).save(
        [
            Mapping.from_json(raw(8080, owner=f"attachment {here}")),
            Mapping.from_json(raw(8090, owner=f"attachment {gone}")),
            Mapping.from_json(raw(8100, owner="pid 4194303 1")),
            Mapping.from_json(raw(8110)),
        ]
    )
    record = f"/run/cni-py/attachments/{here}"
    idle.node.python(os.makedirs, record)
    try:
        idle.start()
        assert idle.names() == idle.on_disk() == ["m8080", "m8110"]
    finally:
        idle.node.python(os.rmdir, record)


CONNECTED = """
import socket, time
with socket.create_server(("127.0.0.1", 8081)) as server, socket.create_connection(("127.0.0.1", 8080), 10) as client:
    peer, _ = server.accept()
    client.sendall(b"x")
    peer.recv(1)
    print("connected", flush=True)
    began = time.monotonic()
    try:
        client.recv(1)
    except ConnectionResetError:
        pass
    print(time.monotonic() - began)
"""


def test_sigterm_lets_connections_run_for_the_time_of_drain(idle: Service) -> None:
    idle.start("--drain", "1")
    idle.publish(raw(8080))
    with idle.node.popen([sys.executable, "-c", CONNECTED], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"connected\n"
        began = time.monotonic()
        assert idle.end() == 0
        assert time.monotonic() - began > 0.9
        assert float(client.stdout.read()) > 0.9
    assert not os.path.exists(idle.path)
    assert "1 running ones get 1 s" in idle.log.read_text()


def test_a_second_sigterm_ends_it_at_once(idle: Service) -> None:
    idle.start("--drain", "60")
    idle.publish(raw(8080))
    with idle.node.popen([sys.executable, "-c", CONNECTED], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        client.stdout.readline()
        os.kill(idle.pid(), signal.SIGTERM)
        assert until(lambda: "running ones get 60 s" in idle.log.read_text())
        assert idle.end() == 0
        client.stdout.read()


# Replacement


def test_a_reload_answers_when_the_successor_serves(idle: Service) -> None:
    idle.start()
    idle.publish(raw(8080))
    before = idle.pid()
    assert idle.ask("reload")["ok"] is True
    assert until(lambda: not os.path.exists(f"/proc/{before}"))
    assert idle.names() == ["m8080"]
    assert idle.pid() != before
    assert Path(idle.path + ".lock").read_text().strip() == str(idle.ask_pid())
    assert listens(idle.node, 8080)


def test_sighup_is_a_reload(idle: Service) -> None:
    idle.start()
    before = idle.pid()
    os.kill(before, signal.SIGHUP)
    assert until(lambda: not os.path.exists(f"/proc/{before}"))
    assert idle.answers()


def test_a_successor_that_cannot_start_costs_nothing(
    idle: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk now is broken, by an upgrade for instance."""
    program = tmp_path / "portfwd"
    shutil.copy2(PORTFWD, program)
    monkeypatch.setitem(globals(), "PORTFWD", str(program))
    idle.start()
    idle.publish(raw(8080))
    pid = idle.pid()
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(PortfwdError, match="did not take over"):
        idle.ask("reload")
    assert idle.pid() == pid
    assert listens(idle.node, 8080)
    assert "serving on" in idle.log.read_text()


def test_to_take_over_from_nobody_is_to_start(idle: Service) -> None:
    idle.start("--take-over")
    assert idle.names() == []


# systemd


class Manager:
    """Hears what a service tells its manager."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(WAIT_S)
        self.socket.bind(address)

    def hear(self) -> list[str]:
        return self.socket.recv(4096).decode().split("\n")

    def hear_until(self, word: str) -> list[str]:
        while True:
            words = self.hear()
            if word in words:
                return words


def test_systemd_hears_of_beginning_living_reloading_and_ending(idle: Service, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with manager.socket:
        idle.start(env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"})
        ready = manager.hear()
        assert ready[0] == "READY=1"
        manager.hear_until("WATCHDOG=1")
        idle.ask("reload")
        manager.hear_until("RELOADING=1")
        assert manager.hear_until("READY=1")[0].startswith("MAINPID=")
        again = manager.hear_until("READY=1")
        assert again[1] != ready[1]  # the successor's own pid
        manager.hear_until("WATCHDOG=1")
        idle.end()
        manager.hear_until("STOPPING=1")


def test_the_managers_socket_may_be_an_abstract_one(idle: Service, tmp_path: Path) -> None:
    name = f"portfwd-test-{os.getpid()}"
    heard = tmp_path / "heard"
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); "
        f"s.bind('\\0{name}'); s.settimeout(10); print('.', flush=True); open({str(heard)!r}, 'wb').write(s.recv(4096))"
    )
    listener = idle.node.popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert listener.stdout is not None
        listener.stdout.read(1)
        idle.start(env={"NOTIFY_SOCKET": f"@{name}"})
        listener.wait(WAIT_S)
        assert heard.read_text().startswith("READY=1")
    finally:
        listener.kill()
        listener.communicate()


ACTIVATE = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_the_control_socket_may_come_from_systemd_which_keeps_it(idle: Service) -> None:
    idle.start(command=(sys.executable, "-c", ACTIVATE, idle.path))
    idle.publish(raw(8080))
    assert idle.ask("reload")["ok"] is True
    assert idle.names() == ["m8080"]
    idle.end()
    assert os.path.exists(idle.path)


@pytest.mark.parametrize("unit", ["portfwd.service", "portfwd.socket"])
def test_systemd_finds_no_fault_in_the_units(unit: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        unavailable("systemd-analyze is missing")
    for name in ("portfwd.service", "portfwd.socket"):
        (tmp_path / name).write_text((UNITS / name).read_text().replace("/usr/local/bin/portfwd", PORTFWD))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "portfwd" in line]
    assert not ours


def publish_by_retrying(state: str) -> list[list[str]]:
    """What is published and what waits: at the start, while the port is somebody's, and when it is free."""
    poller = Poller()
    loop = asyncio.SelectorEventLoop(poller)
    places = Places()
    relay = Relay(poller, places)
    registry = Registry(loop, relay, Store(state), Descriptors())
    found = []
    try:
        with socket.create_server(("127.0.0.1", 8090)):
            registry.restore()
            found.append([*relay.mappings, *registry.waiting])
            registry.retry()
            found.append(list(registry.waiting))
        registry.retry()
        found.append([*relay.mappings])
        found.append(list(registry.waiting))
    finally:
        registry.owners.close()
        relay.close()
        places.close()
        loop.close()
    return found


def test_what_waits_is_tried_again(lan: Lab, tmp_path: Path) -> None:
    Store(str(tmp_path)).save([Mapping.from_json(raw(8080)), Mapping.from_json(raw(8090))])
    found = lan["host"].python(publish_by_retrying, str(tmp_path))
    assert found == [["m8080", "m8090"], ["m8090"], ["m8080", "m8090"], []]
