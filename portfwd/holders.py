"""Who holds a port of this host: a process, a container's process, or a port that portmap publishes.

    describe("tcp", "0.0.0.0", 8080)     nginx (pid 812)

A port is held as bind(2) sees it: any address conflicts with every one of its family, and a socket on :: without
IPV6_V6ONLY with those of IPv4, too. /proc/net names the sockets of this network namespace by inode (proc_net(5)), /proc/PID/fd
names who has the inode. A TCP socket that is bound and does not listen, with which podman keeps a port, is not in
/proc/net/tcp: sock_diag(7) tells of it since Linux 6.8.

What is found may be gone by the time it is read: everything here is for a sentence, nothing decides by it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portfwd.claims import conflict

if TYPE_CHECKING:
    from cni_py.kernel.nftables import Nft
    from cni_py.portmappings import Mapping as PortMapping

NOBODY = "somebody who has just gone"
TCP_LISTEN = 10  # include/net/tcp_states.h
TCP_BOUND_INACTIVE = 13
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
SOCKET_ID = struct.Struct("!HH16s16sI8s")  # struct inet_diag_sockid, linux/inet_diag.h
REQUEST = struct.Struct("=BBBBI")  # the part of struct inet_diag_req_v2 before it
ANSWER = struct.Struct("=IIIII")  # the part of struct inet_diag_msg behind it: expires, queues, uid, inode
CONTAINER_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")  # a part of the cgroup's path, whoever runs it
SHORT_ID = 12  # digits, as docker and podman show them
COMM_MAX = 15  # TASK_COMM_LEN without its end, linux/sched.h
NAME_MAX = 64
INTERPRETER = re.compile(r"(python|perl|ruby|node|php|bash|sh|dash)[0-9.]*")


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
        """Whether it is somebody's connection, and not waiting for anybody to come."""
        return self.remote[1] != 0


def describe(protocol: str, host_ip: str, port: int) -> str:
    """Who has the port, for "is in use by ...". Never an error."""
    found = holding(protocol, host_ip, port)
    for one in found:
        text = _of_process(one)
        if text:
            return text
    if published := by_portmap(protocol, host_ip, port):
        return published
    if found:
        return f"a process of user {_user(found[0].uid)}" if os.geteuid() else "a process that is not seen from here"
    return NOBODY


def holding(protocol: str, host_ip: str, port: int) -> list[Socket]:
    """The sockets that keep others from binding the port, listeners first."""
    found = [
        one
        for one in sockets(protocol)
        if one.port == port and one.inode and conflicts(one.ip, host_ip)  # TIME_WAIT has no inode, and is no hindrance
    ]
    if protocol == "tcp" and not any(one.state == TCP_LISTEN for one in found):
        found += [one for one in _bound_only() if one.port == port and conflicts(one.ip, host_ip)]
    return sorted(found, key=lambda one: (one.connected, one.ip != host_ip))


def conflicts(held: str, wanted: str) -> bool:
    """Whether a socket on `held` may keep ours from `wanted`. Ours are V6ONLY; whether the other is, nobody tells."""
    held = held.removeprefix("::ffff:") if "." in held else held
    return conflict(held, wanted) or (held == "::" and ":" not in wanted)


def taken(protocol: str, host_ips: Sequence[str]) -> set[int]:
    """The ports that cannot be had on one of the addresses, as far as sockets tell: to look elsewhere first."""
    return {one.port for one in sockets(protocol) if any(conflicts(one.ip, ip) for ip in host_ips)}


def sockets(protocol: str) -> Iterator[Socket]:
    """All of this network namespace, of both families."""
    for name in (protocol, protocol + "6"):
        try:
            with open(f"/proc/thread-self/net/{name}", encoding="ascii") as file:
                next(file)  # headings
                for line in file:
                    fields = line.split()
                    ip, port = _address(fields[1])
                    yield Socket(ip, port, int(fields[3], 16), int(fields[7]), int(fields[9]), _address(fields[2]))
        except (OSError, StopIteration):
            continue  # a kernel without IPv6


def _address(text: str) -> tuple[str, int]:
    """0100007F:1F90, each 32 bits as a number of the host's."""
    address, _, port = text.partition(":")
    words = [int(address[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(address), 8)]
    raw = b"".join(words)
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw), int(port, 16)


