"""Ports of this host that may be chosen at random. Pure, but for content()."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SYSCTLS = "/proc/sys/net/ipv4/"
PORT_MAX = 65535
UNPRIVILEGED = 1024  # ip_unprivileged_port_start, where the kernel has none
EPHEMERAL = range(49153, 65536)  # docker's, where ip_local_port_range cannot be read


def choosable(read: "Callable[[str], str]") -> "Sequence[int]":
    """The ports that a random one is chosen from; `read` gives the content of a file, "" where it cannot.

    Those that the kernel itself chooses from (ip_local_port_range) but for what an administrator keeps for others
    (ip_local_reserved_ports) and what takes a privilege (ip_unprivileged_port_start). Where nothing of that is left, the
    range is no choice: then all others that are neither kept nor privileged.
    """
    local = ephemeral_range(read(f"{SYSCTLS}ip_local_port_range"))
    kept = reserved(read(f"{SYSCTLS}ip_local_reserved_ports"))
    first = read(f"{SYSCTLS}ip_unprivileged_port_start").strip()
    lowest = int(first) if first.isdecimal() else UNPRIVILEGED
    for span in (local, range(UNPRIVILEGED, PORT_MAX + 1)):
        if free := [port for port in span if port >= lowest and port not in kept]:
            return free
    return local


def ephemeral_range(text: str) -> range:
    """From ip_local_port_range, both ends included; docker's where that says nothing."""
    words = text.split()
    if len(words) == 2 and all(word.isdecimal() for word in words) and 0 < int(words[0]) <= int(words[1]) <= PORT_MAX:
        return range(int(words[0]), int(words[1]) + 1)
    return EPHEMERAL


def reserved(text: str) -> set[int]:
    """From ip_local_reserved_ports: 8080,9000-9100, or nothing. What is not understood is passed over."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found.update(range(int(first), min(int(last or first), PORT_MAX) + 1))
    return found


def content(path: str) -> str:
    """Of a file; "" where there is none that can be read."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (OSError, ValueError):
        return ""
