"""flock(2) on files of ours, with a limit.

A lock file that is not there and cannot be made (a full or read-only file system) stops an ADD, and nobody else: a DEL or GC
goes on without. Whoever it would keep out cannot make the file either, so no ADD is under way, and two DELs of one
attachment do no harm to each other: what one has undone already is success for the other.

Order, when more than one is held: attachment, network, IPAM, nftables. A wait that reaches its limit ends in code 11
("try again later"), so that a runtime retries instead of hanging.
"""

import _signal
import errno
import fcntl
import os

from cni_py import files
from cni_py.attachment import naming
from cni_py.errors import TryAgainLater, os_error, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType

SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # whatever is at the path
WAIT_S = 30.0  # libcni's callers give a call minutes; a healthy holder needs milliseconds


class Lock:
    """`with Lock(path):` holds an exclusive flock on `path`, which is made when missing (0600), as is its folder (0700).

    With `remove` the file is deleted on release: for locks whose subject comes and goes. One that is not `needed` is gone
    without when there can be none. `wait_s` 0 does not wait.
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
            os.close(self.fd)  # deleted by the one we waited for: lock the file that is there now

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
        """A descriptor of the lock file; -1 when there can be none, and it is not needed."""
        try:
            return self._open()
        except OSError as error:
            try:  # flock(2) asks for no right to write: a file of before the file system became read-only serves
                return os.open(self.path, os.O_RDONLY | SAFELY)
            except OSError:
                pass
            if not self.needed:
                warn(f"going on without the lock {self.path}: {error.strerror}")
                return -1
            raise os_error(f"cannot open the lock file {self.path}", error) from error

    def _open(self) -> int:
        """The file, made when missing. OSError."""
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
        """Block in flock, fair among waiters, until the interval timer raises."""
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


def attachment_lock(key: "naming.Attachment", plugin: str, *, needed: bool = False) -> Lock:
    """Held for a whole call: a DEL may arrive while an ADD of the same attachment is still in flight.

    One for each plugin of the chain, since one plugin may run another (IPAM) for the same attachment.
    """
    path = files.lock_path(f"attachment-{key.hex}-{plugin}")
    return Lock(path, f"attachment {key.label}", remove=True, needed=needed)


def nftables_lock() -> Lock:
    """Held over a read of our tables and the transaction that rests on it.

    An ADD gets here after it has made its attachment's lock in the same folder.
    """
    return Lock(files.lock_path("nftables"), "the nftables table cni_py", needed=False)
