"""A transaction on the maps of published ports in the making, and where a port is in them."""

from cni_py.kernel.nf_tables import Change, Element, Nft, concat, mark
from cni_py.ports.config import PORT_MAX
from cni_py.ports.mapping import PROTOCOLS, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

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


class Interval:
    """Host ports `first` to `last` of a map of ranges, and the element at the first, which says where they lead."""

    __slots__ = ("element", "first", "last")

    def __init__(self, element: Element, first: int, last: int) -> None:
        self.element = element
        self.first = first
        self.last = last

    @property
    def bounds(self) -> list[Element]:
        """As the kernel has it: where it begins, and where it is over. One that goes to the last port has no end."""
        end = [Element(port_key(self.last + 1), end=True)] if self.last < PORT_MAX else []
        return [self.element, *end]


class Draft:
    """A transaction in the making. Reading an element gives what will be there; only what differs is sent.

    A `blind` draft takes every set for empty instead of asking: the usual case, in which nothing is there yet, then costs one
    message, and a wrong guess is refused by the kernel as EEXIST. Intervals are read all the same: the kernel does not refuse
    a single port that lies inside of one.
    """

    __slots__ = ("_after", "_before", "_dumped", "_intervals", "_nft", "_ranges", "blind")

    def __init__(self, nft: Nft, *, blind: bool = False) -> None:
        self._nft = nft
        self.blind = blind
        self._before: dict[tuple[str, bytes], Element | None] = {}
        self._after: dict[tuple[str, bytes], Element | None] = {}
        self._dumped: dict[str, list[Element]] = {}  # by set
        self._ranges: dict[str, list[Interval]] = {}  # by set, as they will be
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

    def intervals(self, set_name: str) -> list[Interval]:
        """All that will be in a map of ranges, in ascending order of their ports, from one dump of the map."""
        if set_name not in self._ranges:
            # The kernel has no intervals, but bounds: an element where one begins, and one with the flag
            # NFT_SET_ELEM_INTERVAL_END at the first key that is not in it. Two that touch have both at one key: the end comes
            # first. nft adds an end at key 0, which closes nothing.
            bounds = sorted(self._nft.dump(set_name), key=lambda element: (element.key, not element.end))
            found = []
            for place, element in enumerate(bounds):
                if not element.end:
                    after = bounds[place + 1 : place + 2]
                    last = _port_of(after[0]) - 1 if after else PORT_MAX
                    found.append(Interval(element, _port_of(element), last))
            self._ranges[set_name] = found
        return self._ranges[set_name]

    def put_interval(self, set_name: str, one: Interval) -> None:
        """Put it in; one that is only to be removed by this transaction stays as it is."""
        self.intervals(set_name).append(one)
        self._change_interval(set_name, one, add=True)

    def remove_interval(self, set_name: str, one: Interval) -> None:
        """Take out one of intervals()."""
        self._ranges[set_name] = [other for other in self.intervals(set_name) if other is not one]
        self._change_interval(set_name, one, add=False)

    def _change_interval(self, set_name: str, one: Interval, *, add: bool) -> None:
        bounds = one.bounds
        for other in self._intervals:
            if (other.set_name, other.elements, other.add) == (set_name, bounds, not add):
                self._intervals.remove(other)
                return
        self._intervals.append(Change(add, set_name, bounds))

    def dump(self, set_name: str) -> list[Element]:
        """All elements of a map of single ports as it is before the transaction. get() does not ask for them again."""
        if set_name not in self._dumped:
            self._dumped[set_name] = self._nft.dump(set_name)
            for element in self._dumped[set_name]:
                if (set_name, element.key) not in self._before:
                    self._before[set_name, element.key] = self._after[set_name, element.key] = element
        return self._dumped[set_name]

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
                last = _port_of(end[0]) - 1 if end else PORT_MAX
                gone.append(_mapping_of_range(change.set_name, first, last))
        return [mapping for mapping in gone if mapping is not None]

    def changes(self) -> list[Change]:
        """What has to be sent, in the order in which the kernel works a transaction off.

        Removals come first: a key that is to be added exclusively must be gone, or the kernel answers EEXIST. Claims come before
        what jumps to chains: the first error counts, and for a port in use (EEXIST) no chain that is missing (ENOENT) is made.
        """
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
    port = _port_of(first)
    if not isinstance(first.value, bytes):
        return None
    return Mapping(set_name.partition("_")[2], None, port, first.value, port, last)


def _port_of(element: Element) -> int:
    return int.from_bytes(element.key[:2], "big")


def _claims_first(named: "tuple[str, list[Element]]") -> bool:
    return not named[0].startswith("claims")


def port_key(port: int) -> bytes:
    """A key or value of type inet_service."""
    return port.to_bytes(2, "big")


def range_map(mapping: Mapping) -> str:
    """The map of the ranges of the mapping's protocol and family."""
    return f"range{mapping.family}_{mapping.protocol}"


def interval_of(mapping: Mapping, comment: str) -> Interval:
    """The interval that leads the mapping's ports to its container: as an address, since the ports stay as they are."""
    return Interval(Element(port_key(mapping.first), mapping.container_ip, comment), mapping.first, mapping.last)


def claim_key(mapping: Mapping, port: int) -> bytes:
    """inet_proto . inet_service."""
    return concat(bytes((PROTOCOLS[mapping.protocol],)), port_key(port))


def port_in(key: bytes) -> int:
    """The port at the end of such a key, or of one that has an address before it."""
    return int.from_bytes(key[-4:-2], "big")


def target_of(mapping: Mapping) -> bytes:
    """The value of a map: where a mapping of one port leads."""
    return concat(mapping.container_ip, port_key(mapping.container_port))


def place_of(mapping: Mapping) -> Place:
    """Where a mapping of one port is in the maps of shared ports."""
    return Place(mapping.family, mapping.host_ip, claim_key(mapping, mapping.first))
