"""Published ports while the service comes, goes, and is killed under traffic; and while containers come and go.

No CNI call is made to get ports back that the service has once published.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conversation import CLIENT, HOST
from lab import ANSWER_S, Lab
from runtime import Plugins, mapping

from tests.conftest import need_root
from tests.packets.publisher_world import (
    GATEWAYS,
    PUBLISHED,
    QUIET_S,
    REFUSED,
    World,
    ask_link_local,
    link_local,
    usual,
    world,
)
from tests.portfwd.publisher import Publisher, serving
from tests.portfwd.talk import until

pytestmark = pytest.mark.ours_alone

PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
G = GATEWAYS["lab"]
G4 = GATEWAYS["four"][4]
HELD = 8120
STREAMED, INSIDE = 8099, 5399
RESTORED_S = 10.0
ANSWERS = 24  # of each client in a phase
ANSWERS_S = 30.0
# A TCP client that waits is one that hangs; a datagram that was with the service when that was killed is lost.
LIMITS = (ANSWER_S, 2 * QUIET_S, ANSWERS)


@pytest.fixture(scope="module", params=["auto"])
def host(request: pytest.FixtureRequest, plugins: Plugins) -> Iterator[World]:
    """Servers in the containers, which have no network yet; no service."""
    need_root()
    with world(plugins, str(request.param)) as found:
        found.serve("c1", "c2", "c4")
        yield found


@pytest.fixture
def empty(host: World) -> Iterator[World]:
    """The same for each test, which may leave containers attached."""
    yield host
    for name in host.attached():
        host.detach(name)
    host.let_go()


def test_without_the_service_a_port_has_what_nat_gives_it(empty: World) -> None:
    empty.attach("c1", *usual("c1"))
    assert empty.said("c1") == ""
    for protocol, port in PUBLISHED["c1"].items():
        assert empty.ask("host", "::1", port, protocol) == REFUSED
        assert empty.ask("host", "127.0.0.1", port, protocol) == f"c1 saw {G[4]}"
        for family in (4, 6):
            assert empty.ask("client", HOST[family], port, protocol) == f"c1 saw {CLIENT[family]}"
    empty.detach("c1")
    for family in (4, 6):
        assert empty.ask("client", HOST[family], PUBLISHED["c1"]["tcp"]) == REFUSED


def test_service_that_is_started_later_serves_what_was_there_before(empty: World) -> None:
    empty.attach("c1", *usual("c1"))
    with serving(empty.lab["host"]) as service:
        empty.attach("c4", *usual("c4"))
        for protocol, port in PUBLISHED["c4"].items():
            assert empty.ask("client", HOST[6], port, protocol) == f"c4 saw {G4}"
        assert until(lambda: any("/c1/" in str(one.get("label")) for one in service.ask("list")["mappings"]))
        for protocol, port in PUBLISHED["c1"].items():
            assert empty.ask("host", "::1", port, protocol) == f"c1 saw {G[6]}"
            assert empty.ask("client", HOST[4], port, protocol) == f"c1 saw {CLIENT[4]}"


def test_service_that_ends_and_starts_again_publishes_what_it_had(empty: World) -> None:
    with serving(empty.lab["host"]):
        empty.attach("c1", *usual("c1"))
        empty.attach("c4", *usual("c4"))
    for protocol in ("tcp", "udp"):
        assert empty.ask("host", "::1", PUBLISHED["c1"][protocol], protocol) == REFUSED
        assert empty.ask("client", HOST[6], PUBLISHED["c4"][protocol], protocol) == REFUSED
        assert empty.ask("client", HOST[4], PUBLISHED["c1"][protocol], protocol) == f"c1 saw {CLIENT[4]}"
    with serving(empty.lab["host"]):
        for protocol in ("tcp", "udp"):
            assert empty.ask("host", "::1", PUBLISHED["c1"][protocol], protocol) == f"c1 saw {G[6]}"
            assert empty.ask("client", HOST[6], PUBLISHED["c4"][protocol], protocol) == f"c4 saw {G4}"


def test_container_that_is_deleted_while_the_service_is_down_stays_unpublished(empty: World) -> None:
    with serving(empty.lab["host"]):
        empty.attach("c4", *usual("c4"))
    empty.detach("c4")
    with serving(empty.lab["host"]) as service:
        assert service.ask("list")["mappings"] == []
        assert empty.ask("client", HOST[6], PUBLISHED["c4"]["tcp"]) == REFUSED


def test_deleted_container_is_refused_at_once_on_every_path(empty: World) -> None:
    lab = empty.lab
    with serving(lab["host"]) as service:
        for _ in range(2):  # what is left of the first does not hinder the second
            empty.attach("c1", *usual("c1"))
            empty.attach("c2")
            for protocol, port in PUBLISHED["c1"].items():
                assert empty.ask("host", "::1", port, protocol) == f"c1 saw {G[6]}"
            empty.detach("c1")
            lab["client"].python(link_local, "eth0")
            address = lab["host"].python(link_local, "lan0")
            for protocol, port in PUBLISHED["c1"].items():
                paths = [("host", ip) for ip in ("127.0.0.1", "127.0.0.9", "::1", *HOST.values())]
                paths += [(node, ip) for node in ("client", "c2") for ip in HOST.values()]
                assert {empty.ask(node, ip, port, protocol) for node, ip in paths} == {REFUSED}
                assert lab["client"].python(ask_link_local, address, "eth0", port, protocol) == REFUSED
            empty.detach("c2")
        assert service.ask("list")["mappings"] == []


def test_port_goes_from_one_container_to_the_next(empty: World) -> None:
    with serving(empty.lab["host"]):
        for name in ("c1", "c2", "c1"):
            empty.attach(name, *usual("c1"))
            for protocol, port in PUBLISHED["c1"].items():
                assert empty.ask("host", "::1", port, protocol) == f"{name} saw {G[6]}"
                assert empty.ask("client", HOST[4], port, protocol) == f"{name} saw {CLIENT[4]}"
            empty.detach(name)


@pytest.mark.parametrize("family", [4, 6])
def test_udp_flow_that_the_service_took_while_the_rules_were_gone_returns_to_nat(empty: World, family: int) -> None:
    """A flow that stuck to the relay would hide its client for as long as it lasts: here for good, since both sides go on."""
    lab = empty.lab
    with serving(lab["host"]):
        empty.attach("c1", mapping(STREAMED, INSIDE, "udp"))
        streamer = lab["c1"].popen([sys.executable, "-c", STREAM, str(INSIDE)])
        client = lab["client"].popen(
            [sys.executable, "-c", LISTEN, HOST[family], str(STREAMED)], stdout=subprocess.PIPE
        )
        assert client.stdout is not None
        try:
            assert client.stdout.readline().decode() == f"{CLIENT[family]}\n"
            with nobody_restores(lab):
                lab["host"].run(["nft", "flush", "ruleset"], check=True)
                lab["host"].python(forget_flows)
                assert client.stdout.readline().decode() == f"{G[family]}\n"
            assert client.stdout.readline().decode() == f"{CLIENT[family]}\n"
        finally:
            for process in (client, streamer):
                process.kill()
                process.communicate()


# Tells each of its clients, again and again, who it takes it for; one that is silent for a second is gone.
STREAM = """
import socket, sys, time
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
sock.bind(("::", int(sys.argv[1])))
sock.settimeout(0.005)
seen = {}
while True:
    try:
        seen[sock.recvfrom(100)[1]] = time.monotonic()
    except TimeoutError:
        pass
    for peer, last in list(seen.items()):
        if time.monotonic() - last > 1:
            del seen[peer]
        else:
            sock.sendto(peer[0].removeprefix("::ffff:").encode(), peer)
