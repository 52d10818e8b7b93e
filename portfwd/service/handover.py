"""A running service hands everything to its successor: listeners, running connections, pipes with their content.

    successor                                      predecessor
    {"verb": "handover", "version": 2}  ─────────→ stops serving (nothing is read or accepted any more)
              {"ok": true, "descriptors": n} ←──── and n descriptors by SCM_RIGHTS (unix(7)), the first of a memfd with the state
    serves; "done clients"  ─────────────────────→ ends, and closes no connection: the sockets stay open in the successor
    (hangs up, or says nothing for WAIT_S)         serves on as if nothing had happened

The kernel keeps the bytes of sockets that nobody reads, so nothing is lost meanwhile. Both processes run at the same time, so a
successor that cannot start does no harm. "clients" are those of the control socket: a successor of an older version does not say
the word, and hangs up on them.
"""

from __future__ import annotations

import base64
import json
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from portfwd import rights
from portfwd.errors import Lacking, PortfwdError, Usage
from portfwd.mapping import Mapping, Target
from portfwd.relay.connection import Connection
from portfwd.relay.listener import Listener
from portfwd.relay.publish import Published
from portfwd.relay.pump import Direction, Pipe
from portfwd.relay.tcp import TcpPort
from portfwd.relay.udp import UdpPort
from portfwd.service import udp_state
from portfwd.service.client import connected
from portfwd.service.control import Inherited, inherited
from portfwd.values import Json, integer, items, obj, objects, row, texts

if TYPE_CHECKING:
    from portfwd.relay.publish import Relay

VERSION = 2  # of the state
BEFORE = 1  # of services that led ranges by nftables; it can be read when there is no such range
WAIT_S = 10.0
BATCH = 200  # descriptors per message; at most rights.MOST
STATE_MAX = 1 << 28  # bytes
LINE_MAX = 65536
CLIENTS = "clients"  # of the control socket
DONE = b"done"
WORD_MAX = 64  # bytes

OTHER_FORM = "hands over in another form"  # part of a service's error; successors look for it


class OtherForm(PortfwdError):
    """The running service has another version of the state."""


@dataclass(slots=True)
class Parcel:
    """The state as a JSON object, in which a descriptor is its index in the list."""

    state: Json = field(default_factory=dict)
    descriptors: list[int] = field(default_factory=list)

    def put(self, fd: int) -> int:
        """Add a descriptor; returns its index."""
        self.descriptors.append(fd)
        return len(self.descriptors) - 1

    def take(self, number: object) -> int:
        """The descriptor of an index, which the caller owns then. PortfwdError."""
        if not isinstance(number, int) or not 0 <= number < len(self.descriptors) or self.descriptors[number] < 0:
            raise PortfwdError("the predecessor's state names a descriptor that it did not send", repr(number))
        fd, self.descriptors[number] = self.descriptors[number], -1
        return fd

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        for fd in self.descriptors:
            if fd >= 0:
                os.close(fd)
        self.descriptors.clear()


# Packing


def pack(relay: Relay, control: socket.socket, lock: int) -> Parcel:
    """All mappings and connections of `relay`, and the control socket with its lock. Closes and changes nothing."""
    parcel = Parcel()
    parcel.state = {
        "version": VERSION,
        "control": parcel.put(control.fileno()),
        "lock": parcel.put(lock),
        "steering": relay.steering.pack(parcel.put) if relay.steering is not None else None,
        "mappings": [
            {
                "mapping": published.mapping.to_json(),
                "steered": list(published.steered),
                "unsteered": published.unsteered,
                **pack_server(published.server, parcel),
            }
            for published in relay.published
        ],
        "draining": [
            {"mapping": server.mapping.to_json(), **pack_server(server, parcel)} for server in relay.draining_servers
        ],
    }
    return parcel


def pack_server(server: TcpPort | UdpPort, parcel: Parcel) -> Json:
    """The sockets and counters of a mapping."""
    if isinstance(server, UdpPort):
        return {"udp": udp_state.pack(server, parcel.put), "counters": server.counters.to_json()}
    now = server.poller.now
    return {
        "listeners": [[one.ip, one.port, parcel.put(one.sock.fileno())] for one in server.listeners],
        "connections": [pack_connection(one, parcel) for one in server.connections],
        "counters": server.counters.to_json(),
        "cut_in": max(0.001, server.cut_at - now) if server.cut_at else 0.0,
    }


