"""Ports on IPv6 addresses that are still checked for duplicates, were found to be one, are deprecated, or have yet to come."""

from __future__ import annotations

import socket
import subprocess
from contextlib import closing

import pytest
from lab import Lab

from portfwd.errors import PortfwdError
from portfwd.mapping import Mapping
from portfwd.relay import tentative
from portfwd.service.registry import Registry
from portfwd.service.requests import Publish
from portfwd.service.store import Store
from tests.portfwd.stage import started
from tests.portfwd.talk import until

CHECKED, TWICE, OLD, LATE = (f"2001:db8:9::{number}" for number in range(1, 5))
PORT = 8080
WAIT_S = 10.0
CABLE = "ip link add e0 type veth peer name e1 netns c1; sysctl -qw net.ipv6.neigh.e0.retrans_time_ms=100;"
# No carrier: the check does not begin.
UNPLUGGED = f"ip link set e0 up; ip addr add {CHECKED}/64 dev e0; ip addr add {OLD}/64 dev e0 nodad preferred_lft 0"
PLUGGED = f"ip -n c1 link set e1 up; ip -n c1 addr add {TWICE}/64 dev e1 nodad"


def mapping(ip: str, protocol: str = "tcp") -> Mapping:
    raw = {"id": f"{protocol}-{ip[-1]}", "protocol": protocol, "host_ips": [ip], "first": PORT, "last": PORT}
    return Mapping.from_json({**raw, "targets": [{"address": "127.0.0.1", "port": 80}]})


def shell(script: str) -> None:
    subprocess.run(["sh", "-ec", script], check=True, timeout=10)


def published(registry: Registry, *mappings: Mapping) -> list[str]:
    """The notes, or what was wrong."""
    try:
        found = registry.publish(Publish(mappings, replace=False, may_fail=False), 0, [])["notes"]
    except PortfwdError as error:
        return [str(error)]
    assert isinstance(found, list)
    return found


def connects(ip: str) -> bool:
    with socket.socket(socket.AF_INET6) as client:
        return client.connect_ex((ip, PORT)) == 0


def on_such_addresses(state: str) -> dict[str, object]:
    found: dict[str, object] = {}
    shell(CABLE + UNPLUGGED)
    Store(state).save([mapping(CHECKED), mapping(LATE)])  # what was published before this host was started
    with closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as plain, pytest.raises(OSError, match="99"):
        plain.bind((CHECKED, PORT))
    with started(state) as registry:
        found["at the start"] = list(registry.relay.mappings)
        found["waits"] = [one.why for one in registry.waiting.values()]
        found["checked"] = published(registry, mapping(CHECKED, "udp"))
        found["deprecated"] = published(registry, mapping(OLD))
        found["before"] = connects(CHECKED)
        shell(PLUGGED)
        found["in the end"] = until(lambda: connects(CHECKED))
        shell(f"ip addr add {TWICE}/64 dev e0")
        assert until(lambda: tentative.is_duplicate(TWICE))
        found["twice"] = published(registry, mapping(TWICE))
        shell(f"ip addr add {LATE}/64 dev e0 nodad")
        registry.retry()
        found["late"] = until(lambda: connects(LATE))
    return found


def test_a_port_is_open_as_soon_as_its_address_is(machine: Lab) -> None:
    found = machine["host"].python(on_such_addresses, "/run/tentative")
    where = f"cannot listen on port {PORT}/tcp on"
    assert found == {
        "at the start": ["tcp-1"],
        "waits": [f"{where} [{LATE}]: no interface of this host has that address"],
        "checked": [f"{CHECKED} is still checked for duplicates (tentative): clients reach it when that is over"],
        "deprecated": [],
        "before": False,
        "in the end": True,
        "twice": [
            f"{where} [{TWICE}]: an interface of this host has that address, and so has another machine on its link "
            "(duplicate, dadfailed)"
        ],
        "late": True,
    }
