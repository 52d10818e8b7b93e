"""When a process started: pid and start time together are never given to another process."""

from __future__ import annotations

import errno

from portfwd.errors import Lacking, NotFound

START_TIME = 19  # field 22 of /proc/PID/stat, proc(5), counted after the name of the command


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot. NotFound; Lacking."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[START_TIME])
    except (OSError, ValueError, IndexError) as error:
        refuse_shortage(error)
        raise NotFound(f"there is no process {pid}") from error


def refuse_shortage(error: Exception) -> None:
    """Raise Lacking when `error` is a shortage of descriptors: it says nothing about the process."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise Lacking("no descriptor is left to watch a process with", "raise LimitNOFILE") from error