"""
# Goes on asking from one port, and prints what it hears when that is something else than before.
LISTEN = """
import socket, sys, time
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], int(sys.argv[2])))
sock.settimeout(0.05)
heard, asked, end = "", 0.0, time.monotonic() + 60
while time.monotonic() < end:
    try:
        if time.monotonic() > asked + 0.05:
            asked = time.monotonic()
            sock.send(b"go on")
        said = sock.recv(100).decode()
    except OSError:
        continue
    if said != heard:
        heard = said
        print(heard, flush=True)
"""


@contextlib.contextmanager
def nobody_restores(lab: Lab) -> Iterator[None]:
    """The service notices lost rules within a fraction of a second; what it starts then waits for this lock."""
    holder = lab["host"].popen([sys.executable, "-c", HOLD_LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
    finally:
        holder.communicate(timeout=RESTORED_S)


HOLD_LOCK = """
import sys
from cni_py.attachment.locks import nftables_lock
with nftables_lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def forget_flows() -> None:
    """What conntrack knows, as it does in time; called inside the node."""
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

    with NFCTSocket() as conntrack:
        conntrack.flush()


# Clients that go on and on. A word on standard input names what they are doing it during; what spans two of them is "between".

TRAFFIC = """
import json, socket, sys, threading, time
phase, found, told = "", {}, set()

def ask(address, port, protocol):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as client:
            client.settimeout(float(sys.argv[3 if protocol == "udp" else 2]))
            client.connect((address, port))
            client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            text = b""
            while part := client.recv(4096):
                text += part
                if protocol == "udp":
                    break
    except TimeoutError:
        return "no answer"
    except OSError:
        return "refused"
    words = text.decode().rpartition("\\r\\n\\r\\n")[2].split()
    return f"{words[0]} saw {words[1]}" if words else "cut"

def all_have_answers(begun):
    counts = list(found[begun].values())
    return len(counts) == len(threads) and all(sum(count.values()) >= int(sys.argv[4]) for count in counts)

def work(stream):
    while phase != "end":
        begun = phase
        answer = ask(*stream)
        counts = found.setdefault(begun if begun == phase else "between", {}).setdefault(" ".join(map(str, stream)), {})
        counts[answer] = counts.get(answer, 0) + 1
        if begun == phase != "end" and begun not in told and all_have_answers(begun):
            told.add(begun)
            print(begun, flush=True)
        if answer == "refused":
            time.sleep(0.01)  # the kernel sends 1000 ICMP errors in a second, to all together (icmp_msgs_per_sec)

threads = [threading.Thread(target=work, args=(stream,)) for stream in json.loads(sys.argv[1])]
phase = sys.stdin.readline().strip()
for thread in threads:
    thread.start()
for line in sys.stdin:
    phase = line.strip()
phase = "end"
for thread in threads:
    thread.join()
print(json.dumps(found))
"""

