"""Who holds which host port in the nftables table cni_py, and what is put there for a mapping.

Besides the element that a packet finds, each single port has one in the map `claims4` or `claims6`, so that the kernel itself
refuses (EEXIST) what conflicts with it:

    published on any address          claims: proto . port : 0, with the holder's comment
    published on specific addresses   claims: proto . port : how many there are; the holders' comments are on those
    shared, on any address            claims: proto . port : SHARED; see shares.py

A range has no claims: it is one interval in range4_tcp or its like, whatever the number of its ports, and is compared with
others by its bounds. (Ranges of the version before have claims for each port, which go with them.)

What a conflict means is decided in conflicts.py. The next attachment of a container waits as the holder's heir, a file in the
folder of the holder's record, and takes over in the transaction that removes the holder. All of this happens under the nft lock.
"""

import sys

from cni_py.attachment.naming import HEX
from cni_py.kernel.nf_tables import Element, NftUnavailable, mark
from cni_py.nftables.elements import network_of
from cni_py.ports.config import condition_id
from cni_py.ports.draft import (
    CHAIN,
    SHARED,
    Draft,
    Place,
    claim_key,
    interval_of,
    is_shared,
    place_of,
    port_in,
    range_map,
    target_of,
)
from cni_py.ports.mapping import PROTOCOLS, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_py.attachment.context import Kernel
    from cni_py.attachment.naming import Attachment
    from cni_py.ports.draft import Interval


class Claimant:
    """An attachment that publishes ports under conditions (by family)."""

    __slots__ = ("comment", "conditions", "key")

    def __init__(self, key: "Attachment", conditions: dict[int, str]) -> None:
        self.key = key
        self.comment = key.comment
        self.conditions = conditions

    def owns(self, element: Element | None) -> bool:
        """Whether the element is there and carries our comment."""
        return element is not None and element.comment[:HEX] == self.key.hex

    def condition(self, mapping: Mapping) -> str:
        """What names the chain of the mapping's conditions, "" when it has none."""
        return condition_id(mapping.family, mapping.condition(self.conditions.get(mapping.family, "")))

    def shared_chain(self, mapping: Mapping) -> str:
        """The chain of a mapping that is shared."""
        return f"{CHAIN}{self.condition(mapping) or mapping.family}"

    def targets(self, mapping: Mapping) -> "Iterator[tuple[str, Element]]":
        """The map elements that lead packets for the port of a mapping, which is not shared, to its container."""
        key, kind = claim_key(mapping, mapping.first), "any"
        if mapping.host_ip is not None:
            key, kind = mapping.host_ip + key, "specific"
        target = Element(key, target_of(mapping), self.comment)
        condition = self.condition(mapping)
        if condition:
            yield f"{kind}{condition}", target
            yield f"conditional_{kind}{mapping.family}", Element(key, f"conditions{condition}", self.comment)
        else:
            yield f"{kind}{mapping.family}", target


def claim(draft: Draft, who: Claimant, mapping: Mapping) -> None:
    """Put the mapping in. Nobody may hold its ports."""
    if mapping.first < mapping.last:
        # The kernel refuses an interval that overlaps another (nft_rbtree.c), but does not compare it with elements of other
        # maps: obtain() has compared it with the claims, and what comes later compares itself with intervals()
        draft.put_interval(range_map(mapping), interval_of(mapping, who.comment))
        return
    claims, key = f"claims{mapping.family}", claim_key(mapping, mapping.first)
    if mapping.share:
        from cni_py.ports import shares

        first = shares.join(draft, place_of(mapping), who.shared_chain(mapping), target_of(mapping), who.comment)
        if first and mapping.host_ip is not None:
            draft.put(claims, Element(key, mark(_count(draft.get(claims, key)) + 1)))
        return
    if mapping.host_ip is None:
        draft.put(claims, Element(key, mark(0), who.comment))
    else:
        draft.put(claims, Element(key, mark(_count(draft.get(claims, key)) + 1)))
    for set_name, element in who.targets(mapping):
        draft.put(set_name, element)


