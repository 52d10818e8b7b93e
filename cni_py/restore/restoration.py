"""Put back what attachments lost: by `nft flush ruleset`, a reloaded firewall, a deleted table, bridge or address.

The attachment records list what should exist. Each recorded operation is checked and, if something of it is missing, applied
again, under the locks that an ADD takes:

    links      a deleted bridge, its addresses, its ports; the gateway's address of ptp
    filters    operations on nftables and iptables: all attachments' in one transaction for each table (ledger.py), one
               iptables-restore for each family
    portfwd    ports that it relays: a service that was started after the ADD learns of them here
    firewalld  the zone of their addresses (sources.py)

While the locks of nftables and iptables are held, no DEL can take out what its ADD has made. So it is enough to see that no call
has an attachment's own lock at that time: one that takes it later also takes out what was put back; one that has it is waited for
in the end.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from cni_py import files
from cni_py.attachment import engine, holders, records
from cni_py.attachment.context import Kernel
from cni_py.attachment.engine import Op
from cni_py.attachment.locks import Holding, Lock, attachment_lock, is_at_work, nftables_lock
from cni_py.attachment.naming import Attachment
from cni_py.attachment.records import Record
from cni_py.errors import CniError, os_error, warn
from cni_py.firewalld.sources import BindSource
from cni_py.iptables import tool
from cni_py.kernel import inet, libnftables, sysctl
from cni_py.kernel.nf_tables import BRIDGE, TABLE, Change, Element, NftUnavailable, mark
from cni_py.nftables import completeness, ruleset
from cni_py.nftables.completeness import FAMILIES
from cni_py.ports import host_clients, relay
from cni_py.ports.flows import forget_flows
from cni_py.restore import links, sources
from cni_py.restore.ledger import Ledger
from cni_py.restore.outcome import Restored

PUBLISHING = ("PublishPorts", "PublishByIptables")
PORT_KEY = 8  # bytes at the end of a key: inet_proto . inet_service, each padded to 4
UNFINISHED = "its ADD is still running, or was killed"
DELETED = "it was deleted meanwhile"
DEAD = "its network namespace is gone"
BUSY = "an ADD or DEL of it is under way"
GONE = "nothing that it names can be put back: start the container anew"


class Draft(Kernel):
    """The kernel as operations see it that are put back together: our tables in a ledger, the links in one picture.

    `opened` are sysctls to be set once what guards them is in force, `guarded` the interfaces whose guard was looked at.
    """

    __slots__ = ("guarded", "ledger", "opened", "picture", "touched")

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(Attachment("", "", ""), "")
        self.flows = []
        self.ledger = Ledger(kernel.nft)
        self.picture = links.Picture()
        self.touched = links.Touched()
        self.opened: list[str] = []
        self.guarded: set[tuple[int, bool]] = set()

    @property
    def nft(self) -> Ledger:
        return self.ledger

    @property
    def host(self) -> links.Picture:
        return self.picture


class RestoreGuard(host_clients.AllowLoopbackClients):
    """The guard of the host's loopback, and the sysctl that it is for: once for each interface.

    It looks at the tc filter itself: the note that it is there may be out of date.
    """

    address: str
    opens: bool  # whether the containers' published ports are to be reached from 127.0.0.0/8
    thorough = True

    def check(self, kernel: Kernel) -> str | None:
        assert isinstance(kernel, Draft)
        link = host_clients.interface_towards(kernel.host, self.packed)
        if link is None or (link.index, self.opens) in kernel.guarded:
            return None
        kernel.guarded.add((link.index, self.opens))
        if self.opens and not host_clients.is_open(link):
            return f"127.0.0.0/8 of the host does not reach {link.name}"
        return super().check(kernel)

    def apply(self, kernel: Kernel) -> bool:
        assert isinstance(kernel, Draft)
        link = host_clients.interface_towards(kernel.host, self.packed)
        if link is None:
            return False
        self.guard(kernel, link)
        if self.opens and not host_clients.is_open(link):
            kernel.opened.append(host_clients.route_localnet(link))
        return True


def restore_all(
    *, wait: bool = True, mended: list[str] | None = None, unread: list[str] | None = None
) -> list[Restored]:
    """Restore every attachment of this host's network namespace, the oldest first. NftUnavailable, CniError.

    `wait` False: attachments that a call works on at this moment are left to it. `mended` takes what was put back of the tables
    themselves, in words; `unread` a sentence for each record that does not say whose it is.
    """
    kernel = Kernel(Attachment("", "", ""), "")  # without a container: the operations touch the host's side only
    try:
        try:
            ruleset.has_table(kernel.nft)
        except NftUnavailable:
            if not any(_is_relayed(record) or sources.is_bound(record) for record in recorded()):
                raise
        run = Run(kernel)
        found = run.all()
        if mended is not None:
            mended += run.mended
        if unread is not None:
            unread += [
                f"the attachment record {path} is damaged, and does not say whose it is; {GONE}" for path in run.unread
            ]
        for one in found if wait else ():
            if one.skipped == BUSY:
                one.skipped = ""
                with attachment_lock(one.key, one.plugin):
                    Run(kernel).of(one)
        return found
    finally:
        kernel.nft.close()
        kernel.host.close()


def recorded(unread: list[str] | None = None) -> list[Record]:
    """All records, the oldest first: of two attachments with the same port the older one gets it, and the other waits.

    Whose a damaged one is another record of the same attachment says; `unread` takes the paths of those without another.
    """
    top = files.run_dir() + "/attachments"
    found = []
    for folder in files.listed(top):
        names = [name for name in files.listed(f"{top}/{folder}") if name.endswith((".json", ".adding"))]
        those = {
            plugin: records.at(f"{top}/{folder}", plugin) for plugin in {name.rpartition(".")[0] for name in names}
        }
        key = next((record.key for record in those.values() if record is not None), None)
        for plugin, readable in those.items():
            record = readable or (records.own(key, plugin) if key is not None else None)
            if record is not None:
                found.append((_age(record), record))
            elif unread is not None and key is None:
                paths = [f"{top}/{folder}/{name}" for name in names if name.rpartition(".")[0] == plugin]
                unread += filter(os.path.exists, paths)  # a DEL may have removed it meanwhile
    return [record for _, record in sorted(found, key=lambda one: one[0])]


def _age(record: Record) -> tuple[int, str]:
    """When the ADD succeeded, as a key to sort by; unfinished records come first."""
    try:
        return os.stat(f"{record.path}.json").st_mtime_ns, record.path
    except FileNotFoundError:
        return 0, record.path


def restore(record: Record, kernel: Kernel) -> Restored:
    """Put back what is missing of one record. Errors are in the outcome."""
    found = Restored(record.key, record.plugin)
    try:
        with attachment_lock(record.key, record.plugin):
            Run(kernel).of(found)
    except CniError as error:
        found.errors.append(str(error))
    return found


class Run:
    """One look at many attachments."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.mended: list[str] = []  # of the tables themselves
        self.unread: list[str] = []  # paths of records that do not say whose they are

    def all(self) -> list[Restored]:
        """Every attachment of this host. CniError."""
        with Holding(nftables_lock()), Holding(tool.iptables_lock()) as lock:
            known = [one for one in recorded(self.unread) if one.host_cookie in (0, self.kernel.host_cookie)]
            found = [(record, outcome_of(record)) for record in known]
            for record, outcome in found:
                if not outcome.skipped and is_at_work(record.key, record.file):
                    outcome.skipped = BUSY
            self._filters([one for one in found if not one[1].skipped], lock, whole=True)
        concerned = [one for one in found if not one[1].skipped]
        self._relays(concerned, locked=False)
        sources.put_back(concerned, locked=False)
        for record, outcome in concerned:
            _note_damage(record, outcome)
        return [outcome for _, outcome in found]

    def of(self, outcome: Restored) -> None:
        """One attachment, whose lock is held. CniError."""
        record = records.load(outcome.key, outcome.plugin)
        outcome.skipped = why_not(record)
        if record is not None and not outcome.skipped:
            with Holding(nftables_lock()), Holding(tool.iptables_lock()) as lock:
                self._filters([(record, outcome)], lock, whole=False)
            self._relays([(record, outcome)], locked=True)
            sources.put_back([(record, outcome)], locked=True)
            _note_damage(record, outcome)

    def _filters(self, found: "Sequence[tuple[Record, Restored]]", lock: Lock, *, whole: bool) -> None:
        """Links and packet filters, in one transaction; where that is refused, without those that it is refused for."""
        try:
            self._together(found, lock, whole=whole)
        except (CniError, OSError) as error:
            if len(found) == 1:
                _note_error(found[0][1], error)
            elif found:
                for _, outcome in found:
                    outcome.errors.clear()
                middle = len(found) // 2
                for half in (found[:middle], found[middle:]):
                    self._filters(half, lock, whole=False)
            else:
                raise

    def _together(self, found: "Sequence[tuple[Record, Restored]]", lock: Lock, *, whole: bool) -> None:
        if whole:
            self.mended += mend_rules(self.kernel)
        draft = Draft(self.kernel)
        with closing(draft.picture), tool.Batch() as batch:
            if whole:
                recount_claims(draft)
            # The address last: with it comes the route, and who is asked for its MAC before its port forwards is asked again
            # only a second later.
            ports = [_put_back(record, draft, outcome, _first(record, draft)) for record, outcome in found]
            rest = [_put_back(record, draft, outcome, _then(record, draft)) for record, outcome in found]
            batch.commit(lock)
            draft.ledger.commit()
            for (_, outcome), *texts in zip(found, ports, rest, strict=True):
                outcome.done += [text for each in texts for text in each]
            _finish(draft, self.kernel)

    def _relays(self, found: "Sequence[tuple[Record, Restored]]", *, locked: bool) -> None:
        """Ask portfwd for what it lacks: the list is read once."""
        relayed = [(record, outcome) for record, outcome in found if _is_relayed(record)]
        try:
            service = relay.Service.connect(relay.AUTO_S) if relayed else None
            if service is None:
                return
            with service:
                there = {str(one.get("id")) for one in service.mappings()}
        except CniError as error:
            for _, outcome in relayed:
                _note_error(outcome, error)
            return
        for record, outcome in relayed:
            for op in engine.listed(record, relay.RelayPorts):
                if any(str(asked["id"]) not in there for asked in op.named(record.key)):
                    self._relay(record, outcome, op, locked=locked)

    def _relay(self, record: Record, outcome: Restored, op: relay.RelayPorts, *, locked: bool) -> None:
        self.kernel.key = record.key
        try:
            if locked:
                engine.apply_one(op, self.kernel)
            else:
                with attachment_lock(record.key, record.file):
                    if records.load(record.key, record.plugin) is None:
                        return
                    engine.apply_one(op, self.kernel)
            outcome.done.append(op.describe())
        except CniError as error:
            _note_error(outcome, error)


