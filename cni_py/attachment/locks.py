"""flock(2) on files of ours, with a limit.

When a lock file is missing and cannot be made (a full or read-only file system), an ADD fails, and a DEL or GC goes on
without the lock. That is safe: no ADD can be under way, since it could not make the file either, and two DELs of one
attachment do not disturb each other, since for each it is success when the other has undone something already.

A call that holds several locks takes them in the order attachment, network, IPAM, nftables; that of a container's routing
tables comes last. A wait ends at its limit with code 11 ("try again later"), so that a runtime retries instead of hanging.
"""

import _signal
import errno
import fcntl

from cni_py import files
from cni_py.attachment import naming
from cni_py.errors import TryAgainLater, os_error, warn
from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType

SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # the path may be a link, or a FIFO, whose opening would wait
_held: "set[str]" = set()  # paths of locks that this process has: see Holding
# An ADD's first file: here the root of a user namespace is told that the machine's folders are not its own.
UNMAPPED = "; whoever is not root of the machine mounts a file system of its own on /run and on /var/lib first"
WAIT_S = 30.0  # the callers of libcni give a call minutes; a holder needs milliseconds


class Lock:
    """`with Lock(path):` holds an exclusive flock on `path`, which is made when missing (0600), as is its folder (0700).

    `remove`: delete the file on release, for locks of attachments, which come and go. `needed` False: go on without the lock
    when the file cannot be made. `wait_s` 0: do not wait. TryAgainLater when another call holds the lock for too long.
    """

    __slots__ = ("fd", "needed", "path", "remove", "wait_s", "what")

    def __init__(
        self, path: str, what: str, wait_s: float = WAIT_S, *, remove: bool = False, needed: bool = True
    ) -> None:
        self.path = path
        self.what = what
        self.wait_s = wait_s
        self.remove = remove
        self.needed = needed
        self.fd = -1

    def __enter__(self) -> "Lock":
        while self.path not in _held:
            self.fd = self._find()
            if self.fd < 0:
                return self
            self._flock()
            if self._is_current():
                return self
            # The call we waited for has deleted the file. A later call makes and locks a new one, so ours protects nothing.
            os.close(self.fd)
        return self

    def __exit__(
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        if self.fd < 0:
            return
        if self.remove:
            try:
                os.unlink(self.path)
            except OSError:
                pass
        os.close(self.fd)
        self.fd = -1

    def _find(self) -> int:
        """A descriptor of the lock file; -1 when it cannot be made and is not needed."""
        try:
            return self._open()
        except OSError as error:
            # flock(2) needs no write access: a file from before the file system became read-only can be locked
            try:
                return os.open(self.path, os.O_RDONLY | SAFELY)
            except OSError:
                pass
            if not self.needed:
                warn(f"going on without the lock {self.path}: {error.strerror}")
                return -1
            why = UNMAPPED if error.errno == errno.EACCES else ""
            raise os_error(f"cannot open the lock file {self.path}{why}", error) from error

    def _open(self) -> int:
        """The lock file, made with its folder when missing. OSError."""
        flags = os.O_RDWR | os.O_CREAT | SAFELY
        try:
            return os.open(self.path, flags, 0o600)
        except FileNotFoundError:
            files.make_folders(os.path.dirname(self.path), 0o700)
            return os.open(self.path, flags, 0o600)

    def _flock(self) -> None:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise
            if not self.wait_s:
                os.close(self.fd)
                self.fd = -1
                raise TryAgainLater(f"{self.what} is locked by another call") from None
            self._wait()

    def _wait(self) -> None:
        """Block in flock(2) until the interval timer raises. The kernel serves waiters in order, which polling would not."""
        before = _signal.signal(_signal.SIGALRM, self._expired)
        _signal.setitimer(_signal.ITIMER_REAL, self.wait_s)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX)
        except BaseException:
            os.close(self.fd)
            self.fd = -1
            raise
        finally:
            _signal.setitimer(_signal.ITIMER_REAL, 0)
            _signal.signal(_signal.SIGALRM, before)

    def _expired(self, _number: int, _frame: "FrameType | None") -> None:
        raise TryAgainLater(f"{self.what} is locked by another call", f"waited {self.wait_s:g} s for {self.path}")

    def _is_current(self) -> bool:
        """Whether the locked file is still the one at `path`."""
        try:
            now = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        held = os.fstat(self.fd)
        return (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino)


class Holding:
    """`with Holding(lock):` holds a lock over many operations that take it themselves: what they ask for they have already."""

    __slots__ = ("_lock",)

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def __enter__(self) -> Lock:
        self._lock.__enter__()
        _held.add(self._lock.path)
        return self._lock

    def __exit__(
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        _held.discard(self._lock.path)
        self._lock.__exit__(kind, error, trace)


def is_held(name: str) -> bool:
    """Whether somebody holds the lock of that name now. Asked of one whose file is there only while it is held, a system call."""
    path = files.lock_path(name)
    if not os.path.lexists(path):
        return False
    try:
        with Lock(path, "", 0, needed=False):
            return False  # left by a process that was killed
    except TryAgainLater:
        return True


def is_at_work(key: "naming.Attachment", plugin: str) -> bool:
    """Whether a call holds the attachment's lock now."""
    return is_held(f"attachment-{key.hex}-{plugin}")


def attachment_lock(key: "naming.Attachment", plugin: str, *, needed: bool = False, wait_s: float = WAIT_S) -> Lock:
    """The lock that a call holds from start to end: a DEL may come while an ADD of its attachment is under way.

    Each plugin of the chain has its own, since one plugin runs another (IPAM) for the same attachment.
    """
    path = files.lock_path(f"attachment-{key.hex}-{plugin}")
    return Lock(path, f"attachment {key.label}", wait_s, remove=True, needed=needed)


def nftables_lock() -> Lock:
    """The lock that a call holds from reading our tables until the transaction that depends on it.

    Not `needed`, also for an ADD, which has made its attachment's lock in the same folder before.
    """
    return Lock(files.lock_path("nftables"), "the nftables table cni_py", needed=False)
