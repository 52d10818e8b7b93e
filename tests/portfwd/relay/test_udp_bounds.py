"""UDP flows beyond a limit: which ones end, and which clients are refused."""

from __future__ import annotations

import os
import socket

from portfwd.mapping import Target
from portfwd.relay.flows import QUESTION_S, TALKS_S
from tests.portfwd.relay.udp_stage import PORT, WEB, Stage, place_of
from tests.portfwd.stage import Log, descriptors_left


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


def test_without_descriptors_the_oldest_flow_makes_room_and_nothing_ends(stage: Stage) -> None:
    port = stage.publish(WEB)
    stage.echo("host", "127.0.0.1", 53)
    clients = [stage.bound("host", "127.0.0.1") for _ in range(4)]
    with descriptors_left(0):
        clients[0].sendto(b"?", ("127.0.0.1", PORT))
        assert stage.until(lambda: port.counters.dropped == 1)
        assert port.flows == 0
    for client in clients[:2]:
        assert stage.ask(client, "127.0.0.1")[0] == b"host ?"
    with descriptors_left(0):
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
    with descriptors_left(0):
        for client in clients[3:]:
            assert stage.ask(client, "127.0.0.1")[0] == b"c1 ?"
    assert port.flows == 2
    assert port.counters.failed == 0, "the target is not to blame"
