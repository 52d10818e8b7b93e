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

from cni_py import heirs
from cni_py.errors import PortInUse
from cni_py.heirs import HEX
from cni_py.kernel.nftables import Change, Element, Nft, NftUnavailable, concat, mark
from cni_py.portmappings import PROTOCOLS, Mapping, condition_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_py.kernel.context import Kernel
    from cni_py.records import Attachment


SHARED = mark(1 << 31)  # the value of a shared port's claim: no count of specific addresses is as high
CHAIN = "shared"  # how the names of chains of shared ports begin


class Place:
    """A host port, on one address or any, in our maps."""

    __slots__ = ("claim_key", "family", "key", "kind")

    def __init__(self, family: int, host_ip: bytes | None, claim_key: bytes) -> None:
        self.family = family
        self.kind = "any" if host_ip is None else "specific"
        self.key = (host_ip or b"") + claim_key
        self.claim_key = claim_key

    @property
    def map_name(self) -> str:
        """The map whose element jumps to the chain of a shared port."""
        return f"conditional_{self.kind}{self.family}"


def is_shared(element: Element | None) -> bool:
    """Whether an element jumps to a chain of shared ports."""
    return element is not None and isinstance(element.value, str) and element.value.startswith(CHAIN)


class Draft:
    """A transaction in the making. Reading an element gives what will be there; only what differs is sent.

    A `blind` draft takes every set for empty instead of asking: the usual case, in which nothing is there yet, then costs one
    message, and a wrong guess is refused by the kernel as EEXIST.
    """

    __slots__ = ("_after", "_before", "_intervals", "_nft", "blind")

    def __init__(self, nft: Nft, *, blind: bool = False) -> None:
        self._nft = nft
        self.blind = blind
        self._before: dict[tuple[str, bytes], Element | None] = {}
        self._after: dict[tuple[str, bytes], Element | None] = {}
        self._intervals: list[Change] = []

    def read(self, set_name: str, keys: "Sequence[bytes]") -> None:
        """Ask for several elements at once, to have them at hand."""
        unknown = [key for key in keys if (set_name, key) not in self._before]
        found = {} if self.blind else self._nft.get(set_name, unknown)
        for key in unknown:
            self._before[set_name, key] = self._after[set_name, key] = found.get(key)

    def get(self, set_name: str, key: bytes) -> Element | None:
        self.read(set_name, (key,))
        return self._after[set_name, key]

    def put(self, set_name: str, element: Element) -> None:
        """Put the element in place of whatever has its key."""
        self.read(set_name, (element.key,))
        self._after[set_name, element.key] = element

    def remove(self, set_name: str, key: bytes) -> None:
        """What is not there is removed already."""
        self.read(set_name, (key,))
        self._after[set_name, key] = None

    def interval(self, set_name: str, first: Element, last: int, *, add: bool) -> None:
        """Put in, or take out, the interval of ports from that of `first` to `last`."""
        bounds = [first] if last == 65535 else [first, Element(port_key(last + 1), end=True)]
        change = Change(add, set_name, bounds)
        for other in self._intervals:
            if (other.set_name, other.elements, other.add) == (set_name, bounds, not add):
                self._intervals.remove(other)
                return
        self._intervals.append(change)

    def dump(self, set_name: str) -> list[Element]:
        """All elements that are there now."""
        return self._nft.dump(set_name)

    def taken_out(self) -> list[Mapping]:
        """Where the elements and intervals that are removed led, as mappings."""
        gone = [
            _mapping_at(set_name, before.key, before.value)
            for (set_name, key), before in self._before.items()
            if before is not None and self._after[set_name, key] != before
        ]
        for change in self._intervals:
            if not change.add:
                first, *end = change.elements
                last = int.from_bytes(end[0].key, "big") - 1 if end else 65535
                gone.append(_mapping_of_range(change.set_name, first, last))
        return [mapping for mapping in gone if mapping is not None]

    def changes(self) -> list[Change]:
        """What has to be sent: removals, then additions, claims before anything else."""
        gone: dict[str, list[Element]] = {}
        new: dict[str, list[Element]] = {}
        for place, after in self._after.items():
            before = self._before[place]
            if before != after:
                if before is not None:
                    gone.setdefault(place[0], []).append(before)
                if after is not None:
                    new.setdefault(place[0], []).append(after)
        changes = [Change(False, name, elements) for name, elements in gone.items()]
        changes += [Change(True, name, elements) for name, elements in sorted(new.items(), key=_claims_first)]
        return changes + sorted(self._intervals, key=lambda change: change.add)


