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


def bind(sock: socket.socket, ip: str, port: int) -> None:
    """bind(2), also to a tentative address. OSError."""
    try:
        sock.bind((ip, port))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL or not is_tentative(ip):
            raise
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        sock.bind((ip, port))


def is_tentative(ip: str) -> bool:
    """Whether an interface has the address and checks it; one that was found to be a duplicate is none."""
    found = assigned(ip)
    return found is not None and found.tentative and not found.dad_failed


def is_duplicate(ip: str) -> bool:
    """Whether an interface has the address, and does not use it, since another machine on its link has it, too."""
    found = assigned(ip)
    return found is not None and found.dad_failed


def notes(mappings: Iterable[Mapping]) -> list[str]:
    """A sentence for each address of mappings that is tentative."""
    ips = dict.fromkeys(ip for mapping in mappings for ip in mapping.host_ips)
    return [
        f"{ip} is still checked for duplicates (tentative): clients reach it when that is over"
        for ip in ips
        if is_tentative(ip)
    ]


def assigned(ip: str) -> Addr | None:
    """The address as an interface of this host has it; None when none has it, or the kernel does not tell."""
    if ":" not in ip or ip in LOOPBACK_OR_ANY:
        return None
    wanted = socket.inet_pton(socket.AF_INET6, ip)
    with suppress(OSError), closing(Rtnl()) as host:
        return next((one for one in host.addresses(family=6) if one.address.packed == wanted), None)
    return None
