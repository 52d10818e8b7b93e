"""Ids of the objects of a model, the same in the drawing and on the page, and which of them a finding is about. Pure.

They stand in XML, which has no control characters even as escapes: plain().
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from cni_py.host.model import Attachment, Finding, Host, Link, Namespace, Network, Pool, Relay
from cni_py.host.printable import plain
from cni_py.show.view import short
from cni_py.show.words import at

PUBLISHER = "portfwd"
Subjects = Mapping[str, tuple[str, ...]]  # "link cni-py0": ids


def namespace(one: Namespace) -> str:
    """The id of a namespace."""
    return plain(f"namespace:{inode(one.key)}")


def inode(key: str) -> str:
    """ "4026531840" of "net:[4026531840]"."""
    return key.removeprefix("net:[").removesuffix("]")


def link(where: Namespace, one: Link) -> str:
    """The id of an interface of a namespace."""
    return plain(f"link:{inode(where.key)}:{one.index}")


def attachment(one: Attachment) -> str:
    """The id of an attachment."""
    return plain(f"attachment:{one.network}/{one.container_id}/{one.ifname}")


def port(number: int) -> str:
    """The id of the published port at that place in Host.ports."""
    return f"port:{number}"


def masquerade(number: int) -> str:
    """The id of the entry at that place in Host.masquerades."""
    return f"masquerade:{number}"


def network(one: Network) -> str:
    """The id of a network's configuration."""
    return plain(f"network:{one.path}")


def pool(one: Pool) -> str:
    """The id of a network's addresses."""
    return plain(f"pool:{one.folder}")


def relay(one: Relay) -> str:
    """The id of a mapping of portfwd."""
    return plain(f"relay:{one.id}")


def subjects(host: Host) -> Subjects:
    """What findings may be about: Finding.subject and the ids of its objects."""
    found: dict[str, list[str]] = {PUBLISHER: [PUBLISHER]}
    for subject, names in chain(_in_kernel(host), _of_attachments(host), _on_disk(host)):
        found.setdefault(subject, []).extend(names)
    return {subject: tuple(dict.fromkeys(names)) for subject, names in found.items()}


def _in_kernel(host: Host) -> Iterator[tuple[str, list[str]]]:
    for one in host.root.links:
        yield f"link {one.name}", [link(host.root, one)]
    for space in host.namespaces[1:]:
        for name in (space.key, *space.names):
            yield f"namespace {name}", [namespace(space)]
    for home in host.namespaces:
        for one in home.links:
            yield from (
                (f"address {each.address}", [link(home, one)]) for each in one.addresses if each.scope != "host"
            )
    for number, published in enumerate(host.ports):
        numbers = at("", published.first, published.last).removeprefix(":")
        for name in (numbers, at(published.host_address, published.first, published.last)):
            yield f"port {name}/{published.protocol}", [port(number)]


def _of_attachments(host: Host) -> Iterator[tuple[str, list[str]]]:
    named = names(host)
    for one in host.attachments:
        mine = [attachment(one), *([plain(f"namespace:{inode(one.namespace)}")] if one.namespace else [])]
        for name in {one.container_id, one.container_id[:12], named.get(one.container_id, "")} - {""}:
            yield f"container {name}", mine
        yield f"attachment {one.network}/{one.container_id}/{one.ifname}", mine


def _on_disk(host: Host) -> Iterator[tuple[str, list[str]]]:
    yield from ((f"network {one.name}", [network(one)]) for one in host.networks)
    yield from ((f"pool {one.network}", [pool(one)]) for one in host.pools)
    yield from ((f"relay {one.id}", [relay(one)]) for one in host.relays)


def about(finding: Finding, known: Subjects) -> tuple[str, ...]:
    """The ids of the objects that a finding is about; () when the model has none."""
    exact = known.get(finding.subject) or known.get(finding.subject.partition(" of ")[0])
    if exact is not None:
        return exact
    name = finding.subject.partition(" ")[2]
    return next((objects for subject, objects in known.items() if name and subject.partition(" ")[2] == name), ())


def called(subject: str, names: Mapping[str, str]) -> str:
    """A finding's subject for people: a container by its name, or by the beginning of its id."""
    kind, _, name = subject.partition(" ")
    return f"{kind} {names.get(name) or short(name)}" if kind == "container" else subject


def names(host: Host) -> Mapping[str, str]:
    """Of containers, by their ids."""
    return {one.id: one.name for one in host.containers}
