"""Start a program, give it its stdin and read what it prints: iptables, or a plugin of somebody else's.

The streams are files in memory (memfd_create(2)) instead of pipes: neither side ever waits for the other to read. No module
that a call loads at its start imports this one: most calls start nothing.
"""

import _signal
import time

from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

STOP_S = 5.0  # time for a plugin that is given up to take back what it did, before it is killed
_PROBE_S = 0.01
_INTERRUPTS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGALRM)


class Process:
    """A program under way; when the object is forgotten before wait() or stop(), the program is killed."""

    __slots__ = ("_files", "pid")

    def __init__(
        self, argv: "list[str]", environ: "Mapping[str, str]", stdin: bytes, *, stderr: int = -1, kept: int = -1
    ) -> None:
        """Start `argv`, whose first word is a path. OSError when it cannot be started.

        `stderr` is a descriptor for it instead of a file in memory; `kept` one that the program has open as number 3 until
        it ends, a lock's for example.
        """
        self.pid = 0
        self._files: list[int] = []  # first: __del__ runs also after an error below
        for name in ("stdin", "stdout", "stderr")[: 3 if stderr < 0 else 2]:
            self._files.append(os.memfd_create(name))
        with open(self._files[0], "wb", closefd=False) as file:
            file.write(stdin)
        os.lseek(self._files[0], 0, os.SEEK_SET)
        streams = [*self._files, *([stderr] if stderr >= 0 else []), *([kept] if kept >= 0 else [])]
        # A descriptor that has its number already is not closed on execve() either: posix_spawn() of glibc since 2.29.
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)]
        # A handler that raises after the start, and before the pid is noted, would leave the program alone.
        unblocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, _INTERRUPTS)
        try:
            # Python ignores SIGPIPE, and what is ignored stays so over execve(): pipes of a plugin that is a script would hang.
            # SIGTERM, which a call ignores while it takes back an ADD, is meant to stay ignored: the child belongs to that.
            self.pid = os.posix_spawn(
                argv[0], argv, environ, file_actions=actions, setsigmask=unblocked, setsigdef=[_signal.SIGPIPE]
            )
        finally:
            try:
                _signal.pthread_sigmask(_signal.SIG_SETMASK, unblocked)
            except BaseException:
                self.stop()  # what came meanwhile was meant for the program, too, and the caller never gets this object
                raise

    def __del__(self) -> None:
        if self.pid:
            os.kill(self.pid, _signal.SIGKILL)
            self._reap()
        for fd in self._files:
            os.close(fd)
        self._files = []

    def wait(self) -> int:
        """Wait until it ends. Its exit status, or minus the number of the signal that ended it."""
        self._has_ended(0)
        return os.waitstatus_to_exitcode(self._reap())

    def stop(self, limit_s: float = STOP_S) -> None:
        """SIGTERM, and SIGKILL if it has not ended within the limit, or if we are interrupted meanwhile."""
        if not self.pid:
            return
        os.kill(self.pid, _signal.SIGTERM)
        deadline = time.monotonic() + limit_s
        try:
            while time.monotonic() < deadline and not self._has_ended(os.WNOHANG):
                time.sleep(_PROBE_S)
        finally:
            self.__del__()

    def _has_ended(self, flags: int) -> bool:
        # A handler may raise as soon as the kernel has answered. Until the pid is noted as gone it must not be another's.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | flags) is not None

    def _reap(self) -> int:
        pid, self.pid = self.pid, 0
        return os.waitpid(pid, 0)[1]

    @property
    def stdout(self) -> bytes:
        """What it has printed."""
        return self._content(1)

    @property
    def stderr(self) -> bytes:
        """What it has printed there; it must have its own file for it."""
        return self._content(2)

    def _content(self, number: int) -> bytes:
        # The program has the same open file, and so has moved the place where we would read on.
        os.lseek(self._files[number], 0, os.SEEK_SET)
        with open(self._files[number], "rb", closefd=False) as file:
            return file.read()