def read_ahead(draft: Draft, who: Claimant, mappings: "Sequence[Mapping]") -> None:
    """Ask in few messages for what release() will want to see of all the mappings."""
    keys: dict[str, list[bytes]] = {}
    for mapping in mappings:
        keys.setdefault(f"claims{mapping.family}", []).append(claim_key(mapping, mapping.first))
        single = mapping.first == mapping.last and not mapping.share
        for set_name, element in who.targets(mapping) if single else ():
            keys.setdefault(set_name, []).append(element.key)
    for set_name, wanted in keys.items():
        draft.read(set_name, wanted)


def release(draft: Draft, who: Claimant, mapping: Mapping) -> set[str]:
    """Take out what `who` holds of the mapping; returns the hex of the others whose claims conflict with it."""
    if mapping.first < mapping.last:
        if _release_range(draft, who, mapping):
            return set()  # it was there as a whole, so that nobody else has any of its ports
        return {comment[:HEX] for _, comment in holders_of(draft, mapping)} - {who.key.hex}
    found = _single_holders(draft, mapping, mapping.first)
    found = found or [one.element.comment for one in _intervals(draft, mapping)]  # a dump that few DELs need
    claims, key = f"claims{mapping.family}", claim_key(mapping, mapping.first)
    claimed = draft.get(claims, key)
    if mapping.host_ip is None and claimed is not None and claimed.value != SHARED and who.owns(claimed):
        draft.remove(claims, key)
    _release_targets(draft, who, mapping)
    return {comment[:HEX] for comment in found} - {who.key.hex}


def _release_targets(draft: Draft, who: Claimant, mapping: Mapping) -> None:
    """Remove the element of ours that has the mapping's key, whatever it leads to and under whatever conditions."""
    family, kind = mapping.family, "any" if mapping.host_ip is None else "specific"
    sets = [f"{kind}{family}", f"conditional_{kind}{family}"]
    for set_name in reversed(sets) if who.condition(mapping) or mapping.share else sets:
        element = draft.get(set_name, (mapping.host_ip or b"") + claim_key(mapping, mapping.first))
        if is_shared(element):
            from cni_py.ports import shares

            if shares.leave(draft, place_of(mapping), who.key.hex) and mapping.host_ip is not None:
                _uncount(draft, family, claim_key(mapping, mapping.first))
            continue
        if element is not None and who.owns(element):
            _remove_target(draft, set_name, element)
            if mapping.host_ip is not None:
                _uncount(draft, family, claim_key(mapping, mapping.first))
            return


def _remove_target(draft: Draft, set_name: str, element: Element) -> None:
    """Remove an element, and with one that jumps to conditions the one behind them."""
    draft.remove(set_name, element.key)
    if isinstance(element.value, str):
        kind = "any" if "any" in set_name else "specific"
        draft.remove(element.value.replace("conditions", kind, 1), element.key)


def _release_range(draft: Draft, who: Claimant, mapping: Mapping) -> bool:
    """Remove the interval of ours that begins with the mapping. Whether there was one."""
    own = [one for one in _intervals(draft, mapping) if one.first == mapping.first and who.owns(one.element)]
    for one in own:
        draft.remove_interval(range_map(mapping), one)
    claims = f"claims{mapping.family}"
    if who.owns(draft.get(claims, claim_key(mapping, mapping.first))):  # of the version before: a claim for each port
        for element in _claimed(draft, mapping):
            if who.owns(element):
                draft.remove(claims, element.key)
    return bool(own)


def _count(claim: Element | None) -> int:
    """How many specific addresses of a port are published."""
    value = claim.value if claim is not None else None
    return int.from_bytes(value, sys.byteorder) if isinstance(value, bytes) else 0


def _uncount(draft: Draft, family: int | str, key: bytes) -> None:
    """One specific address of the port fewer."""
    left = _count(draft.get(f"claims{family}", key)) - 1
    if left > 0:
        draft.put(f"claims{family}", Element(key, mark(left)))
    else:
        draft.remove(f"claims{family}", key)


