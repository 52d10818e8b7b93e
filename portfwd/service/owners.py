"""The owner of a mapping, and whether it still exists: a person, an attachment's record or a process.

A process is watched by a pidfd (pidfd_open(2)), which becomes readable when it ends.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable

from cni_py import files
from cni_py.attachment import holders
from portfwd.errors import Lacking, NotFound, PortfwdError
from portfwd.mapping import Mapping
from portfwd.netns.processes import refuse_shortage, start_time
from portfwd.service.requests import ASKER


def resolved(owner: str, asker: int) -> str:
    """The owner, with "pid" written in full as the process that asks. NotFound."""
    return f"pid {asker} {start_time(asker)}" if owner == ASKER else owner


def is_there(owner: str) -> bool:
    """Whether the owner still exists; a person always does."""
    kind, _, rest = owner.partition(" ")
    if kind == "attachment":
        return os.path.isdir(f"{files.run_dir()}/attachments/{rest}")
    if kind == "pid":
        pid, started = process(owner)
        try:
            return start_time(pid) == started
        except NotFound:
            return False
        except Lacking:
            return True  # not known, for want of descriptors
    return True


def is_wanted(mapping: Mapping) -> bool:
    """Whether the record of its attachment still has the mapping: a DEL and another ADD may have run while no service did.

    The container of the other ADD has another address, and the old address may be a stranger's by now.
    """
    kind, _, hexed = mapping.owner.partition(" ")
    record = holders.record_of(hexed) if kind == "attachment" else None
    if record is None or record.damage:
        return True
    wanted = [one for fields in record.ops for one in _relayed(fields)]
    number = mapping.id.rpartition("-")[2]
    if not number.isdecimal() or int(number) >= len(wanted):
        return False
    targets = [{"address": target.address, "port": target.port} for target in mapping.targets]
    has = {"first": mapping.first, "last": mapping.last, "protocol": mapping.protocol, "targets": targets}
    return has.items() <= wanted[int(number)].items()


def _relayed(fields: object) -> list[dict[str, object]]:
    """The mappings of a RelayPorts operation in a record (cni_py/ports/relay.py); their ids end with the index in this list."""
    if not isinstance(fields, dict) or fields.get("op") != "RelayPorts":
        return []
    found = fields.get("mappings")
    try:  # the version before: as JSON text
        found = json.loads(found) if isinstance(found, str) else found
    except ValueError:
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def process(owner: str) -> tuple[int, int]:
    """The pid and start time of an owner; (0, 0) when it is not a process."""
    kind, *rest = owner.split(" ")
    if kind == "pid" and len(rest) == 2 and all(map(str.isdecimal, rest)):
        return int(rest[0]), int(rest[1])
    return 0, 0


class Owners:
    """Watches the processes that mappings belong to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ended: Callable[[str], None]) -> None:
        self._loop = loop
        self._ended = ended  # called with the id of a mapping whose process has ended
        self._watched: dict[str, int] = {}  # id: pidfd

    def watch(self, mapping: Mapping) -> None:
        """Watch the process of a mapping, if it has one. NotFound when it has ended already; PortfwdError."""
        self.forget(mapping.id)
        pid, started = process(mapping.owner)
        if not pid:
            return
        try:
            fd = os.pidfd_open(pid)
        except (OSError, OverflowError) as error:
            refuse_shortage(error)
            raise NotFound(f"there is no process {pid}") from error
        try:
            # Only now: with the pidfd open the pid cannot change its meaning unnoticed.
            if start_time(pid) != started:
                raise NotFound(f"process {pid} is another one by now")
            self._loop.add_reader(fd, self._ended, mapping.id)
        except (OSError, PortfwdError):
            os.close(fd)
            raise
        self._watched[mapping.id] = fd

    def forget(self, name: str) -> None:
        """Stop watching. Harmless for a mapping that is not watched."""
        fd = self._watched.pop(name, None)
        if fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)

    def close(self) -> None:
        """Stop watching all."""
        for name in list(self._watched):
            self.forget(name)
