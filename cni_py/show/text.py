"""A host as a tree in text: its links, what hangs on each, and below it what is beside them. Pure.

    picture(host, look)     lines of (text, style); a style is one of STYLES

A long list is cut (`Most`) where nobody asked for all of it: what is wrong is kept, and each cut says how much it left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cni_py.host.model import Finding, Host, Namespace, Network, Port, Relay
from cni_py.show import words
from cni_py.show.lines import Line, Look, Node, Piece, Row, draw, row, spaced, wrapped
from cni_py.show.view import Plug, Trunk, View, addresses, short, view, walk

# rich's names of styles
STYLES = {
    "": "",
    "frame": "dim",
    "dim": "dim",
    "title": "bold",
    "name": "bold",
    "link": "cyan",
    "port": "green",
    "bad": "bold red",
    "warn": "yellow",
}
SIGNS = {"error": ("✗ ", "bad"), "warning": ("! ", "warn"), "note": ("- ", "dim")}
WIDE = 80  # columns from which on published ports are aligned
One = TypeVar("One")


@dataclass(frozen=True, slots=True)
class Most:
    """How many of a kind are shown; 0: all."""

    containers: int = 20  # on one link; fewer where many links have some
    ports: int = 8  # of one container
    others: int = 12  # namespaces, mappings, programs, findings


ALL = Most(0, 0, 0)
TOGETHER, FEWEST = 100, 5  # containers on all links; on each of many


def picture(host: Host, look: Look, most: Most = ALL, *, closely: bool = False) -> Iterator[Line]:
    """The lines. `closely`: also what a single container needs, and an overview does not."""
    seen = view(host)
    drawn = Drawing(seen, look, most, closely)
    yield from wrapped(spaced((host.hostname or "host", "title"), words.summary(host, seen.plugs)), look, rest="  ")
    about = [f"Linux {host.kernel}", f"cni-py {host.version}", host.portfwd and f"portfwd {host.portfwd}"]
    yield from wrapped(row((", ".join([*filter(None, about), words.moment(host.taken)]), "dim")), look, rest="  ")
    yield []
    yield from draw([drawn.trunk(trunk) for trunk in seen.trunks], look, airy=True)
    for title, rows in drawn.sections():
        if rows:
            yield []
            yield from wrapped(row((title, "title")), look)
            for one in rows:
                yield from wrapped(one, look, "  ", "    ")


class Drawing:
    """Nodes and rows of one view."""

    def __init__(self, seen: View, look: Look, most: Most, closely: bool) -> None:
        self.seen = seen
        self.look = look
        self.host = seen.host
        self.most = most
        self.closely = closely
        self.names = {one.id: one.name for one in self.host.containers}
        busy = sum(bool(trunk.plugs) for trunk in walk(seen.trunks))
        self.containers = min(most.containers, max(FEWEST, TOGETHER // max(busy, 1)))  # 0: all
        self.blamed = {
            one.subject.partition(" ")[2]: one for one in reversed(self.host.findings) if one.level != "note"
        }

    # The tree

    def trunk(self, trunk: Trunk) -> Node:
        """A link of the host, its networks, and what hangs on it."""
        link = trunk.link
        if trunk.is_pair:
            return self.plug(trunk.plugs[0])
        told = trunk.networks[0].name if len(trunk.networks) == 1 else ""
        quiet = trunk.is_stranger
        node = Node(
            spaced(
                (link.name, "dim" if quiet else "link"),
                (words.kind(link), "dim"),
                ", ".join(addresses(link)),
                words.gateways(trunk),
                *self.health(trunk),
            )
        )
        for network in trunk.networks:
            node.rows += self.network(network, [plug for plug in trunk.plugs if plug.network == network.name])
        branches = [self.trunk(branch) for branch in trunk.branches]
        shown, left = self.cut(trunk.plugs, self.containers, self.weight)
        node.nodes = branches + [self.stranger(plug) if quiet else self.plug(plug, told) for plug in shown]
        if left:
            node.nodes.append(Node(row((f"… and {words.counted(left, 'container')} more: --all, or name one", "dim"))))
        return node

    def health(self, trunk: Trunk) -> list[Piece]:
        """Marks of a link. One that is down is wrong where a network needs it."""
        state = words.state(trunk.link)
        bad = not trunk.link.up and bool(trunk.networks)
        said: list[Piece] = [(f"✗ {state}" if bad else state, "bad" if bad else "dim")] if state else []
        return said + self.blame(trunk.link.name)

    def blame(self, *names: str) -> list[Piece]:
        """A mark where a finding is about one of the names; the finding itself stands below the tree."""
        found = [self.blamed[name] for name in names if name in self.blamed]
        return [(f"{SIGNS[found[0].level][0]}see below", SIGNS[found[0].level][1])] if found else []

    def network(self, network: Network, plugs: Sequence[Plug]) -> list[Row]:
        """Name, plugins, masquerading, addresses."""
        pool = self.seen.pools.get(network.name)
        facts: list[Piece] = []
        if self.containers and len(plugs) > self.containers:
            busy, wrong = sum(bool(plug.ports) for plug in plugs), sum(bool(plug.troubles) for plug in plugs)
            facts.append((f"{words.counted(len(plugs), 'container')}, {busy:,} with published ports", ""))
            facts.append((f"{wrong:,} with trouble" if wrong else "", "bad"))
        facts.append((words.masquerading(plugs), ""))
        if pool is not None:
            facts.append((words.fill(pool), "bad" if words.is_full(pool) else ""))
        types = ", ".join(network.types) or ("" if network.path else "its configuration is not found")
        facts += self.blame(network.name)
        said = spaced(*facts, gap="; ")
        head = row("network ", (network.name, "name"), (f" ({types})" if types else "", "dim"), ": " if said else "")
        return [(*head, *said)]

    def plug(self, plug: Plug, told: str = "") -> Node:
        """A container at its port: who it is, addresses, published ports, what is wrong. `told`: the network that is known."""
        lead = [
            (plug.outer.name, "link") if plug.outer else (plug.inner.kind, "dim") if plug.inner else ("gone", "bad")
        ]
        lead.append((" ── ", "frame"))
        head = row(*lead, (plug.name, "name"), "  ", (words.who(plug), "dim"))
        node = Node(head, [self.interface(plug, told), *self.gateway(plug)])
        node.rows += self.published(plug.ports)
        node.rows += [] if self.closely else self.served(plug)
        node.rows += [row((f"✗ {trouble}", "bad")) for trouble in plug.troubles]
        if not plug.troubles:
            node.rows += filter(None, [row(*self.blame(*names_of(plug)))])
        node.rows += closer(plug) if self.closely else []
        return node

    def interface(self, plug: Plug, told: str) -> Row:
        """Its name, addresses, and how it is connected if not as usual."""
        notes = [words.bridge_port(plug.outer) if plug.outer is not None and plug.outer.master else ""]
        if plug.network and plug.network != told:
            notes.append(f"network {plug.network}")
        if plug.source == "go":
            notes.append("connected by the Go plugins")
        elif not plug.is_ours:
            notes.append("not by a CNI plugin")
        found = ", ".join(plug.addresses) or "no address"
        return spaced(plug.ifname or "?", found, (", ".join(filter(None, notes)), "dim"))

    def served(self, plug: Plug) -> list[Row]:
        """What programs inside listen on."""
        if plug.namespace is None:
            return []
        shown, left = self.cut(words.listeners(plug.namespace.sockets), self.most.ports)
        more = f" and {left:,} more" if left else ""
        return [row(("listens on ", "dim"), (", ".join(shown) + more, "dim"))] if shown else []

    def gateway(self, plug: Plug) -> list[Row]:
        """The host's end of a pair without a bridge has addresses of its own."""
        if plug.outer is None or plug.outer.master or not addresses(plug.outer):
            return []
        return [row((f"host's end {', '.join(addresses(plug.outer))}", "dim"))]

    def published(self, given: Sequence[Port]) -> list[Row]:
        """A line each: where clients ask, where it leads, how."""
        ports, left = self.cut(words.runs(given), self.most.ports)
        widest = max((len(words.listens(port)) for port in ports), default=0)
        widest = widest if widest <= 24 and self.look.columns >= WIDE else 0
        rows = []
        for port in ports:
            asked = (words.listens(port).ljust(widest), "port")
            rows.append(row(asked, (" → ", "frame"), words.leads(port), "  ", (words.way(port), "dim")))
        return rows + ([row((f"… and {left:,} more: --all, or name the container", "dim"))] if left else [])

    def stranger(self, plug: Plug) -> Node:
        """In one line, and its ports."""
        outer = f"{plug.outer.name} ── " if plug.outer else ""
        return Node(
            row((outer, "dim"), plug.name, "  ", (words.who(plug), "dim"), "  ", ", ".join(plug.addresses)),
            self.published(plug.ports),
        )

    def weight(self, plug: Plug) -> int:
        """What is cut last has the lowest."""
        return 0 if plug.troubles or any(name in self.blamed for name in names_of(plug)) else 1 if plug.ports else 2

    def cut(
        self, found: Sequence[One], most: int, weight: Callable[[One], int] = lambda _: 0
    ) -> tuple[Sequence[One], int]:
        """The first `most`, those with the lowest weight preferred, in their order; and how many are left out."""
        if not most or len(found) <= most + 1:
            return found, 0
        chosen = sorted(sorted(range(len(found)), key=lambda number: weight(found[number]))[:most])
        return [found[number] for number in chosen], len(found) - most

    # Below the tree

    def sections(self) -> Iterator[tuple[str, list[Row]]]:
        """Titles, and the rows of each."""
        seen, host = self.seen, self.host
        lost = [one for plug in seen.lost for one in self.gone(plug)]
        yield "Recorded, and not connected to this host", lost
        yield "Other networks", [self.unused(network) for network in seen.idle]
        yield "Ports published for containers that are not above", self.published(seen.ports)
        yield "Mappings of portfwd", self.some([self.mapping(one) for one in seen.relays])
        yield "Other namespaces, not connected to this host", self.some([beside(one) for one in seen.beside])
        yield "Other programs that listen on this host", self.some(listening(seen))
        yield "What is wrong", self.findings(host.findings)
        yield "What could not be looked at", [gap(one) for one in host.gaps]

    def some(self, rows: list[Row]) -> list[Row]:
        shown, left = self.cut(rows, self.most.others)
        return [*shown, *([row((f"… and {left:,} more: --all", "dim"))] if left else [])]

    def gone(self, plug: Plug) -> list[Row]:
        node = self.plug(plug)
        return [node.head, *(row("  ", *one) for one in node.rows)]

    def unused(self, network: Network) -> Row:
        """A network that no link of the host stands for."""
        plugs = [plug for plug in self.seen.plugs if plug.network == network.name]
        pool = self.seen.pools.get(network.name)
        facts = [words.counted(len(plugs), "container"), words.masquerading(plugs), words.fill(pool) if pool else ""]
        types = ", ".join(network.types)
        problem = (f"✗ {network.problem}", "bad") if network.problem else ", ".join(filter(None, facts))
        return spaced((network.name, "name"), (types, "dim"), problem, (network.path, "dim"))

    def mapping(self, one: Relay) -> Row:
        bad = bool(one.problem)
        return row(
            (one.listen, "port"), (" → ", "frame"), one.target, "  ", (words.mapping(one), "bad" if bad else "dim")
        )

    def findings(self, found: Sequence[Finding]) -> list[Row]:
        """The worst first; many of one kind are cut."""
        kinds: dict[str, list[Finding]] = defaultdict(list)
        for one in sorted(found, key=lambda one: words.LEVELS.index(one.level)):
            kinds[one.code].append(one)
        rows = []
        for alike in kinds.values():
            shown, left = self.cut(alike, self.most.others)
            for one in shown:
                why = "; " if one.why else ""
                rows.append(row(SIGNS[one.level], (self.called(one.subject), "name"), ": ", one.what, why, one.why))
                rows += [row("    ", (f"→ {one.do}", "port"))] if one.do else []
            rows += [row((f"… and {left:,} more of this kind: --all", "dim"))] if left else []
        return rows

    def called(self, subject: str) -> str:
        """A finding names a container by its whole id; people by its name."""
        kind, _, name = subject.partition(" ")
        return f"{kind} {self.names.get(name) or short(name)}" if kind == "container" else subject


