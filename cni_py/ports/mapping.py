"""Which host ports lead where: the mappings of a configuration for the addresses of a container. Pure.

A mapping is published for each family the container has an address of, unless hostIP belongs to one of them. As with
bind(2), an absent hostIP, 0.0.0.0 and :: mean any address. NAT can publish nothing on ::1: the kernel does not forward it. A
hostIP that is no address is an error.

What NAT cannot do portfwd may, if it runs: see relays() and relay.py. What a port has beyond its mapping
(`share`, `allow`) is in options.py.
"""

from cni_py.addr import Address, ip_text, parse_address, parse_ip
from cni_py.errors import InvalidNetworkConfig
from cni_py.ports.config import PORT_MAX, RANGE_MIN, Entry, PortmapConf
from cni_py.protocol import result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cni_py.protocol.gojson import Encodable
    from cni_py.protocol.result import Result

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}  # IANA protocol numbers
LOOPBACK6 = b"\0" * 15 + b"\1"
MULTICAST4 = range(224, 240)  # first bytes
BROADCAST4 = b"\xff" * 4


MASQUERADED = {  # values of the field `clients` of an operation in words, with the container's addresses
    "subnet": "; clients in the subnet of {} and on the host's loopback are masqueraded",
    "all": "; all clients of {} are masqueraded",
    "none": "",
}


class Mapping:
    """Host ports `first` to `last` of one protocol and family, on `host_ip` or (None) any address, to a container.

    Of several ports each leads to the container's port of the same number. `allow` are the networks of the only clients
    (none: all), `share` says that other containers may have the same port beside this one: both for single ports alone.
    """

    __slots__ = ("allow", "container_ip", "container_port", "first", "host_ip", "last", "protocol", "share")

    def __init__(
        self,
        protocol: str,
        host_ip: bytes | None,
        first: int,
        container_ip: bytes,
        container_port: int,
        last: int = 0,
        *,
        allow: "Sequence[str]" = (),
        share: bool = False,
    ) -> None:
        self.protocol = protocol
        self.host_ip = host_ip
        self.first = first
        self.last = last or first
        self.container_ip = container_ip
        self.container_port = container_port
        self.allow = allow
        self.share = share

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"Mapping({self})"

    def __str__(self) -> str:
        any_ip = bytes(len(self.container_ip))
        upto, container_upto = "", ""
        if self.last > self.first:
            upto, container_upto = f"-{self.last}", f"-{self.container_port + self.last - self.first}"
        host = f"{bracketed(self.host_ip or any_ip)}:{self.first}{upto}"
        extra = " from " + " ".join(self.allow) if self.allow else ""
        extra += " shared" if self.share else ""
        return f"{self.protocol} {host} to {bracketed(self.container_ip)}:{self.container_port}{container_upto}{extra}"

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if len(self.container_ip) == 4 else 6

    @property
    def ports(self) -> range:
        """The host's ports."""
        return range(self.first, self.last + 1)

    def apart(self) -> "list[Mapping]":
        """The same, a mapping for each port."""
        if self.last == self.first:
            return [self]
        offset = self.container_port - self.first
        return [
            Mapping(
                self.protocol, self.host_ip, port, self.container_ip, port + offset, allow=self.allow, share=self.share
            )
            for port in self.ports
        ]

    def condition(self, common: str) -> str:
        """What a packet must match, in nft's words: `common` to all mappings of its family, and who may be a client."""
        ip = "ip" if self.family == 4 else "ip6"
        clients = f"{ip} saddr {{ {', '.join(self.allow)} }}" if self.allow else ""
        return " ".join(filter(None, (common, clients)))


