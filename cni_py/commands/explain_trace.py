"""`cni-py explain --trace`: a real packet, and what the kernel says of its way.

A table of our own marks the packet (explain/marking.py). It belongs to the netlink socket of libnftables, so that the kernel
removes it when this process ends, however it ends. Kernels before Linux 5.12 have no such tables: there it is removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from cni_py.commands import hosts
from cni_py.commands.report import FAILED, LACKING, USAGE, Failure, complain
from cni_py.errors import CniError
from cni_py.explain import journeys, marking, text, trace_text, walk, whom
from cni_py.explain.journeys import Trace
from cni_py.explain.marking import Wanted
from cni_py.explain.question import Question
from cni_py.explain.trace_text import Report
from cni_py.explain.tracing import Ends, Event, Flow, decode
from cni_py.explain.walk import Explained
from cni_py.explain.way import Way
from cni_py.explain.world import World, with_port
from cni_py.host.model import Host, Namespace
from cni_py.kernel import libnftables, netns

NETLINK_NETFILTER, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 12, 270, 1
GROUPS = (9, 1, 2, 3)  # linux/netfilter/nfnetlink.h: NFNLGRP_NFTRACE, and conntrack's new, update, destroy
SO_RCVBUFFORCE = 33
BUFFER = 8 << 20  # of the socket, bytes
DATAGRAM = 1 << 16
EVENTS_MAX = 5000
SEND_S = 2.0  # how long an answer is waited for
QUIET_S = 0.2  # then everything has been told
COUNT, WAIT_S = 1, 30.0  # of --live: connections, and seconds
ANSWER_S = 1.0  # how long the answers to others' packets are waited for
IPPROTO_SCTP = 132
INTERRUPTED = 130
STOPPED = "stopped"


@dataclass(slots=True)
class Tap:
    """The marking table, and a socket that hears of marked packets and of tracked connections, in this thread's namespace."""

    wanted: Wanted
    tracked: bool
    bridges: bool
    table: str = field(default_factory=lambda: f"cni_py_trace_{os.getpid()}")
    events: list[Event | Flow] = field(default_factory=list)
    marked: set[Ends] = field(default_factory=set)  # of the packets to the port
    lost: bool = False
    _nft: Any = None  # its socket owns the table
    _socket: socket.socket | None = None

    def __enter__(self) -> Tap:
        try:
            self._socket = _listener()
            self._nft = libnftables.binding().Nftables()
            self._mark()
        except (OSError, CniError) as error:
            self.close()
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise Failure(f"packets cannot be traced here: {why}", LACKING) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mark(self) -> None:
        """OSError with nft's words."""
        options = {"tracked": self.tracked, "bridges": self.bridges}
        refusal = ""
        for owner in (True, False):
            if not owner:
                _end_on_signals()
            status, _, refusal = self._nft.cmd(marking.ruleset(self.table, self.wanted, owner=owner, **options))
            if status == 0:
                return
        self._nft = None
        raise OSError(errno.EOPNOTSUPP, f"nftables refuses the table that marks them: {refusal.strip()}")

    def close(self) -> None:
        """Remove the table."""
        if self._nft is not None:
            self._nft.cmd(marking.removal(self.table, bridges=self.bridges and not self.wanted.iif))
            self._nft = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def hear(self, until: float, quiet_s: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Collect events until that time (monotonic), until it has been quiet for so long, or until it is enough."""
        assert self._socket is not None
        while not enough() and len(self.events) < EVENTS_MAX:
            wait = min(quiet_s, until - time.monotonic())
            if wait <= 0 or not select.select([self._socket], [], [], wait)[0]:
                return
            try:
                data = self._socket.recv(DATAGRAM)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True
                continue
            for one in decode(data):
                self._take(one)

    def _take(self, one: Event | Flow) -> None:
        """Connections that are no marked packet's are left out: all of the namespace's are told of."""
        if isinstance(one, Flow):
            if one.original in self.marked:
                self.events.append(one)
            return
        if one.table == self.table and journeys.marks(one) and one.chain.startswith(marking.ASKED) and one.headers:
            self.marked.add(one.headers.ends)
        self.events.append(one)

    def trace(self, space: Namespace) -> Trace:
        """What has been heard."""
        found = journeys.read(self.events, space, self.table, self.wanted)
        return replace(found, lost=self.lost, cut=len(self.events) >= EVENTS_MAX)


def _listener() -> socket.socket:
    """One socket for all, so that what it hears is in order. OSError."""
    made = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
    )
    try:
        with contextlib.suppress(OSError):  # rootless
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        made.bind((0, 0))  # an unbound socket is passed over: show/events.py
        for group in GROUPS:
            made.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    except OSError:
        made.close()
        raise
    return made


def _end_on_signals() -> None:
    """Let signals end the program by an exception, on which the table is removed."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def run(options: argparse.Namespace, question: Question) -> int:
    """Trace, print, and return the exit status."""
    if options.saved is not None:
        raise Failure("--trace looks at this host; it cannot be used with --model", USAGE)
    if os.geteuid() != 0:
        raise Failure("--trace needs root", LACKING)
    host = hosts.load(options, flows=True)
    asked = options.client or ("" if options.live else "host")
    try:
        answer = walk.explain(host, question, asked)
    except whom.Unknown as error:
        raise Failure(f"--from {asked}: {error}", USAGE) from error
    report = wait_for(options, host, answer) if options.live else sent(options, host, answer)
    _print(options, answer, report)
    return _status(report, question, live=options.live)


def _status(report: Report, question: Question, *, live: bool) -> int:
    """0 answered, 1 not, 3 a datagram that nobody answers; with --live 0 a packet came, 1 none did."""
    if live:
        return INTERRUPTED if report.said == STOPPED else 0 if report.result else FAILED
    if report.result == "silent" and question.protocol == "udp":
        return LACKING
    return 0 if report.result == "answered" else FAILED


def _print(options: argparse.Namespace, answer: Explained, report: Report) -> None:
    if options.json:
        print(json.dumps({**text.as_json(answer), "trace": trace_text.as_json(report)}, indent=1))
        return
    detail = text.MINIMAL if options.minimal else text.DETAILED if options.detailed else text.NORMAL
    width = shutil.get_terminal_size((100, 24)).columns
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(trace_text.render(report, detail=detail, width=width, colour=colour), end="")


def sent(options: argparse.Namespace, host: Host, answer: Explained) -> Report:
    """Connect as the client does. Failure."""
    way = answer.shown
    if way is None:
        raise Failure(f"no such client can connect to {answer.question} here", USAGE)
    world = World(host)
    space = _space(world, way, options.client or "")
    packet = way.packet
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_client(space, world, way, options.client or ""))
        number = client.getsockname()[1]
        wanted = Wanted(packet.protocol, packet.destination_port, source_port=number, destination=packet.destination)
        tap = stack.enter_context(_tap(host, wanted))
        result, said = _attempt(client, packet.destination, packet.destination_port)
        tap.hear(time.monotonic() + SEND_S, QUIET_S)
    trace = tap.trace(host.root)
    if any(one.dropped for one in trace.journeys):
        by = _dropped_by(trace)
        result, said = ("dropped", by) if result == "silent" else (result, f"{said}; dropped {by}")
    agrees, comparison = journeys.compared(way, trace, result)
    heading = (
        f"one packet from {way.client} to {with_port(packet.destination, packet.destination_port)}/{packet.protocol}"
    )
    return Report(heading, trace, result, said, agrees, comparison, _unseen(host, world))


