"""The objects of a model as the page lists them: name, kind, what is searched, all fields, and the objects that belong to them.

Pure. The ids are those of the drawing (show/ids.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any

from cni_py.host.model import Finding, Host, Namespace
from cni_py.host.saved import to_json
from cni_py.show import ids, words
from cni_py.show.scene import name_of
from cni_py.show.view import Plug, addresses, short, view

LEVELS = ("error", "warning", "note")


@dataclass
class Object:
    """One object of the page."""

    id: str
    kind: str  # "container", "port", "interface", ...: the heading under which it is listed
    title: str
    sub: str  # what the list says beside its name
    fields: dict[str, Any]  # field of the model: its value
    related: list[str] = field(default_factory=list)  # ids
    level: str = ""
    listed: bool = True


def page_data(host: Host) -> dict[str, Any]:
    """What the page shows, beside the drawing."""
    known = ids.subjects(host)
    found = {one.id: one for one in _all(host)}
    named = ids.names(host)
    findings = []
    for finding in sorted((*host.findings, *host.gaps), key=lambda one: LEVELS.index(one.level)):
        names = [name for name in ids.about(finding, known) if name in found]
        findings.append({**to_json(finding), "subject": ids.called(finding.subject, named), "objects": names})
        for name in names:
            _blame(found[name], finding)
    _relate(found)
    return {
        "title": host.hostname,
        "taken": host.taken,
        "version": host.version,
        "findings": findings,
        "objects": [vars(one) for one in found.values()],
    }


def _relate(found: dict[str, Object]) -> None:
    """What one object says of another holds for both."""
    related = {name: dict.fromkeys(other for other in one.related if other in found) for name, one in found.items()}
    for name, others in [(name, [*others]) for name, others in related.items()]:
        for other in others:
            related[other].setdefault(name)
    for name, one in found.items():
        one.related = [other for other in related[name] if other != name]


def _blame(one: Object, finding: Finding) -> None:
    """The worst level of its findings."""
    if not one.level or LEVELS.index(finding.level) < LEVELS.index(one.level):
        one.level = finding.level


class _Maps:
    """A model with maps, so that a thousand containers cost a thousand steps."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.spaces = {one.key: one for one in host.namespaces}
        self.links = {
            (space.key, link.index): ids.link(space, link) for space in host.namespaces for link in space.links
        }
        self.named = {link.name: ids.link(host.root, link) for link in host.root.links}
        self.attachments: dict[str, list[str]] = {}  # ids by that of the container
        for one in host.attachments:
            self.attachments.setdefault(one.container_id, []).append(ids.attachment(one))
        self.plugs: dict[str, list[Plug]] = {}  # by key of the namespace
        for plug in view(host).plugs:
            if plug.namespace:
                self.plugs.setdefault(plug.namespace.key, []).append(plug)


def _all(host: Host) -> Iterator[Object]:
    maps = _Maps(host)
    yield _host(host)
    yield from _namespaces(maps)
    yield from _ports(maps)
    yield from _networks(maps)
    yield from _attachments(maps)
    yield from _relays(host)
    yield from _masquerades(maps)
    for namespace in host.namespaces:
        yield from _links(maps, namespace)


def _host(host: Host) -> Object:
    own = {name: getattr(host, name) for name in ("hostname", "kernel", "version", "taken", "portfwd")}
    links = [ids.link(host.root, link) for link in host.root.links]
    return Object("host", "host", host.hostname, f"Linux {host.kernel}", own | _without(host.root), links, listed=False)


def _namespaces(maps: _Maps) -> Iterator[Object]:
    numbers = {id(one): number for number, one in enumerate(maps.host.ports)}
    for namespace in maps.host.namespaces[1:]:
        mine = maps.plugs.get(namespace.key, [])
        containers = dict.fromkeys(one for plug in mine for one in plug.containers)
        fields = {f"container {name}": value for one in containers for name, value in to_json(one).items()}
        links = [link for link in namespace.links if "loopback" not in link.flags]
        related = [ids.attachment(plug.attachment) for plug in mine if plug.attachment]
        related += [ids.link(namespace, link) for link in links]
        related += [ids.port(numbers[id(port)]) for plug in mine for port in plug.ports]
        kind = "container" if any(plug.container_id for plug in mine) else "namespace"
        title = mine[0].name if mine else name_of(namespace)
        sub = ", ".join(address for link in links for address in addresses(link))
        yield Object(ids.namespace(namespace), kind, title, sub, fields | _without(namespace), related)


