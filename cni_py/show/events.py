"""The kernel's notifications of what a picture shows: links, addresses, routes, neighbours, nftables, and files of records.

    with Events(folders) as events:
        events.wait()        returns when something changed, and it has been quiet for a moment

Nothing is asked for in between. iptables-legacy notifies nobody; what others change there is seen with the next event.

Sources: Linux net/netlink/af_netlink.c (NETLINK_LISTEN_ALL_NSID), include/uapi/linux/rtnetlink.h, inotify(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NETLINK_LISTEN_ALL_NSID = 270, 1, 8
NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
# linux/rtnetlink.h: link, neighbour, addresses, routes and rules of both families, forwarding and rp_filter (netconf)
RTNLGRP = (1, 3, 5, 7, 8, 9, 11, 19, 24, 25)
# linux/inotify.h: close after writing, moved from and to, create, delete, the folder itself deleted
IN_MASK = 0x008 | 0x040 | 0x080 | 0x100 | 0x200 | 0x400
IN_ONLYDIR = 0x01000000
QUIET_S = 0.2  # without an event
LONGEST_S = 2.0  # when events do not end
BUFFER = 1 << 16


class Events:
    """Descriptors that become readable when something changed."""

    def __init__(self, folders: Iterable[str] = ()) -> None:
        """`folders` need not exist: a folder that will have them is watched instead. OSError."""
        self.folders = tuple(folders)
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.sockets = [listener(NETLINK_ROUTE, RTNLGRP)]
        with contextlib.suppress(OSError):  # a kernel without nf_tables
            self.sockets.append(listener(NETLINK_NETFILTER, (NFNLGRP_NFTABLES,)))
        self.inotify = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.inotify < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.watch_folders()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for one in self.sockets:
            one.close()
        os.close(self.inotify)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """To poll; all of them are read by drain()."""
        return (*(one.fileno() for one in self.sockets), self.inotify)

    def watch_folders(self) -> None:
        """Watch each folder, or the nearest one above it. Again after each event: a folder may be there now, or another one."""
        for folder in self.folders:
            path = Path(folder)
            while not path.is_dir() and path != path.parent:
                path = path.parent
            self.libc.inotify_add_watch(self.inotify, os.fsencode(path), IN_MASK | IN_ONLYDIR)

    def drain(self) -> None:
        """Read all that has come. What it says is not looked at: the model is collected anew."""
        for one in self.sockets:
            _read_all(one.fileno())
        _read_all(self.inotify)
        self.watch_folders()

    def wait(self, others: Mapping[int, int] | None = None, quiet_s: float = QUIET_S) -> list[int]:
        """Return when something changed and it has been quiet for a moment, or one of the other descriptors is ready: those.

        `others`: what each is polled for; 0 for errors alone.
        """
        poll = select.poll()
        strangers = dict(others or {})
        for fd, mask in (strangers | dict.fromkeys(self.descriptors, select.POLLIN)).items():
            poll.register(fd, mask)
        ready = [fd for fd, _ in poll.poll()]
        if found := [fd for fd in ready if fd in strangers]:
            return found
        quiet_s = max(quiet_s, QUIET_S)
        end = time.monotonic() + max(LONGEST_S, 2 * quiet_s)
        while ready and time.monotonic() < end:
            self.drain()
            ready = [fd for fd, _ in poll.poll(quiet_s * 1000) if fd not in strangers]
        return []


def listener(family: int, groups: Iterable[int]) -> socket.socket:
    """A netlink socket in groups, which hears of namespaces that a veth leads to as well (where we may). OSError."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, family)
    try:
        # The kernel's own messages come from port 0, and do_one_broadcast() in af_netlink.c leaves out the socket whose port they
        # come from: an unbound socket has port 0, and would get nothing.
        made.bind((0, 0))
        for group in groups:
            made.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        with contextlib.suppress(OSError):
            made.setsockopt(SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
    except OSError:
        made.close()
        raise
    return made


def _read_all(fd: int) -> None:
    while True:
        try:
            if not os.read(fd, BUFFER):
                return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # messages were lost: there were some, which is all that counts
                return
