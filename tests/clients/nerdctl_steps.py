"""What the real nerdctl does with our plugins: `make test-nerdctl NERDCTL=/path/to/nerdctl`, not a part of `make test`.

Each step runs with nftables and with `backend: iptables` for the whole host, and leaves nothing of its own. Tests whose names
begin with test_rootless are in nerdctl_rootless.py. test_nerdctl.py replays the same calls where there is no nerdctl.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from tests.clients import fetch_debs, image
from tests.clients.containerd_host import CLIENT4, CLIENT6, HOST4, HOST6, NoNamespaces, wait_for
from tests.clients.docker_host import ask_udp
from tests.clients.nerdctl_real import NerdctlHost, Running, ask
from tests.lacking import missing, need_root, unavailable

LOCAL4, LOCAL6 = "127.0.0.1", "::1"
DUAL, OTHER, INTERNAL, ISOLATED = "six", "foo", "inside", "apart"
SUBNETS = {
    OTHER: ("10.4.1.0/24",),
    DUAL: ("10.4.2.0/24", "2001:db8:4::/64"),
    INTERNAL: ("10.4.3.0/24",),
    ISOLATED: ("10.4.4.0/24",),
}
OPTIONS = {
    DUAL: ["--ipv6"],
    INTERNAL: ["--internal"],
    ISOLATED: ["--opt=com.docker.network.bridge.enable_icc=false"],
}
GATEWAY4, DUAL4, DUAL6 = "10.4.0.1", "10.4.2.1", "2001:db8:4::1"
# A second one on the same cable: nerdctl refuses the subnet of an interface.
LAN, LAN_CLIENT, LAN_LEASED = "203.0.113.0/24", "203.0.113.9", "203.0.113.50"
REFUSED, BLOCKED = "! ConnectionRefusedError", "! TimeoutError"
CNI_PY = str(Path(sys.executable).with_name("cni-py"))

COMPOSE = """\
services:
  web:
    image: cni-py.test/who:1
    command: [web, "80"]
    ports: ["8080:80"]
    networks: [front, back]
  db:
    image: cni-py.test/who:1
    command: [db, "80"]
    networks: [back]
networks:
  front: {}
  back: {}
