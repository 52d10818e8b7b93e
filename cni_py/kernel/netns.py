"""Network namespaces: open, verify, enter, tell apart (namespaces(7), ioctl_ns(2)).

A namespace has three names, and each may lie. A path of /run/netns is a bind mount that anybody may replace; where the mount is
gone, or was made in another mount namespace, the path is an ordinary empty file. /proc/PID/ns/net is ENOENT as soon as the
process has ended, a zombie too (proc_ns_get_link()), and another namespace when the pid is used again. Device and inode are
used again as well, when the namespace is gone. Only the cookie is never used twice.
"""

import _socket
import errno
import fcntl
import posix

from cni_py.errors import InvalidNetns
from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

CLONE_NEWNS = 0x00020000  # include/uapi/linux/sched.h
CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h

_KINDS = {  # by CLONE_NEW*
    0x00000080: "time",
    CLONE_NEWNS: "mount",
    0x02000000: "cgroup",
    0x04000000: "UTS",
    0x08000000: "IPC",
    0x10000000: "user",
    0x20000000: "PID",
}
_FILES = {  # by the S_IFMT bits of st_mode, inode(7)
    0o010000: "a FIFO",
    0o020000: "a character device",
    0o040000: "a directory",
    0o060000: "a block device",
    0o100000: "an ordinary file",
    0o140000: "a socket",
}
_S_IFMT = 0o170000
_S_IFREG = 0o100000


def open_netns(path: str) -> int:
    """A descriptor of the network namespace at `path`, which keeps the namespace from ending.

    FileNotFoundError when there is nothing (the caller knows whether that is wrong); InvalidNetns, saying what is there
    instead, when it is no network namespace.
    """
    # What was opened is verified, not the path: between stat() and open() it may lead elsewhere.
    try:
        kind = os.stat(path).st_mode & _S_IFMT
        if kind != _S_IFREG:  # opening a FIFO or a device may block or act
            raise _invalid(path, f"it is {_FILES.get(kind, 'a special file')}")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # NONBLOCK: it may have become a FIFO since
    except (FileNotFoundError, ProcessLookupError) as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    except OSError as error:
        raise _invalid(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise _invalid(path, "there is a null byte in it") from error
    try:
        _verify(path, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _verify(path: str, fd: int) -> None:
    # NS_GET_NSTYPE is nsfs's own: any other file has no such ioctl (ENOTTY). setns() is not asked, since it would enter.
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError as error:
        raise _invalid(path, f"it is {_FILES[_S_IFREG]}") from error
    if kind != CLONE_NEWNET:
        raise _invalid(path, f"it is a {_KINDS.get(kind, 'different')} namespace")


def _invalid(path: str, why: str) -> InvalidNetns:
    return InvalidNetns(f'"{path}" is not a network namespace', why)


def same_namespace(one: int, other: int) -> bool:
    """Whether two descriptors are of one namespace."""
    return os.path.samestat(os.fstat(one), os.fstat(other))


def file_of(fd: int) -> str:
    """Device and inode, "4:4026532281". They tell apart namespaces that exist at the same time, no others."""
    status = os.fstat(fd)
    return f"{status.st_dev}:{status.st_ino}"


def cookie(fd: int) -> int:
    """The kernel's number of the namespace, never used twice in one boot; 0 before Linux 5.14.

    Only a socket tells it (SO_NETNS_COOKIE), so one is made there.
    """
    from cni_py.kernel.netlink import netns_cookie

    with Enter(fd):
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        return netns_cookie(socket)
    finally:
        socket.close()


class Enter:
    """`with Enter(fd):` runs in the network namespace of `fd` and comes back.

    setns() moves the calling thread alone, so other threads stay, and threads started inside stay there. For a process with
    one thread.
    """

    __slots__ = ("_back", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._back = -1

    def __enter__(self) -> None:
        # Not /proc/self, which is the first thread's.
        self._back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(self._fd)
        except BaseException:  # also a signal's, after the move
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        try:
            setns(self._back)
        except OSError:
            setns(self._back)  # once more: what is undone of the host from here would be undone in the container
        finally:
            os.close(self._back)


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    """Move this thread into the namespace of `fd`, which must be of that kind. OSError."""
    native: Callable[[int, int], None] | None = getattr(posix, "setns", None)  # Python 3.12
    if native is not None:
        native(fd, kind)
        return
    import _ctypes  # the package ctypes would cost 5 ms

    program = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # None is dlopen(3)'s NULL: what is loaded
    function = _ctypes.dlsym(program, "setns")
    if _ctypes.call_function(function, (fd, kind)) != 0:
        raise _setns_error(fd, kind)


def _setns_error(fd: int, kind: int) -> OSError:
    """The error of setns(): called again through the package ctypes, since a bare call does not keep errno."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.get_errno() if libc.setns(fd, kind) != 0 else errno.EAGAIN
    return OSError(number, f"{os.strerror(number)}: cannot enter the {_KINDS.get(kind, 'network')} namespace")
