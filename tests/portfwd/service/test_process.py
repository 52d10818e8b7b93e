"""`portfwd serve` as a process: how it begins, ends, is killed and replaced."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from portfwd.errors import PortfwdError, Usage
from portfwd.mapping import Mapping
from portfwd.service.store import Store
from tests.portfwd.service import running
from tests.portfwd.service.running import HEX, PORTFWD, Service, holding, listens, raw
from tests.portfwd.talk import until

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
    began = time.monotonic()
    print("connected", flush=True)
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
    idle.await_successor()
    assert idle.names() == ["m8080"]
    assert idle.pid() != before
    assert Path(idle.path + ".lock").read_text().strip() == str(idle.ask_pid())
    assert listens(idle.node, 8080)


def test_sighup_is_a_reload(idle: Service) -> None:
    idle.start()
    before = idle.pid()
    os.kill(before, signal.SIGHUP)
    idle.await_successor()
    assert idle.answers()


def test_a_successor_that_cannot_start_costs_nothing(
    idle: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk now is broken, by an upgrade for instance."""
    program = tmp_path / "portfwd"
    shutil.copy2(PORTFWD, program)
    monkeypatch.setattr(running, "PORTFWD", str(program))
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
