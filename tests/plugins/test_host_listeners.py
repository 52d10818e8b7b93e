"""Ports that programs of the host listen on, and portmap's `hostListener`: real sockets of real programs on a lab's host."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from node import Node
from runtime import Network, Outcome, Plugins, mapping

from tests.portfwd.publisher import Publisher, serving
from tests.portfwd.talk import until

pytestmark = pytest.mark.ours_alone

SETTINGS = "/etc/cni-py/config.yaml"
LISTEN = """\
import socket, sys, time
kind = socket.SOCK_STREAM if {protocol!r} == "tcp" else socket.SOCK_DGRAM
one = socket.socket(socket.AF_INET6 if ":" in {ip!r} else socket.AF_INET, kind)
if {v6only!r}:
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
one.bind(({ip!r}, {port!r}))
if {listen!r} and kind == socket.SOCK_STREAM:
    one.listen()
if {peer!r}:
    one.connect(({peer!r}, 9))
one.set_inheritable(True)
{more}
print("ready", flush=True)
{then}
"""


@contextmanager
def holding(
    node: Node,
    ip: str,
    port: int,
    protocol: str = "tcp",
    *,
    v6only: bool = False,
    listen: bool = True,
    peer: str = "",
    more: str = "",
    then: str = "time.sleep(60)",
) -> Iterator[int]:
    """A program with a socket, which has done `more` when the block begins and goes on with `then`; its pid."""
    code = LISTEN.format(
        ip=ip, port=port, protocol=protocol, v6only=v6only, listen=listen, peer=peer, more=more, then=then
    )
    process = node.popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert "os.exec" not in then or until(lambda: has_become_another(process.pid))
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def has_become_another(pid: int) -> bool:
    """Whether the program has made way for the one that `then` names."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes()
    return bool(words) and LISTEN.partition("\n")[0].encode() not in words


class Asked(Network):
    """A network in which every call of portmap says what it says beside its result."""

    def add(self, container_id: str, *ports: dict[str, object], **keys: object) -> Outcome:
        """ADD of the chain; portmap's outcome."""
        self.ports[container_id] = list(ports)
        if container_id not in self.results:
            bridged = self.plugins.run(self.lab, "ADD", "bridge", self.bridge(), container_id)
            assert bridged.status == 0, bridged.stdout
            self.results[container_id] = bridged.json
        conf = {**self.portmap(container_id), "prevResult": self.results[container_id], **keys}
        return self.plugins.run(self.lab, "ADD", "portmap", conf, container_id)

    def delete(self, container_id: str, **keys: object) -> Outcome:
        conf = {**self.portmap(container_id), "prevResult": self.results[container_id], **keys}
        return self.plugins.run(self.lab, "DEL", "portmap", conf, container_id)


@pytest.fixture
def network(lab: Lab, our_bin_dir: Path) -> Asked:
    return Asked(lab, Plugins("ours", our_bin_dir, ("1.0.0",)))


REFUSE = {"hostListener": "refuse"}


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_refuse_is_an_error_that_names_the_program_and_changes_nothing(network: Asked, backend: str) -> None:
    host = network.lab["host"]
    with holding(host, "0.0.0.0", 8080):
        refused = network.add("c1", mapping(8080, 80), hostListener="refuse", backend=backend)
        assert (refused.status, refused.code) == (1, 110)
        assert refused.json["msg"].startswith("port 8080/tcp on 0.0.0.0 is in use by python")
        assert "(pid " in refused.json["msg"]
        assert "hostListener" in refused.json["details"]
        assert refused.stderr == ""
        rules = host.run(["sh", "-c", "nft list ruleset; iptables-save"], check=True).stdout
        assert "8080" not in rules
        assert "CNI-DN-" not in rules
        assert network.delete("c1", hostListener="refuse", backend=backend).status == 0
    assert network.add("c1", mapping(8080, 80), hostListener="refuse", backend=backend).status == 0