"""


def on(name: str) -> ParameterSet:
    """One process for the steps that share a host."""
    return pytest.param(name, marks=pytest.mark.xdist_group(f"nerdctl-{name}"))


@pytest.fixture(scope="session")
def nerdctl() -> Path:
    need_root()
    given = os.environ.get("NERDCTL", "")
    if not os.access(given, os.X_OK):
        missing("NERDCTL does not name an executable nerdctl")
    return Path(given).resolve()


@pytest.fixture(scope="module", params=[on("nftables"), on("iptables")])
def host(
    request: pytest.FixtureRequest, nerdctl: Path, of_today: Path, archive: Path, our_bin_dir: Path
) -> Iterator[NerdctlHost]:
    """With the networks of SUBNETS, each of which has had a container: what is shared has been made."""
    try:
        found = NerdctlHost(of_today, our_bin_dir, nerdctl, archive, request.param).__enter__()
    except NoNamespaces as error:
        missing(str(error))
    try:
        for name, subnets in SUBNETS.items():
            words = [*OPTIONS.get(name, []), *(f"--subnet={subnet}" for subnet in subnets)]
            found.nerdctl("network", "create", *words, name)
        with found.running(
            "first", "--publish=8080:80", "--network=bridge", *(f"--network={name}" for name in SUBNETS)
        ):
            found.client.run("ip", "address", "add", f"{LAN_CLIENT}/24", "dev", "eth0")
        yield found
    finally:
        found.close()


@pytest.fixture
def before(host: NerdctlHost) -> dict[str, Any]:
    return host.left()


@pytest.fixture(autouse=True)
def _nothing_is_left(host: NerdctlHost, before: dict[str, Any]) -> Iterator[None]:
    """Once nerdctl has removed the containers and networks of a step."""
    yield
    assert host.change_since(before) == {}


# Ports

# By what is asked for: what `nerdctl port` says, and who answers the LAN client and the host, by IPv4 and IPv6.
NOBODY = (REFUSED,) * 4
NAT4 = (f"web {CLIENT4}", f"web {DUAL4}", REFUSED, REFUSED)
GRAMMAR: dict[str, tuple[str, tuple[str, ...]]] = {
    "8080:80": ("0.0.0.0:8080", NAT4),
    "8080:80/tcp": ("0.0.0.0:8080", NAT4),
    "0.0.0.0:8080:80": ("0.0.0.0:8080", NAT4),
    f"{LOCAL4}:8080:80": ("127.0.0.1:8080", (REFUSED, f"web {DUAL4}", REFUSED, REFUSED)),
    f"{HOST4}:8080:80": ("192.0.2.1:8080", (f"web {CLIENT4}", REFUSED, REFUSED, REFUSED)),
    "[::]:8080:80": (":::8080", (BLOCKED, BLOCKED, f"web {CLIENT6}", REFUSED)),  # nerdctl's reserver listens on 0.0.0.0
    f"[{HOST6}]:8080:80": ("2001:db8:1::1:8080", (REFUSED, REFUSED, f"web {CLIENT6}", REFUSED)),
    "[::1]:8080:80": ("::1:8080", NOBODY),
    "8078-8080:78-80": ("0.0.0.0:8080", NAT4),
    f"{LOCAL4}:8080-8081:80-81": ("127.0.0.1:8080", (REFUSED, f"web {DUAL4}", REFUSED, REFUSED)),
    "8080-8090:80": ("0.0.0.0:8080", NAT4),
}


@pytest.mark.parametrize("asked", GRAMMAR)
def test_run_publish(host: NerdctlHost, asked: str) -> None:
    """The container has both families. nerdctl gives it no route for the answers to clients of IPv6; an administrator may."""
    told, expected = GRAMMAR[asked]
    with host.running("web", f"--network={DUAL}", f"--publish={asked}") as web:
        web.network.run("ip", "-6", "route", "add", "default", "via", DUAL6)
        assert f"80/tcp -> {told}" in host.nerdctl("port", "web").splitlines()
        places = ((host.client, HOST4), (host, LOCAL4), (host.client, HOST6), (host, LOCAL6))
        seen = tuple(ask(place, address, 8080) for place, address in places)
    assert seen == expected


@pytest.mark.parametrize("asked", ["80", ":80", f"{LOCAL4}::80"])
def test_run_publish_without_a_port_of_the_host(host: NerdctlHost, asked: str) -> None:
    with host.running("web", f"--publish={asked}"):
        told = host.nerdctl("port", "web", "80").strip()
        address, _, port = told.rpartition(":")
        seen = ask(host, LOCAL4, int(port))
        far = ask(host.client, HOST4, int(port))
    assert seen == f"web {GATEWAY4}"
    assert far == (REFUSED if address == LOCAL4 else f"web {CLIENT4}")


def test_run_publish_udp(host: NerdctlHost) -> None:
    with host.running("web", "--publish=8053:53/udp") as web, web.serving_udp(53):
        assert host.nerdctl("port", "web").strip() == "53/udp -> 0.0.0.0:8053"
        seen = [ask_udp(host.client, HOST4, 8053), ask_udp(host, LOCAL4, 8053)]
    assert seen == [f"web {CLIENT4}", f"web {GATEWAY4}"]


def test_run_publish_sctp(host: NerdctlHost) -> None:
    """The rule is there; not every kernel has the protocol."""
    with host.running("web", "--publish=8080:80/sctp") as web:
        assert host.nerdctl("port", "web").strip() == "80/sctp -> 0.0.0.0:8080"
        rules = host.run("nft", "list", "ruleset").stdout + host.run("iptables-save").stdout
    assert "sctp . 8080 comment" in rules or "-p sctp -m sctp --dport 8080" in rules, web.ip4


def test_run_publish_several(host: NerdctlHost) -> None:
    """Of two networks at once: each port is published once."""
    words = ["--publish=8080:80", "--publish=127.0.0.1:8081:81", "--network=bridge", f"--network={OTHER}"]
    with host.running("web", *words, ports=("80", "81")) as web:
        seen = [ask(host.client, HOST4, 8080), ask(host.client, HOST4, 8081), ask(host, LOCAL4, 8081)]
        both = [web.addresses(4, "eth0"), web.addresses(4, "eth1")]
    assert seen[:2] == [f"web {CLIENT4}", REFUSED]
    assert seen[2] in (f"web {GATEWAY4}", "web 10.4.1.1")  # the networks are connected at once
    assert [len(addresses) for addresses in both] == [1, 1]


def test_run_publish_a_port_that_is_taken(host: NerdctlHost) -> None:
    with host.running("web", "--publish=8080:80"):
        said = host.refusal("run", "--detach", "--name=late", "--publish=8080:80", image.NAME, "late", "80")
        host.remove("late")
        assert ask(host.client, HOST4, 8080) == f"web {CLIENT4}"
    assert "port is already allocated" in said


def test_run_publish_with_portfwd(host: NerdctlHost) -> None:
    """The service answers where NAT cannot: portmap asks it to."""
    host.service.start()
    try:
        with host.running("web", f"--network={DUAL}", "--publish=[::1]:8080:80", "--publish=8081:80"):
            seen = [ask(host, LOCAL6, 8080), ask(host.client, HOST6, 8080), ask(host.client, HOST4, 8081)]
    finally:
        host.service.stop()
    assert seen == [f"web {DUAL6}", REFUSED, f"web {CLIENT4}"]


# Networks


def test_network_bridge(host: NerdctlHost) -> None:
    """The default, another one, the LAN."""
    with host.running("web") as web, host.running("peer") as peer, host.running("other", f"--network={OTHER}") as other:
        seen = [ask(peer.network, web.ip4, 80), ask(host, web.ip4, 80), ask(other.network, web.ip4, 80)]
        assert web.default_routes() == [GATEWAY4]
        assert web.ip4 in host.nerdctl("exec", "web", "/bin/busybox", "cat", "/etc/hosts")
        assert f"{web.ip4} " in host.nerdctl("exec", "peer", "/bin/busybox", "cat", "/etc/hosts")
    assert seen == [f"web {peer.ip4}", f"web {GATEWAY4}", BLOCKED]


def test_network_ipv6(host: NerdctlHost) -> None:
    asked = "2001:db8:4::77"
    with (
        host.running("web", f"--network={DUAL}", f"--ip6={asked}", "--publish=8080:80") as web,
        host.running("peer", f"--network={DUAL}") as peer,
    ):
        seen = [ask(peer.network, asked, 80), ask(peer.network, web.ip4, 80), ask(host, asked, 80)]
    assert web.ip6 == asked
    assert seen == [f"web {peer.ip6}", f"web {peer.ip4}", f"web {DUAL6}"]


def test_network_internal(host: NerdctlHost) -> None:
    with host.running("web", f"--network={INTERNAL}") as web, host.running("peer", f"--network={INTERNAL}") as peer:
        assert web.default_routes() == []
        assert ask(peer.network, web.ip4, 80) == f"web {peer.ip4}"


def test_network_isolated(host: NerdctlHost) -> None:
    (policy,) = [plugin for plugin in host.conflist(ISOLATED)["plugins"] if plugin["type"] == "firewall"]
    assert policy["ingressPolicy"] == "isolated"
    with (
        host.running("web", f"--network={ISOLATED}", "--publish=8080:80") as web,
        host.running("peer", f"--network={ISOLATED}") as peer,
    ):
        seen = [ask(peer.network, web.ip4, 80), ask(peer.network, HOST4, 8080), ask(host.client, HOST4, 8080)]
    # Its ARP request is not answered either, which the kernel may say (EHOSTUNREACH) before the time is over.
    assert seen[0] in (BLOCKED, "! OSError")
    assert seen[1:] == ["web 10.4.4.1", f"web {CLIENT4}"]


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_network_of_a_link_on_the_lan(host: NerdctlHost, driver: str) -> None:
    if host.run("ip", "link", "add", "try0", "link", "lan0", "type", driver, check=False).returncode:
        unavailable(f"this kernel has no {driver}")
    host.run("ip", "link", "delete", "try0")
    host.nerdctl("network", "create", f"--driver={driver}", f"--subnet={LAN}", "--opt=parent=lan0", driver)
    try:
        with (
            host.running("web", f"--network={driver}") as web,
            host.running("peer", f"--network={driver}") as peer,
        ):
            seen = [ask(host.client, web.ip4, 80), ask(peer.network, web.ip4, 80)]
    finally:
        host.nerdctl("network", "rm", driver)
    assert seen == [f"web {LAN_CLIENT}", f"web {peer.ip4}"]


def test_network_dhcp(host: NerdctlHost) -> None:
    """A neighbour's dnsmasq gives the address, learns the name, and has the lease back at the end."""
    if not (host.plugins / "dhcp").exists():
        unavailable("these plugins have no dhcp")
    debs = fetch_debs.fetch(packages=("dnsmasq-base",))
    leases = "/run/leases"
    server = [
        "dnsmasq",
        "--conf-file=/dev/null",
        "--keep-in-foreground",
        "--port=0",
        "--interface=eth0",
        "--bind-interfaces",
    ]
    server += [f"--dhcp-range={LAN_LEASED},{LAN_LEASED}", f"--dhcp-leasefile={leases}", "--no-ping", "--pid-file="]
    server += ["--user=root", "--group=root", "--dhcp-authoritative", "--log-facility=/run/dnsmasq.log"]
    host.run("mkdir", "-p", "/run/cni")
    with (
        reaching(host, debs),
        host.client.popen(*server) as dnsmasq,
        host.popen("/opt/cni/bin/dhcp", "daemon", stderr=subprocess.DEVNULL) as daemon,
    ):
        try:
            wait_for("the daemon", lambda: host.run("ls", "/run/cni/dhcp.sock", check=False).stdout or None)
            host.nerdctl("network", "create", "--driver=macvlan", "--ipam-driver=dhcp", "--opt=parent=lan0", "lan")
            with host.running("web", "--network=lan", "--hostname=called") as web:
                leased = host.run("cat", leases).stdout.split()
                seen = ask(host.client, web.ip4, 80)
            wait_for("the lease's end", lambda: not host.run("cat", leases).stdout.strip() or None)
        finally:
            host.nerdctl("network", "rm", "lan")
            for process in (dnsmasq, daemon):
                process.terminate()
    assert (web.ip4, seen) == (LAN_LEASED, f"web {LAN_CLIENT}")
    assert leased[2:4] == [LAN_LEASED, "called"]


