"""Garbage collection of the whole host: judge every trace, and remove what is proved to be nobody's.

A dead attachment's things are removed while the locks of all our plugins for that attachment are held, after its records were
read again: an ADD of the same name that has begun meanwhile holds a lock, or has left a record of another namespace. An ADD that
was killed is dead whether its namespace lives or not: it would hold the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cni_py import files
from cni_py.attachment import gc, records
from cni_py.attachment.call import Call
from cni_py.attachment.context import Kernel
from cni_py.attachment.locks import SAFELY, Lock
from cni_py.attachment.naming import HEX, Attachment
from cni_py.commands import go_traces, own_traces
from cni_py.commands.traces import FIRST, Thing, Trace, Traces
from cni_py.errors import CniError, TryAgainLater
from cni_py.host import census, containers, spaces
from cni_py.host.liveness import Claim, Verdict, View, judge_all, owned
from cni_py.host.printable import plain
from cni_py.kernel.nf_tables import NftUnavailable
from cni_py.nftables import elements, ruleset
from cni_py.protocol.netconf import NetConf
from cni_py.run import MODULES

SOURCES: tuple[tuple[str, Callable[[Traces], None]], ...] = (
    ("the attachment records", own_traces.of_records),
    ("attachment records that cannot be read", own_traces.of_damaged_records),
    ("the interfaces", own_traces.of_links),
    ("the nftables table cni_py", own_traces.of_elements),
    ("portfwd", own_traces.of_relays),
    ("the index of published ports", own_traces.of_index),
    ("libcni's cache", go_traces.of_cache),
    ("host-local's directories", own_traces.of_reservations),
    ("iptables", go_traces.of_iptables),
    ("the Go plugins' nftables tables", go_traces.of_tables),
    ("the ifb devices", go_traces.of_ifbs),
)
KILLED = "its ADD was killed: no call holds the attachment's lock"


@dataclass(frozen=True, slots=True)
class Item:
    """A line of the output. `deed`: "removed", "left" (its owner is not proved to be dead) or "failed"."""

    deed: str
    owner: str  # network/containerID/ifname, or "" for what no attachment owns
    what: str
    why: str
    network: str = ""

    def to_json(self) -> dict[str, str]:
        return {"owner": self.owner, "network": self.network, "what": self.what, "why": self.why}


def collect(network: str, *, dry_run: bool) -> Iterator[Item]:
    """Remove (with `dry_run` only tell) what no living attachment owns; of one network, or of all ("")."""
    kernel = Kernel(Attachment("", "", ""), "")
    traces, verdicts, problems = look(kernel)
    yield from (Item("left", "", name, f"it cannot be looked at: {why}") for name, why in problems)
    gone = set()
    for trace in traces.found.values():
        if network not in ("", trace.key.network) or trace.elsewhere:
            continue
        live, why = verdicts[trace.hex]
        if live == "dead":
            gone.add(trace.hex)
            yield from bury(trace, traces.owners(trace), why, dry_run=dry_run)
            continue
        yield from unfinished(trace, dry_run=dry_run)
        if live == "unknown" and trace.things:
            shown = ", ".join(dict.fromkeys(filter(None, (thing.what for thing in trace.things))))
            yield Item("left", trace.label, shown or "an entry of the index of published ports", why, trace.key.network)
    yield from reservations_of_nobody(network, dry_run=dry_run)
    if not network:
        yield from unused(kernel, gone, dry_run=dry_run)
        if not dry_run:
            sweep_files(kernel)
    kernel.leave()


def look(kernel: Kernel) -> tuple[Traces, dict[str, Verdict], list[tuple[str, str]]]:
    """All traces; the verdict for each, by hex; what could not be looked at, and why."""
    traces = Traces(kernel)
    problems = []
    for name, source in SOURCES:
        try:
            source(traces)
        except NftUnavailable:
            continue  # then nothing of ours can be there
        except (CniError, OSError) as error:
            problems.append((name, str(error)))
    for trace in [trace for trace in traces.found.values() if trace.here]:
        for owner in traces.owners(trace):
            owner.here = True
    busy = working()
    claims = {trace.hex: trace.claim(busy) for trace in traces.found.values()}
    answers = containers.containers()
    seen = census.take()
    traces.in_use = {address for space in seen.spaces[1:] for one in space.interfaces for address in one.addresses}
    return traces, judged(traces, claims, View(seen, answers, owned(claims.values(), seen))), problems


def working() -> frozenset[str]:
    """The attachments (their hex) that a call holds a lock of."""
    found = set()
    for name in files.listed(f"{files.run_dir()}/lock"):
        if not name.startswith(gc.LOCK_PREFIX):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(files.lock_path(name), os.O_RDONLY | SAFELY)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found.add(name[len(gc.LOCK_PREFIX) :][:HEX])
            finally:
                os.close(fd)
    return frozenset(found)


def judged(traces: Traces, claims: dict[str, Claim], view: View) -> dict[str, Verdict]:
    """The verdict for each trace, by hex."""
    whole = judge_all(claims.values(), view)
    found = {}
    for trace in traces.found.values():
        found[trace.hex] = together([whole[other.hex] for other in traces.owners(trace)])
        if found[trace.hex][0] == "dead" and trace.foreign and not trace.ours:
            found[trace.hex] = (
                "unknown",
                f"its network has the plugin {trace.foreign}, whose DEL is its runtime's to run",
            )
        if found[trace.hex][0] == "dead" and not trace.cookie and spaces.key_at(trace.netns):
            inside = go_traces.inside(trace)
            trace.things += [inside] if inside is not None else []
    return found


def together(verdicts: list[Verdict]) -> Verdict:
    """The verdict for what several attachments may own: the liveliest."""
    return min(verdicts, key=lambda verdict: ("alive", "unknown", "dead").index(verdict[0]))


@contextlib.contextmanager
def held(owners: list[Trace]) -> Iterator[None]:
    """The attachments' locks of all plugins, without waiting. TryAgainLater if a call has one."""
    with contextlib.ExitStack() as stack:
        for owner in owners:
            for plugin in sorted(MODULES):
                path = files.lock_path(f"{gc.LOCK_PREFIX}{owner.hex}-{plugin}")
                stack.enter_context(Lock(path, owner.label, 0, remove=True, needed=False))
        yield


