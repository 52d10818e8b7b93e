"""All figures of one run, and the same as text for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

from figures import Row, growth_target, start_target, target


class Chain(TypedDict):
    """One family under one load."""

    family: str
    load: str
    rounds: int
    others: float | None  # part of the processors that the machine's other processes had meanwhile
    rows: list[Row]


class Growth(TypedDict):
    """Rows of the full host; their ratios are to the one with few attachments."""

    small: int
    large: int
    ports: int
    rows: list[Row]


class Report(TypedDict):
    """What bench/plugins.py found, as its JSON has it."""

    machine: dict[str, str]
    date: str
    command: str
    load: list[float]  # the machine's load averages before the run
    absent: dict[str, str]  # a way, and why it was not measured
    chains: list[Chain]
    bursts: list[Chain]
    starts: list[Row]  # ratios are to a bare interpreter
    growth: Growth | None
    parts: Parts  # of direct calls, IPv4, idle


WALL_ONLY = (  # what has a target for wall time alone
    "ADDs",
    "DELs",
    "bridge VERSION",
)
Parts = dict[str, dict[str, list[float]]]  # of a step: a part's wall and processor time in milliseconds
Target = Callable[[Row], float | None]


def verdict(row: Row, most: float | None) -> str:
    """Whether a row's ratios are what they should be; empty without a target or ratios."""
    if most is None or row["wall_ratio"] is None or row["cpu_ratio"] is None:
        return ""
    wall, cpu = row["wall_ratio"] <= most, row["cpu_ratio"] <= most
    words = f"wall {'met' if wall else 'NOT met'}"
    return f"target {most}: {words}" + ("" if row["step"] in WALL_ONLY else f", CPU {'met' if cpu else 'NOT met'}")


def lines(rows: Sequence[Row], target: Target = target) -> list[str]:
    """A table of rows."""
    found = [
        f"{'step':16}{'side':24}{'wall ms':>9}{'p90':>9}{'CPU ms':>9}{'ratio':>8}  {'90% within':14}{'CPU ratio':>9}"
    ]
    for row in rows:
        ratios = ["", "", ""]
        if row["wall_ratio"] is not None and row["wall_between"] is not None:
            low, high = row["wall_between"]
            ratios = [f"{row['wall_ratio']:.2f}", f"{low:.2f}-{high:.2f}", f"{row['cpu_ratio']:.2f}"]
        found.append(
            f"{row['step']:16}{row['side']:24}{row['wall_ms']:>9.1f}{row['p90_ms']:>9.1f}{row['cpu_ms']:>9.1f}"
            f"{ratios[0]:>8}  {ratios[1]:14}{ratios[2]:>9}  {verdict(row, target(row))}".rstrip()
        )
    return found


def printed(report: Report) -> str:
    """The whole report."""
    found = [f"{name}: {value}" for name, value in report["machine"].items()]
    found += [f"date: {report['date']}", f"command: {report['command']}", f"load averages before: {report['load']}"]
    found += [f"not measured: {way}: {reason}" for way, reason in report["absent"].items()]
    found.append("results were equal before timing; ratios to the Go plugins' medians")
    for chain in report["chains"] + report["bursts"]:
        meanwhile = "" if chain["others"] is None else f"; other processes had {chain['others']:.0%} of the processors"
        found += ["", f"{chain['family']}, {chain['load']}, {chain['rounds']} rounds in turns{meanwhile}"]
        found += lines(chain["rows"])
    found += ["", "VERSION, ratios to the bare interpreter"]
    found += lines(report["starts"], start_target)
    growth = report["growth"]
    if growth is not None:
        many = f"{growth['large']} attachments of {growth['ports']} ports each"
        found += ["", f"one more attachment on a host with {many}, ratios to one with {growth['small']}"]
        found += lines(growth["rows"], growth_target)
    return "\n".join(found)
