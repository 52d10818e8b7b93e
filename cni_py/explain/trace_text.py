"""A trace as a tree for a terminal, and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cni_py.explain.journeys import Journey, Met, Passage, Trace
from cni_py.explain.text import DETAILED, MINIMAL, Page
from cni_py.explain.tracing import Ends, Flow, Headers
from cni_py.explain.world import with_port
from cni_py.host.saved import to_json

JOURNEYS_MAX = 50  # that are printed
FLOWS_MAX = 100
COLOURS = {
    "answered": "answers",
    "seen": "answers",
    "refused": "fails",
    "dropped": "fails",
    "unreachable": "fails",
    "silent": "unknown",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What is told of a trace."""

    heading: str
    trace: Trace
    result: str  # "answered", "refused", "dropped", "unreachable", "silent", "" when no packet came
    said: str  # the same as a sentence
    agrees: bool | None
    comparison: str  # "" if there is nothing to compare with
    unseen: tuple[str, ...] = ()  # sentences on what is not in the trace


def render(report: Report, *, detail: int, width: int, colour: bool) -> str:
    """All of it. `detail`: as in text.py; MINIMAL leaves the tree out."""
    page = Page(width, colour)
    lines = page.wrapped(report.heading, "", "    ")
    if detail > MINIMAL:
        for journey in report.trace.journeys[:JOURNEYS_MAX]:
            lines += _journey(journey, page, detail)
        for flow in report.trace.flows[:FLOWS_MAX]:
            lines += _flow(flow, page)
    for note in _notes(report):
        lines += page.wrapped(f"note: {note}", "", "    ")
    first, *rest = page.wrapped(f"{report.result or 'nothing seen'}: {report.said}", "", "    ")
    lines += [page.verdict(COLOURS.get(report.result, "fails"), first), *rest]
    if report.comparison:
        word = {True: "answers", False: "fails", None: "unknown"}[report.agrees]
        first, *rest = page.wrapped(report.comparison, "", "    ")
        lines += [page.verdict(word, first), *rest]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _notes(report: Report) -> Iterator[str]:
    yield from report.unseen
    if report.trace.lost:
        yield "the kernel had more to tell than its buffer holds: parts are missing"
    more = len(report.trace.journeys) - JOURNEYS_MAX
    if report.trace.cut or more > 0:
        yield "there was more than is printed here"


def _journey(journey: Journey, page: Page, detail: int) -> Iterator[str]:
    again = f", sent {journey.repeated + 1} times" if journey.repeated else ""
    yield from page.wrapped(f"{headers(journey.headers)}{again}", "  ", "      ")
    place, seen = ("", "", ""), journey.headers
    for one in journey.passages:
        if one.headers and one.headers.ends != seen.ends:
            yield from page.wrapped(f"now {ends(one.headers.ends)}", "    ", "        ")
            seen = one.headers
        if (one.hook, one.iif, one.oif) != place:
            place = one.hook, one.iif, one.oif
            yield from page.wrapped(", ".join(_where(one)), "    ", "        ")
        yield from _passage(one, page, detail)
    if not journey.passages:
        yield "      no rules are on its way"


def _where(one: Passage) -> list[str]:
    hook = one.hook or "a hook that was made meanwhile"
    return [hook, *([f"in {one.iif}"] if one.iif else []), *([f"out {one.oif}"] if one.oif else [])]


def _passage(passage: Passage, page: Page, detail: int) -> Iterator[str]:
    """A line for each rule; the end of a called chain is told in detail only."""
    for one in passage.met:
        if one.verdict == "end" and detail < DETAILED:
            continue
        mark = "x" if one.verdict.endswith("drop") else " "
        indent = 6 + 2 * one.depth
        lines = page.wrapped(_met(passage.table, one), f"    {mark} {' ' * (indent - 6)}", " " * (indent + 4))
        yield from (page.verdict("fails", line) for line in lines) if mark == "x" else lines


def _met(table: str, one: Met) -> str:
    handle = f" handle {one.handle}" if one.handle else ""
    place = f"{table} {one.chain}" if not one.depth else one.chain
    words = one.text or ("a rule that was made meanwhile" if one.handle else "")
    owner = f", by {one.owner}" if one.owner else ""
    return f"{place}{handle}{owner}{': ' + words if words else ''}" + _effect(one, words)


def _effect(one: Met, words: str) -> str:
    """The verdict, unless the rule's last words say it."""
    return "" if one.verdict == "continue" or words.endswith(one.verdict) else f" -> {one.verdict}"


def _flow(flow: Flow, page: Page) -> Iterator[str]:
    more = ", ".join((*([flow.state] if flow.state else []), *flow.status))
    text = f"conntrack {flow.event}: {ends(flow.original)}, answer {ends(flow.reply)}"
    yield from page.wrapped(f"{text} [{more}]" if more else text, "  ", "      ")


def headers(one: Headers) -> str:
    """198.51.100.7:40000 > 198.51.100.1:8080 tcp syn."""
    return " ".join((ends(one.ends), one.protocol, *one.flags))


def ends(one: Ends) -> str:
    """198.51.100.7:40000 > 198.51.100.1:8080."""
    return f"{with_port(one.source, one.source_port)} > {with_port(one.destination, one.destination_port)}"


def as_json(report: Report) -> dict[str, object]:
    """With the keys that docs/explain.md lists."""
    trace = report.trace
    return {
        "result": report.result,
        "said": report.said,
        "agrees": report.agrees,
        "comparison": report.comparison,
        "packets": [to_json(one) for one in trace.journeys[:JOURNEYS_MAX]],
        "flows": [to_json(one) for one in trace.flows[:FLOWS_MAX]],
        "lost": trace.lost,
        "cut": trace.cut or len(trace.journeys) > JOURNEYS_MAX or len(trace.flows) > FLOWS_MAX,
        "unseen": list(report.unseen),
    }
