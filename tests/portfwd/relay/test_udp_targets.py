"""UDP targets that fail: what is counted, where the flow goes, and when a target is used again."""

from __future__ import annotations

from pathlib import Path

import pytest

from portfwd.mapping import Place, Target
from tests.portfwd.relay.udp_stage import PORT, WEB, Stage


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
    # The kernel asks for the address to the end of the test
    stage.lab["host"].run(["sysctl", "-qw", "net.ipv4.neigh.lan0.retrans_time_ms=60000"], check=True)
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
