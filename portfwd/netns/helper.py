"""A small process inside a network namespace of another user namespace: it makes sockets there and passes them out.

setns(2) into a network namespace needs CAP_SYS_ADMIN in the user namespace that owns it, and in one's own. The owner of a
rootless container has both after entering that user namespace, but a process cannot leave it again, and a process with several
threads cannot enter it (EINVAL). So each such namespace gets a process of its own, forked from this one. It ends when its channel
ends: with close(), or with this process, however that ends.

    request     family and kind of socket(2)
    answer      MADE with the socket, FAILED with the errno of socket(2), or REFUSED with a sentence: the kernel lets nobody in
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct

from portfwd import rights
from portfwd.errors import Lacking, PortfwdError

NS_GET_USERNS = 0xB701  # linux/nsfs.h
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # linux/prctl.h
NAME = b"portfwd-inside"
ANSWER_S = 1.0  # starting and making a socket takes milliseconds; the event loop waits for it
REQUEST = struct.Struct("ii")
MADE, FAILED, REFUSED = b"m", b"f", b"r"
ANSWER_MAX = 4096
KIND_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


class Ended(PortfwdError):
    """The process inside has ended."""


class Silent(PortfwdError):
    """The process does not answer in time. It is given up: its late answer would be read as that to the next request."""


class Entrant:
    """The process inside the network namespace `net`, a descriptor; `name` is for errors. OSError when fork(2) fails."""

    def __init__(self, net: int, name: str, *, answer_s: float = ANSWER_S) -> None:
        self._name = name
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Python's signal handlers of this process must not run in the child before run() has replaced them.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                run(net, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        ours.settimeout(answer_s)
        self._channel = ours

    def socket(self, family: int, kind: int) -> socket.socket:
        """A non-blocking socket made there. Lacking when the kernel lets us not in; Ended; Silent; OSError of socket(2)."""
        try:
            self._channel.send(REQUEST.pack(family, kind))
            answer, descriptors, truncated = rights.receive(self._channel, ANSWER_MAX, 1)
        except TimeoutError as error:
            raise Silent(f"{self._name}: cannot enter its network namespace", "the process inside is silent") from error
        except OSError as error:
            raise Ended(f"{self._name}: cannot enter its network namespace", "the process inside has ended") from error
        if descriptors:
            made = socket.socket(fileno=descriptors[0])
            made.setblocking(False)  # the descriptor is non-blocking already, but Python's object has to know
            return made
        if truncated:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # no number below RLIMIT_NOFILE was left for it
        if answer.startswith(FAILED):
            number = int(answer[1:])
            raise OSError(number, os.strerror(number))
        if answer.startswith(REFUSED):
            raise Lacking(f"{self._name}: cannot enter its network namespace", answer[1:].decode("utf-8", "replace"))
        raise Ended(f"{self._name}: cannot enter its network namespace", "the process inside has ended")

    def has_ended(self) -> bool:
        """Whether the process has ended; close() is still to be called."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def close(self) -> None:
        """End it. A second call is harmless."""
        self._channel.close()
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            # A zombie keeps its pid. Where SIGCHLD is ignored the kernel reaps children itself, and the pid may be another
            # process's by now: waitid() fails then (ECHILD), before anything is killed.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def run(net: int, channel_fd: int) -> None:
    """The process: enter, then answer until the other side is gone. Does not return."""
    try:
        ignore_signals()
        keep_only(net, channel_fd)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_NAME, NAME)
        refusal = enter(libc, net)
        # Only now: entering a user namespace clears the death signal (commit_creds() in the kernel). It is a second safeguard:
        # the end of the channel ends the process, too.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(net)  # the process is in the namespace, which keeps that alive
        with socket.socket(fileno=channel_fd) as channel:
            while request := channel.recv(REQUEST.size):
                answer(channel, request, refusal)
    finally:
        os._exit(0)


def ignore_signals() -> None:
    """Ignore signals to the process group or control group: the service handles them, and needs sockets while it drains."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def keep_only(*fds: int) -> None:
    """Close all descriptors but these and 0 to 2: a copy of a connection or listener would keep it open after the service."""
    low = 3
    for fd in sorted(fds):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, max(low, os.sysconf("SC_OPEN_MAX")))


def enter(libc: ctypes.CDLL, net: int) -> str:
    """Enter the namespace; returns why that is not possible, or ""."""
    try:
        user = fcntl.ioctl(net, NS_GET_USERNS)
    except OSError as error:  # EPERM: the owner is neither this user namespace nor one below it (ioctl_ns(2))
        return f"{error.strerror}: it belongs to a user namespace outside of this service's"
    try:
        own = os.path.samestat(os.fstat(user), os.stat("/proc/self/ns/user"))
        if not own and libc.setns(user, CLONE_NEWUSER) != 0:
            return f"{os.strerror(ctypes.get_errno())}: its user namespace is somebody else's"
        if libc.setns(net, CLONE_NEWNET) != 0:
            return f"{os.strerror(ctypes.get_errno())}: this needs root, or to be the owner of the container"
    finally:
        os.close(user)
    return ""


def answer(channel: socket.socket, request: bytes, refusal: str) -> None:
    """Make one socket and send it, or send why not."""
    if refusal:
        channel.send(REFUSED + refusal.encode())
        return
    family, kind = REQUEST.unpack(request)
    try:
        with socket.socket(family, kind | KIND_FLAGS) as made:
            channel.sendmsg([MADE], rights.message([made.fileno()]))
    except OSError as error:
        channel.send(FAILED + str(error.errno).encode())
