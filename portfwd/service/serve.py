"""`portfwd serve`: the process that publishes ports. It uses systemd where it runs, and does not need it.

SIGTERM, SIGINT    stops listening; running connections get --drain seconds to end. A second signal ends it at once
SIGHUP             starts a new process that takes over without losing a connection
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
    """Serve until a signal; returns the exit status."""
    log_to_stderr(chosen.log_level)
    given = systemd.activated(os.environ)
    try:
        control.make_folder(chosen.socket)
        lock = Lock.take(chosen.socket)
        if lock is None and not chosen.take_over:
            pid = control.holder(chosen.socket) or "not known"
            raise PortfwdError(
                f"portfwd is running already (pid {pid})", "--take-over replaces it without losing a connection"
            )
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
    """Log to stderr, a line per event."""
    handler = logging.StreamHandler()
    handler.setFormatter(systemd.Formatter(journal=systemd.is_journal(2, os.environ)))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level.upper())


class Service:
    """The running service: how it begins, answers requests, hands over and ends."""

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
        """Begin as the only service, with the socket that systemd passed, if any. PortfwdError."""
        self.lock = lock
        passed = [sock for fd in given if (sock := systemd.listening(fd))]
        if given and not passed:
            log.warning("LISTEN_FDS announces no Unix socket that listens: making %s", self.options.socket)
        for sock in passed[1:]:
            sock.close()
        if passed:
            self.listener, self._unlinks = passed[0], False
        if self.listener is None:
            self.listener = control.listen(self.options.socket)

    def take_over(self) -> None:
        """Take the place of the running service. PortfwdError while it still serves; later failures end this process."""
        self.registry.store.names()  # fails now if the folder cannot be read: after confirm() there is no way back
        parcel, peer = handover.ask(self.options.socket)
        try:
            self.listener, lock = handover.unpack(self.relay, parcel)
            self.lock = Lock(self.options.socket, lock)
            self._unlinks = parcel.state.get("unlinks") is not False
            self._inherited = handover.clients(parcel)
            self.lock.sign()  # before the predecessor ends: who waits for its end may read the pid then
            handover.confirm(peer)
        except (PortfwdError, OSError) as error:
            log.error("cannot take over: %s", error)
            end_without_a_word(1)  # the predecessor serves on: closing in order would shut down its sockets
        parcel.close()
        log.info("took over %d mappings", len(self.relay.mappings))

    def run(self) -> int:
        """Serve until the end; returns the exit status. PortfwdError."""
        assert self.listener is not None
        try:
            self._restore()
            if self.steering is not None:
                self.steering.settle()  # releases ports that a killed service had reserved
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
        """Publish the mappings on disk. When they cannot be read: PortfwdError, or only a log line after a take-over."""
        try:
            self.registry.restore()
        except PortfwdError as error:
            if not self.relay.mappings:
                raise
            log.error("%s", error)

    def _say_ready(self) -> None:
        count = len(self.relay.mappings)
        systemd.notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS={count} mappings")
        log.info("ready: %d mappings, control socket %s", count, self.options.socket)
        if self.options.ready_fd >= 0:
            try:
                os.write(self.options.ready_fd, b"\n")
                os.close(self.options.ready_fd)
            except OSError as error:
                log.warning("cannot write to --ready-fd %d: %s", self.options.ready_fd, error.strerror)

    def _retry(self) -> None:
        if not self.runtime.stopping:
            with self.descriptors.for_commands():
                self.registry.retry()
                if self.steering is not None:
                    self.steering.settle()  # another program may have overwritten the list, as `sysctl --system` does

    # Answering

    def new_id(self) -> str:
        """A new id, for a mapping without one."""
        return store.new_name()

    def answer(self, request: Request, call: Call) -> Json | None:
        """Carry out a request; None when the answer comes later. PortfwdError."""
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
        """Give everything to a successor and end, or serve on if it does not take over. PortfwdError."""
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
        systemd.notify(f"MAINPID={successor}", "READY=1")  # before systemd sees this process end
        if handover.CLIENTS.encode() not in word:
            self.succession.succeeded()  # one that takes over clients also answers who asked for the reload
        if self.watch is not None:
            self.watch.close()
        end_without_a_word(0)

    def _return_flows(self) -> None:
        """The plugins' rules are back: give UDP flows back to NAT now, and again a moment later.

        A datagram that was on its way through the kernel may have made a tracked flow without NAT meanwhile.
        """
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
        """Drain after the first SIGTERM or SIGINT, end after the second."""
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
        """Close everything that has been opened."""
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
    """End this process without closing its sockets in order: another process goes on with them."""
    logging.shutdown()
    os._exit(status)
