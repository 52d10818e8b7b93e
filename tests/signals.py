"""The signals that whoever started this run ignores (nohup, a shell's `&`), kept from the programs that the tests start.

An ignored signal stays ignored across execve(2), and a program that is to be interrupted then is not. A handler does not: the
program starts with the default. So what is ignored here gets a handler that does nothing, and this process goes on as before.
"""

from __future__ import annotations

import os
import signal

VARIABLE = (
    "CNI_PY_IGNORED_SIGNALS"  # for the workers of pytest-xdist, which are such programs, but must survive as we do
)
RESTORED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)


def restore() -> None:
    """Once, at the start of each process of pytest."""
    ignored = {number for number in RESTORED if signal.getsignal(number) is signal.SIG_IGN}
    ignored |= {signal.Signals(int(word)) for word in os.environ.get(VARIABLE, "").split()}
    for number in ignored - {signal.SIGCHLD}:
        signal.signal(number, do_nothing)
    if signal.SIGCHLD in ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it takes every child's exit status from us
    os.environ[VARIABLE] = " ".join(str(int(number)) for number in sorted(ignored - {signal.SIGCHLD}))


def do_nothing(*_: object) -> None:
    """Not SIG_IGN, which children would inherit."""
