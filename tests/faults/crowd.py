"""Many executions at once, started by a process inside the lab: the function to give to Node.python()."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime import Outcome

CALL_S = 60  # one call among fifty on a busy machine


@dataclass(frozen=True)
class Job:
    """One execution: a program, its standard input and its whole environment beyond PATH."""

    program: str
    given: bytes
    environment: dict[str, str] = field(default_factory=dict)


def run_all(jobs: Sequence[Job], at_once: int = 1000) -> list[Outcome]:
    """Start `at_once` programs; each waits for its input, which they get when all are there. Then the next ones."""
    outcomes = []
    for start in range(0, len(jobs), at_once):
        group = jobs[start : start + at_once]
        processes = [begin(job) for job in group]
        for process, job in zip(processes, group, strict=True):
            feed(process, job.given)
        outcomes += [end(process) for process in processes]
    return outcomes


def begin(job: Job) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    environment = {"PATH": os.environ["PATH"], **job.environment}
    return subprocess.Popen([job.program], env=environment, stdin=pipe, stdout=pipe, stderr=pipe)


def feed(process: subprocess.Popen[bytes], given: bytes) -> None:
    """Give it its input, which fits into the pipe; it may have ended without reading it."""
    assert process.stdin is not None
    try:
        with process.stdin as stream:
            stream.write(given)
    except BrokenPipeError:
        pass
    process.stdin = None


def end(process: subprocess.Popen[bytes]) -> Outcome:
    try:
        output, complaint = process.communicate(timeout=CALL_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, complaint = process.communicate()
    return Outcome(process.returncode, output.decode(errors="replace"), complaint.decode(errors="replace"))
