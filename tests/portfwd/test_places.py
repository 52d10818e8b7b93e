"""Sockets in other namespaces: the container's own loopback is reached from the host, by path, pid and container ID."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from lab import Lab
from runtime import Network, Plugins

from portfwd.errors import NotFound, PortfwdError, Usage
from portfwd.mapping import Place
from portfwd.places import UNUSED_S, Places
from tests.conftest import need_root
from tests.portfwd import talk

PORT = 8099
pytestmark = pytest.mark.ours_alone


@pytest.fixture(scope="module")
def network(plugins: Plugins) -> Iterator[Network]:
    """c1 with a server on its own 127.0.0.1 and ::1, connected by our plugins; c2 without a server."""
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        found = Network(lab, plugins)
        found.attach("c1")
        found.attach("c2")
        lab.serve("c1", PORT, address="127.0.0.1")
        lab.serve("c1", PORT, address="::1")
        yield found


def asked(place: Place, address: str) -> str:
    """What answers at an address inside a place; run on the host."""
    places = Places()
    try:
        here = os.stat("/proc/self/ns/net").st_ino
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with places.socket(place, family, socket.SOCK_STREAM) as sock:
            assert not sock.getblocking()
            sock.settimeout(talk.WAIT_S)
            sock.connect((address, PORT))
            sock.sendall(b"who?")
            assert os.stat("/proc/self/ns/net").st_ino == here
            return talk.read_all(sock).decode().rpartition("\r\n\r\n")[2].split()[0]
    finally:
        places.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_loopback_of_a_container_is_reached_by_path_pid_and_id(network: Network, address: str) -> None:
    host, inside = network.lab["host"], network.lab["c1"]
    for place in (Place(path=inside.netns), Place(pid=inside.pid), Place(container="c1")):
        assert host.python(asked, place, address) == "c1"


def refusal(place: Place) -> tuple[str, str]:
    places = Places()
    try:
        places.socket(place, socket.AF_INET, socket.SOCK_STREAM).close()
    except PortfwdError as error:
        return type(error).__name__, str(error)
    finally:
        places.close()
    return "", ""


@pytest.mark.parametrize(
    ("place", "kind", "words"),
    [
        (Place(path="/run/netns/none"), NotFound, "there is no network namespace at /run/netns/none"),
        (Place(path="/etc/hostname"), PortfwdError, "is not a network namespace"),
        (Place(pid=2**22 - 1), NotFound, "there is no network namespace"),
        (Place(container="c"), Usage, "c1, c2"),
        (Place(container="nobody"), NotFound, "nothing is known of it"),
    ],
)
def test_what_cannot_be_entered_is_said(network: Network, place: Place, kind: type[PortfwdError], words: str) -> None:
    found, said = network.lab["host"].python(refusal, place)
    assert found == kind.__name__
    assert words in said


def restarted(path: str, other: str) -> list[int]:
    """The namespaces in which sockets are made while the name of one is given to another; by their cookies."""
    places, found = Places(), []
    link = "/run/place"
    os.symlink(path, link)
    try:
        for now, target in ((10.0, ""), (10.1, other), (20.0, "")):
            if target:
                os.unlink(link)
                os.symlink(target, link)
            places.expire(now)
            with places.socket(Place(path=link), socket.AF_INET, socket.SOCK_STREAM) as sock:
                found.append(int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 71, 8), sys.byteorder))
        places.forget(Place(path=link))
        return found
    finally:
        os.unlink(link)
        places.close()


def test_a_restarted_container_is_found_in_its_new_namespace(network: Network) -> None:
    one, two = network.lab["c1"], network.lab["c2"]
    first, _, last = network.lab["host"].python(restarted, one.netns, two.netns)
    assert first != last


def held_open(path: str) -> list[int]:
    """How many descriptors there are before, with, and a while after the use of a place."""

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    places = Places()
    found = [count()]
    places.expire(0.0)
    places.socket(Place(path=path), socket.AF_INET, socket.SOCK_STREAM).close()
    found.append(count())
    places.expire(UNUSED_S)
    found.append(count())
    return found


def test_a_namespace_is_not_kept_alive_by_one_who_no_longer_uses_it(network: Network) -> None:
    before, during, after = network.lab["host"].python(held_open, network.lab["c1"].netns)
    assert (during, after) == (before + 1, before)


ROOTLESS = """
import os, socket, sys
sys.path[:0] = sys.argv[1:2]
from portfwd.mapping import Place
from portfwd.places import Places
places = Places()
for _ in range(2):  # the second from the process that is inside already
    with places.socket(Place(pid=int(sys.argv[2])), socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", 8099))
        print(sock.recv(100).decode())
places.close()
"""
SERVER = """
import socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
listener = socket.create_server(("127.0.0.1", 8099))
print("ready", flush=True)
while True:
    peer, _ = listener.accept()
    peer.sendall(b"rootless")
    peer.close()
"""


def test_a_rootless_container_is_entered_by_its_owner_without_root() -> None:
    """A network namespace that belongs to a user namespace of an ordinary user, and a service of that same user."""
    need_root()
    import portfwd

    home = os.path.dirname(os.path.dirname(os.path.abspath(portfwd.__file__)))
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "XDG_RUNTIME_DIR": "/nonexistent"}
    container = subprocess.Popen(
        [*user, "unshare", "--user", "--map-root-user", "--net", "--", "/usr/bin/python3", "-I", "-c", SERVER],
        stdout=subprocess.PIPE,
        env=environ,
    )
    try:
        assert container.stdout is not None
        assert container.stdout.readline() == b"ready\n"
        done = subprocess.run(
            [*user, sys.executable, "-I", "-c", ROOTLESS, home, str(container.pid)],
            capture_output=True,
            text=True,
            env=environ,
            timeout=20,
            check=False,
        )
        assert done.stdout.split() == ["rootless"] * 2, done.stderr
    finally:
        container.kill()
        container.communicate()
