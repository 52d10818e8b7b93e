"""Output of the demo: folded at the terminal's width, in ASCII if the encoding has nothing else."""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import textwrap

NARROWEST, WIDEST = 40, 120
PLAIN = str.maketrans("─│┌┐└┘├┤┬┴┼✓✗→…", "-|+++++++++*!>~")


class ReaderGone(Exception):
    """Nobody reads stdout any more, as in `demo | head`."""


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return max(NARROWEST, min(shutil.get_terminal_size((80, 24)).columns, WIDEST))


def plainly(error: UnicodeError) -> tuple[str, int]:
    """An error handler for codecs: replaces each frame or mark by one ASCII character."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode("ascii", "replace").decode(), error.end


def prepare() -> None:
    """Set up stdout and stderr; call it before the first output."""
    codecs.register_error("plainly", plainly)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="plainly")  # type: ignore[union-attr]  # they are TextIOWrapper, as the interpreter makes them


def put(text: str) -> None:
    """Print text as it is. ReaderGone."""
    try:
        print(text, flush=True)
    except BrokenPipeError as error:
        # The interpreter flushes the buffer when it ends: that must not fail again.
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise ReaderGone from error


def folded(text: str, columns: int) -> list[str]:
    """A line folded into lines of at most `columns`; all but the first are indented by two more."""
    if len(text) <= columns:
        return [text]
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    return textwrap.wrap(
        text, columns, subsequent_indent=indent, break_on_hyphens=False, replace_whitespace=False, drop_whitespace=True
    )


def heading(text: str) -> None:
    lines = "\n".join(folded(text, width()))
    put(f"\n\033[1m{lines}\033[0m" if sys.stdout.isatty() else f"\n{lines}")


def say(text: str) -> None:
    put("\n".join(folded(f"  {text}".rstrip(), width())))


def show_lines(text: str, most: int = 0) -> None:
    """The output of a command; of a long one the first `most` lines."""
    lines = text.strip("\n").splitlines()
    shown = lines[:most] if most and len(lines) > most + 1 else lines
    for line in shown:
        say(f"  {line}")
    if len(shown) < len(lines):
        say(f"  … and {len(lines) - len(shown)} more lines")