def _mapping_at(set_name: str, key: bytes, value: bytes | str | None) -> Mapping | None:
    """What an element of a map of single ports means; None for one of another map."""
    kind = set_name.removeprefix("shared_")
    if not kind.startswith(("any", "specific")) or not isinstance(value, bytes):
        return None
    key = key[4:] if kind != set_name else key  # without the slot
    protocols = {number: name for name, number in PROTOCOLS.items()}
    protocol, port = protocols.get(key[-8]), int.from_bytes(key[-4:-2], "big")
    if protocol is None or not port:
        return None
    return Mapping(protocol, key[:-8] or None, port, value[:-4], int.from_bytes(value[-4:-2], "big"))


def _mapping_of_range(set_name: str, first: Element, last: int) -> Mapping | None:
    """What an interval of a map of ranges means."""
    port = int.from_bytes(first.key[:2], "big")
    if not isinstance(first.value, bytes):
        return None
    return Mapping(set_name.partition("_")[2], None, port, first.value, port, last)


def _claims_first(named: "tuple[str, list[Element]]") -> bool:
    return not named[0].startswith("claims")


def port_key(port: int) -> bytes:
    """A key or value of type inet_service."""
    return port.to_bytes(2, "big")


def claim_key(mapping: Mapping, port: int) -> bytes:
    """inet_proto . inet_service."""
    return concat(bytes((PROTOCOLS[mapping.protocol],)), port_key(port))


def target_of(mapping: Mapping, port: int) -> bytes:
    """The value of a map: where one port of the mapping leads."""
    return concat(mapping.container_ip, port_key(mapping.container_port + port - mapping.first))


def place_of(mapping: Mapping) -> Place:
    """Where a mapping of one port is in the maps of shared ports."""
    return Place(mapping.family, mapping.host_ip, claim_key(mapping, mapping.first))


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
        from cni_py import portshares

        target = target_of(mapping, mapping.first)
        first = portshares.join(draft, place_of(mapping), who.shared_chain(mapping), target, who.comment)
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
            from cni_py import portshares

            if portshares.leave(draft, place_of(mapping), who.key.hex) and mapping.host_ip is not None:
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
            holder = heirs.record_of(comment[:HEX])
            if holder is None or heirs.is_dead(holder):
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
                holder = heirs.record_of(comment[:HEX])
                if holder is None or heirs.is_dead(holder):
                    dead.add(comment[:HEX])
                elif holder.key.container_id != kernel.key.container_id:
                    raise _port_in_use(mapping, mapping.first, holder.key.label)
    except NftUnavailable:
        return set()  # then nothing of ours can be there
    return dead


def lacking(draft: Draft, who: Claimant, mapping: Mapping) -> str:
    """The first of the mapping's ports that does not lead where it should, "" when all do or another network serves them."""
    if mapping.share:
        from cni_py import portshares

        for member in portshares.members(draft, place_of(mapping)):
            if who.owns(member) and member.value == target_of(mapping, mapping.first):
                whole = portshares.chain_at(draft, place_of(mapping)) == who.shared_chain(mapping)
                claimed = _holders(draft, mapping, mapping.first)
                return "" if whole and claimed else f"{mapping.first}/{mapping.protocol}"
    for port in mapping.ports:
        holder = _holder(draft, mapping, port)
        if mapping.share or holder != who.key.hex:
            other = heirs.record_of(holder) if holder else None
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
    from cni_py import portshares

    return [member.comment for member in portshares.members(draft, place)]


def _port_in_use(mapping: Mapping, port: int, holder: str) -> PortInUse:
    address = str(Mapping(mapping.protocol, mapping.host_ip, port, mapping.container_ip, port)).split(" ")[1]
    terms = "; containers that share a port all say so, with the same `allow` and conditions" if mapping.share else ""
    return PortInUse(f"host port {port}/{mapping.protocol} is in use by {holder}", f"wanted on {address}{terms}")


def evict(draft: Draft, hexed: str) -> None:
    """Take out every port of a dead attachment, found by its comments: it may have no record."""
    from cni_py import portshares

    for family in (4, 6):
        for kind in ("any", "specific"):
            freed = portshares.evict(draft, family, kind, hexed)
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


def network_of(element: Element) -> str:
    """The network of the attachment that the element belongs to; "" for an element that belongs to none."""
    hexed, _, label = element.comment.partition(" ")
    network, slash, _ = label.partition("/")
    return network if len(hexed) == HEX and slash else ""


def holders_in(draft: Draft, network: str) -> set[str]:
    """The hex of every attachment of `network` that holds a port."""
    from cni_py import portshares

    kinds = ("claims", "specific", "conditional_specific", "hairpin")
    found = [element for family in (4, 6) for kind in kinds for element in draft.dump(f"{kind}{family}")]
    for family in (4, 6):
        for kind in ("any", "specific"):
            for place in portshares.places(draft, family, kind):
                found += portshares.members(draft, place)
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
