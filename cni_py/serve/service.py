"""The service's parent process: accepts connections, forks a child for each, and opens nothing that belongs to a namespace.

SIGTERM, SIGINT    calls that run get DRAIN_S to end; new ones are sent on their way to go direct
SIGHUP             the same process begins anew with the package as it is then installed; calls that run go on

When the package has changed (an upgrade), calls go direct until nothing has changed for a moment and the new one can be loaded;
then it begins anew by itself. The socket stays open all the while.
"""

import _signal
import _socket
import gc
import os
import select
import sys
import time

from cni_py import warm
from cni_py.kernel import sd_notify
from cni_py.serve import call, package, sockets
from cni_py.serve.statistics import Report, Statistics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

AT_ONCE = 128  # children; the next calls go direct
DRAIN_S = 10.0
READ_MAX = 4096
CHANGED_MS = 500  # how often the package is looked at while it changes
AGAIN_S = 8.0
QUIET_S = 2.0  # an upgrade is over when nothing has changed for so long
TOLD = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)
BLOCKED = (*TOLD, _signal.SIGCHLD)
# A process of its own says whether the new package can be loaded.
TRY = "import sys; sys.path.append({home!r}); from cni_py.serve import package, service; package.load()"


def main(path: str) -> int:
    """Serve at the socket `path`, or at the one that systemd passes, until a signal. The exit status."""
    try:
        listener = sockets.listener(path)
    except OSError as error:
        say(f"cannot listen at {path}: {error.strerror or error}")
        return 1
    package.load()
    return Service(listener, package.Watch()).run()


def say(text: str) -> None:
    """A line for the log."""
    try:
        os.write(2, f"cni-py serve: {text}\n".encode("utf-8", "replace"))
    except OSError:
        pass