def outcome_of(record: Record) -> Restored:
    """An outcome that says, as far as it is known beforehand, why nothing is done."""
    found = Restored(record.key, record.plugin)
    found.skipped = why_not(record)
    return found


def why_not(record: Record | None) -> str:
    """Why an attachment is left out, "" when it is not."""
    if record is None:
        return DELETED
    if not record.done:
        return UNFINISHED
    return DEAD if holders.is_dead(record) else ""


def _note_damage(record: Record, outcome: Restored) -> None:
    """Of a record that cannot be read nothing is put back, and that is not success."""
    if record.damage:
        outcome.errors.append(f"the attachment record is damaged ({record.damage}); {GONE}")


def _note_error(outcome: Restored, error: Exception) -> None:
    outcome.errors.append(str(error if isinstance(error, CniError) else os_error("cannot ask the kernel", _os(error))))


def _os(error: Exception) -> OSError:
    return error if isinstance(error, OSError) else OSError(str(error))


def _first(record: Record, draft: Draft) -> Iterator[object]:
    """The entries of a record for its bridge and its port."""
    for fields in record.shared:
        if _kind(fields) in links.OF_PORTS or (_kind(fields) == links.OF_BRIDGE and draft.touched.is_new(fields)):
            yield fields


def _then(record: Record, draft: Draft) -> Iterator[object]:
    """All others. What attachments share is looked at once."""
    for fields in record.shared:
        if _kind(fields) in links.OF_ADDRESSES or (
            _kind(fields) not in (*links.OF_PORTS, links.OF_BRIDGE) and draft.touched.is_new(fields)
        ):
            yield fields
    yield from record.ops


