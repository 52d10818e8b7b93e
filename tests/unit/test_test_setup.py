"""What every run of the tests stands on: the signals it hands on, and what it says of tests that did not run."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import lacking

ROOT = Path(__file__).parents[2]
STARTED = """
import os, signal, subprocess
from tests import signals
signals.restore()
os.kill(os.getpid(), signal.SIGHUP)
os.kill(os.getpid(), signal.SIGINT)
look = "import signal; print(*[signal.getsignal(n) == signal.SIG_IGN for n in (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD)])"
print(subprocess.run([os.sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.strip())
worker = "import os, signal; from tests import signals; signals.restore(); os.kill(os.getpid(), signal.SIGHUP); print('lives')"
print(subprocess.run([os.sys.executable, "-c", worker], capture_output=True, text=True, check=True).stdout.strip())
"""


def ignore() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)


def test_signals_ignored_by_whoever_started_the_run_are_not_ignored_by_what_the_tests_start() -> None:
    """And the run itself, with its workers, goes on ignoring them, which is what nohup is for."""
    done = subprocess.run(
        [sys.executable, "-c", STARTED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        preexec_fn=ignore,
    )
    assert done.stdout.splitlines() == ["False False False", "lives"], done.stderr


@dataclass(frozen=True)
class Report:
    """As pytest has it of a skipped test."""

    nodeid: str
    longrepr: tuple[str, int, str]


def test_tests_that_did_not_run_are_counted_and_named() -> None:
    def report(name: str, reason: str) -> Report:
        return Report(name, ("conftest.py", 1, f"Skipped: {reason}"))

    reason = f"{lacking.UNAVAILABLE}podman was built without CNI"
    skipped = [report("t.py::a[ours]", reason), report("t.py::a[go]", reason), report("t.py::b", reason)]
    other = report("t.py::c", "these plugins do not know 1.1.0")
    assert lacking.summary([*skipped, other]) == [f"not run, 3 tests: {reason}", "    t.py::a", "    t.py::b"]


def test_what_is_missing_is_a_failure_under_ci_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception):
        lacking.missing("no root")
    with pytest.raises(pytest.skip.Exception):
        lacking.unavailable("podman was built without CNI")
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception):
        lacking.missing("no root")
