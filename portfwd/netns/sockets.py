"""Sockets in other network namespaces: of a path, a process or a container, also one of another user namespace.

A socket belongs for its whole life to the namespace in which it was made (network_namespaces(7)). So this thread enters the
namespace, makes the socket and comes back; if it cannot come back the process is aborted. Where the kernel does not let this
thread in, or would not let it back (rootless containers, a service without root), a small process inside makes the socket and
passes it out (helper.py).

Namespaces are kept open between connections. An open descriptor keeps a namespace alive after its container, with addresses and
routes. So expire() closes one whose path leads elsewhere or nowhere, and any other after UNUSED_S without use. A name that leads
to another namespace, since the container was restarted, is noticed within LOOK_S, and at once after forget().
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from _signal import SIG_BLOCK, SIG_SETMASK, pthread_sigmask, valid_signals
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import NoReturn

from cni_py import files
from cni_py.attachment import records
from cni_py.errors import CniError
from cni_py.kernel import netns
from cni_py.protocol import cache
from portfwd.errors import Lacking, NotFound, PortfwdError, Usage
from portfwd.mapping import Mapping, Place
from portfwd.netns import containers
from portfwd.netns.helper import Ended, Entrant, Silent
from portfwd.netns.legs import Legs
from portfwd.netns.processes import start_time

UNUSED_S = 60.0
LOOK_S = 1.0  # between two checks that a name leads to the same namespace, and two readings of records
UNKNOWN_S = 0.2  # between two searches for an unknown container: each client would cause one
BACK_OFF_S = 5.0  # without trying, after a process inside did not answer, or ended twice
CANDIDATES_MAX = 8  # named in an error
ATTEMPTS = 2  # to get a socket from a process inside: the first may have been killed
KIND_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
OWN_NAMESPACE = "/proc/thread-self/ns/net"
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14
ALL_SIGNALS = tuple(valid_signals())
RECORD_KINDS = ("adding", "json")  # PLUGIN.adding, PLUGIN.json: cni_py/attachment/records.py

Socket = socket.socket  # for annotations in Places, whose method `socket` hides the module


@dataclass(frozen=True, slots=True)
class Named:
    """What a name means: the path of a namespace, and its cookie if an attachment record has one, else 0."""

    path: str
    cookie: int = 0


@dataclass(slots=True)
class Known:
    """An open namespace."""

    fd: int
    named: Named
    here: bool  # it is the namespace of this process
    used_at: float
    looked_at: float  # when the name was last seen to lead here
    resolved_at: float
    doubted: bool = False  # a connection from there has failed
    verified: bool = False  # its cookie is the record's
    elsewhere: bool = False  # this thread cannot enter it
    inside: Entrant | None = None
    retry_at: float = 0.0
    refusal: Lacking | None = None  # final: the owner of a namespace does not change

    def close(self) -> None:
        """Let go of the namespace."""
        os.close(self.fd)
        self.leave()

    def leave(self) -> None:
        """End the process inside."""
        if self.inside is not None:
            self.inside.close()
            self.inside = None


class Places:
    """The namespaces that a process connects from. For one thread: setns(2) moves the calling thread alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[Place, Known] = {}
        self._started: dict[int, int] = {}  # start times of processes, by pid
        self._unknown: dict[Place, tuple[float, PortfwdError]] = {}  # until when
        self._may_return: bool | None = None  # not asked yet
        self.tcp_legs = Legs(unshared=False)
        self.udp_legs = Legs(unshared=True)

    def socket(self, place: Place, family: int, kind: int) -> Socket:
        """A non-blocking socket made inside `place` (or here).

        NotFound: there is no such namespace now; Lacking: we may not enter it; PortfwdError; OSError, of socket(2) or for want of
        descriptors.
        """
        if not place:
            return socket.socket(family, kind | KIND_FLAGS)
        now = self._clock()
        known = self._open(place, now)
        known.used_at = now
        made = self._made(place, known, family, kind)
        if not known.verified:
            self._verify(place, known, made)
        return made

    def is_here(self, place: Place) -> bool:
        """Whether it is the namespace of this process, as far as is known without system calls. An empty place is."""
        known = self._known.get(place)
        return not place or (known is not None and known.here)

    def means_here(self, place: Place) -> bool:
        """The same, looked up now; False when there is no such namespace."""
        if place:
            with contextlib.suppress(PortfwdError, OSError):
                self._open(place, self._clock())
        return self.is_here(place)

    def _open(self, place: Place, now: float) -> Known:
        known = self._known.get(place)
        if known is not None and now - known.looked_at >= LOOK_S:
            known.looked_at = now
            if not self._still_means(place, known, now):
                self._drop(place)
                known = None
        if known is None:
            named = self._resolve(place, now)
            fd = self._descriptor(place, named.path)
            known = self._known[place] = Known(fd, named, still_names(OWN_NAMESPACE, fd), now, now, now)
        return known

    def _still_means(self, place: Place, known: Known, now: float) -> bool:
        """Whether the name still leads to the open namespace."""
        if place.container and known.doubted and now - known.resolved_at >= LOOK_S:
            known.doubted = False
            known.resolved_at = now
            try:
                if container_netns(place.container) != known.named:
                    return False
            except PortfwdError:
                return False
        return still_names(known.named.path, known.fd)

    def _resolve(self, place: Place, now: float) -> Named:
        if place.path:
            return Named(place.path)
        if place.pid:
            return Named(f"/proc/{place.pid}/ns/net")
        until, error = self._unknown.get(place, (now, None))
        if error is not None and now < until:
            raise type(error)(error.msg, error.details)
        try:
            return container_netns(place.container)
        except PortfwdError as failure:
            self._unknown[place] = (now + UNKNOWN_S, failure)
            raise

    def _descriptor(self, place: Place, path: str) -> int:
        try:
            fd = netns.open_netns(path)
        except FileNotFoundError:
            raise NotFound(f"{place}: there is no network namespace at {path}") from None
        except CniError as error:
            if isinstance(error.__cause__, PermissionError):
                raise Lacking(
                    f"{place}: {path} may not be opened", "run as root, or as the container's owner"
                ) from error
            raise PortfwdError(f"{place}: {error}") from error
        try:
            if place.pid:
                self._check_process(place)
        except PortfwdError:
            os.close(fd)
            raise
        return fd

    def _check_process(self, place: Place) -> None:
        """NotFound when the pid was given to another process.

        Called after the namespace was opened: if the start time is still the same now, the pid was the same process's then.
        """
        started = start_time(place.pid)
        if self._started.setdefault(place.pid, started) != started:
            raise NotFound(f"{place}: that process has ended, and another one has its number")

    def _made(self, place: Place, known: Known, family: int, kind: int) -> Socket:
        if not known.elsewhere and self._can_return():
            try:
                return made_inside(known.fd, family, kind)
            except PermissionError:
                pass
        known.elsewhere = True
        if known.refusal is not None:
            raise Lacking(known.refusal.msg, known.refusal.details)
        if self._clock() < known.retry_at:
            raise PortfwdError(f"{place}: its network namespace cannot be entered", f"tried every {BACK_OFF_S:g} s")
        try:
            return made_by_another(place, known, family, kind)
        except Lacking as error:
            known.leave()
            known.refusal = error
            raise
        except (Ended, Silent):
            known.leave()
            known.retry_at = self._clock() + BACK_OFF_S
            raise

    def _can_return(self) -> bool:
        """Whether this thread may enter the namespace that it is in: found out by entering it.

        It may not when its capabilities are those of a user namespace of its own, but its network namespace belongs to an outer
        one (unshare --user without --net; podman unshare). Then it could enter containers, but never come back.
        """
        if self._may_return is None:
            home = own_namespace()
            try:
                netns.setns(home)
                self._may_return = True
            except OSError:
                self._may_return = False
            finally:
                os.close(home)
        return self._may_return

    def _verify(self, place: Place, known: Known, made: Socket) -> None:
        """Compare the namespace's cookie with the record's: a path like /proc/PID/ns/net may lead to a stranger's by now."""
        cookie = known.named.cookie
        if cookie:
            try:
                found = int.from_bytes(made.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
            except OSError:
                found = cookie  # before Linux 5.14 there is no such option: nothing to compare
            if found != cookie:
                made.close()
                path = known.named.path
                self._drop(place)
                raise NotFound(f"{place}: its network namespace is gone", f"{path} is another one by now")
        known.verified = True

    def describe(self, place: Place) -> str:
        """The path of the namespace that a place means now, for people. NotFound; Usage when it is ambiguous."""
        return self._resolve(place, self._clock()).path

    def forget(self, place: Place) -> None:
        """Look the namespace up again at the next use: a connection failed, and the container may have been restarted."""
        known = self._known.get(place)
        if known is not None:
            known.looked_at = -LOOK_S
            known.doubted = True

    def retain(self, places: Collection[Place]) -> None:
        """Forget every namespace not in `places`, and record the start time of each pid, so that a reused pid is noticed."""
        for place in self._known.keys() - set(places):
            self._drop(place)
        pids = {place.pid for place in places if place.pid}
        self._started = {pid: started for pid, started in self._started.items() if pid in pids}
        for pid in pids - self._started.keys():
            with contextlib.suppress(PortfwdError):
                self._started[pid] = start_time(pid)

    def expire(self, now: float) -> None:
        """Close namespaces unused for UNUSED_S or whose name is gone, and end dead processes inside. Call every few seconds."""
        for place, known in list(self._known.items()):
            if now - known.used_at >= UNUSED_S or not still_names(known.named.path, known.fd):
                self._drop(place)
            elif known.inside is not None and known.inside.has_ended():
                known.leave()
        self._unknown = {place: failed for place, failed in self._unknown.items() if now < failed[0]}

    def _drop(self, place: Place) -> None:
        self._known.pop(place).close()

    def close(self) -> None:
        """Close everything."""
        for place in list(self._known):
            self._drop(place)


def absent(places: Places, mappings: Iterable[Mapping]) -> list[PortfwdError]:
    """An error for each namespace of a target that cannot be entered now."""
    named = dict.fromkeys(target.place for mapping in mappings for target in mapping.targets if target.place)
    found: list[PortfwdError] = []
    for place in named:
        try:
            places.socket(place, socket.AF_INET, socket.SOCK_STREAM).close()
        except PortfwdError as error:
            found.append(error)
        except OSError as error:
            found.append(PortfwdError(f"{place} cannot be entered", error.strerror or str(error)))
    return found


def absent_notes(places: Places, mappings: Iterable[Mapping]) -> list[str]:
    """The same as sentences, for a caller that publishes anyway: each client causes another look."""
    return [f"{error}; clients are reset until it can be entered" for error in absent(places, mappings)]


def own_namespace() -> int:
    """A descriptor of the network namespace of this thread."""
    return os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)