@contextlib.contextmanager
def reaching(host: NerdctlHost, debs: Path) -> Iterator[None]:
    """Programs and libraries of a tree, for the neighbour."""
    before = dict(host.client.environment)
    host.client.environment["PATH"] += ":" + ":".join(fetch_debs.programs(debs))
    host.client.environment["LD_LIBRARY_PATH"] += ":" + ":".join(fetch_debs.libraries(debs))
    yield
    host.client.environment.update(before)


def test_network_host(host: NerdctlHost) -> None:
    with host.running("web", "--network=host"):
        assert ask(host.client, HOST4, 80) == f"web {CLIENT4}"


def test_network_none(host: NerdctlHost) -> None:
    host.nerdctl("run", "--detach", "--name=web", "--network=none", image.NAME, "web", "80")
    links = Running(host, "web").network.json("ip", "-json", "link")
    host.remove("web")
    assert [link["ifname"] for link in links] == ["lo"]


def test_network_container(host: NerdctlHost) -> None:
    """The second one's server is reached by the first one's port."""
    with host.running("web", "--publish=8080:81") as web:
        host.nerdctl("run", "--detach", "--name=beside", "--network=container:web", image.NAME, "beside", "81")
        wait_for("the server of beside", lambda: not web.network.fetch(LOCAL4, 81).startswith("!") or None)
        seen = ask(host.client, HOST4, 8080)
        host.remove("beside")
        assert ask(host.client, HOST4, 8080) == REFUSED
    assert seen == f"beside {CLIENT4}"


