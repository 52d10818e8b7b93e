"""The part of a model that is about one network, container, namespace or link. Pure.

    only(host, "web")    a Host with web alone: its attachments, its link and bridge, its ports, what is wrong with it

Every form draws a part as it draws a whole.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cni_py.host.model import Finding, Host, Link, Namespace
from cni_py.show.view import Plug, Trunk, short, view, walk

NEAR = 3  # names that are offered for an unknown one
ID_PREFIX_MIN = 3  # characters


class Unknown(Exception):
    """Nothing of the model has that name, or several containers have it: a sentence."""


def only(host: Host, name: str) -> Host:
    """The part of the model that `name` means. Unknown."""
    seen = view(host)
    where = {id(plug): trunk for trunk in walk(seen.trunks) for plug in trunk.plugs}
    for meant in (_by_network, _by_container, _by_namespace, _by_link):
        plugs = [plug for plug in seen.plugs if name and meant(plug, where.get(id(plug)), name)]
        if plugs:
            return part(host, plugs, [where[id(plug)] for plug in plugs if id(plug) in where])
    trunks = [trunk for trunk in walk(seen.trunks) if trunk.link.name == name]
    networks = {one.name for one in host.networks} & {name}
    spaces = [one for one in seen.beside if name in _names(one)]
    if trunks or networks or spaces:
        return part(host, [], trunks, networks, spaces)
    return _by_prefix(host, [(plug, where.get(id(plug))) for plug in seen.plugs], name)


def _by_prefix(host: Host, plugs: list[tuple[Plug, Trunk | None]], name: str) -> Host:
    """By the start of a container's id. Unknown: with names that resemble it."""
    found = [
        (plug, trunk) for plug, trunk in plugs if len(name) >= ID_PREFIX_MIN and plug.container_id.startswith(name)
    ]
    ids = {plug.container_id for plug, _ in found}
    if len(ids) > 1:
        raise Unknown(f"{len(ids)} containers have an id that begins with {name}: {_listed(map(short, sorted(ids)))}")
    if found:
        return part(host, [plug for plug, _ in found], [trunk for _, trunk in found if trunk])
    near = difflib.get_close_matches(name.lower(), spelt := {one.lower(): one for one in names(host)}, NEAR, 0.6)
    hint = f"; did you mean {_listed(spelt[one] for one in near)}?" if near else ""
    raise Unknown(f"no network, container, namespace or link here is called {name}{hint}")


def _listed(words: Iterable[str]) -> str:
    """ "a, b or c"; of many the first."""
    found = list(words)
    if len(found) > NEAR:
        return f"{', '.join(found[:NEAR])}, ..."
    return " or ".join(filter(None, [", ".join(found[:-1]), found[-1]]))


def _by_network(plug: Plug, _: Trunk | None, name: str) -> bool:
    return plug.network == name


def _by_container(plug: Plug, _: Trunk | None, name: str) -> bool:
    pods = [text for one in plug.containers for text in (one.name, one.id, one.pod) if text]
    return name in (plug.container_id, short(plug.container_id), plug.name, *pods)


def _by_namespace(plug: Plug, _: Trunk | None, name: str) -> bool:
    record = plug.attachment.netns if plug.attachment else ""
    found = [*_names(plug.namespace)] if plug.namespace else []
    return name in (*found, *filter(None, (record, record.rpartition("/")[2])))


def _by_link(plug: Plug, trunk: Trunk | None, name: str) -> bool:
    recorded = plug.attachment.host_links if plug.attachment else ()
    ends = (plug.outer.name if plug.outer else "", trunk.link.name if trunk else "", *recorded)
    return name in ends


def _names(namespace: Namespace) -> Iterator[str]:
    """Key, number, paths and the last parts of those."""
    yield from (namespace.key, namespace.key.strip("net:[]"))
    for path in namespace.names:
        yield from (path, path.rpartition("/")[2])