def obtain(draft: Draft, who: Claimant, mapping: Mapping) -> str:
    """Claim the mapping, or return the hex of the attachment of the same container that holds one of its ports.

    What the dead hold is removed. PortInUse when another container holds a port.
    """
    if draft.blind:
        claim(draft, who, mapping)
        return ""
    from cni_py.attachment import holders
    from cni_py.ports import conflicts

    release(draft, who, mapping)
    there = draft.get(place_of(mapping).map_name, place_of(mapping).key) if mapping.share else None
    sharing = there is not None and there.value == who.shared_chain(mapping)
    for port, comment in holders_of(draft, mapping):
        hexed = comment[:HEX]
        record = holders.record_of(hexed)
        standing = conflicts.standing([record], who.key.container_id)
        if standing == conflicts.FREE:
            evict(draft, hexed)
        elif sharing:
            continue
        elif standing == conflicts.OWN and hexed != who.key.hex:
            return hexed
        elif record is not None:
            terms = "; containers that share a port all say so, with the same `allow` and conditions"
            raise conflicts.refusal(mapping, port, record.key.label, terms if mapping.share else "")
    claim(draft, who, mapping)
    return ""


def dead_holders(kernel: "Kernel", mappings: "Sequence[Mapping]") -> set[str]:
    """What portmap's other backend asks before it publishes: the hex of the dead that have a port of the mappings here.

    PortInUse when another container that may be alive has one.
    """
    from cni_py.attachment import holders
    from cni_py.ports import conflicts

    draft, dead = Draft(kernel.nft), set()
    try:
        for mapping in mappings:
            for port, comment in holders_of(draft, mapping):
                record = holders.record_of(comment[:HEX])
                standing = conflicts.standing([record], kernel.key.container_id)
                if standing == conflicts.FREE:
                    dead.add(comment[:HEX])
                elif standing == conflicts.TAKEN and record is not None:
                    raise conflicts.refusal(mapping, port, record.key.label)
    except NftUnavailable:
        return set()  # then nothing of ours can be there
    return dead


def meets_interval(draft: Draft, mappings: "Sequence[Mapping]") -> bool:
    """Whether one is a range, or has a port of one that is there: then a draft must not be blind."""
    return any(mapping.first < mapping.last or _intervals(draft, mapping) for mapping in mappings)


def lacking(draft: Draft, who: Claimant, mapping: Mapping) -> str:
    """The first of the mapping's ports that does not lead where it should, "" when all do or another network serves them."""
    port = f"{mapping.first}/{mapping.protocol}"
    if mapping.share:
        from cni_py.ports import shares

        for member in shares.members(draft, place_of(mapping)):
            if who.owns(member) and member.value == target_of(mapping):
                whole = shares.chain_at(draft, place_of(mapping)) == who.shared_chain(mapping)
                return "" if whole and _single_holders(draft, mapping, mapping.first) else port
    elif mapping.first < mapping.last:
        wanted = interval_of(mapping, who.comment)
        there = [(one.element, one.last) for one in _intervals(draft, mapping)]
        if (wanted.element, wanted.last) in there:
            return ""
    elif _holder(draft, mapping) == who.key.hex:
        same = all(draft.get(set_name, element.key) == element for set_name, element in who.targets(mapping))
        return "" if same else port
    return "" if _is_served_by_other(draft, who, mapping) else port


def _is_served_by_other(draft: Draft, who: Claimant, mapping: Mapping) -> bool:
    """Whether another network of the same container has a port of the mapping."""
    if mapping.first < mapping.last:
        found = {comment[:HEX] for _, comment in holders_of(draft, mapping)}
    else:
        found = {_holder(draft, mapping)}
    from cni_py.attachment import holders

    others = [record for hexed in found - {"", who.key.hex} if (record := holders.record_of(hexed)) is not None]
    return any(record.key.container_id == who.key.container_id for record in others)


def _holder(draft: Draft, mapping: Mapping) -> str:
    """The hex of who holds exactly this address and port, or any address; "" for nobody."""
    key = claim_key(mapping, mapping.first)
    element = draft.get(f"claims{mapping.family}", key)
    if element is not None and not element.comment and mapping.host_ip is not None:
        key, family = mapping.host_ip + key, mapping.family
        element = draft.get(f"specific{family}", key) or draft.get(f"conditional_specific{family}", key)
    if element is None:
        return "".join(one.element.comment[:HEX] for one in _intervals(draft, mapping)[:1])
    return element.comment[:HEX]


def holders_of(draft: Draft, mapping: Mapping) -> list[tuple[int, str]]:
    """Whoever holds a port of the mapping: the first such port and the comment, each holder once."""
    found = [(max(one.first, mapping.first), one.element.comment) for one in _intervals(draft, mapping)]
    ports = [mapping.first]
    if mapping.first < mapping.last:
        ports = sorted(port_in(element.key) for element in _claimed(draft, mapping))
    found += [(port, comment) for port in ports for comment in _single_holders(draft, mapping, port)]
    first = {comment: port for port, comment in sorted(found, reverse=True)}
    return sorted((port, comment) for comment, port in first.items())


