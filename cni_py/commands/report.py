"""Output, errors and exit status of the commands.

stdout may be closed, full, or a pipe without a reader. That does not stop an operation half-way: output that cannot be written is
dropped, and the exit status and stderr tell at the end:

    the output is the purpose (a list, a plan, --help)     exit status 1, and a sentence on stderr
    an operation is (publish, ADD, install)                exit status of the operation, and a sentence on stderr
    EPIPE: the reader has ended                            as above, without the sentence, as other programs do
    closed from the start, and an operation                exit status of the operation, without the sentence
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
USAGE = 2  # the command line is wrong
NAME_MAX = (
    300  # characters of network/containerID/ifname: a name of a network or file has at most 255 bytes, an ID mostly 64
)
LACKING = 3  # something is missing here: root, a program, a namespace


class Failure(Exception):
    """The command ends: a sentence for stderr, and the exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


class Lenient(io.RawIOBase):
    """A descriptor on which no write fails; `lost` is the first error, if any."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self.lost: OSError | None = None

    def write(self, data: "Buffer") -> int:
        """Write all of it, or note the error."""
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
    """Replace stdout and stderr by streams on which no write fails. Call it before any file is opened.

    Each line is written at once, so that a step is seen when it is done. Characters that the terminal's encoding does not have
    are written as escapes: names come from others, and LC_ALL may be C.
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
    """The first error of a write to stdout, if any."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, Lenient) else None


def ended(program: str, status: int, *, asked: bool) -> int:
    """The exit status of a command that has ended with `status`. `asked`: its output is its purpose."""
    sys.stdout.flush()
    lost = lost_output()
    if lost is None:
        return status
    if lost.errno != errno.EPIPE and (asked or lost.errno != errno.EBADF):
        complain(f"{program}: cannot write to stdout: {lost.strerror or lost}")
    return (status or FAILED) if asked else status


def complain(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr)


def shortened(text: str) -> str:
    """Text from others that names something, of a length that no right one exceeds."""
    return text if len(text) <= NAME_MAX else f"{text[:NAME_MAX]}..."


def counted(number: int, noun: str) -> str:
    """ "1 record", "2 records"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, which names the option that was probably meant."""

    # A subcommand reports its unknown options itself, since argparse would let the main parser do it, which has other options.
    refuses_rest = True

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End after --help and --version. Status 1 if stdout could not be written."""
        if message:
            complain(message.rstrip())
        sys.exit(ended(self.prog, status, asked=True))

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with status 2."""
        complain(f"{self.prog}: {self._plainer(message)} (see `{self.prog} --help`)")
        sys.exit(USAGE)

    def parse_known_args(  # type: ignore[override]  # one signature for argparse's overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse, but see `refuses_rest`."""
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
            return f"unexpected argument {unknown}"
        known = [option for action in self._actions for option in action.option_strings]
        return f"unknown option {unknown}{did_you_mean(unknown.partition('=')[0], known)}"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """ "; did you mean X?" if `word` resembles the known word X, else ""."""
    import difflib  # imported for errors only

    spelt = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), spelt, 1, 0.7)
    return f"; did you mean {spelt[near[0]]}?" if near else ""
