"""What a test says when this machine cannot run it, and how a run sums that up.

`missing`      somebody could install it or grant it: a person's run skips the test, a run under CI fails
`unavailable`  nobody can have it on this system (a distribution built it without): skipped everywhere, and named at the end
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

UNAVAILABLE = "cannot be had on this system: "
LACKING = "this machine lacks it: "


def missing(what: str) -> NoReturn:
    """Skip for a person, fail under CI."""
    if os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(f"{LACKING}{what}")


def unavailable(what: str) -> NoReturn:
    """Skip, and be counted and named at the end of the run. Only for what was looked at: never for what merely failed."""
    pytest.skip(f"{UNAVAILABLE}{what}")


def need_root() -> None:
    """For what makes namespaces."""
    if os.geteuid() != 0:
        missing("namespaces need root")


def summary(skipped: Iterable[Any]) -> list[str]:
    """Lines that say which tests did not run for want of something, how many and why; reports are those of pytest."""
    names: dict[str, list[str]] = {}
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if reason.startswith((UNAVAILABLE, LACKING)):
            names.setdefault(reason, []).append(report.nodeid)
    lines = []
    for reason, tests in sorted(names.items()):
        lines.append(f"not run, {len(tests)} tests: {reason}")
        lines += [f"    {test}" for test in sorted({test.partition("[")[0] for test in tests})]
    return lines
