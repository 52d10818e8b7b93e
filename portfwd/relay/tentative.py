"""IPv6 addresses that the kernel still checks for duplicates (RFC 4862, section 5.4): at boot, and when one was just added.

bind(2) refuses them with EADDRNOTAVAIL, as it does an address that no interface has. A socket with IPV6_FREEBIND is bound now,
and gets clients as soon as the check is over: a second or two later, or whenever the link gets a carrier.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from cni_py.kernel import inet
from cni_py.kernel.inet import Addr
from cni_py.kernel.rtnl import Rtnl

if TYPE_CHECKING:
    from portfwd.mapping import Mapping

IPV6_FREEBIND = 78  # linux/in6.h, Linux 4.15; the socket module does not name it
LOOPBACK_OR_ANY = ("::", "::1")  # no interface checks these


def bind(sock: socket.socket, address: tuple[str, int] | tuple[str, int, int, int]) -> None:
    """bind(2), also to a tentative address. OSError."""
    try:
        sock.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL or not is_tentative(address[0]):
            raise
        # Only now: with IPV6_FREEBIND from the start, a mistyped address would be bound, too, and never get a client.
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        sock.bind(address)


def is_tentative(ip: str) -> bool:
    """Whether an interface still checks the address, and no other one has it. A duplicate is no longer checked."""
    found = assigned(ip)
    return all(one.tentative for one in found) and not all(one.dad_failed for one in found)


def is_duplicate(ip: str) -> bool:
    """Whether an interface does not use the address, since another machine on its link has it (dadfailed)."""
    return any(one.dad_failed for one in assigned(ip))


def notes(mappings: Iterable[Mapping]) -> list[str]:
    """A sentence for each address of mappings that is tentative."""
    ips = dict.fromkeys(ip for mapping in mappings if not mapping.follow for ip in mapping.host_ips)
    return [
        f"{ip} is still checked for duplicates (tentative): clients reach it when that is over"
        for ip in ips
        if is_tentative(ip)
    ]


def assigned(ip: str) -> list[Addr]:
    """The entries of an IPv6 address on interfaces of this host; none when the kernel does not tell."""
    if ":" not in ip or ip in LOOPBACK_OR_ANY:
        return []
    wanted = socket.inet_pton(socket.AF_INET6, ip)
    with suppress(OSError), closing(Rtnl()) as host:
        return [one for one in inet.addresses(host, family=6) if one.address.packed == wanted]
    return []
