"""The UDP side of one mapping: its sockets, its flows, and datagrams both ways.

    client ─→ listener ─→ flow (client, the address it sent to) ─→ upstream, a socket connected to one target
    client ←─ listener, from that address (ip(7) IP_PKTINFO, ipv6(7) IPV6_PKTINFO) ←─ upstream

Of a range that is steered (steering.py) answers leave by a socket of the port they are to come from (udpsockets.py).

No datagram is ever kept: what cannot be sent at once is dropped and counted, so that a slow target stalls nobody. Sockets are
watched level-triggered and read BATCH datagrams at a time, so that a busy one has its turn and no more.
A flow ends by idleness in both directions or because a newer one needs its place (flows.py). ICMP errors do not end it:
it turns to another target where there is one. They are read from the error queue (ip(7) IP_RECVERR), since a container
that is gone is told as EHOSTUNREACH, which a socket without the queue never learns.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from portfwd import proxyproto
from portfwd.admission import Admission
from portfwd.balance import Balancer
from portfwd.errors import PortfwdError
from portfwd.flows import FLOWS_MAX, IDLE_S, FlowTable
from portfwd.pktinfo import local_of, port_of, text_of
from portfwd.poller import ERROR, LEVEL
from portfwd.udpsockets import Exit, Listener, UdpFlow, exhausted, make_room

if TYPE_CHECKING:
    from portfwd.counters import Counters
    from portfwd.mapping import Mapping, Target
    from portfwd.pktinfo import Address
    from portfwd.places import Places
    from portfwd.poller import Poller

log = logging.getLogger("portfwd")

BATCH = 32  # datagrams of one socket in one go
DATAGRAM_MAX = 65535
RETRY_S = 0.5  # after no target could be used, datagrams are dropped for so long; a place is not looked up more often
EVICTED_MAX = 2  # for want of descriptors: a socket in another namespace takes a second one, to come back by
CONTROL_SPACE = 256  # what else somebody else's socket may have been told to say is small
IP_RECVERR, IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h
T = TypeVar("T")


class UdpPort:
    """All UDP sockets of one mapping. They are bound already, and closed here."""

    def __init__(
        self,
        mapping: Mapping,
        sockets: Sequence[socket.socket],
        ports: Sequence[int],
        places: Places,
        poller: Poller,
        counters: Counters,
        *,
        flows_max: int = 0,
        idle_s: float = 0.0,
    ) -> None:
        self.mapping = mapping
        self.counters = counters
        self.balancer = Balancer(mapping.targets, mapping.balance)
        self._places = places
        self._poller = poller
        self._admission = Admission(
            mapping, FLOWS_MAX
        )  # its allow list; a limit is the table's: nobody is refused for it
        limit = flows_max or mapping.limit or FLOWS_MAX
        self._flows: FlowTable[UdpFlow] = FlowTable(limit, mapping.limit_per_client, idle_s or mapping.idle_s or IDLE_S)
        self._listeners: list[Listener] = []
        self._watched: set[int] = set()
        self._retry_at = 0.0  # until then no target can be used
        self._look_up_at: dict[Target, float] = {}  # until then its place is not looked up anew
        self._said = 0.0
        try:
            for sock, port in zip(sockets, ports, strict=True):
                self._listen(sock, port)
        except BaseException:
            for listener in self._listeners:
                self._forget(listener.sock.fileno())
            raise

    @property
    def flows(self) -> int:
        """How many there are."""
        return len(self._flows)

    def _listen(self, sock: socket.socket, port: int) -> None:
        make_room(sock)
        listener = Listener(sock, sock.getsockname()[0], port)
        self._watch(sock, partial(self._incoming, listener))
        self._listeners.append(listener)

    # From clients to targets

    def _incoming(self, listener: Listener, _: int) -> None:
        now = self._poller.now
        receive = listener.sock.recvmsg
        client: Address
        for _ in range(BATCH):
            try:
                data, control, _, client = receive(DATAGRAM_MAX, CONTROL_SPACE)
            except BlockingIOError:
                return
            except OSError:  # of the socket, not of a client: the interface went away
                self.counters.errors += 1
                return
            local = local_of(control, client)
            port = listener.port or port_of(control)
            flow = self._flows.get((listener, client, local, port))
            if flow is None:
                flow = self._begin(listener, client, local, port, now)
            else:
                self._flows.touch(flow, now)
            if flow is not None:
                self._pass_in(flow, data, now)

    def _begin(self, listener: Listener, client: Address, local: bytes, port: int, now: float) -> UdpFlow | None:
        """A new flow that has a target, or None: its datagram has been counted."""
        if not self._admission.allows(client[0]):
            self.counters.refused += 1
            return None
        if port not in self.mapping.ports:  # it came for the one that the listener has itself (listeners.bind_steered)
            self.counters.dropped += 1
            return None
        flow = self._flow(listener, client, local, port, now)
        if not self._open_exit(flow):
            self.counters.dropped += 1
            return None
        if not self._dial(flow, now):
            self.counters.dropped += 1
            listener.give_back_exit(port)
            return None
        self.counters.connections += 1
        self._enter(flow)
        return flow

    def _open_exit(self, flow: UdpFlow) -> bool:
        """Have the socket by which answers leave."""
        try:
            flow.exit = self._with_room(flow, lambda: flow.listener.borrow_exit(flow.port))
        except PortfwdError as error:
            self.counters.errors += 1
            self._say(f"no answer could leave: {error}")
            return False
        return True

    def _flow(self, listener: Listener, client: Address, local: bytes, port: int, now: float) -> UdpFlow:
        flow = UdpFlow(listener, client, local, port, now)
        if self.mapping.proxy_protocol:
            here = (text_of(local) or listener.ip, port)
            flow.header = proxyproto.header(self.mapping.proxy_protocol, "udp", client[:2], here)
        return flow

    def _enter(self, flow: UdpFlow) -> None:
        self.counters.active += 1
        for gone in self._flows.add(flow):
            self._end(gone)

    def _pass_in(self, flow: UdpFlow, data: bytes, now: float) -> None:
        """Send a client's datagram, or drop and count it."""
        try:
            sent = self._send(flow, data, now)
        except BlockingIOError:
            sent = False
        except OSError as first:
            # Most likely it tells of an earlier datagram (udp(7)), and this one was not tried.
            self._read_errors(flow, now)
            try:
                sent = self._send(flow, data, now)
            except BlockingIOError:
                sent = False
            except OSError as error:
                sent = False
                if error.errno != errno.EMSGSIZE:
                    self._target_failed(flow, first, now)
        if sent:
            self.counters.bytes_in += len(data)
        else:
            self.counters.dropped += 1

    def _send(self, flow: UdpFlow, data: bytes, now: float) -> bool:
        if flow.upstream is None and not self._dial(flow, now):
            return False
        assert flow.upstream is not None
        if flow.header:
            flow.upstream.sendmsg((flow.header, data))
        else:
            flow.upstream.send(data)
        return True

    # Targets

    def _dial(self, flow: UdpFlow, now: float) -> bool:
        """Connect it to the best target that can be used."""
        if now < self._retry_at:
            return False
        targets: Sequence[Target] = self.mapping.targets
        if len(targets) > 1:
            targets = self.balancer.order(flow.client[0], now)
        for target in targets:
            try:
                self._with_room(flow, partial(self._open, flow, target))
            except (OSError, PortfwdError) as error:
                if exhausted(error):
                    self.counters.errors += 1
                    self._say(f"no socket for a flow: {error}")
                    return False
                self.counters.failed += 1
                self.balancer.failed(target, now)
                self._places.forget(target.place)
                self._say(f"target {target} cannot be reached: {error}")
            else:
                return True
        self._retry_at = now + RETRY_S
        return False

    def _with_room(self, flow: UdpFlow, work: Callable[[], T]) -> T:
        """Do something for a flow; where descriptors are wanting, at the cost of the oldest flows."""
        for _ in range(EVICTED_MAX):
            try:
                return work()
            except (OSError, PortfwdError) as error:
                oldest = next(iter(self._flows), None)
                if not exhausted(error) or oldest is None or oldest is flow:
                    raise
                self._flows.remove(oldest)
                self._end(oldest)
        return work()

    def _open(self, flow: UdpFlow, target: Target) -> None:
        family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
        upstream = self._places.socket(target.place, family, socket.SOCK_DGRAM)
        try:
            if family == socket.AF_INET6:
                upstream.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
            else:
                upstream.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            upstream.connect((target.address, self.mapping.target_port(target, flow.port)))
            self._attach(flow, target, upstream)
        except BaseException:
            upstream.close()
            raise

    def _attach(self, flow: UdpFlow, target: Target | None, upstream: socket.socket) -> None:
        self._watch(upstream, partial(self._outgoing, flow))
        flow.target = target
        flow.upstream = upstream
        flow.proven = False

    def _target_failed(self, flow: UdpFlow, why: OSError, now: float) -> None:
        """What was sent did not arrive: the next datagram of the flow goes elsewhere, where there is an elsewhere."""
        target = flow.target
        self.counters.failed += 1
        flow.proven = False
        if target is None:
            self._hang_up(flow)
            return
        self.balancer.failed(target, now)
        self._say(f"target {target} does not take datagrams: {why.strerror}")
        targets = self.mapping.targets
        moves = len(targets) > 1 or target not in targets
        if target.place and now >= self._look_up_at.get(target, 0.0):
            self._look_up_at[target] = now + RETRY_S
            self._places.forget(target.place)
            moves = True
        if moves:
            self._hang_up(flow)

    def _read_errors(self, flow: UdpFlow, now: float) -> None:
        """Take note of what ICMP and the kernel said, and of nothing twice."""
        found = False
        while (upstream := flow.upstream) is not None:
            try:
                _, control, _, _ = upstream.recvmsg(0, CONTROL_SPACE, socket.MSG_ERRQUEUE)
            except OSError:  # EAGAIN: no more
                break
            found = True
            for _, kind, data in control:
                if kind in (IP_RECVERR, IPV6_RECVERR):  # struct sock_extended_err: errno first
                    self._note(flow, int.from_bytes(data[:4], sys.byteorder), now)
        if flow.upstream is not None:
            pending = flow.upstream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if pending and not found:  # there was no room in the queue
                self._note(flow, pending, now)

    def _note(self, flow: UdpFlow, number: int, now: float) -> None:
        if number != errno.EMSGSIZE:  # a narrower path, which the kernel keeps in mind (ip(7) IP_MTU_DISCOVER)
            self._target_failed(flow, OSError(number, os.strerror(number)), now)

    # From targets to clients

    def _outgoing(self, flow: UdpFlow, events: int) -> None:
        now = self._poller.now
        if events & ERROR:
            self._read_errors(flow, now)
        answered = False
        for _ in range(BATCH):
            if flow.upstream is None:  # also in an event of a flow that ended in this round
                break
            try:
                data = flow.upstream.recv(DATAGRAM_MAX)
            except BlockingIOError:
                break
            except OSError:
                self._read_errors(flow, now)
                continue
            answered = True
            try:
                flow.exit.sendmsg((data,), flow.reply, 0, flow.client)
            except OSError as error:  # a full buffer, an address of ours that is gone, a client nobody can reach
                self.counters.dropped += 1
                self.counters.errors += error.errno != errno.EAGAIN
            else:
                self.counters.bytes_out += len(data)
        if answered:
            self._answered(flow, now)

    def _answered(self, flow: UdpFlow, now: float) -> None:
        self._flows.touch(flow, now)
        if not flow.proven and flow.upstream is not None:
            flow.proven = True
            if flow.target in self.mapping.targets:
                self.balancer.worked(flow.target)

    # Ends

    def _watch(self, sock: socket.socket, callback: partial[None]) -> None:
        fd = sock.fileno()
        self._poller.watch(fd, LEVEL, callback)
        self._watched.add(fd)

    def _forget(self, fd: int) -> None:
        if fd in self._watched:
            self._watched.remove(fd)
            self._poller.forget(fd)

    def _hang_up(self, flow: UdpFlow) -> None:
        if flow.upstream is not None:
            self._forget(flow.upstream.fileno())
            flow.upstream.close()
            flow.upstream = None

    def _end(self, flow: UdpFlow) -> None:
        """Of a flow that is no longer in the table."""
        self._hang_up(flow)
        flow.listener.give_back_exit(flow.port)
        self.counters.active -= 1

    def _say(self, text: str) -> None:
        """Log, at most once per second for the mapping."""
        if self._poller.now >= self._said:
            self._said = self._poller.now + 1.0
            log.warning("%s: %s", self.mapping.id, text)

    def sweep(self, now: float) -> None:
        """End the flows that have been idle too long."""
        for flow in self._flows.expire(now):
            self._end(flow)

    def look_at_all(self, now: float) -> None:
        """Nothing: sweep() sees all that time can bring to a flow."""

    def update(self, mapping: Mapping) -> None:
        """Other targets and options. Flows keep their target while it answers, unless their client is no longer allowed."""
        self.mapping = mapping
        self.balancer = Balancer(mapping.targets, mapping.balance)
        self._admission = Admission(mapping, FLOWS_MAX)
        self._retry_at = 0.0
        self._look_up_at.clear()
        gone = self._flows.resize(mapping.limit or FLOWS_MAX, mapping.limit_per_client, mapping.idle_s or IDLE_S)
        for flow in [flow for flow in self._flows if not self._admission.allows(flow.client[0])]:
            self._flows.remove(flow)
            gone.append(flow)
        for flow in gone:
            self._end(flow)

    def drain(self, until: float) -> None:
        """Everything, at once: an answer can only leave from the port, and that has to be free now."""
        self.close()

    def close(self) -> None:
        """Free the ports and end all flows. A second call is harmless."""
        for flow in self._flows.clear():
            self._end(flow)
        for listener in self._listeners:
            self._forget(listener.sock.fileno())
            listener.sock.close()
        self._listeners.clear()

    # A successor

    def pack(self, put: Callable[[int], int]) -> dict[str, object]:
        """All sockets and flows as JSON, for unpack(); `put` takes a descriptor and returns what stands for it."""
        places = {listener: number for number, listener in enumerate(self._listeners)}
        targets = self.mapping.targets
        return {
            "listeners": [[listener.port, put(listener.sock.fileno())] for listener in self._listeners],
            "exits": [
                [number, port, put(one.sock.fileno())]
                for number, listener in enumerate(self._listeners)
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
                }
                for flow in self._flows  # least recently used first
            ],
        }

    def unpack(self, raw: object, take: Callable[[object], int]) -> None:
        """Go on with what a predecessor packed; `take` gives descriptors, which are owned from then on. ValueError."""
        match raw:
            case {"listeners": [*bound], "exits": [*exits], "flows": [*flows]}:
                pass
            case {"listeners": [*bound], "flows": [*flows]}:  # version 1
                exits = []
            case _:
                raise ValueError("not the state of a UDP port")
        for listener in bound:
            match listener:
                case [int(port), number]:
                    self._listen(socket.socket(fileno=take(number)), port)
                case _:
                    raise ValueError(f"not a listener: {listener!r}")
        for one in exits:
            match one:
                case [int(place), int(port), number] if 0 <= place < len(self._listeners):
                    self._listeners[place].exits[port] = Exit(socket.socket(fileno=take(number)))
                case _:
                    raise ValueError(f"not a socket for answers: {one!r}")
        for flow in flows:
            self._unpack_flow(flow, take)

    def _unpack_flow(self, raw: object, take: Callable[[object], int]) -> None:
        match raw:
            case {
                "listener": int(place),
                "client": [str(ip), int(port), *scope],
                "local": str(local),
                "target": int() | None as index,
                "upstream": number,
                "active": float(active),
                **more,
            } if 0 <= place < len(self._listeners) and (index or 0) in range(len(self.mapping.targets)):
                pass
            case _:
                raise ValueError(f"not a flow: {raw!r}")
        client: Address = (ip, port)
        match scope:
            case [int(label), int(zone)]:
                client = (ip, port, label, zone)
        listener = self._listeners[place]
        asked = more.get("port")  # which version 1 does not say
        wanted = asked if isinstance(asked, int) else listener.port
        flow = self._flow(listener, client, bytes.fromhex(local), wanted, active)
        flow.exit = listener.borrow_exit(flow.port)
        if number is not None:
            upstream = socket.socket(fileno=take(number))
            try:
                self._attach(flow, self.mapping.targets[index] if index is not None else None, upstream)
            except OSError:  # no more watches: the flow's next datagram tries anew
                upstream.close()
        self._enter(flow)
