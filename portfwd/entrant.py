"""A small process inside a network namespace of another user namespace, which makes sockets there and passes them out.

setns(2) into a network namespace needs CAP_SYS_ADMIN in the user namespace that owns it; an owner without root has that
after entering the user namespace first, which a process can do once and for good. Hence a process, one per namespace, that ends with us.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct

from portfwd.errors import PortfwdError

NS_GET_USERNS = 0xB701  # linux/nsfs.h
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ANSWER_S = 1.0  # making a socket takes microseconds; the event loop waits for it
REQUEST = struct.Struct("ii")  # family, kind


class Entrant:
    """The process for the network namespace at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(ANSWER_S)
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            run(path, theirs)
        theirs.close()
        self._channel = ours

    def socket(self, family: int, kind: int) -> socket.socket:
        """A non-blocking socket made there. PortfwdError when the kernel does not let us in."""
        try:
            self._channel.send(REQUEST.pack(family, kind))
            answer, ancillary, _, _ = self._channel.recvmsg(4096, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise PortfwdError(f"cannot enter {self._path}", error.strerror or str(error)) from error
        descriptors = array.array("i")
        for level, found, data in ancillary:
            if (level, found) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data)
        if not descriptors:
            raise PortfwdError(f"cannot enter {self._path}", answer.decode("utf-8", "replace") or "its process ended")
        sock = socket.socket(fileno=descriptors[0])
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        """End it."""
        self._channel.close()
        with contextlib.suppress(OSError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def run(path: str, channel: socket.socket) -> None:
    """The process: enter, then answer until the other side is gone. Does not return."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        keep_only(channel.fileno())
        refusal = enter(libc, path)
        while request := channel.recv(REQUEST.size):
            answer(channel, request, refusal)
    finally:
        os._exit(0)


def keep_only(fd: int) -> None:
    """Close what was inherited: connections and listeners are not this process's to keep open."""
    os.closerange(3, fd)
    os.closerange(fd + 1, 1 << 20)


def enter(libc: ctypes.CDLL, path: str) -> str:
    """Go into the namespace; returns why that is not possible, or nothing."""
    try:
        net = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        user = fcntl.ioctl(net, NS_GET_USERNS)
    except OSError as error:
        return error.strerror or str(error)
    for fd, kind, what in ((user, CLONE_NEWUSER, "user"), (net, CLONE_NEWNET, "network")):
        if libc.setns(fd, kind) != 0:
            return f"{os.strerror(ctypes.get_errno())}: its {what} namespace is somebody else's"
    return ""


def answer(channel: socket.socket, request: bytes, refusal: str) -> None:
    """Make one socket and send it."""
    if refusal:
        channel.send(refusal.encode())
        return
    family, kind = REQUEST.unpack(request)
    try:
        with socket.socket(family, kind) as made:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno()]))
            channel.sendmsg([b"."], [rights])
    except OSError as error:
        channel.send((error.strerror or str(error)).encode())
