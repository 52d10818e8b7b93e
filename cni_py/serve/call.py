"""One call in the warm service: a forked child becomes what the launcher would have been, and runs the plugin.

    from the launcher    standard streams, working and root folder, network and mount namespace, umask, environment
    from the service     control group, resource limits, capabilities, what a security module (AppArmor) confines

The child ends before the plugin has begun, and the launcher goes direct, when the caller is another user, lives in another pid
or user namespace or has fewer capabilities than we; or when the package is another one, or has changed.
"""

import _signal
import _socket
import errno
import fcntl
import os
import posix
import sys

from cni_py import run, skel, warm
from cni_py.kernel import netns
from cni_py.serve import package, statistics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

RECEIVE_S = 5.0
RIGHTS_MAX = 256  # bytes of control messages: the header and six descriptors need 40
PROC_STATUS_MAX = 4096  # bytes
CAPABILITIES_SIZE = 17  # a tab and 16 digits


class Refused(Exception):
    """The launcher is to go direct. The text is for the log; "" when the connection has ended."""


class Request:
    """What a launcher sent; see cni_py/warm.py."""

    __slots__ = ("environment", "fds", "home", "plugin", "umask")

    def __init__(self, body: bytes, fds: "list[int]") -> None:
        words = body.split(b"\0")
        if len(words) < 3:
            raise Refused("a request without a plugin, a folder and a umask")
        self.plugin, self.home, self.umask = words[0], words[1], int(words[2], 8)
        self.environment = words[3:]
        self.fds = fds


def serve(sock: _socket.socket, pid: int, report: "statistics.Report", closed: str) -> "NoReturn":
    """The whole life of a child. `pid` is the caller's; `closed`: why only the statistics are to be had now, or ""."""
    status = 1
    try:
        for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGCHLD):
            _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        status = _serve(sock, pid, report, closed)
    except Refused as refusal:
        report.refused(str(refusal))
    except (OSError, ValueError) as error:
        report.refused(str(error))
    finally:
        os._exit(status)


def _serve(sock: _socket.socket, pid: int, report: "statistics.Report", closed: str) -> int:
    request = receive(sock)
    if request.plugin == warm.STATUS:
        sock.sendall(reply(warm.ANSWER, 0, report.told()))
        return 0
    if closed:
        raise Refused(closed)
    if request.home != os.fsencode(package.HOME):
        raise Refused(f"a launcher of another installation, in {os.fsdecode(request.home)}")
    name = request.plugin.decode("ascii", "replace")
    if name not in run.MODULES:
        raise Refused(f"no plugin of ours: {name!r}")
    check_caller(pid)
    become(request)
    follow_the_launcher(sock)
    report.begins(name, os.environ.get("CNI_COMMAND", ""))
    begin(sock)
    skel.deliver = lambda text, status: answer(sock, text, status)
    status = skel.answer(name, run.load)
    try:
        sys.stderr.flush()
    except (OSError, AttributeError):
        pass
    report.ended(status)
    for fd in (0, 2):  # a runtime waits until nobody has them, and we are still here for a moment
        os.close(fd)
    try:
        sock.sendall(reply(warm.ENDED, status))
    except OSError:
        pass  # it has been killed
    return status


def reply(kind: bytes, status: int = 0, text: bytes = b"") -> bytes:
    """A message to the launcher."""
    return kind + bytes([status]) + len(text).to_bytes(4, sys.byteorder) + text


# Who asks


def credentials(sock: _socket.socket) -> tuple[int, int]:
    """The pid and the uid of the process that has connected, as the kernel noted them. The pid is 0 if it has none here."""
    found = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, warm.SO_PEERCRED_BYTES)
    return int.from_bytes(found[:4], sys.byteorder), int.from_bytes(found[4:8], sys.byteorder)


def check_caller(pid: int) -> None:
    """Refused when the caller may do less than we, or when pids or uids mean something else to it: in records, /proc, files."""
    if pid <= 0:
        raise Refused("a caller in another pid namespace")
    for kind in ("pid", "user"):
        if namespace(pid, kind) != OURS[kind]:
            raise Refused(f"a caller in another {kind} namespace")
    if CAPABILITIES & ~capabilities(pid):
        raise Refused("a caller with fewer capabilities")


def namespace(pid: "int | str", kind: str) -> tuple[int, int]:
    """Device and inode of a namespace that a process is in."""
    state = os.stat(f"/proc/{pid}/ns/{kind}")
    return state.st_dev, state.st_ino


