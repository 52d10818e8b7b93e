"""`@pytest.mark.netns`: the test runs in a forked child with a network and a mount namespace of its own.

The machine's own namespace is never touched, and whatever a test makes or changes goes with its process. Such a test takes no
fixtures. A fork has all modules loaded: an interpreter of its own would take most of the time of these tests.
"""

import ctypes
import importlib.util
import io
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import BinaryIO, NoReturn

import pytest

from tests.lacking import need_root

LIMIT_S = 60
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
MS_REC, MS_PRIVATE = 0x4000, 0x40000  # linux/mount.h


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "netns: runs in a child process with namespaces of its own; needs root")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a marked test elsewhere; True says that it has been run."""
    if pyfuncitem.get_closest_marker("netns") is None:
        return None
    need_root()
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    with tempfile.TemporaryFile() as said:
        with warnings.catch_warnings():
            # fork() with other threads (pytest-xdist has one) warns, but the child needs none of their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            in_child(said, lambda: pyfuncitem.obj(**arguments))
        _, status = os.waitpid(pid, 0)
        if status != 0:
            said.seek(0)
            text = said.read().decode(errors="replace")
            pytest.fail(f"{text}\nthe child ended with {os.waitstatus_to_exitcode(status)}", pytrace=False)
    return True


def in_child(said: BinaryIO, test: Callable[[], object]) -> NoReturn:
    """Run a test in new namespaces, its output in a file; the process ends with status 0 if it passes."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT_S)
        for fd in (1, 2):
            os.dup2(said.fileno(), fd)
        sys.stdout = sys.stderr = io.TextIOWrapper(said, write_through=True)
        libc = ctypes.CDLL(None, use_errno=True)
        for failed in (
            libc.unshare(CLONE_NEWNS | CLONE_NEWNET),
            libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        ):
            if failed:
                raise OSError(ctypes.get_errno(), "no namespaces")
        spec = importlib.util.find_spec("cni_py")
        assert spec is not None
        assert spec.origin is not None
        # What it starts tests the same copy, installed or not.
        os.environ["PYTHONPATH"] = os.path.dirname(os.path.dirname(spec.origin))
        test()
        status = 0
    except BaseException:  # noqa: BLE001  whatever it is, it is printed
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