def _without(one: Namespace) -> dict[str, Any]:
    """The fields of a namespace, without its links, which are objects of their own."""
    return {name.name: to_json(getattr(one, name.name)) for name in dataclass_fields(one) if name.name != "links"}


def _ports(maps: _Maps) -> Iterator[Object]:
    spaces = {
        one.partition("/")[0]: key for key, plugs in maps.plugs.items() for plug in plugs for one in plug.addresses
    }
    for number, port in enumerate(maps.host.ports):
        related = [ids.namespace(maps.spaces[spaces[port.target]])] if port.target in spaces else []
        related += maps.attachments.get(port.container_id, [])
        place = port.place.rpartition(" ")[2]
        related += [ids.relay(one) for one in maps.host.relays if one.id == place]
        sub = f"to {words.leads(port)}, {words.way(port)}"
        yield Object(ids.port(number), "published port", words.listens(port), sub, to_json(port), related)


def _networks(maps: _Maps) -> Iterator[Object]:
    members: dict[str, list[str]] = {}
    for one in maps.host.attachments:
        members.setdefault(one.network, []).append(ids.attachment(one))
    for network in maps.host.networks:
        related = [ids.pool(one) for one in maps.host.pools if one.network == network.name]
        related += [maps.named[network.bridge]] if network.bridge in maps.named else []
        related += members.get(network.name, [])
        sub = network.problem or ", ".join((*network.types, *network.subnets))
        level = "error" if network.problem else ""
        yield Object(ids.network(network), "network", network.name, sub, to_json(network), related, level)
    for pool in maps.host.pools:
        related = [one for held in pool.reservations for one in maps.attachments.get(held.container_id, [])]
        yield Object(ids.pool(pool), "addresses", pool.network, words.fill(pool), to_json(pool), related)


def _attachments(maps: _Maps) -> Iterator[Object]:
    for one in maps.host.attachments:
        related = [ids.namespace(maps.spaces[one.namespace])] if one.namespace in maps.spaces else []
        related += [maps.named[name] for name in (*one.host_links, one.bridge) if name in maps.named]
        sub = ", ".join((one.ifname, *one.addresses)) + (f", {one.live}" if one.live != "alive" else "")
        title = f"{short(one.container_id)} on {one.network}"
        yield Object(ids.attachment(one), "attachment", title, sub, to_json(one), related)


def _relays(host: Host) -> Iterator[Object]:
    if host.portfwd or host.relays:
        related = [ids.relay(one) for one in host.relays]
        yield Object(ids.PUBLISHER, "portfwd", "portfwd", host.portfwd, {"portfwd": host.portfwd}, related)
    for one in host.relays:
        level = "error" if one.problem else ""
        yield Object(ids.relay(one), "portfwd", one.listen, f"to {one.target}", to_json(one), level=level)


def _masquerades(maps: _Maps) -> Iterator[Object]:
    for number, one in enumerate(maps.host.masquerades):
        related = maps.attachments.get(one.container_id, [])
        yield Object(ids.masquerade(number), "masquerade", one.address, one.network, to_json(one), [*related])


def _links(maps: _Maps, namespace: Namespace) -> Iterator[Object]:
    is_root = namespace is maps.host.root
    masters = {link.name: ids.link(namespace, link) for link in namespace.links}
    for link in namespace.links:
        related = [] if is_root or "loopback" in link.flags else [ids.namespace(namespace)]
        related += [masters[link.master]] if link.master in masters else []
        if link.peer_index and (end := maps.links.get((link.peer_namespace or namespace.key, link.peer_index))):
            other = maps.spaces[link.peer_namespace or namespace.key]
            related += [end, *([] if other is maps.host.root else [ids.namespace(other)])]
        said = [words.kind(link), *addresses(link), words.state(link)]
        sub = " ".join(one for one in said if one)
        yield Object(ids.link(namespace, link), "interface", link.name, sub, to_json(link), related, listed=is_root)
