"""`cni-py restore --watch` on a lab's host, and what it says."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lab import Lab

COMMAND = Path(sys.executable).with_name("cni-py")
WAIT_S = 20.0
WITH = """
import sys
from cni_py.restore import watch
watch.{name} = {value}
from cni_py.commands.main import main
sys.argv[:1] = ["cni-py"]
sys.exit(main())
"""


class Watching:
    """The command on a lab's host, and what it says."""

    def __init__(self, lab: Lab, folder: Path, command: Sequence[str] = (str(COMMAND),)) -> None:
        self.lab = lab
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = lab["host"].popen([*command, "restore", "--watch"], stdout=log, stderr=log)
        self.await_line("watching over")

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def await_line(self, *words: str, since: int = 0) -> str:
        """The first line behind the first `since` ones that has all the words."""
        found: list[str] = []

        def said() -> bool:
            assert self.process.poll() is None, self.lines()
            found[:] = [line for line in self.lines()[since:] if all(word in line for word in words)]
            return bool(found)

        until(said, lambda: f"{words}: {self.lines()}")
        return found[0]

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(WAIT_S)
        assert kind is not None or status == 0, self.lines()


def with_setting(name: str, value: float) -> tuple[str, ...]:
    """The command with another constant."""
    return sys.executable, "-c", WITH.format(name=name, value=value)


def until(done: Callable[[], bool], said: Callable[[], str] = str) -> None:
    end = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < end, said()
        time.sleep(0.02)
