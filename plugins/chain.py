"""chain: runs a list of plugins in one process, as a runtime runs the plugins of a *.conflist in one process each.

    ADD    every plugin in order, each with the result of the one before -> the result of the last; all of them, or none
    DEL    every plugin in reverse order; the first that fails ends it, as with libcni, so that it can be repeated
    CHECK  every plugin in order, with the result of the ADD
    GC     every plugin, whatever the others did
    STATUS every plugin in order: the first that is not ready

Ours run in this process and share its lock, its record (/run/cni-py/attachments/<hex>/chain.json) and its roll-back. Others are
executed as libcni does it; a failed ADD sends them DEL. An error names its plugin.

The keys disableCheck and disableGC count as those of a list. DEL, CHECK and GC also know what the plugins made while they stood
in a list, one by one, and the other way round: see attachment/records.

Example configuration: conf/chain.conflist.
"""

from cni_py.attachment import delegate, engine, records
from cni_py.attachment.call import Call, Plugin, collect_garbage
from cni_py.errors import CniError, os_error
from cni_py.plugins.chain_conf import Member, members
from cni_py.protocol.gojson import Object, decode, encode
from cni_py.protocol.netconf import CHAIN, boolean
from cni_py.protocol.result import Result, to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from cni_py.protocol.gojson import Encodable

    T = TypeVar("T")


def perform(member: Member, act: "Callable[[Member], T]") -> "T":
    """`act`, whose errors get the plugin's name; logged where the plugin has the key `log`."""
    try:
        if member.ours is not None and "log" in member.call.conf.raw:
            from cni_py.attachment.log import logged

            return logged(member.call, lambda: act(member))
        return act(member)
    except CniError as error:
        raise member.named(error) from error
    except OSError as error:
        raise member.named(os_error("a call of the system failed", error)) from error


def add(call: Call) -> Result:
    """ADD of all. A failure undoes them in reverse: skel rolls back what the executor has noted."""
    result: Result | None = None
    for member in members(call):
        if result is not None:
            member.call.conf.raw["prevResult"] = as_read(to_json(result, call.conf.cni_version))
        result = perform(member, add_one)
    assert result is not None  # members() refuses an empty list
    return result


def as_read(result: Object) -> Object:
    """A result in the types that the next plugin would read from its stdin."""
    found = decode(encode(result, None).encode())
    assert isinstance(found, Object)
    return found


def add_one(member: Member) -> Result:
    """ADD of one plugin."""
    call, path = member.call, member.path
    if member.ours is not None:
        return member.ours.add(call)
    if call.dry_run:
        raise CniError(f"{path} is not ours: what it would do cannot be told without running it")
    if call.begin():  # an earlier ADD was killed, perhaps in this plugin or after it
        take_back(member)
    call.executor.undone_by(lambda: perform(member, take_back))
    return delegate.decode_result(execute(member, "ADD"), call.conf.cni_version)


def take_back(member: Member) -> None:
    """After a failed or killed ADD, also its own: DEL of a plugin that is not ours."""
    execute(member, "DEL")


def execute(member: Member, verb: str) -> bytes:
    """A plugin that is not ours, with the configuration of its call."""
    return delegate.execute(member.path, verb, member.call.conf.text)


def run(member: Member) -> None:
    """DEL, CHECK, GC or STATUS of one plugin."""
    verb, ours = member.call.verb, member.ours
    if ours is None:
        execute(member, verb)
    else:
        {"DEL": ours.delete, "CHECK": ours.check, "GC": ours.gc, "STATUS": ours.status}[verb](member.call)


def delete(call: Call) -> None:
    """DEL of all, the last first; then nothing of the list can be in the record any more."""
    listed = members(call)
    call.record = records.own(call.key, CHAIN)
    before = withdraw_unlisted(call, {member.type for member in listed})
    for member in listed:
        if member.call.conf.ipam is not None:
            call.kernel.is_own = member.call.owns  # the plugin with the addresses knows best whose the namespace is
            break
    for member in reversed(listed):
        perform(member, run)
    (call.record or records.Record(call.key, CHAIN)).keep(before)


def withdraw_unlisted(call: Call, listed: set[str]) -> "list[Encodable]":
    """Undo what plugins made that have left the list since; first, since nobody knows any more which was their place.

    Returns the operations before those of the list: a network may have two chains, which share the record.
    """
    ops = call.record.ops if call.record is not None else []
    is_listed = [records.part_of(fields) in listed for fields in ops]
    first = is_listed.index(True) if True in is_listed else len(ops) if listed else 0
    unlisted = [fields for fields, known in zip(ops[first:], is_listed[first:], strict=True) if not known]
    failures = engine.undo_all(engine.readable(unlisted), call.kernel)
    if failures:
        raise CniError(f"DEL of {call.key.label} is incomplete", "; ".join(failures))
    return ops[:first]


def check(call: Call) -> None:
    """CHECK of all."""
    if not boolean(call.conf.raw, "disableCheck"):
        for member in members(call):
            perform(member, run)


def gc(call: Call) -> None:
    """GC of all: the chain's records first, each as a whole."""
    if boolean(call.conf.raw, "disableGC"):
        return
    failures = collect_garbage(call)
    for member in members(call, failures):
        failures += call.run_all(lambda _: perform(member, run))  # noqa: B023  called at once
    call.finish_delete(failures)


def status(call: Call) -> None:
    """STATUS of all."""
    for member in members(call):
        perform(member, run)


PLUGIN = Plugin(CHAIN, add=add, delete=delete, check=check, gc=gc, status=status)
