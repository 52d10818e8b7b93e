"""Every network namespace that exists, and what holds it: for who must know that one does *not* exist any more (liveness.py).

A namespace ends with its last holder: a process or thread in it, a bind mount in any mount namespace, an open descriptor. All
of /proc is read for that once. Some holders cannot be found: a socket that was made in the namespace by a process that is
now elsewhere, a descriptor on its way in a Unix socket, a mount namespace that only a descriptor keeps. What they keep is found
if our namespace has a number for it (kernel/nsid). So the census says what exists; that it found nothing is a proof only for a
namespace that had a number, or together with the host's interfaces (a veth ends with the namespace of its other end).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from cni_py.addr import ip_text, mac_text
from cni_py.errors import InvalidNetns
from cni_py.kernel import inet, netns, nsid
from cni_py.kernel.processes import read
from cni_py.kernel.rtnl import NO_NSID, Link, Rtnl

T = TypeVar("T")

OWN = "/proc/thread-self/ns/net"
FIRST_PIDS = "pid:[4026531836]"  # PROC_PID_INIT_INO, linux/proc_ns.h: the PID namespace in which every process is seen
# A sysctl of the first network namespace alone (net_core_table, net/core/sysctl_net_core.c). In a container with the host's
# network the host's other processes are not seen; one with a network of its own (kind, LXC) is a host by itself.
FIRST_NET = "/proc/sys/net/core/netdev_max_backlog"
NSFS_FIRST = (
    0xEFFFFFF0  # inode numbers of namespaces begin behind it: proc_ns.h, PROC_DYNAMIC_FIRST in fs/proc/generic.c
)
KCMP = {"x86_64": 312, "aarch64": 272}  # numbers of system calls: asm/unistd.h
KCMP_FILES = 2  # linux/kcmp.h
HOLDERS_MAX = 64  # of one kind, of one namespace: enough to open it, and to tell of it
MOUNTINFO_MAX = 1 << 24
STATE = "/var/lib/cni"  # reservations of host-local, libcni's cache


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface: what tells it from others. `peer`: index of the other end; `abroad`: that is in another namespace."""

    name: str
    index: int
    mac: str
    kind: str
    alias: str
    addresses: frozenset[str] = frozenset()
    peer: int = 0
    abroad: bool = False


@dataclass(slots=True)
class Space:
    """A namespace. `key` is "net:[INODE]"; `cookie` is 0 if it could not be entered, or the kernel has no cookies.

    `number`: by which ours knows it; -1: it has none. One that was found by its number alone has the key "id 7".
    """

    key: str
    cookie: int = 0
    number: int = NO_NSID
    pids: list[int] = field(default_factory=list)
    # As paths that lead there from here: "/proc/812/root/run/netns/web"
    mounts: list[str] = field(default_factory=list)
    descriptors: list[str] = field(default_factory=list)  # "/proc/812/fd/9"
    interfaces: tuple[Interface, ...] = ()

    @property
    def unseen(self) -> bool:
        """Whether it was found by its number alone."""
        return not (self.pids or self.mounts or self.descriptors)


@dataclass(frozen=True, slots=True)
class Census:
    """`hidden`: why there may be namespaces that are not among `spaces`; "" when there are none. The first is our own.

    `shared`: why files of attachments may be another host's, whose namespaces are not seen from here; "" if they are not.
    """

    spaces: tuple[Space, ...]
    hidden: str = ""
    # IDs of the containers that CNI plugins are working on: CNI_CONTAINERID of processes
    working: frozenset[str] = frozenset()
    shared: str = ""


def take() -> Census:
    """Look. Needs root to see all; without it `hidden` says so."""
    spaces: dict[str, Space] = {}
    hidden = ""
    mounts: set[str] = set()
    working = set()
    own = os.readlink(OWN)
    space_at(spaces, own)
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        try:
            in_process(spaces, mounts, pid)
            working |= container_of(pid)
        except PermissionError:
            if pid == 1:
                continue  # a sandbox may hide its init, which is in no container
            hidden = "not all processes can be looked at (this needs root)"
        except OSError:
            continue  # it has ended
    inner = os.readlink("/proc/self/ns/pid") != FIRST_PIDS
    if inner and os.path.exists(FIRST_NET):
        hidden = hidden or "this runs in a PID namespace of its own, and does not see all processes"
    side = Rtnl()
    try:
        for space in spaces.values():
            if not enter(space, own, side) and space.key in spaces:
                hidden = hidden or f"the namespace {space.key} cannot be entered"
        hidden = by_number(spaces, side) or hidden
    finally:
        side.close()
    return Census(tuple(spaces.values()), hidden, frozenset(working), shared() if inner else "")