def made_inside(there: int, family: int, kind: int) -> Socket:
    """Enter a namespace, make a socket and come back. OSError; PermissionError: the kernel does not let this thread in.

    Signals are blocked meanwhile: a Python handler that raises would leave this thread inside, and one that makes a socket would
    make it there.
    """
    unblocked = pthread_sigmask(SIG_BLOCK, ())
    home = -1
    try:
        pthread_sigmask(SIG_BLOCK, ALL_SIGNALS)  # runs the handlers of signals that came before
        home = own_namespace()
        try:
            netns.setns(there)
            return socket.socket(family, kind | KIND_FLAGS)
        finally:
            come_back(home)
    finally:
        if home >= 0:
            os.close(home)
        pthread_sigmask(SIG_SETMASK, unblocked)


def come_back(home: int) -> None:
    """Return to the namespace `home`, or abort the process: everything it did next would happen inside a container."""
    try:
        netns.setns(home)
    except BaseException:  # noqa: BLE001  no error may leave this function with the thread inside
        if not still_names(OWN_NAMESPACE, home):  # it is at home if it had failed to enter
            abort()


def abort() -> NoReturn:
    """End by SIGABRT, with a sentence on stderr."""
    with contextlib.suppress(OSError):
        os.write(2, b"portfwd: cannot return from a container's network namespace\n")
    os.abort()