class ByPort:
    """Mappings, to be found by their ports: there may be thousands of single ones, and some that have many ports."""

    __slots__ = ("_long", "_single")

    def __init__(self, mappings: "Iterable[Mapping]") -> None:
        self._long: list[Mapping] = []
        self._single: dict[tuple[str, int], list[Mapping]] = {}
        for mapping in mappings:
            if mapping.first < mapping.last:
                self._long.append(mapping)
            else:
                self._single.setdefault((mapping.protocol, mapping.first), []).append(mapping)

    def having(self, protocol: str, first: int, last: int = 0) -> list[Mapping]:
        """Those that have a port from `first` to `last` (0: the one port), on whatever address."""
        last = last or first
        found = [one for one in self._long if one.protocol == protocol and one.first <= last and first <= one.last]
        if first == last:
            return found + self._single.get((protocol, first), [])
        return found + [
            one for (of, port), ones in self._single.items() if of == protocol and first <= port <= last for one in ones
        ]


def bracketed(ip: bytes) -> str:
    """The address as it stands before a port."""
    return ip_text(ip) if len(ip) == 4 else f"[{ip_text(ip)}]"


def parse_mappings(texts: "Iterable[str]") -> list[Mapping]:
    """The mappings in the texts that str() made of them. ValueError when it was not."""
    return list(map(_parse_mapping, texts))


def separated(fields: "dict[str, object]", name: str) -> "dict[str, object]":
    """For translated(): the field was one text, its parts separated by ", ", and is a list of texts now."""
    value = fields.get(name)
    return {**fields, name: value.split(", ")} if isinstance(value, str) else fields


def _parse_mapping(text: str) -> Mapping:
    protocol, host, to, container, *extra = text.split(" ")
    share = extra[-1:] == ["shared"]
    clients = extra[:-1] if share else extra
    allow = clients[1:]
    if clients and (clients[0] != "from" or not allow or not all(_is_network(network, host) for network in allow)):
        raise ValueError(f"not clients of a port mapping: {text}")
    if protocol not in PROTOCOLS or to != "to":
        raise ValueError(f"not a port mapping: {text}")
    (host_ip, first, last), (container_ip, container_port, container_last) = _parse_end(host), _parse_end(container)
    if len(host_ip) != len(container_ip) or last - first != container_last - container_port:
        raise ValueError(f"two ends that do not fit: {text}")
    if last > first and extra:
        raise ValueError(f"not for several ports: {text}")
    host_or_any = host_ip if any(host_ip) else None
    return Mapping(protocol, host_or_any, first, container_ip, container_port, last, allow=allow, share=share)


def _is_network(text: str, host: str) -> bool:
    """Whether it is one of the family of `host`; ValueError when it is no network at all."""
    return (parse_address(text).family == 6) == host.startswith("[")


def _parse_end(text: str) -> tuple[bytes, int, int]:
    ip, _, ports = text.rpartition(":")
    texts = ports.split("-")
    first, last = int(texts[0]), int(texts[-1])
    if not 1 <= first <= last <= PORT_MAX:
        raise ValueError(f"not ports: {ports}")
    return parse_ip(ip.strip("[]")), first, last


def container_addresses(earlier: "Result", ifname: str) -> list[Address]:
    """The container's first address of each family, IPv4 first: one of `ifname`, or of no interface named."""
    found: dict[int, Address] = {}
    for address in result.addresses_of(earlier, ifname):
        found.setdefault(address.family, address)
    return [found[family] for family in sorted(found)]


def mappings(conf: PortmapConf, addresses: "Sequence[Address]") -> list[Mapping]:
    """What `conf` publishes for a container with these addresses, long runs of ports put together. InvalidNetworkConfig."""
    found: list[Mapping] = []
    for entry in entries_of(conf):
        protocol = entry.protocol.lower()
        options = conf.options.get((protocol, entry.host_port))
        for address in addresses:
            host_ip, wanted = _host_ip(entry.host_ip, address.family)
            if wanted and (options is None or options.serves(address.family)):
                last = entry.host_port + entry.count - 1
                one = Mapping(protocol, host_ip, entry.host_port, address.packed, entry.container_port, last)
                if options is not None:
                    one.allow, one.share = options.clients(address.family), options.share
                found.append(one)
    return _runs(_distinct(found), conf.conditions)


