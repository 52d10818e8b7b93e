"""`cni-py show --watch`: draw the picture anew, or print what changed, when the kernel says that something did.

No timer looks at anything: between two notifications the process sleeps. After one it waits for a quiet moment, since a plugin's
ADD makes dozens of them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import select
import signal
import sys
import time
import typing
from collections import deque
from datetime import datetime

from cni_py import files
from cni_py.commands import hosts, report
from cni_py.commands import show_output as output
from cni_py.commands.report import LACKING, Failure

if typing.TYPE_CHECKING:
    from cni_py.host.model import Host

LAST = 3  # changes that stand below the picture
# Beside the records: names of namespaces, networks, reservations, libcni's cache, portfwd's mappings
FOLDERS = (
    "/run/netns",
    "/etc/cni/net.d",
    "/var/lib/cni/networks",
    "/var/lib/cni/results",
    "/var/lib/cni-py/portfwd/mappings",
)
CLEAR = "\033[H\033[J"  # cursor to the first cell; all behind it is erased


def run(options: argparse.Namespace) -> int:
    """Until nobody reads it any more. Ctrl-C ends it with 130, as every command."""
    from cni_py.show.events import Events

    try:
        events = Events((f"{files.run_dir()}/attachments", *FOLDERS))
    except OSError as error:
        raise Failure(f"the kernel's notifications cannot be followed: {error.strerror}", LACKING) from error
    with events:  # from before the first look on, so that nothing between the two is missed
        watch = Watch(options)
        while report.lost_output() is None:
            woken = events.wait(watch.descriptors, watch.pause_s)
            if 1 in woken:
                break
            watch.step(is_resized=bool(woken))
    return 0


class Watch:
    """The model as it was seen last."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.is_drawn = sys.stdout.isatty() and options.form == "text"
        self.last: deque[str] = deque(maxlen=LAST)
        # stdout is asked for errors only: a terminal or a pipe that nobody has any more
        self.descriptors = {1: 0} | ({resizes(): select.POLLIN} if self.is_drawn else {})
        self.pause_s = 0.0
        self.whole = self.collected()
        self.host = output.part(self.whole, options.subject)
        self.redraw()

    def collected(self) -> Host:
        """Looking takes longer on a large host, and some hosts are never quiet: it takes a fifth of the time at most."""
        began = time.monotonic()
        host = hosts.load(self.options)
        self.pause_s = 4 * (time.monotonic() - began)
        return host

    def step(self, *, is_resized: bool) -> None:
        """Look again, and tell what changed."""
        from cni_py.show import diff

        if is_resized:
            for fd in self.descriptors:
                if fd != 1:
                    os.read(fd, 4096)
            self.redraw()
            return
        before, self.whole = self.whole, self.collected()
        former, self.host = self.host, self.whole
        if self.options.subject:
            former, self.host = output.parts(before, self.whole, self.options.subject)
        found = diff.changes(former, self.host)
        if not found:
            return
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        if self.is_drawn:
            self.last += [f"{now[11:19]} {one}" for one in found]
            self.redraw()
        else:
            output.tell(found, is_json=self.options.form == "json", at=now)

    def redraw(self) -> None:
        """The picture, cut at the end of the screen, and the last changes."""
        if not self.is_drawn:
            return
        from cni_py.show.lines import row, wrapped

        given = output.look()
        footer = [*itertools.chain.from_iterable(wrapped(row((one, "dim")), given, "", "  ") for one in self.last)]
        footer = [[], *footer] if footer else []
        lines = list(output.picture(self.host, self.options, given))
        room = os.get_terminal_size(1).lines - 1 - len(footer)  # the cursor stands below the last line
        if len(lines) > room:
            more = f"… {len(lines):,} lines in all: a larger window, or the name of a network, shows more"
            end = list(wrapped(row((more, "dim")), given))
            lines = [*lines[: max(room - len(end), 1)], *end]
        sys.stdout.write(CLEAR)
        output.write([*lines, *footer])
        sys.stdout.flush()


def resizes() -> int:
    """A descriptor that can be read when the terminal has another size (SIGWINCH)."""
    ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    signal.signal(signal.SIGWINCH, lambda *_: None)
    return ours
