"""Wait until the kernel has done what it does with links by itself, later than the call that made or set them.

An operational state follows the carrier, a link-local address the operational state, and duplicate address detection takes a
second or two more. What is compared word for word before and after something has to be looked at when that is over.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import snapshot
from node import START_S, LabError

if TYPE_CHECKING:
    from lab import Lab

IFF_UP, IFF_LOOPBACK = 0x1, 0x8  # linux/if.h
IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x08, 0x40  # linux/if_addr.h


def await_calm(lab: Lab, *names: str) -> None:
    """Wait for the links of these nodes."""
    for name in names:
        lab[name].python(wait, timeout_s=2 * START_S)


def wait() -> None:
    """LabError if something is still to come after START_S."""
    deadline = time.monotonic() + START_S
    while why := to_come():
        if time.monotonic() > deadline:
            raise LabError(why)
        time.sleep(0.02)


def to_come() -> str:
    """What the kernel has still to do with a link that is up; "" if nothing."""
    addresses = [one for one in snapshot.dump(snapshot.RTM_GETADDR) if one["family"] == socket.AF_INET6]
    for link in snapshot.dump(snapshot.RTM_GETLINK):
        own = [one for one in addresses if one["index"] == link["index"]]
        if link["flags"] & IFF_UP and not link["flags"] & IFF_LOOPBACK and (why := lacks(link, own)):
            return f"{link.get('ifname')}: {why}"
    return ""


def lacks(link: Any, addresses: list[Any]) -> str:
    if bool(link.get("carrier")) != (link.get("operstate") in ("UP", "UNKNOWN")):
        return f"its operational state is {link.get('operstate')}"
    if any(one.get("flags") & (IFA_F_TENTATIVE | IFA_F_DADFAILED) == IFA_F_TENTATIVE for one in addresses):
        return "an address is tentative"
    if link.get("carrier") and not has_no_ipv6(link.get("ifname")):
        return "" if any(one.get("address").startswith("fe80:") for one in addresses) else "no link-local address"
    return ""


def has_no_ipv6(ifname: str) -> bool:
    """Whether the link will not have a link-local address."""
    try:
        with (
            open(f"/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6", encoding="ascii") as disabled,
            open(f"/proc/sys/net/ipv6/conf/{ifname}/addr_gen_mode", encoding="ascii") as mode,
        ):
            return disabled.read().strip() == "1" or mode.read().strip() == "1"
    except FileNotFoundError:  # gone, or without IPv6
        return True
