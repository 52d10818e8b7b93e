"""Mappings on an interface or a host name: their listeners come and go with its addresses."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lab import Lab
from node import Node

from portfwd import follow
from tests.conftest import need_root
from tests.portfwd.publisher import PORTFWD, STATE, Publisher, serving

WAIT_S = 20.0
LINK_LOCAL = "fe80::1%wan0"
# /etc/hosts is the test's own, in a mount namespace of the service's.
HOSTS = "/run/hosts"
OWN_HOSTS = ("unshare", "-m", "sh", "-c", f'touch {HOSTS} && mount --bind {HOSTS} /etc/hosts && exec "$@"', "sh")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        lab.serve("host", 81)
        lab.serve("host", 53, "udp")
        yield lab


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[Publisher]:
    with serving(lab["host"], prefix=OWN_HOSTS) as service:
        yield service


@pytest.fixture
def service(running: Publisher) -> Iterator[Publisher]:
    """One without mappings, on a host without wan0."""
    yield running
    running.ask("remove", ids=[one["id"] for one in running.ask("list")["mappings"]])
    with suppress(Exception):
        running.node.run(["ip", "link", "delete", "wan0"])


def ip(host: Node, *words: str) -> None:
    host.run(["ip", *words], check=True)


def add_wan(host: Node) -> None:
    """An interface whose link-local address is known, with a peer, so that addresses are checked for duplicates."""
    ip(host, "link", "add", "wan0", "type", "veth", "peer", "name", "peer0")
    for name in ("wan0", "peer0"):
        ip(host, "link", "set", name, "addrgenmode", "none", "up")
    ip(host, "address", "add", "fe80::1/64", "dev", "wan0", "nodad")


def on(service: Publisher, name: str = "m8080") -> set[str]:
    """The addresses that a mapping listens on."""
    (found,) = [one for one in service.ask("list")["mappings"] if one["id"] == name]
    return set(found["host_ips"])


def comes_to(service: Publisher, *ips: str, name: str = "m8080") -> bool:
    end = time.monotonic() + WAIT_S
    while on(service, name) != set(ips):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def follow_wan(service: Publisher, **fields: object) -> str:
    return service.publish("", 8080, ("127.0.0.1", 81), host_ips=[], follow="if=wan0", **fields)


def can_connect(host_ip: str, port: int = 8080) -> bool:
    address, _, zone = host_ip.partition("%")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(WAIT_S)
        where = (address, port, 0, socket.if_nametoindex(zone)) if zone else (address, port)
        return client.connect_ex(where) == 0


def test_listeners_come_and_go_with_an_interface_and_its_addresses(service: Publisher) -> None:
    host = service.node
    follow_wan(service)
    assert on(service) == set()
    add_wan(host)
    assert comes_to(service, LINK_LOCAL)
    ip(host, "address", "add", "192.0.2.1/24", "dev", "wan0")
    ip(host, "address", "add", "2001:db8::1/64", "dev", "wan0", "nodad")
    assert comes_to(service, LINK_LOCAL, "192.0.2.1", "2001:db8::1")
    assert all(host.python(can_connect, one) for one in on(service))
    ip(host, "address", "delete", "192.0.2.1/24", "dev", "wan0")
    ip(host, "address", "add", "192.0.2.77/24", "dev", "wan0")
    assert comes_to(service, LINK_LOCAL, "192.0.2.77", "2001:db8::1")
    assert host.python(can_connect, "192.0.2.77")
    ip(host, "link", "set", "wan0", "down")
    ip(host, "link", "set", "wan0", "name", "other0")
    assert comes_to(service)
    assert not host.python(can_connect, "192.0.2.77")
    ip(host, "link", "set", "other0", "name", "wan0")
    assert comes_to(service, "192.0.2.77")


def test_an_ipv6_address_is_listened_on_once_it_is_checked(service: Publisher) -> None:
    host = service.node
    add_wan(host)
    ip(host, "link", "set", "peer0", "down")  # without a carrier the check does not begin
    ip(host, "address", "add", "2001:db8::5/64", "dev", "wan0")
    follow_wan(service)
    assert "2001:db8::5" not in on(service)
    ip(host, "link", "set", "peer0", "up")
    assert comes_to(service, LINK_LOCAL, "2001:db8::5")
    assert host.python(can_connect, "2001:db8::5")


def lose_an_address() -> bytes:
    """What a connection still brings when its address has gone and come again; inside the node."""
    with socket.create_connection(("192.0.2.1", 8080), WAIT_S) as client:
        for word in ("delete", "add"):
            subprocess.run(["ip", "address", word, "192.0.2.1/24", "dev", "wan0"], check=True)
            end = time.monotonic() + WAIT_S
            while word == "delete" and can_connect("192.0.2.1") and time.monotonic() < end:
                time.sleep(0.05)
        client.sendall(b"?")
        return client.recv(1000)


def test_a_connection_outlives_the_listener_it_came_by(service: Publisher) -> None:
    add_wan(service.node)
    ip(service.node, "address", "add", "192.0.2.1/24", "dev", "wan0")
    follow_wan(service)
    assert service.node.python(lose_an_address)


def hold(port: int, host_ip: str) -> str:
    """A program that has a port also of an address that is still to come (IP_FREEBIND)."""
    return (
        f"import socket, sys; s = socket.socket(); s.setsockopt(0, 15, 1); s.bind(('{host_ip}', {port})); s.listen();"
        "print('.', flush=True); sys.stdin.read()"
    )


def test_an_address_whose_port_is_taken_costs_the_others_nothing_and_comes_later(service: Publisher) -> None:
    host = service.node
    add_wan(host)
    follow_wan(service)
    pipe = subprocess.PIPE
    holder = host.popen([sys.executable, "-c", hold(8080, "192.0.2.9")], stdin=pipe, stdout=pipe)
    try:
        assert holder.stdout is not None
        holder.stdout.read(1)
        ip(host, "address", "add", "192.0.2.9/24", "dev", "wan0")
        ip(host, "address", "add", "192.0.2.10/24", "dev", "wan0")
        assert comes_to(service, LINK_LOCAL, "192.0.2.10")
        (state,) = [one["state"] for one in service.ask("list")["mappings"]]
        assert list(state["refused"]) == ["192.0.2.9"]
        assert "in use by python" in state["refused"]["192.0.2.9"]
    finally:
        holder.communicate()
    ip(host, "address", "add", "192.0.2.11/24", "dev", "wan0")  # a change: it is tried again
    assert comes_to(service, LINK_LOCAL, "192.0.2.9", "192.0.2.10", "192.0.2.11")


def talk_udp(host_ip: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(WAIT_S)
        client.connect((host_ip, 5353))
        client.send(b"?")
        return client.recv(1000)


def test_udp_follows_too_and_its_flows_end_with_the_address(service: Publisher) -> None:
    host = service.node
    add_wan(host)
    ip(host, "address", "add", "192.0.2.1/24", "dev", "wan0")
    mapping = {"protocol": "udp", "first": 5353, "last": 5353, "follow": "if=wan0"}
    service.publish("", 5353, ("127.0.0.1", 53), host_ips=[], **mapping)
    assert host.python(talk_udp, "192.0.2.1")
    assert service.stats("m5353")["active"] == 1
    ip(host, "address", "add", "192.0.2.2/24", "dev", "wan0")
    ip(host, "address", "delete", "192.0.2.1/24", "dev", "wan0")
    assert comes_to(service, LINK_LOCAL, name="m5353") or comes_to(service, LINK_LOCAL, "192.0.2.2", name="m5353")
    assert service.stats("m5353")["active"] == 0


def test_a_name_is_followed_among_the_addresses_that_the_host_has(service: Publisher) -> None:
    host = service.node
    add_wan(host)
    ip(host, "address", "add", "192.0.2.1/24", "dev", "wan0")
    say(host, "192.0.2.1 db.example", "203.0.113.5 db.example")
    service.publish("", 8080, ("127.0.0.1", 81), host_ips=[], follow="name=db.example")
    assert comes_to(service, "192.0.2.1")
    say(host, "0.0.0.0 db.example")  # what resolvers that block say: it would be every address of the host
    ip(host, "address", "add", "203.0.113.5/24", "dev", "wan0")
    assert comes_to(service)
    say(host, "203.0.113.5 db.example")
    ip(host, "address", "add", "192.0.2.3/24", "dev", "wan0")
    assert comes_to(service, "203.0.113.5")
    say(host)
    ip(host, "address", "add", "192.0.2.4/24", "dev", "wan0")
    time.sleep(0.5)
    assert on(service) == {"203.0.113.5"}  # a name that cannot be resolved keeps what it had
    assert host.python(saved, "m8080") == ["203.0.113.5"]


def say(host: Node, *lines: str) -> None:
    """What the service's /etc/hosts holds."""
    host.python(Path(HOSTS).write_text, "".join(f"{line}\n" for line in lines))


