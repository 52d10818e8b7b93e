"""UDP relayed between real sockets: hosts, clients and containers of a lab, all driven from this one thread."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Lab
from node import CLONE_NEWNET, Node, enter

from portfwd.errors import Usage
from portfwd.mapping import Mapping, Place, Target
from portfwd.netns.sockets import Places
from portfwd.relay import proxyproto
from portfwd.relay.flows import QUESTION_S, TALKS_S
from portfwd.relay.pktinfo import IP_PKTINFO
from portfwd.relay.poller import LEVEL, Poller
from portfwd.relay.udp import UdpPort
from portfwd.service import udp_state
from tests.portfwd.stage import Log

WAIT_S = 2.0
LONG_S = 3600.0
PORT = 5353


def place_of(node: Node) -> Place:
    return Place(path=f"/proc/self/fd/{node.net}")


class LabPlaces(Places):
    """As in a service that runs on the lab's host; a place is elsewhere."""

    def __init__(self, host: Node) -> None:
        super().__init__()
        self.host = host
        self.own = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.send_buffer = 0

    def inside(self, node: Node, family: int) -> socket.socket:
        """A UDP socket of a node; takes no other descriptor."""
        enter(node.net, CLONE_NEWNET)
        try:
            return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        finally:
            enter(self.own, CLONE_NEWNET)

    def socket(self, place: Place, family: int, kind: int) -> socket.socket:
        made = super().socket(place, family, kind) if place else self.inside(self.host, family)
        if self.send_buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer)
        return made

    def close(self) -> None:
        super().close()
        os.close(self.own)