def _bound_only() -> list[Socket]:
    """TCP sockets that are bound and nothing more; none where the kernel does not tell."""
    from cni_py.kernel.netlink import NLM_F_DUMP
    from cni_py.kernel.netlink import Socket as Netlink

    found: list[Socket] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        request = REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << TCP_BOUND_INACTIVE) + bytes(SOCKET_ID.size)
        try:
            netlink = Netlink(NETLINK_SOCK_DIAG)
            try:
                answers = netlink.request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, request)
            finally:
                netlink.close()
        except OSError:
            continue
        found += [_answered(family, body) for kind, body in answers if kind == SOCK_DIAG_BY_FAMILY]
    return found


def _answered(family: int, body: bytes) -> Socket:
    port, _, source = SOCKET_ID.unpack_from(body, 4)[:3]
    uid, inode = ANSWER.unpack_from(body, 4 + SOCKET_ID.size)[3:]
    ip = socket.inet_ntop(family, source if family == socket.AF_INET6 else source[:4])
    return Socket(ip, port, body[1], uid, inode, ("", 0))


def _of_process(one: Socket) -> str:
    """The process that has the socket and what it uses it for; "" when none is seen."""
    pid = process_of(one.inode)
    if not pid:
        return ""
    use = ""
    if one.connected:
        use = f", for its connection to {ipaddress.ip_address(one.remote[0])} port {one.remote[1]}"
    return f"{_name(pid)} (pid {pid}{_container(pid)}){use}"


def process_of(inode: int) -> int:
    """The lowest pid of those that have the socket, which is the parent of workers; 0 when none is seen."""
    wanted = f"socket:[{inode}]"
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        folder = f"/proc/{pid}/fd"
        try:
            if any(_link(f"{folder}/{fd}") == wanted for fd in os.listdir(folder)):
                return pid
        except OSError:
            continue  # it has ended, or is not ours to look at
    return 0


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _name(pid: int) -> str:
    """The process's name, whole where the kernel has cut it short; of an interpreter, with what it runs."""
    comm = _read(f"/proc/{pid}/comm").removesuffix("\n")
    words = _read(f"/proc/{pid}/cmdline").split("\0")
    if len(comm) == COMM_MAX:
        programs = map(os.path.basename, words[:2])  # a script's own name stands behind its interpreter
        comm = next((program for program in programs if program.startswith(comm)), comm)
    name = f"{comm} {_script(words)}" if INTERPRETER.fullmatch(comm) else comm
    clean = "".join(character for character in name if character.isprintable()).strip()
    return clean[:NAME_MAX] or "a process"


def _script(words: Sequence[str]) -> str:
    """app.py of `python3 -u /srv/app.py`, "-m http.server" of a module; "" where the command line does not tell."""
    for place, word in enumerate(words[1:], 1):
        if word == "-m":
            return " ".join(words[place : place + 2])
        if not word.startswith("-"):
            return os.path.basename(word)
        if word in ("-c", "-e"):
            break
    return ""


def _container(pid: int) -> str:
    """Which container the process is in, by its cgroup; or that it is in some, by its pid namespace."""
    found = CONTAINER_ID.findall(_read(f"/proc/{pid}/cgroup"))
    if found:
        return f" in container {found[-1][:SHORT_ID]}"
    return " in a container" if _pids(pid) > _pids(os.getpid()) else ""


def _pids(pid: int) -> int:
    """In how many pid namespaces the process has a number."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("NSpid:"):
            return len(line.split()) - 1
    return 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def by_portmap(protocol: str, host_ip: str, port: int) -> str:
    """The container for which portmap publishes the port, from the elements of its nftables maps; "" for none."""
    from cni_py.errors import CniError
    from cni_py.kernel.nftables import Nft
    from cni_py.portclaims import claim_key
    from cni_py.portmappings import Mapping

    raw = ipaddress.ip_address(host_ip).packed
    mapping = Mapping(protocol, raw if any(raw) else None, port, raw, port)
    nft = Nft()
    try:
        comments = _comments(nft, mapping, claim_key(mapping, port))
    except (CniError, OSError):
        return ""
    finally:
        nft.close()
    labels = [comment.partition(" ")[2] for comment in comments]
    return f"a port that portmap publishes for {labels[0]} (network/container/interface)" if labels else ""


def _comments(nft: Nft, mapping: PortMapping, key: bytes) -> list[str]:
    claimed = nft.get(f"claims{mapping.family}", (key,)).get(key)
    if claimed is None:
        return []
    if claimed.comment:
        return [claimed.comment]
    names = [f"{kind}{mapping.family}" for kind in ("specific", "conditional_specific")]
    if mapping.host_ip is None:
        found = [one for name in names for one in nft.dump(name) if one.key.endswith(key)]
    else:
        found = [one for name in names for one in nft.get(name, (mapping.host_ip + key,)).values()]
    return [one.comment for one in found]
