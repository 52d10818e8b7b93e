"""Which network namespace is meant: by a container's ID or name, an attachment, or a namespace's name, path or pid."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cni_py.commands import namespaces
from cni_py.commands.report import LACKING, USAGE, Failure
from cni_py.errors import CniError
from cni_py.host import containers
from cni_py.host.containers import Answers
from cni_py.host.model import Container
from cni_py.host.printable import plain
from cni_py.kernel import netns, processes

SHOWN_MAX = 20  # candidates in a message


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace: a path to it, what it is called in messages, its key; `exact`: it was named in full."""

    path: str
    label: str
    key: str
    exact: bool = True

    @property
    def name(self) -> str:
        """Its name for /etc/netns: that below /run/netns; "" without one."""
        path = Path(self.path)
        return path.name if path.parent in (namespaces.NETNS_DIR, Path("/var/run/netns")) else ""


def find(text: str) -> Place:
    """The place that `text` names. Failure 2 if it names several, 3 if it names none."""
    if "/" in text and os.path.exists(text):
        return at_path(text)
    answers = containers.containers()
    found = [*by_name(text), *by_attachment(text), *by_container(text, answers), *by_process(text)]
    for wanted in (True, False):  # what is named in full goes before what begins alike
        different = {place.key: place for place in reversed(found) if place.exact is wanted}
        if len(different) == 1:
            return next(iter(different.values()))
        if different:
            raise Failure(
                f'"{plain(text)}" may be {listed(different.values())}: more of the ID, or the path, decides', USAGE
            )
    silent = "".join(f"; {plain(gap.what)}" for gap in answers.gaps)
    raise Failure(
        f'there is no container or network namespace "{plain(text)}" with a process or a name here{silent}', LACKING
    )


def listed(places: Iterable[Place]) -> str:
    """Candidates in a sentence."""
    labels = sorted(plain(place.label) for place in places)
    more = f", and {len(labels) - SHOWN_MAX} more" if len(labels) > SHOWN_MAX else ""
    return ", or ".join(labels[:SHOWN_MAX]) + more


def at_path(path: str) -> Place:
    """The namespace at a path. Failure 3 with the reason if there is none."""
    key = key_at(path)
    if not key:
        raise Failure(f"{plain(path)} is no network namespace, or may not be looked at", LACKING)
    return Place(os.path.abspath(path), plain(path), key)


def key_at(path: str, cookie: int = 0) -> str:
    """The key of the namespace at a path; "" if there is none, or if it is not the one with the cookie."""
    try:
        fd = netns.open_netns(path)
    except (OSError, CniError):
        return ""
    try:
        if cookie and netns.cookie(fd) != cookie:
            return ""
        return f"net:[{os.fstat(fd).st_ino}]"
    except OSError:
        return ""
    finally:
        os.close(fd)


def by_name(text: str) -> Iterator[Place]:
    """A name in /run/netns, a pid."""
    try:
        target = namespaces.find(text)
    except Failure:
        return
    key = key_at(target.path)
    if key:
        yield Place(
            target.path, f"the namespace {target.label}" if "process" not in target.label else target.label, key
        )


def by_attachment(text: str) -> Iterator[Place]:
    """Attachments with a record or an entry in libcni's cache: by "network/containerID/ifname", or the container's ID."""
    from cni_py.protocol import cache
    from cni_py.restore import restoration

    known = [
        (record.key.label, record.key.container_id, record.netns, record.container_cookie)
        for record in restoration.recorded()
    ]
    known += [("/".join(entry.key), entry.container_id, entry.known_netns, 0) for entry in cache.everything()]
    for label, container_id, path, cookie in known:
        exact = text in (label, container_id)
        if path and (exact or container_id.startswith(text)):
            key = key_at(path, cookie)
            if key:
                yield Place(path, f"the attachment {label}", key, exact)


def by_container(text: str, answers: Answers) -> Iterator[Place]:
    """Containers that the runtimes tell of: by ID, its beginning, or name."""
    for one in answers.containers:
        names = {one.name, one.pod, *one.name.split(", "), *containers.cni_ids(one)} - {""}
        exact = text in names
        if exact or any(each.startswith(text) for each in containers.cni_ids(one)):
            yield from of_container(one, exact=exact)


def of_container(one: Container, *, exact: bool) -> Iterator[Place]:
    """The namespace of a container's process: of the runtime's answer, or else by its cgroup."""
    label = f"the container {one.name or one.id[:12]} ({one.runtime} {one.id[:12]})"
    for pid in [one.pid] if one.pid else in_container(one.id):
        path = f"/proc/{pid}/ns/net"
        key = key_at(path)
        if key:
            yield Place(path, label, key, exact)
            return


def by_process(text: str) -> Iterator[Place]:
    """Processes in a cgroup whose path has the ID: of runtimes that nobody could ask."""
    if len(text) >= processes.SHORT_ID and not set(text) - processes.HEX_DIGITS:
        for pid in in_container(text):
            key = key_at(f"/proc/{pid}/ns/net")
            if key:
                yield Place(
                    f"/proc/{pid}/ns/net", f"the container {processes.container_id(pid)[:12]}", key, exact=False
                )


def in_container(beginning: str) -> Iterator[int]:
    """The processes whose container's ID begins so."""
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        if processes.container_id(pid).startswith(beginning):
            yield pid
