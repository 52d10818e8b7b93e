"""What the service has done, for `cni-py serve --status`.

Each child writes lines to a pipe, which the service reads when a child has ended:

    b PID PLUGIN VERB       the plugin begins
    e PID STATUS SECONDS    it has ended
    r PID SENTENCE          the call was refused: the launcher goes direct
"""

import os
import time
from collections import Counter, deque

from cni_py import __version__
from cni_py.protocol import gojson

KEPT = 1000  # durations of each plugin and verb
READ_MAX = 1 << 16
REASONS_MAX = 20
REASON_MAX = 200  # characters
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")

Key = tuple[str, str]  # plugin, verb


class Tally:
    """The calls of one plugin and verb."""

    __slots__ = ("calls", "crashed", "failed", "seconds")

    def __init__(self) -> None:
        self.calls = self.failed = self.crashed = 0
        self.seconds: deque[float] = deque(maxlen=KEPT)


class Statistics:
    """The service's own side."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.tallies: dict[Key, Tally] = {}
        self.refused: Counter[str] = Counter()
        self.under_way: dict[int, Key] = {}  # by the child's pid
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def collect(self) -> None:
        """Take in what the children have written so far."""
        try:
            text = os.read(self.read_fd, READ_MAX).decode("utf-8", "replace")
        except BlockingIOError:
            return
        for line in text.splitlines():
            kind, pid, *words = line.split(" ", 3)
            if kind == "b":
                self.under_way[int(pid)] = words[0], words[1]
            elif kind == "e":
                self._ended(self.under_way.pop(int(pid), ("?", "?")), int(words[0]), float(words[1]))
            else:
                self.under_way.pop(int(pid), None)
                self.refuse(" ".join(words))

    def _ended(self, key: Key, status: int, seconds: float) -> None:
        tally = self.tallies.setdefault(key, Tally())
        tally.calls += 1
        tally.failed += status != 0
        tally.seconds.append(seconds)

    def refuse(self, reason: str) -> None:
        """Count a call that went direct."""
        self.refused[reason if reason in self.refused or len(self.refused) < REASONS_MAX else "other reasons"] += 1

    def lost(self, pid: int) -> "Key | None":
        """A child has ended. What it was at if it had not come to the end of it."""
        self.collect()
        key = self.under_way.pop(pid, None)
        if key is not None:
            tally = self.tallies.setdefault(key, Tally())
            tally.calls += 1
            tally.failed += 1
            tally.crashed += 1
        return key

    def as_json(self) -> str:
        """The answer to --status."""
        rows = [
            {
                "plugin": plugin,
                "verb": verb,
                "calls": tally.calls,
                "failed": tally.failed,
                "crashed": tally.crashed,
                "p50_ms": percentile(tally.seconds, 50),
                "p99_ms": percentile(tally.seconds, 99),
            }
            for (plugin, verb), tally in sorted(self.tallies.items())
        ]
        found: dict[str, object] = {
            "version": __version__,
            "pid": os.getppid(),
            "uptime_s": round(time.monotonic() - self.since),
            "running": len(self.under_way),
            "refused": dict(self.refused),
            "calls": rows,
        }
        return gojson.encode(found)  # type: ignore[arg-type]  # JSON values


def percentile(values: "deque[float]", percent: int) -> float:
    """In milliseconds, of seconds; 0 for none."""
    ordered = sorted(values)
    return round(1000 * ordered[(len(ordered) - 1) * percent // 100], 1) if ordered else 0.0


class Report:
    """A child's side. Nothing is raised: a report that is lost is no reason for a call to fail."""

    __slots__ = ("began", "statistics")

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self.began = time.monotonic()

    def begins(self, plugin: str, verb: str) -> None:
        self._write(f"b {os.getpid()} {plugin} {verb if verb in VERBS else 'other'}")

    def ended(self, status: int) -> None:
        self._write(f"e {os.getpid()} {status} {time.monotonic() - self.began:.6f}")

    def refused(self, why: str) -> None:
        if why:
            self._write(f"r {os.getpid()} {' '.join(why.split())[:REASON_MAX]}")

    def told(self) -> bytes:
        """The statistics as they were when this child began."""
        return self.statistics.as_json().encode()

    def _write(self, line: str) -> None:
        try:
            os.write(self.statistics.write_fd, f"{line}\n".encode("utf-8", "replace"))
        except OSError:
            pass
