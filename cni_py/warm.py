"""The launcher's side of the warm service, `cni-py serve`: hand a call over, and wait for its end.

    service -> launcher   MAGIC, when it has accepted the connection. Before that no descriptor is sent: one that lies with a
                          service that hangs keeps a pipe open, and the runtime waits for its end
    launcher -> service   request: plugin, the package's folder, umask, environment; descriptors of stdin, stderr, working folder,
                          root folder, network and mount namespace (FDS)
    service -> launcher   BEGUN     the plugin begins. Nothing or anything else instead: it has not begun, and will not
                          ANSWER    what belongs on stdout, and the exit status if that can be written
                          ENDED     the exit status
    launcher -> service   after ANSWER one byte: 0, or the errno of the failed write, after which an ADD is taken back

The launcher alone writes to stdout, so that there is never a second answer, whichever of the two is killed in whatever moment.
A launcher that is asked to stop closes its half of the connection; one that is killed closes all of it. The kernel then sends
the plugin SIGTERM (serve/call).

cni_py/launcher.c does the same. Only what costs nothing at the start is imported.
"""

import _signal
import _socket
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

MAGIC = b"cni-py\0\1"  # the last byte is the version of this protocol
REQUEST_HEAD = 12  # bytes: MAGIC and the length of what follows, 4 bytes in the machine's order
REQUEST_MAX = 1 << 20  # bytes
REPLY_HEAD = 6  # bytes: kind, exit status, length of what follows (4)
STATUS = b"?"  # in place of a plugin: what the service has done is the ANSWER (commands/serve)
BEGUN, ANSWER, ENDED = b"B", b"A", b"E"
FDS = ("stdin", "stderr", ".", "/", "/proc/self/ns/net", "/proc/self/ns/mnt")
O_PATH = 0o10000000  # include/uapi/asm-generic/fcntl.h
SO_PEERCRED_BYTES = 12  # struct ucred: pid, uid, gid
BEGIN_S = 5.0  # a service that is busy for longer is no help
STOPPING = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)
LOST = b"""{
    "code": 999,
    "msg": "the process of `cni-py serve` that ran this call was killed or has crashed: run DEL, which removes what it made"
}"""


def call(path: str, plugin: str, home: str) -> int:
    """Let the service at `path` run the plugin. The exit status, or -1 if it has not begun and will not: go direct.

    Whatever the service is or does, nothing is raised.
    """
    waiting = _Waiting()
    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    except OSError:
        return -1
    try:
        # A closed standard stream: its number would be given to what is opened next. skel knows what to do.
        if sock.fileno() < 3:
            return -1
        waiting.watch(sock)
        if not _began(sock, path, _request(plugin, home)):
            return -1
        waiting.begun = True
        return _follow(sock)
    finally:
        sock.close()
        waiting.end()


def _request(plugin: str, home: str) -> bytes:
    umask = posix.umask(0o077)
    posix.umask(umask)
    words = [plugin.encode(), home.encode("utf-8", "surrogateescape"), b"%o" % umask]
    words += [b"%b=%b" % pair for pair in posix.environ.items()]
    body = b"\0".join(words)
    return MAGIC + len(body).to_bytes(4, sys.byteorder) + body


def _began(sock: _socket.socket, path: str, request: bytes) -> bool:
    """Send the request. Whether the plugin has begun; if not, it will not begin any more."""
    fds: list[int] = []
    try:
        if len(request) > REQUEST_MAX:
            return False
        sock.settimeout(BEGIN_S)
        sock.connect(path)
        if not _trusted(sock) or _read(sock, len(MAGIC)) != MAGIC:
            return False
        fds += [posix.open(each, O_PATH | posix.O_CLOEXEC) for each in FDS[2:4]]
        fds += [posix.open(each, posix.O_RDONLY | posix.O_CLOEXEC) for each in FDS[4:]]
        rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 2, *fds))
        sent = sock.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)], _socket.MSG_NOSIGNAL)
        if sent < len(request):
            sock.sendall(request[sent:], _socket.MSG_NOSIGNAL)
        return _read(sock, REPLY_HEAD)[:1] == BEGUN
    except OSError:
        return _began_meanwhile(sock)
    finally:
        for fd in fds:
            posix.close(fd)


def _began_meanwhile(sock: _socket.socket) -> bool:
    """After a failure, or no answer in time: whether the plugin begins all the same.

    Once we do not receive any more, the kernel refuses the service its BEGUN (EPIPE), without which no plugin begins. What it
    had sent before can still be read.
    """
    try:
        sock.shutdown(_socket.SHUT_RD)
        sock.settimeout(0)
        return _read(sock, REPLY_HEAD)[:1] == BEGUN
    except OSError:
        return False


def _trusted(sock: _socket.socket) -> bool:
    """Whether the service belongs to our own user. Any other could run what it likes in the descriptors that we send."""
    credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, SO_PEERCRED_BYTES)
    return int.from_bytes(credentials[4:8], sys.byteorder) == posix.geteuid()


def _read(sock: _socket.socket, size: int) -> bytes:
    """That many bytes; fewer when the connection ends before. OSError."""
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            break
        data += part
    return data


def _follow(sock: _socket.socket) -> int:
    """Write what the plugin answers to stdout, until it has ended. The exit status."""
    status = -1
    try:
        sock.settimeout(None)
        while len(head := _read(sock, REPLY_HEAD)) == REPLY_HEAD:
            if head[:1] == ENDED:
                return head[1]
            size = int.from_bytes(head[2:], sys.byteorder)
            answer = _read(sock, size)
            if len(answer) < size:
                break
            failed = _write(answer)
            status = -1 if failed else head[1]
            sock.sendall(bytes([failed]), _socket.MSG_NOSIGNAL)
    except OSError:
        pass
    if status < 0:  # it died before its answer, or that could not be written
        _write(LOST)
        return 1
    return status


def _write(text: bytes) -> int:
    """Write it to stdout. 0, or the errno."""
    try:
        while text:
            text = text[posix.write(1, text) :]
    except OSError as error:
        return error.errno or 5
    return 0


class _Waiting:
    """Pass on to the plugin that we are asked to stop. If it has not begun, we end as if we had been asked afterwards."""

    __slots__ = ("asked", "before", "begun", "sock")

    def __init__(self) -> None:
        self.asked = 0
        self.begun = False
        self.before: list[object] = []
        self.sock: _socket.socket | None = None

    def watch(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.before = [_signal.getsignal(number) for number in STOPPING]
        for number, before in zip(STOPPING, self.before, strict=True):
            if before != _signal.SIG_IGN:  # as by nohup(1)
                _signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: "FrameType | None") -> None:
        self.asked = number
        try:
            if self.sock is not None:
                self.sock.shutdown(_socket.SHUT_WR)
        except OSError:
            pass  # not connected yet, or not any more

    def end(self) -> None:
        for number, before in zip(STOPPING, self.before, strict=False):
            _signal.signal(number, before)
        if self.asked and not self.begun:
            posix.kill(posix.getpid(), self.asked)
