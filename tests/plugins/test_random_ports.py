"""portmap's `randomHostPort: sticky`: which number a mapping with hostPort 0 gets, who is told, and when it comes again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conversation import HOST
from lab import Lab
from runtime import Network, Outcome, Plugins, mapping

from cni_py.attachment.engine import op_from_json
from cni_py.ports import random_ports, sticky_ports
from cni_py.ports.random_ports import RememberPorts

pytestmark = pytest.mark.ours_alone

KEY = "cni-py/portMappings"
HOLD = "import socket, sys; s = socket.create_server(('0.0.0.0', int(sys.argv[1]))); print('.', flush=True); sys.stdin.read()"


class Pods(Network):
    """A network with random host ports, whose containers are pods that have a name."""

    keys: dict[str, object]

    def portmap(self, container_id: str) -> dict[str, object]:
        return {**super().portmap(container_id), "randomHostPort": "sticky", **self.keys}

    def call(
        self, verb: str, container_id: str, *ports: dict[str, object], pod: str = "web", **conf: object
    ) -> Outcome:
        """portmap's part, for a container that the bridge knows."""
        self.ports[container_id] = list(ports)
        whole = {**self.portmap(container_id), "prevResult": self.results[container_id], **conf}
        args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}" if pod else ""
        return self.plugins.run(self.lab, verb, "portmap", whole, container_id, CNI_ARGS=args)

    def number(self, container_id: str, *ports: dict[str, object], **fields: Any) -> int:
        """The host port that an ADD tells for the first mapping."""
        outcome = self.call("ADD", container_id, *ports, **fields)
        assert outcome.status == 0, outcome.stdout
        return int(outcome.json[KEY][0]["hostPort"])


@pytest.fixture(params=["nftables", "iptables"])
def pods(request: pytest.FixtureRequest, lab: Lab, plugins: Plugins) -> Pods:
    network = Pods(lab, plugins)
    network.keys = {"backend": request.param}
    for container_id in ("c1", "c2"):
        network.attach(container_id)
        lab.serve(container_id, 80)
    return network


@contextlib.contextmanager
def held(lab: Lab, port: int) -> Iterator[None]:
    """A program of the host has the port."""
    pipe = subprocess.PIPE
    with lab["host"].popen([sys.executable, "-c", HOLD, str(port)], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        yield
        process.communicate()


def test_a_pod_has_the_same_port_again_while_it_is_free(pods: Pods) -> None:
    lab, ports = pods.lab, (mapping(0, 80), mapping(0, 80, host_ip="127.0.0.1"), mapping(0, 53, "udp"), mapping(81, 81))
    first = pods.call("ADD", "c1", *ports)
    answer = first.json
    told = answer.pop(KEY)
    assert answer == pods.results["c1"]
    port = told[0]["hostPort"]
    assert told == [
        {"hostPort": port, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
        {"hostPort": told[2]["hostPort"], "containerPort": 53, "protocol": "udp"},
        {"hostPort": 81, "containerPort": 81, "protocol": "tcp"},
    ]
    assert lab.fetch("client", HOST[4], port).name == "c1"
    assert lab.fetch("client", HOST[6], port).name == "c1"
    assert pods.call("CHECK", "c1", *ports).status == 0  # libcni's prevResult has no key of ours
    second: dict[str, Any] = {"name": "lab2", "prevResult": pods.results["c2"]}
    assert pods.number("c1", *ports[:1], **second) == port  # another network of the same container
    assert pods.call("DEL", "c1", *ports[:1], **second).status == 0
    assert pods.number("c2", *ports[:1]) != port  # the pod's name, while the other is alive, whose the number stays
    for container_id in ("c1", "c1", "c2"):
        assert pods.call("DEL", container_id, *ports).status == 0
    assert pods.number("c2", *ports) == port
    assert pods.call("DEL", "c2", *ports).status == 0
    assert pods.number("c1", *ports, pod="other") not in (port, 0)
    with pytest.raises(ConnectionRefusedError):
        lab.fetch("client", HOST[4], port)


def test_one_that_is_taken_gives_way_to_another_that_is_remembered(pods: Pods) -> None:
    port = pods.number("c1", mapping(0, 80))
    assert pods.call("DEL", "c1", mapping(0, 80)).status == 0
    with held(pods.lab, port):
        moved = pods.call("ADD", "c2", mapping(0, 80))
    now = moved.json[KEY][0]["hostPort"]
    assert f"gets host port {now} instead of {port}: port {port}/tcp on 0.0.0.0 is in use by python" in moved.stderr
    assert pods.call("DEL", "c2", mapping(0, 80)).status == 0
    assert pods.number("c1", mapping(0, 80)) == now


def test_without_a_name_a_container_keeps_its_own_port(lab: Lab, plugins: Plugins) -> None:
    pods = Pods(lab, plugins)
    pods.keys = {}
    pods.attach("c1")
    port = pods.number("c1", mapping(0, 80), pod="")
    assert pods.call("DEL", "c1", mapping(0, 80), pod="").status == 0
    lab["host"].python(spoil, random_ports.folder())
    assert pods.number("c1", mapping(0, 80), pod="../../x") != port  # what was damaged is written anew
    assert pods.call("DEL", "c1", mapping(0, 80)).status == 0
    runtime = {"portMappings": [mapping(0, 80)], "io.kubernetes.cri.pod-annotations": {"cni-py/sticky": "../x"}}
    refused = pods.call("ADD", "c1", mapping(0, 80), runtimeConfig=runtime)
    assert (refused.json["code"], refused.json["msg"]) == (7, "annotation cni-py/sticky is no name")
    refused = pods.call("ADD", "c1", mapping(0, 80), randomHostPort="refuse")
    assert "Invalid host port number: 0" in refused.json["msg"]


def spoil(folder: str) -> None:
    for path in Path(folder).iterdir():
        path.write_text("{")


def test_names_that_were_used_last_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sticky_ports, "NAMES_MAX", 4)
    monkeypatch.setattr(sticky_ports, "SPARE", 1)
    said: list[str] = []
    memory = sticky_ports.Memory(str(tmp_path / "sticky"), said.append)
    for number, name in enumerate("abcd", 1):
        memory.remember(name, {"80/tcp": number})
        (tmp_path / "sticky" / f"{name}.json").touch()
        os.utime(tmp_path / "sticky" / f"{name}.json", (number, number))
    memory.remember("a", {"80/tcp": 1})
    memory.remember("e", {"80/tcp": 5})
    assert [memory.recall(name) != {} for name in "abcde"] == [True, False, True, True, True]
    for text in ("{", "[]", '{"schema":1,"ports":{"80/tcp":70000}}', '{"schema":2,"ports":{}}'):
        (tmp_path / "sticky" / "a.json").write_text(text)
        assert memory.recall("a") == {}
    assert len(said) == 4
    memory.remember("a", {"80/tcp": 6})
    assert memory.recall("a") == {"80/tcp": 6}
    for hostile in ("", ".", "..", "../a", "a/b", "a\0b", "-a", "a" * 65, "ä"):
        with pytest.raises(ValueError, match="is no name"):
            memory.recall(hostile)


def test_what_a_record_says_of_sticky_ports_is_read_again() -> None:
    op = RememberPorts(sticky="0" * 32, whose="web", ports="80/tcp=40000")
    assert op_from_json(op.to_json()) == op
