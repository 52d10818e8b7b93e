"""The command `portfwd`: what it asks of a service, what it prints, how it ends; and `portfwd run` with real traffic."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab

from portfwd.cli import command as cli
from portfwd.cli import options
from portfwd.errors import KINDS, PortInUse, Usage
from portfwd.mapping import Mapping
from tests.portfwd import talk

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "portfwd"]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "COLUMNS": "120",
}
TO = ("--to", "192.0.2.2")


def portfwd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=20, check=False
    )


class Service:
    """Answers requests as the service does, and keeps them; `taken` ports are somebody's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[dict[str, object]] = []
        self.mappings: dict[str, Mapping] = {}
        self.taken: set[int] = set()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            with peer, peer.makefile("rwb") as stream:
                for line in stream:
                    stream.write(json.dumps(self._answer(json.loads(line))).encode() + b"\n")
                    stream.flush()

    def _answer(self, request: dict[str, object]) -> dict[str, object]:
        self.requests.append(request)
        verb = str(request["verb"])
        try:
            return {"ok": True, **getattr(self, f"do_{verb}")(request)}
        except (PortInUse, Usage) as error:
            return {"ok": False, "error": {"kind": error.kind, "msg": error.msg, "details": error.details}}

    def do_publish(self, request: dict[str, object]) -> dict[str, object]:
        raw = request["mappings"]
        assert isinstance(raw, list)
        new = [Mapping.from_json(one) for one in raw]
        for mapping in new:
            if taken := self.taken.intersection(mapping.ports):
                raise PortInUse(f"port {min(taken)}/tcp on 0.0.0.0 is in use by nginx (pid 812)")
            if mapping.id in self.mappings and not request["replace"]:
                raise Usage(f"there is a mapping {mapping.id} already")
        self.mappings |= {mapping.id: mapping for mapping in new}
        return {"ids": [mapping.id for mapping in new], "notes": ["IPv6 is switched off here"]}

    def do_remove(self, request: dict[str, object]) -> dict[str, object]:
        ids = request["ids"]
        assert isinstance(ids, list)
        for name in ids:
            del self.mappings[name]
        return {"ids": ids}

    def do_list(self, _: dict[str, object]) -> dict[str, object]:
        return {"mappings": [mapping.to_json() | {"state": {"active": 1}} for mapping in self.mappings.values()]}

    def do_stats(self, _: dict[str, object]) -> dict[str, object]:
        states = {name: {"active": 1} for name in self.mappings}
        return {"service": {"pid": 812, "version": "0.1.0", "started": 1800000000.0}, "mappings": states}

    def do_reload(self, _: dict[str, object]) -> dict[str, object]:
        return {}

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()

    def portfwd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return portfwd(*arguments, "--socket", str(self.path))

    def ports(self) -> list[str]:
        return [str(mapping) for mapping in self.mappings.values()]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    one = Service(tmp_path / "portfwd.sock")
    try:
        yield one
    finally:
        one.close()


def test_what_was_published_is_printed_and_what_to_know_about_it_noted(service: Service) -> None:
    done = service.portfwd("publish", "8080:80", "--name", "web", "--to", "127.0.0.1")
    assert done.returncode == 0
    assert done.stdout == "web  8080/tcp on 0.0.0.0, [::] to 127.0.0.1:80\n"
    assert done.stderr == (
        "note: 127.0.0.1 sees every client as 127.0.0.1, this host; --proxy-protocol would send it the client's address, "
        "if it understands that\n"
        "note: IPv6 is switched off here\n"
    )


def test_every_option_reaches_the_service(service: Service) -> None:
    done = service.portfwd(
        *(
            "publish",
            "--name",
            "db",
            "-p",
            "[::1]:5432:5432",
            "--container",
            "3f4e",
            "--to",
            "::1",
            "--to",
            "127.0.0.1:1",
        ),
        *(
            "--allow",
            "10.0.0.0/8",
            "--allow",
            "::1/128",
            "--limit",
            "9",
            "--limit-per-client",
            "3",
            "--proxy-protocol",
            "2",
        ),
        *("--balance", "source", "--idle", "60", "--connect-timeout", "0.5", "--json"),
    )
    told = json.loads(done.stdout)["mappings"]
    assert service.requests[-1] == {"verb": "publish", "mappings": told, "replace": False, "must_exist": True}
    assert told == [
        {
            "id": "db",
            "protocol": "tcp",
            "host_ips": ["::1"],
            "first": 5432,
            "last": 5432,
            "targets": [
                {"address": "::1", "port": 5432, "container": "3f4e"},
                {"address": "127.0.0.1", "port": 1, "container": "3f4e"},
            ],
            "balance": "source",
            "allow": ["10.0.0.0/8", "::1/128"],
            "limit": 9,
            "limit_per_client": 3,
            "proxy_protocol": 2,
            "connect_timeout_s": 0.5,
            "idle_s": 60.0,
        }
    ]


