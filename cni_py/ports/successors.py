"""Which attachment of the same container takes a host port over when its holder is DELeted, and how.

A file in the folder of the holder's record, /run/cni-py/attachments/<hex of the holder>/heirs/<hex of the successor>, written and
read under the lock of nftables.
"""

from cni_py import files
from cni_py.attachment.holders import HEX, record_of
from cni_py.attachment.locks import nftables_lock
from cni_py.attachment.records import fields_in, named_in
from cni_py.errors import CniError, IOFailure, os_error, warn
from cni_py.kernel.nf_tables import NftUnavailable
from cni_py.lean import os
from cni_py.nftables import ruleset
from cni_py.nftables.elements import commit
from cni_py.ports import claims
from cni_py.ports.claims import Claimant
from cni_py.ports.config import condition_id, vetted
from cni_py.ports.draft import Draft
from cni_py.ports.flows import forget_flows
from cni_py.ports.mapping import Mapping, parse_mappings
from cni_py.protocol import gojson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cni_py.attachment.context import Kernel
    from cni_py.attachment.naming import Attachment


class Heir:
    """An attachment, the mappings that it is to claim when a holder goes, and the conditions of its configuration by family."""

    __slots__ = ("conditions", "key", "mappings")

    def __init__(self, key: "Attachment", conditions: dict[int, str], mappings: "Sequence[Mapping]") -> None:
        self.key = key
        self.conditions = conditions
        self.mappings = mappings


def wait_for(holder: str, heir: Heir) -> None:
    """Enter an heir of `holder` (its hex), in place of what it waited for before. OSError."""
    folder = f"{files.run_dir()}/attachments/{holder}/heirs"
    files.make_folder(folder)
    fields: dict[str, gojson.Encodable] = {
        "network": heir.key.network,
        "containerID": heir.key.container_id,
        "ifname": heir.key.ifname,
        "ports": ", ".join(map(str, heir.mappings)),
        "conditions4": heir.conditions.get(4, ""),
        "conditions6": heir.conditions.get(6, ""),
    }
    files.write(f"{folder}/{heir.key.hex}", gojson.encode(fields, None).encode())


def wait_too(holder: str, who: "Attachment") -> None:
    """Make `who` an heir of `holder` for what portfwd serves, unless it is one already. OSError."""
    if not os.path.exists(f"{files.run_dir()}/attachments/{holder}/heirs/{who.hex}"):
        wait_for(holder, Heir(who, {}, ()))


def stop_waiting(holder: str, who: "Attachment") -> None:
    """`who` is no heir of `holder` any more; that it never was is as good."""
    _unlink(f"{files.run_dir()}/attachments/{holder}/heirs", who.hex)


def waiting_at(holder: str) -> list[Heir]:
    """The heirs of a holder (its hex), first come first. One that has no record any more was DELeted, and is left out."""
    folder = f"{files.run_dir()}/attachments/{holder}/heirs"
    try:
        names = [name for name in os.listdir(folder) if len(name) == HEX]
    except OSError:
        return []
    found = []
    for name in sorted(names, key=lambda name: _mtime(f"{folder}/{name}")):
        fields = fields_in(f"{folder}/{name}")
        key = named_in(fields)
        if key is not None and key.hex == name and record_of(name) is not None:
            conditions = {family: str(fields.get(f"conditions{family}", "")) for family in (4, 6)}
            found.append(Heir(key, conditions, _mappings(str(fields.get("ports", "")))))
    return found


def _mappings(text: str) -> list[Mapping]:
    """What an heir waits for; nothing where its file is damaged."""
    try:
        return parse_mappings(text.split(", ") if text else ())
    except ValueError:
        return []


