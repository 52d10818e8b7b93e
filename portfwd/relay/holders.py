"""Who holds a port of this host: a process, a container's process, or portmap, which publishes it by nftables rules.

    describe("tcp", "0.0.0.0", 8080)     nginx (pid 812)

"Address already in use" alone helps nobody: the holder's name tells a person what to stop. The same look-ups keep a random port
off ports that are taken, and keep a steered range from taking a listener's clients. All of them race with other programs, so
bind(2) has the last word wherever it can.

A port is held as bind(2) sees it: a wildcard address conflicts with every address of its family, and a socket on :: without
IPV6_V6ONLY also with those of IPv4. /proc/net lists the sockets of this network namespace by inode (proc_net(5)), /proc/PID/fd
shows which process has the inode. A TCP socket that is bound and does not listen, with which podman keeps a port, is not in
/proc/net/tcp: sock_diag(7) lists it since Linux 6.8.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cni_py.kernel import processes, procnet, sock_diag
from portfwd.relay.claims import conflict

NOBODY = "a program that has just ended"
TCP_LISTEN = sock_diag.TCP_LISTEN


@dataclass(frozen=True, slots=True)
class Socket:
    """One line of /proc/net/tcp and its like."""

    ip: str
    port: int
    state: int
    uid: int
    inode: int
    remote: tuple[str, int]

    @property
    def connected(self) -> bool:
        """Whether it is a connection, and no listener."""
        return self.remote[1] != 0


def describe(protocol: str, host_ip: str, port: int) -> str:
    """The holder of a port, for "is in use by ...". Raises nothing."""
    found = holding(protocol, host_ip, port)
    for one in found:
        text = _of_process(one)
        if text:
            return text
    if published := by_portmap(protocol, host_ip, port):
        return published
    if found:
        return (
            f"a process of user {processes.user(found[0].uid)}"
            if os.geteuid()
            else "a process that is not seen from here"
        )
    return NOBODY


def holding(protocol: str, host_ip: str, port: int) -> list[Socket]:
    """The sockets that keep others from binding a port, listeners first."""
    found = [
        one
        for one in sockets(protocol)
        if one.port == port and one.inode and conflicts(one.ip, host_ip)  # TIME_WAIT has no inode, and is no hindrance
    ]
    if protocol == "tcp" and not any(one.state == TCP_LISTEN for one in found):
        found += [one for one in _bound_only() if one.port == port and conflicts(one.ip, host_ip)]
    return sorted(found, key=lambda one: (one.connected, one.ip != host_ip))


def conflicts(held: str, wanted: str) -> bool:
    """Whether a socket on `held` may keep ours from `wanted`. Ours are V6ONLY; /proc/net does not show whether the other is."""
    held = held.removeprefix("::ffff:") if "." in held else held
    return conflict(held, wanted) or (held == "::" and ":" not in wanted)


def waiting(wanted: Iterable[tuple[str, int, int]]) -> list[sock_diag.Listener]:
    """Listening sockets of other processes. `wanted`: protocol, first and last port of each range."""
    found = sock_diag.waiting(wanted)
    ours = processes.sockets_of(os.getpid()) if found else set()
    return sorted((one for one in found if one.inode not in ours), key=lambda one: one.port)


def bound(protocol: str, first: int, last: int) -> list[sock_diag.Listener]:
    """TCP sockets that are bound to a port of the range and do not listen; none where the kernel does not list them."""
    if protocol != "tcp":
        return []
    try:
        found = sock_diag.dump("tcp", sock_diag.TCP_BOUND_INACTIVE, [(first, last)])
    except OSError:
        return []
    return [one for one in found if first <= one.port <= last]


def in_the_way(one: sock_diag.Listener, ip: str) -> bool:
    """Whether a listener gets clients of that address."""
    return conflict(_text(one.ip), ip) or (not any(one.ip) and not one.v6only and ":" not in ip)


def foreign(found: Sequence[sock_diag.Listener], owner: str) -> list[sock_diag.Listener]:
    """The sockets not held for the container of an attachment; none for an unknown attachment, since portmap has looked."""
    from cni_py.attachment import holders
    from cni_py.ports import listener_owners
    from cni_py.ports.host_listeners import Container

    record = holders.record_of(owner.partition(" ")[2])
    if record is None:
        return []
    container = Container(record.key.container_id, record.netns)
    reserved = listener_owners.reserved(container.id)
    pids = processes.having([one.inode for one in found if one.inode not in reserved])
    return [
        one for one in found if one.inode not in reserved and not listener_owners.is_for(container, pids[one.inode])
    ]


def taken(protocol: str, host_ips: Sequence[str]) -> set[int]:
    """The ports that are taken on one of the addresses, by sockets or by portmap's rules."""
    held = {one.port for one in sockets(protocol) if any(conflicts(one.ip, ip) for ip in host_ips)}
    return held | published(protocol, {6 if ":" in ip else 4 for ip in host_ips})


