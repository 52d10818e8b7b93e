"""A small process inside a network namespace of another user namespace, which makes sockets there and passes them out.

setns(2) into a network namespace needs CAP_SYS_ADMIN in the user namespace that owns it and in one's own; the owner of a
rootless container has both after entering that user namespace, from which there is no way back. Hence a process for each.
It ends when its channel does: with close(), or with us, however we end.

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
    """The process is not there any more."""


class Silent(PortfwdError):
    """The process does not answer: an answer that came later would be taken for that to another request."""


class Entrant:
    """The process for the network namespace of a descriptor. OSError when no process can be had."""

    def __init__(self, net: int, name: str, *, answer_s: float = ANSWER_S) -> None:
        self._name = name
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A handler of ours must not run in the process that is begun here.
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
            made.setblocking(False)  # it does not: this object has to know
            return made
        if truncated:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # the kernel had no number to give the socket
        if answer.startswith(FAILED):
            number = int(answer[1:])
            raise OSError(number, os.strerror(number))
        if answer.startswith(REFUSED):
            raise Lacking(f"{self._name}: cannot enter its network namespace", answer[1:].decode("utf-8", "replace"))
        raise Ended(f"{self._name}: cannot enter its network namespace", "the process inside has ended")

    def has_ended(self) -> bool:
        """Whether it is there no more; close() is still to be called."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def close(self) -> None:
        """End it. A second call is harmless."""
        self._channel.close()
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            # A child that nobody has waited for keeps its pid; of one that SIGCHLD's disposition swept away it may be another's.
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
        # Only now: entering a user namespace clears it (commit_creds() in the kernel). The channel's end is what counts.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(net)  # this process is in it, which keeps it as long
        with socket.socket(fileno=channel_fd) as channel:
            while request := channel.recv(REQUEST.size):
                answer(channel, request, refusal)
    finally:
        os._exit(0)


def ignore_signals() -> None:
    """Those for the whole group or control group are for the other side, which still needs sockets while it drains."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def keep_only(*fds: int) -> None:
    """Close what was inherited: connections, listeners and other channels are not this process's to keep open."""
    low = 3
    for fd in sorted(fds):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, max(low, os.sysconf("SC_OPEN_MAX")))


def enter(libc: ctypes.CDLL, net: int) -> str:
    """Go into the namespace; returns why that is not possible, or nothing."""
    try:
        user = fcntl.ioctl(net, NS_GET_USERNS)
    except OSError as error:  # EPERM: it is none of ours, nor of those below it
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
    """Make one socket and send it."""
    if refusal:
        channel.send(REFUSED + refusal.encode())
        return
    family, kind = REQUEST.unpack(request)
    try:
        with socket.socket(family, kind | KIND_FLAGS) as made:
            channel.sendmsg([MADE], rights.message([made.fileno()]))
    except OSError as error:
        channel.send(FAILED + str(error.errno).encode())
