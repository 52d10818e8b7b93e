"""The mappings of the service. Each is published, on disk, and its owner is watched; or all three are undone.

A mapping from disk that cannot be published now (its port is taken, its address has not come yet) waits: it stays on disk and in
the list, and is tried again every RETRY_S.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_py import __version__
from portfwd.errors import NotFound, PortfwdError, PortInUse, Unfit, Usage
from portfwd.netns.sockets import absent, absent_notes
from portfwd.relay import bind, tentative
from portfwd.relay.following import Following
from portfwd.service import owners, portfile, sticky
from portfwd.service.owners import Owners
from portfwd.service.requests import Publish, Remove
from portfwd.values import Json

if TYPE_CHECKING:
    from portfwd.mapping import Mapping
    from portfwd.netns.sockets import Places
    from portfwd.relay.publish import Relay
    from portfwd.service.descriptors import Descriptors
    from portfwd.service.store import Store

log = logging.getLogger("portfwd")

RETRY_S = 5.0
SHOWN_MAX, NOTES_SHOWN = 500, 20  # characters of a mapping, and notes on a request, in the log
Change = tuple[str, "Mapping | None"]  # the id of a mapping, and what it replaced
FAMILIES = (socket.AF_INET, socket.AF_INET6)


@dataclass(slots=True)
class Waiting:
    """A mapping that cannot be published now."""

    mapping: Mapping
    why: str


class Registry:
    """See the module."""

    def __init__(self, loop: asyncio.AbstractEventLoop, relay: Relay, store: Store, descriptors: Descriptors) -> None:
        self.relay = relay
        self.store = store
        self.descriptors = descriptors
        self.owners = Owners(loop, self._ended)
        self.sticky = sticky.memory(store.state)
        self.following = Following(loop, relay, self._renamed, descriptors.for_listeners)
        self.waiting: dict[str, Waiting] = {}
        self.started = time.time()

    def known(self) -> dict[str, Mapping]:
        """All mappings by id, published or waiting."""
        return {**{name: one.mapping for name, one in self.waiting.items()}, **self.relay.mappings}

    # Requests

    def publish(self, request: Publish, asker: int, descriptors: Sequence[int]) -> Json:
        """Publish the mappings of a request, on the sockets that came with it if any. PortfwdError."""
        with self.descriptors.for_listeners():
            return self._publish_all(request, asker, descriptors)

    def _publish_all(self, request: Publish, asker: int, descriptors: Sequence[int]) -> Json:
        wanted = [owned(one, owners.resolved(one.owner, asker)) for one in request.mappings]
        if request.must_exist:
            refuse_absent(self.relay.places, wanted)
        notes = [*absent_notes(self.relay.places, wanted), *tentative.notes(wanted)]
        done: dict[str, Mapping] = {}
        published: list[Change] = []
        known, before = self.known(), self.relay.mappings
        with ExitStack() as undo:
            sockets = adopted(descriptors, undo)
            undo.callback(self._take_all_back, published)
            if sockets and (len(wanted) > 1 or request.replace):
                raise Usage("sockets come with one new mapping")
            for mapping in wanted:
                try:
                    notes += self._publish(
                        mapping, sockets, published, replace=request.replace, must_exist=request.must_exist
                    )
                except PortfwdError as error:
                    if not request.may_fail or (isinstance(error, Usage) and not isinstance(error, Unfit)):
                        raise
                    notes.append(f"left out: {mapping}: {error}")
                    close_all(sockets)
                else:
                    done[mapping.id] = mapping
            with self.descriptors.for_commands():
                self.store.save(list(done.values()), known)
            undo.pop_all()
        with self.descriptors.for_commands():
            notes += sticky.remember(self.sticky, done.values(), self.relay.mappings.values())
        left_out = bind.left_out()
        for name, mapping in done.items():
            self.waiting.pop(name, None)
            did = "leads elsewhere:" if name in before else "published"
            log.info("%s: %s %s", name, did, short(str(mapping.without(left_out))))
        for note in notes[:NOTES_SHOWN]:
            log.info("%s", short(note))
        return {"ok": True, "ids": list(done), "notes": notes, **({"left_out": list(left_out)} if left_out else {})}

    def _publish(
        self,
        mapping: Mapping,
        sockets: Sequence[socket.socket],
        published: list[Change],
        *,
        replace: bool,
        must_exist: bool = False,
    ) -> list[str]:
        """Publish or replace one mapping, which is added to `published` then. Returns notes for people. PortfwdError."""
        waiting = self.waiting.get(mapping.id)
        if waiting is not None and not replace and waiting.mapping.owner != mapping.owner:
            raise Usage(f"there is a mapping {mapping.id} already", f"it waits to be published: {waiting.why}")
        old = self.relay.mappings.get(mapping.id) if replace else None
        if old is not None:
            notes: list[str] = []
            # its addresses may have changed since the command looked
            if mapping.follow and mapping.follow == old.follow:
                mapping = dataclasses.replace(mapping, host_ips=old.host_ips)
            self.relay.replace(mapping)
        elif mapping.follow:
            notes = self.following.publish(mapping, must_exist=must_exist)
        else:
            notes = self.relay.publish(mapping, sockets)
        try:
            self.owners.watch(mapping)
        except BaseException:
            self._take_back(mapping.id, old)
            raise
        published.append((mapping.id, old))
        return notes

    def _renamed(self, mapping: Mapping) -> None:
        """Store a mapping whose host name has other addresses now: the next start begins with them."""
        try:
            with self.descriptors.for_commands():
                self.store.save([mapping], {mapping.id: mapping})
        except PortfwdError as error:
            log.warning("%s: %s", mapping.id, error)

    def _return_to(self, old: Mapping) -> None:
        self.relay.replace(old)
        with suppress(PortfwdError):
            self.owners.watch(old)

    def _take_back(self, name: str, old: Mapping | None) -> None:
        if old is not None:
            self._return_to(old)
        else:
            self.owners.forget(name)
            self.relay.remove(name, 0.0)

    def _take_all_back(self, published: Sequence[Change]) -> None:
        """Undo, the last first. An ExitStack goes on where one fails; it is made only now, since it is large."""
        with ExitStack() as undo:
            for change in published:
                undo.callback(self._take_back, *change)

    def remove(self, request: Remove, asker: int) -> Json:
        """Remove mappings by id or by owner. NotFound, PortfwdError.

        By id, all must exist, and their files are removed first: when that fails nothing has changed, and the command can be
        repeated. By owner, they end even if a file stays: the container is gone, and its address may be another one's tomorrow.
        Files that stay are removed later, and no later start publishes them again.
        """
        known = self.known()
        if request.owner:
            owner = owners.resolved(request.owner, asker)
            ids = [name for name, mapping in known.items() if mapping.owner == owner]
        else:
            ids = list(request.ids)
            missing = [name for name in ids if name not in known]
            if missing:
                raise NotFound(f"there is no mapping {', '.join(missing)}")
            self.store.forget([known[name] for name in ids])
        notes = self._drop(ids, request.drain_s)
        return {"ok": True, "ids": ids, **({"notes": notes} if notes else {})}

    def _drop(self, ids: Sequence[str], drain_s: float) -> list[str]:
        """End mappings; their files go now or later. Returns notes for people."""
        known = self.known()
        for name in ids:
            self.owners.forget(name)
            if self.waiting.pop(name, None) is None:
                self.relay.remove(name, drain_s)
            log.info("%s: removed", name)
        notes = self.store.forget_in_time([known[name] for name in ids])
        for note in notes:
            log.warning("%s", note)
        return notes

    def listing(self) -> Json:
        """All mappings with their state; for a waiting one that is the reason."""
        state = self.relay.stats()
        for name, texts in self.relay.unheard().items():
            state[name]["unheard"] = texts
        found: list[Json] = [
            {**mapping.to_json(), "state": {**state.get(name, {}), **self.following.state(name)}}
            for name, mapping in self.relay.mappings.items()
        ]
        found += [{**one.mapping.to_json(), "state": {"waiting": one.why}} for one in self.waiting.values()]
        return {"ok": True, "mappings": found}

    def stats(self) -> Json:
        """The counters of each mapping and of the service."""
        state = self.relay.stats()
        service: Json = {
            "pid": os.getpid(),
            "version": __version__,
            "started": self.started,
            "mappings": len(state),
            "waiting": len(self.waiting),
            "connections": _sum(state, "connections"),
            "active": _sum(state, "active"),
            "draining": self.relay.draining,
        }
        return {"ok": True, "service": service, "mappings": state}

    def remembered(self, name: str) -> Json:
        """The ports remembered under a sticky name."""
        return {"ok": True, "ports": self.sticky.recall(name)}

    # Without a request

    def restore(self) -> None:
        """Publish the mappings on disk that a predecessor has not handed over; those that fail wait. PortfwdError."""
        for mapping in list(self.relay.mappings.values()):
            try:
                self.owners.watch(mapping)
            except NotFound as error:
                log.info("%s: %s", mapping.id, error)
                self._ended(mapping.id)
            except PortfwdError as error:
                log.error("%s: %s", mapping.id, error)
        self.following.adopt()
        for mapping in self.store.load():
            if mapping.id not in self.relay.mappings:
                self._try(mapping)

    def retry(self) -> None:
        """Try again to publish waiting mappings and to remove files. Call every RETRY_S."""
        self.store.retry()
        for one in list(self.waiting.values()):
            self._try(one.mapping)

    def _try(self, mapping: Mapping) -> None:
        """Publish a mapping from disk, or let it wait. Raises nothing: one mapping must not keep back the others."""
        name = mapping.id
        if not owners.is_there(mapping.owner) or not owners.is_wanted(mapping):
            log.info("%s: not published again: its owner, %s, is gone or no longer wants it", name, mapping.owner)
            self.waiting.pop(name, None)
            self.store.forget_in_time([mapping])
            return
        try:
            with self.descriptors.for_listeners():
                self._again(mapping)
        except (PortfwdError, OSError, ValueError) as error:
            before = self.waiting.get(name)
            if before is None or before.why != str(error):
                log.warning("%s: cannot be published now, and is tried again every %g s: %s", name, RETRY_S, error)
            self.waiting[name] = Waiting(mapping, str(error))
        else:
            self.waiting.pop(name, None)
            shown = self.relay.mappings[name].without(bind.left_out())
            log.info("%s: published again %s", name, short(str(shown)))

    def _again(self, mapping: Mapping) -> None:
        """Publish a mapping from disk; a sticky one gets another port when its own is taken. PortfwdError."""
        try:
            self._one(mapping)
        except PortInUse as error:
            if not mapping.sticky:
                raise
            self._elsewhere(mapping, error)

    def _one(self, mapping: Mapping) -> None:
        """Publish a mapping from disk as it is. PortfwdError."""
        self._publish(mapping, [], [], replace=False)

    def _elsewhere(self, mapping: Mapping, why: PortInUse) -> None:
        """Publish a sticky mapping on another port. Raises `why` when none is free."""
        for other in sticky.elsewhere(mapping):
            try:
                self._one(other)
            except PortInUse:
                continue
            log.warning(
                "%s: %s gets port %d instead of %d: %s", other.id, other.sticky, other.first, mapping.first, why
            )
            with self.descriptors.for_commands():
                self._write_down(other, mapping)
            return
        raise why

    def _write_down(self, moved: Mapping, before: Mapping) -> None:
        """Store the new number of a sticky port: in its memory, on disk and in its port file."""
        for note in sticky.remember(self.sticky, [moved], self.relay.mappings.values()):
            log.warning("%s: %s", moved.id, note)
        try:
            self.store.save([moved], {before.id: before})
            if moved.port_file:
                portfile.change(moved)
        except PortfwdError as error:
            log.warning("%s: cannot store its new port: %s", moved.id, error)

    def _ended(self, name: str) -> None:
        """Remove a mapping whose owner, a process, has ended."""
        log.info("%s: its owner, a process, has ended", name)
        with self.descriptors.for_commands():
            self._drop([name], 0.0)


def owned(mapping: Mapping, owner: str) -> Mapping:
    """The mapping with this owner."""
    return mapping if mapping.owner == owner else dataclasses.replace(mapping, owner=owner)


def refuse_absent(places: Places, mappings: Sequence[Mapping]) -> None:
    """Raise the error of the first namespace that does not exist or cannot be entered."""
    for error in absent(places, mappings):
        raise type(error)(error.msg, "; ".join(filter(None, (error.details, "--wait publishes anyway"))))


def short(text: str) -> str:
    """A text cut for the log: a mapping may have thousands of targets."""
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


def close_all(sockets: Sequence[socket.socket]) -> None:
    """Close sockets of a mapping that was not published. A second call is harmless."""
    for sock in sockets:
        sock.close()


def adopted(descriptors: Sequence[int], undo: ExitStack) -> list[socket.socket]:
    """The sockets of descriptors that came with a request; `undo` closes them. Usage for anything but IPv4 and IPv6 sockets."""
    found = []
    for fd in descriptors:
        own = os.dup(fd)
        try:
            sock = socket.socket(fileno=own)
        except OSError as error:
            os.close(own)
            raise Usage("a descriptor that came along is not a socket", error.strerror or str(error)) from None
        undo.callback(sock.close)
        if sock.family not in FAMILIES:
            raise Usage("a socket that came along is neither IPv4 nor IPv6")
        os.set_inheritable(sock.fileno(), False)
        found.append(sock)
    return found


def _sum(state: dict[str, dict[str, object]], name: str) -> int:
    return sum(value for one in state.values() if isinstance(value := one.get(name), int))
