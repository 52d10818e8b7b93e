"""flock(2) on files of ours, with a limit.

Order, when more than one is held: attachment, network, IPAM, nftables. A wait that reaches its limit ends in code 11
("try again later"), so that a runtime retries instead of hanging.
"""

import _signal
import errno
import fcntl
import os

from cni_py import records
from cni_py.errors import TryAgainLater, os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType

WAIT_S = 30.0  # libcni's callers give a call minutes; a healthy holder needs milliseconds


class Lock:
    """`with Lock(path):` holds an exclusive flock on `path`, which is made when missing (0600, its folder must exist).

    With `remove` the file is deleted on release: for locks whose subject comes and goes.
    """

    __slots__ = ("fd", "path", "remove", "wait_s", "what")

    def __init__(self, path: str, what: str, wait_s: float = WAIT_S, *, remove: bool = False) -> None:
        self.path = path
        self.what = what
        self.wait_s = wait_s
        self.remove = remove
        self.fd = -1

    def __enter__(self) -> "Lock":
        while True:
            self.fd = self._open()
            self._flock()
            if self._is_current():
                return self
            os.close(self.fd)  # deleted by the one we waited for: lock the file that is there now

    def __exit__(
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        if self.remove:
            try:
                os.unlink(self.path)
            except OSError:
                pass
        os.close(self.fd)
        self.fd = -1

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise os_error(f"cannot open the lock file {self.path}", error) from error

    def _flock(self) -> None:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise
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
            now = os.stat(self.path)
        except FileNotFoundError:
            return False
        held = os.fstat(self.fd)
        return (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino)


def attachment_lock(key: "records.Attachment", plugin: str) -> Lock:
    """Held for a whole call: a DEL may arrive while an ADD of the same attachment is still in flight.

    One for each plugin of the chain, since one plugin may run another (IPAM) for the same attachment.
    """
    return Lock(records.lock_path(f"attachment-{key.hex}-{plugin}"), f"attachment {key.label}", remove=True)


def nftables_lock() -> Lock:
    """Held over a read of our tables and the transaction that rests on it."""
    return Lock(records.lock_path("nftables"), "the nftables table cni_py")