def test_specs_stand_before_and_behind_options(service: Service) -> None:
    assert service.portfwd("publish", "80:80", *TO, "81:81", "-p", "82:82").returncode == 0
    assert [mapping.first for mapping in service.mappings.values()] == [80, 81, 82]


def test_a_port_in_use_has_its_exit_status_and_leaves_nothing_published(service: Service) -> None:
    service.taken = {8001}
    done = service.portfwd("publish", "80:80", "8001-8001:80", "8000-8002:80", *TO)
    assert done.returncode == 4
    assert done.stderr == "portfwd publish: port 8001/tcp on 0.0.0.0 is in use by nginx (pid 812)\n"
    service.taken = {8000, 8001, 8002}
    done = service.portfwd("publish", "80:80", "8000-8002:80", *TO)
    assert done.returncode == 4
    assert "found no free port between 8000 and 8002" in done.stderr
    assert service.ports() == []


def test_a_random_port_and_one_of_a_pool_are_found_by_trying(service: Service) -> None:
    service.taken = {8000, 8001}
    done = service.portfwd("publish", "8000-8002:80", "127.0.0.1::81-82", *TO, "--json")
    pooled, *others = json.loads(done.stdout)["mappings"]
    assert pooled["first"] == 8002
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert [one["targets"][0]["port"] for one in others] == [81, 82]
    assert all(low <= one["first"] <= high and one["host_ips"] == ["127.0.0.1"] for one in others)


def test_a_live_mapping_is_replaced_in_one_request(service: Service) -> None:
    service.portfwd("publish", "8080:80", *TO, "--name", "web")
    done = service.portfwd("publish", "--replace", "8080:80", "--to", "192.0.2.9")
    assert done.stdout == "web  8080/tcp on 0.0.0.0, [::] to 192.0.2.9:80\n"
    assert service.requests[-1]["replace"] is True
    assert service.ports() == ["8080/tcp on 0.0.0.0, [::] to 192.0.2.9:80"]


def test_mappings_end_by_name_and_by_ports(service: Service) -> None:
    for name, spec in (("web", "8080:80"), ("dns", "53:53/udp"), ("db", "5432:5432")):
        service.portfwd("publish", spec, *TO, "--name", name)
    done = service.portfwd("rm", "web", "--drain", "2.5", "53/udp")
    assert done.stdout == "web\ndns\n"
    assert service.requests[-1] == {"verb": "remove", "ids": ["web", "dns"], "drain_s": 2.5}
    assert json.loads(service.portfwd("rm", "--all", "--now", "--json").stdout) == {"removed": ["db"]}
    assert service.requests[-1]["drain_s"] == 0.0


def test_nothing_ends_when_one_of_several_is_unknown(service: Service) -> None:
    service.portfwd("publish", "8080:80", *TO, "--name", "web")
    done = service.portfwd("rm", "web", "wep")
    assert (done.returncode, done.stderr) == (1, "portfwd rm: there is no mapping wep: portfwd ls lists them\n")
    assert list(service.mappings) == ["web"]


def test_ls_and_stats_show_what_the_service_says(service: Service) -> None:
    service.portfwd("publish", "8080:80", *TO, "--name", "web")
    assert service.portfwd("ls").stdout.splitlines()[1].split() == [
        *("web", "8080/tcp", "0.0.0.0", "::", "192.0.2.2:80", "1", "-", "-"),
    ]
    listed = json.loads(service.portfwd("ls", "--json").stdout)["mappings"]
    assert listed == [service.mappings["web"].to_json() | {"state": {"active": 1}}]
    assert service.portfwd("stats").stdout.endswith("portfwd 0.1.0, pid 812\n")
    assert json.loads(service.portfwd("stats", "--json").stdout)["mappings"] == {"web": {"active": 1}}
    assert 'portfwd_connections_active{mapping="web"} 1\n' in service.portfwd("stats", "--prometheus").stdout


def test_the_service_is_asked_to_reload(service: Service) -> None:
    assert service.portfwd("reload").returncode == 0
    assert service.requests == [{"verb": "reload"}]


