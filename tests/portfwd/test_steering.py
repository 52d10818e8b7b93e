"""Long ranges: one socket for each address, to which a BPF program leads all ports, with real clients."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import Lab
from node import SLOWNESS
from runtime import Network, Plugins, mapping

from portfwd.service.client import Client
from portfwd.steering import bpf
from portfwd.steering.lookup import prefixes
from portfwd.steering.reserved import bits, read, spans, write
from tests.portfwd import talk
from tests.portfwd.publisher import SOCKET, STATE, Publisher, exchange, serving

FIRST, LAST, INSIDE = 20000, 29999, 8000
PORTS = (FIRST, 25000, LAST)
HOST4, HOST6, OTHER4 = "198.51.100.1", "2001:db8:1::1", "198.51.100.2"
WAIT_S = 10.0 * SLOWNESS
QUIET_S = 0.3  # for an answer that is not to come: most are refused at once
BPF_PROG_QUERY = 16  # linux/bpf.h
SETTING = "net.ipv4.ip_local_reserved_ports"
PROTOCOLS = ("tcp", "udp")
BOTH = pytest.mark.parametrize("protocol", PROTOCOLS)


# What runs inside the lab


def serve(stop: Path) -> None:
    """On the loopback, and at the ports that PORTS lead to: answer what comes with the port and what was said."""
    socks = []
    for port in PORTS:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            sock = socket.socket(socket.AF_INET, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((talk.HOST, INSIDE + port - FIRST))
            if kind == socket.SOCK_STREAM:
                sock.listen(64)
            socks.append(sock)
    stop.with_suffix(".ready").touch()
    while not stop.exists():
        for sock in select.select(socks, [], [], 0.1)[0]:
            port = FIRST + sock.getsockname()[1] - INSIDE
            if sock.type == socket.SOCK_STREAM:
                Thread(target=converse, args=(sock.accept()[0], port)).start()
            else:
                said, peer = sock.recvfrom(2000)
                sock.sendto(said + b" %d" % port, peer)


def converse(client: socket.socket, port: int) -> None:
    with client, contextlib.suppress(OSError):
        while said := client.recv(2000):
            client.sendall(said + b" %d" % port)


def client_of(protocol: str, address: str, port: int, wait_s: float = WAIT_S) -> socket.socket:
    """Connected: it takes answers from that address and port alone."""
    host, _, scope = address.partition("%")
    where = (host, port, 0, socket.if_nametoindex(scope)) if scope else (host, port)
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    sock.settimeout(wait_s)
    try:
        sock.connect(where)
    except OSError:
        sock.close()
        raise
    return sock


def say(sock: socket.socket, word: bytes = b"hello") -> bytes:
    sock.send(word)
    return sock.recv(2000)


def ask(protocol: str, address: str, port: int, wait_s: float = WAIT_S) -> bytes:
    """What the server answers; b"" when nobody does."""
    try:
        with client_of(protocol, address, port, wait_s) as sock:
            return say(sock)
    except (ConnectionError, TimeoutError):
        return b""


def ask_all(addresses: list[str], ports: tuple[int, ...]) -> dict[tuple[str, str, int], bytes]:
    wait_s = {port: WAIT_S if port in PORTS else QUIET_S for port in ports}
    return {
        (how, ip, port): ask(how, ip, port, wait_s[port]) for how in PROTOCOLS for ip in addresses for port in ports
    }


def programs() -> int:
    """How many the namespace asks."""
    with open("/proc/self/ns/net", "rb") as namespace:  # union bpf_attr, query
        asked = struct.pack("=IIIIQII", namespace.fileno(), bpf.SK_LOOKUP, 0, 0, 0, 0, 0)
        answer = ctypes.create_string_buffer(asked, len(asked))
        libc = ctypes.CDLL(None)
        assert libc.syscall(bpf.SYSCALLS[os.uname().machine], BPF_PROG_QUERY, answer, len(asked)) == 0
    return int(struct.unpack_from("=I", answer.raw, 24)[0])


def descriptors() -> int:
    """How many the service has open, one of them for this: it has closed earlier connections by the second answer."""
    with contextlib.closing(Client.connect(SOCKET)) as client:
        for _ in range(2):
            service = client.request({"verb": "stats"})["service"]
        assert isinstance(service, dict)
        return len(os.listdir(f"/proc/{service['pid']}/fd"))


def reserved() -> str:
    return Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text().strip()


# Fixtures


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab with the server on its host, and a second address there."""
    stop = tmp_path_factory.mktemp("steering") / "stop"
    with Lab.from_yaml("lan.yaml") as lab:
        lab["host"].run(["ip", "address", "add", f"{OTHER4}/24", "dev", "lan0"], check=True)
        server = Thread(target=lambda: lab["host"].python(serve, stop, timeout_s=300.0))
        server.start()
        try:
            while not stop.with_suffix(".ready").exists():
                time.sleep(0.02)
            yield lab
        finally:
            stop.touch()
            server.join()


