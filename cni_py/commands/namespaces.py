"""Find a network namespace by name, path or pid, and create one: ip-netns(8) without the program."""

import ctypes
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cni_py.commands.report import LACKING, USAGE, Failure, complain
from cni_py.errors import CniError
from cni_py.kernel import netns
from cni_py.kernel.rtnl import Rtnl
from cni_py.protocol import netconf

NETNS_DIR = Path("/run/netns")
MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000  # linux/mount.h
MAKE_SHARED, BIND_ALL, BIND = (ctypes.c_ulong(flags) for flags in (MS_SHARED | MS_REC, MS_BIND | MS_REC, MS_BIND))
MNT_DETACH = 2  # linux/fs.h


@dataclass(frozen=True, slots=True)
class Target:
    """A namespace: its path, its name in messages, and the container ID derived from it. The path need not exist."""

    path: str
    label: str
    container_id: str

    @property
    def exists(self) -> bool:
        """Whether the path exists; the plugins check that it is a network namespace."""
        return os.path.exists(self.path)


def find(text: str) -> Target:
    """The target for a name, a path or a pid. A name in /run/netns goes before a pid of the same digits. Failure 2."""
    if "/" in text:
        text = os.path.abspath(text)  # the ID must not depend on the working directory
    for folder in (f"{NETNS_DIR}/", "/var/run/netns/"):
        if "/" not in text.removeprefix(folder):
            text = text.removeprefix(folder)
    words = text.split("/")
    if words[:2] == ["", "proc"] and words[2:3] != ["self"] and words[3:] == ["ns", "net"]:
        text = words[2]
    if "/" in text:
        return Target(text, text, _digest(text))
    named = NETNS_DIR / text
    if text.isascii() and text.isdecimal() and not named.exists():
        return Target(f"/proc/{text}/ns/net", f"process {text}", f"pid-{text}")
    if text in (".", ".."):
        raise Failure(f'"{text}" is not the name of a network namespace', USAGE)
    return Target(str(named), text, text if netconf.is_identifier(text) else _digest(text))


def _digest(text: str) -> str:
    """A container ID for a path, or a name with characters that an ID cannot have."""
    return f"netns-{hashlib.sha256(os.fsencode(text)).hexdigest()[:16]}"


@contextmanager
def opened(target: Target, create: bool, dry_run: bool, say: Callable[[str], None]) -> Iterator[str]:
    """The path of the namespace to connect. With `create` a missing one is made, and removed if the ADD fails. Failure 3.

    With `dry_run` the new namespace gets no name and ends with the plan.
    """
    if target.exists:
        yield target.path
        return
    named = os.path.dirname(target.path) == str(NETNS_DIR)
    if not create or not named:
        hint = "; --create-netns creates it" if named else "; --create-netns creates namespaces by name only" * create
        raise Failure(f"no such namespace: {target.path}{hint}", LACKING)
    fd = new_netns()
    try:
        if dry_run:
            say(f"would create namespace {target.label}")
            yield f"/proc/self/fd/{fd}"
            return
        bind_netns(fd, target.path)
    finally:
        os.close(fd)
    try:
        say(f"created namespace {target.label}; `ip netns delete {target.label}` removes it")
        yield target.path
    except BaseException:
        unbind_netns(target.path)
        say(f"removed namespace {target.label} again")
        raise


def is_own(path: str) -> bool:
    """Whether the namespace is the one of this process, the host's. False if there is none; Failure 3."""
    try:
        return os.path.samefile("/proc/self/ns/net", path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Failure(f"cannot examine {path}: {error.strerror}", LACKING) from error


def has_interface(path: str, ifname: str) -> bool:
    """Whether the namespace has an interface of that name. Failure 3 for what is not a network namespace."""
    try:
        fd = netns.open_netns(path)
    except CniError as error:
        raise Failure(str(error), LACKING) from error
    except FileNotFoundError:
        return False
    try:
        return Rtnl(fd).link(ifname) is not None
    finally:
        os.close(fd)


def libc_call(name: str, *arguments: int | bytes | ctypes.c_ulong | None) -> None:
    """Call a function of the C library that returns 0 on success. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc[name](*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def new_netns() -> int:
    """A descriptor of a new network namespace with lo up, which ends with the descriptor unless bound. Failure 3."""
    back = netns.open_netns("/proc/thread-self/ns/net")
    try:
        libc_call("unshare", netns.CLONE_NEWNET)
        try:
            fd = netns.open_netns("/proc/thread-self/ns/net")
        finally:
            netns.setns(back)
        Rtnl(fd).set_link("lo", up=True)
        return fd
    except OSError as error:
        raise Failure(f"cannot create a network namespace: {error.strerror}", LACKING) from error
    finally:
        os.close(back)


def bind_netns(fd: int, path: str) -> None:
    """Give the namespace a name, as `ip netns add` does: a bind mount on a file in /run/netns. Failure 3.

    The folder must be a shared mount, or other mount namespaces (a runtime's, portfwd's) do not see the new mount.
    """
    folder = os.fsencode(NETNS_DIR)
    try:
        os.makedirs(folder, 0o755, exist_ok=True)
        try:
            libc_call("mount", b"", folder, b"none", MAKE_SHARED, None)
        except OSError:  # EINVAL: only a mount point can be made shared, so it is bound on itself first
            libc_call("mount", folder, folder, b"none", BIND_ALL, None)
            libc_call("mount", b"", folder, b"none", MAKE_SHARED, None)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        try:
            libc_call("mount", f"/proc/self/fd/{fd}".encode(), os.fsencode(path), b"none", BIND, None)
        except OSError:
            os.unlink(path)
            raise
    except OSError as error:
        raise Failure(f"cannot create the namespace {path}: {error.strerror}", LACKING) from error


def unbind_netns(path: str) -> None:
    """Remove the name, as `ip netns delete` does. MNT_DETACH: the mount may be in use."""
    try:
        libc_call("umount2", os.fsencode(path), MNT_DETACH)
        os.unlink(path)
    except OSError as error:
        complain(f"cni-py-exec: cannot remove {path}: {error.strerror}")