class Stage:
    """Sockets anywhere in the lab, and what serves them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.poller = Poller()
        self.places = LabPlaces(lab["host"])
        self.ports: list[UdpPort] = []
        self.sockets: list[socket.socket] = []

    def bound(self, node: str, ip: str, port: int = 0) -> socket.socket:
        """A UDP socket on an address of a node; a client or a target."""
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        made = self.places.inside(self.lab[node], family)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((ip, port))
        self.sockets.append(made)
        return made

    def listening(self, ip: str, port: int) -> socket.socket:
        made = self.bound("host", ip, port)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        return made

    def publish(
        self,
        *targets: Target,
        host_ips: tuple[str, ...] = ("0.0.0.0", "::"),
        first: int = PORT,
        last: int = 0,
        limit: int = 0,
        limit_per_client: int = 0,
        allow: tuple[str, ...] = (),
        proxy_protocol: int = 0,
        idle_s: float = 0.0,
    ) -> UdpPort:
        mapping = Mapping(
            f"m{first}",
            "udp",
            host_ips,
            first,
            last or first,
            targets,
            limit=limit,
            limit_per_client=limit_per_client,
            allow=allow,
            proxy_protocol=proxy_protocol,
            idle_s=idle_s,
        )
        pairs = [(ip, port) for ip in host_ips for port in mapping.ports]
        return self.serve(mapping, [(self.listening(*pair), pair[1]) for pair in pairs])

    def serve(self, mapping: Mapping, bound: list[tuple[socket.socket, int]]) -> UdpPort:
        self.ports.append(UdpPort(mapping, bound, self.places, self.poller))
        return self.ports[-1]

    def echo(self, node: str, ip: str, port: int, says: str = "") -> socket.socket:
        """A target that answers NAME, a space and what it was sent, and remembers nothing."""
        target = self.bound(node, ip, port)
        name = (says or node).encode()

        def answer(_: int) -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, client = target.recvfrom(65535)
                    target.sendto(name + b" " + data, client)

        self.poller.watch(target.fileno(), LEVEL, answer)
        return target

    def stop(self, target: socket.socket) -> None:
        self.poller.forget(target.fileno())
        target.close()

    def until(self, done: Callable[[], bool], wait_s: float = WAIT_S) -> bool:
        deadline = time.monotonic() + wait_s
        while not done():
            if time.monotonic() > deadline:
                return False
            self.poller.select(0.01)
        return True

    def settle(self) -> None:
        """Everything that is on its way within this machine arrives."""
        for _ in range(3):
            self.poller.select(0.01)

    def receive(self, sock: socket.socket, wait_s: float = WAIT_S) -> tuple[bytes, tuple[str, int]]:
        found: list[tuple[bytes, tuple[str, int]]] = []

        def arrived() -> bool:
            with contextlib.suppress(BlockingIOError):
                data, address = sock.recvfrom(65535)
                found.append((data, address[:2]))
            return bool(found)

        if not self.until(arrived, wait_s):
            raise TimeoutError("nothing came")
        return found[0]

    def ask(
        self, client: socket.socket, ip: str, port: int = PORT, data: bytes = b"?"
    ) -> tuple[bytes, tuple[str, int]]:
        client.sendto(data, (ip, port))
        return self.receive(client)

    def close(self) -> None:
        for port in self.ports:
            port.close()
        for sock in self.sockets:
            sock.close()
        self.places.close()
        self.poller.close()


@pytest.fixture
def stage(lab: Lab) -> Iterator[Stage]:
    made = Stage(lab)
    with contextlib.closing(made):
        yield made


WEB = Target("127.0.0.1", 53)  # on the host, where most of these tests run


# Source addresses


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.0.0.9", "::1", "198.51.100.1", "2001:db8:1::1"])
def test_the_answer_comes_from_the_address_that_was_asked(stage: Stage, ip: str) -> None:
    stage.publish(WEB)
    stage.echo("host", "127.0.0.1", 53)
    client = stage.bound("host", "::" if ":" in ip else "0.0.0.0")
    assert stage.ask(client, ip) == (b"host ?", (ip, PORT))


def test_a_host_with_several_addresses_on_a_lan_answers_from_each(stage: Stage) -> None:
    host = stage.lab["host"]
    for address in ("198.51.100.2/24", "2001:db8:1::2/64"):
        host.run(["ip", "addr", "add", address, "dev", "lan0", "nodad"], check=True)
    port = stage.publish(Target("127.0.0.1", 53, place_of(stage.lab["c1"])))
    stage.echo("c1", "127.0.0.1", 53)
    for own, addresses in {
        "198.51.100.7": ("198.51.100.2", "198.51.100.1"),
        "2001:db8:1::7": ("2001:db8:1::1", "2001:db8:1::2"),
    }.items():
        client = stage.bound("client", own)
        for ip in addresses:
            assert stage.ask(client, ip) == (b"c1 ?", (ip, PORT))
    assert port.flows == 4, "one for each address a client sent to"


def test_answers_to_two_addresses_are_not_mixed_up(stage: Stage) -> None:
    stage.publish(WEB)
    target = stage.bound("host", "127.0.0.1", 53)
    client = stage.bound("host", "127.0.0.1")
    client.sendto(b"one", ("127.0.0.1", PORT))
    client.sendto(b"two", ("127.0.0.2", PORT))
    heard = dict([stage.receive(target), stage.receive(target)])
    target.sendto(b"to one", heard[b"one"])
    assert stage.receive(client) == (b"to one", ("127.0.0.1", PORT))
    target.sendto(b"to two", heard[b"two"])
    assert stage.receive(client) == (b"to two", ("127.0.0.2", PORT))


def test_a_client_with_a_link_local_address_is_answered_on_its_link(stage: Stage) -> None:
    def link_local(node: str, ifname: str) -> str:
        found = json.loads(stage.lab[node].run(["ip", "-j", "-6", "addr", "show", "dev", ifname], check=True).stdout)
        return next(str(one["local"]) for one in found[0]["addr_info"] if one["scope"] == "link")

    def index(node: str, ifname: str) -> int:
        return int(json.loads(stage.lab[node].run(["ip", "-j", "link", "show", "dev", ifname]).stdout)[0]["ifindex"])

    # A second interface has a route for fe80::/64, too.
    stage.lab["host"].run(["ip", "link", "add", "other0", "up", "type", "veth", "peer", "name", "other1"], check=True)
    stage.publish(WEB)
    stage.echo("host", "127.0.0.1", 53)
    client = stage.bound("client", "::")
    zone = index("client", "eth0")
    ip = link_local("host", "lan0")
    client.sendto(b"?", (ip, PORT, 0, zone))
    assert stage.receive(client) == (b"host ?", (ip, PORT))
    client.sendto(b"!", ("ff02::1", PORT, 0, zone))
    assert stage.receive(client) == (b"host !", (ip, PORT))


def test_a_port_of_a_range_leads_to_the_same_port_of_the_target(stage: Stage) -> None:
    stage.publish(Target("127.0.0.1", 6000), first=5000, last=5009)
    stage.echo("host", "127.0.0.1", 6007, "seventh")
    client = stage.bound("host", "127.0.0.1")
    assert stage.ask(client, "127.0.0.1", 5007) == (b"seventh ?", ("127.0.0.1", 5007))


# Datagrams


@pytest.mark.parametrize("size", [0, 1, 1472, 65507])
def test_datagrams_of_all_sizes_are_relayed_whole(stage: Stage, size: int) -> None:
    port = stage.publish(WEB)
    target = stage.bound("host", "127.0.0.1", 53)
    client = stage.bound("host", "127.0.0.1")
    data = os.urandom(size)
    client.sendto(data, ("127.0.0.1", PORT))
    heard, relay = stage.receive(target)
    assert heard == data
    target.sendto(data, relay)
    assert stage.receive(client) == (data, ("127.0.0.1", PORT))
    assert (port.counters.bytes_in, port.counters.bytes_out) == (size, size)


def test_a_datagram_too_long_for_the_other_family_is_dropped_and_counted(stage: Stage) -> None:
    port = stage.publish(WEB)
    stage.echo("host", "127.0.0.1", 53)
    client = stage.bound("host", "::1")
    client.sendto(bytes(65527), ("::1", PORT))
    assert stage.until(lambda: port.counters.dropped == 1)
    assert port.counters.failed == 0, "the target is not to blame"
    assert stage.ask(client, "::1") == (b"host ?", ("::1", PORT))


def test_a_burst_waits_in_the_socket(stage: Stage) -> None:
    port = stage.publish(WEB)
    stage.echo("host", "127.0.0.1", 53)
    client = stage.bound("host", "127.0.0.1")
    for _ in range(1000):
        client.sendto(bytes(100), ("127.0.0.1", PORT))
    assert stage.until(lambda: port.counters.bytes_in == 100_000)


def test_every_datagram_tells_the_target_who_the_client_is(stage: Stage) -> None:
    stage.publish(WEB, proxy_protocol=2)
    target = stage.bound("host", "127.0.0.1", 53)
    client = stage.bound("host", "127.0.0.7")
    header = proxyproto.header(2, "udp", client.getsockname(), ("127.0.0.9", PORT))
    for data in (b"one", b"two"):
        client.sendto(data, ("127.0.0.9", PORT))
        assert stage.receive(target)[0] == header + data


# Bounds


def test_a_flood_of_distinct_clients_takes_no_more_than_the_table_holds(stage: Stage) -> None:
    port = stage.publish(WEB, limit=20)
    stage.echo("host", "127.0.0.1", 53)
    stage.settle()
    before = len(os.listdir("/proc/self/fd"))
    most = 0
    for number in range(1500):
        with stage.places.inside(stage.lab["host"], socket.AF_INET) as client:
            client.bind((f"127.1.{number >> 8}.{number & 255}", 0))
            client.sendto(b"flood", ("127.0.0.1", PORT))
        if number % 25 == 0:
            stage.poller.select(0.0)
            most = max(most, port.flows)
    assert stage.until(lambda: port.counters.connections >= 1000)
    stage.settle()
    assert most <= port.flows == port.counters.active == 20
    assert port.counters.evicted == port.counters.connections - 20
    with Log() as log:
        port.sweep(stage.poller.now)
        port.sweep(stage.poller.now)
    assert [line.partition(" flows")[0] for line in log.lines] == [f"m{PORT}: turned away: {port.counters.evicted}"]
    assert len(os.listdir("/proc/self/fd")) - before == 20
    assert stage.ask(stage.bound("host", "127.0.0.1"), "127.0.0.1")[0] == b"host ?"
    for later, left in ((0.0, 20), (QUESTION_S, 0)):  # TCP clients want their descriptors
        port.give_up(stage.poller.now + later)
        assert port.flows == left


def test_a_client_that_goes_on_keeps_its_flow_in_a_full_table(stage: Stage) -> None:
    stage.publish(WEB, limit=3)
    target = stage.bound("host", "127.0.0.1", 53)
    steady = stage.bound("host", "127.0.0.1")
    seen = set()
    for _ in range(5):
        steady.sendto(b"steady", ("127.0.0.1", PORT))
        seen.add(stage.receive(target))
        for _ in range(2):
            stage.bound("host", "127.0.0.1").sendto(b"once", ("127.0.0.1", PORT))
            stage.receive(target)
    assert len(seen) == 1


def test_conversations_are_not_ended_for_those_who_ask_once(stage: Stage) -> None:
    port = stage.publish(WEB, limit=2)
    stage.echo("host", "127.0.0.1", 53)
    talking = [stage.bound("host", "127.0.0.1") for _ in range(2)]
    for client in talking:
        assert stage.ask(client, "127.0.0.1")[0] == b"host ?"
    for flow in port.table:
        flow.begun -= TALKS_S
    for client in talking:
        assert stage.ask(client, "127.0.0.1")[0] == b"host ?"
    stage.bound("host", "127.0.0.1").sendto(b"one more", ("127.0.0.1", PORT))
    assert stage.until(lambda: port.counters.limited == 1)
    assert (port.flows, port.counters.evicted, port.counters.refused) == (2, 0, 1)


def test_a_client_at_its_cap_is_served_in_place_of_its_older_flows(stage: Stage) -> None:
    port = stage.publish(WEB, limit_per_client=2)
    stage.echo("host", "127.0.0.1", 53)
    other = stage.bound("host", "127.0.0.2")
    assert stage.ask(other, "127.0.0.1")[0] == b"host ?"
    for _ in range(5):
        assert stage.ask(stage.bound("host", "127.0.0.1"), "127.0.0.1")[0] == b"host ?"
    assert port.flows == 3
    assert port.counters.connections == 6


def test_only_clients_that_are_allowed_are_relayed(stage: Stage) -> None:
    port = stage.publish(WEB, allow=("127.0.0.8/31", "::1/128"))
    stage.echo("host", "127.0.0.1", 53)
    stage.bound("host", "127.0.0.7").sendto(b"?", ("127.0.0.1", PORT))
    assert stage.until(lambda: port.counters.refused == 1)
    assert port.flows == 0
    assert stage.ask(stage.bound("host", "127.0.0.9"), "127.0.0.1")[0] == b"host ?"
    assert stage.ask(stage.bound("host", "::1"), "::1")[0] == b"host ?"


def test_idle_flows_end_and_one_way_flows_stay_while_datagrams_come(stage: Stage) -> None:
    port = stage.publish(WEB, idle_s=10.0)
    target = stage.bound("host", "127.0.0.1", 53)
    silent, writer = stage.bound("host", "127.0.0.1"), stage.bound("host", "127.0.0.1")
    silent.sendto(b"silent", ("127.0.0.1", PORT))
    stage.receive(target)
    began = stage.poller.now  # before the next datagram: each round has a later time
    writer.sendto(b"writer", ("127.0.0.1", PORT))
    _, first = stage.receive(target)
    port.sweep(began + 9.999)
    assert port.flows == 2
    port.sweep(began + 10.0)
    assert port.flows == port.counters.active == 1
    writer.sendto(b"writer", ("127.0.0.1", PORT))
    assert stage.receive(target)[1] == first
    port.sweep(stage.poller.now + 10.0)
    assert port.flows == port.counters.active == 0


def test_a_flow_stays_while_only_the_target_talks(stage: Stage) -> None:
    port = stage.publish(WEB, idle_s=10.0)
    target, client = stage.bound("host", "127.0.0.1", 53), stage.bound("host", "127.0.0.1")
    client.sendto(b"subscribe", ("127.0.0.1", PORT))
    _, relay = stage.receive(target)
    began = stage.poller.now
    target.sendto(b"news", relay)
    assert stage.receive(client)[0] == b"news"
    port.sweep(began + 10.0)
    assert port.flows == 1


# Targets that fail


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_a_refusal_is_counted_and_the_flow_works_once_the_target_is_there(stage: Stage, ip: str) -> None:
    port = stage.publish(Target(ip, 53))
    client = stage.bound("host", "127.0.0.1")
    for sent in (1, 2, 3):
        client.sendto(b"?", ("127.0.0.1", PORT))
        assert stage.until(lambda sent=sent: port.counters.failed == sent), "each refusal is counted once"  # type: ignore[misc]
    target = stage.echo("host", ip, 53)
    assert stage.ask(client, "127.0.0.1") == (b"host ?", ("127.0.0.1", PORT))
    stage.stop(target)
    client.sendto(b"?", ("127.0.0.1", PORT))
    assert stage.until(lambda: port.counters.failed == 4)
    stage.echo("host", ip, 53, "again")
    assert stage.ask(client, "127.0.0.1")[0] == b"again ?"
    assert port.counters.connections == port.flows == 1


def test_datagrams_sent_in_a_row_survive_the_refusal_of_the_first(stage: Stage) -> None:
    """The kernel tells of a refusal in place of sending the next datagram."""
    stage.publish(WEB)
    client = stage.bound("host", "127.0.0.1")
    client.sendto(b"lost", ("127.0.0.1", PORT))
    client.sendto(b"lost", ("127.0.0.1", PORT))
    stage.poller.select(0.1)
    target = stage.bound("host", "127.0.0.1", 53)
    client.sendto(b"kept", ("127.0.0.1", PORT))
    assert stage.receive(target)[0] == b"kept"


def test_flows_are_spread_over_the_targets_and_a_dead_one_is_left_out(stage: Stage) -> None:
    port = stage.publish(Target("127.0.0.1", 53), Target("127.0.0.1", 54))
    stage.echo("host", "127.0.0.1", 53, "a")
    second = stage.echo("host", "127.0.0.1", 54, "b")
    clients = [stage.bound("host", "127.0.0.1") for _ in range(4)]
    names = [stage.ask(client, "127.0.0.1")[0] for client in clients]
    assert sorted(names) == [b"a ?", b"a ?", b"b ?", b"b ?"]
    assert [stage.ask(client, "127.0.0.1")[0] for client in clients] == names, "a flow keeps its target"
    stage.stop(second)
    orphan = clients[names.index(b"b ?")]
    orphan.sendto(b"lost", ("127.0.0.1", PORT))
    assert stage.until(lambda: port.counters.failed == 1)
    assert [str(target) for target in port.balancer.dead(stage.poller.now)] == ["127.0.0.1:54"]
    assert stage.ask(orphan, "127.0.0.1")[0] == b"a ?"
    for _ in range(3):
        assert stage.ask(stage.bound("host", "127.0.0.1"), "127.0.0.1")[0] == b"a ?"


@pytest.mark.parametrize(("family", "gone"), [("ipv4", "198.51.100.99"), ("ipv6", "2001:db8:1::99")])
def test_a_target_that_left_the_lan_counts_as_failed(stage: Stage, family: str, gone: str) -> None:
    """Nobody answers ARP or neighbour discovery: the kernel says so only to who reads the error queue."""
    stage.lab["host"].run(["sysctl", "-qw", f"net.{family}.neigh.lan0.retrans_time_ms=20"], check=True)
    port = stage.publish(Target(gone, 53), Target("127.0.0.1", 53))
    stage.echo("host", "127.0.0.1", 53)
    clients = [stage.bound("host", "127.0.0.1") for _ in range(2)]
    for client in clients:
        client.sendto(b"?", ("127.0.0.1", PORT))
    assert stage.until(lambda: port.counters.failed == 1)
    for client in clients:
        assert stage.ask(client, "127.0.0.1", data=b"!")[0] in (b"host !", b"host ?")


def test_an_answer_makes_a_failed_target_alive_again(stage: Stage) -> None:
    port = stage.publish(WEB)
    client = stage.bound("host", "127.0.0.1")
    for name in ("first", "second"):
        client.sendto(b"lost", ("127.0.0.1", PORT))
        assert stage.until(lambda: bool(port.balancer.dead(stage.poller.now)))
        target = stage.echo("host", "127.0.0.1", 53, name)
        assert stage.ask(client, "127.0.0.1")[0] == f"{name} ?".encode()
        assert port.balancer.dead(stage.poller.now) == []
        stage.stop(target)


def test_a_target_that_takes_nothing_stalls_nobody(stage: Stage) -> None:
    """Its flow's socket is full of datagrams that wait for an address; they are dropped, and those of others pass."""
    stage.places.send_buffer = 1  # the kernel makes it its minimum
    full = stage.publish(Target("198.51.100.99", 53))
    stage.places.send_buffer = 1
    well = stage.publish(WEB, first=5354)
    stage.echo("host", "127.0.0.1", 53)
    flooding, client = stage.bound("host", "127.0.0.1"), stage.bound("host", "127.0.0.1")
    for _ in range(100):
        flooding.sendto(bytes(1400), ("127.0.0.1", PORT))
    assert stage.ask(client, "127.0.0.1", 5354)[0] == b"host ?"
    waiting = stage.lab["host"].run(["ip", "neighbour", "show", "198.51.100.99"]).stdout
    assert "INCOMPLETE" in waiting  # the kernel still asks for the address: the socket is full
    assert stage.until(lambda: full.counters.dropped >= 50)
    assert well.counters.dropped == 0