def pack_connection(one: Connection, parcel: Parcel) -> Json:
    """A running connection."""
    return {
        "client": parcel.put(one.client.fileno()),
        "client_ip": one.client_ip,
        "target": parcel.put(one.target.fileno()) if one.target is not None else None,
        "serving": one.server.mapping.targets.index(one.serving) if one.serving in one.server.mapping.targets else None,
        "candidates": [
            [one.server.mapping.targets.index(target), port]
            for target, port in one.candidates
            if target in one.server.mapping.targets
        ],
        "connected": one.connected,
        "preface": text(one.preface),
        "up": pack_direction(one.up, parcel),
        "down": pack_direction(one.down, parcel),
    }


def pack_direction(one: Direction | None, parcel: Parcel) -> Json:
    """One direction of a connection; an empty object before there is a target."""
    if one is None:
        return {}
    pipe = one.pipe
    piped = [parcel.put(pipe.read), parcel.put(pipe.write), pipe.filled] if pipe is not None and pipe.filled else None
    return {"pending": text(one.pending), "ended": one.ended, "pipe": piped}


# Unpacking


def unpack(relay: Relay, parcel: Parcel) -> tuple[socket.socket, int]:
    """Serve what the parcel holds; returns the control socket and its lock. PortfwdError for a damaged state."""
    state = parcel.state
    if state.get("version") not in (VERSION, BEFORE):
        raise PortfwdError("the predecessor's state has another form", f"version {state.get('version')!r}")
    try:
        control = socket.socket(fileno=parcel.take(state["control"]))
        lock = parcel.take(state["lock"])
        unpack_steering(relay, state, parcel)
        for raw in objects(state, "mappings"):
            mapping = Mapping.from_json(raw["mapping"])
            server = unpack_server(relay, mapping, raw, parcel)
            steered = texts(raw, "steered")
            relay.adopt(Published(mapping, server, steered, str(raw.get("unsteered", ""))))
        for raw in objects(state, "draining"):
            relay.adopt_draining(unpack_server(relay, Mapping.from_json(raw["mapping"]), raw, parcel))
    except (LookupError, TypeError, ValueError, Usage) as error:
        raise PortfwdError("the predecessor's state is damaged", repr(error)) from error
    return control, lock


def clients(parcel: Parcel) -> list[Inherited]:
    """The predecessor's clients at the control socket. PortfwdError."""
    try:
        return inherited(parcel.state.get(CLIENTS), parcel.take)
    except (LookupError, TypeError, ValueError) as error:
        raise PortfwdError("the predecessor's state is damaged", repr(error)) from error


def unpack_steering(relay: Relay, state: Json, parcel: Parcel) -> None:
    """Go on steering. PortfwdError for ranges that this process cannot go on with."""
    if any(raw.get("redirected") for raw in objects(state, "mappings")):
        raise PortfwdError(
            "the running service leads a range of ports by nftables, and this one does not", "restart it"
        )
    steering = state.get("steering")
    if relay.steering is not None and steering is not None:
        relay.steering.unpack(steering, parcel.take)
    elif steering is not None and obj(state, "steering").get("ranges"):
        raise PortfwdError(
            "the running service steers a range of ports", "this one has to as well: leave out --no-steer"
        )


def unpack_server(relay: Relay, mapping: Mapping, raw: Json, parcel: Parcel) -> TcpPort | UdpPort:
    """A mapping's server with its sockets, connections and counters."""
    counted = obj(raw, "counters")
    counters = {name: integer(counted, name) for name in counted}
    if "udp" in raw:
        served = relay.udp_port(mapping, [])
        udp_state.unpack(served, raw["udp"], parcel.take)
        served.counters.add(counters)
        return served
    rows = [row(one, str, int, int) for one in items(raw, "listeners")]
    found = [Listener(socket.socket(fileno=parcel.take(number)), ip, port) for ip, port, number in rows]
    server = relay.tcp_port(mapping, found)
    server.counters.add(counters)
    cut_in = raw["cut_in"]
    server.cut_at = relay.poller.now + cut_in if isinstance(cut_in, float) and cut_in else 0.0
    for one in objects(raw, "connections"):
        unpack_connection(server, one, parcel)
    return server


def unpack_connection(server: TcpPort, raw: Json, parcel: Parcel) -> None:
    """Go on with a connection."""
    targets = server.mapping.targets
    connection = Connection(server, socket.socket(fileno=parcel.take(raw["client"])), str(raw["client_ip"]))
    connection.client.setblocking(False)
    server.adopt(connection)
    connection.preface = data(raw["preface"])
    candidates = [row(one, int, int) for one in items(raw, "candidates")]
    connection.candidates = [(targets[index], port) for index, port in candidates]
    serving: Target | None = targets[integer(raw, "serving")] if raw["serving"] is not None else None
    if raw["target"] is None:
        connection.dial()
        return
    target = socket.socket(fileno=parcel.take(raw["target"]))
    target.setblocking(False)
    connection.resume(target, serving, connected=bool(raw["connected"]))
    for direction, saved in ((connection.up, obj(raw, "up")), (connection.down, obj(raw, "down"))):
        if direction is not None:
            direction.pending = data(saved["pending"])
            direction.ended = integer(saved, "ended")
            if saved["pipe"] is not None:
                read, write, filled = row(saved["pipe"], int, int, int)
                direction.pipe = Pipe(parcel.take(read), parcel.take(write), filled)
    server.poller.soon(connection.go_on)


