"""How the commands answer, and how they end when they cannot do what they were asked."""

import io
import os
import sys

FAILED = 1  # the operation failed
USAGE = 2
LACKING = 3  # the environment lacks something: root, a program, a namespace


class Failure(Exception):
    """A sentence for the user, and the exit status."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


class Answers:
    """stdout, which may be full or closed: no reason to leave an operation half-way. `lost` tells that afterwards."""

    def __init__(self) -> None:
        self.lost = ""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names come from others

    def say(self, text: str) -> None:
        """One line, or a JSON document, at once: a step is seen when it is done."""
        if self.lost:
            return
        try:
            print(text, flush=True)
        except OSError as error:
            self.lost = error.strerror or str(error)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)  # what is buffered still goes out at exit, and would fail again
            os.close(null)