@pytest.fixture
def service(machine: Lab) -> Iterator[Publisher]:
    with serving(machine["host"]) as publisher:
        yield publisher
        names = [one["id"] for one in publisher.ask("list")["mappings"]]
        publisher.ask("remove", ids=names, drain_s=0.0)
    assert machine["host"].python(programs) == 0
    assert machine["host"].python(reserved) == ""


def publish(publisher: Publisher, *host_ips: str, protocols: tuple[str, ...] = PROTOCOLS, **fields: object) -> None:
    """PORTS of some addresses, for each protocol a mapping of that name."""
    usual = {"host_ips": host_ips or ("0.0.0.0", "::"), "first": FIRST, "last": LAST}
    for protocol in protocols:
        name = str(fields.get("id", protocol))
        publisher.publish("", 0, (talk.HOST, INSIDE), **{**usual, "protocol": protocol, **fields, "id": name})


def link_local(lab: Lab) -> str:
    """The host's on the LAN, when neither it nor the client's is tentative any more."""
    found = []
    for name, interface in (("client", "eth0"), ("host", "lan0")):
        command = ["ip", "-6", "-o", "address", "show", "dev", interface, "scope", "link", "-tentative"]
        end = time.monotonic() + WAIT_S
        while "fe80" not in (text := lab[name].run(command).stdout):
            assert time.monotonic() < end, f"{name} has no link-local address"
            time.sleep(0.05)
        found.append(text.split("inet6 ")[1].split("/")[0])
    return found[-1]


# Where clients arrive


def test_one_socket_serves_ten_thousand_ports_of_every_address(machine: Lab, service: Publisher) -> None:
    before = machine["host"].python(descriptors)
    publish(service)
    assert machine["host"].python(descriptors) == before + 4 + 3  # sockets, two maps, a link
    scoped = link_local(machine)
    for who, addresses in (
        ("host", ["127.0.0.1", "127.0.0.9", "::1", HOST4, OTHER4, HOST6, f"{scoped}%lan0"]),
        ("client", [HOST4, OTHER4, HOST6, f"{scoped}%eth0"]),
    ):
        found = machine[who].python(ask_all, addresses, (*PORTS, FIRST - 1, LAST + 1))
        for (how, ip, port), answer in found.items():
            assert answer == (b"hello %d" % port if port in PORTS else b""), (who, how, ip, port)
    said = service.ask("list")["mappings"]
    assert [one["state"]["served_by"] for one in said] == ["sk_lookup", "sk_lookup"]
    assert said[1]["state"]["otherwise"] == "a socket for each of 10000 ports"


def test_an_address_does_not_take_what_comes_for_others(machine: Lab, service: Publisher) -> None:
    publish(service, "127.0.0.1", "::1")
    publish(
        service,
        HOST4,
        id="lan",
        protocols=("tcp",),
        targets=[{"address": talk.HOST, "port": INSIDE + 5000}],
        last=25000,
    )
    here = machine["host"].python(ask_all, ["127.0.0.1", "127.0.0.9", "::1", HOST4, OTHER4, HOST6], (FIRST,))
    assert {(how, ip) for (how, ip, _), answer in here.items() if answer} == {
        *(("tcp", ip) for ip in ("127.0.0.1", "::1", HOST4)),
        *(("udp", ip) for ip in ("127.0.0.1", "::1")),
    }
    assert here["tcp", HOST4, FIRST] == b"hello 25000"  # another mapping's, of the same port
    taken = service.ask(
        "publish", mappings=[{**service.ask("list")["mappings"][0], "id": "any", "host_ips": ["0.0.0.0"]}]
    )
    assert taken["ok"] is False


