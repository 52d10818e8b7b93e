"""What the kernel's notifications about links and addresses say was taken away from containers.

What attachments need of links is known from their records (Needed), which are read again only when a message may concern one: the
links and addresses of other programs, and those of containers that come and go, send messages, too.
"""

import os
import socket

from cni_py import files
from cni_py.addr import ip_text, parse_address, parse_ip
from cni_py.kernel import inet, rtnl
from cni_py.kernel.netlink import NETLINK_ROUTE, messages
from cni_py.kernel.rtnl import AF_BRIDGE, Link
from cni_py.restore.losses import subscribe
from cni_py.restore.restoration import recorded

RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR = 1, 5, 9  # linux/rtnetlink.h


class Needed:
    """The bridges, ports and addresses in the records; read again when an attachment has come or gone."""

    __slots__ = ("_of", "addresses", "bridges", "ports")

    def __init__(self) -> None:
        self._of = -1
        self.bridges: set[str] = set()
        self.ports: set[str] = set()
        self.addresses: set[bytes] = set()

    def refresh(self) -> None:
        """Read the records, if there are others than the last time: a folder for each is made and removed."""
        try:
            now = os.stat(f"{files.run_dir()}/attachments").st_mtime_ns
        except OSError:
            now = 0
        if now != self._of:
            self._of = now
            self.bridges, self.ports, self.addresses = set(), set(), set()
            for record in recorded():
                for fields in record.shared:
                    self._take(fields if isinstance(fields, dict) else {})

    def _take(self, fields: "dict[str, object]") -> None:
        kind, name = fields.get("op"), str(fields.get("name", ""))
        try:
            if kind == "EnsureBridge":
                self.bridges.add(name)
            elif kind == "JoinBridge":
                self.ports.add(name)
            elif kind == "EnsureGatewayAddress":
                self.addresses.add(parse_address(str(fields.get("address"))).packed)
            elif kind == "AddPeer":
                self.addresses.add(parse_ip(str(fields.get("gateway"))))
        except ValueError:
            return  # a damaged record: `cni-py restore` says so


class LinkLosses:
    """What may be gone since the last look.

    `now` is what nobody takes away in the course of a DEL, `later` what is to be looked at when a DEL has had time to finish.
    """

    __slots__ = ("later", "needed", "now")

    def __init__(self) -> None:
        self.needed = Needed()
        self.now: dict[str, None] = {}
        self.later: dict[int, str] = {}  # the index of a link, and what happened to it

    def note(self, data: bytes) -> None:
        """A datagram of the kernel."""
        for kind, _, _, body in messages(data):
            if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
                self._note_link(kind, body)
            elif kind == inet.RTM_DELADDR:
                self._note_address(body)

    def _note_link(self, kind: int, body: bytes) -> None:
        link = Link(body)
        if body[0] == AF_BRIDGE:  # a port has left its bridge; a deleted veth does so, too
            if kind == rtnl.RTM_DELLINK and self._needs(link.name, "ports"):
                self.later[link.index] = f"port {link.name}"
        elif link.kind == "bridge" and kind == rtnl.RTM_DELLINK and self._needs(link.name, "bridges"):
            self.now[f"bridge {link.name}"] = None
        elif link.kind == "bridge" and not link.up and self._needs(link.name, "bridges"):
            self.later[link.index] = f"bridge {link.name} was set down"

    def _note_address(self, body: bytes) -> None:
        address = inet.Addr(body).address
        self.needed.refresh()
        if address.packed in self.needed.addresses:
            self.now[f"address {ip_text(address.packed)}"] = None

    def _needs(self, name: str, what: str) -> bool:
        self.needed.refresh()
        return name in getattr(self.needed, what)

    def everything(self) -> None:
        """Messages were lost."""
        self.now["unknown, since notifications were lost"] = None

    def take_now(self) -> list[str]:
        """What is to be looked at now, in words."""
        found, self.now = list(self.now), {}
        return found

    def take_later(self, host: rtnl.Rtnl) -> list[str]:
        """The ports that are there and in no bridge, and the bridges that are still down."""
        found, self.later = self.later, {}
        lost = []
        for index, words in found.items():
            link = host.link(index)
            if link is not None and (not link.up if link.kind == "bridge" else not link.master):
                lost.append(words)
        return lost


def of_links(buffer: int) -> socket.socket:
    """The changes of links and addresses. OSError."""
    return subscribe(NETLINK_ROUTE, RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, buffer=buffer)
