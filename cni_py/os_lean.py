"""What plugins use of `os`, made of the built-in module `posix`, as `os` itself is.

The standard module costs 1 ms, a tenth of a call: it imports the abstract base classes of all collections to derive `environ`
from one. What is not here is taken from it.
"""

import posix
import sys
from posix import *  # noqa: F403  all of it, as `os` does
from posix import _exit  # noqa: F401  which the line above leaves out

SEEK_SET = 0


def fsencode(name: str | bytes) -> bytes:
    """The bytes of a file's name."""
    return name.encode(sys.getfilesystemencoding(), "surrogateescape") if isinstance(name, str) else name


def fsdecode(name: str | bytes) -> str:
    """A file's name of bytes; a byte that is no text becomes half of a surrogate pair."""
    return name.decode(sys.getfilesystemencoding(), "surrogateescape") if isinstance(name, bytes) else name


environ = {fsdecode(name): fsdecode(value) for name, value in posix.environ.items()}  # type: ignore[misc]  # bytes in posix


class path:  # noqa: N801  the name of the standard module
    """What plugins use of `os.path`, for paths of type str."""

    @staticmethod
    def exists(name: str | int) -> bool:
        return _mode(name) is not None

    @staticmethod
    def lexists(name: str) -> bool:
        return _mode(name, follow=False) is not None

    @staticmethod
    def isdir(name: str | int) -> bool:
        return _mode(name) == 0o040000

    @staticmethod
    def isfile(name: str | int) -> bool:
        return _mode(name) == 0o100000

    @staticmethod
    def basename(name: str) -> str:
        return name[name.rfind("/") + 1 :]

    @staticmethod
    def dirname(name: str) -> str:
        head = name[: name.rfind("/") + 1]
        return head.rstrip("/") or head

    @staticmethod
    def expanduser(name: str) -> str:
        import os

        return os.path.expanduser(name)

    @staticmethod
    def samestat(one: posix.stat_result, other: posix.stat_result) -> bool:
        return (one.st_ino, one.st_dev) == (other.st_ino, other.st_dev)


def _mode(name: str | int, *, follow: bool = True) -> int | None:
    """The type of a file, inode(7); None where there is none, or where that cannot be told."""
    try:
        return (posix.stat(name) if follow else posix.lstat(name)).st_mode & 0o170000  # type: ignore[arg-type]
    except (OSError, ValueError):
        return None


def __getattr__(name: str) -> object:
    import os

    return getattr(os, name)
