"""The ranges that host-local allocates from, and which address comes next. Pure: whether an address is free is a predicate.

A *range* is a part of one subnet, with a gateway. A *range set* is a list of ranges; an attachment gets one address of each
set. A set gives out its addresses in order, from the one after the last that it gave, through all its ranges and around. So a
released address is not used again before all others have been.

The gateway and the addresses in `exclude` are skipped. A request may name an excluded address: they are kept for that.
`rangeStart` and `rangeEnd` hold for both.
"""

from cni_py.addr import Address, int_of, ip_of, ip_text, parse_address, parse_ip
from cni_py.errors import CniError, InvalidNetworkConfig
from cni_py.protocol import netconf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cni_py.protocol.gojson import Object, Value

    RangeSet = list["Range"]


SETS_MAX = 256
EXCLUDE_MAX = 1_000_000  # entries of ipam.exclude, counted for each range


class Block:
    """Consecutive addresses of one family that are not given out: an entry of `exclude`."""

    __slots__ = ("first", "last", "width")

    def __init__(self, first: bytes, last: bytes) -> None:
        self.first = int_of(first)
        self.last = int_of(last)
        self.width = len(first)


def parse_block(text: str) -> Block:
    """An entry of `exclude`: an address, a network in CIDR form (all its addresses), or two addresses joined by '-'.

    InvalidNetworkConfig for anything else.
    """
    first, dash, last = (part.strip() for part in text.partition("-"))
    try:
        if not dash and "/" in text:
            subnet = parse_address(text)
            return Block(subnet.network().packed, subnet.broadcast())
        block = Block(parse_ip(first), parse_ip(last if dash else first))
        if dash and (len(parse_ip(first)) != len(parse_ip(last)) or block.first > block.last):
            raise ValueError(text)
    except ValueError as error:
        raise InvalidNetworkConfig(f'exclude: "{text}" is not an address, a network or a range a-b') from error
    return block


def joined(blocks: "Sequence[Block]") -> list[Block]:
    """The same addresses in as few blocks as possible, in order, IPv4 before IPv6."""
    apart: list[Block] = []
    for block in sorted(blocks, key=lambda block: (block.width, block.first)):
        if apart and block.width == apart[-1].width and block.first <= apart[-1].last + 1:
            last = max(apart[-1].last, block.last)
            apart[-1] = Block(ip_of(apart[-1].first, block.width), ip_of(last, block.width))
        else:
            apart.append(block)
    return apart


class Range:
    """A range; `start` and `end` are its first and last address as numbers. InvalidNetworkConfig for values that make none.

    The error does not name the set; parse_set() does.
    """

    __slots__ = ("end", "excluded", "gateway", "start", "subnet")

    def __init__(
        self,
        subnet: Address,
        start: bytes | None = None,
        end: bytes | None = None,
        gateway: bytes | None = None,
        exclude: "Sequence[Block]" = (),
    ) -> None:
        width = len(subnet.packed)
        spare = 8 * width - subnet.prefixlen  # bits of the host part
        if spare < 1:
            raise InvalidNetworkConfig(f"Network {subnet} too small to allocate from")
        network = subnet.network()
        if network.packed != subnet.packed:
            raise InvalidNetworkConfig(
                f"Network has host bits set. For a subnet mask of length {subnet.prefixlen} the network address is "
                f"{ip_text(network.packed)}"
            )
        self.subnet = subnet
        base, top = int_of(network.packed), int_of(network.broadcast())
        self.gateway = gateway or ip_of(base + 1, width)
        self.end = top if end is None else int_of(end)
        if start is not None and not subnet.contains(start):
            raise InvalidNetworkConfig(f"RangeStart {ip_text(start)} not in network {subnet}")
        if end is not None and not subnet.contains(end):
            raise InvalidNetworkConfig(f"RangeEnd {ip_text(end)} not in network {subnet}")
        # The network's own address is left out, except where it is one of two: RFC 3021 (/31), RFC 6164 (/127).
        self.start = (base if spare == 1 else base + 1) if start is None else int_of(start)
        if end is None and width == 4 and spare > 1:
            self.end = top - 1  # without the broadcast address; IPv6 has none
        if self.start > self.end:
            last = ip_text(ip_of(self.end, width))
            if start is None:
                raise InvalidNetworkConfig(f"RangeEnd {last} not in network {subnet}: the network's own address")
            raise InvalidNetworkConfig(f"RangeStart {ip_text(start)} of {subnet} comes after the range's end, {last}")
        self.excluded = joined([block for block in exclude if block.width == width])

    @property
    def width(self) -> int:
        """Bytes in an address: 4 or 16."""
        return len(self.subnet.packed)

    def contains(self, ip: bytes) -> bool:
        """Whether `ip` lies in the range, excluded or not."""
        return len(ip) == self.width and self.start <= int_of(ip) <= self.end

    def overlaps(self, other: "Range") -> bool:
        """Whether the two ranges have an address in common."""
        return self.width == other.width and self.start <= other.end and other.start <= self.end

    def __str__(self) -> str:
        return f"{ip_text(ip_of(self.start, self.width))}-{ip_text(ip_of(self.end, self.width))}"


