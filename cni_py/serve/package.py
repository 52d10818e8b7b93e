"""The installed package: every module of it that a call may load, and whether it has changed since they were loaded."""

import os
import struct
from collections.abc import Iterator

import cni_py

HOME = os.path.dirname(os.path.dirname(os.path.abspath(cni_py.__file__)))
NOT_FOR_CALLS = ("__pycache__", "commands", "conf", "dhcp", "doctor", "explain", "host", "restore", "serve", "show")
# What functions import of the standard library when they are called, which most calls do not do
LAZY = ("_ctypes", "ctypes", "fcntl", "importlib.util", "json", "traceback")
TOP = f"{HOME}/cni_py"
FOLDERS = (TOP, *(entry.path for entry in os.scandir(TOP) if entry.is_dir() and entry.name != "__pycache__"))

# MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF; linux/inotify.h
CHANGES = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
EVENTS_MAX = 1 << 16  # bytes


def load() -> None:
    """Import all that a call may need: it may run where there is neither this package nor a standard library."""
    for name in (*LAZY, *modules(TOP, "cni_py.")):
        try:
            __import__(name)
        except ImportError:
            if not name.startswith("_"):  # _ctypes and the like are the interpreter's own business
                raise


def modules(folder: str, prefix: str) -> Iterator[str]:
    """The names of the modules in a package's folder, and below."""
    for name in sorted(os.listdir(folder)):
        if name in NOT_FOR_CALLS:
            continue
        if os.path.isdir(f"{folder}/{name}"):
            yield from modules(f"{folder}/{name}", f"{prefix}{name}.")
        elif name.endswith(".py") and not name.startswith("__"):
            yield prefix + name[:-3]


class Watch:
    """Tells when a file of the package is written, replaced, added or removed, with inotify(7). OSError.

    `fd` can be read then. What the interpreter adds itself, compiled modules, does not count.
    """

    def __init__(self) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for folder in FOLDERS:
            if self.fd < 0 or libc.inotify_add_watch(self.fd, os.fsencode(folder), CHANGES) < 0:
                raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())}: cannot watch {folder}")

    def has_changed(self) -> bool:
        """Whether something has changed since this was asked."""
        try:
            text = os.read(self.fd, EVENTS_MAX)
        except BlockingIOError:
            return False
        while len(text) >= EVENT.size:
            *_, size = EVENT.unpack_from(text)
            if text[EVENT.size : EVENT.size + size].rstrip(b"\0") != b"__pycache__":
                return True
            text = text[EVENT.size + size :]
        return False