def gap(one: Finding) -> Row:
    """What could not be looked at; that it is something of this host goes without saying."""
    return spaced("" if one.subject == "host" else one.subject, one.what, gap=": ")


def names_of(plug: Plug) -> tuple[str, ...]:
    """What the subject of a finding may call it."""
    ends = [link.name for link in (plug.outer,) if link is not None]
    return (plug.name, plug.container_id, short(plug.container_id), *ends)


def closer(plug: Plug) -> list[Row]:
    """What is of use when one container is looked at."""
    said = [(plug.container_id and "id", plug.container_id)]
    said += [("image", one.image) for one in plug.containers if one.image]
    space = plug.namespace
    if space is not None:
        said.append(("namespace", ", ".join([*space.names, space.key])))
        gateways = [one for one in space.routes if one.destination in ("0.0.0.0/0", "::/0")]
        said += [("default route", f"{one.gateway or 'the link'}, by {one.link}") for one in gateways]
        said.append(
            ("listeners", ", ".join(f"{words.socket(one)} ({one.program or 'unknown'})" for one in space.sockets))
        )
    said += [("interface", f"{one.mac}, MTU {one.mtu}") for one in (plug.inner,) if one is not None]
    said += [("bridge port", "hairpin") for one in (plug.outer,) if one is not None and one.hairpin]
    if plug.attachment is not None:
        said.append(("plugins", ", ".join(plug.attachment.plugins)))
        said.append(("since", words.moment(plug.attachment.since) if plug.attachment.since else ""))
    said.append(("masquerade", ", ".join(map(words.whose, plug.masquerades))))
    # A whole id has 64 digits: with its label they have to fit into 80 columns
    return [row((f"{label:<14}" if label != "id" else "id  ", "dim"), text) for label, text in said if label and text]


def beside(namespace: Namespace) -> Row:
    """A namespace that nothing connects: its name, what runs in it, its addresses."""
    name = namespace.names[0] if namespace.names else namespace.key
    processes = f"{namespace.processes[0].name} ({namespace.processes[0].pid})" if namespace.processes else ""
    links = [
        f"{link.name} {', '.join(addresses(link)) or 'no address'}"
        for link in namespace.links
        if "loopback" not in link.flags
    ]
    return spaced((name, "name"), (processes, "dim"), "; ".join(links))


def listening(seen: View) -> list[Row]:
    """A row for each program."""
    by_program: dict[tuple[str, int], list[str]] = defaultdict(list)
    for one in seen.listeners:
        by_program[one.program, one.pid].append(words.socket(one))
    return [
        row((", ".join(sockets), "port"), "  ", f"{program or 'unknown'} ({pid})" if pid else "unknown")
        for (program, pid), sockets in by_program.items()
    ]
