"""Sockets in other network namespaces: of a path, a process or a container, also one of another user namespace.

A socket belongs for its whole life to the namespace in which it was made (network_namespaces(7)): this thread goes there, makes
it, and comes back. A namespace owned by a user namespace that we may enter but that is not ours (rootless containers, for a service
without root) is entered by a small process (entrant.py), which passes the socket back.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass

from cni_py import libcni_cache, records
from cni_py.errors import CniError
from cni_py.kernel import netns
from portfwd import entrant
from portfwd.errors import NotFound, PortfwdError, Usage
from portfwd.mapping import Place

UNUSED_S = 60.0  # an open descriptor would keep the namespace of a container that is gone
PLUGINS = ("bridge", "portmap")  # whose records name the namespace of a container
LOOK_S = 1.0  # between two looks whether a path still names the same namespace
KIND_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


@dataclass(slots=True)
class Known:
    """An open namespace."""

    fd: int
    path: str
    used_at: float = 0.0
    looked_at: float = 0.0


class Places:
    """The namespaces that a process connects from; for one thread."""

    def __init__(self) -> None:
        self._known: dict[Place, Known] = {}
        self._entrants: dict[Place, entrant.Entrant] = {}
        self._now = 0.0

    def socket(self, place: Place, family: int, kind: int) -> socket.socket:
        """A non-blocking socket made inside `place` (or here). NotFound: there is no such namespace; PortfwdError; OSError."""
        if not place:
            return socket.socket(family, kind | KIND_FLAGS)
        helper = self._entrants.get(place)
        if helper is not None:
            return helper.socket(family, kind)
        known = self._open(place)
        known.used_at = self._now
        try:
            with netns.Enter(known.fd):
                return socket.socket(family, kind | KIND_FLAGS)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
        self._entrants[place] = entrant.Entrant(known.path)
        return self._entrants[place].socket(family, kind)

    def _open(self, place: Place) -> Known:
        known = self._known.get(place)
        if known is not None and self._now - known.looked_at >= LOOK_S:
            known.looked_at = self._now
            if not still_names(known.path, known.fd):
                self.forget(place)
                known = None
        if known is None:
            path = self.describe(place)
            try:
                known = self._known[place] = Known(netns.open_netns(path), path, self._now, self._now)
            except FileNotFoundError:
                raise NotFound(f"{place}: there is no network namespace at {path}") from None
            except CniError as error:
                raise PortfwdError(f"{place}: {error}") from error
        return known

    def describe(self, place: Place) -> str:
        """The path that a place means now. NotFound."""
        if place.path:
            return place.path
        if place.pid:
            return f"/proc/{place.pid}/ns/net"
        return container_netns(place.container)

    def forget(self, place: Place) -> None:
        """Look anew next time: the container may have been restarted."""
        known = self._known.pop(place, None)
        if known is not None:
            os.close(known.fd)
        helper = self._entrants.pop(place, None)
        if helper is not None:
            helper.close()

    def expire(self, now: float) -> None:
        """Close what has not been used for UNUSED_S."""
        self._now = now
        for place in [place for place, known in self._known.items() if now - known.used_at >= UNUSED_S]:
            self.forget(place)

    def close(self) -> None:
        """Close everything."""
        for place in [*self._known, *self._entrants]:
            self.forget(place)


def still_names(path: str, fd: int) -> bool:
    """Whether a path leads to the open namespace."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False


def container_netns(wanted: str) -> str:
    """The path of a container's namespace, from attachment records, then from libcni's cache. NotFound; Usage when ambiguous.

    `wanted` is the container ID or the beginning of one.
    """
    found = recorded(wanted) or cached(wanted)
    if not found:
        raise NotFound(
            f"container {wanted}: nothing is known of it",
            "neither an attachment record nor libcni's cache names it; give --pid or --netns instead",
        )
    exact = {name: path for name, path in found.items() if name == wanted} or found
    if len(exact) > 1:
        raise Usage(f"container {wanted}: several begin like that", ", ".join(sorted(exact)))
    return next(iter(exact.values()))


def recorded(wanted: str) -> dict[str, str]:
    """Container ID and namespace of our attachments whose ID begins with `wanted`."""
    return {
        record.key.container_id: record.netns
        for plugin in PLUGINS
        for record in records.all_records(plugin)
        if record.netns and record.key.container_id.startswith(wanted)
    }


def cached(wanted: str) -> dict[str, str]:
    """The same from the cache of libcni."""
    try:
        entries = libcni_cache.everything()
    except (CniError, OSError):
        return {}
    return {
        one.container_id: one.known_netns for one in entries if one.container_id.startswith(wanted) and one.known_netns
    }