def _kind(fields: object) -> str:
    return str(fields.get("op")) if isinstance(fields, dict) else ""


def _put_back(record: Record, draft: Draft, outcome: Restored, entries: Iterable[object]) -> list[str]:
    """Apply what is missing of some entries of a record; returns it in words."""
    draft.key = record.key
    done: list[str] = []
    for fields in entries:
        try:
            if engine.class_in(fields) in (relay.RelayPorts, BindSource):
                continue  # by others than the packet filters
            op = engine.op_from_json(fields)  # also of those that are not put back: a damaged record is told
            for part in _parts(op) if op.restorable else ():
                missing = links.lost(part, draft, draft.touched)
                # What is not lost on links stays unchecked: the interface may be gone, which only an ADD makes
                if missing is None and (not _is_of_filter(part) or part.check(draft) is None):
                    continue
                engine.apply_one(missing or part, draft)
                done.append((missing or part).describe())
                if missing is not None:
                    links.note(missing, draft.touched)
        except ValueError as error:
            outcome.errors.append(f"the attachment record {record.path}.json is damaged: {error}")
        except (CniError, OSError) as error:
            _note_error(outcome, error)
    return done


def _is_of_filter(op: Op) -> bool:
    return op.owned or isinstance(op, RestoreGuard)


def _parts(op: Op) -> Iterator[Op]:
    """The operation, if it is put back; before it the guard of the host's loopback, which no record lists.

    The guard is shared by all published ports of a bridge, so that no attachment owns it.
    """
    if type(op).__name__ in PUBLISHING:
        for address in getattr(op, "addresses", ()):
            # IPv4 only: IPv6 has no route_localnet
            if ":" not in address:
                yield RestoreGuard(address=address.partition("/")[0], opens=getattr(op, "clients", "") != "none")
    yield op


