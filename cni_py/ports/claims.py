"""Who holds which host port: the elements of port mappings in the table cni_py, and what happens when two want one.

A port is taken as bind(2) sees it: any address against a specific one of the same family conflicts. Besides the element
that a packet finds, each port has one in the map `claims4` or `claims6`, so that a conflict is an existing key:

    published on any address          claims: proto . port : 0, with the holder's comment
    published on specific addresses   claims: proto . port : how many there are; the holders' comments are on those
    shared, on any address            claims: proto . port : SHARED; see portshares.py

The same container never conflicts with itself (podman gives all networks of a container the same mappings): the first
attachment is served, the next waits as its heir, a file in the folder of the first's record, and takes over in the
transaction that removes the first. A holder that is provably dead is replaced. All of this happens under the nft lock.
"""

import sys

from cni_py.attachment import holders
from cni_py.attachment.holders import HEX
from cni_py.errors import PortInUse
from cni_py.kernel.nf_tables import Element, NftUnavailable, mark
from cni_py.nftables.elements import network_of
from cni_py.ports.config import condition_id
from cni_py.ports.draft import CHAIN, SHARED, Draft, Place, claim_key, is_shared, place_of, port_key, target_of
from cni_py.ports.mapping import PROTOCOLS, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_py.attachment.context import Kernel
    from cni_py.attachment.naming import Attachment


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

    def targets(self, mapping: Mapping, port: int) -> "Iterator[tuple[str, Element]]":
        """The map elements that lead packets for one port of the mapping, which is not shared, to its container."""
        key, kind = claim_key(mapping, port), "any"
        if mapping.host_ip is not None:
            key, kind = mapping.host_ip + key, "specific"
        target = Element(key, target_of(mapping, port), self.comment)
        condition = self.condition(mapping)
        if condition:
            yield f"{kind}{condition}", target
            yield f"conditional_{kind}{mapping.family}", Element(key, f"conditions{condition}", self.comment)
        else:
            yield f"{kind}{mapping.family}", target


def claim(draft: Draft, who: Claimant, mapping: Mapping) -> None:
    """Put the mapping in. Nobody may hold its ports."""
    claims = f"claims{mapping.family}"
    if mapping.share:
        from cni_py.ports import shares

        target = target_of(mapping, mapping.first)
        first = shares.join(draft, place_of(mapping), who.shared_chain(mapping), target, who.comment)
        if first and mapping.host_ip is not None:
            key = claim_key(mapping, mapping.first)
            draft.put(claims, Element(key, mark(_count(draft.get(claims, key)) + 1)))
        return
    for port in mapping.ports:
        key = claim_key(mapping, port)
        if mapping.host_ip is None:
            draft.put(claims, Element(key, mark(0), who.comment))
        else:
            draft.put(claims, Element(key, mark(_count(draft.get(claims, key)) + 1)))
    if mapping.last > mapping.first:
        start = Element(port_key(mapping.first), mapping.container_ip, who.comment)
        draft.interval(_range_set(mapping), start, mapping.last, add=True)
        return
    for set_name, element in who.targets(mapping, mapping.first):
        draft.put(set_name, element)


def read_ahead(draft: Draft, who: Claimant, mappings: "Sequence[Mapping]") -> None:
    """Ask in few messages for what release() will want to see of all the mappings."""
    keys: dict[str, list[bytes]] = {}
    for mapping in mappings:
        keys.setdefault(f"claims{mapping.family}", []).extend(claim_key(mapping, port) for port in mapping.ports)
        single = mapping.first == mapping.last and not mapping.share
        for set_name, element in who.targets(mapping, mapping.first) if single else ():
            keys.setdefault(set_name, []).append(element.key)
    for set_name, wanted in keys.items():
        draft.read(set_name, wanted)


def release(draft: Draft, who: Claimant, mapping: Mapping) -> set[str]:
    """Take out what `who` holds of the mapping; returns the hex of the others whose claims conflict with it."""
    claims = f"claims{mapping.family}"
    others = {comment[:HEX] for port in mapping.ports for comment in _holders(draft, mapping, port)}
    if mapping.last > mapping.first:
        _release_range(draft, who, mapping)
    for port in mapping.ports:
        key = claim_key(mapping, port)
        claimed = draft.get(claims, key)
        if mapping.host_ip is None and claimed is not None and claimed.value != SHARED and who.owns(claimed):
            draft.remove(claims, key)
    if mapping.last == mapping.first:
        _release_targets(draft, who, mapping)
    return others - {who.key.hex}


def _holder(draft: Draft, mapping: Mapping, port: int) -> str:
    """The hex of who holds exactly this address and port, or any address; "" for nobody."""
    element = draft.get(f"claims{mapping.family}", claim_key(mapping, port))
    if element is not None and not element.comment and mapping.host_ip is not None:
        key = mapping.host_ip + claim_key(mapping, port)
        family = mapping.family
        element = draft.get(f"specific{family}", key) or draft.get(f"conditional_specific{family}", key)
    return element.comment[:HEX] if element is not None else ""


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