def shared() -> str:
    """For Census.shared, on a host that is a container itself (kind, LXC). Its root is its own, and so is a whole file system
    that is mounted; a folder of a file system of the machine (a volume) may be in others, too.
    """
    try:
        fd = os.open(STATE, os.O_PATH)
    except OSError:
        return ""
    try:
        number = re.search(r"^mnt_id:\s*(\d+)", read(f"/proc/self/fdinfo/{fd}"), re.MULTILINE)
    finally:
        os.close(fd)
    mounts = [line.split() for line in read("/proc/self/mountinfo").splitlines()]
    own = all("/" in fields[3:5] for fields in mounts if number is not None and fields[0] == number[1])
    return "" if own else f"{STATE} is a volume, which another host may have, too, and only files in it tell of it"


def by_number(spaces: dict[str, Space], side: Rtnl) -> str:
    """Add the namespaces that have a number and were not found otherwise; why one could not be looked at, or ""."""
    hidden = ""
    found = {space.number for space in spaces.values()}
    for number in sorted(set(nsid.known(side)) - found):
        key = f"id {number}"
        try:
            spaces[key] = Space(key, number=number, interfaces=shown(nsid.links(side, number), side, number))
        except OSError:
            if number in nsid.known(side):
                spaces[key] = Space(key, number=number)
                hidden = f"the namespace with the id {number} cannot be looked at"
    return hidden


def space_at(spaces: dict[str, Space], key: str) -> Space:
    return spaces.setdefault(key, Space(key))


def in_process(spaces: dict[str, Space], mounts: set[str], pid: int) -> None:
    """The namespaces of its threads, descriptors and mounts; `mounts`: the mount namespaces that were looked at. OSError.

    Each thread may have a mount namespace and a table of descriptors of its own (unshare(2)). And the first thread, which has the
    pid, may have ended before the others: then it has none of these.
    """
    shown = 0  # a thread whose descriptors were looked at
    for thread in sorted(map(int, os.listdir(f"/proc/{pid}/task"))):
        try:
            key = os.readlink(f"/proc/{thread}/ns/net")  # /proc has threads, too, though it does not list them
            space = space_at(spaces, key)
            if pid not in space.pids:
                remember(space.pids, thread)
            if not (shown and same_descriptors(shown, thread)):
                in_descriptors(spaces, thread)
                shown = thread
            seen = os.readlink(f"/proc/{thread}/ns/mnt")
            if seen not in mounts:
                in_mounts(spaces, thread)
                mounts.add(seen)
        except PermissionError:
            raise
        except OSError:
            continue  # the thread has ended


def same_descriptors(one: int, other: int) -> bool:
    """Whether two threads share their table of descriptors; False also where the kernel does not tell (kcmp(2))."""
    number = KCMP.get(os.uname().machine)
    return number is not None and libc().syscall(number, one, other, KCMP_FILES, 0, 0) == 0


@cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def in_descriptors(spaces: dict[str, Space], pid: int) -> None:
    """The namespaces of the descriptors of a process or thread. OSError when it ends."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        key = key_of_descriptor(pid, fd)
        if key:
            remember(space_at(spaces, key).descriptors, f"/proc/{pid}/fd/{fd}")


def key_of_descriptor(pid: int, fd: str) -> str:
    """The network namespace that a descriptor is of; "" for any other file. OSError when the process ends.

    The link says "net:[4026532281]" if the descriptor was opened through /proc, but if it was through a bind mount it says that
    path, and "/" when the mount is gone. A file is looked at only if its inode number is one of nsfs: a stat() may hang on a
    network's file system.
    """
    path = f"/proc/{pid}/fd/{fd}"
    target = link(path)
    if target.startswith(("net:[", "/dev/")) or not target.startswith("/"):
        return target if target.startswith("net:[") else ""
    lines = read(f"/proc/{pid}/fdinfo/{fd}").splitlines()
    numbers = [line.split()[1] for line in lines if line.startswith("ino:")]  # since Linux 5.14
    if numbers and int(numbers[0]) < NSFS_FIRST:
        return ""
    try:
        status = os.stat(path)
    except PermissionError:
        raise
    except OSError:  # closed; or a file of another kind whose server is gone (NFS, FUSE)
        return ""
    return f"net:[{status.st_ino}]" if is_netns(path, status.st_dev) else ""


def is_netns(path: str, device: int) -> bool:
    """Whether a file of that device is a network namespace."""
    if device != os.stat(OWN).st_dev:
        return False
    try:
        os.close(netns.open_netns(path))
    except (FileNotFoundError, InvalidNetns):
        return False
    return True


def remember(holders: list[T], one: T) -> None:
    if one not in holders and len(holders) < HOLDERS_MAX:
        holders.append(one)


def link(path: str) -> str:
    """Where a link of /proc leads; "" when it is gone. PermissionError."""
    try:
        return os.readlink(path)
    except PermissionError:
        raise
    except OSError:
        return ""


def in_mounts(spaces: dict[str, Space], pid: int) -> None:
    """The namespaces that are mounted in the process's mount namespace (proc_pid_mountinfo(5)). OSError."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        for line in file.read(MOUNTINFO_MAX).splitlines():
            fields = line.split(b" ")
            if len(fields) > 4 and fields[3].startswith(b"net:["):
                path = os.fsdecode(unescaped(fields[4]))
                space_at(spaces, os.fsdecode(fields[3])).mounts.append(f"/proc/{pid}/root{path}")


def unescaped(path: bytes) -> bytes:
    r"""A path of mountinfo: space, tab, newline and backslash stand there as \040 and the like."""
    first, *rest = path.split(b"\\")
    return first + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest)


def container_of(pid: int) -> set[str]:
    """The container that the process works on, if it is a CNI plugin that a runtime has started."""
    pairs = read(f"/proc/{pid}/environ").split("\0")
    found = {pair.partition("=")[2] for pair in pairs if pair.startswith("CNI_CONTAINERID=")}
    return found if any(pair.startswith("CNI_COMMAND=") for pair in pairs) else set()


def enter(space: Space, own: str, host: Rtnl) -> bool:
    """Fill in the cookie, the number and the interfaces. False if no way in leads to it, though it is still there."""
    gone = True
    for path in ways(space, own):
        try:
            fd = netns.open_netns(path)
        except FileNotFoundError:
            continue
        except InvalidNetns:
            gone = False
            continue
        try:
            if f"net:[{os.fstat(fd).st_ino}]" == space.key:
                space.cookie = netns.cookie(fd)
                space.number = host.nsid(fd)
                space.interfaces = interfaces(fd)
                return True
        except OSError:
            gone = False
        finally:
            os.close(fd)
    return gone


def ways(space: Space, own: str) -> Iterator[str]:
    if space.key == own:
        yield OWN
    yield from (f"/proc/{pid}/ns/net" for pid in space.pids)
    yield from space.mounts
    yield from space.descriptors


def interfaces(fd: int) -> tuple[Interface, ...]:
    """The interfaces of a namespace. OSError."""
    side = Rtnl(fd)
    try:
        return shown(side.links(), side)
    finally:
        side.close()


def shown(listed: Iterable[Link], side: Rtnl, number: int = NO_NSID) -> tuple[Interface, ...]:
    """The links with their addresses, of the namespace of `side`, or of the one that it knows by the number. OSError."""
    with_addresses: dict[int, set[str]] = {}
    for entry in inet.addresses(side, within=number):
        with_addresses.setdefault(entry.index, set()).add(ip_text(entry.address.packed))
    return tuple(
        Interface(
            one.name,
            one.index,
            mac_text(one.mac),
            one.kind,
            one.alias,
            frozenset(with_addresses.get(one.index, ())),
            one.link,
            one.netns_id >= 0,
        )
        for one in listed
    )