def _finish(draft: Draft, kernel: Kernel) -> None:
    """What comes once the rules are in force."""
    for name in draft.touched.links:
        link = draft.host.link(name)
        if link is not None:
            inet.forget_unresolved(draft.host, link.index)
    for key in draft.opened:
        try:
            sysctl.write(key, "1")
        except OSError as error:
            warn(f"cannot set net.{key.replace('/', '.')}: {error.strerror}")
    for added in (True, False):
        mappings = [mapping for mapping, was_added in draft.flows or () if was_added is added]
        forget_flows(kernel, mappings, added=added)


def _is_relayed(record: Record) -> bool:
    """Whether portfwd relays ports of the attachment, which works without nf_tables."""
    return any(isinstance(fields, dict) and fields.get("op") == relay.RelayPorts.__name__ for fields in record.ops)


def mend_rules(kernel: Kernel) -> list[str]:
    """Put back the constant rules and sets of a table that still exists but lost some (`nft flush table`). Says which. CniError.

    Where a chain made when needed has lost its rules, the table is deleted, and everything in it is made anew from the records.
    """
    mended = []
    for family, name in FAMILIES.items():
        try:
            if not ruleset.has_table(kernel.nft, family):
                # The table has the layout of another version: an operation adds elements only, and would not update it.
                if kernel.nft.dump("layout", family):
                    ruleset.ensure_table(kernel.nft, family)
                continue
            constant, made = completeness.of_kernel(kernel.nft, family)
            constant += completeness.of_others(family == BRIDGE, kernel.nft.rules(family))
        except NftUnavailable:  # no nf_tables, or none for bridges: nothing of ours is there
            continue
        if made:
            libnftables.run(f"delete table {name} {TABLE}")
            kernel.nft.current.discard(family)  # it remembers which tables it has seen
        elif constant:
            libnftables.run(ruleset.table(family == BRIDGE))
        if lost := [*constant, *made]:
            mended.append(f"table {name} {TABLE}: {completeness.listed(lost)}")
    return mended


def recount_claims(kernel: Kernel) -> None:
    """Make each claim without a holder agree with the specific addresses of its port, where one of the two maps lost elements.

    claims{4,6} has an element for each published port. Its comment names the attachment that has the port on every address;
    without a comment its value counts the elements of specific{4,6} and conditional_specific{4,6} for that port. CniError.
    """
    changes = []
    try:
        for family in (4, 6):
            kinds = (f"specific{family}", f"conditional_specific{family}")
            actual = Counter(element.key[-PORT_KEY:] for kind in kinds for element in kernel.nft.dump(kind))
            claims = {element.key: element for element in kernel.nft.dump(f"claims{family}")}
            for key in actual.keys() | claims.keys():
                claim = claims.get(key)
                if claim is not None and (claim.comment or claim.value == mark(actual[key])):
                    continue
                # Adding a key that has another value is EBUSY (nft_add_set_elem): it is deleted first, in the same transaction.
                if claim is not None:
                    changes.append(Change(False, f"claims{family}", [claim]))
                if actual[key]:
                    changes.append(Change(True, f"claims{family}", [Element(key, mark(actual[key]))]))
        kernel.nft.transaction(changes)
    except NftUnavailable:
        return  # then nothing of ours can be there
    except OSError as error:
        raise os_error("cannot count the published ports in the nftables table cni_py", error) from error


def attachments(outcomes: Iterable[Restored]) -> int:
    """How many attachments the outcomes are of."""
    return len({one.key.hex for one in outcomes})
