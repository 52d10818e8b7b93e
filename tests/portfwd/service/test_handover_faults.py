"""What a successor takes over in the middle of things, and what does not come over well."""

from __future__ import annotations

import json
import os
import socket

import pytest
from lab import Lab

from portfwd.errors import PortfwdError
from portfwd.relay.tcp import TcpPort
from portfwd.service import handover
from tests.portfwd.stage import BULK, WAIT_S, Stage, descriptors_left, mapping_of
from tests.portfwd.talk import HOST, INSIDE, PORT


def handed_over(stage: Stage, then: Stage) -> None:
    """What a successor gets, within one process; `stage` turns no more."""
    with socket.socket(socket.AF_UNIX) as control, open(os.devnull, "rb") as lock:
        parcel = handover.pack(stage.relay, control, lock.fileno())
        parcel.descriptors = list(map(os.dup, parcel.descriptors))
        control_now, lock_now = handover.unpack(then.relay, parcel)
        control_now.close()
        os.close(lock_now)
        parcel.close()
    for published in stage.relay.published:  # without a word, as by _exit
        forget(published.server)
    for server in stage.relay.draining_servers:
        forget(server)
    stage.relay._published.clear()
    stage.relay._draining.clear()


def forget(server: object) -> None:
    assert isinstance(server, TcpPort)
    for one in server.connections:
        one.client.close()
        if one.target is not None:
            one.target.close()
        for half in (one.up, one.down):
            if half is not None and half.pipe is not None:
                half.pipe.close()
    for listener in server.listeners:
        listener.sock.close()


def header_unsent() -> tuple[bytes, int, int]:
    """Handed over while connect(2) is under way: the header and what the client said come, in this order."""
    with Stage() as stage, Stage() as then:
        stage.publish(proxy_protocol=1, connect_timeout_s=60.0)
        full = stage.target(backlog=0)
        first = socket.create_connection((HOST, INSIDE), WAIT_S)
        client = stage.client()
        client.send(b"hello")
        client.shutdown(socket.SHUT_WR)
        stage.turn()
        handed_over(stage, then)
        full.accept()[0].close()
        first.close()
        server = then.accepted(full)
        got, how = then.all_of(server)
        assert how == "end"
        server.close()
        port = then.relay.server("m")
        assert then.until(lambda: port.counters.active == 0)
        source = client.getsockname()[1]
        return got.replace(str(source).encode(), b"N"), port.counters.connections, port.counters.active


def test_a_connection_handed_over_while_connecting_sends_its_header(machine: Lab) -> None:
    assert machine["host"].python(header_unsent) == (b"PROXY TCP4 127.0.0.1 127.0.0.1 N 8080\r\nhello", 1, 0)


def full_pipes(drains: bool) -> tuple[bool, str, int, int]:
    """Handed over with pipe and buffers full and the end already read; of a mapping that drains, too."""
    with Stage() as stage, Stage() as then:
        port = stage.publish()
        client, server = stage.pair()
        pushed = 0
        quiet = 0
        while quiet < 5:
            try:
                pushed += server.send(os.urandom(1 << 16) if not pushed else BULK)
                quiet = 0
            except BlockingIOError:
                quiet += 1
            stage.turn(1)
        server.shutdown(socket.SHUT_WR)
        stage.turn()
        (one,) = port.connections
        assert one.down is not None
        assert one.down.pipe is not None
        assert one.down.pipe.filled > 0
        if drains:
            stage.relay.remove("m", 30.0)
        handed_over(stage, then)
        got, how = then.all_of(client)
        client.send(b"bye")
        then.turn()
        client.close()
        assert then.all_of(server) == (b"bye", "end")
        assert then.until(lambda: then.relay.draining == 0)
        ports = [published.server.counters.active for published in then.relay.published]
        return len(got) == pushed, how, len(ports), sum(ports)


@pytest.mark.parametrize("drains", [False, True])
def test_full_pipes_and_an_end_are_handed_over(machine: Lab, drains: bool) -> None:
    whole, how, mappings, _ = machine["host"].python(full_pipes, drains)
    assert (whole, how, mappings) == (True, "end", 0 if drains else 1)


