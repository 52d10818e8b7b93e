"""GC: removes what attachments have left that the runtime no longer knows, and what killed calls have left.

    records of this network whose attachment is not valid      their operations are undone
    half-written records, and records that cannot be read      removed, with a note on stderr
    lock files that nobody holds                               removed

Each under the lock of its attachment, which an ADD that is under way holds.
"""

from cni_py import files
from cni_py.attachment import engine, records
from cni_py.attachment.locks import Lock, attachment_lock
from cni_py.attachment.naming import HEX
from cni_py.errors import CniError, TryAgainLater, warn
from cni_py.lean import os
from cni_py.protocol.netconf import CHAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_py.attachment.call import Call
    from cni_py.attachment.records import Record

LOCK_PREFIX = "attachment-"  # of the files of locks.attachment_lock()
HALF_WRITTEN = records.SUFFIXES[0]


def collect(call: "Call") -> list[CniError]:
    """GC of one plugin's records and locks; returns the failures."""
    listed = call.valid_attachments
    if listed is None:
        return []  # no list: the runtime has not said which attachments are valid
    valid = {key.hex for key in listed}
    stale = list(stale_records(call, valid))
    delete_links(call, stale)
    failures = [failure for record in stale for failure in undo(call, record)]
    plugins = dict.fromkeys((call.plugin, CHAIN))  # the network may have been one of a chain
    for folder in files.listed(f"{files.run_dir()}/attachments"):
        if len(folder) == HEX:
            for plugin in plugins:
                sweep_folder(call, plugin, folder, folder in valid)
    for name in files.listed(f"{files.run_dir()}/lock"):
        if name.startswith(LOCK_PREFIX) and name[len(LOCK_PREFIX) + HEX + 1 :] in plugins:
            sweep_lock(name)
    return failures


def stale_records(call: "Call", valid: set[str]) -> "Iterator[Record]":
    """The records of this network, made in this host namespace, whose attachments (their hex) are not in `valid`."""
    for record in records.all_records(call.plugin):
        if record.key.network != call.conf.name or record.key.hex in valid:
            continue
        if record.host_cookie in (0, call.kernel.host_cookie):
            yield record


def delete_links(call: "Call", stale: "Sequence[Record]") -> None:
    """Delete the host's interfaces of stale attachments together, before the rest of each is undone.

    An attachment that another call holds, or whose interface is in no record, is left to undo(). Its lock is not held until the
    end: an ADD that comes meanwhile undoes the old interface itself, and a new one has another index.
    """
    found = []
    kernel = call.kernel.of_another(call.key, "")
    for record in stale if len(stale) > 1 else ():
        try:
            with attachment_lock(record.key, record.file, wait_s=0):
                current = records.load(record.key, record.plugin)
                kernel.key = record.key
                ops = engine.readable(current.ops if current is not None else ())
                for op in ops if not any(op.by_interface for op in ops) else ():
                    link = op.own_link(kernel)
                    if link is not None:
                        found.append(link.index)
        except (CniError, OSError):
            continue
    if found:
        try:
            kernel.host.delete_links(found)
        except OSError:
            pass  # undo() tells of it


def undo(call: "Call", record: "Record") -> list[CniError]:
    """Undo the operations of the record, which is read again once its attachment is locked."""
    key, plugin = record.key, record.plugin
    try:
        with attachment_lock(key, record.file):
            current = records.load(key, plugin)
            if current is None:
                return []
            kernel = call.kernel.of_another(key, current.netns, lambda kernel: current.is_of(kernel) is not False)
            try:
                left = engine.undo_record(current, kernel)
            finally:
                kernel.close_container()
            return [CniError(f"GC of {key.label} is incomplete", text) for text in left]
    except CniError as error:
        return [error]


def sweep_folder(call: "Call", plugin: str, hexed: str, is_valid: bool) -> None:
    """Remove a half-written record, and one that cannot be read, unless its attachment is valid or of another network."""
    folder = f"{files.run_dir()}/attachments/{hexed}"
    present = [suffix for suffix in records.SUFFIXES if os.path.lexists(f"{folder}/{plugin}{suffix}")]
    unread = present != [HALF_WRITTEN] and records.key_in(folder, plugin) is None
    if not present or not (HALF_WRITTEN in present or unread):
        return
    try:
        with Lock(files.lock_path(f"{LOCK_PREFIX}{hexed}-{plugin}"), hexed, 0, remove=True, needed=False):
            remove(f"{folder}/{plugin}{HALF_WRITTEN}")
            if unread and not is_valid and records.key_in(folder, plugin) is None and not is_elsewhere(call, hexed):
                for suffix in records.SUFFIXES[1:]:
                    if remove(f"{folder}/{plugin}{suffix}"):
                        warn(f"removed the attachment record {folder}/{plugin}{suffix}, which cannot be read")
            os.rmdir(folder)
    except (TryAgainLater, OSError):
        pass  # a call holds the lock; other records are in the folder


def is_elsewhere(call: "Call", hexed: str) -> bool:
    """Whether another record, or a link's alias, tells that the attachment is of another network, whose GC cares for it."""
    folder = f"{files.run_dir()}/attachments/{hexed}"
    plugins = {name.rpartition(".")[0] for name in files.listed(folder)}
    keys = [key for plugin in plugins if (key := records.key_in(folder, plugin)) is not None]
    labels = [link.alias[HEX + 1 :] for link in call.kernel.host.links() if link.alias.startswith(hexed + " ")]
    networks = [key.network for key in keys] + [label.partition("/")[0] for label in labels]
    return any(network != call.conf.name for network in networks)


def remove(path: str) -> bool:
    """Remove a file; returns whether there was one. A file that cannot be removed is a warning."""
    try:
        there = os.path.lexists(path)
        files.remove_file(path)
    except OSError as error:
        warn(f"cannot remove {path}: {error.strerror}")
        return False
    return there


def sweep_lock(name: str) -> None:
    """Remove the lock file of a call that was killed. A call that waits for it meanwhile makes a new one (see Lock)."""
    try:
        with Lock(files.lock_path(name), name, 0, remove=True, needed=False):
            pass
    except TryAgainLater:
        pass  # a call holds it