def test_what_is_removed_leads_nowhere_though_others_stay(machine: Lab) -> None:
    ask_host = machine["host"].python
    with serving(machine["host"]) as publisher:
        publish(publisher)
        publisher.ask("remove", ids=["tcp"], drain_s=0.0)
        assert ask_host(ask, "tcp", "127.0.0.1", 25000) == b""
        publish(publisher, id="new", protocols=("tcp",), first=30000, last=30099)  # in the place of the one that went
        assert ask_host(ask, "tcp", "127.0.0.1", 25000) == b""
        assert ask_host(ask, "udp", "127.0.0.1", 25000) == b"hello 25000"
        assert ask_host(ask, "tcp", "127.0.0.1", 30000) == b"hello %d" % FIRST
        publisher.ask("remove", ids=["udp", "new"], drain_s=0.0)
        assert "steered" not in publisher.end()


@BOTH
def test_the_firewall_of_the_host_decides(machine: Lab, service: Publisher, protocol: str) -> None:
    publish(service, protocols=(protocol,))
    host, client = machine["host"], machine["client"]
    host.run(["nft", "add table inet fw; add chain inet fw in { type filter hook input priority 0; policy accept; };"
              f"add rule inet fw in {protocol} dport 25000 drop"], check=True)  # fmt: skip
    for address in (HOST4, HOST6):
        assert client.python(ask, protocol, address, FIRST) == b"hello %d" % FIRST
        assert client.python(ask, protocol, address, 25000, 0.2) == b""
    host.run(["nft", "flush ruleset"], check=True)
    assert client.python(ask, protocol, HOST4, 25000) == b"hello 25000"


def beside_connections(port: int) -> list[bytes]:
    """What a connection and a UDP socket with a peer, both of this host and from ports of a range, hear when it is published."""
    found = []
    with talk.listening(7000) as listener, socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        far = socket.socket(type=socket.SOCK_DGRAM)
        tcp.bind((talk.HOST, port))
        tcp.connect((talk.HOST, 7000))
        server, _ = listener.accept()
        far.bind((talk.HOST, 7001))
        udp.bind((talk.HOST, port))
        udp.connect((talk.HOST, 7001))
        for how in PROTOCOLS:
            target = [{"address": talk.HOST, "port": INSIDE}]
            fields = {
                "id": how,
                "protocol": how,
                "host_ips": ["0.0.0.0"],
                "first": FIRST,
                "last": LAST,
                "targets": target,
            }
            assert exchange(SOCKET, {"verb": "publish", "mappings": [fields]})["ok"]
        server.sendall(b"row")
        far.sendto(b"answer", udp.getsockname())
        for sock in (tcp, udp):
            sock.settimeout(WAIT_S)
            found.append(sock.recv(100))
        server.close()
        far.close()
        return found + [ask(how, "127.0.0.1", 25000) for how in PROTOCOLS]


@pytest.mark.parametrize("port", [FIRST, 23000])
def test_connections_of_the_host_are_not_touched(machine: Lab, service: Publisher, port: int) -> None:
    assert machine["host"].python(beside_connections, port) == [b"row", b"answer", b"hello 25000", b"hello 25000"]


