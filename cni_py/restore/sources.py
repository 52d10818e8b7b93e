"""Addresses of containers that firewalld forgot, as it does when it reloads: bound to their zones again.

Apart from the packet filters, under no lock of theirs: firewalld answers when it likes, after a reload in seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext

from cni_py.attachment import engine, records
from cni_py.attachment.locks import attachment_lock
from cni_py.attachment.records import Record
from cni_py.errors import CniError
from cni_py.firewalld import zones
from cni_py.firewalld.bus import BusError, NoAnswer
from cni_py.firewalld.sources import BindSource
from cni_py.restore.outcome import Restored

KIND = BindSource.__name__


def put_back(found: Sequence[tuple[Record, Restored]], *, locked: bool) -> None:
    """Bind what is missing: one question for each zone, one more for each source. Errors are in the outcomes.

    `locked`: the attachment's lock is held. Otherwise it is taken here, where something is missing.
    """
    asked = [(record, outcome) for record, outcome in found if is_bound(record)]
    try:
        daemon = zones.found(here=False) if asked else None
    except CniError as error:
        for _, outcome in asked:
            outcome.errors.append(str(error))
        return
    if daemon is None:
        return  # firewalld does not run, so it rejects nothing
    there: dict[str, set[str]] = defaultdict(set)
    with daemon:
        for number, (record, outcome) in enumerate(asked):
            try:
                _of_record(daemon, there, record, outcome, locked=locked)
            except (BusError, NoAnswer) as error:  # nor will it answer for the others
                for _, other in asked[number:]:
                    other.errors.append(str(error))
                return
            except CniError as error:
                outcome.errors.append(str(error))


def is_bound(record: Record) -> bool:
    """Whether addresses of the attachment are firewalld's sources."""
    return any(isinstance(fields, dict) and fields.get("op") == KIND for fields in record.ops)


def _of_record(
    daemon: zones.Firewalld, there: dict[str, set[str]], record: Record, outcome: Restored, *, locked: bool
) -> None:
    """One attachment; `there` takes the sources of each zone."""
    for op in engine.listed(record, BindSource):
        if op.zone not in there:
            there[op.zone] = set(daemon.sources(op.zone))
        if op.source not in there[op.zone]:
            _bind(daemon, op, record, outcome, locked=locked)


def _bind(daemon: zones.Firewalld, op: BindSource, record: Record, outcome: Restored, *, locked: bool) -> None:
    with nullcontext() if locked else attachment_lock(record.key, record.file):
        if not locked and records.load(record.key, record.plugin) is None:
            return  # a DEL came between
        daemon.bus.within(zones.DAEMON_S)
        if daemon.bind(op.zone, op.source):
            outcome.done.append(op.describe())
