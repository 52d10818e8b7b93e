"""The picture of docs/performance.md: ratios to the Go plugins as bars, readable on white and on black. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from figures import Row, target
from report import Chain

LABELS, BARS, VALUES = 110, 520, 90  # widths of the columns, in pixels
TOP, BOTTOM = 34, 30
TITLE, LINE = 22, 18  # heights of a group's title and of a side's line
WALL, CPU = 8, 4  # heights of its bars
COLOURS = {"direct": "#3b82f6", "chain": "#2da44e", "warm": "#d97706"}
GREY, TARGET = "#808a94", "#e5484d"
LEAST = 1.25  # the scale goes at least that far, so that the line of the Go plugins is in the picture


def drawing(chains: Sequence[Chain]) -> str:
    """An SVG document with a group for each verb, family and load, and in it a line for each way of ours."""
    groups = [
        (f"{step.removeprefix('chain ')}, {chain['family']}, {chain['load']}", shown(chain["rows"], step))
        for step in ("chain ADD", "chain DEL")
        for chain in chains
    ]
    most = max([LEAST, *(high(row) for _, rows in groups for row in rows)])
    body: list[str] = []
    y = TOP
    for title, rows in groups:
        body.append(text(LABELS, y + 14, title, weight="bold"))
        y += TITLE
        for row in rows:
            body += line(row, y, BARS / most)
            y += LINE
    go = LABELS + BARS / most
    body.insert(0, f'<path d="M{go:.1f} {TOP} V{y + 4}" stroke="{GREY}" stroke-dasharray="4 3"/>')
    body.append(text(go, y + 18, "Go plugins = 1", anchor="middle"))
    legend = "wall time: broad bar. Processor time: narrow bar. Red mark: target. Shorter is better."
    return "\n".join([*head(y + BOTTOM), text(LABELS, 18, legend), *body, "</svg>", ""])


def shown(rows: Sequence[Row], step: str) -> list[Row]:
    """Those of ours that have a ratio."""
    return [row for row in rows if row["step"] == step and row["side"] in COLOURS and row["wall_ratio"] is not None]


def high(row: Row) -> float:
    """How far its bars reach."""
    return max(row["wall_ratio"] or 0.0, row["cpu_ratio"] or 0.0)


def head(height: float) -> list[str]:
    """The first lines."""
    width = LABELS + BARS + VALUES
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="12" fill="{GREY}">',
        "<title>ADD and DEL of a chain of four plugins, as ratios to the Go plugins</title>",
    ]


def text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal") -> str:
    """Words of ours, which need no escapes."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{words}</text>'


def bar(y: float, length: float, height: float, colour: str, opacity: float) -> str:
    """From the left edge of the bars."""
    return f'<rect x="{LABELS}" y="{y:.1f}" width="{length:.1f}" height="{height}" fill="{colour}" fill-opacity="{opacity}"/>'


def line(row: Row, y: float, scale: float) -> list[str]:
    """One side: two bars, their figures, the mark of the target."""
    wall, cpu = row["wall_ratio"] or 0.0, row["cpu_ratio"] or 0.0
    colour, most = COLOURS[row["side"]], target(row)
    found = [
        text(LABELS - 8, y + 11, row["side"], anchor="end"),
        bar(y, wall * scale, WALL, colour, 1),
        bar(y + WALL + 1, cpu * scale, CPU, colour, 0.6),
        text(LABELS + max(wall, cpu, most or 0.0) * scale + 6, y + 11, f"{wall:.2f} / {cpu:.2f}"),
    ]
    if most is not None:
        x = LABELS + most * scale
        found.append(f'<path d="M{x:.1f} {y - 1:.1f} v{WALL + CPU + 3}" stroke="{TARGET}" stroke-width="2"/>')
    return found