def _release_range(draft: Draft, who: Claimant, mapping: Mapping) -> None:
    set_name, key = _range_set(mapping), port_key(mapping.first)
    element = draft.get(set_name, key)  # the kernel answers with the interval that holds the key
    if element is not None and element.key == key and who.owns(element):
        draft.interval(set_name, element, mapping.last, add=False)


def _range_set(mapping: Mapping) -> str:
    return f"range{mapping.family}_{mapping.protocol}"


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

    PortInUse when another container holds one that is not provably dead.
    """
    if draft.blind:
        claim(draft, who, mapping)
        return ""
    release(draft, who, mapping)
    there = draft.get(place_of(mapping).map_name, place_of(mapping).key) if mapping.share else None
    shared = there is not None and there.value == who.shared_chain(mapping)
    for port in mapping.ports:
        for comment in _holders(draft, mapping, port):
            holder = holders.record_of(comment[:HEX])
            if holder is None or holders.is_dead(holder):
                evict(draft, comment[:HEX])
            elif shared:
                continue
            elif holder.key.container_id == who.key.container_id and holder.key.hex != who.key.hex:
                return holder.key.hex
            else:
                raise _port_in_use(mapping, port, holder.key.label)
    claim(draft, who, mapping)
    return ""


def dead_holders(kernel: "Kernel", mappings: "Sequence[Mapping]") -> set[str]:
    """What portmap's other backend asks before it publishes: the hex of the dead that have a port of the mappings here.

    PortInUse when another container that may be alive has one.
    """
    draft, dead = Draft(kernel.nft), set()
    try:
        for mapping in mappings:
            for comment in _holders(draft, mapping, mapping.first):
                holder = holders.record_of(comment[:HEX])
                if holder is None or holders.is_dead(holder):
                    dead.add(comment[:HEX])
                elif holder.key.container_id != kernel.key.container_id:
                    raise _port_in_use(mapping, mapping.first, holder.key.label)
    except NftUnavailable:
        return set()  # then nothing of ours can be there
    return dead


def lacking(draft: Draft, who: Claimant, mapping: Mapping) -> str:
    """The first of the mapping's ports that does not lead where it should, "" when all do or another network serves them."""
    if mapping.share:
        from cni_py.ports import shares

        for member in shares.members(draft, place_of(mapping)):
            if who.owns(member) and member.value == target_of(mapping, mapping.first):
                whole = shares.chain_at(draft, place_of(mapping)) == who.shared_chain(mapping)
                claimed = _holders(draft, mapping, mapping.first)
                return "" if whole and claimed else f"{mapping.first}/{mapping.protocol}"
    for port in mapping.ports:
        holder = _holder(draft, mapping, port)
        if mapping.share or holder != who.key.hex:
            other = holders.record_of(holder) if holder else None
            if other is None or other.key.hex == who.key.hex or other.key.container_id != who.key.container_id:
                return f"{port}/{mapping.protocol}"
    if mapping.share:
        return ""
    if mapping.last > mapping.first:
        targets = [(_range_set(mapping), Element(port_key(mapping.first), mapping.container_ip, who.comment))]
    else:
        targets = list(who.targets(mapping, mapping.first))
    held = who.key.hex == _holder(draft, mapping, mapping.first)
    if held and any(draft.get(set_name, element.key) != element for set_name, element in targets):
        return f"{mapping.first}/{mapping.protocol}"
    return ""


def _holders(draft: Draft, mapping: Mapping, port: int) -> list[str]:
    """The comments of all whose claims conflict with one port of the mapping."""
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


def _port_in_use(mapping: Mapping, port: int, holder: str) -> PortInUse:
    address = str(Mapping(mapping.protocol, mapping.host_ip, port, mapping.container_ip, port)).split(" ")[1]
    terms = "; containers that share a port all say so, with the same `allow` and conditions" if mapping.share else ""
    return PortInUse(f"host port {port}/{mapping.protocol} is in use by {holder}", f"wanted on {address}{terms}")


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
            _evict_ranges(draft, f"range{family}_{protocol}", hexed)


def holders_in(draft: Draft, network: str) -> set[str]:
    """The hex of every attachment of `network` that holds a port."""
    from cni_py.ports import shares

    kinds = ("claims", "specific", "conditional_specific", "hairpin")
    found = [element for family in (4, 6) for kind in kinds for element in draft.dump(f"{kind}{family}")]
    for family in (4, 6):
        for kind in ("any", "specific"):
            for place in shares.places(draft, family, kind):
                found += shares.members(draft, place)
    return {element.comment[:HEX] for element in found if network_of(element) == network}


def _marked(draft: Draft, set_name: str, hexed: str) -> list[Element]:
    """The elements of an attachment that are still there as they were."""
    mine = [element for element in draft.dump(set_name) if element.comment[:HEX] == hexed]
    draft.read(set_name, [element.key for element in mine])
    return [element for element in mine if draft.get(set_name, element.key) == element]


def _evict_ranges(draft: Draft, set_name: str, hexed: str) -> None:
    bounds = sorted(draft.dump(set_name), key=lambda element: (element.key, not element.end))
    for place, element in enumerate(bounds):
        if element.comment[:HEX] == hexed and not element.end:
            after = bounds[place + 1 : place + 2]
            last = int.from_bytes(after[0].key, "big") - 1 if after else 65535
            draft.interval(set_name, element, last, add=False)
