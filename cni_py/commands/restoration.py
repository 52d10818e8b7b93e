"""Putting back what somebody took out of the packet filters: `nft flush ruleset`, a firewall that was reloaded, a deleted table.

The attachment records say what should be there. Each of their operations on nftables or iptables is looked at and, where
something of it is missing, applied again, under the locks that an ADD takes. So are the ports that portfwd relays: a service
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
    """The guard of the host's loopback, trusting nothing that was noted about it."""

    address: str
    thorough = True


class Restored:
    """What was found and done for one plugin's part of an attachment."""

    __slots__ = ("errors", "key", "plugin", "put_back", "skipped")

    def __init__(self, key: Attachment, plugin: str) -> None:
        self.key = key
        self.plugin = plugin
        self.put_back: list[str] = []  # operations in words
        self.skipped = ""  # why nothing was looked at
        self.errors: list[str] = []

    def to_json(self) -> "dict[str, gojson.Encodable]":
        """For `cni-py restore --json`."""
        return {
            "network": self.key.network,
            "containerID": self.key.container_id,
            "ifname": self.key.ifname,
            "plugin": self.plugin,
            "putBack": self.put_back,
            "skipped": self.skipped,
            "errors": self.errors,
        }


def restore_all() -> Iterator[Restored]:
    """Look after every attachment of this host namespace, in the order they were made. NftUnavailable, CniError."""
    kernel = Kernel(Attachment("", "", ""), "")  # the operations look at the host's side of it alone
    found = recorded()
    try:
        try:
            kernel.nft.has_table()
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
    """All records, oldest first: who published a port first holds it, and the other waits for it."""
    plugins = set()
    try:
        for folder in os.scandir(files.run_dir() + "/attachments"):
            plugins |= {name.rpartition(".")[0] for name in os.listdir(folder) if name.endswith((".json", ".adding"))}
    except FileNotFoundError:
        return []
    return sorted((record for plugin in sorted(plugins) for record in records.all_records(plugin)), key=_age)


def _age(record: Record) -> tuple[int, str]:
    try:
        return os.stat(f"{record.path}.json").st_mtime_ns, record.path
    except FileNotFoundError:
        return 0, record.path


def restore(record: Record, kernel: Kernel) -> Restored:
    """Put back what is missing of one record. Errors are in the answer: the others must not suffer."""
    key, plugin = record.key, record.plugin
    found = Restored(key, plugin)
    try:
        with attachment_lock(key, plugin):
            current = records.load(key, plugin)
            if current is None:
                found.skipped = "deleted meanwhile"
            elif not current.done:
                found.skipped = "its ADD is under way, or was killed"
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
                found.put_back.append(op.describe())
            for part in _nftables_parts(op):
                if part.check(kernel) is not None:
                    engine.apply_one(part, kernel)
                    found.put_back.append(part.describe())
        except ValueError as error:
            found.errors.append(f"the attachment record {record.path}.json is damaged: {error}")
        except CniError as error:
            found.errors.append(str(error))
        except OSError as error:
            found.errors.append(str(os_error("cannot look at the kernel", error)))


def _is_relayed(record: Record) -> bool:
    """Whether portfwd has a part in it: such an attachment may need nothing of nf_tables."""
    return any(isinstance(fields, dict) and fields.get("op") == relay.RelayPorts.__name__ for fields in record.ops)


def _nftables_parts(op: Op) -> Iterator[Op]:
    """The operation, if it is about a packet filter.

    With it the guard of the host's loopback, which is shared and so not recorded.
    """
    if type(op).__module__ not in engine.FILTERING:
        return
    for address in getattr(op, "addresses", ()) if type(op).__name__ in PUBLISHING else ():
        if ":" not in address:  # its check() is content where route_localnet is off
            yield RestoreGuard(address=address.partition("/")[0])
    yield op


def mend_rules(kernel: Kernel) -> None:
    """Put the constant rules back where a table is still there but was emptied (`nft flush table`). CniError.

    A chain of a subnet or condition that lost its rules cannot be told from what made it: then the table goes, and all
    of it is made anew from the records.
    """
    for family, name in FAMILIES.items():
        try:
            if not kernel.nft.has_table(family):
                if kernel.nft.dump("layout", family):  # another version's, which elements alone do not bring up to date
                    ruleset.ensure_table(kernel.nft, family)
                continue
        except NftUnavailable:  # no bridge family: then nothing of ours can be there
            continue
        text = ruleset.table(family == BRIDGE)
        expected = _rules_in(text)
        rules = _rules_of(name)
        if any(count == 0 for chain, count in rules.items() if chain not in expected):
            libnftables.run(f"delete table {name} {TABLE}")
            kernel.nft.current.discard(family)
        elif any(rules.get(chain) != count for chain, count in expected.items()):
            libnftables.run(text)


def recount_claims(kernel: Kernel) -> None:
    """Let a claim count again the specific addresses of its port, where one of the two maps lost elements."""
    changes = []
    for family in (4, 6):
        kinds = (f"specific{family}", f"conditional_specific{family}")
        actual = Counter(element.key[-PORT_KEY:] for kind in kinds for element in kernel.nft.dump(kind))
        claims = {element.key: element for element in kernel.nft.dump(f"claims{family}")}
        for key in actual.keys() | claims.keys():
            claim = claims.get(key)
            if claim is not None and (claim.comment or claim.value == mark(actual[key])):
                continue
            if claim is not None:
                changes.append(Change(False, f"claims{family}", [claim]))
            if actual[key]:
                changes.append(Change(True, f"claims{family}", [Element(key, mark(actual[key]))]))
    try:
        kernel.nft.transaction(changes)
    except OSError as error:
        raise os_error("cannot count the published ports in the nftables table cni_py", error) from error


def _rules_in(text: str) -> dict[str, int]:
    """How many rules nftrules gives each chain of a table."""
    chains = [line.split()[4] for line in text.splitlines() if line.startswith("add rule ")]
    return {chain: chains.count(chain) for chain in chains}


def _rules_of(family: str) -> dict[str, int]:
    """How many each chain of the table has now."""
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
