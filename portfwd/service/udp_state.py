"""The state of a UDP server as JSON, with the descriptors of its sockets: a service hands it to its successor."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from portfwd.relay.udp_sockets import Exit
from portfwd.values import row

if TYPE_CHECKING:
    from portfwd.relay.pktinfo import Address
    from portfwd.relay.udp import UdpPort


def pack(server: UdpPort, put: Callable[[int], int]) -> dict[str, object]:
    """All sockets and flows, for unpack(); `put` takes a descriptor and returns its index."""
    places = {listener: number for number, listener in enumerate(server.listeners)}
    targets = server.mapping.targets
    return {
        "listeners": [[listener.port, put(listener.sock.fileno())] for listener in server.listeners],
        "exits": [
            [number, port, put(one.sock.fileno())]
            for number, listener in enumerate(server.listeners)
            for port, one in listener.exits.items()
        ],
        "flows": [
            {
                "listener": places[flow.listener],
                "port": flow.port,
                "client": list(flow.client),
                "local": flow.local.hex(),
                "target": targets.index(flow.target) if flow.target in targets else None,
                "upstream": put(flow.upstream.fileno()) if flow.upstream is not None else None,
                "active": flow.active,  # CLOCK_MONOTONIC, which all processes share
                "begun": flow.begun,
                "talks": flow.talks,
            }
            for flow in server.table  # least recently used first
        ],
    }


def unpack(server: UdpPort, raw: object, take: Callable[[object], int]) -> None:
    """Go on with what a predecessor packed; `take` gives descriptors, which the caller owns from then on.

    ValueError, LookupError or Usage for a damaged state.
    """
    match raw:
        case {"listeners": [*bound], "exits": [*exits], "flows": [*flows]}:
            pass
        case {"listeners": [*bound], "flows": [*flows]}:  # version 1
            exits = []
        case _:
            raise ValueError("not the state of a UDP port")
    for port, number in (row(one, int, int) for one in bound):
        server.listen(socket.socket(fileno=take(number)), port)
    for place, port, number in (row(one, int, int, int) for one in exits):
        server.listeners[place].exits[port] = Exit(socket.socket(fileno=take(number)))
    for flow in flows:
        _unpack_flow(server, flow, take)


def _unpack_flow(server: UdpPort, raw: object, take: Callable[[object], int]) -> None:
    match raw:
        case {
            "listener": int(place),
            "client": [str(ip), int(port), *scope],
            "local": str(local),
            "target": int() | None as index,
            "upstream": number,
            "active": float(active),
            **more,
        } if 0 <= place < len(server.listeners) and (index or 0) in range(len(server.mapping.targets)):
            pass
        case _:
            raise ValueError(f"not a flow: {raw!r}")
    client: Address = (ip, port)
    match scope:
        case [int(label), int(zone)]:
            client = (ip, port, label, zone)
    listener = server.listeners[place]
    asked = more.get("port")  # which version 1 does not say
    wanted = asked if isinstance(asked, int) else listener.port
    flow = server.new_flow(listener, client, bytes.fromhex(local), wanted, active)
    flow.exit = listener.borrow_exit(flow.port)
    match raw:  # a predecessor of an older version does not say
        case {"begun": float(begun), "talks": bool(talks)}:
            flow.begun, flow.talks = begun, talks
    if number is not None:
        upstream = socket.socket(fileno=take(number))
        try:
            ip, number, *_ = upstream.getpeername()
            target = server.mapping.targets[index] if index is not None else None
            server.attach(flow, target, upstream, (ip, number))
        except OSError:  # no more watches, or it is not connected: the flow's next datagram tries anew
            upstream.close()
    server.enter(flow)
