"""UDP relayed between real sockets: from which address, which datagrams, and what a change of the mapping does."""

from __future__ import annotations

import contextlib
import json
import os
import time

import pytest

from portfwd.errors import Usage
from portfwd.mapping import Mapping, Place, Target
from portfwd.relay import proxyproto
from portfwd.service import udp_state
from tests.portfwd.relay.udp_stage import LONG_S, PORT, WEB, Stage, place_of

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
        end = time.monotonic() + LONG_S
        while time.monotonic() < end:
            show = ["ip", "-j", "-6", "addr", "show", "dev", ifname, "scope", "link", "-tentative"]
            found = json.loads(stage.lab[node].run(show, check=True).stdout)
            usable = [str(one["local"]) for part in found for one in part.get("addr_info", ()) if "local" in one]
            if usable:
                return usable[0]
        raise AssertionError(f"{node} has no address of the link {ifname}")

    def index(node: str, ifname: str) -> int:
        return int(json.loads(stage.lab[node].run(["ip", "-j", "link", "show", "dev", ifname]).stdout)[0]["ifindex"])

    # A second interface has a route for fe80::/64, too.
    stage.lab["host"].run(["ip", "link", "add", "other0", "up", "type", "veth", "peer", "name", "other1"], check=True)
    stage.publish(WEB)
    stage.echo("host", "127.0.0.1", 53)
    client = stage.bound("client", "::")
    zone = index("client", "eth0")
    ip = link_local("host", "lan0")
    link_local("client", "eth0")  # before, it sends from another one
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