Stream = tuple[str, int, str]


class Traffic:
    """Several clients of a node, each at its own port again and again."""

    def __init__(self, lab: Lab, node: str, expected: dict[Stream, str]) -> None:
        self.expected = expected
        args = [sys.executable, "-I", "-S", "-c", TRAFFIC, json.dumps(list(expected)), *map(str, LIMITS)]
        self.process = lab[node].popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.said = b""
        self.counts: dict[str, dict[str, dict[str, int]]] = {}

    def during(self, phase: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{phase}\n".encode())
        self.process.stdin.flush()

    def await_answers(self, phase: str) -> None:
        """Every client has had several in the phase."""
        assert self.process.stdout is not None
        output, line = self.process.stdout.fileno(), f"{phase}\n".encode()
        while line not in self.said and select.select([output], [], [], ANSWERS_S)[0]:
            self.said += os.read(output, 4096)
        assert line in self.said, f"clients without an answer {phase}"

    def end(self) -> None:
        """May be called twice."""
        if self.process.returncode is None:
            output, _ = self.process.communicate(timeout=ANSWERS_S)
            self.counts = json.loads(output.splitlines()[-1])

    def answers(self, phase: str, stream: Stream) -> set[str]:
        found = self.counts.get(phase, {}).get(" ".join(map(str, stream)), {})
        return set(found)


def clients(found: World) -> list[Traffic]:
    """Six at portfwd's ports and, with `auto`, two at NAT's."""
    tcp, udp = PUBLISHED["c4"]["tcp"], PUBLISHED["c4"]["udp"]
    web, dns = PUBLISHED["c1"]["tcp"], PUBLISHED["c1"]["udp"]
    away: dict[Stream, str] = {(HOST[6], tcp, "tcp"): f"c4 saw {G4}", (HOST[6], udp, "udp"): f"c4 saw {G4}"}
    here: dict[Stream, str] = {("::1", web, "tcp"): f"c1 saw {G[6]}", ("::1", dns, "udp"): f"c1 saw {G[6]}"}
    if found.use == "auto":
        here["::1", HELD, "tcp"] = f"c1 saw {G[6]}"
        away[HOST[4], web, "tcp"] = f"c1 saw {CLIENT[4]}"
        away[HOST[6], dns, "udp"] = f"c1 saw {CLIENT[6]}"
    else:
        away[HOST[4], web, "tcp"] = f"c1 saw {G[4]}"
        away[HOST[6], dns, "udp"] = f"c1 saw {G[6]}"
    return [Traffic(found.lab, "client", away), Traffic(found.lab, "host", here)]


@pytest.mark.parametrize("host", ["auto", "always"], indirect=True, scope="module")
def test_service_that_is_killed_under_traffic_serves_again_when_it_is_restarted(empty: World) -> None:
    """Meanwhile nobody hangs: what the service served is refused, and what NAT serves does not notice."""
    lab, more = empty.lab, []
    if empty.use == "auto":
        empty.hold("bound", "tcp", HELD)
        more = [mapping(HELD, 80)]
    first = Publisher(lab["host"])
    traffic: list[Traffic] = []
    try:
        empty.attach("c1", *usual("c1"), *more)
        empty.attach("c4", *usual("c4"))
        traffic = clients(empty)
        phase(traffic, "before", wait=True)
        phase(traffic, "killing")
        first.end(signal.SIGKILL)
        phase(traffic, "down", wait=True)
        phase(traffic, "starting")
        with serving(lab["host"]):
            phase(traffic, "after", wait=True)
            for one in traffic:
                one.end()
            empty.detach("c1")
            empty.detach("c4")
    finally:
        first.end(signal.SIGKILL)
        for one in traffic:
            one.end()
    for one in traffic:
        for stream, expected in one.expected.items():
            by_nat = any(expected.endswith(f" {ip}") for ip in CLIENT.values())
            assert one.answers("before", stream) == {expected}, stream
            assert one.answers("down", stream) == ({expected} if by_nat else {REFUSED}), stream
            assert one.answers("after", stream) == {expected}, stream
            if by_nat:
                assert one.answers("killing", stream) | one.answers("between", stream) <= {expected}, stream
            elif stream[2] == "tcp":
                assert "no answer" not in one.answers("killing", stream) | one.answers("between", stream), stream


def phase(traffic: list[Traffic], name: str, *, wait: bool = False) -> None:
    for one in traffic:
        one.during(name)
    for one in traffic if wait else ():
        one.await_answers(name)
