"""IP and MAC addresses as packed bytes, read and written as Go's package net does.

An IP address is `bytes` of length 4 or 16. IPv6 text that stands for an IPv4 address (`::ffff:10.1.2.3`) becomes 4
bytes, as with Go's To4(); so the length is the family everywhere.
"""

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2
HEX = frozenset("0123456789abcdefABCDEF")


class Address:
    """An address with its prefix length; host bits are kept."""

    __slots__ = ("packed", "prefixlen")

    def __init__(self, packed: bytes, prefixlen: int) -> None:
        if len(packed) not in (4, 16) or not 0 <= prefixlen <= 8 * len(packed):
            raise ValueError(f"invalid address: {packed.hex()}/{prefixlen}")
        self.packed = packed
        self.prefixlen = prefixlen

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if len(self.packed) == 4 else 6

    def network(self) -> "Address":
        """The same prefix with the host bits zero."""
        size = len(self.packed)
        return Address(ip_of(int_of(self.packed) & ~_host_mask(self), size), self.prefixlen)

    def broadcast(self) -> bytes:
        """The last address of the prefix, whatever the family."""
        return ip_of(int_of(self.packed) | _host_mask(self), len(self.packed))

    def contains(self, ip: bytes) -> bool:
        return len(ip) == len(self.packed) and (int_of(ip) | _host_mask(self)) == int_of(self.broadcast())

    def host(self) -> "Address":
        """The address alone: /32 or /128."""
        return Address(self.packed, 8 * len(self.packed))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and (self.packed, self.prefixlen) == (other.packed, other.prefixlen)

    def __hash__(self) -> int:
        return hash((self.packed, self.prefixlen))

    def __str__(self) -> str:
        return f"{ip_text(self.packed)}/{self.prefixlen}"

    def __repr__(self) -> str:
        return f"Address({self})"


def _host_mask(address: Address) -> int:
    """The host bits of the prefix, as a number."""
    return int((1 << (8 * len(address.packed) - address.prefixlen)) - 1)


def int_of(ip: bytes) -> int:
    return int.from_bytes(ip, "big")


def ip_of(value: int, length: int) -> bytes:
    """The address of `length` bytes with that number; ValueError when it has no such address."""
    try:
        return value.to_bytes(length, "big")
    except OverflowError as error:
        raise ValueError(f"no address of {length} bytes has the number {value}") from error


EMPTY = '""'  # how errors show an empty text


def parse_ip(text: str) -> bytes:
    """The address, or ValueError. No zone, no leading zeros in IPv4."""
    packed = _pton(text)
    if packed is None:
        raise ValueError(f"invalid IP address: {text or EMPTY}")
    return packed[12:] if packed.startswith(MAPPED) else packed


def _pton(text: str) -> bytes | None:
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate in the text
        return None


def ip_text(ip: bytes) -> str:
    """The canonical text, RFC 5952."""
    if len(ip) == 4:
        return inet_ntop(AF_INET, ip)
    text = inet_ntop(AF_INET6, ip)
    if "." in text and not ip.startswith(MAPPED):  # glibc writes the deprecated ::a.b.c.d for ::/96; Go does not
        return f"{text[: text.rindex(':')]}:{ip[12] << 8 | ip[13]:x}:{ip[14] << 8 | ip[15]:x}"
    return text


def parse_address(text: str) -> Address:
    """`a/len` with its host bits, or ValueError in the words of Go's ParseCIDR."""
    ip, slash, length = text.partition("/")
    packed = _pton(ip)
    if packed is None or not slash or not (length.isascii() and length.isdigit() and len(length) < 8):
        raise ValueError(
            f"invalid CIDR address: {text or EMPTY} (wanted: an address with its prefix length, ADDRESS/LENGTH)"
        )
    prefixlen = int(length)
    if prefixlen > 8 * len(packed):
        raise ValueError(f"invalid CIDR address: {text or EMPTY} (the prefix length is at most {8 * len(packed)})")
    if packed.startswith(MAPPED):
        return Address(packed[12:], max(prefixlen - 96, 0))
    return Address(packed, prefixlen)


def by_family(texts: "Iterable[str]") -> dict[int, list[Address]]:
    """The addresses in ["192.0.2.2/24", "2001:db8::2/64"], by family, 4 and 6. ValueError."""
    found: dict[int, list[Address]] = {}
    for text in texts:
        address = parse_address(text)
        found.setdefault(address.family, []).append(address)
    return found


def parse_mac(text: str) -> bytes:
    """The 6 bytes of `02:00:00:00:00:01`, `02-00-00-00-00-01` or `0200.0000.0001`, or ValueError."""
    for separator, digits in ((":", 2), ("-", 2), (".", 4)):
        groups = text.split(separator)
        if len(groups) * digits == 12 and all(len(group) == digits and HEX.issuperset(group) for group in groups):
            return bytes.fromhex("".join(groups))
    raise ValueError(f"invalid MAC address: {text or EMPTY} (wanted: 6 bytes, such as 02:00:00:00:00:01)")


def interface_mac(text: str) -> bytes:
    """As parse_mac(); ValueError also for a MAC that no interface can have: multicast, or all zero."""
    mac = parse_mac(text)
    if mac[0] & 1 or not any(mac):
        why = "no interface can have it" if not any(mac) else "it is a multicast address, which no interface can have"
        raise ValueError(f"invalid MAC address: {text or EMPTY} ({why})")
    return mac


def mac_text(mac: bytes) -> str:
    return mac.hex(":")
