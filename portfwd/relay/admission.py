"""Who may connect: the allow list, and the limits on connections at a time. Pure.

IPv4 addresses also come as ::ffff:192.0.2.7 (RFC 4291 section 2.5.5.2): sockets of both families show their clients so, and some
people write networks so. In the list and of clients alike that means the IPv4 address. ::/0 means IPv6 clients.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from portfwd.mapping import Mapping

MAPPED_BITS = 96  # of ::ffff:0:0/96
REMEMBERED_MAX = 4096  # clients whose answer from the allow list is kept


class Admission:
    """The allow list and limits of one mapping, and how many clients are connected."""

    __slots__ = ("_allowed", "_judged", "_per_client", "_present", "limit", "present")

    def __init__(self, mapping: Mapping, limit: int) -> None:
        self.limit = mapping.limit or limit
        self._per_client = mapping.limit_per_client
        self._allowed = tuple(map(plain_network, mapping.allow))
        self._judged: dict[str, bool] = {}
        self._present: dict[str, int] = {}  # only kept where there is a limit per client
        self.present = 0

    def allows(self, ip: str) -> bool:
        """Whether the allow list has the client; `ip` may have an interface behind it (fe80::1%eth0)."""
        if not self._allowed:
            return True
        known = self._judged.get(ip)
        if known is None:
            if len(self._judged) >= REMEMBERED_MAX:
                self._judged.clear()
            address = plain_address(ip.partition("%")[0])
            known = self._judged[ip] = any(address in network for network in self._allowed)
        return known

    def enter(self, ip: str) -> bool:
        """Count a client in; False when a limit is reached."""
        if self.present >= self.limit or self.at_cap(ip):
            return False
        self.admit(ip)
        return True

    def at_cap(self, ip: str) -> bool:
        """Whether the client has as many connections as one client may have."""
        return bool(self._per_client) and self._present.get(ip, 0) >= self._per_client

    def reached(self, ip: str) -> str:
        """The limit that a client exceeds, for people."""
        if self.at_cap(ip):
            return f"the limit of {self._per_client} connections of one client"
        return f"the limit of {self.limit} connections"

    def admit(self, ip: str) -> None:
        """Count a client in, whatever the limits are."""
        if self._per_client:
            self._present[ip] = self._present.get(ip, 0) + 1
        self.present += 1

    def leave(self, ip: str) -> None:
        """Count a client out."""
        self.present -= 1
        if self._per_client and ip in self._present:
            left = self._present[ip] - 1
            if left > 0:
                self._present[ip] = left
            else:
                del self._present[ip]

    def successor(self, mapping: Mapping, limit: int, inside: Iterable[str]) -> Admission:
        """An admission for a changed mapping, with `inside`, the client of each running connection, counted in."""
        after = Admission(mapping, limit)
        for ip in inside:
            after.admit(ip)
        return after


def plain_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address; an IPv4-mapped IPv6 one as IPv4. ValueError."""
    found = ipaddress.ip_address(text)
    return (isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped) or found


def plain_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """A network; an IPv4-mapped one as IPv4: ::ffff:192.0.2.0/120 is 192.0.2.0/24. ValueError."""
    found = ipaddress.ip_network(text)
    inside = found.network_address.ipv4_mapped if isinstance(found, ipaddress.IPv6Network) else None
    return ipaddress.IPv4Network((inside, found.prefixlen - MAPPED_BITS)) if inside is not None else found
