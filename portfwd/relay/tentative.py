"""IPv6 addresses that the kernel still checks for duplicates (RFC 4862, section 5.4): at boot, and when one was just added.

bind(2) refuses them in the words that it has for an address that no interface has. A socket with IPV6_FREEBIND is bound at once
and gets its first client as soon as the check is over, a second or two later, or whenever the link gets a carrier.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from cni_py.kernel.rtnl import Addr, Rtnl

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
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        sock.bind(address)


def is_tentative(ip: str) -> bool:
    """Whether an interface checks the address, and none has it already. One that was found to be a duplicate is none."""
    found = assigned(ip)
    return all(one.tentative for one in found) and not all(one.dad_failed for one in found)


def is_duplicate(ip: str) -> bool:
    """Whether an interface has the address, and does not use it, since another machine on its link has it, too."""
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
    """An IPv6 address as interfaces of this host have it; nothing where the kernel does not tell."""
    if ":" not in ip or ip in LOOPBACK_OR_ANY:
        return []
    wanted = socket.inet_pton(socket.AF_INET6, ip)
    with suppress(OSError), closing(Rtnl()) as host:
        return [one for one in host.addresses(family=6) if one.address.packed == wanted]
    return []
