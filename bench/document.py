"""Write the tables and the picture of docs/performance.md from what bench/plugins.py found.

    python3 bench/document.py [--figures docs/performance.json] [--docs docs]

In the document each generated part stands between a line `<!-- bench: NAME -->` and a line `<!-- end -->`. Where there is a file
performance-before.json beside it, figures of an earlier version of ours, their ratios are in the document, too.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from drawing import drawing
from figures import GROWTH_MAX, TARGETS, VERSION_MAX, Row
from report import Chain, Parts, Report

PART = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
WAYS = ("direct", "chain", "warm")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def find(rows: Sequence[Row], side: str, step: str) -> Row | None:
    """The row, if that side was measured."""
    return next((row for row in rows if (row["side"], row["step"]) == (side, step)), None)


def ratios(row: Row | None) -> str:
    """Wall and processor time."""
    if row is None or row["wall_ratio"] is None:
        return "-"
    return f"{row['wall_ratio']:.2f} / {row['cpu_ratio']:.2f}"


def times(row: Row | None) -> str:
    """The same in milliseconds."""
    return "-" if row is None else f"{row['wall_ms']:.1f} / {row['cpu_ms']:.1f}"


def beside_targets(chains: Sequence[Chain], steps: Sequence[str], cell: Callable[[Row | None], str]) -> str:
    """Our ways and their targets; a column for each family and load."""
    rows = [
        [
            way,
            step.removeprefix("chain "),
            f"{TARGETS[way, step]}",
            *(cell(find(one["rows"], way, step)) for one in chains),
        ]
        for way in WAYS
        for step in steps
        if any(find(one["rows"], way, step) for one in chains)
    ]
    return table(["way", "", "at most", *(f"{one['family']}, {one['load']}" for one in chains)], rows)


def in_ms(chains: Sequence[Chain], steps: Sequence[str]) -> str:
    """All sides; a column for each family and load."""
    sides = dict.fromkeys(row["side"] for one in chains for row in one["rows"])
    rows = [
        [side, step.removeprefix("chain "), *(times(find(one["rows"], side, step)) for one in chains)]
        for step in steps
        for side in sides
    ]
    return table(["side", "", *(f"{one['family']}, {one['load']}" for one in chains)], rows)


def by_plugin(chain: Chain) -> str:
    """Every step; a column for each side."""
    sides = list(dict.fromkeys(row["side"] for row in chain["rows"]))
    steps = dict.fromkeys(row["step"] for row in chain["rows"])
    return table(
        ["step", *sides], ([step, *(times(find(chain["rows"], side, step)) for side in sides)] for step in steps)
    )


def conditions(report: Report) -> str:
    """What it ran on."""
    rows = [[name, value] for name, value in report["machine"].items()]
    rows += [
        ["date", report["date"]],
        ["command", f"`{report['command']}`"],
        ["rounds", f"{report['chains'][0]['rounds']}, in turns"],
        *(
            ["other processes had", f"{one['others']:.0%} of the processors: {one['family']}, {one['load']}"]
            for one in [*report["chains"], *report["bursts"]]
            if one["others"] is not None
        ),
        *(["not measured", f"{way}: {reason}"] for way, reason in report["absent"].items()),
    ]
    return table(["", ""], rows)


def starts(report: Report) -> str:
    """VERSION."""
    rows = [
        ["bare interpreter" if row["side"].startswith("python3") else row["side"], times(row), ratios(row)]
        for row in report["starts"]
    ]
    return table(["VERSION", "ms", f"to a bare interpreter (direct: at most {VERSION_MAX})"], rows)


def growth(report: Report) -> str:
    """Of whole chains."""
    found = report["growth"]
    if found is None:
        return ""
    head = ["way", "", f"ms with {found['large']:,}", f"to {found['small']} (at most {GROWTH_MAX})"]
    rows = [row for row in found["rows"] if row["step"].startswith("chain")]
    return table(head, ([row["side"], row["step"].split()[1], times(row), ratios(row)] for row in rows))


def by_part(report: Report) -> str:
    """Parts of direct calls; a column for each step, in the order of calls."""
    steps = report["parts"]
    parts = sorted({part for found in steps.values() for part in found}, key=lambda part: -weight(steps, part))
    rows = [[part, *(cell(found.get(part)) for found in steps.values())] for part in parts]
    return table(["", *steps], rows)


def weight(steps: Parts, part: str) -> float:
    """Its processor time in all steps."""
    return sum(found[part][1] for found in steps.values() if part in found)


def cell(figures: Sequence[float] | None) -> str:
    """Wall and processor time of a part."""
    return "-" if figures is None else f"{figures[0]:.1f} / {figures[1]:.1f}"


def generated(report: Report, before: Report | None = None) -> dict[str, str]:
    """All parts by name."""
    chains, bursts = report["chains"], report["bursts"]
    parts = {
        "conditions": conditions(report),
        "ratios": beside_targets(chains, ("chain ADD", "chain DEL"), ratios),
        "milliseconds": in_ms(chains, ("chain ADD", "chain DEL")),
        "plugins": by_plugin(chains[0]),
        "bursts": beside_targets(bursts, ("ADDs", "DELs"), ratios),
        "burst_times": in_ms(bursts, ("ADDs", "DELs")),
        "starts": starts(report),
        "growth": growth(report),
        "before": "",
        "parts": by_part(report),
    }
    if before is not None:
        when = before["date"].split()[0]
        parts["before"] = f"Ratios of an earlier version, of {when}:\n\n"
        parts["before"] += beside_targets(before["chains"], ("chain ADD", "chain DEL"), ratios)
    return parts


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The document with its parts made anew. KeyError for a part that there is not."""
    return PART.sub(lambda found: f"{found[1]}{parts[found[2]]}{found[3]}", text)


def main() -> int:
    """Read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", default="docs/performance.json")
    parser.add_argument("--docs", default="docs")
    asked = parser.parse_args()
    report: Report = json.loads(Path(asked.figures).read_text())
    earlier = Path(asked.docs, "performance-before.json")
    before: Report | None = json.loads(earlier.read_text()) if earlier.exists() else None
    page = Path(asked.docs, "performance.md")
    page.write_text(filled(page.read_text(), generated(report, before)))
    Path(asked.docs, "performance.svg").write_text(drawing(report["chains"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
