"""What a copy of an installed executable runs before the plugin, in its own process: makes one operation go wrong.

    CNI_TEST_FAULT=STEP:NUMBER:HOW      NUMBER counts from 1

    STEP  apply         an operation of an ADD
          undo          one of a DEL, or of the ADD's own undo
          call          a call of a C function that may change something (EFFECTS); not with "-after"
          change        the same without what only asks the kernel: how often that is asked depends on how long it takes
          child         a child process that a DEL forks, as soon as it runs, whatever the number: kill, stop or late;
                        busy: there are not enough processors for one
    HOW   fail          it is not done, and raises
          fail-after    it is done, and raises: an answer of the kernel that got lost
          kill          SIGKILL before it
          kill-after    SIGKILL after it
          count         nothing; every one is told on stderr as "STEP NUMBER: what it is"

The operations of a plugin that runs in the same process (IPAM) count with its caller's. What ships has no hook for this.
"""

import errno
import os
import signal
import sys
import time

from cni_py.attachment import engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from cni_py.attachment.context import Kernel

# No open(): a file that was only made is seen by the call before its write().
EFFECTS = {
    *("fsync", "ftruncate", "link", "mkdir", "rename", "rmdir", "setxattr", "symlink", "truncate", "unlink", "write"),
    *("send", "sendmsg", "sendto", "setns", "fork", "posix_spawn", "waitpid"),
}

NFNL_SUBSYS_NFTABLES = 10  # linux/netfilter/nfnetlink.h
NFT_MSG_GET = (1, 4, 7, 10, 13, 16)  # table, chain, rule, set, element, generation: linux/netfilter/nf_tables.h
RTM_GET = 2  # the lowest two bits of the types that ask: linux/rtnetlink.h


def sabotage(cls: "type[engine.Op]", step: str, number: int, how: str) -> None:
    """Replace the method `step` of a class of operations."""
    done: Callable[[engine.Op, Kernel], bool | None] = getattr(cls, step)

    def instead(self: engine.Op, kernel: "Kernel") -> bool | None:
        counted[step] = counted.get(step, 0) + 1
        if how == "count":
            os.write(2, f"{step} {counted[step]}: {self.describe()}\n".encode())
        is_it = counted[step] == number
        if is_it:
            strike(how, "fail", "kill")
        result = done(self, kernel)
        if is_it:
            strike(how, "fail-after", "kill-after")
        return result

    setattr(cls, step, instead)


def strike(how: str, fail: str, kill: str) -> None:
    if how == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == fail:
        raise OSError(errno.EIO, "injected by the test")


def sabotage_all() -> None:
    """Now, and as classes of operations are made: modules of them are imported when first needed."""
    fault = os.environ.get("CNI_TEST_FAULT")
    if not fault:
        return
    step, number, how = fault.split(":")
    if step == "child":
        if how == "busy":
            os.sched_getaffinity = lambda _pid: set()
        else:
            os.register_at_fork(after_in_child=CHILDREN[how])
        return
    if step in ("call", "change"):
        sys.setprofile(
            lambda frame, event, function: (
                None if step == "change" and is_read(frame) else count_call(event, function, step, int(number), how)
            )
        )
        return
    made = engine.Op.__init_subclass__.__func__  # type: ignore[attr-defined]  # a class method, which mypy takes for a function

    def make(cls: "type[engine.Op]") -> None:
        made(cls)
        if step in cls.__dict__:
            sabotage(cls, step, int(number), how)

    engine.Op.__init_subclass__ = classmethod(make)  # type: ignore[assignment]  # see above


def is_read(frame: "FrameType") -> bool:
    """Whether a function that sends one netlink message asks for something, by the type of the message."""
    kind = frame.f_locals.get("kind") if frame.f_code.co_name == "_send" else None
    if not isinstance(kind, int):
        return False
    if kind >> 8 == NFNL_SUBSYS_NFTABLES:
        return kind & 0xFF in NFT_MSG_GET
    return kind & 3 == RTM_GET


def count_call(event: str, function: object, step: str, number: int, how: str) -> None:
    """The interpreter tells of every call; only that of a C function comes with the function itself."""
    name = getattr(function, "__name__", "")
    if event != "c_call" or name not in EFFECTS:
        return
    counted[step] = counted.get(step, 0) + 1
    if how == "count" and os.getpid() == BEGUN:  # a child has no stderr
        os.write(2, f"{step} {counted[step]}: {name}\n".encode())
    if counted[step] == number:
        strike(how, "fail", "kill")


def stop() -> None:
    os.write(2, f"{os.getpid()}\n".encode())
    os.kill(os.getpid(), signal.SIGSTOP)


LATE_S = 0.3
CHILDREN: "dict[str, Callable[[], object]]" = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": stop,
    "late": lambda: time.sleep(LATE_S),
}
BEGUN = os.getpid()
os.sched_getaffinity = lambda _pid: set(range(1000))  # so many processors are never busy
counted: "dict[str, int]" = {}
sabotage_all()
