"""The installed package: every module of it that a call may load, and whether it has changed since they were loaded."""

import os
from collections.abc import Iterator

import cni_py

HOME = os.path.dirname(os.path.dirname(os.path.abspath(cni_py.__file__)))
NOT_FOR_CALLS = ("__pycache__", "commands", "conf", "serve")
# What functions import of the standard library when they are called, which most calls do not do
LAZY = ("_ctypes", "ctypes", "fcntl", "importlib.util", "json", "traceback")
TOP = f"{HOME}/cni_py"
FOLDERS = (TOP, *(entry.path for entry in os.scandir(TOP) if entry.is_dir() and entry.name != "__pycache__"))

Stamps = tuple[tuple[int, int], ...]  # inode and time of the last change (ns) of each folder


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


def stamps() -> Stamps:
    """When an entry of each of the package's folders was last added, removed or replaced, as installers do it.

    A file that is edited in place is not seen. A missing folder counts as changed.
    """
    found = []
    for folder in FOLDERS:
        try:
            state = os.stat(folder)
            found.append((state.st_ino, state.st_mtime_ns))
        except OSError:
            found.append((0, 0))
    return tuple(found)
