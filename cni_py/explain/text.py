"""The answer as text for a terminal, and as JSON. Pure.

What others named (containers, programs, rules' comments) may hold control characters: all text passes plain().
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from cni_py.explain.hooks import step_text
from cni_py.explain.promises import OPTIONAL, RECORDED
from cni_py.explain.walk import Explained, judged
from cni_py.explain.way import Hop, Way
from cni_py.explain.world import World, target_of, with_port
from cni_py.host.findings import RECORDS
from cni_py.host.model import Host, Port
from cni_py.host.printable import plain
from cni_py.host.saved import to_json

MINIMAL, NORMAL, DETAILED = 0, 1, 2
WIDTH_MIN, WIDTH_MAX = 40, 200
NARROW = 72  # below, a table's line is broken in two
EVIDENCE_MAX = 3  # lines of a hop, if not detailed
COLOURS = {"answers": "32", "fails": "31", "unknown": "33"}
MARKS = {"passes": " ", "fails": "x", "unknown": "?"}
WORDS = {"answers": "answers", "fails": "fails", "unknown": "cannot say"}


class Page:
    """Lines of a width, with colours or without."""

    def __init__(self, width: int, colour: bool) -> None:
        self.width = max(WIDTH_MIN, min(WIDTH_MAX, width))
        self.colour = colour

    def verdict(self, word: str, text: str = "") -> str:
        """A verdict in its colour."""
        shown = text or WORDS.get(word, word)
        return f"\x1b[{COLOURS[word]}m{shown}\x1b[0m" if self.colour and word in COLOURS else shown

    def wrapped(self, text: str, first: str, rest: str) -> list[str]:
        """Text below a beginning, its further lines indented."""
        return textwrap.wrap(
            plain(text),
            self.width,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=True,
            break_on_hyphens=False,
        ) or [first.rstrip()]


def render(host: Host, answer: Explained, *, detail: int = NORMAL, width: int = 100, colour: bool = False) -> str:
    """All of it."""
    page = Page(width, colour)
    world = World(host)
    lines = [*heading(world, answer, page), "", *table(answer.ways, page)]
    way = answer.shown
    if way is not None and detail > MINIMAL:
        lines += ["", *told(way, page, detail)]
    lines += ["", *conclusion(answer, page)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def heading(world: World, answer: Explained, page: Page) -> Iterator[str]:
    """What publishes the port."""
    question = answer.question
    if not answer.ports:
        seen = " that could be seen" if world.gaps("nftables") or world.gaps(RECORDS) else ""
        yield from page.wrapped(f"{question}: published by nobody{seen}", "", "    ")
        return
    yield from page.wrapped(
        f"{question}: {', '.join(dict.fromkeys(_whose(world, one) for one in answer.ports))}", "", "    "
    )
    for one in answer.ports:
        if one.place == OPTIONAL:
            continue
        address, number = target_of(one, question.port)
        to = with_port(address, number) if address else f"port {number} inside its namespace"
        only = f", only for {', '.join(one.allow)}" if one.allow else ""
        by = f"{one.way} ({one.backend})" if one.backend else one.way
        by += ", missing" if one.place == RECORDED else ""
        yield from page.wrapped(f"{with_port(one.host_address, question.port)} -> {to}  {by}{only}", "    ", "        ")

    if any(one.place == OPTIONAL for one in answer.ports):
        yield from page.wrapped(
            "portfwd relays what NAT cannot serve, such as [::1], when it runs; it does not", "    ", "        "
        )


def _whose(world: World, port: Port) -> str:
    owner = f", made by {port.source}" if port.source not in ("", "other") else ""
    if not port.container_id:
        return f"published{owner}"
    network = f" in network {port.network}" if port.network else ""
    return f"container {world.name_of(port.container_id)}{network}{owner}"


def table(ways: Iterable[Way], page: Page) -> Iterator[str]:
    """A line for each client."""
    rows = [("client", "connects to", "result", "the server sees, or what fails", "")]
    rows += [
        (
            plain(_client(way)),
            with_port(way.packet.destination, way.packet.destination_port),
            _result(way),
            way.sees if way.verdict != "fails" else (way.deciding.code if way.deciding else ""),
            way.verdict if way.promised or way.verdict == "answers" else "",
        )
        for way in ways
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        result = page.verdict(row[4], f"{row[2]:<{widths[2]}}") if row[4] else f"{row[2]:<{widths[2]}}"
        if page.width < NARROW:
            yield from page.wrapped(f"{row[0]}, {row[1]}", "", "  ")
            yield from (
                page.wrapped(row[3], f"    {result}  ", "        ") if not page.colour else [f"    {result}  {row[3]}"]
            )
        else:
            yield f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {result}  {row[3]}"


def _result(way: Way) -> str:
    """A client whom the publication does not promise anything is not served: nothing has failed."""
    return WORDS[way.verdict] if way.promised or way.verdict != "fails" else "not served"


def _client(way: Way) -> str:
    if way.kind == "loopback":
        return "this host, loopback"
    prefix = {"neighbour": "neighbour: ", "other-bridge": "other bridge: ", "itself": "itself: "}.get(way.kind, "")
    if way.kind in ("lan", "address") and way.client == "another machine":
        return f"another machine, {way.packet.source}"
    return f"{prefix}{way.client}"


def told(way: Way, page: Page, detail: int) -> Iterator[str]:
    """The way of one client, hop by hop."""
    asked = with_port(way.packet.destination, way.packet.destination_port)
    yield from page.wrapped(f"The way of {_client(way)}, to {asked}:", "", "    ")
    where, back = "", False
    for hop in way.hops:
        if hop.back and not back:
            yield "  the answer:"
            where = ""
        if hop.where != where:
            yield f"  {plain(hop.where)}"
        where, back = hop.where, hop.back
        yield from _hop(hop, page, detail)


def _hop(hop: Hop, page: Page, detail: int) -> Iterator[str]:
    mark = MARKS[hop.result]
    doubt = f", {hop.certainty}" if hop.certainty != "checked" else ""
    beginning = f"   {mark} "
    text = f"{hop.what} [{hop.code}{doubt}]"
    lines = page.wrapped(text, beginning, "       ")
    if page.colour and hop.result != "passes":
        lines = [page.verdict(hop.result, line) for line in lines]
    yield from lines
    told = hop.code != "hook" or hop.result != "passes"
    shown = hop.evidence if detail == DETAILED else hop.evidence[:EVIDENCE_MAX] if told else ()
    for line in shown:
        yield from page.wrapped(line, "         | ", "         |   ")
    if detail == DETAILED:
        for step in hop.steps:
            doubtful = f" ({step.certainty}: {step.why})" if step.why else ""
            yield from page.wrapped(f"{step_text(step)}{doubtful}", "         . ", "         .   ")


def conclusion(answer: Explained, page: Page) -> Iterator[str]:
    """The verdict: what fails first, why, and the command that mends it."""
    counted = judged(answer.ways)
    hop = answer.shown.deciding if answer.shown else None
    if answer.verdict == "answers" or hop is None:
        who = "every client that it is published for" if not answer.asked else "the client"
        said = f"{who} is served" if counted else "nobody can connect"
        lines = page.wrapped(f"{WORDS[answer.verdict]}: {said}", "", "        ")
        yield from (page.verdict(answer.verdict, line) for line in lines)
        return
    failing = [way for way in counted if way.verdict == answer.verdict]
    of = f" (for {len(failing)} of {len(counted)} clients)" if len(counted) > 1 else ""
    first = f"{WORDS[answer.verdict]}:"
    lines = page.wrapped(f"{first} {_place(hop.where)}: {hop.what} [{hop.code}]{of}", "", "        ")
    yield page.verdict(answer.verdict, lines[0])
    yield from lines[1:]
    if hop.cause:
        yield from page.wrapped(f"cause:  {hop.cause}", "", "        ")
    if hop.mend:
        yield from page.wrapped(f"mend:   {hop.mend}", "", "        ")


def _place(where: str) -> str:
    return f"on {where}" if where in ("this host", "the network") else f"in {where}"


def as_json(answer: Explained) -> dict[str, object]:
    """The answer with the keys that docs/explain.md lists."""
    shown = answer.shown
    return {
        "port": answer.question.port,
        "protocol": answer.question.protocol,
        "address": answer.question.address,
        "from": answer.asked,
        "verdict": answer.verdict,
        "published": [to_json(one) for one in answer.ports],
        "clients": [_way_json(way, way is shown) for way in answer.ways],
    }


def _way_json(way: Way, shown: bool) -> dict[str, object]:
    hop = way.deciding
    return {
        "kind": way.kind,
        "client": way.client,
        "family": way.family,
        "source": way.packet.source,
        "destination": way.packet.destination,
        "promised": way.promised,
        "verdict": way.verdict,
        "sees": way.sees,
        "server": way.server,
        "code": hop.code if hop else "",
        "shown": shown,
        "hops": [to_json(one) for one in way.hops],
    }
