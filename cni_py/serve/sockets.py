"""The service's socket, made here or passed by systemd (sd_listen_fds(3))."""

import _socket
import errno
import fcntl
import os
import stat

from cni_py import files

FIRST_FD = 3  # SD_LISTEN_FDS_START, systemd/sd-daemon.h
BACKLOG = 1024  # calls that wait; with more, connect(2) fails and the launcher goes direct
# Of accept(2): errors that pass, or of a connection that has ended already
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED, errno.EAGAIN, errno.EINTR)


class Listener:
    """A listening socket. With a `lock` it is ours: its file is removed in the end. Without, it is systemd's."""

    __slots__ = ("lock", "path", "sock")

    def __init__(self, sock: _socket.socket, path: str, lock: int) -> None:
        self.sock = sock
        self.path = path
        self.lock = lock

    def close(self) -> None:
        """End listening."""
        if self.lock >= 0:
            files.remove_file(self.path)
        self.sock.close()

    def pass_on(self) -> dict[str, str]:
        """Let it survive execve(2). Environment with which listener() of the new program takes it.

        Our own descriptors may be lost by this.
        """
        fds = [os.dup(fd) for fd in (self.sock.fileno(), self.lock) if fd >= 0]
        for number, fd in enumerate(fds, FIRST_FD):
            os.dup2(fd, number)
        return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds))}


def listener(path: str) -> Listener:
    """The socket that we were passed, or a new one at `path`. OSError; EADDRINUSE when another service has it, EEXIST when a file
    is there that is no socket, EINVAL when what we were passed is none that listens.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    if pid == str(os.getpid()) and count in ("1", "2"):
        lock = FIRST_FD + 1 if count == "2" else -1
        if lock >= 0:
            os.set_inheritable(lock, False)
        return Listener(_passed(FIRST_FD), path, lock)
    files.make_folders(os.path.dirname(path), 0o700)
    new = f"{path}.new"
    for place in (path, new):
        if os.path.lexists(place) and not stat.S_ISSOCK(os.lstat(place).st_mode):
            raise OSError(errno.EEXIST, f"{place} is there, and no socket")
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EADDRINUSE, "another service listens there") from None
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    files.remove_file(new)
    umask = os.umask(0o177)
    sock.bind(new)
    os.umask(umask)
    sock.listen(BACKLOG)
    os.rename(new, path)  # in place of one that a killed service has left
    return Listener(sock, path, lock)


def _passed(fd: int) -> _socket.socket:
    try:
        os.set_inheritable(fd, False)
        sock = _socket.socket(fileno=fd)
        if sock.family == _socket.AF_UNIX and sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
            return sock
    except OSError:  # a file, or closed
        pass
    raise OSError(errno.EINVAL, f"descriptor {fd}, which LISTEN_FDS announces, is no Unix socket that listens")
