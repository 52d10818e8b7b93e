"""Host ports that several containers share: the kernel chooses one of them for each new connection.

The element of a shared port in the map `conditional_any4` (or its like) jumps to a chain whose one rule picks a slot at
random and looks up slot . proto . port, in a map that has SLOTS elements for each shared port:

    conditional_any4       proto . port : jump shared4          comment: the first member
    shared_any4     slot . proto . port : container . port      comment: the member, which has every n-th slot
    claims4                proto . port : SHARED                comment: the first member

So rules stay as they are, and a member comes or goes in one transaction. The chain, made when it is first needed, is one per
set of conditions: all members must have the same. What goes on for connections that are there is conntrack's.
"""

from cni_py.attachment.holders import HEX
from cni_py.errors import PortInUse
from cni_py.kernel.nf_tables import Element, mark
from cni_py.ports.draft import CHAIN, SHARED, Place, is_shared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.ports.draft import Draft

# As in ruleset.shared_chain(). 60 can be divided by 1 to 6: so many members get exactly equal parts; more than 60 cannot be.
SLOTS = 60


def slots_of(place: Place, chain: str) -> tuple[str, list[bytes]]:
    """The map of a place's slots, and their keys."""
    return slot_map(place.kind, chain), [mark(number) + place.key for number in range(SLOTS)]


def slot_map(kind: str, chain: str) -> str:
    """The map that a chain looks slots up in."""
    return f"shared_{kind}{chain.removeprefix(CHAIN)}"


def chain_at(draft: "Draft", place: Place) -> str:
    """The chain of a port that is shared, "" for one that is not."""
    element = draft.get(place.map_name, place.key)
    return str(element.value) if element is not None and is_shared(element) else ""


def members(draft: "Draft", place: Place) -> list[Element]:
    """One slot of each container that shares the port, in the order they came; none when it is not shared."""
    chain = chain_at(draft, place)
    if not chain:
        return []
    name, keys = slots_of(place, chain)
    draft.read(name, keys)
    slots = [element for key in keys if (element := draft.get(name, key)) is not None]
    return list({element.comment[:HEX]: element for element in reversed(slots)}.values())[::-1]


def join(draft: "Draft", place: Place, chain: str, target: bytes, comment: str) -> bool:
    """Lead a part of the new connections to `target` too. True: it is the first."""
    present = members(draft, place)
    if len(present) == SLOTS:
        raise PortInUse("the host port is shared by as many containers as can be", f"{SLOTS}; wanted by {comment}")
    _write(draft, place, chain, [*present, Element(b"", target, comment)])
    return not present


def leave(draft: "Draft", place: Place, hexed: str) -> bool:
    """Take a member out, if it is one. True: it was the last, and the place is free."""
    present = members(draft, place)
    staying = [element for element in present if element.comment[:HEX] != hexed]
    if len(staying) == len(present):
        return False
    if staying:
        _write(draft, place, chain_at(draft, place), staying)
        return False
    name, keys = slots_of(place, chain_at(draft, place))
    for key in keys:
        draft.remove(name, key)
    draft.remove(place.map_name, place.key)
    if place.kind == "any":
        draft.remove(f"claims{place.family}", place.claim_key)
    return True


def _write(draft: "Draft", place: Place, chain: str, present: list[Element]) -> None:
    name, keys = slots_of(place, chain)
    draft.read(name, keys)
    for number, key in enumerate(keys):
        member = present[number % len(present)]
        draft.put(name, Element(key, member.value, member.comment))
    first = present[0].comment
    draft.put(place.map_name, Element(place.key, chain, first))
    if place.kind == "any":
        draft.put(f"claims{place.family}", Element(place.claim_key, SHARED, first))


def places(draft: "Draft", family: int, kind: str) -> list[Place]:
    """All shared places of a map that are there now."""
    listed = [element.key for element in draft.dump(f"conditional_{kind}{family}") if is_shared(element)]
    return [Place(family, key[:-8] or None, key[-8:]) for key in listed]


def evict(draft: "Draft", family: int, kind: str, hexed: str) -> list[bytes]:
    """Take a member out everywhere; returns the claims' keys of the places that are free now."""
    return [place.claim_key for place in places(draft, family, kind) if leave(draft, place, hexed)]