def _intervals(draft: Draft, mapping: Mapping) -> "list[Interval]":
    """The ranges, of whomever, that have a port of the mapping."""
    there = draft.intervals(range_map(mapping))
    return [one for one in there if one.first <= mapping.last and mapping.first <= one.last]


def _claimed(draft: Draft, mapping: Mapping) -> list[Element]:
    """The claims of single ports that lie in a range: from a dump, as long as there are ports published on the host."""
    protocol = PROTOCOLS[mapping.protocol]
    dumped = draft.dump(f"claims{mapping.family}")
    return [one for one in dumped if one.key[0] == protocol and mapping.first <= port_in(one.key) <= mapping.last]


def _single_holders(draft: Draft, mapping: Mapping, port: int) -> list[str]:
    """The comments of all whose claims of a single port conflict with the mapping."""
    key = claim_key(mapping, port)
    claimed = draft.get(f"claims{mapping.family}", key)
    if claimed is None:
        return []
    if claimed.value == SHARED:
        return _members(draft, Place(mapping.family, None, key))
    if claimed.comment:
        return [claimed.comment]
    sets = (f"specific{mapping.family}", f"conditional_specific{mapping.family}")
    if mapping.host_ip is not None:
        found = [draft.get(name, mapping.host_ip + key) for name in sets]
    else:
        dumped = [element.key for name in sets for element in draft.dump(name) if element.key.endswith(key)]
        found = [draft.get(name, full) for name in sets for full in dumped]
    comments: list[str] = []
    for element in found:
        if element is not None and is_shared(element):
            comments += _members(draft, Place(mapping.family, element.key[:-8], key))
        elif element is not None:
            comments.append(element.comment)
    return comments


def _members(draft: Draft, place: Place) -> list[str]:
    """The comments of those who share a port."""
    from cni_py.ports import shares

    return [member.comment for member in shares.members(draft, place)]


def evict(draft: Draft, hexed: str) -> None:
    """Take out every port of a dead attachment, found by its comments: it may have no record."""
    from cni_py.ports import shares

    for family in (4, 6):
        for kind in ("any", "specific"):
            freed = shares.evict(draft, family, kind, hexed)
            for set_name in (f"{kind}{family}", f"conditional_{kind}{family}"):
                single = [element for element in _marked(draft, set_name, hexed) if not is_shared(element)]
                for element in single:
                    _remove_target(draft, set_name, element)
                freed += [element.key[-8:] for element in single]
            for key in freed if kind == "specific" else ():
                _uncount(draft, family, key)
        for set_name in (f"claims{family}", f"hairpin{family}"):
            for element in _marked(draft, set_name, hexed):
                draft.remove(set_name, element.key)
        for protocol in PROTOCOLS:
            _evict_intervals(draft, f"range{family}_{protocol}", hexed)


def _evict_intervals(draft: Draft, set_name: str, hexed: str) -> None:
    for one in draft.intervals(set_name):
        if one.element.comment[:HEX] == hexed:
            draft.remove_interval(set_name, one)


def holders_in(draft: Draft, network: str) -> set[str]:
    """The hex of every attachment of `network` that holds a port."""
    from cni_py.ports import shares

    kinds = ("claims", "specific", "conditional_specific", "hairpin")
    found = [element for family in (4, 6) for kind in kinds for element in draft.dump(f"{kind}{family}")]
    for family in (4, 6):
        for protocol in PROTOCOLS:
            found += [one.element for one in draft.intervals(f"range{family}_{protocol}")]
        for kind in ("any", "specific"):
            for place in shares.places(draft, family, kind):
                found += shares.members(draft, place)
    return {element.comment[:HEX] for element in found if network_of(element) == network}


def _marked(draft: Draft, set_name: str, hexed: str) -> list[Element]:
    """The elements of an attachment that are still there as they were."""
    mine = [element for element in draft.dump(set_name) if element.comment[:HEX] == hexed]
    draft.read(set_name, [element.key for element in mine])
    return [element for element in mine if draft.get(set_name, element.key) == element]
