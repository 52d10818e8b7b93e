"""One lease: its machine, the socket while it waits for a server, its timer, and the namespace in which it serves.

The namespace's descriptor is held, so that a lease can be given back from inside even when the container is gone. That keeps
the namespace itself from ending, until leases.py sees that nothing else holds it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import time
from collections.abc import Callable

from cni_py.attachment.naming import Attachment
from cni_py.dhcp import message
from cni_py.dhcp.machine import Identity, Lease, Limits, Machine, Sending, State
from cni_py.dhcp.store import Kept
from cni_py.dhcp.wire import Wire
from cni_py.errors import CniError
from cni_py.kernel import netns
from cni_py.kernel.rtnl import Link, Rtnl

SLEEP_MAX_S = 60.0  # the loop's clock stands still while the machine sleeps, the lease's does not
# Until an interface that was set up carries packets; without that, we try all the same
CARRIER_S, CARRIER_STEP_S = 1.0, 0.01
ETHERNET_BYTES = 6
GONE = (errno.ENODEV, errno.ENXIO)


def now() -> float:
    """The clock of leases: seconds since the boot, suspended or not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Space:
    """A container's namespace, held open, and its interface. CniError when either is not there."""

    def __init__(self, path: str, ifname: str) -> None:
        self.path = path
        self.ifname = ifname
        try:
            self.fd = netns.open_netns(path)
        except FileNotFoundError:
            raise CniError(f'failed to open netns "{path}": no such file or directory') from None
        try:
            self.cookie = netns.cookie(self.fd)
            self.file = netns.file_of(self.fd)
            link = self.link()
            if link is None:
                raise CniError(f'error looking up "{ifname}": Link not found')
            if len(link.mac) != ETHERNET_BYTES:
                raise CniError(f'"{ifname}" is no Ethernet interface')
            self.index, self.mac, self.kind = link.index, link.mac, link.kind
        except BaseException:
            os.close(self.fd)
            raise

    @property
    def place(self) -> tuple[str, int]:
        """The namespace's file, and the interface's index. Its MAC address may change: by the plugin tuning, for example."""
        return self.file, self.index

    def link(self) -> Link | None:
        """The interface as it is now."""
        rtnl = Rtnl(self.fd)
        try:
            return rtnl.link(self.ifname)
        finally:
            rtnl.close()

    def set_link(self, *, up: bool) -> None:
        """Set the interface up or down. OSError."""
        rtnl = Rtnl(self.fd)
        try:
            rtnl.set_link(self.index, up=up)
        finally:
            rtnl.close()

    def has_link(self) -> bool:
        """Whether the interface is still the one that it was."""
        link = self.link()
        return link is not None and link.index == self.index

    def close(self) -> None:
        """Let the namespace go. A second call is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Holder:
    """A lease of an attachment, or the search for one. `changed` is called when there is a lease, a new one, or none any more."""

    def __init__(
        self, key: Attachment, space: Space, identity: Identity, limits: Limits, changed: Callable[[Holder], None]
    ) -> None:
        self.key = key
        self.space = space
        self.identity = identity
        self.machine = Machine(identity, limits, random.SystemRandom().random)
        self._changed = changed
        self._known: tuple[State, Lease | None] = State.SELECTING, None
        self._wire: Wire | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()

    @property
    def lease(self) -> Lease | None:
        """The lease, while there is one."""
        return self.machine.lease if self.machine.state is not State.ENDED else None

    async def acquire(self) -> Lease:
        """Find a server and get a lease. CniError."""
        await self._set_up()
        self._act(self.machine.start(now()))
        await self._settled.wait()
        if self.lease is None:
            raise CniError(self.machine.failure)
        return self.lease

    async def _set_up(self) -> None:
        link = self.space.link()
        if link is not None and not link.up:
            self.space.set_link(up=True)
        for _ in range(int(CARRIER_S / CARRIER_STEP_S)):
            link = self.space.link()
            if link is None or link.operstate in ("up", "unknown"):
                return
            await asyncio.sleep(CARRIER_STEP_S)

    def resume(self, lease: Lease) -> None:
        """Go on with a lease of before the daemon was started."""
        self._known = State.BOUND, lease
        self._act(self.machine.resume(lease, now()))

    def release(self) -> None:
        """Give the lease back, or end the search for one."""
        self._changed = lambda _: None
        self._act(self.machine.release())

    def close(self) -> None:
        """Forget it all; the lease stays as it is."""
        self._quiet()
        if self._timer is not None:
            self._timer.cancel()
        self.space.close()

    def kept(self) -> Kept:
        """What is kept on disk."""
        assert self.machine.lease is not None
        space = self.space
        return Kept(self.key, space.path, space.file, space.cookie, space.index, self.identity, self.machine.lease)

    # What happens

    def _act(self, sendings: list[Sending]) -> None:
        """Send, then wait for what comes next."""
        for one in sendings:
            try:
                self._listen().send(one)
            except OSError as error:
                if error.errno in GONE and not self.space.has_link():
                    self.machine.end("the interface is gone")
                    break
                say(self.key, f"cannot send: {error.strerror}")
        if self.machine.state in (State.BOUND, State.ENDED):
            self._quiet()
        self._arm()
        self._tell()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wait = min(max(self.machine.deadline - now(), 0.0), SLEEP_MAX_S)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(wait, self._woken) if self.machine.state is not State.ENDED else None

    def _woken(self) -> None:
        self._act(self.machine.tick(now()))

    def _tell(self) -> None:
        found = self.machine.state, self.machine.lease
        if found[0] is State.ENDED or (found[0] is State.BOUND and found != self._known):
            self._settled.set()
            if found != self._known:
                self._known = found
                self._changed(self)

    def _listen(self) -> Wire:
        if self._wire is None:
            self._wire = Wire(self.space.fd, self.space.ifname)
            asyncio.get_running_loop().add_reader(self._wire.sock, self._heard)
        return self._wire

    def _quiet(self) -> None:
        if self._wire is not None:
            asyncio.get_running_loop().remove_reader(self._wire.sock)
            self._wire.close()
            self._wire = None

    def _heard(self) -> None:
        assert self._wire is not None
        try:
            payloads = self._wire.receive()
        except OSError as error:  # the interface went down, which is told once; it may come back
            say(self.key, f"cannot receive: {error.strerror}")
            return
        sendings = []
        for payload, mac in payloads:
            found = message.parse(payload)
            if found is not None:
                sendings += self.machine.receive(found, mac, now())
        if payloads:
            self._act(sendings)


def say(key: Attachment | None, text: str) -> None:
    """A line for the log."""
    line = f"cni-py dhcp: {key.label + ': ' if key else ''}{text}\n"
    try:
        os.write(2, line.encode("utf-8", "replace"))
    except OSError:
        pass
