"""Keep the kernel from choosing steered ports for other sockets: net.ipv4.ip_local_reserved_ports (ip-sysctl.rst).

The list holds for TCP and UDP and for both families. A socket of this host that got a steered port by chance would receive
nothing: its datagrams, and the clients of a listener, go where the range leads. Only the kernel's own choice obeys the list
(bind(2) with port 0, connect(2)): a program that binds such a port by number still gets it.

Other programs have entries in the list, too. Ports that were not in it before are ours, and are removed with the last range that
needs them. A file names them before the list is written, so that the next service removes what a killed one left.
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
from portfwd.mapping import span

log = logging.getLogger("portfwd")

RESERVED = "/proc/sys/net/ipv4/ip_local_reserved_ports"
CHOSEN_FROM = "/proc/sys/net/ipv4/ip_local_port_range"
LEFT_MIN = 1024  # ports that the kernel must have left to choose from
SETTING_MAX = 1 << 18  # bytes: every second port, one by one, takes 190,000
WRITE_MAX = 4000  # bytes of one write(2): proc_do_large_bitmap() takes a page (kernel/sysctl.c); a write at an offset adds ports
FILE = "reserved.json"

Span = tuple[int, int]  # first and last port


def bits(spans: Iterable[Span]) -> int:
    """A set of ports as a number: bit n for port n."""
    found = 0
    for first, last in spans:
        found |= ((1 << (last - first + 1)) - 1) << first
    return found


def spans(ports: int) -> list[Span]:
    """The runs of ports in such a number, ascending."""
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
    """The ports of a list as the kernel writes it, 8080,9000-9009, as bits. ValueError."""
    found: list[Span] = []
    for part in text.replace(",", " ").split():
        first, _, last = part.partition("-")
        found.append((int(first), int(last or first)))
    return bits(found)


def write(ports: int) -> str:
    """Such bits as a list that the kernel reads."""
    return ",".join(span(first, last) for first, last in spans(ports))


class Reservation:
    """The ports of this service in the list of its network namespace; `folder` holds the service's state."""

    def __init__(self, folder: str) -> None:
        self._path = f"{folder}/{FILE}"
        self._ours: int | None = None  # not read yet
        self._said = ""

    def refuse_to_starve(self, first: int, last: int) -> None:
        """PortfwdError when reserving the range would leave the kernel fewer than LEFT_MIN ports to choose from."""
        try:
            setting = _read_file(CHOSEN_FROM)
            lowest, highest = map(int, setting.split())
            before = bits([(lowest, highest)]) & ~read(_read_file(RESERVED))
        except (OSError, ValueError):
            return  # settle() reserves nothing then, either
        after = before & ~bits([(first, last)])
        if after != before and after.bit_count() < LEFT_MIN:
            raise PortfwdError(
                f"ports {first}-{last} would leave {after.bit_count()} to this host for connections of its own",
                f"net.ipv4.ip_local_port_range is {lowest}-{highest}: publish fewer, or set another",
            )

    def settle(self, wanted: Iterable[Span]) -> None:
        """Reserve these ports, and release all others of ours. A failure is logged, once."""
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
        """The ports that an earlier service reserved; none if that was in another namespace or before this boot."""
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
    """The namespace's cookie, unique while the host is up; its inode, which is reused, before Linux 5.14."""
    sock = Socket(NETLINK_ROUTE)
    try:
        cookie = sock.netns_cookie()
    finally:
        sock.close()
    return str(cookie or os.stat("/proc/thread-self/ns/net").st_ino)


def _read_file(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # One read(2) for all of it: a second one, at an offset, gets nothing (kernel/sysctl.c).
        return os.read(fd, SETTING_MAX).decode("ascii")
    finally:
        os.close(fd)


def _write_setting(fd: int, text: str) -> None:
    """Write the list, a long one in several parts: until the last part is written some ports are not reserved."""
    left = text or "\n"
    while left:
        cut = len(left) if len(left) <= WRITE_MAX else left.rindex(",", 0, WRITE_MAX)
        os.write(fd, left[:cut].encode())
        left = left[cut:].lstrip(",")