def test_a_container_that_was_restarted_is_found_in_its_new_namespace(stage: Stage, tmp_path: Path) -> None:
    link = tmp_path / "netns"
    link.symlink_to(f"/proc/self/fd/{stage.lab['c1'].net}")
    port = stage.publish(Target("127.0.0.1", 53, Place(path=str(link))))
    before = stage.echo("c1", "127.0.0.1", 53)
    client = stage.bound("host", "127.0.0.1")
    assert stage.ask(client, "127.0.0.1")[0] == b"c1 ?"
    stage.stop(before)
    link.unlink()
    client.sendto(b"?", ("127.0.0.1", PORT))
    assert stage.until(lambda: port.counters.failed == 1)
    client.sendto(b"?", ("127.0.0.1", PORT))  # while there is no such container
    assert stage.until(lambda: port.counters.dropped == 1)
    assert port.flows == 1
    link.symlink_to(f"/proc/self/fd/{stage.lab['c2'].net}")
    stage.echo("c2", "127.0.0.1", 53)
    stage.until(lambda: False, 0.55)  # RETRY_S
    assert stage.ask(client, "127.0.0.1")[0] == b"c2 ?"


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing more unless it closes something."""
    highest = max(map(int, os.listdir("/proc/self/fd")))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


def test_without_descriptors_the_oldest_flow_makes_room_and_nothing_ends(stage: Stage) -> None:
    port = stage.publish(WEB)
    stage.echo("host", "127.0.0.1", 53)
    clients = [stage.bound("host", "127.0.0.1") for _ in range(4)]
    with no_descriptors():
        clients[0].sendto(b"?", ("127.0.0.1", PORT))
        assert stage.until(lambda: port.counters.dropped == 1)
        assert port.flows == 0
    for client in clients[:2]:
        assert stage.ask(client, "127.0.0.1")[0] == b"host ?"
    with no_descriptors():
        for client in clients[2:]:
            assert stage.ask(client, "127.0.0.1")[0] == b"host ?"
        assert port.flows == 2
    assert stage.ask(clients[0], "127.0.0.1")[0] == b"host ?"
    assert port.flows == 3
    assert port.counters.failed == 0, "the target is not to blame"


def test_without_descriptors_containers_are_reached_as_well(stage: Stage) -> None:
    port = stage.publish(Target("127.0.0.1", 53, place_of(stage.lab["c1"])))
    stage.echo("c1", "127.0.0.1", 53)
    clients = [stage.bound("host", "127.0.0.1") for _ in range(6)]
    for client in clients[:3]:
        assert stage.ask(client, "127.0.0.1")[0] == b"c1 ?"
    with no_descriptors():
        for client in clients[3:]:
            assert stage.ask(client, "127.0.0.1")[0] == b"c1 ?"
    assert port.flows == 2
    assert port.counters.failed == 0, "the target is not to blame"


# Changes


def test_flows_keep_their_target_when_the_mapping_gets_another(stage: Stage) -> None:
    port = stage.publish(Target("127.0.0.1", 53))
    old = stage.echo("host", "127.0.0.1", 53, "old")
    stage.echo("host", "127.0.0.1", 54, "new")
    client, other = stage.bound("host", "127.0.0.1"), stage.bound("host", "127.0.0.2")
    assert stage.ask(client, "127.0.0.1")[0] == b"old ?"
    assert stage.ask(other, "127.0.0.1")[0] == b"old ?"
    port.update(Mapping("m", "udp", ("0.0.0.0", "::"), PORT, PORT, (Target("127.0.0.1", 54),), allow=("127.0.0.1/32",)))
    assert stage.ask(client, "127.0.0.1")[0] == b"old ?"
    assert stage.ask(stage.bound("host", "127.0.0.1"), "127.0.0.1")[0] == b"new ?"
    other.sendto(b"?", ("127.0.0.1", PORT))
    assert stage.until(lambda: port.counters.refused == 1), "a client no longer allowed loses its flow"
    stage.stop(old)
    client.sendto(b"?", ("127.0.0.1", PORT))
    assert stage.until(lambda: port.counters.failed == 1)
    assert stage.ask(client, "127.0.0.1")[0] == b"new ?"


def test_a_target_given_to_a_mapping_that_had_none_left_is_used_at_once(stage: Stage) -> None:
    port = stage.publish(Target("127.0.0.1", 53, Place(path="/nonexistent/netns")))
    stage.echo("host", "127.0.0.1", 53)
    client = stage.bound("host", "127.0.0.1")
    client.sendto(b"lost", ("127.0.0.1", PORT))
    assert stage.until(lambda: port.counters.dropped == 1)
    assert (port.counters.failed, port.flows) == (1, 0)
    port.update(Mapping("m", "udp", ("0.0.0.0", "::"), PORT, PORT, (WEB,)))
    assert stage.ask(client, "127.0.0.1")[0] == b"host ?"


def test_removal_frees_the_port_and_all_descriptors_at_once(stage: Stage) -> None:
    before = len(os.listdir("/proc/self/fd"))
    port = stage.publish(WEB)
    client = stage.bound("host", "127.0.0.1")
    client.sendto(b"?", ("127.0.0.1", PORT))
    assert stage.until(lambda: port.flows == 1)
    port.drain(stage.poller.now + LONG_S)
    assert port.counters.active == 0
    assert len(os.listdir("/proc/self/fd")) == before + 1  # the client's
    stage.listening("0.0.0.0", PORT)
    port.close()


def test_a_successor_goes_on_with_the_sockets_and_flows(stage: Stage) -> None:
    predecessor = stage.publish(WEB)
    target = stage.bound("host", "127.0.0.1", 53)
    clients = {ip: stage.bound("host", ip) for ip in ("127.0.0.5", "::1")}
    heard = {}
    for ip, client in clients.items():
        client.sendto(b"before", (ip, PORT))
        heard[ip] = stage.receive(target)[1]
    descriptors: list[int] = []

    def put(fd: int) -> int:
        descriptors.append(os.dup(fd))
        return len(descriptors) - 1

    state = json.loads(json.dumps(udp_state.pack(predecessor, put)))
    for ip, client in clients.items():
        client.sendto(b"between", (ip, PORT))  # while nobody reads
        target.sendto(b"answer", heard[ip])
    predecessor.close()
    successor = stage.serve(predecessor.mapping, [])
    udp_state.unpack(successor, state, lambda number: descriptors[number] if isinstance(number, int) else -1)
    assert successor.flows == successor.counters.active == 2
    for ip, client in clients.items():
        assert stage.receive(client) == (b"answer", (ip, PORT))
    assert {stage.receive(target), stage.receive(target)} == {(b"between", relay) for relay in heard.values()}
    assert successor.counters.connections == 0


GOOD_FLOW: dict[str, object] = {
    "listener": 0,
    "client": ["127.0.0.1", 1],
    "local": "7f000001",
    "target": 0,
    "upstream": None,
    "active": 0.0,
}


@pytest.mark.parametrize(
    "change", [{"listener": 1}, {"client": [1, 1]}, {"target": 1}, {"target": -1}, {"active": None}, {"local": "x"}, {}]
)
def test_a_damaged_state_is_refused(stage: Stage, change: dict[str, object]) -> None:
    port = stage.serve(Mapping("m", "udp", ("127.0.0.1",), PORT, PORT, (WEB,)), [])
    listener = stage.listening("127.0.0.1", PORT).detach()
    state: dict[str, object] = {"listeners": [[PORT, 0]], "flows": [GOOD_FLOW | change]}
    with pytest.raises(ValueError, match=r"not|non") if change else contextlib.nullcontext():
        udp_state.unpack(port, state, lambda _: listener)
    assert port.flows == (0 if change else 1)


@pytest.mark.parametrize("state", [None, {"listeners": []}, {"listeners": [["x", 0]], "flows": []}])
def test_what_is_no_state_is_refused(stage: Stage, state: object) -> None:
    port = stage.serve(Mapping("m", "udp", ("127.0.0.1",), PORT, PORT, (WEB,)), [])
    with pytest.raises((ValueError, Usage), match=r"not|no list"):
        udp_state.unpack(port, state, lambda _: -1)