def saved(name: str) -> object:
    return json.loads(Path(f"{STATE}/mappings/{name}.json").read_text())["mapping"]["host_ips"]


def test_following_goes_on_after_a_reload_and_after_a_restart(lab: Lab) -> None:
    host = lab["client"]
    with serving(host) as service:
        add_wan(host)
        follow_wan(service)
        assert on(service) == {LINK_LOCAL}
        assert host.run([str(PORTFWD), "reload"]).returncode == 0
        ip(host, "address", "add", "192.0.2.1/24", "dev", "wan0")
        assert comes_to(service, LINK_LOCAL, "192.0.2.1")
    ip(host, "link", "delete", "wan0")
    with serving(host) as service:
        assert on(service) == set()
        add_wan(host)
        assert comes_to(service, LINK_LOCAL)


def test_the_command_wants_what_it_follows_to_be_there(service: Publisher) -> None:
    host = service.node

    def portfwd(*words: str) -> tuple[int, str]:
        done = host.run([str(PORTFWD), *words])
        return done.returncode, done.stdout + done.stderr

    status, said = portfwd("publish", "wan0:8080:81", "--to", "127.0.0.1")
    assert (status, "there is no interface wan0" in said) == (1, True)
    assert portfwd("publish", "wan0:8080:81", "--to", "127.0.0.1", "--wait", "--name", "web")[0] == 0
    add_wan(host)
    assert comes_to(service, LINK_LOCAL, name="web")
    assert f"web   8080/tcp  wan0: {LINK_LOCAL}  127.0.0.1:81" in portfwd("ls")[1]
    assert portfwd("rm", "wan0:8080") == (0, "web\n")


def test_of_a_name_only_addresses_count_that_are_one_hosts() -> None:
    said = [
        "0.0.0.0",
        "::",
        "::ffff:0.0.0.0",
        "224.0.0.1",
        "ff02::1",
        "fe80::1%lo",
        "192.0.2.1",
        "::ffff:192.0.2.1",
        "::1",
    ]
    assert follow.usable(said) == ["192.0.2.1", "::1"]
