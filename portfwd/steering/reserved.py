"""Ports that the kernel shall choose for nobody: net.ipv4.ip_local_reserved_ports, for both protocols and families.

A socket of this host that got a steered port by chance would hear nothing: datagrams for it go where the range leads, and so do
the clients of a listener. What binds such a port by number is not kept from it.

The setting is one list that others have entries in, too. What was not there before is ours, and is taken out again with the last
range that needs it. It is written down before it is done, so that the next service gives back what one left that was killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable

from cni_py import files
from cni_py.attachment import naming
from cni_py.kernel.netlink import NETLINK_ROUTE, Socket
from cni_py.kernel.sock_diag import joined
from portfwd.errors import PortfwdError

log = logging.getLogger("portfwd")

RESERVED = "/proc/sys/net/ipv4/ip_local_reserved_ports"
CHOSEN_FROM = "/proc/sys/net/ipv4/ip_local_port_range"
LEFT_MIN = 1024  # ports that the kernel must have left to choose from
SETTING_MAX = 1 << 18  # bytes: 65,536 ports, one by one, are 200,000 less than that
WRITE_MAX = 4000  # bytes of one write: kernel/sysctl.c takes a page at a time, and adds what comes behind the first
FILE = "reserved.json"

Span = tuple[int, int]  # first and last port


def bits(spans: Iterable[Span]) -> int:
    """A number with the bit of each port."""
    found = 0
    for first, last in spans:
        found |= ((1 << (last - first + 1)) - 1) << first
    return found


def spans(ports: int) -> list[Span]:
    """The same the other way round, ascending."""
    found: list[Span] = []
    first = 0
    while ports:
        zeros = (ports & -ports).bit_length() - 1
        ports >>= zeros
        ones = (~ports & (ports + 1)).bit_length() - 1
        ports >>= ones
        first += zeros
        found.append((first, first + ones - 1))
        first += ones
    return found


def read(text: str) -> int:
    """The kernel's way to write it: 8080,9000-9009. ValueError."""
    found: list[Span] = []
    for part in text.replace(",", " ").split():
        first, _, last = part.partition("-")
        found.append((int(first), int(last or first)))
    return bits(found)


def write(ports: int) -> str:
    """The same the other way round."""
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans(ports))


class Reservation:
    """What this service has in the list of the network namespace it is in; `folder` is that of its state."""

    def __init__(self, folder: str) -> None:
        self._path = f"{folder}/{FILE}"
        self._ours: int | None = None  # not read yet
        self._said = ""

    def refuse_to_starve(self, first: int, last: int) -> None:
        """PortfwdError for a range without which the kernel has next to nothing to choose from."""
        try:
            setting = _read_file(CHOSEN_FROM)
            lowest, highest = map(int, setting.split())
            before = bits([(lowest, highest)]) & ~read(_read_file(RESERVED))
        except (OSError, ValueError):
            return  # then nothing is reserved either
        after = before & ~bits([(first, last)])
        if after != before and after.bit_count() < LEFT_MIN:
            raise PortfwdError(
                f"ports {first}-{last} would leave {after.bit_count()} to this host for connections of its own",
                f"net.ipv4.ip_local_port_range is {lowest}-{highest}: publish fewer, or set another",
            )

    def settle(self, wanted: Iterable[Span]) -> None:
        """Have these reserved, and no others of ours. What cannot be is said in the log, once."""
        try:
            self._settle(bits(joined(list(wanted))))
        except (OSError, ValueError) as error:
            text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            if text != self._said:
                log.warning("programs of this host may get ports of a published range by chance: %s", text)
            self._said = text
        else:
            self._said = ""

    def _settle(self, wanted: int) -> None:
        if self._ours is None:
            self._ours = self._recorded()
        if not wanted and not self._ours:
            return
        current = read(_read_file(RESERVED))
        foreign = current & ~self._ours
        ours = wanted & ~foreign
        if ours == self._ours and current == foreign | ours:
            return
        fd = os.open(RESERVED, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._record(ours | self._ours)
            _write_setting(fd, write(foreign | ours))
            self._record(ours)
        finally:
            os.close(fd)
        self._ours = ours

    def _recorded(self) -> int:
        """What a service before this one had, if that was in this namespace and since the host was started."""
        try:
            with open(self._path, "rb") as file:
                found = json.loads(file.read(SETTING_MAX))
            same = (found["boot"], found["netns"]) == (naming.boot_id(), _namespace())
            return read(str(found["ports"])) if same else 0
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.error("%s is damaged, and ports that it names may stay reserved: %s", self._path, error)
            return 0

    def _record(self, ports: int) -> None:
        if not ports:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            return
        content = {"boot": naming.boot_id(), "netns": _namespace(), "ports": write(ports)}
        files.make_folders(os.path.dirname(self._path), 0o700)
        temporary = f"{self._path}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(json.dumps(content).encode() + b"\n")
        os.rename(temporary, self._path)


def _namespace() -> str:
    """What tells it from every other of this boot; where the kernel has no cookies (before 5.14) its inode."""
    sock = Socket(NETLINK_ROUTE)
    try:
        cookie = sock.netns_cookie()
    finally:
        sock.close()
    return str(cookie or os.stat("/proc/thread-self/ns/net").st_ino)


def _read_file(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, SETTING_MAX).decode("ascii")  # the kernel tells all at once, or nothing more
    finally:
        os.close(fd)


def _write_setting(fd: int, text: str) -> None:
    """Between two writes of a very long list some of it is not reserved."""
    left = text or "\n"
    while left:
        cut = len(left) if len(left) <= WRITE_MAX else left.rindex(",", 0, WRITE_MAX)
        os.write(fd, left[:cut].encode())
        left = left[cut:].lstrip(",")
