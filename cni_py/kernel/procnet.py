"""/proc/net/tcp and its like (proc_net(5)): every socket of this thread's network namespace, in text.

Reading costs time for each socket, and does not tell whether one on :: takes IPv4 as well. For kernels without sock_diag, and for
those who want all sockets.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "/proc/thread-self/net"


class Line:
    """One socket; addresses are packed. In TIME_WAIT it has no inode (0)."""

    __slots__ = ("inode", "ip", "port", "remote", "state", "uid")

    def __init__(self, text: str) -> None:
        fields = text.split()
        self.ip, self.port = _address(fields[1])
        self.remote = _address(fields[2])
        self.state = int(fields[3], 16)
        self.uid = int(fields[7])
        self.inode = int(fields[9])


def lines(protocol: str) -> "Iterator[Line]":
    """The sockets of both families; none of a family that the kernel does not have, or does not show."""
    for name in (protocol, protocol + "6"):
        try:
            with open(f"{FOLDER}/{name}", encoding="ascii") as file:
                next(file)  # headings
                for text in file:
                    yield Line(text)
        except (OSError, StopIteration):
            continue


def _address(text: str) -> tuple[bytes, int]:
    """Address and port of 0100007F:1F90. Each 32 bits are a number in the host's byte order: 127.0.0.1 if little-endian."""
    address, _, port = text.partition(":")
    words = [int(address[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(address), 8)]
    return b"".join(words), int(port, 16)