def names(host: Host) -> list[str]:
    """All that may be asked for, but for prefixes of ids and paths."""
    seen = view(host)
    found = [network.name for network in host.networks]
    found += [link.name for link in host.root.links if "loopback" not in link.flags]
    for plug in seen.plugs:
        found += [plug.name, plug.network, *(one.name for one in plug.containers)]
    found += [path.rpartition("/")[2] for one in host.namespaces for path in one.names]
    return list(dict.fromkeys(filter(None, found)))


def part(
    host: Host,
    plugs: list[Plug],
    trunks: Iterable[Trunk],
    networks: Iterable[str] = (),
    spaces: Iterable[Namespace] = (),
) -> Host:
    """The model with these plugs, the links that they hang on, and what belongs to them."""
    links = _links(host, plugs, trunks)
    keys = {plug.namespace.key for plug in plugs if plug.namespace} | {one.key for one in spaces}
    ids = {plug.container_id for plug in plugs if plug.container_id}
    used = {plug.network for plug in plugs if plug.network} | set(networks)
    bare = {text.partition("/")[0] for plug in plugs for text in plug.addresses}
    pairs = {(plug.network, plug.container_id, plug.ifname) for plug in plugs}
    containers = {one.id for plug in plugs for one in plug.containers}
    ports = tuple(one for plug in plugs for one in plug.ports)
    ours = any(plug.attachment for plug in plugs)
    about = _About({*links, *ids, *map(short, ids), *used, *bare, *(plug.name for plug in plugs)})
    root = replace(
        host.root,
        links=tuple(link for link in host.root.links if link.name in links),
        routes=tuple(one for one in host.root.routes if one.link in links),
        neighbours=tuple(one for one in host.root.neighbours if one.address in bare),
        fdb=tuple(one for one in host.root.fdb if one.port in links),
        sockets=(),
        flows=tuple(one for one in host.root.flows if one.reply_source in bare),
        nftables="",
        iptables=(),
    )
    return replace(
        host,
        namespaces=(root, *(one for one in host.namespaces[1:] if one.key in keys)),
        networks=tuple(one for one in host.networks if one.name in used),
        attachments=tuple(one for one in host.attachments if (one.network, one.container_id, one.ifname) in pairs),
        containers=tuple(one for one in host.containers if one.id in containers),
        ports=ports,
        masquerades=tuple(one for plug in plugs for one in plug.masquerades),
        relays=tuple(one for one in host.relays if about.text(one.target) or about.text(one.owner)),
        pools=tuple(one for one in host.pools if one.network in used),
        findings=tuple(one for one in host.findings if about.finding(one) or (ours and _is_of_all(one))),
    )


def _links(host: Host, plugs: list[Plug], trunks: Iterable[Trunk]) -> set[str]:
    """Names: the ends of the plugs, what they hang on, and the links below that."""
    by_name: dict[str, Link] = {link.name: link for link in host.root.links}
    by_index = {link.index: link for link in host.root.links}
    todo = [plug.outer.name for plug in plugs if plug.outer] + [trunk.link.name for trunk in trunks]
    found: set[str] = set()
    while todo:
        link = by_name.get(todo.pop())
        if link is None or link.name in found:
            continue
        found.add(link.name)
        below = by_index.get(link.peer_index) if link.kind != "veth" else None
        todo += [link.master, below.name if below else ""]
    return found


def _is_of_all(one: Finding) -> bool:
    """Whether it is of the host (a flushed table, forwarding that is off), and so of each container that plugins connected."""
    return one.subject.startswith(("table ", "sysctl "))


class _About:
    """Whether a text names one of several things."""

    def __init__(self, named: set[str]) -> None:
        self.named = {one for one in named if one}

    def finding(self, one: Finding) -> bool:
        return one.subject.partition(" ")[2] in self.named or self.text(one.subject)

    def text(self, text: str) -> bool:
        """Whole words alone: "10.88.0.2" is not in "10.88.0.25"."""
        tokens = text.replace("[", " ").replace("]", " ").replace("/", " ").replace(":", " : ").split()
        return any(one in self.named for one in (text, *tokens)) or any(
            f"[{one}]" in text for one in self.named if ":" in one
        )