class Service:
    """The parent."""

    def __init__(self, listener: sockets.Listener, watch: package.Watch) -> None:
        self.listener = listener
        self.watch = watch
        self.environment = dict(os.environ)
        os.environ.clear()  # a child gets its launcher's
        self.statistics = Statistics()
        self.children: set[int] = set()
        self.has_children = True  # some may be left of the time before the process began anew
        self.stopping = self.renewing = self.changed = False
        self.quiet = 0.0  # when the package counts as whole again
        self.wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Serve until a signal; returns the exit status."""
        for number in BLOCKED:
            _signal.signal(number, self._signalled)
        _signal.set_wakeup_fd(self.wakeup[1], warn_on_full_buffer=False)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, TOLD)  # see _begin_anew()
        # The collector would look at all that is loaded, and a child would copy each page of it. A child needs no collector.
        gc.collect()
        gc.freeze()
        gc.disable()
        poll = select.poll()
        poll.register(self.listener.sock.fileno(), select.POLLIN)
        poll.register(self.wakeup[0], select.POLLIN)
        poll.register(self.watch.fd, select.POLLIN)
        self._notify("READY=1")
        while not self.stopping:
            self._step(poll.poll(CHANGED_MS if self.changed else None))
            if self.renewing or (self.changed and time.monotonic() > self.quiet):
                self._begin_anew()
        self._drain(poll)
        self.listener.close()
        return 0

    def _signalled(self, number: int, _frame: "FrameType | None") -> None:
        self.stopping = self.stopping or number in (_signal.SIGTERM, _signal.SIGINT)
        self.renewing = self.renewing or number == _signal.SIGHUP

    def _step(self, ready: "list[tuple[int, int]]") -> None:
        fds = [fd for fd, _ in ready]
        if self.wakeup[0] in fds:
            os.read(self.wakeup[0], READ_MAX)
            self._reap()
        if self.watch.fd in fds and self.watch.has_changed():
            self.changed = True
            self.quiet = time.monotonic() + QUIET_S
        if self.listener.sock.fileno() in fds:
            self._accept()

    def _drain(self, poll: "select.poll") -> None:
        self._notify("STOPPING=1")
        deadline = time.monotonic() + DRAIN_S
        self._reap()
        while self.has_children and (left := deadline - time.monotonic()) > 0:
            self._step(poll.poll(1000 * left))
        if self.has_children:
            say("calls still run; they go on without the service")

    def _notify(self, word: str) -> None:
        sd_notify.notify(self.environment.get("NOTIFY_SOCKET", ""), word)

    # Calls

    def _accept(self) -> None:
        try:
            fd, _ = self.listener.sock._accept()  # type: ignore[attr-defined]  # of _socket: a descriptor and an address
        except OSError as error:
            if error.errno not in sockets.PASSING:
                raise
            time.sleep(0.01)  # no descriptor, or no memory: when a child has ended, there is one
            return
        sock = _socket.socket(fileno=fd)
        pid, uid = call.credentials(sock)
        why = self._no_room(uid) or self._greet(sock)
        if why:
            self.statistics.refuse(why)
        else:
            self.statistics.collect()
            self._fork(sock, pid)
        sock.close()

    def _no_room(self, uid: int) -> str:
        """Why no child is forked; "" if one is."""
        if uid != os.geteuid():
            return f"a caller of another user, {uid}"
        return "" if len(self.children) < AT_ONCE else f"{AT_ONCE} calls at once"

    def _greet(self, sock: _socket.socket) -> str:
        """Ask for the request, which comes while the child is forked. What is wrong, or ""."""
        try:
            sock.send(warm.MAGIC, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except OSError:
            return "a caller that did not wait so long"
        return ""

    def _fork(self, sock: _socket.socket, caller: int) -> None:
        report = Report(self.statistics)
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, BLOCKED)  # until the child has handlers of its own
        try:
            pid = os.fork()
        except OSError as error:
            pid = -1
            self.statistics.refuse(f"no process can be forked: {error.strerror}")
        if pid == 0:
            _signal.set_wakeup_fd(-1)
            self.listener.sock.close()
            closed = "the service ends" if self.stopping else "the package has changed" if self.changed else ""
            call.serve(sock, caller, report, closed)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        if pid > 0:
            self.children.add(pid)
            self.has_children = True

    def _reap(self) -> None:
        try:
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                self._ended(*ended)
        except ChildProcessError:
            self.has_children = False

    def _ended(self, pid: int, status: int) -> None:
        self.children.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        lost = self.statistics.lost(pid)
        if lost:
            say(f"{' '.join(lost)}: process {pid} ended {f'by signal {-code}' if code < 0 else 'too early'}")

    # An upgrade

    def _begin_anew(self) -> None:
        self.renewing = False
        if not self._can_be_loaded():
            say(f"the package in {package.HOME} cannot be loaded: calls go direct")
            self.changed = True
            self.quiet = time.monotonic() + AGAIN_S
            return
        # Another SIGHUP would end the process until it has handlers again. A mask is kept by execve(2), as is what waits. What
        # came before has been noted by now: execve(2) would forget that we were told to end.
        _signal.pthread_sigmask(_signal.SIG_BLOCK, TOLD)
        if self.stopping:
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, TOLD)
            return
        say("beginning anew with the installed package")
        _signal.set_wakeup_fd(-1)
        environment = {**self.environment, **self.listener.pass_on()}
        os.execve(sys.executable, sys.orig_argv, environment)  # noqa: S606  as it was started; children that run stay its children

    def _can_be_loaded(self) -> bool:
        """Whether the package, and the interpreter, can be started anew."""
        words = [sys.executable, "-IS", "-c", TRY.format(home=package.HOME)]
        try:
            return os.waitpid(os.posix_spawn(sys.executable, words, self.environment), 0)[1] == 0
        except OSError as error:  # the interpreter is gone, or there is no process to be had at the moment
            say(f"{sys.executable} cannot be started: {error.strerror}")
            return False