def made_by_another(place: Place, known: Known, family: int, kind: int) -> Socket:
    """A socket from the process inside, which is started if need be. Lacking; Ended; Silent; OSError."""
    for _ in range(ATTEMPTS - 1):
        try:
            return inside(place, known).socket(family, kind)
        except Ended:
            known.leave()
    return inside(place, known).socket(family, kind)


def inside(place: Place, known: Known) -> Entrant:
    """The process inside; it is started when there is none. OSError."""
    if known.inside is None:
        known.inside = Entrant(known.fd, str(place))
    return known.inside


def still_names(path: str, fd: int) -> bool:
    """Whether a path leads to the namespace that `fd` has open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False


# Containers


def container_netns(wanted: str) -> Named:
    """The namespace of a container, from attachment records, then from libcni's cache. NotFound; Usage when ambiguous.

    `wanted` is a container ID or a unique beginning of one. All attachments of a container are in one namespace: of several
    recorded paths, the one that exists is meant. Docker attaches containers without CNI, so it is asked when no record matches.
    """
    found = recorded(wanted)
    if wanted not in found:
        found = cached(wanted) | found
    if not found and (by_docker := containers.docker(wanted)) is not None:
        return Named(by_docker.netns)
    if wanted not in found and len(found) > 1:
        raise Usage(f"container {wanted}: several container IDs begin like that", listed(found))
    for container_id in (wanted, *found):
        if container_id in found:
            return existing(container_id, found[container_id])
    raise NotFound(
        f"container {wanted}: nothing is known of it",
        "no attachment record names it, nor libcni's cache, nor Docker; give --pid or --netns instead",
    )


def existing(container_id: str, candidates: Collection[Named]) -> Named:
    """The candidate whose path exists. NotFound when none does; Usage when they lead to several namespaces."""
    present: dict[tuple[int, int], Named] = {}
    for named in sorted(candidates, key=lambda named: not named.cookie):
        with contextlib.suppress(OSError):
            status = os.stat(named.path)
            present.setdefault((status.st_dev, status.st_ino), named)
    if len(present) > 1:
        paths = listed(named.path for named in present.values())
        raise Usage(f"container {container_id}: it has several network namespaces", f"name one with --netns: {paths}")
    for named in present.values():
        return named
    paths = listed(named.path for named in candidates)
    raise NotFound(f"container {container_id}: there is no network namespace at {paths}")


def begins(container_id: str, wanted: str) -> bool:
    """Whether an ID begins so. IDs of containerd's clients are NAMESPACE-ID, of which people know the second part."""
    return container_id.startswith(wanted) or container_id.rpartition("-")[2].startswith(wanted)


