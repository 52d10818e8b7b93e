"""The report in text: what was found, worst first, then what is fine and what could not be looked at. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from cni_py.doctor.checks import Check, Report
from cni_py.host.model import Finding
from cni_py.host.printable import plain

STYLES = {"error": "1;31", "warning": "33", "note": "36"}  # SGR parameters, console_codes(4)
SUBJECT_WIDTH = 12


def lines(report: Report, width: int = 100, *, colour: bool = False, brief: bool = False) -> Iterator[str]:
    """The report, in lines of at most `width` columns, but for words that are longer. `brief`: without what is fine."""
    for sentence in report.about:
        yield from _wrapped(plain(sentence), width, "", "  ")
    yield ""
    for finding in report.findings:
        yield from _finding(finding, width, colour=colour)
        yield ""
    if not brief:
        yield from _fine(report.fine, width)
    if report.gaps:
        yield "Not looked at:"
        for gap in report.gaps:
            yield from _wrapped(plain(gap), width, "  ", "    ")
        yield ""
    yield from _wrapped(summary(report), width, "", "")


def summary(report: Report) -> str:
    """ "1 error, 2 warnings, no notes; 40 checks found nothing"."""
    counts = []
    for level in ("error", "warning", "note"):
        number = report.count(level)
        counts.append(f"{number or 'no'} {level}{'s' if number != 1 else ''}")
    fine = len(report.fine)
    return f"{', '.join(counts)}; {fine} check{'s' if fine != 1 else ''} found nothing"


def _finding(finding: Finding, width: int, *, colour: bool) -> Iterator[str]:
    level = f"\x1b[{STYLES[finding.level]}m{finding.level}\x1b[0m" if colour else finding.level
    head = next(iter(_wrapped(f"{finding.level}: {plain(finding.subject)} ({finding.code})", 1 << 16, "", "")))
    yield level + head.removeprefix(finding.level)
    for label, text in (("", finding.what), ("why: ", finding.why), ("do: ", finding.do)):
        if text:
            yield from _wrapped(label + plain(text), width, "  ", "  " + " " * len(label))


def _fine(checks: tuple[Check, ...], width: int) -> Iterator[str]:
    if not checks:
        return
    yield "Looked at, and nothing found:"
    for subject in dict.fromkeys(check.subject for check in checks):
        titles = "; ".join(check.title for check in checks if check.subject == subject)
        yield from _wrapped(f"{subject:<{SUBJECT_WIDTH}} {titles}", width, "  ", " " * (SUBJECT_WIDTH + 3))
    yield ""


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    # Commands and paths are to be copied, so they are not broken
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    ) or [first]