@pytest.mark.parametrize("keys", [{}, {"hostListener": "warn"}, {"backend": "iptables"}])
def test_by_default_it_is_said_and_published(network: Asked, keys: dict[str, object]) -> None:
    with holding(network.lab["host"], "0.0.0.0", 8080):
        done = network.add("c1", mapping(8080, 80), **keys)
    assert done.status == 0, done.stdout
    assert done.stderr.startswith("cni-py: port 8080/tcp on 0.0.0.0 is in use by python")
    assert done.stderr.endswith(", whose clients now come to container c1\n")
    assert done.stderr.count("\n") == 1


def test_without_a_listener_nothing_is_said(network: Asked) -> None:
    with holding(network.lab["host"], "0.0.0.0", 8081):
        assert network.add("c1", mapping(8080, 80), **REFUSE).stderr == ""


def test_another_value_is_an_error_of_the_configuration_but_not_of_del(network: Asked) -> None:
    wrong = network.add("c1", mapping(8080, 80), hostListener="ask")
    assert (wrong.status, wrong.code) == (1, 7)
    assert '"ask"' in wrong.json["msg"]
    assert wrong.json["details"] == "one of warn, refuse"
    assert network.delete("c1", hostListener="ask").status == 0


@pytest.mark.parametrize(("said", "status"), [("refuse", 1), ("warn", 0)])
def test_the_host_s_settings_hold_where_the_network_says_nothing(network: Asked, said: str, status: int) -> None:
    host = network.lab["host"]
    host.python(write, SETTINGS, f"hostListener: {said}\n")
    with holding(host, "0.0.0.0", 8080):
        assert network.add("c1", mapping(8080, 80)).status == status
        other = "warn" if said == "refuse" else "refuse"
        assert network.add("c2", mapping(8080, 80), hostListener=other).code in (0, 110)
        assert network.add("c2", mapping(8080, 80), hostListener="refuse").code == 110


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


HOST4, HOST6 = "198.51.100.1", "2001:db8:51::1"
TCP, UDP = mapping(8080, 80), mapping(8080, 80, "udp")
RANGE = [mapping(8000 + number, 8000 + number) for number in range(200)]  # an interval
OFFSET = [mapping(8000 + number, 80 + number) for number in range(200)]  # single ports
ON_ADDRESS = {**TCP, "hostIP": "198.51.100.77"}


@pytest.mark.parametrize(
    ("ip", "protocol", "fields", "ports", "where"),
    [
        ("0.0.0.0", "tcp", {}, [TCP], "0.0.0.0"),
        ("127.0.0.1", "tcp", {}, [TCP], "0.0.0.0"),
        ("::", "tcp", {}, [TCP], "0.0.0.0"),
        ("::", "tcp", {"v6only": True}, [TCP], "[::]"),
        ("::1", "tcp", {}, [TCP], "[::]"),
        ("::ffff:127.0.0.1", "tcp", {}, [TCP], "0.0.0.0"),
        ("0.0.0.0", "udp", {}, [UDP], "0.0.0.0"),
        ("::", "udp", {}, [UDP], "0.0.0.0"),
        ("0.0.0.0", "tcp", {}, [{**TCP, "hostIP": "127.0.0.1"}], "127.0.0.1"),
        ("127.0.0.1", "tcp", {}, [{**TCP, "hostIP": "127.0.0.1"}], "127.0.0.1"),
        ("0.0.0.0", "tcp", {}, RANGE, "0.0.0.0"),
        ("0.0.0.0", "tcp", {}, OFFSET, "0.0.0.0"),
        ("::", "tcp", {}, [{**TCP, "hostIP": "0.0.0.0"}], "0.0.0.0"),
        ("::1", "tcp", {}, [{**TCP, "hostIP": "::"}], "[::]"),
    ],
)
def test_a_port_is_held_as_bind_sees_it(
    network: Asked, ip: str, protocol: str, fields: dict[str, Any], ports: list[dict[str, object]], where: str
) -> None:
    with holding(network.lab["host"], ip, 8080, protocol, **fields):
        refused = network.add("c1", *ports, **REFUSE)
    assert refused.code == 110, refused.stdout
    assert refused.json["msg"].startswith(f"port 8080/{protocol} on {where} is in use by python")