def _mtime(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0  # gone since


def has_heirs(holder: "Attachment") -> bool:
    """Whether somebody waits, or waited."""
    return os.path.isdir(f"{holder.folder}/heirs")


def forget_heirs(holder: str) -> None:
    """Remove the folder of heirs of a holder, by its hex."""
    folder = f"{files.run_dir()}/attachments/{holder}/heirs"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        _unlink(folder, name)


def _unlink(folder: str, name: str) -> None:
    """Remove a file, its folder with the last one, and that of the attachment if nothing else is in it."""
    remove: Callable[[str], None] = os.unlink
    for path in (f"{folder}/{name}", folder, os.path.dirname(folder)):
        try:
            remove(path)
        except OSError:
            pass  # gone, or other files are still in it
        remove = os.rmdir


def sweep_ports(kernel: "Kernel", network: str, valid: "Iterable[Attachment]", only: str = "") -> None:
    """GC: take out the published ports of attachments of `network` that are not valid, record or not, and let heirs take over.

    With `only` those of one attachment, by its hex. CniError.
    """
    living = {key.hex for key in valid}
    with nftables_lock():
        draft = Draft(kernel.nft)
        try:
            evicted = {only} if only else claims.holders_in(draft, network) - living
            for hexed in evicted:
                claims.evict(draft, hexed)
        except NftUnavailable:
            return  # then nothing of ours can be there
        waiting = [heir for hexed in evicted for heir in waiting_at(hexed) if heir.key.hex not in evicted]
        for heir in waiting:
            promote(draft, heir)
        try:
            commit(kernel, draft.changes(), lambda: chains_of(kernel, waiting))
        except OSError as error:
            raise os_error("cannot remove elements of the nftables table cni_py", error) from error
        for hexed in evicted:
            forget_heirs(hexed)
    forget_flows(kernel, draft.taken_out(), added=False)


def mapping_chains(kernel: "Kernel", conditions: dict[int, str], mappings: "Iterable[Mapping]") -> str:
    """Text for the chains that mappings need, from words that may come from a file and are vetted again.

    A chain of shared ports is not made twice: nft 1.0.6 refuses its rules ("conflicting protocols specified") where the maps,
    which it declares by `typeof`, are in the kernel already. IOFailure.
    """
    texts = {}
    for mapping in mappings:
        family, condition = mapping.family, mapping.condition(conditions.get(mapping.family, ""))
        name = condition_id(family, condition)
        words = vetted([condition], f"conditionsV{family}")
        if mapping.share and not _is_made(kernel, f"shared{name or family}"):
            texts["shared", family, name] = ruleset.shared_chain(family, name or str(family), words)
        elif condition and not mapping.share:
            texts["", family, name] = ruleset.conditions_chain(family, name, words)
    return "".join(texts.values())


def _is_made(kernel: "Kernel", chain: str) -> bool:
    """Whether a chain is there, with its maps. IOFailure when somebody has deleted a part of it."""
    wanted = {chain, *ruleset.maps_of(chain)}
    there = wanted.intersection(kernel.nft.chains() + kernel.nft.sets())
    if there and there != wanted:
        lost = ", ".join(sorted(wanted - there))
        raise IOFailure(f"nftables table cni_py has lost {lost} of shared ports (`cni-py restore` puts it back)")
    return bool(there)


def chains_of(kernel: "Kernel", heirs: "Iterable[Heir]") -> str:
    """The same for what heirs wait for."""
    return "".join(mapping_chains(kernel, heir.conditions, heir.mappings) for heir in heirs)


def promote(draft: Draft, heir: Heir) -> None:
    """The heir gets what it waits for, or goes on waiting for another attachment of its container that holds it."""
    who = Claimant(heir.key, heir.conditions)
    waiting: dict[str, list[Mapping]] = {}
    for mapping in heir.mappings:
        try:
            holder = claims.obtain(draft, who, mapping)
        except CniError as error:  # a third party was quicker: this DEL must not fail for it
            warn(f"{heir.key.label} does not get {mapping}: {error}")
            continue
        if holder:
            waiting.setdefault(holder, []).append(mapping)
    for holder, parts in waiting.items():
        wait_for(holder, Heir(heir.key, heir.conditions, parts))
