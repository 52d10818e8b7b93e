"""What the demo says, on whatever reads it: folded at the terminal's width, in ASCII where that is all there is."""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import textwrap

NARROWEST, WIDEST = 40, 120
PLAIN = str.maketrans("─│┌┐└┘├┤┬┴┼✓✗→…", "-|+++++++++*!>~")


class ReaderGone(Exception):
    """Nobody reads on: `demo | head` has had enough."""


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return max(NARROWEST, min(shutil.get_terminal_size((80, 24)).columns, WIDEST))


def plainly(error: UnicodeError) -> tuple[str, int]:
    """An error handler for codecs: frames and marks in characters that the encoding has, each as wide as it was."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode("ascii", "replace").decode(), error.end


def prepare() -> None:
    """Before anything is said."""
    codecs.register_error("plainly", plainly)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="plainly")  # type: ignore[union-attr]  # they are ours, from the start


def put(text: str) -> None:
    """A line or several, as they are. ReaderGone."""
    try:
        print(text, flush=True)
    except BrokenPipeError as error:
        # What is still in the buffer goes nowhere, also when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise ReaderGone from error


def folded(text: str, columns: int) -> list[str]:
    """A line in as many as it takes; those after the first stand a little further in than it."""
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
    """What a command printed; of a long text the first `most` lines."""
    lines = text.strip("\n").splitlines()
    shown = lines[:most] if most and len(lines) > most + 1 else lines
    for line in shown:
        say(f"  {line}")
    if len(shown) < len(lines):
        say(f"  … and {len(lines) - len(shown)} lines more")