def sockets(protocol: str) -> Iterator[Socket]:
    """All sockets of this network namespace, of both families."""
    for one in procnet.lines(protocol):
        remote = _text(one.remote[0]), one.remote[1]
        yield Socket(_text(one.ip), one.port, one.state, one.uid, one.inode, remote)


def _text(ip: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(ip) == 4 else socket.AF_INET6, ip)


def _bound_only() -> list[Socket]:
    """TCP sockets that are bound and do not listen; none where the kernel does not list them."""
    state = sock_diag.TCP_BOUND_INACTIVE
    try:
        return [
            Socket(_text(one.ip), one.port, state, one.uid, one.inode, ("", 0)) for one in sock_diag.dump("tcp", state)
        ]
    except OSError:
        return []


def _of_process(one: Socket) -> str:
    """The process that has the socket, and its use; "" when no process is visible."""
    pids = processes.having((one.inode,))[one.inode]
    if not pids:
        return ""
    use = ""
    if one.connected:
        use = f", for its connection to {ipaddress.ip_address(one.remote[0])} port {one.remote[1]}"
    return processes.described(pids[0]) + use


def published(protocol: str, families: Collection[int]) -> set[int]:
    """The single ports for which portmap has rules on any address: clients would not reach a socket there."""
    from cni_py.errors import CniError
    from cni_py.kernel.nf_tables import Nft
    from cni_py.ports.draft import Draft

    number = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}[protocol]
    nft = Nft()
    try:  # inet_proto . inet_service, each padded to 4 bytes
        keys = [element.key[-8:] for family in families for element in nft.dump(f"claims{family}")]
        draft = Draft(nft)
        ranges = [one for family in families for one in draft.intervals(f"range{family}_{protocol}")]
    except (CniError, OSError):
        return set()
    finally:
        nft.close()
    single = {int.from_bytes(key[4:6], "big") for key in keys if key[0] == number}
    return single.union(*(range(one.first, one.last + 1) for one in ranges))


def by_portmap(protocol: str, host_ip: str, port: int) -> str:
    """The container for which portmap publishes a port, from the elements of its nftables maps; "" for none."""
    from cni_py.errors import CniError
    from cni_py.kernel.nf_tables import Nft
    from cni_py.ports.claims import holders_of
    from cni_py.ports.draft import Draft
    from cni_py.ports.mapping import Mapping

    raw = ipaddress.ip_address(host_ip).packed
    mapping = Mapping(protocol, raw if any(raw) else None, port, raw, port)
    nft = Nft()
    try:
        comments = [comment for _, comment in holders_of(Draft(nft), mapping)]
    except (CniError, OSError):
        return ""
    finally:
        nft.close()
    labels = [comment.partition(" ")[2] for comment in comments]
    return f"a port that portmap publishes for {labels[0]} (network/container/interface)" if labels else ""