def parse_sets(ipam: "Object", runtime_config: "Object") -> "list[RangeSet]":
    """The range sets of a configuration, in the order of the result's addresses: the runtime's (ipRanges) first.

    InvalidNetworkConfig for sets that are none, overlap, or are too many.
    """
    groups = _groups(ipam, runtime_config)
    if not groups:
        raise InvalidNetworkConfig(
            'no IP ranges specified: ipam needs "ranges", such as [[{"subnet": "192.0.2.0/24"}]]'
        )
    if len(groups) > SETS_MAX:
        raise InvalidNetworkConfig(
            f"{len(groups)} range sets", f"an interface gets an address of each; {SETS_MAX} at most"
        )
    exclude = joined([parse_block(text) for text in netconf.strings(ipam, "exclude")])
    count = sum(len(group) for group in groups if isinstance(group, list))
    if len(exclude) * count > EXCLUDE_MAX:
        raise InvalidNetworkConfig(
            f"ipam.exclude has {len(exclude)} entries for {count} ranges", f"{EXCLUDE_MAX} in all at most"
        )
    range_sets = [parse_set(number, group, exclude) for number, group in enumerate(groups)]
    check_sets(range_sets)
    return range_sets


def _groups(ipam: "Object", runtime_config: "Object") -> "list[Value]":
    groups = list(netconf.values(runtime_config, "ipRanges") or ())
    if netconf.optional_string(ipam, "subnet") is not None:
        groups.append([ipam])  # the oldest form: the keys of one range in ipam itself
    return groups + list(netconf.values(ipam, "ranges") or ())


def gateways(ipam: "Object", runtime_config: "Object") -> list[Address]:
    """The gateways of all ranges, each with the prefix length of its subnet, up to the first range that is not valid."""
    found = []
    try:
        for group in _groups(ipam, runtime_config):
            for entry in netconf.as_objects(group, "ranges"):
                one = parse_range(entry, [])
                found += [Address(one.gateway, one.subnet.prefixlen)] if len(one.gateway) == one.width else []
    except (CniError, ValueError):
        pass  # the IPAM plugin refuses it
    return found


def parse_set(number: int, entries: "Value", exclude: list[Block]) -> "RangeSet":
    """The range set in a list of objects. InvalidNetworkConfig with the set's number."""
    try:
        if isinstance(entries, dict):
            raise netconf.Undecodable('ranges must be a list of lists: [[{"subnet": ...}]], not [{...}]')
        ranges = [parse_range(entry, exclude) for entry in netconf.as_objects(entries, "a list in ranges")]
        check_set(ranges)
    except (CniError, ValueError) as error:
        code = error.code if isinstance(error, CniError) else None
        raise InvalidNetworkConfig(f"invalid range set {number}: {error}", code=code) from None
    return ranges


def parse_range(entry: "Object", exclude: list[Block]) -> Range:
    """A range of the configuration. An empty text counts as missing, but for the subnet. CniError or ValueError."""
    subnet = netconf.optional_string(entry, "subnet")
    if subnet is None:
        raise InvalidNetworkConfig('a range has no "subnet"')
    start, end, gateway = (_optional_ip(entry, name) for name in ("rangeStart", "rangeEnd", "gateway"))
    own = [parse_block(text) for text in netconf.strings(entry, "exclude")]
    return Range(parse_address(subnet), start, end, gateway, [*exclude, *own])


def _optional_ip(entry: "Object", name: str) -> bytes | None:
    """The address under a key; None where it is missing or empty. InvalidNetworkConfig."""
    text = netconf.string(entry, name)
    try:
        return parse_ip(text) if text else None
    except ValueError as error:
        raise InvalidNetworkConfig(f"{name}: {error}") from None


