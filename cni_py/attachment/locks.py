"""flock(2) on files of ours, with a limit.

When a lock file is missing and cannot be made (a full or read-only file system), an ADD fails, and a DEL or GC goes on
without the lock. That is safe: no ADD can be under way, since it could not make the file either, and two DELs of one
attachment do not disturb each other, since for each it is success when the other has undone something already.

A call that holds several locks takes them in the order attachment, network, IPAM, nftables. A wait ends at its limit with
code 11 ("try again later"), so that a runtime retries instead of hanging.
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
        while True:
            self.fd = self._find()
            if self.fd < 0:
                return self
            self._flock()
            if self._is_current():
                return self
            # The call we waited for has deleted the file. A later call makes and locks a new one, so ours protects nothing.
            os.close(self.fd)

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
            raise os_error(f"cannot open the lock file {self.path}", error) from error

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