def entries_of(conf: PortmapConf) -> list[Entry]:
    """The entries, checked. Each of them has ports of its own, or is a single port. InvalidNetworkConfig."""
    for entry in conf.entries:
        _check(entry)
    if any(entry.count > 1 for entry in conf.entries):
        last: dict[str, int] = {}  # of the entries before, by protocol
        for entry in sorted(conf.entries, key=lambda entry: entry.host_port):
            protocol = entry.protocol.lower()
            if entry.host_port <= last.get(protocol, 0):
                return [one for entry in conf.entries for one in entry.apart()]
            last[protocol] = entry.host_port + entry.count - 1
    return conf.entries


def _check(entry: Entry) -> None:
    """InvalidNetworkConfig for a protocol or ports that there are not. A protocol may be in upper case, as with iptables."""
    if entry.protocol.lower() not in PROTOCOLS:
        raise InvalidNetworkConfig(
            f'unknown protocol "{entry.protocol}" of host port {entry.host_port}: it is one of {", ".join(PROTOCOLS)}'
        )
    for whose, port in (("host", entry.host_port), ("container", entry.container_port)):
        if port > PORT_MAX:
            raise InvalidNetworkConfig(f"{whose} port {port} is out of range (1 to {PORT_MAX})")


def _host_ip(text: str, family: int) -> tuple[bytes | None, bool]:
    """The host address in `text` (None: any), and whether NAT publishes anything on it in this family."""
    if not text:
        return None, True
    host_ip = parse_ip(text)
    wanted = len(host_ip) == (4 if family == 4 else 16) and is_for_nat(host_ip)
    return host_ip if any(host_ip) else None, wanted


def is_for_nat(host_ip: bytes) -> bool:
    """Whether NAT takes clients of this address: of ::1 and link-local ones the kernel forwards nothing.

    A multicast or broadcast address is nobody's own, so that the rules for what is sent to this host do not see it.
    """
    if len(host_ip) == 4:
        return host_ip[0] not in MULTICAST4 and host_ip != BROADCAST4
    link_local = host_ip[0] == 0xFE and host_ip[1] & 0xC0 == 0x80
    return host_ip != LOOPBACK6 and not link_local and host_ip[0] != 0xFF


def is_served(entry: Entry, addresses: "Iterable[Address]") -> bool:
    """Whether NAT leads somebody to a container with these addresses: nobody in a family that it has not; is_for_nat()."""
    return any(_host_ip(entry.host_ip, address.family)[1] for address in addresses)


def _distinct(found: list[Mapping]) -> list[Mapping]:
    """Each mapping once, and none of a specific address beside the same one of any. InvalidNetworkConfig: two that differ.

    What has several ports has them alone: see entries_of().
    """
    known: dict[tuple[bytes | None, int, str, int], Mapping] = {}
    for one in found:
        other = known.setdefault((one.host_ip, one.family, one.protocol, one.first), one)
        if other is not one and other != one:
            raise InvalidNetworkConfig(f"host port {one.first}/{one.protocol} is mapped twice", f"{other}; {one}")
    for (host_ip, family, protocol, port), one in list(known.items()):
        general = known.get((None, family, protocol, port))
        if host_ip is not None and general is not None:
            if general.container_port != one.container_port:  # bind(2) would refuse it
                raise InvalidNetworkConfig(f"host port {port}/{protocol} is mapped twice", f"{general}; {one}")
            del known[host_ip, family, protocol, port]
    return list(known.values())


def _runs(found: list[Mapping], conditions: dict[int, str]) -> list[Mapping]:
    """Mappings of RANGE_MIN or more ports in a row are put together where one interval can serve them, and no others.

    An interval of the nftables maps leads to an address, and leaves the port as it is: that is for unconditional mappings of
    any address to the same port numbers.
    """

    def fits(one: Mapping) -> bool:
        plain = not (one.allow or one.share or conditions.get(one.family))
        return plain and one.host_ip is None and one.first == one.container_port

    singles = [part for one in found if not fits(one) for part in one.apart()]
    run: list[Mapping] = []
    for one in sorted(filter(fits, found), key=lambda one: (one.family, one.protocol, one.first)):
        if run and (one.family, one.protocol, one.first) != (run[-1].family, run[-1].protocol, run[-1].last + 1):
            singles += _joined(run)
            run = []
        run.append(one)
    return singles + _joined(run)