def version_1(redirected: bool) -> tuple[bytes, str]:
    """What comes back to a flow and a connection from a state as services before sk_lookup handed it over."""
    with Stage() as stage, Stage() as then, socket.socket(type=socket.SOCK_DGRAM) as peer:
        stage.publish()
        stage.relay.publish(mapping_of(id="u", protocol="udp", first=PORT + 10, last=PORT + 11))
        peer.connect((HOST, PORT + 11))
        peer.settimeout(WAIT_S)
        with socket.socket(type=socket.SOCK_DGRAM) as server, open(os.devnull, "rb") as lock:
            server.bind((HOST, INSIDE + 1))
            server.settimeout(WAIT_S)
            peer.send(b"question")
            stage.turn()
            _, upstream = server.recvfrom(100)
            parcel = handover.pack(stage.relay, server, lock.fileno())  # any socket does for the control socket
            state = json.loads(json.dumps(parcel.state))
            state |= {"version": 1, "redirect_listeners": {}}
            del state["steering"]
            for raw in state["mappings"]:
                raw["redirected"] = ["0.0.0.0"] if redirected else []
                del raw["steered"], raw["unsteered"]
                raw.get("udp", {}).pop("exits", None)
                for flow in raw.get("udp", {}).get("flows", ()):
                    del flow["port"]
            parcel.state = state
            parcel.descriptors = list(map(os.dup, parcel.descriptors))
            try:
                control, lock_now = handover.unpack(then.relay, parcel)
            except PortfwdError as error:
                parcel.close()
                return b"", str(error)
            control.close()
            os.close(lock_now)
            server.sendto(b"answer", upstream)
            then.turn()
            stage.relay._published.clear()
            return peer.recv(100), ""


def test_what_a_version_before_hands_over_is_understood_but_for_ranges_by_nftables(machine: Lab) -> None:
    assert machine["host"].python(version_1, False) == (b"answer", "")
    _, refusal = machine["host"].python(version_1, True)
    assert "leads a range of ports by nftables" in refusal


def truncated() -> str:
    """The successor may open less than the predecessor sends."""
    ours, theirs = socket.socketpair()
    with ours, theirs, descriptors_left(2):
        socket.send_fds(theirs, [b"."], [0, 1, 2, 0, 1, 2])
        ours.settimeout(WAIT_S)
        try:
            handover.receive(ours)
        except PortfwdError as error:
            return f"{type(error).__name__}: {error}"
        return ""


def test_descriptors_that_do_not_fit_are_noticed_at_once(machine: Lab) -> None:
    assert machine["host"].python(truncated).startswith("Lacking: ")  # and no TimeoutError


@pytest.mark.parametrize("spoken", [True, False])
def test_a_successor_that_speaks_too_late_learns_of_it(spoken: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        if spoken:
            handover.confirm(theirs)
        assert handover.last_word(ours) == (b"done clients\n" if spoken else b"")
        if not spoken:
            with pytest.raises(BrokenPipeError):
                handover.confirm(theirs)


def damaged() -> str:
    with Stage() as stage:
        null = os.open(os.devnull, os.O_RDONLY)
        unix = socket.socket(socket.AF_UNIX)
        tcp = socket.socket()
        parcel = handover.Parcel(descriptors=[unix.detach(), null, tcp.detach()])
        connection = {"client": 2, "client_ip": HOST, "preface": "", "candidates": [[7, 80]], "serving": None}
        parcel.state = {
            "version": handover.VERSION,
            "control": 0,
            "lock": 1,
            "steering": None,
            "draining": [],
            "mappings": [
                {
                    "mapping": mapping_of().to_json(),
                    "steered": [],
                    "listeners": [],
                    "counters": {},
                    "cut_in": 0.0,
                    "connections": [connection],
                }
            ],
        }
        try:
            handover.unpack(stage.relay, parcel)
        except PortfwdError as error:
            return error.msg
        finally:
            parcel.close()
    return ""


def test_a_damaged_state_is_a_sentence(machine: Lab) -> None:
    assert "damaged" in machine["host"].python(damaged)
