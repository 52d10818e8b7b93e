"""dockerd, unchanged, publishes ports with portfwd-docker-proxy: by itself, and through the portfwd service.

Docker's own rules translate most connections in the kernel, with any proxy; what is left to the proxy is [::1] and
127.0.0.1, containers that ask for a port of their host, and IPv6 in front of a container that has IPv4 alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import image
from tests.clients.containerd_host import (
    CLIENT4,
    CLIENT6,
    HOST4,
    HOST6,
    ContainerdHost,
    Namespaces,
    NoNamespaces,
    wait_for,
)
from tests.clients.docker_host import (
    GATEWAY4,
    GATEWAY6,
    V4ONLY,
    V4ONLY_GATEWAY,
    Container,
    DockerHost,
    ask,
    ask_udp,
    proxy_executable,
)
from tests.lacking import missing

pytestmark = pytest.mark.xdist_group("docker")

ANY4, ANY6 = "0.0.0.0", "::"
WEB, DNS, LEGACY = 8080, 8053, 8081  # ports of the host
PUBLISHED = (f"--publish={WEB}:80", f"--publish={DNS}:53/udp")
REFUSED = "! ConnectionRefusedError"
ALONE, SERVICE = "without the service", "with the service"
WAITER_KB = 32
HOLD = """
import socket, sys
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def docker(debs: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerHost]:
    folder = tmp_path_factory.mktemp("docker")
    (folder / "plugins").mkdir()
    try:
        host = ContainerdHost(debs, folder / "plugins").__enter__()
    except NoNamespaces as error:
        missing(str(error))
    try:
        docker = DockerHost(host, proxy_executable(folder))
        docker.start(archive)
        yield docker
    finally:
        host.close()


@pytest.fixture(scope="module", params=[ALONE, SERVICE])
def way(request: pytest.FixtureRequest, docker: DockerHost) -> Iterator[str]:
    """First each proxy relays by itself; then the service does it for all."""
    if request.param == ALONE:
        yield ALONE
        return
    docker.service.start()
    yield SERVICE
    docker.service.stop()


# (who asks, which address, the source address that the container sees)
PATHS = {
    "LAN client, IPv4": ("client", HOST4, CLIENT4),
    "LAN client, IPv6": ("client", HOST6, CLIENT6),
    "host, own address, IPv4": ("host", HOST4, HOST4),
    "host, own address, IPv6": ("host", HOST6, HOST6),
    "host, 127.0.0.1": ("host", "127.0.0.1", GATEWAY4),
    "host, ::1": ("host", "::1", GATEWAY6),
    "another container, IPv4": ("peer", HOST4, GATEWAY4),
    "another container, IPv6": ("peer", HOST6, GATEWAY6),
    "the container itself, IPv4": ("container", HOST4, GATEWAY4),
}


@pytest.mark.today
def test_every_path_to_a_published_port_works_and_tells_the_source(docker: DockerHost, way: str) -> None:
    with docker.running("web", *PUBLISHED) as web, docker.running("peer") as peer, web.serving_udp(53):
        places = places_of(docker, container=web, peer=peer)
        pages = {path: ask(places[who], address, WEB) for path, (who, address, _) in PATHS.items()}
        datagrams = {path: ask_udp(places[who], address, DNS) for path, (who, address, _) in PATHS.items()}
        assert {"-use-listen-fd" in docker.arguments(pid) for pid in docker.proxies()} == {docker.binds_itself}
    expected = {path: f"web {source}" for path, (_, _, source) in PATHS.items()}
    assert pages == expected
    assert datagrams == expected


def test_our_commands_know_containers_by_name(docker: DockerHost) -> None:
    command = str(Path(sys.executable).with_name("cni-py"))
    with docker.running("web", *PUBLISHED) as web:
        inside = docker.host.run(command, "enter", "web", "--", "ip", "-json", "address", "show", "eth0").stdout
        assert web.ip6 in inside
    assert docker.host.run(command, "enter", "web", "--", "true", check=False).returncode == 3


def places_of(docker: DockerHost, **containers: Container) -> dict[str, Namespaces]:
    return {"host": docker.host, "client": docker.host.client} | {
        name: container.network for name, container in containers.items()
    }


def test_ipv6_reaches_a_container_that_has_ipv4_alone(docker: DockerHost, way: str) -> None:
    with docker.running("legacy", f"--network={V4ONLY}", f"--publish={LEGACY}:80", f"--publish={DNS}:53/udp") as legacy:
        assert not legacy.ip6
        with legacy.serving_udp(53):
            asked = [(docker.host, "::1"), (docker.host, HOST6), (docker.host.client, HOST6)]
            pages = [ask(place, address, LEGACY) for place, address in asked]
            datagrams = [ask_udp(place, address, DNS) for place, address in asked]
    assert pages == datagrams == [f"legacy {V4ONLY_GATEWAY}"] * len(asked)


def test_a_port_of_127_0_0_1_is_the_hosts_alone(docker: DockerHost, way: str) -> None:
    with docker.running("web", f"--publish=127.0.0.1:{WEB}:80"):
        assert ask(docker.host, "127.0.0.1", WEB) == f"web {GATEWAY4}"
        assert ask(docker.host, "::1", WEB) == REFUSED
        assert ask(docker.host.client, HOST4, WEB) == REFUSED


