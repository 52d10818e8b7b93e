"""From what calls took to rows of figures: medians of wall time, means of processor time, ratios to the reference. Pure.

Processor time is a mean because a service's is known in steps of 10 ms only, so that single values say nothing. A ratio of wall
times has an interval, in which it lies in 90 of 100 draws of as many rounds from those that were run (bootstrap).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from typing import TypedDict

from hosts import Spent

DRAWS = 400
TARGETS = {  # the issue "Three times as fast as the newest Go plugins": way and step, the ratio at most
    ("direct", "chain ADD"): 0.75,
    ("direct", "chain DEL"): 0.7,
    ("chain", "chain ADD"): 0.4,
    ("chain", "chain DEL"): 0.45,
    ("warm", "chain ADD"): 0.35,
    ("warm", "chain DEL"): 0.4,
    **{("direct", step): 0.8 for step in ("ADDs", "DELs")},
    **{("chain", step): 0.4 for step in ("ADDs", "DELs")},
    **{("warm", step): 0.35 for step in ("ADDs", "DELs")},
}
GROWTH_MAX = 1.2
VERSION_MAX = 1.5


class Row(TypedDict):
    """One step of one side; ratios are None without a reference."""

    step: str
    side: str
    wall_ms: float
    p90_ms: float
    cpu_ms: float
    wall_ratio: float | None
    wall_between: list[float] | None
    cpu_ratio: float | None


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which that part of them lies."""
    return sorted(values)[round(part * (len(values) - 1))]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the medians."""
    return statistics.median(ours) / statistics.median(theirs)


def between(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The ratio's interval. Rounds are drawn, so that what both sides of a round had in common stays together."""
    draw = random.Random(0)  # the same figures for the same measurement
    size = min(len(ours), len(theirs))
    drawn = [[draw.randrange(size) for _ in range(size)] for _ in range(DRAWS)]
    found = [ratio([ours[place] for place in places], [theirs[place] for place in places]) for places in drawn]
    return [round(percentile(found, 0.05), 2), round(percentile(found, 0.95), 2)]


def row(step: str, side: str, spent: Sequence[Spent], theirs: Sequence[Spent] | None) -> Row:
    """One step of one side beside the reference's, if there is one."""
    walls, cpus = [one.wall_ms for one in spent], [one.cpu_ms for one in spent]
    found = Row(
        step=step,
        side=side,
        wall_ms=round(statistics.median(walls), 2),
        p90_ms=round(percentile(walls, 0.9), 2),
        cpu_ms=round(statistics.fmean(cpus), 2),
        wall_ratio=None,
        wall_between=None,
        cpu_ratio=None,
    )
    if theirs:
        their_walls = [one.wall_ms for one in theirs]
        found["wall_ratio"] = round(ratio(walls, their_walls), 3)
        found["wall_between"] = between(walls, their_walls)
        found["cpu_ratio"] = round(statistics.fmean(cpus) / statistics.fmean(one.cpu_ms for one in theirs), 3)
    return found


def rows(times: Mapping[str, Mapping[str, Sequence[Spent]]], reference: str) -> list[Row]:
    """All steps of all sides, with ratios to the side `reference`; whole lists come last."""
    steps = dict.fromkeys(step for side in times.values() for step in side)
    ordered = sorted(steps, key=lambda step: (step.startswith("chain"), step.split()[-1]))
    theirs = times.get(reference, {})
    return [
        row(step, name, side[step], theirs.get(step))
        for step in ordered
        for name, side in times.items()
        if step in side
    ]


def target(row: Row) -> float | None:
    """The most that its ratio to Go should be."""
    return TARGETS.get((row["side"], row["step"]))


def growth_target(row: Row) -> float | None:
    """The most that its ratio to an empty host should be."""
    return GROWTH_MAX if row["step"].startswith("chain") else None


def start_target(row: Row) -> float | None:
    """The most that its ratio to a bare interpreter should be."""
    return VERSION_MAX if row["side"] == "direct" else None
