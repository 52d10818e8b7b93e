"""What is published on 127.0.0.1 and ::1 answers this host alone, also where route_localnet lets the LAN in."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest
from lab import Lab

from portfwd.relay import host_only
from tests.portfwd.publisher import REFUSE, STATE, Publisher, serving
from tests.portfwd.stage import Stage, mapping_of

HOST, CLIENT = "198.51.100.1", "198.51.100.7"
FIRST, LAST = 20000, 20099  # enough for a range that one socket serves
QUIET_S = 0.3
both = pytest.mark.parametrize("protocol", ["tcp", "udp"])


@pytest.fixture(scope="module")
def machine() -> Iterator[Lab]:
    """A neighbour that sends what is for 127/8 and ::1 to the host, which lets it in."""
    with Lab.from_yaml("lan.yaml") as lab:
        host, client = lab["host"], lab["client"]
        host.run(["sysctl", "-w", "net.ipv4.conf.lan0.route_localnet=1"], check=True)
        client.run(["sysctl", "-w", "net.ipv4.conf.eth0.route_localnet=1"], check=True)
        client.run(["ip", "link", "set", "lo", "down"], check=True)
        client.run(["ip", "route", "flush", "table", "local"], check=True)
        client.run(["ip", "route", "add", "local", CLIENT, "dev", "eth0", "table", "local"], check=True)
        client.run(["ip", "route", "add", "127.0.0.0/8", "via", HOST], check=True)
        client.run(["ip", "-6", "route", "add", "::1", "via", "2001:db8:1::1", "dev", "eth0"], check=True)
        for protocol in ("tcp", "udp"):
            lab.serve("host", 18080, protocol, address="127.0.0.1")
        yield lab


@pytest.fixture(scope="module", params=["", "device"], ids=["the kernel drops it", "clients are asked"])
def service(request: pytest.FixtureRequest, machine: Lab) -> Iterator[Publisher]:
    prefix = [sys.executable, REFUSE, request.param] if request.param else []
    with serving(machine["host"], "--state", f"{STATE}-{request.param}", prefix=prefix) as publisher:
        for protocol in ("tcp", "udp"):
            for first, last in ((8080, 8080), (FIRST, LAST)):
                for ip in ("127.0.0.1", "127.0.0.9", "::1", HOST):
                    mapping = {
                        "id": f"{protocol}-{first}-{ip}".replace(":", "-"),
                        "protocol": protocol,
                        "host_ips": [ip],
                    }
                    target = {"address": "127.0.0.1", "port": 18080}
                    fields = {"first": first, "last": last, "targets": [target]}
                    publisher.publish(ip, first, **mapping, **fields)
        yield publisher


@both
@pytest.mark.parametrize("port", [8080, FIRST])
def test_what_is_published_on_the_loopback_answers_this_host_alone(
    machine: Lab, service: Publisher, protocol: str, port: int
) -> None:
    for ip, source in (("127.0.0.1", ""), ("127.0.0.1", HOST), ("127.0.0.9", "127.0.0.5"), ("::1", "2001:db8:1::1")):
        assert machine.fetch("host", ip, port, protocol, source=source).name == "host"
    assert machine.fetch("client", HOST, port, protocol, source=CLIENT).name == "host"
    for ip, source in (("127.0.0.1", CLIENT), ("127.0.0.9", CLIENT), ("::1", "2001:db8:1::7")):
        with pytest.raises((ConnectionError, TimeoutError)):
            machine.fetch("client", ip, port, protocol, source=source, timeout_s=QUIET_S)


def kept(protocol: str, ip: str) -> bool:
    """Whether a socket that somebody else bound, as dockerd does, is kept to this host."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with Stage() as stage, socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, kind) as given:
        given.bind((ip, 8081))
        held = given.dup()
        targets = [{"address": HOST, "port": 80}]
        stage.relay.publish(
            mapping_of(protocol=protocol, host_ips=[ip], first=8081, last=8081, targets=targets), [given.dup()]
        )
        with held:
            return host_only.is_kept(held)


@both
def test_a_socket_of_somebody_else_is_kept_to_this_host_too(machine: Lab, protocol: str) -> None:
    found = {
        ip: machine["host"].python(kept, protocol, ip) for ip in ("127.0.0.1", "127.7.7.7", "0.0.0.0", "::1", HOST)
    }
    assert {ip for ip, is_kept in found.items() if is_kept} == {"127.0.0.1", "127.7.7.7"}
