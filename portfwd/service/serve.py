"""`portfwd serve`: the process that publishes ports. It needs no systemd, and knows it when it is there.

SIGTERM, SIGINT    no new connections; running ones may end by themselves for --drain seconds. Again: at once
SIGHUP             a new process takes over, without losing a connection
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from portfwd.errors import PortfwdError
from portfwd.relay.runtime import Runtime
from portfwd.relay.udp import UdpPort
from portfwd.service import control, handover, leftovers, returning, store, systemd
from portfwd.service.control import Call, Inherited, Lock, Peer, Server
from portfwd.service.descriptors import Descriptors
from portfwd.service.registry import RETRY_S, Registry
from portfwd.service.reload import Succession
from portfwd.service.requests import Handover, Listing, Publish, Remove, Request, Stats, Sticky
from portfwd.service.watch import Watch
from portfwd.steering.lookup import Steering
from portfwd.steering.reserved import Reservation
from portfwd.values import Json

log = logging.getLogger("portfwd")

DRAIN_S = 10.0
RETURN_AGAIN_S = 1.0
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of the service."""

    socket: str
    state: str
    drain_s: float = DRAIN_S
    ready_fd: int = -1
    log_level: str = "info"
    take_over: bool = False
    steer: bool = True

    def for_successor(self) -> list[str]:
        """The command line of a process that takes our place."""
        found = ["--socket", self.socket, "--state", self.state, "--drain", f"{self.drain_s:g}"]
        return [*found, "--log-level", self.log_level, "--take-over", *([] if self.steer else ["--no-steer"])]


def serve(chosen: Options) -> int:
    """Serve until told to stop; the exit status."""
    log_to_stderr(chosen.log_level)
    given = systemd.activated(os.environ)
    try:
        control.make_folder(chosen.socket)
        lock = Lock.take(chosen.socket)
        if lock is None and not chosen.take_over:
            pid = control.holder(chosen.socket) or "not known"
            raise PortfwdError(f"portfwd is running already (pid {pid})", "--take-over replaces it without loss")
        service = Service(chosen)
        if lock is None:
            service.take_over()
        else:
            service.begin(lock, given)
        return service.run()
    except PortfwdError as error:
        log.error("%s", error)
        return error.status


def log_to_stderr(level: str) -> None:
    """One line per event."""
    handler = logging.StreamHandler()
    handler.setFormatter(systemd.Formatter(journal=systemd.is_journal(2, os.environ)))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level.upper())


