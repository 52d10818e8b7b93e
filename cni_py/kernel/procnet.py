"""/proc/net/tcp and its like (proc_net(5)): every socket of this thread's network namespace, in text.

It costs as much as there are sockets, and does not say whether one on :: takes IPv4, too: for kernels and processes that get no
answer from sock_diag, and for what is wanted in whole.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "/proc/thread-self/net"


class Line:
    """One socket; addresses are packed, and TIME_WAIT has no inode."""

    __slots__ = ("inode", "ip", "port", "remote", "state", "uid")

    def __init__(self, text: str) -> None:
        fields = text.split()
        self.ip, self.port = _address(fields[1])
        self.remote = _address(fields[2])
        self.state = int(fields[3], 16)
        self.uid = int(fields[7])
        self.inode = int(fields[9])


def lines(protocol: str) -> "Iterator[Line]":
    """All of both families; none of a family that the kernel does not have, or does not show."""
    for name in (protocol, protocol + "6"):
        try:
            with open(f"{FOLDER}/{name}", encoding="ascii") as file:
                next(file)  # headings
                for text in file:
                    yield Line(text)
        except (OSError, StopIteration):
            continue


def _address(text: str) -> tuple[bytes, int]:
    """0100007F:1F90, each 32 bits as a number of the host's."""
    address, _, port = text.partition(":")
    words = [int(address[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(address), 8)]
    return b"".join(words), int(port, 16)
