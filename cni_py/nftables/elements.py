"""Elements of our nftables tables, each with its attachment in its comment: transactions, single elements, sweeps of GC."""

import errno

from cni_py.attachment.locks import nftables_lock
from cni_py.attachment.naming import HEX
from cni_py.errors import os_error
from cni_py.kernel.nf_tables import BRIDGE, INET, Change, Element, NftUnavailable, ifname_key
from cni_py.nftables import ruleset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cni_py.attachment.context import Kernel
    from cni_py.attachment.naming import Attachment

GUARDS = "local_links"  # the set of interfaces that must not reach the host's loopback


def commit(kernel: "Kernel", changes: "Sequence[Change]", chains: "Callable[[], str]") -> None:
    """Send a transaction. OSError, CniError.

    If the kernel answers ENOENT (a chain or map is missing, the table was flushed), create what is missing, with the text of
    `chains`, and send it once more; at the next ENOENT, with the constant part of the table, of which somebody deleted a map.
    """
    if _is_sent(kernel, changes):
        return
    families = {change.family for change in changes}
    kernel.nft.current.clear()
    for family in families:
        ruleset.ensure_table(kernel.nft, family)
    text = chains()
    if text:
        kernel.nft.make(text)
    if not _is_sent(kernel, changes):
        for family in families:
            kernel.nft.make(ruleset.table(family == BRIDGE))
        kernel.nft.transaction(changes)


def _is_sent(kernel: "Kernel", changes: "Sequence[Change]") -> bool:
    """Send a transaction; False when the kernel answers ENOENT. OSError."""
    try:
        kernel.nft.transaction(changes)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def put(kernel: "Kernel", set_name: str, element: Element, chain: str = "", family: int = INET) -> bool:
    """Put in one element, in place of one that another attachment left. False when it is there already. OSError, CniError."""
    with nftables_lock():
        ruleset.ensure_table(kernel.nft, family)
        before = kernel.nft.get(set_name, (element.key,), family).get(element.key)
        if before == element:
            return False
        changes = [Change(False, set_name, [before], family)] if before is not None else []
        commit(kernel, [*changes, Change(True, set_name, [element], family)], lambda: chain)
    return True


def take(kernel: "Kernel", set_name: str, key: bytes, family: int = INET) -> None:
    """Take out one element if its comment names this attachment. OSError."""
    with nftables_lock():
        try:
            found = kernel.nft.get(set_name, (key,), family).get(key)
        except NftUnavailable:
            return  # then nothing of ours can be there
        if found is not None and found.comment[:HEX] == kernel.key.hex:
            kernel.nft.transaction([Change(False, set_name, [found], family)])


def sweep(
    kernel: "Kernel", network: str, valid: "Iterable[Attachment]", *sets: tuple[str, int], only: str = ""
) -> None:
    """GC: take out the elements of attachments of `network` that are not valid, record or not, from `sets` of a table.

    With `only` (DEL, whose record is lost) those of one attachment, by its hex.
    """
    living = {key.hex for key in valid}
    if only and not _is_there(kernel, {family for _, family in sets}):
        return  # not even a lock file is made
    with nftables_lock():
        changes = []
        try:
            for set_name, family in sets:
                stale = [
                    element
                    for element in kernel.nft.dump(set_name, family)
                    if (
                        element.comment[:HEX] == only
                        if only
                        else network_of(element) == network and element.comment[:HEX] not in living
                    )
                ]
                if stale:
                    changes.append(Change(False, set_name, stale, family))
        except NftUnavailable:
            return  # then nothing of ours can be there
        _remove(kernel, changes)


def _is_there(kernel: "Kernel", families: "Iterable[int]") -> bool:
    """Whether one of our tables is there."""
    try:
        return any(ruleset.has_table(kernel.nft, family) for family in families)
    except NftUnavailable:
        return False


def sweep_one(kernel: "Kernel", hexed: str, *sets: str, family: int = INET) -> None:
    """Take out the elements of one attachment, by its hex, from sets of a table. It looks through all of them."""
    changes = []
    with nftables_lock():
        try:
            for name in sets:
                own = [one for one in kernel.nft.dump(name, family) if one.comment[:HEX] == hexed]
                changes += [Change(False, name, own, family)] if own else []
        except NftUnavailable:
            return  # then nothing of ours can be there
        _remove(kernel, changes)


def sweep_chains(kernel: "Kernel") -> None:
    """GC: remove the chains, and maps, of subnets and conditions that no element leads to any more, and guards of nothing.

    Not at the DEL of the last container: the next would have to make them anew, which costs more than all else of an ADD.
    """
    with nftables_lock():
        try:
            chains = kernel.nft.chains()
            _remove(kernel, [Change(False, GUARDS, guards)] if (guards := guards_of_nothing(kernel)) else [])
        except NftUnavailable:
            return  # then nothing of ours can be there
        for name in chains:
            if name.startswith(ruleset.MADE_WHEN_NEEDED):
                kernel.nft.remove_unused(name, ruleset.maps_of(name))


def guards_of_nothing(kernel: "Kernel") -> list[Element]:
    """Those of the loopback whose interfaces are gone: runtimes delete bridges, and ptp's veth pairs end. NftUnavailable."""
    found = kernel.nft.dump(GUARDS)  # before the links: a guard is put in for an interface that is there
    present = {ifname_key(link.name) for link in kernel.host.links()} if found else set()
    return [guard for guard in found if guard.key not in present]


def _remove(kernel: "Kernel", changes: "Sequence[Change]") -> None:
    try:
        kernel.nft.transaction(changes)
    except OSError as error:
        raise os_error("cannot remove elements of the nftables table cni_py", error) from error


SHOWN_MAX = 200  # characters of conditions that an error repeats


def network_of(element: Element) -> str:
    """The network of the attachment that the element belongs to; "" for an element that belongs to none."""
    hexed, _, label = element.comment.partition(" ")
    network, slash, _ = label.partition("/")
    return network if len(hexed) == HEX and slash else ""