def _dropped_by(trace: Trace) -> str:
    """The rule or policy that the packet met last."""
    place = next(one.dropped for one in trace.journeys if one.dropped)
    assert place is not None
    last = place.met[-1]
    return f"by {place.table} {last.chain}" + (f" handle {last.handle}" if last.handle else f", {last.verdict}")


def _space(world: World, way: Way, asked: str) -> Namespace:
    """The client's namespace. Failure for another machine's packets."""
    if way.kind in ("lan", "address") and way.client == "another machine":
        raise Failure(
            f"--from {asked}: another machine's packet cannot be sent from here; wait for one with --trace --live",
            USAGE,
        )
    if way.kind in ("host", "loopback"):
        return world.root
    space = next((one for one in world.host.namespaces if world.label(one) == way.client), None)
    if space is None:
        raise Failure(f"the network namespace of {way.client} is not found", LACKING)
    return space


@contextlib.contextmanager
def _client(space: Namespace, world: World, way: Way, asked: str) -> Iterator[socket.socket]:
    """A socket of the client's namespace, with a port. Failure."""
    packet = way.packet
    stream, number = {
        "tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0), "sctp": (socket.SOCK_STREAM, IPPROTO_SCTP)
    }[packet.protocol]  # fmt: skip
    family = socket.AF_INET6 if packet.family == 6 else socket.AF_INET
    source = packet.source if packet.source and packet.source in asked else ""
    with contextlib.ExitStack() as stack:
        try:
            with contextlib.ExitStack() as inside:
                if not world.is_host(space):
                    fd = _opened(space)
                    inside.callback(os.close, fd)
                    inside.enter_context(netns.Enter(fd))
                made = stack.enter_context(socket.socket(family, stream | socket.SOCK_CLOEXEC, number))
            made.bind((source, packet.source_port))
        except OSError as error:
            raise Failure(f"{way.client} cannot send by {packet.protocol}: {error.strerror}", LACKING) from error
        yield made


