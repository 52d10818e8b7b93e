"""What a measurement ran on: processor, kernel, versions, and how much others used the machine meanwhile."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from pathlib import Path

SHARED = ("user", "nice", "system", "irq", "softirq")  # columns of /proc/stat that are somebody's work
COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq")


def described() -> dict[str, str]:
    """For people, not for programs."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in cpus if line.startswith("model name")), platform.machine())
    memory = next(
        line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    return {
        "processor": f"{model}, {os.cpu_count()} cores",
        "memory": f"{int(memory) / 2**20:.0f} GiB",
        "kernel": os.uname().release,
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "nftables": said("nft", "--version"),
        "iptables": said("iptables", "--version"),
    }


def said(*words: str) -> str:
    """A program's version, without its name."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return " ".join(done.stdout.split()[1:])


def interpreter(folder: str) -> str:
    """That of our executables, from the first line of one of them; empty where they are no scripts."""
    first = Path(folder, "bridge").read_bytes().partition(b"\n")[0].split()
    return first[0][2:].decode() if first and first[0].startswith(b"#!") else ""


class Others:
    """How much of the processors was used by processes that the bench did not start, since this object was made."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.all_s, self.own_s = worked_s(), own_s()

    def part(self) -> float:
        """Between 0 and 1."""
        there = (time.monotonic() - self.begun) * (os.cpu_count() or 1)
        theirs = (worked_s() - self.all_s) - (own_s() - self.own_s)
        return round(min(max(theirs / there, 0.0), 1.0), 2)


def worked_s() -> float:
    """Of all processors together: proc_stat(5)."""
    numbers = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    by_name = dict(zip(COLUMNS, map(int, numbers), strict=False))
    return sum(by_name[name] for name in SHARED) / os.sysconf("SC_CLK_TCK")


def own_s() -> float:
    """This process and those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