def test_network_of_another_namespace_of_containerd(host: NerdctlHost) -> None:
    """Its default network is the same."""
    with host.running("web") as web:
        other = ("--namespace=other",)
        host.nerdctl(*other, "load", f"--input={host.archive}")
        host.nerdctl(*other, "run", "--detach", "--name=web", "--publish=8080:80", image.NAME, "namesake", "80")
        pid = host.nerdctl(*other, "inspect", "--format={{.State.Pid}}", "web").strip()
        wait_for("its server", lambda: not host.inside(pid).fetch(LOCAL4, 80).startswith("!") or None)
        seen = [ask(host.client, HOST4, 8080), ask(host.inside(pid), web.ip4, 80).split()[0]]
        host.nerdctl(*other, "rm", "--force", "web")
    assert seen == [f"namesake {CLIENT4}", "web"]


def test_network_create_inspect_ls_rm(host: NerdctlHost) -> None:
    host.nerdctl(
        "network", "create", "--subnet=10.4.9.0/24", "--gateway=10.4.9.254", "--ip-range=10.4.9.128/26", "mine"
    )
    assert host.network("mine")["IPAM"]["Config"] == [
        {"Subnet": "10.4.9.0/24", "Gateway": "10.4.9.254", "IPRange": "10.4.9.128/26"}
    ]
    assert "mine" in host.nerdctl("network", "ls", "--format={{.Name}}").split()
    with host.running("web", "--network=mine") as web:
        assert web.ip4 == "10.4.9.129"
        assert web.default_routes() == ["10.4.9.254"]
        (listed,) = host.network("mine")["Containers"].values()
        assert listed["Name"] == "web"
        assert "is in use" in host.refusal("network", "rm", "mine")
    host.nerdctl("network", "rm", "mine")
    assert "mine" not in host.nerdctl("network", "ls", "--format={{.Name}}").split()


