"""How the commands answer, and how they end when they cannot do what they were asked.

stdout may be closed, full, or a pipe that nobody reads: no reason to leave an operation half-way. What cannot be written is
lost, and the end tells:

    what was asked for is the output (a list, a plan, --help)      status 1, and a sentence on stderr
    a deed (publish, ADD, install), or an answer by the status     the status tells of the deed alone; a sentence on stderr
    the reader had enough (EPIPE)                                  the same status without a word, as others do
    closed before we began, and a deed                             the same: nobody wanted to know
"""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from cni_py.skel import fill_closed_streams

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

FAILED = 1  # the operation failed
USAGE = 2
LACKING = 3  # the environment lacks something: root, a program, a namespace


class Failure(Exception):
    """A sentence for the user, and the exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


class Lenient(io.RawIOBase):
    """A descriptor that takes everything; `lost` is why something could not be written."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self.lost: OSError | None = None

    def write(self, data: "Buffer") -> int:
        """All of it."""
        rest = memoryview(data)
        size = len(rest)
        try:
            while rest:
                rest = rest[os.write(self.fd, rest) :]
        except OSError as error:
            self.lost = self.lost or error
        return size

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.fd

    def isatty(self) -> bool:
        return os.isatty(self.fd)


def open_streams() -> None:
    """Let no write to stdout or stderr fail; to be called before anything is opened.

    Each line goes out at once: a step is seen when it is done. What the terminal's encoding lacks is written as an escape: names
    come from others, and LC_ALL may be C.
    """
    given = sys.__stdout__, sys.__stderr__
    fill_closed_streams()
    if sys.stdout is given[0]:
        sys.stdout = _lenient(1, given[0])
    if given[1] is None or sys.stderr is given[1]:
        sys.stderr = _lenient(2, given[1])


def _lenient(fd: int, given: TextIO | None) -> TextIO:
    encoding = given.encoding if given is not None else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(Lenient(fd)), encoding, "backslashreplace", line_buffering=True)


def lost_output() -> OSError | None:
    """Why something could not be written to stdout."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, Lenient) else None


def ended(program: str, status: int, *, asked: bool) -> int:
    """The exit status of a command that has ended with `status`. `asked`: it was run for what it prints."""
    sys.stdout.flush()
    lost = lost_output()
    if lost is None:
        return status
    if lost.errno != errno.EPIPE and (asked or lost.errno != errno.EBADF):
        complain(f"{program}: cannot write to stdout: {lost.strerror or lost}")
    return (status or FAILED) if asked else status


def complain(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one sentence, with the option that was probably meant."""

    refuses_rest = True  # a subcommand tells of its own unknown options, which argparse leaves to the top

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """After --help and --version."""
        if message:
            complain(message.rstrip())
        sys.exit(ended(self.prog, status, asked=True))

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        complain(f"{self.prog}: {self._plainer(message)} (`{self.prog} --help` shows how)")
        sys.exit(USAGE)

    def parse_known_args(  # type: ignore[override]  # one signature for argparse's overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As inherited, but for `refuses_rest`."""
        found, rest = super().parse_known_args(args, namespace)
        if rest and self.refuses_rest and " " in self.prog:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def _plainer(self, message: str) -> str:
        if not message.startswith("unrecognized arguments: "):
            return message.removeprefix("argument ")
        words = message.split()[2:]
        unknown = next((word for word in words if word.startswith("-")), words[0])
        if not unknown.startswith("-"):
            return f"{unknown} is too much"
        known = [option for action in self._actions for option in action.option_strings]
        return f"there is no option {unknown}{did_you_mean(unknown.partition('=')[0], known)}"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """ "; did you mean X?" where a known word is like it, else nothing."""
    import difflib  # on the way of an error alone

    spelt = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), spelt, 1, 0.7)
    return f"; did you mean {spelt[near[0]]}?" if near else ""
