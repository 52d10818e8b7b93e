"""Which network namespaces there are, by what they are found, and which processes run in them: one pass over /proc.

A namespace is known by "net:[4026531840]", the target of /proc/PID/ns/net. It is found by a name (a file of /run/netns or the
like, or the path in a record) or by a process; one that has neither cannot be entered, and is not in the model.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from cni_py.errors import InvalidNetns
from cni_py.host.census import Space as Held
from cni_py.host.liveness import OTHER
from cni_py.host.model import Process
from cni_py.kernel import netns, processes

OWN = "/proc/thread-self/ns/net"
NAMED = ("/run/netns", "/var/run/netns", "/run/docker/netns")
SHOWN_MAX = 50  # processes of a namespace
PF_KTHREAD = 0x00200000  # linux/sched.h; the ninth field of /proc/PID/stat is the process's flags


@dataclass(slots=True)
class Space:
    """A namespace before it is looked at."""

    key: str
    names: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    parents: dict[int, int] = field(default_factory=dict)  # ppid by pid
    ways: list[str] = field(default_factory=list)  # paths that lead to it and are no names: by another process

    def open(self) -> int:
        """A descriptor of it. OSError when it is gone, or when we may not."""
        error: OSError = FileNotFoundError(errno.ENOENT, f"the namespace {self.key} is gone")
        for path in (*self.names, *(f"/proc/{pid}/ns/net" for pid in self.pids), *self.ways):
            try:
                fd = netns.open_netns(path)
            except OSError as refusal:
                error = refusal
                continue
            except InvalidNetns as refusal:
                error = refusal.__cause__ if isinstance(refusal.__cause__, OSError) else OSError(str(refusal))
                continue
            if key_of(fd) == self.key:
                return fd
            os.close(fd)  # the path, or the pid, leads to another by now
        raise error

    def processes(self) -> tuple[Process, ...]:
        """What runs in it, those that began first; processes that end meanwhile are left out."""
        found = []
        for pid in self.pids:
            name = processes.name(pid) if os.path.exists(f"/proc/{pid}") else ""
            if name:
                found.append(Process(pid, name, processes.container_id(pid), self.parents.get(pid, 0)))
            if len(found) == SHOWN_MAX:
                break
        return tuple(found)


def key_of(fd: int) -> str:
    """net:[INODE]."""
    return f"net:[{os.fstat(fd).st_ino}]"


def own_key() -> str:
    """The key of the namespace that this thread is in."""
    return os.readlink(OWN)


def find(paths: Iterable[str], held: Iterable[Held]) -> tuple[list[Space], list[str]]:
    """The namespaces, that of this thread first, those with names before the others; and why some could not be seen.

    `paths` lead to further ones: those of records. So do the mounts and descriptors that the census found (`held`).
    """
    spaces = {own_key(): Space(own_key())}
    unseen = 0
    for path in [*_named(), *paths]:
        key = key_at(path)
        if key:
            space = spaces.setdefault(key, Space(key))
            if path not in space.names and not _is_twin(path, space.names):
                space.names.append(path)
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        try:
            key = os.readlink(f"/proc/{pid}/ns/net")
        except PermissionError:
            unseen += pid != 1  # a sandbox may hide its init, which is in no container
            continue
        except OSError:
            continue  # it has ended
        parent = _parent(pid)
        if parent >= 0:
            space = spaces.setdefault(key, Space(key))
            space.pids.append(pid)
            space.parents[pid] = parent
    for one in held:
        ways = [*one.mounts, *one.descriptors]
        if ways and one.key != own_key():
            spaces.setdefault(one.key, Space(one.key)).ways += ways
    gaps = ["the network namespaces of other users' processes are not seen: this needs root"] if unseen else []
    return list(spaces.values()), gaps


def _named() -> list[str]:
    folders = [*NAMED, f"{os.environ.get('XDG_RUNTIME_DIR') or '/nonexistent'}/netns"]
    found: list[str] = []
    for folder in folders:
        try:
            found += sorted(f"{folder}/{name}" for name in os.listdir(folder))
        except OSError:
            continue
    return found


def _is_twin(path: str, names: Iterable[str]) -> bool:
    """Whether one of the names is the same file: /var/run is a link to /run."""
    return os.path.realpath(path) in map(os.path.realpath, names)


def key_at(path: str) -> str | None:
    """The key of the namespace at a path; "" when there is none, None if we may not look."""
    try:
        fd = netns.open_netns(path)
    except InvalidNetns as error:
        return None if isinstance(error.__cause__, PermissionError) else ""
    except OSError:
        return ""
    try:
        return key_of(fd)
    finally:
        os.close(fd)


def leads_to(path: str) -> str | None:
    """The same for Claim.leads_to: "" only when there is nothing."""
    key = key_at(path) if path else ""
    return OTHER if key == "" and path and os.path.lexists(path) else key


def _parent(pid: int) -> int:
    """The parent's pid; -1 for a thread of the kernel, and for a process that has ended."""
    fields = processes.read(f"/proc/{pid}/stat").rpartition(") ")[2].split()
    if len(fields) < 7 or int(fields[6]) & PF_KTHREAD:
        return -1
    return int(fields[1])
