"""A host as a graph for Graphviz: `cni-py show --dot | dot -Tsvg`. Pure.

Links of the host stand in a cluster, containers outside of it; an edge between the two is a veth or macvlan. A published port
is a node of its own with an arrow to its container. Red is what is wrong, grey what no CNI plugin made.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cni_py.host.model import Host, Namespace
from cni_py.host.printable import plain
from cni_py.show import words
from cni_py.show.view import Plug, Trunk, addresses, view, walk

HEAD = """\
  graph [rankdir=LR, fontname="sans-serif", nodesep=0.15, ranksep=1.2]
  node [shape=box, style=rounded, fontname="sans-serif", fontsize=11, margin="0.12,0.06"]
  edge [fontname="sans-serif", fontsize=9]
"""
BAD, STRANGE = "#b00020", "#808080"


def dumps(host: Host) -> str:
    """The graph."""
    return "".join(f"{line}\n" for line in lines(host))


def lines(host: Host) -> Iterator[str]:
    """Line by line; ids are numbers of ours, and every text of others is quoted."""
    seen = view(host)
    trunks = list(walk(seen.trunks))
    ids = {id(trunk): f"link{number}" for number, trunk in enumerate(trunks)}
    made = _Ids()
    yield f"graph {quoted(host.hostname or 'host')} {{"
    yield HEAD.rstrip("\n")
    yield "  subgraph cluster_host {"
    yield f"    graph {attributes({'label': [host.hostname or 'host', words.summary(host, seen.plugs)]})}"
    yield from (f"    {ids[id(trunk)]} {attributes(_of_trunk(trunk))}" for trunk in trunks)
    yield "  }"
    for trunk in trunks:
        yield from (f"  {ids[id(trunk)]} -- {ids[id(branch)]}" for branch in trunk.branches)
        for plug in trunk.plugs:
            yield from _of_plug(plug, ids[id(trunk)], made)
    for plug in seen.lost:
        yield from _of_plug(plug, "", made)
    for number, namespace in enumerate(seen.beside):
        yield f"  beside{number} {attributes(_of_namespace(namespace))}"
    yield "}"


@dataclass(frozen=True, slots=True)
class _Ids:
    """Ids that were given out: containers by their namespace, ports by number."""

    containers: dict[str, str] = field(default_factory=dict)
    ports: Iterator[int] = field(default_factory=itertools.count)


def _of_trunk(trunk: Trunk) -> Mapping[str, list[str] | str]:
    link = trunk.link
    facts = [link.name, words.kind(link), *addresses(link), words.gateways(trunk), words.state(link)]
    facts += [f"network {network.name}" for network in trunk.networks]
    return {"label": facts, "color": BAD if trunk.networks and not link.up else STRANGE if trunk.is_stranger else ""}


def _of_plug(plug: Plug, trunk: str, made: _Ids) -> Iterator[str]:
    """The container once, an edge for each of its interfaces, its published ports."""
    key = plug.namespace.key if plug.namespace else f"{plug.network}/{plug.container_id}/{plug.ifname}"
    color = BAD if plug.troubles else "" if plug.is_ours else STRANGE
    own = made.containers.get(key)
    if own is None:
        own = made.containers[key] = f"container{len(made.containers)}"
        yield f"  {own} {attributes({'label': [plug.name, words.who(plug), *plug.troubles], 'color': color})}"
    if trunk:
        ends = " - ".join(filter(None, [plug.outer.name if plug.outer else "", plug.ifname]))
        yield f"  {trunk} -- {own} {attributes({'label': [ends, *plug.addresses], 'color': color})}"
    for port in words.runs(plug.ports):
        node = f"port{next(made.ports)}"
        yield f"  {node} {attributes({'label': [words.listens(port)], 'shape': 'cds'})}"
        said = [words.leads(port), words.way(port)]
        yield f"  {node} -- {own} {attributes({'label': said, 'dir': 'forward', 'style': 'dashed'})}"


def _of_namespace(namespace: Namespace) -> Mapping[str, list[str] | str]:
    own = [text for link in namespace.links if "loopback" not in link.flags for text in addresses(link)]
    return {"label": [namespace.names[0] if namespace.names else namespace.key, *own], "color": STRANGE}


def attributes(given: Mapping[str, list[str] | str]) -> str:
    """[label="a\\nb", color="red"]; a label has a line for each of its texts, and none for an empty one."""
    said = {name: value if isinstance(value, str) else [one for one in value if one] for name, value in given.items()}
    return f"[{', '.join(f'{name}={_value(value)}' for name, value in said.items() if value)}]"


def _value(value: list[str] | str) -> str:
    if isinstance(value, str):
        return quoted(value)
    lines = "\\n".join(quoted(one)[1:-1] for one in value)
    return f'"{lines}"'


def quoted(text: str) -> str:
    """A string of the DOT language, in which a label's escapes (\\N, \\l) mean nothing either."""
    return '"' + plain(text).replace("\\", "\\\\").replace('"', '\\"') + '"'
