"""Interfaces and host names in place of a mapping's addresses, which follow theirs when those change. Pure.

    eth0:8080:80, if=eth0:8080:80     all addresses of the interface, link-local ones included; "if=eth0" in a mapping
    name=db.example:8080:80           the addresses of the name that this host has; "name=db.example" in a mapping

In a SPEC, a first word that begins with a letter and has no colon is an interface: it cannot be an IP address. Interfaces with
other names are written with `if=`. A link-local address has its interface behind it (fe80::1%eth0): it means nothing without.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from portfwd.errors import Usage

INTERFACE, NAME = "if=", "name="
IFNAME_MAX = 15  # bytes; IFNAMSIZ of linux/if.h without the NUL
HOST_NAME_MAX = 253  # characters, RFC 1035
LABEL_MAX = 63
LABEL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
PLAIN = LABEL | {"."}  # of interfaces that need no if=
HEX = frozenset("0123456789abcdef")


def parse(written: str) -> str:
    """The interface or name that the word before a SPEC's ports stands for, with its prefix; "" for an address. Usage."""
    if written.startswith((INTERFACE, NAME)):
        check(written)
        return written
    if written[:1].isascii() and written[:1].isalpha() and PLAIN.issuperset(written):
        check(INTERFACE + written)
        return INTERFACE + written
    return ""


def written(follow: str) -> str:
    """The word of a SPEC that parse() reads as `follow`."""
    name = shown(follow)
    return name if follow.startswith(INTERFACE) and name[0].isalpha() and PLAIN.issuperset(name) else follow


def shown(follow: str) -> str:
    """The name without its prefix, for people."""
    return follow.partition("=")[2]


def check(follow: str) -> None:
    """Usage unless it is a possible name of an interface (dev_valid_name(), net/core/dev.c) or of a host (RFC 1123)."""
    name = shown(follow)
    if follow.startswith(INTERFACE):
        bad = name in ("", ".", "..") or len(name.encode("utf-8", "replace")) > IFNAME_MAX
        if bad or not name.isprintable() or any(char in "/:%" or char.isspace() for char in name):
            raise Usage(f"{name[:64]!r} cannot be the name of an interface", f"1 to {IFNAME_MAX} characters")
    elif follow.startswith(NAME):
        labels = name.removesuffix(".").split(".")
        if len(name) > HOST_NAME_MAX or not all(map(_is_label, labels)) or _is_number(labels[-1].lower()):
            raise Usage(f"{name[:64]!r} cannot be the name of a host", "letters, digits, dots and dashes")
    else:
        raise Usage(f"{follow[:64]!r} cannot be followed", f"{INTERFACE}INTERFACE or {NAME}HOST")


def _is_label(text: str) -> bool:
    return 1 <= len(text) <= LABEL_MAX and text[0] != "-" and LABEL.issuperset(text)


def _is_number(label: str) -> bool:
    """Whether a last label makes the name an address: resolvers read 127.1, 0x7f.1 and 2130706433 as one (inet_aton(3))."""
    return label.isdecimal() or (label.startswith("0x") and HEX.issuperset(label[2:]))


def unscoped(ip: str) -> str:
    """An address without the interface behind it (fe80::1%eth0)."""
    return ip.partition("%")[0]


def usable(ips: Iterable[str]) -> list[str]:
    """The addresses of a resolver's answer that a host can listen on, each once, in their order.

    Left out are 0.0.0.0, which some resolvers answer for blocked names and which would publish on every address, multicast
    addresses, and link-local ones, since no resolver tells their interface.
    """
    found = []
    for text in ips:
        try:
            ip = ipaddress.ip_address(unscoped(text))
        except ValueError:
            continue
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not (ip.is_unspecified or ip.is_multicast or (ip.version == 6 and ip.is_link_local)):
            found.append(str(ip))
    return list(dict.fromkeys(found))