def test_network_create_without_plugins(host: NerdctlHost) -> None:
    said = host.refusal("--cni-path=/run", "network", "create", "mine")
    assert 'needs CNI plugin \\"bridge\\" to be installed in CNI_PATH' in said


def test_network_prune(host: NerdctlHost) -> None:
    """It takes networks without containers, and their bridges."""
    host.nerdctl("network", "create", "--subnet=10.4.9.0/24", "mine")
    kept = [f"--network={name}" for name in SUBNETS]
    with host.running("web", "--network=mine"):
        pass
    with host.running("web", *kept):
        assert "mine" in host.nerdctl("network", "prune", "--force")


# Addresses


def test_ip_and_mac_address(host: NerdctlHost) -> None:
    words = ["--ip=10.4.0.77", "--mac-address=02:00:5e:10:00:01", "--publish=8080:80"]
    with host.running("web", *words) as web:
        assert (web.ip4, web.mac()) == ("10.4.0.77", "02:00:5e:10:00:01")
        said = host.refusal("run", "--detach", "--name=late", "--ip=10.4.0.77", image.NAME, "late", "80")
        host.remove("late")
        assert ask(host.client, HOST4, 8080) == f"web {CLIENT4}"
    assert "10.4.0.77" in said


def test_ip_outside_of_the_network(host: NerdctlHost) -> None:
    said = host.refusal("run", "--detach", "--name=web", "--ip=10.99.0.1", image.NAME, "web", "80")
    host.remove("web")
    assert "10.99.0.1" in said


# Life


def test_compose(host: NerdctlHost) -> None:
    """Two services as `nerdctl compose` has them: names in /etc/hosts, one port, networks of the project."""
    host.run("mkdir", "-p", "/run/project")
    host.run("tee", "/run/project/compose.yaml", given=COMPOSE)

    def compose(words: str) -> None:
        host.run("sh", "-c", f'cd /run/project && exec "$0" compose {words}', host.program)

    try:
        compose("up --detach --pull=never")
        web, db = host.find("project-web-1"), host.find("project-db-1")
        names = host.nerdctl("exec", web.name, "/bin/busybox", "cat", "/etc/hosts")
        seen = [ask(host.client, HOST4, 8080), ask(web.network, db.ip4, 80).split()[0]]
    finally:
        compose("down")
        host.run(CNI_PY, "gc")  # nerdctl has removed the bridges
    assert seen == [f"web {CLIENT4}", "db"]
    assert any(db.ip4 in line and "db" in line.split() for line in names.splitlines())


@pytest.mark.parametrize("network", ["bridge", DUAL])
def test_stop_start_restart(host: NerdctlHost, network: str) -> None:
    with host.running("web", f"--network={network}", "--publish=8080:80"):
        host.nerdctl("stop", "--time=3", "web")
        assert ask(host.client, HOST4, 8080) == REFUSED
        for verb in ("start", "restart"):
            host.nerdctl(verb, "web")
            host.find("web")
            assert ask(host.client, HOST4, 8080) == f"web {CLIENT4}"


def test_pause_and_rename(host: NerdctlHost) -> None:
    with host.running("web", "--publish=8080:80"):
        host.nerdctl("rename", "web", "renamed")
        assert ask(host.client, HOST4, 8080) == f"web {CLIENT4}"
        host.nerdctl("rename", "renamed", "web")