def _joined(run: list[Mapping]) -> list[Mapping]:
    if not run or run[-1].last - run[0].first + 1 < RANGE_MIN:
        return run
    head = run[0]
    return [Mapping(head.protocol, None, head.first, head.container_ip, head.container_port, run[-1].last)]


def relays(conf: PortmapConf, addresses: "Iterable[Address]") -> "list[dict[str, Encodable]]":
    """What portfwd is asked to publish, as its control protocol has it but for the names; runs of ports put together.

    It listens on the addresses that hostIP permits, also in a family that the container has no address of, but not where
    something decides that it knows nothing of: conditions of nft, or other containers that share the port.
    """
    targets = {address.family: address.packed for address in addresses}
    singles: dict[tuple[str, int, int], dict[bytes, int]] = {}  # protocol, ports: container port by address of the host
    for entry in entries_of(conf) if targets else ():
        protocol = entry.protocol.lower()
        options = conf.options.get((protocol, entry.host_port))
        for host_ip in _listening_on(entry.host_ip) if protocol != "sctp" else ():
            family = 4 if len(host_ip) == 4 else 6
            if not conf.conditions.get(family) and (options is None or (options.serves(family) and not options.share)):
                ports = singles.setdefault((protocol, entry.host_port, entry.count), {})
                if ports.setdefault(host_ip, entry.container_port) != entry.container_port:
                    raise InvalidNetworkConfig(
                        f"host port {entry.host_port}/{protocol} is mapped twice", ip_text(host_ip)
                    )
    found: dict[tuple[str, tuple[str, ...], bytes, tuple[str, ...], int], list[range]] = {}
    for (protocol, port, count), ports in singles.items():
        options = conf.options.get((protocol, port))
        allow = tuple(map(str, options.allow or ())) if options is not None else ()
        for (target, container_port), host_ips in _by_target(ports, targets).items():
            place = (protocol, tuple(host_ips), target, allow, container_port - port)
            found.setdefault(place, []).append(range(port, port + count))
    return [relay for place, ports_of in found.items() for relay in _relays(place, ports_of)]


def _by_target(ports: dict[bytes, int], targets: dict[int, bytes]) -> dict[tuple[bytes, int], list[str]]:
    """The host's addresses, each beside any address of its family left out, by what they lead to."""
    found: dict[tuple[bytes, int], list[str]] = {}
    for host_ip, container_port in ports.items():
        if any(host_ip) and bytes(len(host_ip)) in ports:
            continue
        family = 4 if len(host_ip) == 4 else 6
        target = targets.get(family) or targets[10 - family]
        found.setdefault((target, container_port), []).append(ip_text(host_ip))
    return found


def _listening_on(text: str) -> list[bytes]:
    """The addresses of sockets for a hostIP."""
    return [parse_ip(text)] if text else [bytes(4), bytes(16)]


def _relays(
    place: tuple[str, tuple[str, ...], bytes, tuple[str, ...], int], ports: "Sequence[range]"
) -> "Iterator[dict[str, Encodable]]":
    """A mapping of portfwd's for each run of ports."""
    protocol, host_ips, target, allow, offset = place
    for first, last in runs_of(ports):
        yield {
            "protocol": protocol,
            "host_ips": list(host_ips),
            "first": first,
            "last": last,
            "targets": [{"address": ip_text(target), "port": first + offset}],
            "allow": list(allow),
        }


def runs_of(ports: "Iterable[range]") -> list[tuple[int, int]]:
    """First and last of each run of ports, in ascending order, of ranges that have no port in common."""
    found: list[tuple[int, int]] = []
    for one in sorted(ports, key=lambda one: one.start):
        if found and found[-1][1] == one.start - 1:
            found[-1] = (found[-1][0], one.stop - 1)
        else:
            found.append((one.start, one.stop - 1))
    return found
