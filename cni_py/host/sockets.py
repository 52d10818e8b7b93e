"""Sockets that wait for clients, of the namespace that this thread is in, and who has them.

The kernel lists TCP and UDP (sock_diag(7)) if the modules for that are loaded, else /proc/net does. SCTP is read from
/proc/net/sctp/eps, which is there when SCTP is: asking sock_diag would load a module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from cni_py.addr import ip_text
from cni_py.host.model import Socket
from cni_py.kernel import modules, processes, procnet, sock_diag

SCTP = "/proc/thread-self/net/sctp/eps"
SCTP_LISTENING = 10  # SCTP_SS_LISTENING, include/net/sctp/constants.h


def collect(names: Mapping[int, str]) -> list[Socket]:
    """The sockets, without their owners. `names`: of links, by index."""
    found = [socket for protocol in sock_diag.PROTOCOLS for socket in _of(protocol, names)]
    return found + list(sctp(processes.read(SCTP)))


def _of(protocol: str, names: Mapping[int, str]) -> Iterator[Socket]:
    state = sock_diag.WAITING[protocol]
    try:
        if modules.would_load("inet_diag") or modules.would_load(f"{protocol}_diag"):
            raise OSError
        for one in sock_diag.dump(protocol, state):
            yield Socket(protocol, ip_text(one.ip), one.port, one.v6only, names.get(one.link, ""), one.inode)
    except OSError:
        for line in procnet.lines(protocol):
            if line.state == state:
                yield Socket(protocol, ip_text(line.ip.removeprefix(sock_diag.MAPPED)), line.port, inode=line.inode)


def sctp(text: str) -> Iterator[Socket]:
    """The listeners in the text of /proc/net/sctp/eps: ENDPT SOCK STY SST HBKT LPORT UID INODE LADDRS (sctp_seq_dump...)."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        numbers = fields[3:8]
        if len(fields) < 8 or not all(each.isdecimal() for each in numbers) or int(fields[3]) != SCTP_LISTENING:
            continue
        for address in [each.strip("*") for each in fields[8:]] or ["::"]:
            yield Socket("sctp", address, int(fields[5]), inode=int(fields[7]))


def with_owners(lists: Iterable[list[Socket]]) -> list[tuple[Socket, ...]]:
    """The sockets of several namespaces with the process that has each, if it is seen: one pass over /proc."""
    given = list(lists)
    owners = processes.having({one.inode for sockets in given for one in sockets if one.inode})
    names = {pids[0]: processes.name(pids[0]) for pids in owners.values() if pids}

    def owned(one: Socket) -> Socket:
        pids = owners.get(one.inode)
        return replace(one, pid=pids[0], program=names[pids[0]]) if pids else one

    return [tuple(map(owned, sockets)) for sockets in given]