def is_same(trace: Trace) -> bool:
    """Whether the attachment is still the one that was judged: no record of another namespace, nothing new at its path."""
    found = records.of_attachment(trace.key) if trace.key.container_id else []
    if any(record.container_cookie != trace.cookie for record in found):
        return False
    return bool(trace.cookie) or not trace.netns or spaces.leads_to(trace.netns) == trace.led


def bury(trace: Trace, owners: list[Trace], why: str, *, dry_run: bool) -> Iterator[Item]:
    """Remove what a dead attachment has; `owners`: see Traces.owners()."""
    things = sorted(trace.things, key=lambda thing: thing.order)
    if trace.foreign:
        yield from (
            Item("left", trace.label, thing.what, f"its network has the plugin {trace.foreign}", trace.key.network)
            for thing in things
            if not thing.ours
        )
        things = [thing for thing in things if thing.ours]
    try:
        with contextlib.nullcontext() if dry_run else held(owners):
            if not dry_run and not all(map(is_same, owners)):
                yield Item("left", trace.label, "all it has", "it was connected again meanwhile", trace.key.network)
                return
            yield from each(trace, things, why, dry_run=dry_run)
    except TryAgainLater:
        yield Item("left", trace.label, "all it has", "a plugin is working on it", trace.key.network)
    except CniError as error:  # the lock files cannot be made
        yield Item("failed", trace.label, "all it has", str(error), trace.key.network)