def check_set(ranges: "RangeSet") -> None:
    """InvalidNetworkConfig for a set that is empty, of both families, or whose ranges overlap."""
    if not ranges:
        raise InvalidNetworkConfig("empty range set")
    if len({one.width for one in ranges}) > 1:
        raise InvalidNetworkConfig("mixed address families: IPv4 and IPv6 need a set (a list) each")
    pair = overlapping(list(enumerate(ranges)))
    if pair is not None:
        (_, other), (_, one) = pair
        raise InvalidNetworkConfig(f"subnets {other} and {one} overlap")


def check_sets(range_sets: "Sequence[RangeSet]") -> None:
    """InvalidNetworkConfig when two sets have an address in common."""
    for width in (4, 16):
        alike = [(number, one) for number, ranges in enumerate(range_sets) for one in ranges if one.width == width]
        pair = overlapping(alike)
        if pair is not None:
            raise InvalidNetworkConfig(f"range set {pair[0][0]} overlaps with {pair[1][0]}")


def overlapping(numbered: "list[tuple[int, Range]]") -> "tuple[tuple[int, Range], tuple[int, Range]] | None":
    """Two of the ranges, all of one family, that overlap, the lower number first; None when none do.

    One pass in the order of their first addresses: a range overlaps one before it if it overlaps the one that ends last.
    """
    widest: tuple[int, Range] | None = None  # of the ranges so far, the one that ends last
    for current in sorted(numbered, key=lambda entry: entry[1].start):
        if widest is not None and current[1].overlaps(widest[1]):
            return (widest, current) if widest[0] <= current[0] else (current, widest)
        if widest is None or current[1].end > widest[1].end:
            widest = current
    return None


def set_text(ranges: "RangeSet") -> str:
    """The set as errors show it."""
    return ",".join(str(one) for one in ranges)


def range_of(ranges: "RangeSet", ip: bytes) -> Range | None:
    """The range of the set that `ip` lies in, or None."""
    return next((one for one in ranges if one.contains(ip)), None)


def candidates(ranges: "RangeSet", last: bytes | None) -> "Iterator[tuple[bytes, Range]]":
    """The addresses of a set in the order of choice, each once, from the one after `last` (None: from the first).

    Blocks of excluded addresses are jumped over, not walked through: a block may be a /64.
    """
    for first, final, one in _lap(ranges, last):
        value = first
        ahead = iter([block for block in one.excluded if block.last >= first])
        block = next(ahead, None)
        while value <= final:
            while block is not None and block.last < value:
                block = next(ahead, None)
            if block is not None and block.first <= value:
                value = block.last + 1
                continue
            ip = ip_of(value, one.width)
            if ip != one.gateway:
                yield ip, one
            value += 1


def _lap(ranges: "RangeSet", last: bytes | None) -> "Iterator[tuple[int, int, Range]]":
    """One lap through the set as parts (first, last, range); the address `last` is the very end."""
    current = None if last is None else range_of(ranges, last)
    if last is None or current is None:
        yield from ((one.start, one.end, one) for one in ranges)
        return
    at = ranges.index(current)
    yield int_of(last) + 1, current.end, current
    yield from ((one.start, one.end, one) for one in ranges[at + 1 :] + ranges[:at])
    yield current.start, int_of(last), current


def choose(
    ranges: "RangeSet", requested: bytes | None, last: bytes | None, is_free: "Callable[[bytes], bool]"
) -> "tuple[bytes, Range]":
    """The address for one attachment, and its range: the one `requested`, or the first that is free after `last`.

    InvalidNetworkConfig for the gateway; CniError when no address, or not this one, can be given.
    """
    if requested is None:
        for ip, one in candidates(ranges, last):
            if is_free(ip):
                return ip, one
        excluded = " or excluded" * any(one.excluded for one in ranges)
        raise CniError(f"no IP addresses available in range set: {set_text(ranges)}: all are taken{excluded}")
    wanted = range_of(ranges, requested)
    if wanted is not None and requested == wanted.gateway:
        raise InvalidNetworkConfig(f"requested ip {ip_text(requested)} is subnet's gateway")
    if wanted is None or not is_free(requested):
        taken = "it is taken" if wanted is not None else "it is not in it"
        which = f"requested IP address {ip_text(requested)} is not available in range set {set_text(ranges)}"
        raise CniError(f"{which}: {taken}")
    return requested, wanted
