"""Collecting the model of this host: `collect()`. Looks, and changes nothing: no table, file, lock or module is made by it."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cni_py import __version__
from cni_py.host import (
    attachments,
    census,
    containers,
    health,
    inside,
    networks,
    owners,
    publishing,
    relays,
    sockets,
    spaces,
)
from cni_py.host import flows as tracking
from cni_py.host.inside import Seen
from cni_py.host.liveness import View
from cni_py.host.makers import with_makers
from cni_py.host.model import (
    SCHEMA,
    Attachment,
    Finding,
    Host,
    Link,
    Liveness,
    Masquerade,
    Namespace,
    Port,
    Relay,
)
from cni_py.host.spaces import Space


def collect(*, flows: bool = False) -> Host:
    """The host's network namespace, which is that of this thread, all others that are found, and what connects them.

    `flows`: also the tracked connections that were translated or go to a published port. Nothing raises: what cannot be looked
    at is in `gaps`. The thread enters each namespace in turn and comes back.
    """
    # In this order: who is named by a file that was read first, and is not there afterwards, is gone (host/liveness.py).
    given, gaps = attachments.read()
    working = attachments.busy()
    answers = containers.containers()
    view = View(census.take(), answers)
    found, unseen = spaces.find((one.netns for one in given if one.netns), view.census.spaces)
    gaps += unseen
    namespaces = look(found, gaps)
    attached = attachments.complete(given, namespaces, view, working)
    ports, masquerades, relayed, portfwd = _published(namespaces, attached)
    if flows:
        tracked, unread = tracking.collect(_numbers(ports))
        namespaces[0] = replace(namespaces[0], flows=tuple(tracked))
        gaps += unread
    defined, ranges, unread = networks.networks()
    gaps += unread
    pools, unread = networks.pools(ranges, _verdicts(attached))
    gaps += unread
    host = Host(
        schema=SCHEMA,
        version=__version__,
        taken=time.time(),
        hostname=socket.gethostname(),
        kernel=os.uname().release,
        namespaces=tuple(namespaces),
        networks=tuple(defined),
        attachments=tuple(attached),
        containers=answers.containers,
        ports=ports,
        masquerades=tuple(masquerades),
        relays=tuple(relayed),
        pools=tuple(pools),
        portfwd=portfwd,
        gaps=(*(Finding("note", "not-seen", "host", text) for text in gaps), *answers.gaps),
    )
    return with_makers(replace(host, findings=health.findings(host)))


def _published(
    namespaces: Sequence[Namespace], attached: Sequence[Attachment]
) -> tuple[tuple[Port, ...], list[Masquerade], list[Relay], str]:
    """Ports, masquerading, portfwd's mappings, and whether it runs."""
    host = namespaces[0]
    known = owners.of(attached, namespaces[1:])
    by_nat, masquerades = publishing.by_nat(host, known)
    mappings, portfwd = relays.ask()
    by_relay = [*relays.ports(mappings, known), *relays.of_processes(host.sockets, known)]
    return publishing.merged(by_nat, by_relay), masquerades, list(relays.relays(mappings)), portfwd


def _numbers(ports: Iterable[Port]) -> set[tuple[str, int]]:
    return {(port.protocol, number) for port in ports for number in range(port.first, port.last + 1)}


def _verdicts(attached: Iterable[Attachment]) -> dict[tuple[str, str, str], tuple[Liveness, str]]:
    return {(one.network, one.container_id, one.ifname): (one.live, one.reason) for one in attached}


@dataclass(slots=True)
class Entered:
    """A namespace that could be looked at."""

    space: Space
    seen: Seen


