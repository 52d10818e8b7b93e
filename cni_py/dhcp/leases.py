"""All leases of the daemon: acquired for a plugin, kept on disk, and given back when they serve nobody any more.

A container can end without a DEL. So each namespace is looked at now and then: when the path that the runtime gave leads to
it no more, and neither a process nor a mount holds it, its lease is released from inside, and the namespace may end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Collection
from pathlib import Path

from cni_py.addr import ip_text
from cni_py.attachment.naming import Attachment
from cni_py.dhcp import frame
from cni_py.dhcp.holder import Holder, Space, now, say
from cni_py.dhcp.machine import Identity, Lease, Limits, Machine, State
from cni_py.dhcp.store import Kept, Store
from cni_py.errors import CniError, InvalidNetns

WATCH_S = 5.0
CLIENT_MAX = 254  # bytes of the name in the client identifier
# Interfaces that have the MAC of their master: only what is broadcast reaches one without an address
SHARING_MAC = "ipvlan"


class Leases:
    """The leases of one daemon. `prefix`: where the host's root is, before each path of a namespace."""

    def __init__(self, store: Store, limits: Limits, *, prefix: str = "", broadcast: bool = False) -> None:
        self.store = store
        self.limits = limits
        self.prefix = prefix
        self.broadcast = broadcast
        self.holders: dict[str, Holder] = {}  # by Attachment.hex

    # What the plugin asks for

    async def acquire(
        self, key: Attachment, netns: str, provided: dict[int, bytes], requested: Collection[int]
    ) -> Lease:
        """The lease that the attachment has, or a new one. CniError."""
        try:
            space = Space(self.prefix + netns, key.ifname)
        except InvalidNetns as error:
            raise CniError(f'failed to open netns "{netns}"', str(error)) from error
        held = self.holders.get(key.hex)
        if held is not None and held.lease is not None and held.space.place == space.place:
            space.close()
            return held.lease
        self.release(key)  # of an earlier container of that name, or one that has expired
        broadcast = self.broadcast or space.kind == SHARING_MAC
        identity = Identity(space.mac, client_of(key), provided, tuple(requested), broadcast)
        return await self._search(Holder(key, space, identity, self.limits, self._changed))

    async def _search(self, holder: Holder) -> Lease:
        self.holders[holder.key.hex] = holder
        say(holder.key, "acquiring a lease")
        try:
            return await holder.acquire()
        except BaseException:
            self._drop(holder)
            raise

    def lease(self, key: Attachment) -> Lease:
        """The lease that the attachment has. CniError."""
        held = self.holders.get(key.hex)
        if held is None or held.lease is None:
            why = held.machine.failure if held is not None else "the daemon has never given it one, or it was released"
            raise CniError(f"{key.label} has no lease: {why}")
        return held.lease

    def release(self, key: Attachment) -> None:
        """Give a lease back; one that is not there is success."""
        held = self.holders.get(key.hex)
        if held is not None:
            if held.lease is not None:
                say(key, f"releasing {ip_text(held.lease.address)}")
                if not held.space.has_link():
                    self._give_back(held.kept())
            self._drop(held)

    def collect(self, network: str, valid: Collection[str]) -> None:
        """Give back the leases of a network whose attachments (by Attachment.hex) are not valid."""
        for held in list(self.holders.values()):
            if held.key.network == network and held.key.hex not in valid:
                self.release(held.key)

    # By itself

    def resume(self) -> None:
        """Go on with the leases on disk. One whose namespace or interface is gone is given back from here, if that can be."""
        for kept, is_current in list(self.store.all()):
            space = self._space_of(kept) if is_current else None
            if space is None:
                say(kept.key, "the interface is gone")
                self._give_back(kept)
                self.store.remove(kept.key)
                continue
            holder = Holder(kept.key, space, kept.identity, self.limits, self._changed)
            self.holders[kept.key.hex] = holder
            say(kept.key, f"goes on with {ip_text(kept.lease.address)}")
            holder.resume(kept.lease)

    def _space_of(self, kept: Kept) -> Space | None:
        """Its namespace with its interface; None where they are gone, or others are in their place."""
        try:
            space = Space(kept.netns, kept.key.ifname)
        except (CniError, OSError):
            return None
        is_same = (space.cookie, space.index) == (kept.cookie, kept.index)
        if not kept.cookie:  # an old kernel: the file's number may be another namespace's by now
            is_same = (space.file, space.index, space.mac) == (kept.space, kept.index, kept.identity.mac)
        if not is_same:
            space.close()
            return None
        return space

    def _give_back(self, kept: Kept) -> None:
        """Release a lease from this namespace, by the host's routes. Nobody answers it, so whether it came is not known."""
        machine = Machine(kept.identity, self.limits, lambda: 0.5)
        machine.lease, machine.state = kept.lease, State.BOUND
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for one in machine.release():
                sock.sendto(one.payload, (ip_text(one.destination), frame.SERVER_PORT))

    async def watch(self) -> None:
        """Look after the namespaces, for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            gone = [held for held in self.holders.values() if not leads_there(held.space)]
            held_elsewhere = holds([held.space.file for held in gone]) if gone else set()
            for held in gone:
                if held.space.file not in held_elsewhere and self.holders.get(held.key.hex) is held:
                    say(held.key, "the container is gone")
                    self.release(held.key)

    def close(self) -> None:
        """The daemon ends; the leases stay."""
        for held in self.holders.values():
            held.close()
        self.holders.clear()

    def _drop(self, held: Holder) -> None:
        if self.holders.get(held.key.hex) is not held:
            return
        del self.holders[held.key.hex]
        held.release()
        held.close()
        self.store.remove(held.key)

    def _changed(self, held: Holder) -> None:
        lease = held.lease
        if lease is not None:
            say(held.key, f"{ip_text(lease.address)} until {lease.expiry - now():.0f} s from now")
            self.store.save(held.kept())
        elif held.machine.lease is not None:
            say(held.key, held.machine.failure)
            if held.space.has_link():  # as the Go daemon: nobody may use the address any more
                held.space.set_link(up=False)
            else:
                self._give_back(held.kept())
            self.store.remove(held.key)


def client_of(key: Attachment) -> bytes:
    """The client identifier: of type 0, and what the Go daemon calls a container, cut to what an option holds."""
    return b"\0" + f"{key.container_id}/{key.network}/{key.ifname}".encode("utf-8", "surrogateescape")[:CLIENT_MAX]


def leads_there(space: Space) -> bool:
    """Whether the path still leads to the namespace."""
    try:
        return os.path.samestat(os.stat(space.path), os.fstat(space.fd))
    except (OSError, ValueError):
        return False


def holds(wanted: Collection[str]) -> set[str]:
    """Which of these namespaces (device:inode) a process is in, or a mount holds. All of /proc is read."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.add(f"{status.st_dev}:{status.st_ino}")
    inodes = {each.partition(":")[2]: each for each in wanted}
    with contextlib.suppress(OSError):
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").split()
        found |= {inodes[word[5:-1]] for word in mounts if word.startswith("net:[") and word[5:-1] in inodes}
    return found & set(wanted)
