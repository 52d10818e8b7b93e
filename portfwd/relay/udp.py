"""The UDP side of one mapping: its listening sockets, its flows, and the datagrams in both directions.

    client ─→ listener ─→ flow (client, the address it sent to) ─→ upstream, a socket connected to one target
    client ←─ listener, from that address (ip(7) IP_PKTINFO, ipv6(7) IPV6_PKTINFO) ←─ upstream

Answers from a port of a steered range (steering/lookup.py) leave by a socket that is bound to that port (udp_sockets.py).

No datagram is ever kept: one that cannot be sent at once is dropped and counted, so that a slow target stalls nobody. Sockets are
watched level-triggered and read BATCH datagrams at a time, so that a busy one does not keep the others waiting.

A flow ends when it is idle in both directions, or when a newer one needs its place (flows.py), which is counted and logged. An
ICMP error does not end it: the flow goes to another target if there is one. Errors are read from the error queue (ip(7)
IP_RECVERR): when a container is gone the kernel reports EHOSTUNREACH, which a connected UDP socket without the queue never gets,
since it counts as a soft error (icmp_err_convert in net/ipv4/icmp.c).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from portfwd.errors import PortfwdError
from portfwd.netns.legs import link
from portfwd.relay import host_only, proxyproto, udp_sockets
from portfwd.relay.admission import Admission
from portfwd.relay.balance import Balancer
from portfwd.relay.counters import Counters, Tally
from portfwd.relay.flows import FLOWS_MAX, IDLE_S, FlowTable
from portfwd.relay.pktinfo import interface_of, local_of, port_of, text_of
from portfwd.relay.poller import ERROR, LEVEL
from portfwd.relay.udp_sockets import Listener, UdpFlow, errors_of, exhausted, keep_errors, make_room, most_flows

if TYPE_CHECKING:
    from portfwd.mapping import Mapping, Target
    from portfwd.netns.sockets import Places
    from portfwd.relay.pktinfo import Address
    from portfwd.relay.poller import Poller

log = logging.getLogger("portfwd")

BATCH = 32  # datagrams of one socket in one go
DATAGRAM_MAX = 65535
RETRY_S = 0.5  # without trying, after no target could be used; also between two look-ups of a target's namespace
EVICTED_MAX = 2  # flows ended for a new one's descriptors: a socket in another namespace takes two while it is made
QUEUED_MAX = 4096  # datagrams that are read at most to empty a socket's queue
GIVEN_UP = 64  # flows ended at a time when TCP clients wait for descriptors
WANT = "flows ended for newer clients, for want of descriptors"
T = TypeVar("T")


class UdpPort:
    """All UDP sockets of one mapping: `bound`, each with its port (0: a range is steered to it). They are closed here."""

    def __init__(
        self,
        mapping: Mapping,
        bound: Sequence[tuple[socket.socket, int]],
        places: Places,
        poller: Poller,
    ) -> None:
        self.mapping = mapping
        self.counters = Counters()
        self.balancer = Balancer(mapping.targets, mapping.balance)
        self._places = places
        self._poller = poller
        self._admission = Admission(mapping, FLOWS_MAX)  # for its allow list; the limits are the table's
        self._tally = Tally()
        bounds = (most_flows(mapping), mapping.limit_per_client, mapping.idle_s or IDLE_S)
        self.table: FlowTable[UdpFlow] = FlowTable(*bounds)
        self.listeners: list[Listener] = []
        self._watched: set[int] = set()
        self._returning: set[Address] = set()  # clients whose datagrams are dropped: see drop_queued()
        self._retry_at = 0.0  # no target is tried before
        self._look_up_at: dict[Target, float] = {}  # the target's namespace is not looked up again before
        self._said = 0.0
        try:
            for sock, port in bound:
                self.listen(sock, port)
        except BaseException:
            for listener in self.listeners:
                self._forget(listener.sock.fileno())
            raise

    @property
    def flows(self) -> int:
        """How many flows there are."""
        return len(self.table)

    def listen(self, sock: socket.socket, port: int) -> None:
        """Take datagrams of a bound socket; `port` 0: a range is steered to it. OSError."""
        make_room(sock)
        ip = sock.getsockname()[0]
        host_only.keep(sock, ip)
        listener = Listener(sock, ip, port, host_only.asks(sock, ip, port))
        self._watch(sock, partial(self._incoming, listener))
        self.listeners.append(listener)

    def listen_on(self, bound: Sequence[tuple[socket.socket, str, int]]) -> None:
        """Take datagrams of these sockets, too, each with its address and port. OSError; some of them may listen then."""
        for sock, _, port in bound:
            self.listen(sock, port)

    def leave(self, ips: Sequence[str]) -> None:
        """Close the sockets of these addresses, and the flows to them: no answer can leave from there any more."""
        self._give_up({one for one in self.listeners if one.ip in [ip.partition("%")[0] for ip in ips]})

    # From clients to targets

    def _incoming(self, listener: Listener, _: int) -> None:
        now = self._poller.now
        receive = listener.sock.recvmsg
        client: Address
        for _ in range(BATCH):
            try:
                data, control, _, client = receive(DATAGRAM_MAX, udp_sockets.CONTROL_SPACE)
            except BlockingIOError:
                return
            except OSError:  # an error of the socket, not of a client: its interface went away
                self.counters.errors += 1
                return
            if listener.asks and interface_of(control) != host_only.LO_INDEX:
                self.counters.dropped += 1
                continue
            local = local_of(control, client)
            port = listener.port or port_of(control)
            flow = self.table.get((listener, client, local, port))
            if flow is None:
                flow = self._begin(listener, client, local, port, now)
            else:
                self.table.touch(flow, now)
                if flow.proven and not flow.talks:
                    self.table.talks(flow, now)
            if flow is not None:
                self._pass_in(flow, data, now)

    def _begin(self, listener: Listener, client: Address, local: bytes, port: int, now: float) -> UdpFlow | None:
        """A new flow with a target; None, with its datagram counted, when it is refused or no target can be used."""
        if client in self._returning:
            self.counters.dropped += 1
            return None
        if not self._admission.allows(client[0]):
            self.counters.refused += 1
            self._tally.add("datagrams of clients that are not allowed")
            return None
        if self.table.is_full(client[0], now):
            self.counters.refused += 1
            self.counters.limited += 1
            self._tally.add(f"datagrams of new clients refused, beyond {self.table.bounds()}, all in use")
            return None
        legs = self._places.udp_legs.at(client)
        behind = link(legs, ((text_of(local) or listener.ip, port),)) if legs else None
        if behind is not None and behind.leads_back_to(self):
            self.counters.loops += 1
            self.counters.dropped += 1
            behind.leg.server.came_back(behind.leg.owner, f"port {port}/udp of mapping {self.mapping.id}")
            return None
        if port not in self.mapping.ports:  # it came to the port that a steered socket is bound to: bind.bind_steered()
            self.counters.dropped += 1
            return None
        flow = self.new_flow(listener, client, local, port, now)
        flow.behind = behind
        if not self._open_exit(flow):
            self.counters.dropped += 1
            return None
        if not self._dial(flow, now):
            self.counters.dropped += 1
            listener.give_back_exit(port)
            return None
        self.counters.connections += 1
        self.enter(flow)
        return flow

    def _open_exit(self, flow: UdpFlow) -> bool:
        """Get the socket by which answers leave; False when there is none.

        Tried once in RETRY_S after a failure: an error says who has the port, and reads all of /proc for that.
        """
        no_exit = flow.listener.no_exit
        if self._poller.now < no_exit.get(flow.port, 0.0):
            self.counters.errors += 1
            return False
        try:
            flow.exit = self._with_room(flow, lambda: flow.listener.borrow_exit(flow.port))
        except PortfwdError as error:
            self.counters.errors += 1
            if exhausted(error):
                self._starve(error)
            else:
                no_exit[flow.port] = self._poller.now + RETRY_S
                self._say(f"a client could not be answered: {error}")
            return False
        no_exit.pop(flow.port, None)
        return True

    def _starve(self, error: Exception) -> None:
        """Count, and log, that no descriptor was left for a new flow."""
        self.counters.starved += 1
        self._tally.add(f"times no socket for a new flow ({error})")

    def new_flow(self, listener: Listener, client: Address, local: bytes, port: int, now: float) -> UdpFlow:
        flow = UdpFlow(listener, client, local, port, now)
        if self.mapping.proxy_protocol:
            here = (text_of(local) or listener.ip, port)
            flow.header = proxyproto.header(self.mapping.proxy_protocol, "udp", client[:2], here)
        return flow

    def enter(self, flow: UdpFlow) -> None:
        self.counters.active += 1
        for gone in self.table.add(flow):
            self._evict(gone, f"flows ended for newer ones, at {self.table.bounds()}")

    def _evict(self, flow: UdpFlow, why: str) -> None:
        """End, before its time, a flow that has left the table."""
        self.counters.evicted += 1
        self._tally.add(why)
        self._end(flow)

    def _pass_in(self, flow: UdpFlow, data: bytes, now: float) -> None:
        """Send a client's datagram, or drop and count it."""
        try:
            sent = self._send(flow, data, now)
        except BlockingIOError:
            sent = False
        except OSError as first:
            # send(2) on a connected UDP socket first returns the error of an earlier datagram (ICMP, udp(7)), and does not send.
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
        """Connect a flow to the first target that can be used. False for none."""
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
                    self._starve(error)
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
        """Do `work` for a flow; without descriptors end up to EVICTED_MAX old flows and try again. OSError, PortfwdError."""
        for _ in range(EVICTED_MAX):
            try:
                return work()
            except (OSError, PortfwdError) as error:
                oldest = self.table.expendable(self._poller.now) or next(iter(self.table), None)
                if not exhausted(error) or oldest is None or oldest is flow:
                    raise
                self.table.remove(oldest)
                self._evict(oldest, WANT)
        return work()

    def _open(self, flow: UdpFlow, target: Target) -> None:
        """Connect a flow to a target. OSError, PortfwdError."""
        family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
        upstream = self._places.socket(target.place, family, socket.SOCK_DGRAM)
        asked = (target.address, self.mapping.target_port(target, flow.port))
        try:
            keep_errors(upstream)
            # Connected: the kernel delivers the target's datagrams alone, and the ICMP errors of what is sent to it.
            upstream.connect(asked)
            self.attach(flow, target, upstream, asked)
        except BaseException:
            upstream.close()
            raise

    def attach(self, flow: UdpFlow, target: Target | None, upstream: socket.socket, asked: tuple[str, int]) -> None:
        here = target is not None and self._places.means_here(target.place)
        leg = self._places.udp_legs.add(upstream, self, flow, flow.behind, asked, here=here)
        try:
            self._watch(upstream, partial(self._outgoing, flow))
        except OSError:
            if leg is not None:
                self._places.udp_legs.forget(leg)
            raise
        flow.leg = leg
        flow.target = target
        flow.upstream = upstream
        flow.proven = False

    def _target_failed(self, flow: UdpFlow, why: OSError, now: float) -> None:
        """Take note that a target does not take datagrams; the flow's next one goes to another target if there is one."""
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

    def came_back(self, owner: object, where: str) -> None:
        """Take the target of `owner`, a flow, for dead: it leads back to this service (netns/legs.py)."""
        if isinstance(owner, UdpFlow):
            self._target_failed(owner, OSError(errno.ELOOP, f"it leads back to {where}"), self._poller.now)

    def _read_errors(self, flow: UdpFlow, now: float) -> None:
        """Handle the errors that ICMP and the kernel have queued for a flow."""
        upstream = flow.upstream
        for number in errors_of(upstream) if upstream is not None else ():
            if flow.upstream is not upstream:
                break
            # The path MTU shrank: the kernel remembers that itself (ip(7) IP_MTU_DISCOVER)
            if number != errno.EMSGSIZE:
                self._target_failed(flow, OSError(number, os.strerror(number)), now)

    # From targets to clients

    def _outgoing(self, flow: UdpFlow, events: int) -> None:
        now = self._poller.now
        if events & ERROR:
            self._read_errors(flow, now)
        answered = False
        for _ in range(BATCH):
            if flow.upstream is None:  # the flow ended earlier in this round
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
            except OSError as error:  # a full buffer, a local address that is gone, an unreachable client
                self.counters.dropped += 1
                self.counters.errors += error.errno != errno.EAGAIN
            else:
                self.counters.bytes_out += len(data)
        if answered:
            self._answered(flow, now)

    def _answered(self, flow: UdpFlow, now: float) -> None:
        """Note that a flow's target has answered."""
        self.table.touch(flow, now)
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
        """Close the socket to the target; the flow's next datagram looks for a target."""
        if flow.upstream is not None:
            self._forget(flow.upstream.fileno())
            flow.upstream.close()
            flow.upstream = None
        if flow.leg is not None:
            self._places.udp_legs.forget(flow.leg)
            flow.leg = None

    def _end(self, flow: UdpFlow) -> None:
        """Close everything of a flow that is no longer in the table."""
        self._hang_up(flow)
        flow.listener.give_back_exit(flow.port)
        self.counters.active -= 1

    def _say(self, text: str) -> None:
        """Log, at most once per second for the mapping."""
        if self._poller.now >= self._said:
            self._said = self._poller.now + 1.0
            log.warning("%s: %s", self.mapping.id, text)

    def sweep(self, now: float) -> None:
        """End the flows that have been idle for too long; log the tally of turned-away datagrams."""
        for flow in self.table.expire(now):
            self._end(flow)
        self._tally.say(self.mapping.id, now)

    def all_flows(self) -> list[UdpFlow]:
        """All flows."""
        return list(self.table)

    def end_all(self, flows: Sequence[UdpFlow]) -> None:
        """End flows that NAT is to serve from now on."""
        for flow in flows:
            if self.table.get(flow.key) is flow:  # it may have ended meanwhile, for a newer one
                self.table.remove(flow)
                self._end(flow)

    def drop_queued(self, listener: Listener, clients: set[Address]) -> None:
        """Drop the queued datagrams of these clients; those of others are relayed."""
        self._returning = clients
        try:
            for _ in range(QUEUED_MAX // BATCH):
                self._incoming(listener, 0)
        finally:
            self._returning = set()

    def give_up(self, now: float) -> None:
        """End up to GIVEN_UP flows that are likely over: TCP clients wait for descriptors."""
        for _ in range(GIVEN_UP):
            flow = self.table.silent(now)
            if flow is None:
                return
            self.table.remove(flow)
            self._evict(flow, WANT)

    def update(self, mapping: Mapping) -> None:
        """Take other targets and options. Flows keep their target while it answers, unless their client is no longer allowed."""
        self.mapping = mapping
        self.balancer = Balancer(mapping.targets, mapping.balance)
        self._admission = Admission(mapping, FLOWS_MAX)
        self._retry_at = 0.0
        self._look_up_at.clear()
        gone = self.table.resize(most_flows(mapping), mapping.limit_per_client, mapping.idle_s or IDLE_S)
        self.counters.evicted += len(gone)
        for flow in [flow for flow in self.table if not self._admission.allows(flow.client[0])]:
            self.table.remove(flow)
            gone.append(flow)
        for flow in gone:
            self._end(flow)

    def drain(self, until: float) -> None:
        """Close everything now: answers leave from the port itself, and that has to be free."""
        self.close()

    def close(self) -> None:
        """Free the ports and end all flows. A second call is harmless."""
        self._tally.say(self.mapping.id, self._poller.now, last=True)
        self._give_up(set(self.listeners))

    def _give_up(self, gone: set[Listener]) -> None:
        for flow in [flow for flow in self.table if flow.listener in gone]:
            self.table.remove(flow)
            self._end(flow)
        for listener in gone:
            self._forget(listener.sock.fileno())
            listener.sock.close()
        self.listeners = [one for one in self.listeners if one not in gone]