@pytest.mark.parametrize(
    ("ip", "protocol", "fields", "ports"),
    [
        ("0.0.0.0", "udp", {}, [TCP]),
        ("0.0.0.0", "tcp", {}, [UDP]),
        ("0.0.0.0", "tcp", {}, [mapping(8080, 80, "sctp")]),
        ("127.0.0.1", "tcp", {}, [ON_ADDRESS]),
        ("127.0.0.2", "tcp", {}, [{**TCP, "hostIP": "127.0.0.1"}]),
        ("::", "tcp", {"v6only": True}, [{**TCP, "hostIP": "0.0.0.0"}]),
        ("::1", "tcp", {}, [{**TCP, "hostIP": "0.0.0.0"}]),
        ("0.0.0.0", "tcp", {}, [{**TCP, "hostIP": "::"}]),
        ("127.0.0.1", "udp", {"peer": "127.0.0.1"}, [UDP]),
        ("0.0.0.0", "tcp", {"listen": False}, [TCP]),
        ("0.0.0.0", "tcp", {}, [mapping(8079, 80), mapping(8081, 80)]),
    ],
)
def test_what_does_not_wait_there_is_not_in_the_way(
    network: Asked, ip: str, protocol: str, fields: dict[str, Any], ports: list[dict[str, object]]
) -> None:
    with holding(network.lab["host"], ip, 8080, protocol, **fields):
        done = network.add("c1", *ports, **REFUSE)
    assert (done.status, done.stderr) == (0, ""), done.stdout


def test_a_container_s_own_listener_is_in_another_namespace(network: Asked) -> None:
    with holding(network.lab["c1"], "0.0.0.0", 8080), holding(network.lab["c2"], "0.0.0.0", 8080):
        assert network.add("c1", mapping(8080, 8080), **REFUSE).status == 0


def test_what_nat_does_not_take_is_not_warned_of(network: Asked) -> None:
    with holding(network.lab["host"], "::1", 8080):
        assert network.add("c1", mapping(8080, 80)).stderr == ""


def test_of_many_a_few_are_named(network: Asked) -> None:
    listen = "more = [socket.create_server(('127.0.0.1', port)) for port in range(8001, 8020)]"
    with holding(network.lab["host"], "127.0.0.1", 8000, more=listen):
        said = network.add("c1", *RANGE).stderr.splitlines()
    assert len(said) == 4
    assert said[-1] == "cni-py: 17 more ports of container c1 are taken from programs of the host"


# For the very container


def test_nerdctl_s_reserver_is_there_for_its_container_alone(network: Asked) -> None:
    host = network.lab["host"]
    mine, theirs = "k8s-io-" + "a" * 64, "default-" + "b" * 64
    for name in (mine, theirs):
        network.lab.add_container(name)
    with (
        holding(host, "0.0.0.0", 8080, then="import os; os.execvp('sleep', ['sleep', 'infinity'])") as pid,
        holding(host, "0.0.0.0", 8081),
    ):
        inside = host.python(pid_inside, 8080) or pid
        host.python(write, f"/run/nerdctl/k8s-io/{'a' * 64}/port-reserver.pid", str(inside))
        done = network.add(mine, mapping(8080, 80), **REFUSE)
        assert (done.status, done.stderr) == (0, ""), done.stdout
        assert network.delete(mine).status == 0
        refused = network.add(theirs, mapping(8080, 80), **REFUSE)
        assert refused.json["msg"] == (
            f"port 8080/tcp on 0.0.0.0 is in use by nerdctl, for its container {'a' * 12} (pid {inside})"
        )
        assert network.add(mine, mapping(8081, 80), **REFUSE).code == 110


