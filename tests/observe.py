"""What a copy of an installed executable runs before the plugin, in its own process: counts what the call costs.

At the end of the process a line is appended to $CNI_TEST_REPORT: a Python dict with

    modules   what was imported, beyond what the interpreter starts with
    sent      netlink messages sent; what is asked again and again while the kernel is waited for counts once
    started   programs started, and forks
    filters   sockets of NETLINK_NETFILTER: each may wait when it is closed

It imports nothing that is not there anyway. What ships has no hook for this.
"""

import builtins
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

BEFORE = {name for name in sys.modules if not name.startswith("cni_py")} | {"builtins", "posix", "sys"}
STARTS = ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen")
BEGUN = posix.getpid()
NETLINK_NETFILTER = 12
sent = filters = 0
started: "list[str]" = []
real_import = builtins.__import__
real_exit = posix._exit


def watch_netlink(*arguments: "object", **named: "object") -> object:
    """An import; when it has brought the module of netlink sockets, they count from then on."""
    module = real_import(*arguments, **named)  # type: ignore[arg-type]  # handed on as they come
    socket = getattr(sys.modules.get("cni_py.kernel.netlink"), "Socket", None)
    if socket is not None and builtins.__import__ is watch_netlink:
        builtins.__import__ = real_import
        real_send, real_batch, real_child = socket._send, socket.batch, socket.send_by_child

        def send(self: object, *message: object) -> None:
            count(1)
            real_send(self, *message)

        def batch(self: object, messages: "list[object]", *rest: object) -> object:
            count(len(messages) + 2)  # and those that begin and end it
            return real_batch(self, messages, *rest)

        def send_by_child(self: object, *message: object) -> object:
            count(1)
            return real_child(self, *message)

        real_init = socket.__init__

        def init(self: object, protocol: int) -> None:
            global filters  # noqa: PLW0603  the other one
            filters += protocol == NETLINK_NETFILTER
            real_init(self, protocol)

        socket.__init__ = init
        socket._send, socket.batch, socket.send_by_child = send, batch, send_by_child
    return module


def count(messages: int) -> None:
    global sent  # noqa: PLW0603  a number of this process
    if not is_repeated():
        sent += messages


def is_repeated() -> bool:
    """Whether rtnl.wait() asks once more: how often it does depends on how busy the machine is."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "wait" and frame.f_locals.get("attempt"):
            return True
        frame = frame.f_back
    return False


def watch_starts(event: str, _arguments: "tuple[object, ...]") -> None:
    if event in STARTS:
        started.append(event)


def report(status: int) -> None:
    if posix.getpid() != BEGUN:
        real_exit(status)
    found = {"modules": sorted(set(sys.modules) - BEFORE), "sent": sent, "started": started, "filters": filters}
    path = posix.environ[b"CNI_TEST_REPORT"]
    fd = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND)
    posix.write(fd, f"{found}\n".encode())
    real_exit(status)


posix.sched_getaffinity = lambda _pid: set(range(1000))  # so many processors are never busy
builtins.__import__ = watch_netlink  # type: ignore[assignment]  # takes what comes
posix._exit = report  # type: ignore[assignment]  # run.main() ends with it
sys.addaudithook(watch_starts)
