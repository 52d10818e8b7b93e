"""A kernel without IPv6: everything works with IPv4 alone, and says so. Here socket(2) refuses AF_INET6, as that kernel does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from runtime import SUBNETS, Plugins, mapping

from portfwd.relay import bind
from tests.portfwd.publisher import PORTFWD, REFUSE, Publisher, serving

WITHOUT = [sys.executable, REFUSE, "ipv6"]
HOST, CLIENT = "198.51.100.1", "198.51.100.7"


@pytest.fixture(scope="module")
def machine() -> Iterator[Lab]:
    with Lab.from_yaml("lan.yaml") as lab:
        for protocol in ("tcp", "udp"):
            lab.serve("client", 80, protocol)
        yield lab


@pytest.fixture(scope="module")
def service(machine: Lab) -> Iterator[Publisher]:
    with serving(machine["host"], prefix=WITHOUT) as publisher:
        yield publisher


def portfwd(service: Publisher, *words: str) -> subprocess.CompletedProcess[str]:
    return service.node.run([*WITHOUT, str(PORTFWD), *words])


def test_what_is_published_on_every_address_is_served_and_listed_for_ipv4(machine: Lab, service: Publisher) -> None:
    done = portfwd(service, "publish", "8080:80", "8080:80/udp", "8081-8082:80-81", "--to", CLIENT, "--name", "web")
    assert done.returncode == 0
    assert "web-1  8080/tcp on 0.0.0.0 to" in done.stdout
    assert "8081-8082/tcp is not published on [::]: this host has no IPv6" in done.stderr
    for port, protocol in ((8080, "tcp"), (8080, "udp"), (8081, "tcp")):
        assert machine.fetch("client", HOST, port, protocol).name == "client"
    assert portfwd(service, "reload").returncode == 0
    assert machine.fetch("client", HOST, 8080).name == "client"
    for words in (["ls"], ["stats", "--prometheus"]):
        assert "::" not in portfwd(service, *words).stdout
    listed = json.loads(portfwd(service, "ls", "--json").stdout)["mappings"]
    assert [one["host_ips"] for one in listed] == [["0.0.0.0"]] * 3
    assert portfwd(service, "rm", "8080", "web-2", "web-3").returncode == 0


def test_what_takes_ipv6_is_refused_in_these_words(service: Publisher) -> None:
    done = portfwd(service, "publish", "[::1]:8080:80", "--to", CLIENT)
    assert (done.returncode, "port 8080/tcp on [::1]: this host has no IPv6" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("command", "where"), [("run", "client"), ("docker-proxy", "client"), ("docker-proxy", "host")]
)
def test_the_others_serve_ipv4(machine: Lab, service: Publisher, command: str, where: str) -> None:
    """docker-proxy through the service of the host, and alone."""
    words = f"{PORTFWD} run 8090:80 --to {CLIENT}"
    if command == "docker-proxy":
        given = f"-host-ip 0.0.0.0 -host-port 8090 -container-ip {CLIENT} -container-port 80"
        words = f"{PORTFWD}-docker-proxy {given} 3>&1"
    run = [*WITHOUT, "sh", "-c", f"exec {words}"]
    with machine[where].popen(run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n" or command == "run"
        assert machine.fetch("client", {"host": HOST, "client": CLIENT}[where], 8090).name == "client"
        process.terminate()


@pytest.mark.ours_alone
def test_plugins_connect_and_publish(
    machine: Lab, service: Publisher, our_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A bridge with portmap, relayed alone: ADD, CHECK and DEL."""
    folder = tmp_path_factory.mktemp("without")
    for name in ("bridge", "portmap", "host-local"):
        wrapper = folder / name
        wrapper.write_text(f'#!/bin/sh\nexec {" ".join(WITHOUT)} {our_bin_dir / name} "$@"\n')
        wrapper.chmod(0o755)
    folder.chmod(0o755)
    plugins = Plugins("ours", folder, ("1.0.0",))
    ipam = {"type": "host-local", "ranges": [[{"subnet": SUBNETS[4]}]]}
    usual = {"cniVersion": "1.0.0", "name": "lab"}
    bridge = {**usual, "type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "ipam": ipam}
    ports = {"portMappings": [mapping(8085, 80)]}
    portmap = {**usual, "type": "portmap", "userlandProxy": "always", "runtimeConfig": ports}
    bridged = plugins.run(machine, "ADD", "bridge", bridge)
    assert bridged.status == 0, bridged.stderr
    result = {"prevResult": bridged.json}
    published = plugins.run(machine, "ADD", "portmap", {**portmap, **result})
    assert (published.status, "8085/tcp is not published on [::]: this host has no IPv6" in published.stderr) == (
        0,
        True,
    )
    server = machine.serve("c1", 80)
    assert machine.fetch("client", HOST, 8085).name == "c1"
    server.stop()
    for verb, chain in (("CHECK", (bridge, portmap)), ("DEL", (portmap, bridge))):
        for conf in chain:
            outcome = plugins.run(machine, verb, str(conf["type"]), {**conf, **result})
            assert outcome.status == 0, f"{verb}: {outcome.stdout}{outcome.stderr}"
    assert service.ask("list")["mappings"] == []


def test_without_an_ipv6_address_nobody_finds_the_wildcard(machine: Lab) -> None:
    """Switched off by sysctl: listening is possible, and would serve as soon as it is switched on again."""
    node = machine["c2"]
    assert node.python(bind.left_out) == ()
    node.run(["sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1"], check=True)
    assert node.python(bind.left_out) == ("::",)
