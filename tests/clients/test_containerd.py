"""containerd, unchanged, runs containers with the plugins: `ctr run --cni` in a throwaway host.

ctr sends no runtimeConfig, so the conflist has it literally; its DEL always comes with an empty CNI_NETNS.
"""

from __future__ import annotations

import contextlib
import ipaddress
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from runtime import Plugins

from tests.clients import image
from tests.clients.containerd_host import (
    CLIENT4,
    CLIENT6,
    COMMAND_S,
    HOST4,
    HOST6,
    ContainerdHost,
    Failed,
    Namespaces,
    wait_for,
)

pytestmark = pytest.mark.xdist_group("containerd")

SUBNET4, GATEWAY4 = "10.88.0.0/24", "10.88.0.1"
SUBNET6, GATEWAY6 = "2001:db8:88::/64", "2001:db8:88::1"
HOST_PORT, CONTAINER_PORT = 8080, 80
LOCALHOST, LOCALHOST6 = "127.0.0.1", "::1"
SETTLE_S = 30.0
DIRECT = "the container's own address"

NETWORK = ("links", "addresses", "routes", "ruleset", "files")  # of a snapshot: what the plugins make


def conflist(**pool: str) -> dict[str, Any]:
    """A dual-stack bridge with a published port; keywords narrow host-local's range of IPv4."""
    ranges = [[{"subnet": SUBNET4, **pool}], [{"subnet": SUBNET6}]]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    mapping = {"hostPort": HOST_PORT, "containerPort": CONTAINER_PORT, "protocol": "tcp"}
    return {
        "cniVersion": "1.0.0",
        "name": "test",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
            },
            {"type": "portmap", "snat": True, "runtimeConfig": {"portMappings": [mapping]}},
        ],
    }


def ctr_run(host: ContainerdHost, name: str) -> subprocess.Popen[str]:
    """Start a container in the foreground of ctr, which then sends the DEL when it ends."""
    place = ["--rm", "--cni", "--cgroup", f"/{host.cgroup}/{name}", image.NAME, name]
    init = ["/init", name, str(CONTAINER_PORT)]
    return host.popen("ctr", "run", *place, *init, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


class Container:
    """A container that answers: ctr's process, its init as seen on the host, its network and addresses."""

    def __init__(self, host: ContainerdHost, name: str, ctr: subprocess.Popen[str]) -> None:
        self.host = host
        self.name = name
        self.ctr = ctr
        self.pid = wait_for(f"the init of {name}", self.find_init)
        self.network = host.inside(self.pid)
        self.addresses = wait_for(f"an answer of {name}", self.find_addresses)

    def find_init(self) -> str | None:
        if self.ctr.poll() is not None:
            raise Failed(f"ctr run: {self.ctr.communicate()[0]}")
        return self.host.pid_of(self.name)

    def find_addresses(self) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface] | None:
        """Return the addresses of eth0 once the published port answers: the ADD is over, and the server is up."""
        self.find_init()
        if self.host.fetch(HOST4, HOST_PORT, timeout_s=1).split()[0] != self.name or not self.host.has_settled():
            return None
        (link,) = self.network.json("ip", "-json", "address", "show", "dev", "eth0")
        found = [entry for entry in link["addr_info"] if entry["scope"] == "global"]
        return [ipaddress.ip_interface(f"{entry['local']}/{entry['prefixlen']}") for entry in found]

    def stop(self, signal: str = "SIGTERM") -> int:
        """Return ctr's exit status, which is the container's."""
        self.host.run("ctr", "task", "kill", "--signal", signal, self.name)
        return self.ctr.wait(COMMAND_S)


@contextlib.contextmanager
def running(host: ContainerdHost, name: str, **pool: str) -> Iterator[Container]:
    """A container that is over, in one way or another, when the block is."""
    host.write_conflist(conflist(**pool))
    with ctr_run(host, name) as ctr:
        try:
            container = Container(host, name, ctr)
            yield container
            if ctr.poll() is None:
                container.stop()
        finally:
            ctr.kill()


def run_to_its_failure(host: ContainerdHost, name: str) -> str:
    """Return what ctr says of a container that is not to start."""
    with ctr_run(host, name) as ctr:
        try:
            said = ctr.communicate(timeout=COMMAND_S)[0]
        finally:
            ctr.kill()
    assert ctr.returncode
    return said


def remove_unstarted(host: ContainerdHost, name: str) -> None:
    """After a failed ADD ctr sends a DEL. Until containerd 2 it cannot delete the task then: its init has been created."""
    if name in host.run("ctr", "container", "list", "--quiet").stdout.split():
        host.run("ctr", "task", "delete", "--force", name)
        host.run("ctr", "container", "delete", name)


Look = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def look(host: ContainerdHost, plugins: Plugins) -> Look:
    """Returns the host's state, with `gone` after the last container.

    The reference leaves its masquerade rules when a DEL has no namespace, and its veth goes when the kernel ends the namespace.
    """

    def look(*, gone: bool = False) -> dict[str, Any]:
        state = host.snapshot()
        if plugins.whose != "ours":
            end = time.monotonic() + SETTLE_S
            while gone and "'veth" in str(state["links"]) and time.monotonic() < end:
                time.sleep(0.05)
                state = host.snapshot()
            state["ruleset"] = [line for line in state["ruleset"] if "dport" in line or "CNI-DN" in line]
        return state

    return look


