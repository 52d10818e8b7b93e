"""Where the milliseconds of a direct call go: the same rounds, each plugin under a stopwatch (bench/stopwatch.py)."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from hosts import Call, Host, Spent
from report import Parts
from sides import Container, Side

STOPWATCH = str(Path(__file__).with_name("stopwatch.py"))


class Watched(Host):
    """A host whose calls run under the stopwatch."""

    def __init__(self, interpreter: str, lines: str) -> None:
        super().__init__()
        self.interpreter, self.lines = interpreter, lines
        self.found: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))

    def call(self, call: Call) -> tuple[Spent, bytes]:
        """Under the stopwatch, and noted by part."""
        begun = time.monotonic_ns()  # the clock that the stopwatch reads, too
        environ = {**call.environ, "BENCH_PARTS": self.lines, "BENCH_BEGUN": str(begun)}
        words = ("-IS", STOPWATCH, call.program)
        spent, answer = super().call(replace(call, program=self.interpreter, words=words, environ=environ))
        told = json.loads(Path(self.lines).read_text())
        Path(self.lines).unlink()
        parts = told["parts"]
        total_cpu = sum(cpu for _, cpu in parts.values())
        parts["the end"] = [spent.wall_ms - (told["end"] - begun) / 1e6, max(spent.cpu_ms - total_cpu, 0.0)]
        for part, figures in parts.items():
            if part:
                self.found[call.name][part].append(figures)
        return spent, answer


def measure(folder: str, interpreter: str, family: str, count: int, scratch: str) -> Parts:
    """Medians of the parts of each step."""
    host = Watched(interpreter, os.path.join(scratch, "parts"))
    side = Side("parts", folder, family, host=host)
    for number in range(count + 1):
        side.round(Container(f"p{number}"))
        if number == 0:
            host.found.clear()
    return {
        step: {
            part: [round(statistics.median(column), 2) for column in zip(*figures, strict=True)]
            for part, figures in parts.items()
        }
        for step, parts in host.found.items()
    }
