"""Put back what the packet filters lost: by `nft flush ruleset`, a reloaded firewall, a deleted table.

The attachment records list what should exist. Each recorded operation on nftables or iptables is checked and, if something of
it is missing, applied again under the locks that an ADD takes. Ports that portfwd relays are asked for again as well: a service
that was started after the ADD learns of them here. Links, addresses and routes are not touched.
"""

import os
from collections import Counter
from collections.abc import Iterator

from cni_py import files
from cni_py.attachment import engine, holders, records
from cni_py.attachment.context import Kernel
from cni_py.attachment.engine import Op
from cni_py.attachment.locks import attachment_lock, nftables_lock
from cni_py.attachment.naming import Attachment
from cni_py.attachment.records import Record
from cni_py.commands.outcome import Outcome
from cni_py.errors import CniError, os_error
from cni_py.kernel import libnftables
from cni_py.kernel.nf_tables import BRIDGE, INET, TABLE, Change, Element, NftUnavailable, mark
from cni_py.nftables import ruleset
from cni_py.ports import host_clients, relay
from cni_py.protocol import gojson

PUBLISHING = ("PublishPorts", "PublishByIptables")
PORT_KEY = 8  # bytes at the end of a key: inet_proto . inet_service, each padded to 4
FAMILIES = {INET: "inet", BRIDGE: "bridge"}


class RestoreGuard(host_clients.AllowLoopbackClients):
    """The guard of the host's loopback. It looks at the tc filter itself: the note that it is there may be out of date."""

    address: str
    thorough = True


class Restored(Outcome):
    """Which operations were applied again for one plugin's part of an attachment."""

    __slots__ = ()

    def to_json(self) -> "dict[str, gojson.Encodable]":
        return {**super().to_json(), "putBack": self.done, "errors": [*self.errors]}


def restore_all() -> Iterator[Restored]:
    """Restore every attachment of this host's network namespace, the oldest first. NftUnavailable, CniError."""
    kernel = Kernel(Attachment("", "", ""), "")  # without a container: the operations touch the host's side only
    found = recorded()
    try:
        try:
            ruleset.has_table(kernel.nft)
        except NftUnavailable:
            if not any(_is_relayed(record) for record in found):
                raise
        else:
            with nftables_lock():
                mend_rules(kernel)
                recount_claims(kernel)
        for record in found:
            if record.host_cookie in (0, kernel.host_cookie):
                yield restore(record, kernel)
    finally:
        kernel.nft.close()
        kernel.host.close()


def recorded() -> list[Record]:
    """All records, the oldest first: of two attachments with the same port the older one gets it, and the other waits."""
    top = files.run_dir() + "/attachments"
    paths = [f"{top}/{folder}/{name}" for folder in files.listed(top) for name in files.listed(f"{top}/{folder}")]
    found = []
    for path in {path.rpartition(".")[0] for path in paths if path.endswith((".json", ".adding"))}:
        folder, _, plugin = path.rpartition("/")
        key = records.key_in(folder, plugin)
        record = records.load(key, plugin) if key is not None else None
        if record is not None:
            found.append(record)
    return sorted(found, key=_age)


def _age(record: Record) -> tuple[int, str]:
    """When the ADD succeeded, as a key to sort by; unfinished records come first."""
    try:
        return os.stat(f"{record.path}.json").st_mtime_ns, record.path
    except FileNotFoundError:
        return 0, record.path


def restore(record: Record, kernel: Kernel) -> Restored:
    """Put back what is missing of one record. Errors are in the outcome, so that the other records are restored, too."""
    key, plugin = record.key, record.plugin
    found = Restored(key, plugin)
    try:
        with attachment_lock(key, plugin):
            current = records.load(key, plugin)
            if current is None:
                found.skipped = "it was deleted meanwhile"
            elif not current.done:
                found.skipped = "its ADD is still running, or was killed"
            elif holders.is_dead(current):
                found.skipped = "its network namespace is gone"
            else:
                kernel.key = key
                _put_back(current, kernel, found)
    except CniError as error:
        found.errors.append(str(error))
    return found