def settled(look: Look, expected: dict[str, Any]) -> dict[str, Any]:
    """What look() says, once that is as expected or has had its time: when an ADD of the reference fails, its veth stays, and
    goes with the container's namespace, which the kernel ends when it comes to it."""
    end = time.monotonic() + SETTLE_S
    while (found := look()) != expected and time.monotonic() < end:
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def before(host: ContainerdHost, look: Look) -> dict[str, Any]:
    """The host after its first container: what is shared (the bridge, empty tables) has been made."""
    with running(host, "first"):
        pass
    end = time.monotonic() + SETTLE_S
    while "'veth" in str((found := look())["links"]) and time.monotonic() < end:  # see settled()
        time.sleep(0.1)
    return found


def test_a_container_gets_its_addresses_and_default_routes(
    host: ContainerdHost, look: Look, before: dict[str, Any]
) -> None:
    with running(host, "web") as web:
        networks = [str(address.network) for address in web.addresses]
        gateways = [web.network.json("ip", "-json", family, "route", "show", "default") for family in ("-4", "-6")]
    assert networks == [SUBNET4, SUBNET6]
    assert [route[0]["gateway"] for route in gateways] == [GATEWAY4, GATEWAY6]
    assert look(gone=True) == before


# (who asks, which address and port, the source address that the container sees)
PATHS = {
    "host, direct, IPv4": ("host", DIRECT, 4, GATEWAY4),
    "host, direct, IPv6": ("host", DIRECT, 6, GATEWAY6),
    "host, own address, IPv4": ("host", HOST4, 4, HOST4),
    "host, own address, IPv6": ("host", HOST6, 6, HOST6),
    "host, 127.0.0.1": ("host", LOCALHOST, 4, GATEWAY4),
    "LAN client, IPv4": ("client", HOST4, 4, CLIENT4),
    "LAN client, IPv6": ("client", HOST6, 6, CLIENT6),
    "the container itself, IPv4": ("container", HOST4, 4, GATEWAY4),
    "the container itself, IPv6": ("container", HOST6, 6, GATEWAY6),
}


def test_the_page_answers_on_every_path_and_tells_the_client(
    host: ContainerdHost, look: Look, before: dict[str, Any]
) -> None:
    seen = {}
    with running(host, "web") as web:
        places: dict[str, Namespaces] = {"host": host, "client": host.client, "container": web.network}
        own: dict[int, str] = {address.version: str(address.ip) for address in web.addresses}
        for path, (who, address, version, _) in PATHS.items():
            target = (own[version], CONTAINER_PORT) if address == DIRECT else (address, HOST_PORT)
            seen[path] = ask(places[who], *target)
    assert seen == {path: image.Answer("web", peer, own[version]) for path, (_, _, version, peer) in PATHS.items()}
    assert look(gone=True) == before


def ask(place: Namespaces, address: str, port: int) -> image.Answer | str:
    page = place.fetch(address, port)
    return page if page.startswith("!") else image.Answer.parse(page)


@pytest.mark.ours_alone
def test_localhost_in_ipv6_is_refused_at_once(host: ContainerdHost, before: dict[str, Any]) -> None:
    """A rule that matches ::1 turns the refusal into a time-out, which the reference's does."""
    with running(host, "web"):
        assert host.fetch(LOCALHOST6, HOST_PORT) == "! ConnectionRefusedError"


def test_a_killed_container_leaves_nothing(host: ContainerdHost, look: Look, before: dict[str, Any]) -> None:
    with running(host, "web") as web:
        host.run("kill", "-KILL", web.pid)
        assert web.ctr.wait(COMMAND_S) == 128 + 9
    assert look(gone=True) == before


def test_a_port_is_free_again_after_its_container(host: ContainerdHost, look: Look, before: dict[str, Any]) -> None:
    for name in ("web", "again"):
        with running(host, name):
            answer = ask(host.client, HOST4, HOST_PORT)
        assert isinstance(answer, image.Answer)
        assert answer.name == name
    assert host.client.fetch(HOST4, HOST_PORT) == "! ConnectionRefusedError"
    assert look(gone=True) == before


def test_a_full_pool_fails_the_second_container_alone(host: ContainerdHost, look: Look, before: dict[str, Any]) -> None:
    with running(host, "web", rangeStart="10.88.0.50", rangeEnd="10.88.0.50"):
        meanwhile = look()
        said = run_to_its_failure(host, "late")
        remove_unstarted(host, "late")
        assert settled(look, meanwhile) == meanwhile
    assert "10.88.0.50" in said
    assert look(gone=True) == before


@pytest.mark.ours_alone
def test_a_taken_port_fails_the_second_container_alone(
    host: ContainerdHost, look: Look, before: dict[str, Any]
) -> None:
    with running(host, "web") as web:
        meanwhile = look()
        said = run_to_its_failure(host, "late")
        after = look()
        remove_unstarted(host, "late")
        answer = ask(host.client, HOST4, HOST_PORT)
    assert str(HOST_PORT) in said
    assert "default-web" in said  # the holder: ctr's container id is its namespace and the name
    assert {key: after[key] for key in NETWORK} == {key: meanwhile[key] for key in NETWORK}
    assert answer == image.Answer("web", CLIENT4, str(web.addresses[0].ip))
    assert look(gone=True) == before


@pytest.mark.ours_alone
def test_the_first_container_of_a_host_leaves_nothing_of_its_own(before: dict[str, Any]) -> None:
    assert "first" not in str(before)
    assert before["files"] == []