def look(found: Iterable[Space], gaps: list[str]) -> list[Namespace]:
    """The namespaces, complete. One that ends meanwhile is left out; sentences on what could not be read go to `gaps`."""
    entered: list[Entered] = []
    host_fd = os.open(spaces.OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for space in found:
            one = _enter(space, host_fd, gaps)
            if one is not None:
                entered.append(one)
        links = _with_peers(entered)
    finally:
        os.close(host_fd)
    owned = sockets.with_owners(one.seen.sockets for one in entered)
    return [
        replace(
            one.seen.namespace,
            names=tuple(one.space.names),
            processes=one.space.processes(),
            process_count=len(one.space.pids),
            links=tuple(its_links),
            sockets=its_sockets,
        )
        for one, its_links, its_sockets in zip(entered, links, owned, strict=True)
    ]


def _enter(space: Space, host_fd: int, gaps: list[str]) -> Entered | None:
    is_host = space.key == spaces.key_of(host_fd)
    label = "the host" if is_host else f"namespace {space.names[0] if space.names else space.key}"
    fd = None
    try:
        fd = None if is_host else space.open()
        seen = inside.look(space.key, host_fd, fd)
    except PermissionError:
        gaps.append(f"{label} cannot be entered: this needs root (CAP_SYS_ADMIN)")
        return None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH):
            gaps.append(f"{label} cannot be looked at: {error.strerror}")
        return None
    finally:
        if fd is not None:
            os.close(fd)
    gaps += [f"{label}: {text}" for text in seen.gaps]
    return Entered(space, seen)


def _with_peers(entered: list[Entered]) -> list[list[Link]]:
    """The links of each namespace, with the namespace of the other end.

    A link whose other end is here has no number for that. Otherwise the container says whether its other end is in the host's
    namespace, and the host's link is the one whose index it names: so one question for each container is enough.
    """
    host = entered[0]
    far: dict[tuple[str, int], tuple[str, int]] = {}
    for one in entered[1:]:
        own, theirs = one.seen.namespace, host.seen.namespace
        indexes = {link.index for link in theirs.links}
        for link in own.links:
            if one.seen.abroad.get(link.index, -1) == one.seen.host_number >= 0 and link.peer_index in indexes:
                far[own.key, link.index] = (theirs.key, link.peer_index)
                if link.kind == "veth":
                    far[theirs.key, link.peer_index] = (own.key, link.index)
    _match(entered, far)
    return [[_resolved(link, one, far) for link in one.seen.namespace.links] for one in entered]


def _match(entered: list[Entered], far: dict[tuple[str, int], tuple[str, int]]) -> None:
    """Veths between two containers name each other's index; where several do, the kernel is asked which are a pair."""
    by_key = {one.space.key: one for one in entered}
    open_ends = [
        (one.seen.namespace.key, link.index, link.peer_index)
        for one in entered
        for link in one.seen.namespace.links
        if link.kind == "veth"
        and one.seen.abroad.get(link.index, -1) >= 0
        and (one.seen.namespace.key, link.index) not in far
    ]
    for key, index, peer in open_ends:
        pairs = [other for other in open_ends if other[0] != key and other[1:] == (peer, index)]
        if len(pairs) > 1:
            pairs = [other for other in pairs if _leads(by_key[key], index, by_key[other[0]])]
        if len(pairs) == 1:
            far[key, index] = (pairs[0][0], pairs[0][1])


def _leads(one: Entered, index: int, other: Entered) -> bool:
    """Whether the other end of a link is in the other namespace: by the number that the one has for it."""
    opened: list[int] = []
    try:
        opened += [one.space.open()]
        opened += [other.space.open()]
        return inside.number_of(*opened) == one.seen.abroad[index] >= 0
    except OSError:
        return False
    finally:
        for fd in opened:
            os.close(fd)


def _resolved(link: Link, one: Entered, far: dict[tuple[str, int], tuple[str, int]]) -> Link:
    key = one.seen.namespace.key
    if not link.peer_index:
        return link
    if link.index not in one.seen.abroad:
        return replace(link, peer_namespace=key)
    elsewhere, index = far.get((key, link.index), ("", link.peer_index))
    # The index is one of a namespace that is not in the model: here it would be another link's.
    return replace(link, peer_namespace=elsewhere, peer_index=index if elsewhere else 0)