def pid_inside(port: int) -> int:
    """The pid of the listener as it is seen here."""
    from cni_py.kernel import processes, sock_diag

    (found,) = sock_diag.waiting([("tcp", port, port)])
    return next(iter(processes.having([found.inode])[found.inode]), 0)


def disguised(arguments: list[str]) -> str:
    """Keeps the socket in a shell whose command line reads as `arguments`: they are all that /proc shows of a program."""
    return f"import os; os.execv('/bin/sh', {[arguments[0], '-c', 'sleep 60 >/dev/null; exit', *arguments[1:]]!r})"


def test_podman_s_conmon_is_there_for_its_container_alone(network: Asked) -> None:
    then = disguised(["/usr/bin/conmon", "--api-version", "1", "-c", "c1", "-u", "c1"])
    with holding(network.lab["host"], "0.0.0.0", 8080, "udp", then=then):
        assert network.add("c2", UDP, **REFUSE).code == 110
        assert network.add("c1", UDP, **REFUSE).status == 0


@pytest.mark.parametrize("option", [["-container-ip", "{}"], ["--container-ip={}"]])
def test_a_proxy_of_docker_s_is_there_for_the_container_of_its_address(network: Asked, option: list[str]) -> None:
    network.attach("c1")
    words = [word.format(network.address("c1", 4)) for word in option]
    then = disguised(["/usr/bin/docker-proxy", "-proto", "tcp", *words, "-container-port", "80"])
    with holding(network.lab["host"], "0.0.0.0", 8080, then=then):
        assert network.add("c2", TCP, **REFUSE).code == 110
        assert network.add("c1", TCP, **REFUSE).status == 0


def test_an_address_of_another_network_of_the_container_is_its_own(network: Asked) -> None:
    network.lab["c1"].run(["ip", "address", "add", "203.0.113.9/24", "dev", "lo"], check=True)
    then = disguised(["/usr/bin/docker-proxy", "-container-ip", "203.0.113.9"])
    with holding(network.lab["host"], "0.0.0.0", 8080, then=then):
        assert network.add("c2", TCP, **REFUSE).code == 110
        assert network.add("c1", TCP, **REFUSE).status == 0


@pytest.fixture
def service(lab: Lab) -> Iterator[Publisher]:
    publisher = Publisher(lab["host"])
    yield publisher
    publisher.end()


def test_portfwd_s_own_sockets_for_the_container_are_not_in_its_way(network: Asked, service: Publisher) -> None:
    assert network.add("c1", TCP, **REFUSE).status == 0
    assert service.ask("list")["mappings"], "portfwd listens beside NAT"
    again = network.add("c1", TCP, **REFUSE)
    assert (again.status, again.stderr) == (0, ""), again.stdout
    other = Asked(network.lab, network.plugins, "second")
    other.results["c1"] = network.results["c1"]
    assert other.add("c1", TCP, **REFUSE).status == 0
    taken = network.add("c2", TCP, **REFUSE)
    assert "in use by lab/c1/eth0" in taken.json["msg"]  # said once, by portmap's claims
    assert taken.stderr == ""


def test_what_portfwd_relays_for_others_is_in_the_way(network: Asked, service: Publisher) -> None:
    service.publish("0.0.0.0", 8080, ("203.0.113.5", 80))
    refused = network.add("c1", TCP, **REFUSE)
    assert refused.json["msg"] == "port 8080/tcp on 0.0.0.0 is in use by portfwd (mapping m8080)"
    network.attach("c2")
    service.publish("0.0.0.0", 8081, (network.address("c2", 4), 80))
    assert network.add("c2", mapping(8081, 80), **REFUSE).status == 0
    assert network.add("c1", mapping(8082, 80), userlandProxy="always").status == 0
    relayed = network.add("c2", mapping(8082, 80), **REFUSE)
    assert relayed.json["msg"] == "port 8082/tcp on 0.0.0.0 is in use by portfwd, for lab/c1/eth0"


