"""The file with the ports that were chosen (--port-file): a line for each mapping, in the order in which they are printed.

    40123           or 8000-8010 for a range

The command that publishes writes it, with the rights and the mounts of its user, and `portfwd rm` removes it with the last of its
mappings. The service only changes a line, when a sticky port has to move.

It is written beside the path and renamed: a reader finds all of it or nothing, and a symbolic link at the path is replaced, never
followed. A file with any other content is refused and stays.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress

from portfwd.errors import PortfwdError
from portfwd.mapping import Mapping, span

CONTENT = re.compile(rb"([0-9]{1,5}(-[0-9]{1,5})?\n)*")
SIZE_MAX = 1 << 20  # bytes


class PortFile:
    """A port file in the making: it is checked for writing before a port is published. Without a path it does nothing."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._temporary = ""
        if path:
            _lines(path)
            self._temporary, fd = _beside(path)
            os.close(fd)

    def __enter__(self) -> PortFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary:
            with suppress(OSError):
                os.unlink(self._temporary)

    def write(self, mappings: Sequence[Mapping]) -> None:
        """Write the ports of all mappings. PortfwdError."""
        if self.path:
            _write(self.path, [span(one.first, one.last) for one in mappings])


def change(mapping: Mapping) -> None:
    """Change the mapping's line of an existing port file. PortfwdError."""
    lines = _lines(mapping.port_file)
    if lines is None or mapping.port_line >= len(lines):
        raise PortfwdError(f"{mapping.port_file} has no line for port {mapping.first}", "publish it again to write one")
    lines[mapping.port_line] = span(mapping.first, mapping.last)
    _write(mapping.port_file, lines)


def remove(path: str) -> None:
    """Remove a port file; a missing one is no error. PortfwdError."""
    if os.path.islink(path) or _lines(path) is None:
        return
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise PortfwdError(f"cannot remove the port file {path}", error.strerror or str(error)) from error


def _lines(path: str) -> list[str] | None:
    """The lines of a port file; none for a symbolic link, which is replaced; None where no file is. PortfwdError."""
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            return []
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # nor wait for a FIFO
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise PortfwdError(f"{path} is not an ordinary file", "a port file would replace it")
            content = file.read(SIZE_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PortfwdError(f"cannot read {path}", error.strerror or str(error)) from error
    if len(content) > SIZE_MAX or not CONTENT.fullmatch(content):
        raise PortfwdError(f"{path} is not a port file", "it has other content, and stays as it is")
    return content.decode().split()


def _write(path: str, lines: Sequence[str]) -> None:
    temporary, fd = _beside(path)
    try:
        with open(fd, "w") as file:
            file.writelines(f"{line}\n" for line in lines)
        os.rename(temporary, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise PortfwdError(f"cannot write the port file {path}", error.strerror or str(error)) from error


def _beside(path: str) -> tuple[str, int]:
    """A new file in the same folder, readable for all as the umask allows, with a name that nobody can predict."""
    temporary = f"{os.path.dirname(path)}/.portfwd-{os.urandom(6).hex()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise PortfwdError(f"cannot write the port file {path}", error.strerror or str(error)) from error
    return temporary, fd
