"""The program of one page that a proxy becomes when the service has its port."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from portfwd.docker import waiter
from tests.portfwd.docker.dockerd import (
    Running,
    wait_for_waiter,
)


def become(how: Callable[[], object], number: int | None) -> tuple[int, int]:
    """Fork, replace the child, signal it; its exit status and private memory in kB."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, waiter.STOP_SIGNALS)
            if number is None:
                os.kill(os.getpid(), signal.SIGINT)  # told to stop before it is a waiter
            how()
        finally:
            os._exit(99)
    running = Running(pid, -1)
    memory = 0
    if number is not None:
        wait_for_waiter(pid)
        memory = private_kb(pid)
        running.stop(number)
    return running.wait(), memory


def private_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, None])
def test_the_waiter_takes_a_few_pages_and_ends_with_status_0(number: int | None) -> None:
    status, memory = become(lambda: waiter.become_waiter(["x"]), number)
    assert status == 0
    assert memory <= 32


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_memory_cannot_be_executed_a_shell_waits(number: int) -> None:
    status, memory = become(lambda: waiter.become_shell(["x"]), number)
    assert status == 0
    assert memory <= 1024


@pytest.mark.parametrize("machine", [*waiter.PROGRAMS, "riscv64"])
def test_the_program_of_a_machine_is_one_page_or_there_is_none(machine: str) -> None:
    program = waiter.waiter_program(machine)
    assert len(program) < 4096
    if machine in waiter.PROGRAMS:
        number = waiter.PROGRAMS[machine][0]
        assert program[:4] == b"\x7fELF"
        assert struct.unpack_from("<HHI", program, 16) == (2, number, 1)  # ET_EXEC, e_machine, EV_CURRENT
        assert program.endswith(waiter.NAME)