def _opened(space: Namespace) -> int:
    """A descriptor of the namespace. OSError when it is gone."""
    for path in (*space.names, *(f"/proc/{one.pid}/ns/net" for one in space.processes)):
        with contextlib.suppress(OSError, CniError):
            fd = netns.open_netns(path)
            if f"net:[{os.fstat(fd).st_ino}]" == space.key:
                return fd
            os.close(fd)
    raise OSError(errno.ENOENT, "its network namespace is gone")


def _attempt(client: socket.socket, address: str, port: int) -> tuple[str, str]:
    """Connect, or send one byte: what became of it, and the same as a sentence."""
    client.settimeout(SEND_S)
    try:
        client.connect((address, port))
        if client.type == socket.SOCK_DGRAM:
            client.send(b"\n")
            return "answered", f"{len(client.recv(DATAGRAM))} bytes came back"
    except TimeoutError:
        return "silent", f"no answer within {SEND_S:g} s"
    except ConnectionRefusedError:
        return "refused", "the other side refuses it"
    except OSError as error:
        return "unreachable", error.strerror or str(error)
    return "answered", "the connection is made"


def _tap(host: Host, wanted: Wanted) -> Tap:
    bridges = '"family": "bridge"' in host.root.nftables
    return Tap(wanted, journeys.is_tracked(host.root), bridges)


def _unseen(host: Host, world: World) -> tuple[str, ...]:
    """What no trace shows."""
    found = list(journeys.unseen(host.root))
    inner = [one for one in host.namespaces if not world.is_host(one) and '"rule"' in one.nftables]
    if inner:
        names = ", ".join(world.label(one) for one in inner)
        found.append(f"rules inside other namespaces are not traced: {names}")
    return tuple(found)


def wait_for(options: argparse.Namespace, host: Host, answer: Explained) -> Report:
    """Wait for others' packets to the port."""
    question = answer.question
    wanted = _awaited(host, question, options.client or "")
    heading = f"packets to {question}" + (f" from {options.client}" if options.client else "")
    count, wait_s = options.count or COUNT, options.timeout or WAIT_S
    stopped = False
    with _tap(host, wanted) as tap:
        complain(f"cni-py explain: waiting for {count} of the {heading}, at most {wait_s:g} s (Ctrl-C ends it)")
        try:
            tap.hear(time.monotonic() + wait_s, wait_s, lambda: len(tap.marked) >= count)
            if tap.marked:
                tap.hear(time.monotonic() + ANSWER_S, QUIET_S)
        except KeyboardInterrupt:
            stopped = True
        trace = tap.trace(host.root)
    result = journeys.outcome(trace)
    said = _last(trace, result) if result else f"no packet came within {wait_s:g} s"
    agrees, comparison = _compared(host, question, trace, result)
    return Report(heading, trace, result, STOPPED if stopped else said, agrees, comparison, _unseen(host, World(host)))


def _last(trace: Trace, result: str) -> str:
    """What is said of the packets that came."""
    if result == "dropped":
        return _dropped_by(trace)
    asked = [one.headers.ends for one in trace.journeys if one.asks]
    return f"{len(set(asked))} connections" if result == "seen" else f"the packet of {asked[-1].source}"


def _awaited(host: Host, question: Question, asked: str) -> Wanted:
    """All packets to the port, or those of the client: the LAN's by the interface where they come in."""
    wanted = Wanted(question.protocol, question.port, destination=question.address, limited=True)
    if not asked:
        return wanted
    world = World(host)
    found = whom.asked(world, question, walk.relevant(world, question), asked)
    link = world.link(world.root, found[0].iif) if found and found[0].kind == "lan" else None
    if link is not None:
        return replace(wanted, iif=link.index)
    sources = tuple(dict.fromkeys(one.source for one in found if one.source))
    ports = {one.source_port for one in found}
    return replace(wanted, sources=sources, source_port=ports.pop() if len(ports) == 1 else 0)


def _compared(host: Host, question: Question, trace: Trace, result: str) -> tuple[bool | None, str]:
    """With what explain says of the client, if one alone was seen."""
    asked = [one for one in trace.journeys if one.asks]
    if not asked or result == "seen":
        return None, ""
    seen = asked[-1].headers.ends
    with contextlib.suppress(whom.Unknown, ValueError):
        told = walk.explain(host, replace(question, address=seen.destination), seen.source)
        if told.ways:
            return journeys.compared(told.ways[0], trace, result)
    return None, ""
