"""Our nftables tables in memory: what many operations do to them becomes one transaction for each table.

An operation is given a Ledger in place of the kernel's tables (Nft). It reads what is there and what operations before it have
put in; its transactions are worked off here, and refused as the kernel refuses them: EEXIST for a key that is there, ENOENT for
a chain, a set or an element that is not. Commands in nft's language (make()) are noted. commit() sends what has come of all that:
the text, then the elements of each table. So what is put back is, to the letter, what the operations would have made one by one.

Who uses it holds the lock of our tables, from the first reading until commit().
"""

import errno

from cni_py.kernel.nf_tables import INET, Change, Element, Nft, mark
from cni_py.nftables.ruleset import LAYOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_py.kernel.netlink import Socket

    Place = tuple[int, str]  # family and set
    Slot = tuple[bytes, bool]  # key, and whether it is the end of an interval

FAMILIES = {"inet": INET, "bridge": 7}
# Elements in a transaction, of some 150 bytes each: a transaction is one datagram. An even number: an interval is two, in order.
PORTION = 16384


class Ledger(Nft):
    """See the module."""

    __slots__ = ("_after", "_before", "_chains", "_nft", "_policies", "_sets", "texts")

    def __init__(self, nft: Nft) -> None:
        super().__init__()
        self._nft = nft
        self.current = set()
        self.texts: list[str] = []
        self._before: dict[Place, dict[Slot, Element]] = {}
        self._after: dict[Place, dict[Slot, Element]] = {}
        self._chains: dict[int, set[str]] = {}
        self._sets: dict[int, set[str]] = {}
        self._policies: dict[tuple[object, ...], int | None] = {}

    def socket(self) -> "Socket":
        return self._nft.socket()

    def close(self) -> None:
        """The socket is somebody else's."""

    def _elements(self, set_name: str, family: int) -> "dict[Slot, Element]":
        """The elements that will be in a set; read when it is first asked for."""
        place = family, set_name
        if place not in self._after:
            there = {(one.key, one.end): one for one in self._nft.dump(set_name, family)}
            self._before[place], self._after[place] = there, dict(there)
        return self._after[place]

    def get(self, set_name: str, keys: "Sequence[bytes]", family: int = INET) -> dict[bytes, Element]:
        there = self._elements(set_name, family)
        return {key: there[key, False] for key in keys if (key, False) in there}

    def dump(self, set_name: str, family: int = INET) -> list[Element]:
        return list(self._elements(set_name, family).values())

    def chains(self, family: int = INET) -> list[str]:
        return list(self._known_chains(family))

    def _known_chains(self, family: int) -> set[str]:
        if family not in self._chains:
            self._chains[family] = set(self._nft.chains(family))
        return self._chains[family]

    def _known_sets(self, family: int) -> set[str]:
        if family not in self._sets:
            self._sets[family] = set(self._nft.sets(family))
        return self._sets[family]

    def chain_policy(self, family: int, table: str, *chains: str) -> int | None:
        asked = family, table, *chains
        if asked not in self._policies:
            self._policies[asked] = self._nft.chain_policy(family, table, *chains)
        return self._policies[asked]

    def make(self, text: str) -> None:
        """Note the commands, and what there will be by them."""
        self.texts.append(text)
        for line in text.splitlines():
            verb, kind, family, _table, name = (*line.split()[:5], *[""] * 5)[:5]
            if verb == "add" and kind == "chain":
                self._known_chains(FAMILIES[family]).add(name)
            elif verb == "add" and kind in ("set", "map"):
                self._known_sets(FAMILIES[family]).add(name)
            elif verb == "add" and kind == "element":  # the one that says which layout the table has
                place = FAMILIES[family], name
                self._before[place] = {(mark(LAYOUT), False): Element(mark(LAYOUT))}
                self._after[place] = dict(self._before[place])

    def transaction(self, changes: "Sequence[Change]") -> None:
        """All of them, or none and an OSError."""
        done: list[tuple[dict[Slot, Element], Slot, Element | None]] = []  # where, and what was there before
        try:
            for change in changes:
                there = self._elements(change.set_name, change.family)
                for element in change.elements:
                    slot = element.key, element.end
                    before = there.get(slot)
                    self._change(change, there, element)
                    done.append((there, slot, before))
        except OSError:
            for there, slot, before in reversed(done):
                if before is None:
                    del there[slot]
                else:
                    there[slot] = before
            raise

    def _change(self, change: Change, there: "dict[Slot, Element]", element: Element) -> None:
        slot = element.key, element.end
        if not change.add:
            if there.pop(slot, None) is None:
                raise OSError(errno.ENOENT, "no such element")
            return
        if change.set_name not in self._known_sets(change.family):
            raise OSError(errno.ENOENT, "no such set")
        if isinstance(element.value, str) and element.value not in self._known_chains(change.family):
            raise OSError(errno.ENOENT, "no such chain")
        if slot in there:
            raise OSError(errno.EEXIST, "the key is there")
        there[slot] = element

    def changes(self, family: int) -> list[Change]:
        """What differs from what the kernel has; removals first, and of a set of intervals each end behind its beginning."""
        gone: list[Change] = []
        new: list[Change] = []
        for (table, set_name), after in sorted(self._after.items()):
            before = self._before[table, set_name]
            if table != family or before == after:
                continue
            lost = [one for slot, one in before.items() if after.get(slot) != one]
            came = [one for slot, one in after.items() if before.get(slot) != one]
            for found, add, elements in ((gone, False, lost), (new, True, came)):
                if elements:
                    found.append(Change(add, set_name, sorted(elements, key=_in_order), family))
        return gone + new

    def commit(self) -> bool:
        """Make it so. Whether there was anything to do. OSError, CniError."""
        if self.texts:
            self._nft.current.clear()
            self._nft.make("".join(dict.fromkeys(self.texts)))
        found = [self.changes(family) for family in FAMILIES.values()]
        for part in (part for changes in found for part in portions(changes)):
            self._nft.transaction(part)
        return bool(self.texts or any(found))


def _in_order(element: Element) -> tuple[bytes, bool]:
    """Where two intervals touch, the end of the one comes before the beginning of the other."""
    return element.key, not element.end


def portions(changes: "Sequence[Change]") -> "Iterator[list[Change]]":
    """The changes in as many transactions as their size asks for: mostly one."""
    part: list[Change] = []
    size = 0
    for change in changes:
        for start in range(0, len(change.elements), PORTION):
            piece = change.elements[start : start + PORTION]
            if part and size + len(piece) > PORTION:
                yield part
                part, size = [], 0
            part.append(Change(change.add, change.set_name, piece, change.family))
            size += len(piece)
    if part:
        yield part