# Sending


def send(parcel: Parcel, peer: socket.socket) -> bytes:
    """Send everything to the successor and wait for its word; b"" when it did not take over."""
    peer.settimeout(WAIT_S)
    state = os.memfd_create("portfwd-state", os.MFD_CLOEXEC)
    try:
        with open(state, "wb", closefd=False) as file:
            file.write(json.dumps(parcel.state).encode())
        descriptors = [state, *parcel.descriptors]
        peer.sendall(json.dumps({"ok": True, "descriptors": len(descriptors)}).encode() + b"\n")
        for start in range(0, len(descriptors), BATCH):
            peer.sendmsg([b"."], rights.message(descriptors[start : start + BATCH]))
        return word(peer)
    except OSError:
        return last_word(peer)
    finally:
        os.close(state)


def word(peer: socket.socket) -> bytes:
    """The successor's word that it serves; b"" for anything else. OSError."""
    said = peer.recv(WORD_MAX)
    return said if said.startswith(DONE) else b""


def last_word(peer: socket.socket) -> bytes:
    """The same of a successor that spoke just as time ran out.

    After shutdown(2) its word cannot arrive any more: sending fails (EPIPE), and it ends. So never do both serve, or neither.
    """
    try:
        peer.shutdown(socket.SHUT_RD)
        return word(peer)
    except OSError:
        return b""


def ask(path: str) -> tuple[Parcel, socket.socket]:
    """Ask the service at a control socket for everything; returns the parcel, and the connection for confirm(). PortfwdError."""
    try:
        return ask_for(path, VERSION)
    except OtherForm:
        return ask_for(path, BEFORE)


def ask_for(path: str, version: int) -> tuple[Parcel, socket.socket]:
    """The same in one version of the state. OtherForm when the service has another. PortfwdError."""
    peer = connected(path, WAIT_S)
    descriptors: list[int] = []
    try:
        peer.sendall(json.dumps({"verb": "handover", "version": version}).encode() + b"\n")
        answer = json.loads(read_line(peer))
        if OTHER_FORM in json.dumps(answer):
            raise OtherForm("the running service does not hand over", json.dumps(answer))
        if not isinstance(answer, dict) or answer.get("ok") is not True:
            raise PortfwdError("the running service does not hand over", json.dumps(answer))
        wanted = integer(answer, "descriptors")
        while len(descriptors) < wanted:
            received = receive(peer)
            if not received:
                raise PortfwdError("the running service broke off while handing over")
            descriptors += received
        parcel = Parcel(descriptors=descriptors[1:])
        with open(descriptors.pop(0), "rb") as file:
            file.seek(0)
            state = json.loads(file.read(STATE_MAX))
        if not isinstance(state, dict):
            raise PortfwdError("the predecessor's state is no object")
        parcel.state = state
    except (OSError, ValueError, KeyError, TypeError) as error:
        Parcel(descriptors=descriptors).close()
        peer.close()
        raise PortfwdError("cannot take over from the running service", str(error)) from error
    except PortfwdError:
        Parcel(descriptors=descriptors).close()
        peer.close()
        raise
    return parcel, peer


def confirm(peer: socket.socket) -> None:
    """Tell the predecessor that it may end."""
    with peer:
        peer.sendall(DONE + b" " + CLIENTS.encode() + b"\n")


def receive(peer: socket.socket) -> list[int]:
    """The descriptors of one message. Lacking when this process may not open so many."""
    _, found, truncated = rights.receive(peer, 1)
    if truncated:
        for fd in found:
            os.close(fd)
        raise Lacking("this process may not open what the running service has open", "raise LimitNOFILE")
    return found


def read_line(peer: socket.socket) -> bytes:
    """Read a line, byte by byte: descriptors come with the byte after it, and recv(2) of that byte would drop them."""
    line = b""
    while not line.endswith(b"\n"):
        byte = peer.recv(1)
        if not byte or len(line) > LINE_MAX:
            raise PortfwdError("the running service broke off before handing over")
        line += byte
    return line


def text(content: bytes) -> str:
    """Bytes as JSON can hold them."""
    return base64.b64encode(content).decode()


def data(value: object) -> bytes:
    """The bytes of text()."""
    return base64.b64decode(str(value), validate=True)