@pytest.mark.parametrize("said", ["warn", "refuse"])
def test_what_portfwd_serves_alone_it_does_not_take_from_others(network: Asked, service: Publisher, said: str) -> None:
    """Nor by steering, which would need no port, as where nerdctl's reserver has it. It is told once."""
    with holding(network.lab["host"], "0.0.0.0", 8090):
        always = network.add("c1", mapping(8090, 80), userlandProxy="always", hostListener=said)
        assert (always.code, always.stderr) == (110, "")
        assert always.json["msg"].startswith("port 8090/tcp on 0.0.0.0 is in use by python")
    with holding(network.lab["host"], "::1", 8091):
        beside = network.add("c1", mapping(8091, 80))
        assert beside.status == 0
        assert "left out: " in beside.stderr
        assert "in use by python" in beside.stderr


@pytest.mark.parametrize("last", [8093, 8192])
def test_a_service_that_starts_again_takes_ports_of_the_runtime_only(network: Asked, last: int) -> None:
    """A program that came meanwhile is named; what nerdctl's reserver holds for the container is led to us."""
    host, name = network.lab["host"], "k8s-io-" + "a" * 64
    network.lab.add_container(name)
    with serving(host):
        added = network.add(name, *[mapping(port, port) for port in range(8093, last + 1)], userlandProxy="always")
        assert added.status == 0, added.stdout
    with holding(host, "0.0.0.0", 8093):
        inside = host.python(pid_inside, 8093)
        with serving(host) as service:
            mine = of_ipv4(service)
            assert "port 8093/tcp on 0.0.0.0 is in use by python" in mine["state"]["waiting"]
        host.python(write, f"/run/nerdctl/k8s-io/{'a' * 64}/port-reserver.pid", str(inside))
        with serving(host) as service:
            mine = of_ipv4(service)
            assert (mine["state"]["served_by"], mine["state"]["steered"]) == ("sk_lookup", ["0.0.0.0"])


def of_ipv4(service: Publisher) -> dict[str, Any]:
    return next(one for one in service.ask("list")["mappings"] if one["host_ips"] == ["0.0.0.0"])


def test_ten_thousand_ports_are_asked_for_at_once(network: Asked) -> None:
    ports = [("tcp", 10000, 19999), ("udp", 10000, 19999)]
    sent = network.lab["host"].python(messages_of, ports)
    assert sent == 4  # both protocols, both families


def messages_of(ports: list[tuple[str, int, int]]) -> int:
    from cni_py.kernel import netlink, sock_diag

    sent = 0
    send = netlink.Socket._send

    def counting(self: netlink.Socket, kind: int, flags: int, body: bytes) -> None:
        nonlocal sent
        sent += 1
        send(self, kind, flags, body)

    netlink.Socket._send = counting  # type: ignore[method-assign]
    sock_diag.waiting(ports)
    return sent


def test_a_kernel_without_sock_diag_shows_them_in_proc(network: Asked) -> None:
    host = network.lab["host"]
    with (
        holding(host, "127.0.0.1", 8080),
        holding(host, "::", 8081, "udp"),
        holding(host, "0.0.0.0", 8082, listen=False),
    ):
        wanted = [("tcp", 8000, 8100), ("udp", 8000, 8100)]
        assert host.python(seen, wanted, True) == host.python(seen, wanted, False) == [("tcp", 8080), ("udp", 8081)]


def seen(wanted: list[tuple[str, int, int]], refused: bool) -> list[tuple[str, int]]:
    from cni_py.kernel import sock_diag

    if refused:

        def dump(*_: object) -> list[sock_diag.Listener]:
            raise OSError(errno.ENOENT, "no handler for the family")

        sock_diag.dump = dump  # type: ignore[assignment]
    return [(one.protocol, one.port) for one in sock_diag.waiting(wanted)]


def test_our_own_network_refuses() -> None:
    conflist = json.loads((Path(__file__).parents[2] / "conf/cni-py.conflist").read_text())
    (chain,) = conflist["plugins"]
    (portmap,) = [plugin for plugin in chain["plugins"] if plugin["type"] == "portmap"]
    assert portmap["hostListener"] == "refuse"