def _put_back(record: Record, kernel: Kernel, found: Restored) -> None:
    for fields in record.ops:
        try:
            op = engine.op_from_json(fields)
            if isinstance(op, relay.RelayPorts) and op.is_missing(kernel):
                engine.apply_one(op, kernel)
                found.done.append(op.describe())
            for part in _filter_parts(op):
                if part.check(kernel) is not None:
                    engine.apply_one(part, kernel)
                    found.done.append(part.describe())
        except ValueError as error:
            found.errors.append(f"the attachment record {record.path}.json is damaged: {error}")
        except CniError as error:
            found.errors.append(str(error))
        except OSError as error:
            found.errors.append(str(os_error("cannot ask the kernel", error)))


def _is_relayed(record: Record) -> bool:
    """Whether portfwd relays ports of the attachment, which works without nf_tables."""
    return any(isinstance(fields, dict) and fields.get("op") == relay.RelayPorts.__name__ for fields in record.ops)


def _filter_parts(op: Op) -> Iterator[Op]:
    """The operation, if it changes a packet filter; before it the guard of the host's loopback, which no record lists.

    The guard is shared by all published ports of a bridge, so that no attachment owns it.
    """
    if not op.restorable or isinstance(op, relay.RelayPorts):
        return
    for address in getattr(op, "addresses", ()) if type(op).__name__ in PUBLISHING else ():
        # IPv4 only: IPv6 has no route_localnet. Where it is off, the guard's check() finds nothing missing.
        if ":" not in address:
            yield RestoreGuard(address=address.partition("/")[0])
    yield op


def mend_rules(kernel: Kernel) -> None:
    """Put back the constant rules of a table that still exists but was emptied (`nft flush table`). CniError.

    The rules of a chain for one subnet or condition follow from its name only in the operation that made it. If such a chain is
    empty, the table is deleted, and everything in it is made anew from the records.
    """
    for family, name in FAMILIES.items():
        try:
            if not ruleset.has_table(kernel.nft, family):
                # The table has the layout of another version: an operation adds elements only, and would not update it.
                if kernel.nft.dump("layout", family):
                    ruleset.ensure_table(kernel.nft, family)
                continue
        except NftUnavailable:  # a kernel without nf_tables for bridges: nothing of ours is there
            continue
        text = ruleset.table(family == BRIDGE)
        expected = _rules_in(text)
        rules = _rules_of(name)
        if any(count == 0 for chain, count in rules.items() if chain not in expected):
            libnftables.run(f"delete table {name} {TABLE}")
            kernel.nft.current.discard(family)  # it remembers which tables it has seen
        elif any(rules.get(chain) != count for chain, count in expected.items()):
            libnftables.run(text)


def recount_claims(kernel: Kernel) -> None:
    """Make each claim without a holder agree with the specific addresses of its port, where one of the two maps lost elements.

    claims{4,6} has an element for each published port. Its comment names the attachment that has the port on every address;
    without a comment its value counts the elements of specific{4,6} and conditional_specific{4,6} for that port. CniError.
    """
    changes = []
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
    try:
        kernel.nft.transaction(changes)
    except OSError as error:
        raise os_error("cannot count the published ports in the nftables table cni_py", error) from error


def _rules_in(text: str) -> dict[str, int]:
    """Chain -> number of rules in `text`, the commands that make a table."""
    chains = [line.split()[4] for line in text.splitlines() if line.startswith("add rule ")]
    return {chain: chains.count(chain) for chain in chains}


def _rules_of(family: str) -> dict[str, int]:
    """Chain -> number of rules in our table of that family ("inet", "bridge") now. CniError."""
    nft = libnftables.binding().Nftables()
    nft.set_json_output(True)
    status, text, refusal = nft.cmd(f"list table {family} {TABLE}")
    if status != 0:
        raise CniError(f"cannot read the nftables table {family} {TABLE}", str(refusal).strip())
    rules: dict[str, int] = {}
    document = gojson.decode(str(text).encode())
    entries = document.get("nftables") if isinstance(document, gojson.Object) else None
    for entry in entries if isinstance(entries, list) else ():
        for kind, value in entry.items() if isinstance(entry, gojson.Object) else ():
            if isinstance(value, gojson.Object) and kind in ("chain", "rule"):
                chain = str(value.get("name" if kind == "chain" else "chain"))
                rules[chain] = rules.get(chain, 0) + (kind == "rule")
    return rules