def test_a_port_of_ipv6s_loopback_is_the_hosts_alone(docker: DockerHost, way: str) -> None:
    with docker.running("web", f"--publish=[::1]:{WEB}:80"):
        assert ask(docker.host, "::1", WEB) == f"web {GATEWAY6}"
        assert ask(docker.host, "127.0.0.1", WEB) == REFUSED
        assert ask(docker.host.client, HOST6, WEB) == REFUSED


def test_a_removed_container_leaves_no_port_and_no_process(docker: DockerHost, way: str) -> None:
    with docker.running("web", *PUBLISHED):
        assert len(docker.proxies()) == 4
        if way == SERVICE:
            published = [f"tcp {ANY4} {WEB}", f"tcp {ANY6} {WEB}", f"udp {ANY4} {DNS}", f"udp {ANY6} {DNS}"]
            assert sorted(docker.service.mappings() or []) == sorted(published)
    assert docker.proxies() == []
    for address in ("::1", HOST4):
        assert is_closed(docker.host, address)
    if way == SERVICE:
        assert docker.service.mappings() == []


def is_closed(place: Namespaces, address: str) -> bool:
    """Whether both ports are refused: the service hears of a proxy's end when dockerd does."""

    def refused() -> bool | None:
        return ask(place, address, WEB) == ask_udp(place, address, DNS) == REFUSED or None

    return wait_for(f"the end of both ports on {address}", refused, within_s=2)


@pytest.mark.parametrize("way", [SERVICE], indirect=True)
def test_a_container_that_is_restarted_has_its_ports_again(docker: DockerHost, way: str) -> None:
    with docker.running("web", *PUBLISHED):
        docker.host.run("docker", "restart", "--time=5", "web")
        # docker restart does not wait until the server listens; until then a client is reset
        assert wait_for("the server", lambda: answered(docker.host, "::1")) == f"web {GATEWAY6}"


def answered(host: Namespaces, address: str) -> str | None:
    """Who the web page says it was asked by, when there is one."""
    said = ask(host, address, WEB)
    return None if said == "! ConnectionResetError" else said


def test_a_port_in_use_fails_the_start_and_names_the_holder(docker: DockerHost, way: str) -> None:
    hold = [sys.executable, "-I", "-S", "-c", HOLD, str(WEB)]
    with docker.host.popen(*hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        failed = docker.host.run("docker", "run", "--rm", PUBLISHED[0], image.NAME, "web", "80", check=False)
        holder.communicate()
    assert failed.returncode == 125  # docker run: the daemon itself said no
    if docker.binds_itself:
        assert re.search(rf"failed to bind host port .*0\.0\.0\.0:{WEB}.*: address already in use", failed.stderr)
    else:
        assert f"listen tcp4 0.0.0.0:{WEB}: bind: address already in use" in failed.stderr
        assert "python" in failed.stderr
    assert docker.proxies() == []


def test_sctp_is_refused_in_words(docker: DockerHost, way: str) -> None:
    failed = docker.host.run("docker", "run", "--rm", f"--publish={WEB}:80/sctp", image.NAME, "web", "80", check=False)
    assert failed.returncode == 125
    assert "portfwd does not relay SCTP" in failed.stderr


@pytest.mark.today
@pytest.mark.parametrize("way", [SERVICE], indirect=True)
def test_ranges(docker: DockerHost, way: str) -> None:
    """A row of ports on both sides; and one port in front of which each container gets the next free one of a range."""
    row, free = "--publish=9001-9003:52-54/udp", "--publish=9100-9103:80"
    with docker.running("web", row, free) as web, web.serving_udp(53), docker.running("second", free):
        datagrams = [ask_udp(docker.host, address, 9002) for address in ("::1", "127.0.0.1")]
        pages = [ask(docker.host, address, port) for address in ("::1", "127.0.0.1") for port in (9100, 9101, 9102)]
    assert datagrams == [f"web {GATEWAY6}", f"web {GATEWAY4}"]
    assert [page.split()[0] for page in pages] == ["web", "second", "!"] * 2
    assert docker.service.mappings() == []


@pytest.mark.parametrize("way", [SERVICE], indirect=True)
def test_with_the_service_a_port_costs_a_process_of_a_few_pages(docker: DockerHost, way: str) -> None:
    with docker.running("web", *PUBLISHED, "--publish=9000-9003:9000-9003"):
        proxies = docker.proxies()
        memory = {pid: docker.private_kb(pid) for pid in proxies}
    assert len(proxies) == 2 * (2 + 4)
    assert max(memory.values()) <= WAITER_KB


@pytest.mark.parametrize("way", [SERVICE], indirect=True)
def test_a_service_that_was_killed_has_the_ports_again(docker: DockerHost, way: str) -> None:
    with docker.running("web", *PUBLISHED) as web, web.serving_udp(53):
        docker.service.stop("KILL")
        assert ask(docker.host, "::1", WEB) == REFUSED
        docker.service.start()
        wait_for("the ports", lambda: ask(docker.host, "::1", WEB) == f"web {GATEWAY6}" or None)
        assert ask_udp(docker.host, "::1", DNS) == f"web {GATEWAY6}"
    assert is_closed(docker.host, "::1")
