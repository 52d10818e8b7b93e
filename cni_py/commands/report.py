"""How the commands answer, and how they end when they cannot do what they were asked."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

FAILED = 1  # the operation failed
USAGE = 2
LACKING = 3  # the environment lacks something: root, a program, a namespace
CLOSED = "closed"  # what Answers.lost says where nobody reads stdout any more


class Failure(Exception):
    """A sentence for the user, and the exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


class Answers:
    """stdout, which may be full or closed: no reason to leave an operation half-way. `lost` tells that afterwards."""

    def __init__(self) -> None:
        self.lost = ""
        take_any_text()

    def say(self, text: str) -> None:
        """One line, or a JSON document, at once: a step is seen when it is done."""
        if self.lost:
            return
        try:
            print(text, flush=True)
        except OSError as error:
            self.lost = CLOSED if error.errno == errno.EPIPE else error.strerror or str(error)
            discard_output()


def take_any_text() -> None:
    """Write what the terminal's encoding lacks as an escape: names come from others, and LC_ALL may be C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Lead stdout to /dev/null: what is buffered still goes out at exit, and would fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def complain(text: str) -> None:
    """A line on stderr. Nobody may listen there, which is no reason to stop half-way."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):  # closed by the other side; by us; never there
        pass


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one sentence, with the option that was probably meant."""

    refuses_rest = True  # a subcommand tells of its own unknown options, which argparse leaves to the top

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