def header(protocol: str) -> bytes:
    """The PROXY header that a target gets of a client of port 25000."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(type=kind) as target:
        target.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        target.bind(("127.0.0.7", INSIDE + 25000 - FIRST))
        target.settimeout(WAIT_S)
        if protocol == "tcp":
            target.listen()
        with client_of(protocol, "127.0.0.9", 25000) as client:
            client.send(b"hello")
            got = target.accept()[0].recv(100) if protocol == "tcp" else target.recv(100)
    return got[16:28]


@BOTH
def test_allow_lists_limits_and_headers_are_those_of_single_ports(
    machine: Lab, service: Publisher, protocol: str
) -> None:
    publish(service, protocols=(protocol,), targets=[{"address": "127.0.0.7", "port": INSIDE}], proxy_protocol=2,
            allow=["127.0.0.0/8"])  # fmt: skip
    got = machine["host"].python(header, protocol)
    assert got[4:8] == socket.inet_aton("127.0.0.9")
    assert int.from_bytes(got[10:12], "big") == 25000
    assert machine["client"].python(ask, protocol, HOST4, 25000, 0.2) == b""
    assert service.stats(protocol)["refused"] == 1


# Who else has ports


@contextlib.contextmanager
def holding(lab: Lab, protocol: str, ip: str, port: int) -> Iterator[None]:
    server = lab.serve("host", port, protocol, address=ip)
    try:
        yield
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("protocol", "held", "published"),
    [("tcp", "0.0.0.0", "127.0.0.1"), ("tcp", "::1", "::"), ("udp", "127.0.0.9", "0.0.0.0"), ("udp", "::", "::1")],
)
def test_a_range_with_a_listener_inside_is_refused_at_publish_and_at_a_restart(
    machine: Lab, protocol: str, held: str, published: str
) -> None:
    with serving(machine["host"]) as publisher:
        with holding(machine, protocol, held, 25001):
            fields = {"id": "m", "protocol": protocol, "host_ips": [published], "first": FIRST, "last": LAST}
            fields["targets"] = [{"address": talk.HOST, "port": INSIDE}]
            refused = publisher.ask("publish", mappings=[fields])
            assert refused["error"]["kind"] == "in-use"
            assert f"port 25001/{protocol} on {published if ':' not in published else '[' + published + ']'}" in str(
                refused
            )
            assert "in use by python" in str(refused)
        publish(publisher, published, id="m", protocols=(protocol,))
    with holding(machine, protocol, held, 25001), serving(machine["host"]) as publisher:
        (waiting,) = publisher.ask("list")["mappings"]
        assert "in use by python" in waiting["state"]["waiting"]
        assert machine["host"].python(programs) == 0
        publisher.ask("remove", ids=["m"], drain_s=0.0)


@pytest.mark.ours_alone
def test_what_portmap_publishes_is_not_taken_from_it(machine: Lab, plugins: Plugins, service: Publisher) -> None:
    publish(service, protocols=("tcp",))
    network = Network(machine, plugins)
    machine.serve("c1", 80)
    network.attach("c1", mapping(25000, 80))
    for who, address in (("client", HOST4), ("client", HOST6), ("host", HOST4), ("host", "127.0.0.1")):
        assert machine.fetch(who, address, 25000).name == "c1"
    assert machine["host"].python(ask, "tcp", HOST4, FIRST) == b"hello %d" % FIRST
    network.detach("c1")
    assert machine["client"].python(ask, "tcp", HOST4, 25000) == b"hello 25000"


def late(port: int) -> tuple[bytes, bytes]:
    """Whom a client reaches at a port of a range on which a program listens later: while it is published, and afterwards."""
    with talk.listening(port, "127.0.0.1") as listener:
        first = ask("tcp", "127.0.0.1", port)
        (listed,) = exchange(SOCKET, {"verb": "list"})["mappings"]
        assert listed["state"]["unheard"][0].startswith(f"{port}/tcp of py")  # python or pytest
        exchange(SOCKET, {"verb": "remove", "ids": ["tcp"], "drain_s": 0})
        with client_of("tcp", "127.0.0.1", port) as client:
            client.send(b"for you")
            return first, listener.accept()[0].recv(100)


def test_who_listens_later_gets_clients_when_the_range_is_gone(machine: Lab, service: Publisher) -> None:
    publish(service, protocols=("tcp",))
    assert machine["host"].python(late, 25000) == (b"hello 25000", b"for you")


# Ports that the kernel shall not choose


ports = st.integers(1, 65535)
some_spans = st.lists(st.tuples(ports, ports).map(lambda two: (min(two), max(two))), max_size=6)


@given(some_spans)
def test_the_list_of_the_kernel_is_read_and_written(wanted: list[tuple[int, int]]) -> None:
    found = bits(wanted)
    runs = spans(found)
    assert read(write(found)) == found == bits(runs)
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(runs))


@given(st.tuples(ports, ports).map(lambda two: (min(two), max(two))))
def test_prefixes_are_the_range_and_nothing_else(span: tuple[int, int]) -> None:
    found = list(prefixes(*span))
    assert len(found) <= 30
    after = span[0]
    for start, length in found:
        assert start == after
        assert start % (1 << 16 - length) == 0
        after += 1 << 16 - length
    assert after == span[1] + 1


def test_the_kernel_chooses_none_of_a_range_and_others_keep_their_entries(machine: Lab) -> None:
    host = machine["host"]
    foreign = ",".join(map(str, range(1025, 5025, 2)))  # more than one write takes
    host.run(["sh", "-c", f"for ports in 25000 {foreign[:3999]}; do sysctl -qw {SETTING}=$ports; done"], check=True)
    before = host.python(reserved)
    with serving(host) as publisher:
        publish(publisher)
        assert host.python(reserved) == f"{before},20000-29999"
        publisher.end(signal.SIGKILL)
    assert host.python(programs) == 0
    assert host.python(reserved) == f"{before},20000-29999"
    host.run(["sh", "-c", f"rm {STATE}/mappings/*; nft add table inet portfwd"], check=True)  # of an earlier version
    with serving(host):
        assert host.python(reserved) == before
        assert "portfwd" not in host.run(["nft", "list", "tables"], check=True).stdout
    host.run(["sysctl", "-qw", f"{SETTING}="], check=True)


def test_a_range_that_leaves_the_host_no_ports_is_refused(machine: Lab, service: Publisher) -> None:
    fields = {"id": "m", "protocol": "tcp", "host_ips": ["0.0.0.0"], "first": 30000, "last": 60500}
    fields["targets"] = [{"address": "192.0.2.2", "port": 30000}]
    refused = service.ask("publish", mappings=[fields])
    assert "ports 30000-60500 would leave 499 to this host" in refused["error"]["msg"]


# Ends and successors


def replaced() -> list[bytes]:
    """Connections and flows over a reload; clients come all the time."""
    clients = {(how, port): client_of(how, "127.0.0.9", port) for how in PROTOCOLS for port in PORTS}
    before = exchange(SOCKET, {"verb": "stats"})["service"]["pid"]
    found = [say(sock, b"before") for sock in clients.values()]
    new: list[bytes] = []
    running = True

    def come() -> None:
        while running:
            new.append(ask("tcp", "127.0.0.1", 25000))
            new.append(ask("udp", "127.0.0.1", 25000))

    with talk.beside(come):
        exchange(SOCKET, {"verb": "reload"})
        assert talk.until(lambda: exchange(SOCKET, {"verb": "stats"})["service"]["pid"] != before)
        before_now = len(new)
        talk.until(lambda: len(new) > before_now + 4)  # the successor serves new clients, too
        running = False
    assert set(new) == {b"hello 25000"}
    return found + [say(sock, b"after") for sock in clients.values()]


def test_a_successor_goes_on_without_a_gap(machine: Lab, service: Publisher) -> None:
    publish(service)
    said = machine["host"].python(replaced)
    assert said == [b"%s %d" % (word, port) for word in (b"before", b"after") for _ in PROTOCOLS for port in PORTS]
    assert machine["host"].python(programs) == 1
    assert service.stats("udp")["active"] >= 3


def drained(how: str) -> tuple[bytes, bytes]:
    with client_of("tcp", "127.0.0.1", 25000) as client:
        say(client)
        if how == "remove":
            exchange(SOCKET, {"verb": "remove", "ids": ["tcp"], "drain_s": 20})
        else:
            os.kill(exchange(SOCKET, {"verb": "stats"})["service"]["pid"], signal.SIGTERM)
        assert talk.until(lambda: ask("tcp", "127.0.0.1", 25000) == b"")
        return say(client), b"none" if talk.until(lambda: not programs() and not reserved()) else b"some"


@pytest.mark.parametrize("how", ["remove", "terminate"])
def test_a_range_drains_like_a_single_port(machine: Lab, how: str) -> None:
    with serving(machine["host"]) as publisher:
        publish(publisher, protocols=("tcp",))
        assert machine["host"].python(drained, how) == (b"hello 25000", b"none")
    machine["host"].run(["rm", "-rf", f"{STATE}/mappings"], check=True)


# Where the kernel says no


@pytest.mark.parametrize(
    ("protocol", "prefix", "options", "why"),
    [
        ("tcp", ("setpriv", "--bounding-set", "-sys_admin,-bpf"), (), "CAP_BPF"),
        ("udp", ("setpriv", "--bounding-set", "-sys_admin,-bpf"), (), "CAP_BPF"),
        ("tcp", (), ("--no-redirect",), "--no-steer"),  # its earlier name
    ],
)
def test_where_nothing_can_be_steered_each_port_has_a_socket_and_ls_says_why(
    machine: Lab, protocol: str, prefix: tuple[str, ...], options: tuple[str, ...], why: str
) -> None:
    target = {"address": talk.HOST, "port": INSIDE + 5000}
    with serving(machine["host"], *options, prefix=prefix) as publisher:
        publish(publisher, protocols=(protocol,), first=25000, last=25100, targets=[target])
        assert machine["host"].python(ask, protocol, "127.0.0.1", 25000) == b"hello 25000"
        (one,) = publisher.ask("list")["mappings"]
        assert one["state"]["served_by"] == "a socket for each of 101 ports"
        assert why in one["state"]["no_sk_lookup"]
        other = {name: value for name, value in one.items() if name != "state"}
        other |= {"id": "n", "steer": "always", "first": 26000, "last": 26000}
        demanded = publisher.ask("publish", mappings=[other])
        publisher.ask("remove", ids=[protocol], drain_s=0.0)
    assert demanded["error"]["kind"] == "lacking"
    assert why in str(demanded["error"])