class Service:
    """The running service: everything it has, and how that comes and goes."""

    def __init__(self, chosen: Options) -> None:
        self.options = chosen
        self.descriptors = Descriptors()
        self.steering = Steering(Reservation(chosen.state)) if chosen.steer else None
        self.runtime = Runtime(self.steering, "--no-steer says so")
        self.loop, self.relay = self.runtime.loop, self.runtime.relay
        self.registry = Registry(self.loop, self.relay, store.Store(chosen.state), self.descriptors)
        self.succession = Succession(self.loop, chosen.for_successor())
        self.lock: Lock | None = None
        self.listener: socket.socket | None = None
        self.server: Server | None = None
        self._inherited: list[Inherited] = []  # a predecessor's clients
        self.watch: Watch | None = None
        self._unlinks = True  # whether the socket's file is ours to remove

    # Beginning

    def begin(self, lock: Lock, given: Sequence[int]) -> None:
        """As the only service. PortfwdError."""
        self.lock = lock
        for fd in given:
            sock = socket.socket(fileno=fd)
            if self.listener is None and (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
                self.listener = sock
                self._unlinks = False
            else:
                sock.close()
        if self.listener is None:
            self.listener = control.listen(self.options.socket)

    def take_over(self) -> None:
        """In place of the service that runs. PortfwdError before anything of it is touched."""
        self.registry.store.names()  # what waits comes from there, and there is no way back later
        parcel, peer = handover.ask(self.options.socket)
        try:
            self.listener, lock = handover.unpack(self.relay, parcel)
            self.lock = Lock(self.options.socket, lock)
            self._unlinks = parcel.state.get("unlinks") is not False
            self._inherited = handover.clients(parcel)
            self.lock.sign()  # before the predecessor ends: whoever waits for that reads whose the service is
            handover.confirm(peer)
        except (PortfwdError, OSError) as error:
            log.error("cannot take over: %s", error)
            end_without_a_word(1)  # the sockets are still the other's: closing them in order would end its connections
        parcel.close()
        log.info("took over %d mappings", len(self.relay.mappings))

    def run(self) -> int:
        """Serve; the exit status."""
        assert self.listener is not None
        try:
            self._restore()
            if self.steering is not None:
                self.steering.settle()  # what a service that was killed had reserved, and is not steered any more
            leftovers.remove()
            self.watch = Watch(self.loop, room=self.descriptors.for_commands, restored=self._return_flows)
            self.server = Server(self.loop, self.listener, self, self.descriptors)
            for one in self._inherited:
                self.server.adopt(one)
            for number in (signal.SIGTERM, signal.SIGINT):
                self.loop.add_signal_handler(number, self.stop)
            self.loop.add_signal_handler(signal.SIGHUP, self._hang_up)
            self.runtime.every(RETRY_S, self._retry)
            if watchdog_s := systemd.watchdog_s(os.environ):
                self.runtime.every(watchdog_s, lambda: systemd.notify("WATCHDOG=1"))
            self._say_ready()
            self.watch.restore()
            self.descriptors.lower()
            self.runtime.run()
        finally:
            self.close()
        return 0

    def _restore(self) -> None:
        """Publish what is on disk. PortfwdError when that cannot be told, unless there are mappings of a predecessor to serve."""
        try:
            self.registry.restore()
        except PortfwdError as error:
            if not self.relay.mappings:
                raise
            log.error("%s", error)

    def _say_ready(self) -> None:
        count = len(self.relay.mappings)
        systemd.notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS={count} mappings")
        log.info("ready: %d mappings, asked at %s", count, self.options.socket)
        if self.options.ready_fd >= 0:
            try:
                os.write(self.options.ready_fd, b"\n")
                os.close(self.options.ready_fd)
            except OSError as error:
                log.warning("nobody waits at --ready-fd %d: %s", self.options.ready_fd, error.strerror)

    def _retry(self) -> None:
        if not self.runtime.stopping:
            with self.descriptors.for_commands():
                self.registry.retry()
                if self.steering is not None:
                    self.steering.settle()  # somebody may have set the list anew, sysctl(8) --system say

    # Answering

    def new_id(self) -> str:
        """For a mapping to which nobody gave a name."""
        return store.new_name()

    def answer(self, request: Request, call: Call) -> Json | None:
        """What was asked for. PortfwdError."""
        match request:
            case Publish():
                descriptors = call.take_descriptors()
                try:
                    return self.registry.publish(request, call.peer.pid, descriptors)
                finally:
                    control.close_all(descriptors)
            case Remove():
                return self.registry.remove(request, call.peer.pid)
            case Listing():
                return self.registry.listing()
            case Stats():
                return self.registry.stats()
            case Sticky():
                return self.registry.remembered(request.name)
            case _:
                self.succession.start(call.answer)
                return None

    def hand_over(self, request: Handover, peer: socket.socket) -> None:
        """Give everything to a successor, and end; or serve on."""
        if request.version != handover.VERSION:
            raise PortfwdError(f"this service {handover.OTHER_FORM}", f"version {handover.VERSION}: restart it instead")
        assert self.listener is not None
        assert self.lock is not None
        successor = Peer.of(peer).pid
        parcel = handover.pack(self.relay, self.listener, self.lock.fd)
        parcel.state["unlinks"] = self._unlinks
        if self.server is not None:
            parcel.state[handover.CLIENTS] = self.server.pack(parcel.put, peer)
        word = handover.send(parcel, peer)
        if not word:
            log.warning("process %d did not take over; serving on", successor)
            return
        log.info("process %d has taken over", successor)
        systemd.notify(f"MAINPID={successor}", "READY=1")  # before it is seen that we are gone
        if handover.CLIENTS.encode() not in word:
            self.succession.succeeded()  # a successor that answers our clients tells the one who asked for it, too
        if self.watch is not None:
            self.watch.close()
        end_without_a_word(0)

    def _return_flows(self) -> None:
        """Rules are back: now, and once more for a datagram that was on its way through the kernel."""
        for delay_s in (0.0, RETURN_AGAIN_S):
            self.loop.call_later(delay_s, self._return_flows_now)

    def _return_flows_now(self) -> None:
        with self.descriptors.for_commands():
            servers = [one.server for one in self.relay.published if one.mapping.owner.startswith("attachment ")]
            returning.give_back(server for server in servers if isinstance(server, UdpPort))

    def _hang_up(self) -> None:
        try:
            with self.descriptors.for_commands():
                self.succession.start(None)
        except PortfwdError as error:
            log.error("cannot reload: %s", error)

    # Ending

    def stop(self) -> None:
        """A signal came: the first to drain, the second to end."""
        if not self.runtime.stopping:
            systemd.notify("STOPPING=1")
            self._close_control()
            self.registry.owners.close()
            self.registry.following.close()
        self.runtime.stop(self.options.drain_s)

    def _close_control(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None
            if self._unlinks:
                with suppress(FileNotFoundError):
                    os.unlink(self.options.socket)

    def close(self) -> None:
        """End everything, whatever there is of it."""
        self._close_control()
        self.succession.close()
        if self.watch is not None:
            self.watch.close()
        self.registry.owners.close()
        self.registry.following.close()
        self.runtime.close()
        if self.lock is not None:
            self.lock.close()
        log.info("ended")


def end_without_a_word(status: int) -> NoReturn:
    """End without closing anything in order: another process goes on with our sockets."""
    logging.shutdown()
    os._exit(status)
