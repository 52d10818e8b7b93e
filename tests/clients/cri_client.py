"""The kubelet's side of the Container Runtime Interface: a few of its calls, over gRPC on a socket.

Messages are those of k8s.io/cri-api, pkg/apis/runtime/v1/api.proto, of which only the fields that are needed here are written or
read; gRPC is HTTP/2 (the h2 library) with a five-byte frame around each message.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events

SERVICE = "/runtime.v1.RuntimeService/"
VARINT, BYTES = 0, 2  # wire types of protocol buffers
PROTOCOLS = {"tcp": 0, "udp": 1}
CALL_S = 60
STOP_S = 30
SHIM_ENDED = "ttrpc: closed"


class Refused(Exception):
    """The runtime answered with an error."""


# Protocol buffers


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(found) + bytes((number,))


def message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """Fields by number; empty ones are left out, as their value is the default."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(varint(number << 3 | VARINT) + varint(value) if value else b"")
        else:
            data = value.encode() if isinstance(value, str) else value
            parts.append(varint(number << 3 | BYTES) + varint(len(data)) + data if data else b"")
    return b"".join(parts)


def entries(number: int, pairs: dict[str, str]) -> list[tuple[int, bytes]]:
    """A map field."""
    return [(number, message((1, key), (2, value))) for key, value in pairs.items()]


def fields_of(data: bytes) -> dict[int, list[bytes]]:
    """The length-delimited fields of a message, by number; numbers are left out."""
    found: dict[int, list[bytes]] = {}
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        value, at = read_varint(data, at)
        if key & 7 == BYTES:
            found.setdefault(key >> 3, []).append(data[at : at + value])
            at += value
        elif key & 7 != VARINT:
            raise ValueError(f"wire type {key & 7}")
    return found


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return number, at


# gRPC


def call(path: str, method: str, request: bytes) -> bytes:
    """One call on a connection of its own; the answer's message. Refused with the runtime's words."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(CALL_S)
        stream.connect(path)
        http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        http.initiate_connection()
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":authority": "localhost",
            ":path": SERVICE + method,
            "content-type": "application/grpc",
            "te": "trailers",
        }
        http.send_headers(1, list(headers.items()))
        http.send_data(1, struct.pack("!BI", 0, len(request)) + request, end_stream=True)
        stream.sendall(http.data_to_send())
        answer = b""
        status: dict[str, str] = {}
        for event in events(http, stream):
            if isinstance(event, h2.events.DataReceived):
                answer += event.data
                http.acknowledge_received_data(event.flow_controlled_length, 1)
            elif isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                status |= {str(name): str(value) for name, value in event.headers}
    if status.get("grpc-status") != "0":
        raise Refused(f"{method}: {status.get('grpc-message', status)}")
    return answer[5:]


def events(http: h2.connection.H2Connection, stream: socket.socket) -> Iterator[h2.events.Event]:
    """What comes, until the call is over."""
    while True:
        data = stream.recv(65536)
        if not data:
            raise Refused("the runtime has closed the connection")
        for event in http.receive_data(data):
            yield event
            if isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)):
                return
        stream.sendall(http.data_to_send())


# The calls


@dataclass(frozen=True)
class Port:
    """A port mapping of a pod."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""

    def encoded(self) -> bytes:
        return message((1, PROTOCOLS[self.protocol]), (2, self.container_port), (3, self.host_port), (4, self.host_ip))


@dataclass(frozen=True)
class Pod:
    """What the kubelet asks for."""

    name: str
    ports: tuple[Port, ...] = ()
    annotations: dict[str, str] = field(default_factory=dict)
    cgroup: str = ""

    def encoded(self) -> bytes:
        metadata = message((1, self.name), (2, f"uid-{self.name}"), (3, "default"))
        ports = [(5, port.encoded()) for port in self.ports]
        linux = message((1, self.cgroup))
        return message((1, metadata), (2, self.name), *ports, *entries(7, self.annotations), (8, linux))


@dataclass(frozen=True)
class Runtime:
    """containerd's CRI at the path of its socket."""

    path: str

    def run(self, pod: Pod) -> str:
        """The ID of the new sandbox."""
        answer = call(self.path, "RunPodSandbox", message((1, pod.encoded())))
        return fields_of(answer)[1][0].decode()

    def stop(self, sandbox: str) -> None:
        """As the kubelet does: it asks again when the pod's process ended while containerd was about to end it."""
        end = time.monotonic() + STOP_S
        while True:
            try:
                call(self.path, "StopPodSandbox", message((1, sandbox)))
            except Refused as error:
                if SHIM_ENDED not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.1)
            else:
                return

    def remove(self, sandbox: str) -> None:
        call(self.path, "RemovePodSandbox", message((1, sandbox)))

    def sandboxes(self) -> list[str]:
        items = fields_of(call(self.path, "ListPodSandbox", b"")).get(1, [])
        return [fields_of(item)[1][0].decode() for item in items]

    def conditions(self) -> dict[str, str]:
        """Status: what the kubelet makes its node's conditions of, by type; "" for one that holds, else the message."""
        listed = fields_of(fields_of(call(self.path, "Status", b""))[1][0])[1]
        found = [fields_of(condition) for condition in listed]
        return {one[1][0].decode(): one[4][0].decode() if 4 in one else "" for one in found}

    def addresses(self, sandbox: str) -> list[str]:
        """PodSandboxStatus: what the kubelet tells the API server."""
        status = fields_of(fields_of(call(self.path, "PodSandboxStatus", message((1, sandbox))))[1][0])
        network = fields_of(status[5][0])
        return [network[1][0].decode(), *(fields_of(more)[1][0].decode() for more in network.get(2, []))]

    def info(self, sandbox: str) -> str:
        """Its verbose part, a JSON text."""
        answer = fields_of(call(self.path, "PodSandboxStatus", message((1, sandbox), (2, 1))))
        pairs = {fields_of(entry)[1][0].decode(): fields_of(entry)[2][0].decode() for entry in answer.get(2, [])}
        return pairs["info"]
