"""`cni-py show --serve`: the page, live, until Ctrl-C. show/serving.py is the server; this gives it the host and its changes."""

from __future__ import annotations

import argparse
import os
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cni_py import files
from cni_py.commands import hosts, report
from cni_py.commands.report import LACKING, USAGE, Failure
from cni_py.commands.show_output import part
from cni_py.commands.show_watch import FOLDERS

if TYPE_CHECKING:
    from cni_py.host.model import Host
    from cni_py.show.events import Events

INTERRUPTED = 130
PAUSE_MOST_S = 10.0


def run(options: argparse.Namespace) -> int:
    """Serve until a signal. Failure."""
    from cni_py.show import serving
    from cni_py.show.events import Events

    try:
        where = serving.place(options.serve)
    except serving.Refused as error:
        raise Failure(str(error), USAGE) from error
    try:
        events = Events((f"{files.run_dir()}/attachments", *FOLDERS)) if options.saved is None else None
    except OSError as error:
        raise Failure(f"the kernel's notifications cannot be followed: {error.strerror}", LACKING) from error
    look = looker(options)
    follower = Follower(events)
    try:
        interrupted = serving.serve(where, look, follower, announce)
    except serving.Refused as error:
        raise Failure(str(error)) from error
    finally:
        follower.close()
    return INTERRUPTED if interrupted else 0


def looker(options: argparse.Namespace) -> Callable[[], Host]:
    """The function that gives the host. A saved one is read once: it does not change, and stdin can be read once.

    Failure when the name that was asked for is not known now; later the page shows that nothing of it is left.
    """
    from cni_py.show import choice

    first = part(hosts.load(options), options.subject)
    if options.saved is not None:
        return lambda: first

    def look() -> Host:
        host = hosts.load(options)
        try:
            return part(host, options.subject)
        except Failure:
            return choice.part(host, [], [])

    return look


def announce(url: str) -> None:
    """Print where the page is."""
    print(url, flush=True)
    report.complain(
        "serving until Ctrl-C; the URL holds a token: whoever has it, and can connect to this host, sees the page"
    )


class Follower:
    """Waits for the kernel's notifications, in a thread of the server, which another one ends."""

    def __init__(self, events: Events | None) -> None:
        self.events = events
        self.ending, self.end = os.pipe2(os.O_CLOEXEC)
        self.since = time.monotonic()

    def wait(self) -> bool:
        """True when something changed and it has been quiet for a moment; false after stop()."""
        if self.events is None:
            select.select([self.ending], [], [])
            return False
        # Looking takes longer on a large host: it is done at most half of the time
        pause_s = min(time.monotonic() - self.since, PAUSE_MOST_S)
        found = self.events.wait({self.ending: select.POLLIN}, pause_s)
        self.since = time.monotonic()
        return not found

    def stop(self) -> None:
        """End wait()."""
        os.write(self.end, b"x")

    def close(self) -> None:
        """Its descriptors."""
        os.close(self.ending)
        os.close(self.end)
        if self.events is not None:
            self.events.close()
