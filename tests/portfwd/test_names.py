"""`portfwd publish` into containers by their names, and into what is not there: the service and the command in a lab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

import pytest
from lab import Lab
from runtime import Network, Plugins

from portfwd.netns import containers as runtimes
from tests.portfwd.publisher import PORTFWD, Publisher

ID = "3f4e" * 16
OTHER = "77aa" * 16
DOCKER = """\
import json, os, socket, sys
answers = json.loads(sys.argv[2])
one = socket.socket(socket.AF_UNIX)
one.bind(sys.argv[1])
one.listen()
print("ready", flush=True)
while True:
    peer, _ = one.accept()
    line = peer.makefile("rb").readline().decode().split()
    if line[1].endswith("/silent/json"):
        silent = peer  # no answer, and no end
        continue
    found = answers.get(line[1])
    body = json.dumps(found if found is not None else {"message": "No such container"}).encode()
    head = b"HTTP/1.0 200 OK" if found is not None else b"HTTP/1.0 404 Not Found"
    peer.sendall(head + b"\\r\\nContent-Type: application/json\\r\\n\\r\\n" + body)
    peer.close()
"""


@pytest.fixture
def service(lab: Lab) -> Iterator[Publisher]:
    publisher = Publisher(lab["host"])
    yield publisher
    publisher.end()


def portfwd(lab: Lab, *words: str) -> CompletedProcess[str]:
    return lab["host"].run([str(PORTFWD), *words])


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


@contextmanager
def docker(lab: Lab, *containers: tuple[str, str, str, int]) -> Iterator[None]:
    """A daemon that knows containers: name, ID, path of the namespace, pid."""
    answers: dict[str, object] = {}
    for name, container_id, netns, pid in containers:
        known = {"Id": container_id, "State": {"Pid": pid}, "NetworkSettings": {"SandboxKey": netns}}
        answers |= {f"/containers/{key}/json": known for key in (name, container_id)}
    command = [sys.executable, "-c", DOCKER, "/run/docker.sock", json.dumps(answers)]
    process = lab["host"].popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.communicate()
        lab["host"].python(os.unlink, "/run/docker.sock")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (("--container", "nosuch"), "container nosuch: nothing is known of it"),
        (("--netns", "nosuch"), "/run/netns/nosuch: there is no network namespace at /run/netns/nosuch"),
        (("--pid", "4194000"), "pid 4194000"),
        (("--netns", "/etc/hostname"), "/etc/hostname"),
    ],
)
def test_what_is_not_there_is_refused_unless_it_may_come_later(
    lab: Lab, service: Publisher, where: tuple[str, str], said: str
) -> None:
    refused = portfwd(lab, "publish", "8080:80", *where)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert said in refused.stderr
    assert refused.stderr.endswith("--wait publishes anyway\n")
    assert service.ask("list")["mappings"] == []
    accepted = portfwd(lab, "publish", "8080:80", *where, "--wait")
    assert accepted.returncode == 0
    assert "clients are reset until it can be entered" in accepted.stderr
    assert len(service.ask("list")["mappings"]) == 1
    replaced = portfwd(lab, "publish", "--replace", "8080:80", *where)
    assert replaced.returncode == 1


def test_a_namespace_that_comes_later_is_served(lab: Lab, service: Publisher) -> None:
    assert portfwd(lab, "publish", "127.0.0.1:8080:80", "--netns", "later", "--wait").returncode == 0
    lab.add_container("later")
    lab.serve("later", 80, address="127.0.0.1")
    assert lab.fetch("host", "127.0.0.1", 8080).name == "later"


def test_all_or_nothing(lab: Lab, service: Publisher) -> None:
    assert portfwd(lab, "publish", "8080:80", "8081-8082:81-82", "--netns", "nosuch").returncode == 1
    assert service.ask("list")["mappings"] == []


def test_who_does_not_ask_for_it_is_served_as_ever(service: Publisher) -> None:
    """portmap and portfwd-docker-proxy name no namespace, and programs of an older version know no such field."""
    target = {"address": "127.0.0.1", "port": 80, "path": "/run/netns/nosuch"}
    mapping = {"id": "old", "protocol": "tcp", "host_ips": ["127.0.0.1"], "first": 8080, "last": 8080}
    answer = service.ask("publish", mappings=[{**mapping, "targets": [target]}])
    assert answer["ok"] is True
    assert [note for note in answer["notes"] if "clients are reset until it can be entered" in note]


def test_a_name_of_nerdctl_s_leads_to_the_container(lab: Lab, our_bin_dir: Path, service: Publisher) -> None:
    network = Network(lab, Plugins("ours", our_bin_dir, ("1.0.0",)))
    full = f"k8s-io-{ID}"
    lab.add_container(full)
    lab["host"].run(["ip", "netns", "list"])
    network.attach(full)
    lab.serve(full, 80, address="127.0.0.1")
    lab["host"].python(write, "/var/lib/nerdctl/1935db59/names/k8s-io/web", ID)
    lab["host"].python(write, "/var/lib/nerdctl/1935db59/names/k8s-io/broken", "../../etc/passwd\n")
    done = portfwd(lab, "publish", "127.0.0.1:8080:80", "--container", "web")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f" in container {full}\n")
    assert lab.fetch("host", "127.0.0.1", 8080).name == full
    short = portfwd(lab, "publish", "127.0.0.1:8081:80", "--container", ID[:12])
    assert short.returncode == 0, short.stderr
    assert lab.fetch("host", "127.0.0.1", 8081).name == full
    for unknown in ("broken", "../k8s-io/web", "*"):
        assert portfwd(lab, "publish", "127.0.0.1:8082:80", "--container", unknown).returncode == 1


def test_a_name_of_docker_s_leads_to_the_container_and_follows_it(lab: Lab, service: Publisher) -> None:
    for name in ("c1", "c2"):
        lab.serve(name, 80, address="127.0.0.1")
    with docker(lab, ("web", ID, "/run/netns/c1", 0), ("other", OTHER, "", 0)):
        done = portfwd(lab, "publish", "127.0.0.1:8080:80", "--container", "web")
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f" in container {ID}\n")
        assert lab.fetch("host", "127.0.0.1", 8080).name == "c1"
        stopped = portfwd(lab, "publish", "127.0.0.1:8081:80", "--container", "other")  # it has no namespace
        assert (stopped.returncode, "nothing is known of it" in stopped.stderr) == (1, True)
    pid = lab["c2"].pid
    with docker(lab, ("web", ID, "/run/docker/netns/gone", pid)):  # what is not seen from here is found by the pid
        by_pid = portfwd(lab, "publish", "127.0.0.1:8082:80", "--container", ID)
        assert by_pid.returncode == 0, by_pid.stderr


def test_a_docker_that_does_not_answer_costs_a_moment_once(lab: Lab) -> None:
    with docker(lab):
        waited_s, asked = lab["host"].python(two_questions)
    assert waited_s > 0.9
    assert asked == 1


def two_questions() -> tuple[float, int]:
    """How long the first takes, and how often Docker is asked for both."""
    with mock.patch.object(runtimes, "exchange", side_effect=runtimes.exchange) as exchange:
        begun = time.monotonic()
        assert runtimes.docker("silent") is None
        waited_s = time.monotonic() - begun
        assert runtimes.docker("silent") is None
    return waited_s, exchange.call_count


def test_a_name_that_several_have_is_not_guessed(lab: Lab, service: Publisher) -> None:
    lab["host"].python(write, "/var/lib/nerdctl/1935db59/names/default/web", OTHER)
    with docker(lab, ("web", ID, "/run/netns/c1", 0)):
        done = portfwd(lab, "publish", "8080:80", "--container", "web")
    assert done.returncode == 2
    assert f"container web: several have that name: give an ID: {ID}, default-{OTHER}\n" in done.stderr


def test_podman_is_asked_without_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, asked = tmp_path / "podman", tmp_path / "asked"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {asked}\necho {ID} {os.getpid()} /run/netns/none\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert runtimes.podman("web") == runtimes.Found(ID, f"/proc/{os.getpid()}/ns/net", os.getpid())
    assert asked.read_text().splitlines()[-1] == "web"
    asked.unlink()
    for hostile in ("--help", "a b", "$(id)", "web\n", "", "é"):
        assert runtimes.podman(hostile) is None
        assert runtimes.docker(hostile) is None
        assert runtimes.named(hostile) == []
    assert not asked.exists()
    program.write_text("#!/bin/sh\necho no such container >&2\nexit 125\n")
    assert runtimes.podman("web") is None


def test_a_range_does_not_take_the_port_of_a_program_inside_it(lab: Lab, service: Publisher) -> None:
    """It is steered to a socket that has its first port alone."""
    lab.serve("host", 8050)
    refused = portfwd(lab, "publish", "8000-8099:8000-8099", "--to", "192.0.2.2")
    assert refused.returncode == 4
    assert "port 8050/tcp on 0.0.0.0 is in use by python" in refused.stderr
    assert portfwd(lab, "publish", "8100-8199:8100-8199", "--to", "192.0.2.2").returncode == 0
    assert portfwd(lab, "publish", "127.0.0.2:8000-8099:8000-8099", "--to", "192.0.2.2").returncode == 4


@pytest.mark.parametrize(("value", "expected"), [("", "/run/cni-py"), ("/run/user/7", "/run/user/7/cni-py")])
def test_an_empty_xdg_runtime_dir_is_none(value: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cni_py import files
    from portfwd.service import control, store

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", "/home/seven")
    assert files.run_dir() == expected
    assert control.socket_path() == f"{expected}/portfwd.sock"
    assert store.state_dir() == "/home/seven/.local/state/cni-py/portfwd"
