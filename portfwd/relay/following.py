"""Mappings on an interface or a host name: listeners come and go with its addresses (follow.py has the grammar).

    an interface     rtnetlink(7) reports every change of links and addresses; after one, all addresses are read again
    a host name      resolved in a thread, every NAME_S and when addresses change; it keeps its addresses when resolving fails

When the port of one address is taken, the others are served; the error is logged, and the address is tried again. An IPv6 address
is listened on when the kernel has checked it for duplicates, which it reports by another message. TCP connections of an address
that goes run on. UDP flows end: they cannot be answered from it any more.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial

from cni_py.kernel.rtnl import Rtnl
from portfwd import follow
from portfwd.errors import NotFound, PortfwdError
from portfwd.mapping import Mapping
from portfwd.relay.addresses import addresses_of, local, resolve
from portfwd.relay.publish import Relay

log = logging.getLogger("portfwd")

DEBOUNCE_S = 0.05  # one change of a link is several messages
EVERY_S = 0.25  # between two looks, at least
RETRY_S = 5.0  # between two tries of addresses whose port was taken
NAME_S = 30.0  # between two times that a name is resolved
READ_MAX = 64  # messages read in one go
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100  # linux/rtnetlink.h

Changed = Callable[[Mapping], None]


@dataclass(slots=True)
class Name:
    """A host name that is followed."""

    ips: list[str]  # its last known addresses
    asked: float = float("-inf")  # when it was last resolved
    asking: bool = False  # a thread resolves it now
    failed: str = ""  # why it cannot be resolved


class Following:
    """See the module. For the loop's thread. `changed` is called with a mapping whose name has other addresses now."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        relay: Relay,
        changed: Changed | None = None,
        room: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._loop = loop
        self._relay = relay
        self._room = room  # raises the limit of descriptors, which clients may have reached, for listeners
        self._changed = changed
        self._socket: socket.socket | None = None
        # kept open: when no descriptor is left, listeners still have to go with their addresses
        self._rtnl: Rtnl | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._next_look = 0.0
        self._refused: dict[str, dict[str, PortfwdError]] = {}  # by mapping and address, those that cannot be had
        self._names: dict[str, Name] = {}
        self._names_due = False  # addresses have changed: names may have, too
        self._closed = False

    def close(self) -> None:
        """Follow nothing any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._rtnl is not None:
            self._rtnl.close()
            self._rtnl = None

    # Mappings

    def publish(self, mapping: Mapping, *, must_exist: bool = False) -> list[str]:
        """Publish on the present addresses; returns notes for people.

        NotFound, with `must_exist`, if the interface or name does not exist; PortInUse when no address can be had.
        """
        self._watch()
        self._know_name(mapping)
        ips = self._ips(mapping)
        if must_exist and (ips is None or (not ips and mapping.follow.startswith(follow.NAME))):
            raise NotFound(self._absence(mapping), "with --wait it may come later")
        notes = self._relay.publish(replace(mapping, host_ips=()))
        refused = self._relay.move(mapping.id, ips or [])
        if refused and len(refused) == len(ips or ()):
            self._relay.remove(mapping.id)
            raise next(iter(refused.values()))
        self._refused[mapping.id] = refused
        notes += [f"cannot listen on {ip}, and tries again: {error}" for ip, error in refused.items()]
        on = ", ".join(self._relay.mappings[mapping.id].host_ips)
        now = f"on {on} now" if ips else f"{self._absence(mapping)}: the ports open when that changes"
        return [*notes, f"{mapping.id}: {now}"]

    def _absence(self, mapping: Mapping) -> str:
        name = follow.shown(mapping.follow)
        if mapping.follow.startswith(follow.INTERFACE):
            return f"there is no interface {name}" if self._ips(mapping) is None else f"{name} has no address now"
        ips = self._names[name].ips
        return f"{name} has no address of this host" + (f": it is {', '.join(ips)}" if ips else "")

    def adopt(self) -> None:
        """Follow what a predecessor followed: its addresses may have changed meanwhile."""
        try:
            for mapping in self._followed():
                self._watch()
                self._know_name(mapping)
        except PortfwdError as error:
            log.error("%s; listeners stay where they are", error)
        self._look_soon()

    def state(self, name: str) -> dict[str, object]:
        """For people: the addresses that cannot be had now, and why."""
        refused = self._refused.get(name)
        return {"refused": {ip: str(error) for ip, error in refused.items()}} if refused else {}

    def _followed(self) -> list[Mapping]:
        return [mapping for mapping in self._relay.mappings.values() if mapping.follow]

    def _ips(self, mapping: Mapping) -> list[str] | None:
        """The addresses to listen on now; None where there is no such interface."""
        assert self._rtnl is not None
        name = follow.shown(mapping.follow)
        if mapping.follow.startswith(follow.INTERFACE):
            return addresses_of(self._rtnl, name)
        return local(self._rtnl, self._names[name].ips)

    # Changes

    def _watch(self) -> None:
        """Subscribe to changes of links and addresses. PortfwdError."""
        if self._socket is not None:
            return
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._rtnl = self._rtnl or Rtnl()
            sock = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
            sock.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
        except OSError as error:
            raise PortfwdError("the kernel does not tell of changed addresses", error.strerror or str(error)) from error
        self._socket = sock
        self._loop.add_reader(sock.fileno(), self._read)
        self._loop.call_later(RETRY_S, self._tick)

    def _read(self) -> None:
        assert self._socket is not None
        for _ in range(READ_MAX):
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                # Messages were lost, which does no harm: all addresses are read anyway
                if error.errno != errno.ENOBUFS:
                    raise
        self._names_due = True
        self._look_soon()

    def _look_soon(self) -> None:
        if self._timer is None and not self._closed and self._socket is not None:
            when = max(self._loop.time() + DEBOUNCE_S, self._next_look)
            self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """Compare the addresses that mappings listen on with the present ones."""
        self._timer = None
        self._next_look = self._loop.time() + EVERY_S
        followed = self._followed()
        self._refused = {one.id: self._refused.get(one.id, {}) for one in followed}
        for mapping in followed:
            try:
                self._follow(mapping, self._ips(mapping) or [])
            except PortfwdError as error:  # such as no descriptor for the socket to ask with
                log.warning("%s: %s", mapping.id, error)
        if self._names_due:
            self._names_due = False
            for name in list(self._names):
                self._ask(name)

    def _follow(self, mapping: Mapping, ips: Sequence[str]) -> None:
        if list(mapping.host_ips) == list(ips) and not self._refused.get(mapping.id):
            return
        with self._room():
            refused = self._relay.move(mapping.id, ips)
        before = self._refused.get(mapping.id, {})
        for ip, error in refused.items():
            if str(error) != str(before.get(ip, "")):
                log.warning("%s: cannot listen on %s, and tries again: %s", mapping.id, ip, error)
        self._refused[mapping.id] = refused
        now = self._relay.mappings[mapping.id].host_ips
        if now != mapping.host_ips:
            log.info("%s: %s now has %s", mapping.id, follow.shown(mapping.follow), ", ".join(now) or "no address")

    def _tick(self) -> None:
        """Look for changes that no message reports: a port is free again, a name has another address."""
        if self._closed:
            return
        self._loop.call_later(RETRY_S, self._tick)
        if any(self._refused.values()):
            self._look_soon()
        used = {follow.shown(one.follow) for one in self._followed()}
        self._names = {name: one for name, one in self._names.items() if name in used}
        for name, one in self._names.items():
            if self._loop.time() - one.asked >= NAME_S:
                self._ask(name)

    # Names

    def _know_name(self, mapping: Mapping) -> None:
        """Begin to follow the host name of a mapping, with the addresses that the mapping came with."""
        name = follow.shown(mapping.follow)
        if mapping.follow.startswith(follow.NAME):
            if mapping.host_ips or name not in self._names:
                self._names[name] = Name(
                    list(mapping.host_ips), self._loop.time() if mapping.host_ips else float("-inf")
                )
            self._ask(name)

    def _ask(self, name: str) -> None:
        """Resolve a name in a thread of its own: getaddrinfo(3) may block for minutes."""
        one = self._names[name]
        if not one.asking and not self._closed:
            one.asking = True
            one.asked = self._loop.time()
            threading.Thread(target=self._resolve, args=(name, one), daemon=True).start()

    def _resolve(self, name: str, one: Name) -> None:
        ips: list[str] | None = None
        failed = ""
        try:
            ips = resolve(name)
        except PortfwdError as error:
            failed = str(error)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(partial(self._resolved, name, one, ips, failed))

    def _resolved(self, name: str, one: Name, ips: list[str] | None, failed: str) -> None:
        one.asking = False
        if failed and failed != one.failed:
            log.warning("%s; it keeps its addresses: %s", failed, ", ".join(one.ips) or "none")
        one.failed = failed
        if ips is None or ips == one.ips:
            return
        one.ips = ips
        self._look_soon()
        for mapping in self._followed():
            if self._changed is not None and mapping.follow == follow.NAME + name:
                self._changed(replace(mapping, host_ips=tuple(ips)))
