"""What a stranger writes for portmap (a pod's annotation, a host address): ADD says what is wrong, DEL works all the same."""

from __future__ import annotations

import json
import time

import pytest
from lab import Lab
from runtime import Network, Outcome, Plugins, mapping

pytestmark = pytest.mark.ours_alone

POD_ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
ANNOTATION = "cni-py/ports"
WEB = mapping(8080, 80)
SOON_S = 20.0  # the quadratic way took a minute for a tenth of it


class Pod(Network):
    """A network whose portmap is given a pod's annotation."""

    def call(self, verb: str, runtime: dict[str, object], **fields: object) -> Outcome:
        self.ports["c1"] = []
        conf = {**self.portmap("c1"), "prevResult": self.results["c1"], "runtimeConfig": runtime, **fields}
        return self.plugins.run(self.lab, verb, "portmap", conf, "c1")


@pytest.fixture(scope="module")
def pod(shared_lab: Lab, plugins: Plugins) -> Pod:
    """The same for all tests: each takes back what it publishes."""
    network = Pod(shared_lab, plugins)
    network.attach("c1")
    return network


def annotated(text: object) -> dict[str, object]:
    return {"portMappings": [WEB], POD_ANNOTATIONS: {ANNOTATION: text}}


def networks(number: int) -> list[str]:
    return [f"10.{index >> 8}.{index & 255}.0/24" for index in range(number)]


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[" * 100_000,
        json.dumps({"8080/tcp": {"allow": networks(10_000)}}),
        json.dumps({f"{port}/udp": {} for port in range(1, 5000)}),
        " " * 1_000_000,
        [],
    ],
    ids=["no JSON", "deep", "many networks", "many ports", "long", "no text"],
)
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_an_annotation_that_cannot_be_meant_fails_add_and_no_del(pod: Pod, text: object, backend: str) -> None:
    began = time.monotonic()
    refused = pod.call("ADD", annotated(text), backend=backend)
    assert refused.code == 7, refused.stdout
    assert ANNOTATION in refused.json["msg"]
    assert len(refused.stdout) < 2000
    for _ in range(2):
        assert pod.call("DEL", annotated(text), backend=backend).status == 0
    assert time.monotonic() - began < SOON_S


def test_an_annotation_that_changes_for_the_worse_keeps_no_port(pod: Pod) -> None:
    assert pod.call("ADD", annotated(json.dumps({"8080/tcp": {"allow": ["0.0.0.0/0"]}}))).status == 0
    assert pod.call("DEL", annotated("{")).status == 0
    assert "8080" not in pod.lab["host"].run(["nft", "list", "ruleset"], check=True).stdout


def test_as_many_networks_as_are_possible_are_served_in_time(pod: Pod) -> None:
    ports = {f"{8000 + number}/tcp": {"allow": networks(1000 - number)} for number in range(15)}
    runtime = {**annotated(json.dumps(ports)), "portMappings": [mapping(8000 + number, 80) for number in range(15)]}
    began = time.monotonic()
    for verb in ("ADD", "CHECK", "DEL"):
        outcome = pod.call(verb, runtime)
        assert outcome.status == 0, outcome.stdout
    assert time.monotonic() - began < SOON_S


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("use", ["auto", "never", "always"])
@pytest.mark.parametrize(
    "text", ["localhost", "[::1]", "192.0.2.1/24", "192.0.2.1 ", "0192.0.2.1", "fe80::1%eth0", "*"]
)
def test_a_host_ip_that_is_no_address_fails_add_and_no_del(pod: Pod, text: str, use: str, backend: str) -> None:
    runtime: dict[str, object] = {"portMappings": [{**WEB, "hostIP": text}]}
    keys = {"userlandProxy": use, "backend": backend}
    refused = pod.call("ADD", runtime, **keys)
    assert refused.code == 7
    assert repr(text) in refused.json["msg"]
    assert pod.call("DEL", runtime, **keys).status == 0


@pytest.mark.parametrize(
    "entry",
    [
        {"hostPort": "8080", "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8080, "containerPort": 99999, "protocol": "tcp"},
        {"hostPort": 0, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8080.5, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 1 << 70, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8080, "containerPort": 80, "protocol": "icmp"},
        {"hostPort": 8080, "containerPort": 80, "protocol": 6},
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": 7},
        "8080:80",
    ],
)
def test_a_mapping_that_cannot_be_meant_fails_add_and_no_del(pod: Pod, entry: object) -> None:
    assert pod.call("ADD", {"portMappings": [entry]}).status == 1
    assert pod.call("DEL", {"portMappings": [entry]}).status == 0


@pytest.mark.parametrize("runtime", [None, [], 7, {"portMappings": {}}, {"portMappings": "x"}, {POD_ANNOTATIONS: 7}])
def test_a_runtime_config_of_another_type_fails_no_del(pod: Pod, runtime: object) -> None:
    conf = {**pod.portmap("c1"), "runtimeConfig": runtime, "prevResult": {"ips": 7}, "backend": "x", "snat": "no"}
    assert pod.plugins.run(pod.lab, "DEL", "portmap", conf, "c1").status == 0


@pytest.mark.parametrize("use", ["auto", "never"])
def test_what_nat_cannot_serve_is_said(pod: Pod, use: str) -> None:
    """ADD succeeds as with the reference, but not in silence. Where NAT serves it, nothing is said."""
    outcome = pod.call("ADD", {"portMappings": [{**WEB, "hostIP": "::1"}]}, userlandProxy=use)
    assert outcome.status == 0
    assert "not published" in outcome.stderr
    assert "8080/tcp on ::1" in outcome.stderr
    for host_ip in ("", "0.0.0.0", "::", "127.0.0.1"):
        assert pod.call("ADD", {"portMappings": [{**WEB, "hostIP": host_ip}]}, userlandProxy=use).stderr == ""
    assert pod.call("DEL", {"portMappings": [WEB]}).status == 0