@pytest.mark.parametrize("arguments", [("ls",), ("stats",), ("rm", "web"), ("publish", "80:80", *TO), ("reload",)])
def test_without_a_service_it_is_said_what_is_lacking(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = portfwd(*arguments, "--socket", str(tmp_path / "none.sock"))
    assert done.returncode == 3
    assert done.stderr.startswith(f"portfwd {arguments[0]}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("publish", "80/sctp", *TO), "SCTP: publish it with portmap"),
        (("run", "80/sctp", *TO), "SCTP: publish it with portmap"),
        (("publish", *TO), "a SPEC is missing: "),
        (("rm",), "name the mappings to end"),
        (("rm", "--all", "web"), "name the mappings to end"),
        (("publish", "80:80", *TO, "--limit", "0"), "not a number above 0"),
        (("publish", "80:80", *TO, "--netns", "a", "--pid", "1"), "not allowed with"),
        (("publish", "80:80", *TO, "--proxy-protocol", "3"), "invalid choice"),
        (("rm", "web", "--drain", "nan"), "not a number of seconds"),
        (("publish", "80:80", "--lim", "3"), "portfwd publish: unknown option --lim"),
        (("nix",), "invalid choice"),
        ((), "required"),
    ],
)
def test_what_cannot_be_meant_has_status_2(arguments: tuple[str, ...], sentence: str) -> None:
    done = portfwd(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", sorted(set(cli.COMMANDS) - {"serve"}))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert cli.COMMANDS[command][1:] in told
    assert cli.STATUS in told


def examples() -> list[str]:
    lines = [line for text in cli.EXAMPLES.values() for line in text.splitlines() if line.startswith("  portfwd ")]
    return [line.split("     ")[0].split(" > ")[0].strip() for line in lines]


@pytest.mark.parametrize("line", examples())
def test_every_example_of_the_help_can_be_meant(line: str) -> None:
    chosen = cli.read(line.split()[1:])
    if chosen.command in ("publish", "run"):
        assert options.read(chosen).publishes


def test_a_reader_who_has_had_enough_is_no_error_to_talk_about(service: Service) -> None:
    command = [*COMMAND, "ls", "--socket", str(service.path)]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=20, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_version_is_told() -> None:
    assert portfwd("--version").stdout.startswith("portfwd ")


@pytest.mark.parametrize("where", [("--to", "127.0.0.1"), ("--netns", "later", "--wait")])
def test_what_names_no_namespace_or_waits_for_one_is_asked_for_as_ever(
    service: Service, where: tuple[str, ...]
) -> None:
    """So that a service of an older version understands it."""
    assert service.portfwd("publish", "8080:80", *where).returncode == 0
    assert service.requests[-1].keys() == {"verb", "mappings", "replace"}


def test_every_kind_of_error_has_its_exit_status() -> None:
    assert {kind: error.status for kind, error in KINDS.items()} == {
        **dict.fromkeys(("failed", "not-found"), 1),
        "usage": 2,
        "lacking": 3,
        "in-use": 4,
    }


class Running:
    """`portfwd run` on the lab's host, when it listens."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        self.lab = lab
        self.process = lab["host"].popen(
            [*COMMAND, "run", *arguments], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline().decode()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, complaints = self.process.communicate(timeout=10)
        return self.process.returncode, complaints.decode()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_run_relays_into_a_namespace_and_ends_on_a_signal(lab: Lab) -> None:
    lab.serve("c1", 80, address="127.0.0.1")
    with Running(lab, "[::1]:8080:80", "--netns", "c1", "--name", "web") as running:
        assert running.first == "web  8080/tcp on [::1] to 127.0.0.1:80 in /run/netns/c1\n"
        answer = lab.fetch("host", "::1", 8080)
        assert (answer.name, answer.peer) == ("c1", "127.0.0.1")
        status, told = running.end()
    assert status == 0
    assert told.startswith(
        "note: 127.0.0.1 in /run/netns/c1 sees every client as 127.0.0.1; --proxy-protocol would send"
    )


def test_run_publishes_all_or_nothing_and_names_the_holder(lab: Lab) -> None:
    lab.serve("host", 81)
    with Running(lab, "80:80", "81:81", *TO) as running:
        assert running.first == ""
        _, told = running.process.communicate(timeout=10)
    assert running.process.returncode == 4
    assert told.decode().startswith("portfwd run: port 81/tcp on 0.0.0.0 is in use by python")


def test_run_relays_datagrams(lab: Lab) -> None:
    lab.serve("host", 81, "udp")
    with Running(lab, "127.0.0.1:5353:81/udp", "--to", "127.0.0.1") as running:
        assert running.first.endswith("  5353/udp on 127.0.0.1 to 127.0.0.1:81\n")
        assert lab.fetch("host", "127.0.0.1", 5353, "udp").name == "host"
        assert running.end()[0] == 0


def test_run_says_that_a_namespace_is_not_there_and_waits_for_it(lab: Lab) -> None:
    with Running(lab, "127.0.0.1:8080:80", "--netns", "later") as running:
        assert running.first.endswith(" in /run/netns/later\n")
        status, told = running.end()
    assert status == 0
    assert "no network namespace at /run/netns/later; clients are reset until it can be entered\n" in told


def test_run_takes_a_random_port_with_the_same_number_for_both_families(lab: Lab) -> None:
    lab.serve("host", 81)
    with Running(lab, "81", "--to", "127.0.0.1", "--json") as running:
        assert running.process.stdout is not None
        lines = [running.first]
        while lines[-1] not in ("}\n", ""):
            lines.append(running.process.stdout.readline().decode())
        (mapping,) = json.loads("".join(lines))["mappings"]
        assert mapping["host_ips"] == ["0.0.0.0", "::"]
        for ip in ("127.0.0.1", "::1"):
            assert lab.fetch("host", ip, mapping["first"]).name == "host"
        assert running.end(signal.SIGINT)[0] == 0


def test_run_lets_connections_end_and_a_second_signal_cuts_them(lab: Lab) -> None:

    def refuses() -> bool:
        try:
            talk.connect().close()
        except ConnectionRefusedError:
            return True
        return False

    def hold(number: int) -> str:
        """Connect, have a signal sent, say what then becomes of a new client and of this one."""
        with talk.listening(81), talk.connect() as old:
            os.kill(number, signal.SIGTERM)
            if not talk.until(refuses):
                return "still listening"
            old.settimeout(0.4)
            try:
                return f"ended: {old.recv(1)!r}"
            except TimeoutError:
                pass
            os.kill(number, signal.SIGTERM)
            old.settimeout(talk.WAIT_S)
            try:
                return f"then {old.recv(1)!r}"
            except ConnectionResetError:
                return "then cut"

    with Running(lab, "127.0.0.1:8080:81", "--to", "127.0.0.1", "--drain", "30") as running:
        assert running.first
        assert lab["host"].python(hold, inside_pid(lab)) == "then cut"
        _, told = running.process.communicate(timeout=10)
    assert running.process.returncode == 0
    assert " running ones get 30 s\n" in told.decode()


def inside_pid(lab: Lab) -> int:
    """The pid of `portfwd run` as the lab sees it."""

    def find() -> int:
        for name in os.listdir("/proc"):
            if name.isdecimal() and b"portfwd\0run\0" in Path(f"/proc/{name}/cmdline").read_bytes():
                return int(name)
        return 0

    return lab["host"].python(find)


def test_a_service_does_what_the_commands_say(lab: Lab) -> None:
    host = lab["host"]

    def portfwd(*arguments: str) -> subprocess.CompletedProcess[str]:
        return host.run([*COMMAND, *arguments], env=ENVIRONMENT)

    lab.serve("c1", 80, address="127.0.0.1")
    lab.serve("host", 81)
    service = host.popen(
        [*COMMAND, "serve", "--ready-fd", "1"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert service.stdout is not None
        assert service.stdout.readline() == b"\n"
        done = portfwd("publish", "[::1]:8080:80", "--netns", "c1", "--name", "web")
        assert done.stdout == "web  8080/tcp on [::1] to 127.0.0.1:80 in /run/netns/c1\n"
        assert lab.fetch("host", "::1", 8080).name == "c1"
        assert portfwd("publish", "--replace", "[::1]:8080:81", "--to", "127.0.0.1").returncode == 0
        assert lab.fetch("host", "::1", 8080).name == "host"
        taken = portfwd("publish", "[::1]:8080:80", "82:81", "--to", "127.0.0.1")
        assert (taken.returncode, "in use by mapping web" in taken.stderr) == (4, True)
        assert [line.split()[0] for line in portfwd("ls").stdout.splitlines()] == ["NAME", "web"]
        assert 'portfwd_connections_total{mapping="web"} 2\n' in portfwd("stats", "--prometheus").stdout
        assert portfwd("rm", "8080/tcp").stdout == "web\n"
        with pytest.raises(ConnectionRefusedError):
            lab.fetch("host", "::1", 8080)
    finally:
        service.kill()
        service.communicate()
