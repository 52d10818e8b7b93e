"""`cni-py enter`: a program of the host in the network of a container, as `ip netns exec` runs it.

The program has the container's network namespace, and a /sys that shows its interfaces; everything else (files, processes,
users) is the host's. So tcpdump, ss, nft, ip and curl serve in a container that has none of them.
"""

import argparse
import contextlib
import ctypes
import os
import signal
from pathlib import Path

from cni_py.commands import outcome
from cni_py.commands.report import LACKING, Failure, complain

SUMMARY = "run a program of the host in a container's network"
DESCRIPTION = """\
Run a program of this host in the network of a container: with its interfaces, addresses, routes, sockets and packet filter, but
with the files and programs of the host. Without a program, a shell ($SHELL, or sh).

The container may be named by its ID or the beginning of it, by its name where its runtime answers (containerd, CRI-O, podman,
docker), as network/containerID/ifname, or as a network namespace: its name in /run/netns, its path, the pid of a process in it.
As with `ip netns exec`, files in /etc/netns/NAME take the place of those in /etc where the namespace has a name.
"""
EPILOG = """\
examples:
  cni-py enter web -- ss -ltn              what listens in the container web
  cni-py enter 3f2a -- tcpdump -ni eth0    by the beginning of its ID
  cni-py enter /run/netns/cni-0123 -- ip route
  cni-py enter 4711                        a shell in the network of process 4711

exit status: that of the program; 126 it cannot be run, 127 there is no such program; 2 several containers are meant, 3 none is,
or this is not root
"""
MS_REC, MS_SLAVE, MS_BIND, MS_RDONLY = 0x4000, 0x80000, 0x1000, 0x1  # linux/mount.h
MNT_DETACH = 2  # linux/fs.h
ETC_NETNS = Path("/etc/netns")
NOT_RUN, NOT_FOUND = 126, 127  # as shells have them


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's options."""
    parser = outcome.add_parser(commands, "enter", SUMMARY, DESCRIPTION)
    parser.epilog = EPILOG
    parser.add_argument("target", metavar="CONTAINER|NETNS", help="whose network")
    parser.add_argument("words", metavar="-- CMD", nargs=argparse.REMAINDER, help="the program and its arguments")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Become the program; returns only if that fails."""
    outcome.need_root()
    from cni_py.commands import places
    from cni_py.errors import CniError
    from cni_py.kernel import netns

    words = options.words[options.words[:1] == ["--"] :] or [os.environ.get("SHELL") or "sh"]
    place = places.find(options.target)
    try:
        fd = netns.open_netns(place.path)
        try:
            netns.setns(fd)
        finally:
            os.close(fd)
        own_mounts()
        show_own(place.name)
    except (CniError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise Failure(f"cannot enter {place.label}: {why}", LACKING) from error
    return become(words)


def own_mounts() -> None:
    """A mount namespace of our own, from which nothing gets out; the host's later mounts still get in. OSError."""
    from cni_py.commands.namespaces import libc_call
    from cni_py.kernel.netns import CLONE_NEWNS

    libc_call("unshare", CLONE_NEWNS)
    with contextlib.suppress(OSError):  # / is no mount point, in a chroot: then nothing of it is shared
        libc_call("mount", b"", b"/", b"none", ctypes.c_ulong(MS_SLAVE | MS_REC), None)


def show_own(name: str) -> None:
    """A /sys of the namespace, and its files of /etc. OSError.

    A sysfs shows the interfaces of the namespace that it was mounted in (sysfs_init_fs_context(), fs/sysfs/mount.c).
    """
    from cni_py.commands.namespaces import libc_call

    read_only = MS_RDONLY if os.statvfs("/sys").f_flag & os.ST_RDONLY else 0
    with contextlib.suppress(OSError):  # no mount is there
        libc_call("umount2", b"/sys", MNT_DETACH)
    libc_call("mount", b"cni-py", b"/sys", b"sysfs", ctypes.c_ulong(read_only), None)
    folder = ETC_NETNS / name
    for path in sorted(folder.iterdir()) if name and folder.is_dir() else ():
        over = Path("/etc", path.name)
        try:
            libc_call("mount", os.fsencode(path), os.fsencode(over), b"none", ctypes.c_ulong(MS_BIND), None)
        except OSError as error:
            complain(f"cni-py enter: {over} stays the host's, {path} cannot take its place: {error.strerror}")


def become(words: list[str]) -> int:
    """exec(3); returns the exit status of a shell for what cannot be run."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what it runs would, too
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(words[0], words)  # noqa: S606  a program, as it was given, without a shell
    except (FileNotFoundError, NotADirectoryError):
        complain(f"cni-py enter: there is no program {words[0]}")
        return NOT_FOUND
    except (OSError, ValueError) as error:
        complain(f"cni-py enter: cannot run {words[0]}: {error}")
        return NOT_RUN