def each(trace: Trace, things: list[Thing], why: str, *, dry_run: bool) -> Iterator[Item]:
    """Remove one after the other. After a failure the address stays reserved: something may still lead to it."""
    failed = False
    for thing in things:
        if failed and thing.order != FIRST:
            continue
        try:
            if not dry_run:
                thing.remove()
        except (CniError, OSError) as error:
            failed = True
            yield Item("failed", trace.label, thing.what, str(error), trace.key.network)
            continue
        if thing.what:
            yield Item("removed", trace.label, thing.what, why, trace.key.network)


def unfinished(trace: Trace, *, dry_run: bool) -> Iterator[Item]:
    """Undo what killed ADDs of a living attachment made: nobody will ever hear of it."""
    for plugin, thing in trace.unfinished.items():
        path = files.lock_path(f"{gc.LOCK_PREFIX}{trace.hex}-{plugin}")
        try:
            with Lock(path, trace.label, 0, remove=True, needed=False):
                record = records.own(trace.key, plugin)
                if record is not None and not record.done:
                    yield from each(trace, [thing], KILLED, dry_run=dry_run)
        except TryAgainLater:
            continue  # the call lives


def reservations_of_nobody(network: str, *, dry_run: bool) -> Iterator[Item]:
    """Addresses that were reserved before this boot, or by a call that was killed before it wrote for whom."""
    for directory in own_traces.directories():
        name = os.path.basename(directory)
        if network not in ("", name):
            continue
        try:
            found = own_traces.ended(directory)
            kept = own_traces.give_back(directory) if found and not dry_run else set()
        except CniError as error:
            yield Item("failed", "", f"addresses of network {name}", str(error), name)
            continue
        for address, why in found.items():
            if address not in kept:
                yield Item("removed", "", f"address {address} of network {name}", why, name)


def unused(kernel: Kernel, gone: set[str], *, dry_run: bool) -> Iterator[Item]:
    """The chains of subnets and conditions that no element leads to, and the guards of interfaces that are gone."""
    try:
        chains = [name for name in kernel.nft.chains() if name.startswith(ruleset.MADE_WHEN_NEEDED)]
        used = set(leading(kernel, gone if dry_run else set()))
        idle = sorted(name for name in chains if name not in used)
        guards = elements.guards_of_nothing(kernel)
        if (idle or guards) and not dry_run:
            elements.sweep_chains(kernel)
            idle = sorted(set(idle) - set(kernel.nft.chains()))
    except NftUnavailable:
        return
    except (CniError, OSError) as error:
        yield Item("failed", "", "nftables chains", str(error))
        return
    yield from (Item("removed", "", f"nftables chain {name}", "no container needs it") for name in idle)
    for guard in guards:
        name = plain(os.fsdecode(guard.key.rstrip(b"\0")))
        yield Item("removed", "", f"nftables element of {elements.GUARDS}", f"there is no interface {name}")


def leading(kernel: Kernel, gone: set[str]) -> Iterator[str]:
    """The chains that elements lead to, but for those of attachments that are gone."""
    for kind in ("hairpin", "masquerade", "conditional_any", "conditional_specific"):
        for family in (4, 6):
            for element in kernel.nft.dump(f"{kind}{family}"):
                if isinstance(element.value, str) and element.comment[:HEX] not in gone:
                    yield element.value


def sweep_files(kernel: Kernel) -> None:
    """Remove half-written records, empty folders and lock files that nobody holds: no attachment is in them."""
    conf = NetConf.parse(b'{"cniVersion": "1.1.0", "name": "cni-py-gc", "type": "bridge"}')
    call = Call("GC", "bridge", conf)
    call.kernel = kernel
    for folder in files.listed(f"{files.run_dir()}/attachments"):
        for plugin in MODULES if len(folder) == HEX else ():
            gc.sweep_folder(call, plugin, folder, is_valid=True)
    for name in files.listed(f"{files.run_dir()}/lock"):
        if name.startswith(gc.LOCK_PREFIX):
            gc.sweep_lock(name)