def test_a_foreground_container_that_ends(host: NerdctlHost) -> None:
    host.nerdctl("run", "--rm", "--publish=8080:80", "--entrypoint=/bin/true", image.NAME)


def test_a_container_whose_program_is_missing(host: NerdctlHost) -> None:
    host.refusal("run", "--rm", "--publish=8080:80", "--entrypoint=/bin/missing", image.NAME)
    host.remove(*host.run("ctr", "container", "list", "--quiet").stdout.split())


def test_kill_9_of_the_container(host: NerdctlHost) -> None:
    """containerd keeps its task, so nobody tells of the end, and its port is taken, until nerdctl starts or removes it."""
    with host.running("web", "--publish=8080:80") as web:
        host.run("kill", "-KILL", web.pid)
        wait_for("the end", lambda: host.status("web") == "exited" or None)
        assert "already allocated" in host.refusal("run", "--publish=8080:80", image.NAME)
        host.nerdctl("start", "web")
        host.find("web")
        assert ask(host.client, HOST4, 8080) == f"web {CLIENT4}"


def test_kill_9_of_containerd(host: NerdctlHost) -> None:
    """The container lives on, and ends well under the next containerd."""
    with host.running("web", "--publish=8080:80"):
        host.kill_containerd()
        assert ask(host.client, HOST4, 8080) == f"web {CLIENT4}"
        host.start_containerd()
        assert host.status("web") == "running"
        assert ask(host.client, HOST4, 8080) == f"web {CLIENT4}"


def test_kill_9_of_all_of_a_container(host: NerdctlHost) -> None:
    """The next containerd tells of the end, when it starts. Then nerdctl starts it again: DEL without a namespace, and ADD."""
    with host.running("web", "--publish=8080:80") as web:
        host.kill_containerd(host.shim_of(web), web.pid)
        host.start_containerd()
        host.nerdctl("start", "web")
        host.find("web")
        assert ask(host.client, HOST4, 8080) == f"web {CLIENT4}"


def test_kill_9_of_all_of_a_container_and_gc(host: NerdctlHost) -> None:
    """Before anybody tells of the end, `cni-py gc` has freed what the container had."""
    with host.running("web", "--publish=8080:80", "--ip=10.4.0.77") as web:
        assert host.files("/run/cni-py/attachments")
        host.kill_containerd(host.shim_of(web), web.pid)
        host.run(CNI_PY, "gc")
        assert host.files("/run/cni-py/attachments") == []
        host.start_containerd()
        with host.running("next", "--publish=8080:80", "--ip=10.4.0.77"):
            assert ask(host.client, HOST4, 8080) == f"next {CLIENT4}"


def test_restart_always(host: NerdctlHost) -> None:
    """containerd starts it again by itself."""
    with host.running("web", "--restart=always", "--publish=8080:80") as web:
        host.run("kill", "-KILL", web.pid)
        wait_for(
            "another process",
            lambda: host.nerdctl("inspect", "--format={{.State.Pid}}", "web").strip() not in ("0", web.pid) or None,
        )
        host.find("web")
        assert ask(host.client, HOST4, 8080) == f"web {CLIENT4}"
        host.nerdctl("stop", "--time=3", "web")


def test_eight_at_once(host: NerdctlHost) -> None:
    names = [f"many{number}" for number in range(8)]

    def start(number: int) -> None:
        host.nerdctl(
            "run", "--detach", f"--name={names[number]}", f"--publish=808{number}:80", image.NAME, names[number], "80"
        )

    try:
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(start, range(len(names))))
        addresses = {host.find(name).ip4 for name in names}
        seen = [ask(host.client, HOST4, 8080 + number) for number in range(len(names))]
    finally:
        host.remove(*names)
    assert len(addresses) == len(names)
    assert seen == [f"{name} {CLIENT4}" for name in names]


# Our commands beside it


def test_our_commands_know_its_containers(host: NerdctlHost) -> None:
    with host.running("web", "--publish=8080:80") as web:
        inside = host.run(CNI_PY, "enter", "web", "--", "ip", "address", "show", "eth0").stdout
        shown = host.run(CNI_PY, "show").stdout
        explained = host.run(CNI_PY, "explain", "8080").stdout
        host.run(CNI_PY, "gc")
        assert ask(host.client, HOST4, 8080) == f"web {CLIENT4}"
    assert web.ip4 in inside
    assert web.ip4 in shown
    assert web.ip4 in explained
