"""cni_py.kernel.spawn: programs that read, print, end and do not want to end."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cni_py.kernel.spawn import Process
from cni_py.lean import os as lean_os

MANY = b"0123456789abcdef" * 65536  # more than a pipe holds


def shell(script: str, stdin: bytes = b"", *, stderr: int = -1, kept: int = -1) -> Process:
    return Process(["/bin/sh", "-c", script], {"PATH": os.environ["PATH"]}, stdin, stderr=stderr, kept=kept)


def test_a_program_reads_all_and_prints_all_before_anybody_listens() -> None:
    process = shell("tee /dev/stderr; exit 3", MANY)
    assert process.wait() == 3
    assert (process.stdout, process.stderr) == (MANY, MANY)


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("kill -9 $$", -signal.SIGKILL), ("kill -13 $$", -13)])
def test_the_status_tells_how_it_ended(script: str, status: int) -> None:
    assert shell(script).wait() == status


@pytest.mark.netns  # for a process of its own, whose number 3 may be taken
def test_a_kept_descriptor_is_open_as_number_3_whatever_number_it_had() -> None:
    for kept in (os.dup2(os.open("/dev/null", os.O_RDONLY), 9, inheritable=False), os.dup2(9, 3, inheritable=False)):
        process = shell("readlink /proc/self/fd/3", kept=kept)
        process.wait()
        assert process.stdout == b"/dev/null\n"


def test_stderr_goes_where_it_is_led() -> None:
    reader, writer = os.pipe()
    assert shell("echo refused >&2", stderr=writer).wait() == 0
    assert os.read(reader, 100) == b"refused\n"


def test_a_program_that_does_not_heed_sigterm_is_killed_at_the_limit() -> None:
    process = shell("trap '' TERM; echo ready; while :; do sleep 0.1; done")
    pid = process.pid
    while not process.stdout:
        time.sleep(0.005)
    process.stop(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


UNDOING = """
trap 'rm made; exit 1' TERM
touch made
for _ in $(seq 400); do sleep 0.05; done
"""


def test_a_program_that_was_just_started_has_time_for_an_undo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    really = lean_os.posix_spawn

    def interrupted(*args: Any, **options: Any) -> int:
        started.append(really(*args, **options))
        while not (tmp_path / "made").exists():
            time.sleep(0.005)
        signal.raise_signal(signal.SIGHUP)  # to this thread, which has it blocked: pytest-xdist has others
        return started[0]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lean_os, "posix_spawn", interrupted)
    before = signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            shell(UNDOING)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not (tmp_path / "made").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_an_interruption_at_its_end_does_not_lose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    really = lean_os.waitid

    def interrupted(kind: int, pid: int, options: int) -> object:
        really(kind, pid, options)
        raise KeyboardInterrupt

    process = shell("exit 3")
    with monkeypatch.context() as patched:
        patched.setattr(lean_os, "waitid", interrupted)
        with pytest.raises(KeyboardInterrupt):
            process.wait()
    process.stop()
    process.stop()  # harmless again
    assert process.pid == 0


def test_a_forgotten_program_does_not_outlive_the_call() -> None:
    process = shell("exec sleep 60")
    pid = process.pid
    del process
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        Process(["/nowhere/iptables"], {}, b"")