def recorded(wanted: str) -> dict[str, list[Named]]:
    """The namespaces of our attachments whose container ID begins with `wanted`, by container ID."""
    found: dict[str, list[Named]] = {}
    for plugin in recording_plugins():
        with contextlib.suppress(CniError, OSError):  # one that cannot be read must not hide the others
            for record in records.all_records(plugin):
                if record.netns and begins(record.key.container_id, wanted):
                    found.setdefault(record.key.container_id, []).append(Named(record.netns, record.container_cookie))
        if wanted in found:
            break  # the plugins of one chain recorded the same
    return found


def recording_plugins() -> list[str]:
    """The plugins that have left attachment records, by name."""
    names: set[str] = set()
    with contextlib.suppress(OSError):  # none yet, or not ours to read
        for folder in os.scandir(f"{files.run_dir()}/attachments"):
            with contextlib.suppress(OSError):
                parts = [file.rpartition(".") for file in os.listdir(folder)]
                names.update(plugin for plugin, _, kind in parts if kind in RECORD_KINDS)
    return sorted(names)


def cached(wanted: str) -> dict[str, list[Named]]:
    """The same from libcni's cache."""
    found: dict[str, list[Named]] = {}
    with contextlib.suppress(CniError, OSError):
        for entry in cache.everything():
            if entry.known_netns and begins(entry.container_id, wanted):
                found.setdefault(entry.container_id, []).append(Named(entry.known_netns))
    return found


def listed(names: Iterable[str]) -> str:
    """Up to CANDIDATES_MAX names for an error, and how many more there are."""
    ordered = sorted(set(names))
    more = len(ordered) - CANDIDATES_MAX
    return ", ".join(ordered[:CANDIDATES_MAX]) + (f" and {more} more" if more > 0 else "")
