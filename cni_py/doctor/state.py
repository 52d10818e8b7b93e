"""What killed calls have left in /run/cni-py, and whether there is room to write. Attachments are host/health.py's."""

from __future__ import annotations

from collections.abc import Iterator

from cni_py.doctor.checks import of_facts, some
from cni_py.doctor.values import Disk, Facts
from cni_py.host.model import Finding, Host

GC = "`cni-py gc` removes it"
DAMAGED = (
    "connect the container anew (restart it): its DEL removes the record; of a container that is gone, `cni-py gc` does"
)
DISK_SHARE = 0.03  # of bytes or inodes that are free
ROOM = 16 << 20  # bytes; more than all records of 1,000 containers
INODES = 1000


@of_facts("records can be read", "record-damaged", "record-half")
def records(_host: Host, facts: Facts) -> Iterator[Finding]:
    for one in facts.state:
        if one.kind == "damaged":
            yield Finding(
                "error",
                "record-damaged",
                one.path,
                f"the record cannot be used: {one.why}",
                "a DEL must then find by names and addresses what to remove, and may leave something",
                DAMAGED,
            )
        elif one.kind == "half":
            yield Finding(
                "note",
                "record-half",
                one.path,
                "a call was killed while it wrote the record",
                "it had made nothing yet",
                GC,
            )


@of_facts("killed calls have left no locks", "lock-left")
def locks(_host: Host, facts: Facts) -> Iterator[Finding]:
    left = [one.path.rpartition("/")[2] for one in facts.state if one.kind == "lock" and not one.held]
    if left:
        yield Finding(
            "note",
            "lock-left",
            f"{facts.run_dir}/lock",
            f"calls were killed and left {some(left)}",
            "nobody holds them, and they are in nobody's way",
            "`cni-py gc` removes them",
        )


@of_facts("only root can write in the folder of records", "run-folder-open")
def folder(_host: Host, facts: Facts) -> Iterator[Finding]:
    if facts.run_dir_open:
        yield Finding(
            "error",
            "run-folder-open",
            facts.run_dir,
            "users other than root can write in it",
            "plugins do what the records there say, as root",
            f"look whether the records are right, then chown root: {facts.run_dir} and chmod 700 {facts.run_dir}",
        )


@of_facts("there is room to write state", "disk-full", "disk-read-only")
def disks(_host: Host, facts: Facts) -> Iterator[Finding]:
    for disk in facts.disks:
        if disk.read_only:
            yield Finding(
                "error",
                "disk-read-only",
                disk.path,
                "its file system is read-only",
                "an ADD cannot write its record or reserve an address, and fails",
                "mount it for writing; the kernel's log (dmesg) tells if errors of the disk made it so",
            )
        elif why := fullness(disk):
            empty = not disk.free or (disk.inodes and not disk.inodes_free)
            yield Finding(
                "error" if empty else "warning",
                "disk-full",
                disk.path,
                f"its file system has {why} left",
                "an ADD cannot write its record or reserve an address, and fails" if empty else "soon an ADD will fail",
                f"make room: df {disk.path}; df -i {disk.path}",
            )


def fullness(disk: Disk) -> str:
    """What there is too little of; "" if there is enough."""
    if disk.free < min(ROOM, DISK_SHARE * disk.size):
        return f"{disk.free >> 10} KiB"
    if disk.inodes and disk.inodes_free < min(INODES, DISK_SHARE * disk.inodes):
        return f"{disk.inodes_free} inodes"
    return ""


CHECKS = (records, locks, folder, disks)
