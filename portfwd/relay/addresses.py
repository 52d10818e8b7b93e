"""The addresses that an interface or a host name has now."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from cni_py.addr import ip_text
from cni_py.kernel import inet
from cni_py.kernel.inet import Addr
from cni_py.kernel.rtnl import Rtnl
from portfwd import follow
from portfwd.errors import PortfwdError

IFA_F_OPTIMISTIC = 0x04  # linux/if_addr.h: it may be used although it is tentative


def resolve(name: str) -> list[str]:
    """The addresses of a host name, each once and sorted: resolvers rotate them. PortfwdError. It may block for long."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise PortfwdError(f"{name} cannot be resolved", getattr(error, "strerror", "") or str(error)) from error
    return sorted(follow.usable(str(address[0]) for _, _, _, _, address in found), key=lambda ip: (":" in ip, ip))


def addresses_of(rtnl: Rtnl, interface: str) -> list[str] | None:
    """The addresses of an interface that can be listened on, link-local ones with its name behind them. PortfwdError.

    None: there is no such interface.
    """
    try:
        link = rtnl.link(interface)
        if link is None:
            return None
        texts = [_text(one, link.name) for one in inet.addresses(rtnl, link.index) if _is_ready(one)]
    except OSError as error:
        raise PortfwdError(f"the addresses of {interface} cannot be read", error.strerror or str(error)) from error
    return list(dict.fromkeys(texts))


def local(rtnl: Rtnl, ips: Sequence[str]) -> list[str]:
    """Those of the addresses that this host has and can listen on. PortfwdError."""
    try:
        own = {ip_text(one.address.packed) for one in inet.addresses(rtnl) if _is_ready(one)}
    except OSError as error:
        raise PortfwdError("the addresses of this host cannot be read", error.strerror or str(error)) from error
    return [ip for ip in ips if ip in own or (ip.startswith("127.") and "127.0.0.1" in own)]  # it has all of 127/8


def _is_ready(one: Addr) -> bool:
    return not one.dad_failed and (not one.tentative or bool(one.flags & IFA_F_OPTIMISTIC))


def _text(one: Addr, interface: str) -> str:
    packed = one.address.packed
    scoped = len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80  # fe80::/10
    return ip_text(packed) + (f"%{interface}" if scoped else "")