def capabilities(pid: "int | str") -> int:
    """The effective capabilities of a process, as bits (proc_pid_status(5))."""
    fd = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    _, _, rest = os.read(fd, PROC_STATUS_MAX).partition(b"\nCapEff:")
    os.close(fd)
    return int(rest[:CAPABILITIES_SIZE], 16)


# Of the service, all its life; found out once
OURS = {kind: namespace("self", kind) for kind in ("pid", "user", "net", "mnt")}
CAPABILITIES = capabilities("self")


# What it sent


def receive(sock: _socket.socket) -> Request:
    """A whole request. Refused, OSError."""
    sock.settimeout(RECEIVE_S)
    data, control, _, _ = sock.recvmsg(1 << 16, RIGHTS_MAX, _socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise Refused("")  # somebody looked whether we are here
    fds = [
        int.from_bytes(rights[at : at + 4], sys.byteorder)
        for level, kind, rights in control
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
        for at in range(0, len(rights), 4)
    ]
    if len(data) < warm.REQUEST_HEAD or not data.startswith(warm.MAGIC):
        raise Refused("a launcher of another version")
    size = int.from_bytes(data[len(warm.MAGIC) : warm.REQUEST_HEAD], sys.byteorder)
    body = data[warm.REQUEST_HEAD :]
    if size > warm.REQUEST_MAX:
        raise Refused(f"a request of {size} bytes")
    while len(body) < size:
        part = sock.recv(size - len(body))
        if not part:
            raise Refused("half a request")
        body += part
    sock.settimeout(None)
    request = Request(body, fds)
    if len(fds) != len(warm.FDS) and request.plugin != warm.STATUS:
        raise Refused(f"{len(fds)} descriptors")
    return request


# Becoming it


def become(request: Request) -> None:
    """Take the launcher's place. OSError."""
    stdin, stderr, folder, root, network, mounts = request.fds
    moved = not is_here(mounts, "mnt")
    if moved:
        # Possible for a process with one thread, which shares its root with nobody
        netns.setns(mounts, netns.CLONE_NEWNS)
    if moved or not os.path.samestat(os.fstat(root), os.stat("/")):
        os.fchdir(root)
        os.chroot(".")
    os.fchdir(folder)
    if not is_here(network, "net"):
        netns.setns(network)
    os.umask(request.umask)
    os.dup2(stdin, 0)
    null = os.open("/dev/null", os.O_RDONLY)  # no module writes there, see answer()
    os.dup2(null, 1)
    os.dup2(stderr, 2)
    for fd in (*request.fds, null):
        os.close(fd)
    # The dict behind os.environ, which the service has emptied. Programs are started with os.environ, not with libc's copy.
    # Of a variable that comes twice the first counts, as for an interpreter that starts; a text without "=" is none.
    posix.environ.update(entry.partition(b"=")[::2] for entry in reversed(request.environment) if b"=" in entry)


def is_here(fd: int, kind: str) -> bool:
    """Whether a descriptor is of the namespace that the service is in."""
    state = os.fstat(fd)
    return (state.st_dev, state.st_ino) == OURS[kind]


def follow_the_launcher(sock: _socket.socket) -> None:
    """Let the kernel send SIGTERM when the launcher closes its half, or all, of the connection: no thread has to wait for it."""
    fd = sock.fileno()
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, _signal.SIGTERM)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR | os.O_ASYNC)
    try:  # it may have happened before
        if not sock.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT):
            raise Refused("")
    except BlockingIOError:
        pass


def begin(sock: _socket.socket) -> None:
    """Tell the launcher that the plugin begins. Refused when it does not wait any more, and has gone direct."""
    try:
        sock.sendall(reply(warm.BEGUN))
    except OSError as error:
        raise Refused("a caller that did not wait so long") from error


def answer(sock: _socket.socket, text: bytes, status: int) -> None:
    """Have the launcher write to stdout. OSError when it cannot, or is gone."""
    fcntl.fcntl(sock.fileno(), fcntl.F_SETFL, os.O_RDWR)  # what it sends now would be SIGTERM, too
    sock.sendall(reply(warm.ANSWER, status, text))
    told = sock.recv(1)
    if not told:
        raise BrokenPipeError(errno.EPIPE, "the launcher has ended")
    if told != b"\0":
        raise OSError(told[0], os.strerror(told[0]))
