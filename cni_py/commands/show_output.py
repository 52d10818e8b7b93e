"""What the forms and the watch of `cni-py show` print, and of which part of a host."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import typing
from collections.abc import Iterable

from cni_py.commands.report import Failure

if typing.TYPE_CHECKING:
    from cni_py.host.model import Host
    from cni_py.show.diff import Change
    from cni_py.show.lines import Line, Look

FALLBACK = (80, 24)  # where no terminal is


def part(host: Host, subject: str | None) -> Host:
    """The part of the host that a name means. Failure."""
    if subject is None:
        return host
    from cni_py.show import choice

    try:
        return choice.only(host, subject)
    except choice.Unknown as error:
        raise Failure(str(error)) from error


def parts(before: Host, after: Host, subject: str) -> tuple[Host, Host]:
    """The parts of two models that a name means; it has to be in one of them. Failure."""
    from cni_py.show import choice

    found, failure = [], ""
    for host in (before, after):
        try:
            found.append(choice.only(host, subject))
        except choice.Unknown as error:
            found.append(choice.part(host, [], []))
            failure += f"{error}\n"
    if failure.count("\n") == 2:
        raise Failure(failure.splitlines()[-1])
    return found[0], found[1]


def tell(found: Iterable[Change], *, is_json: bool, at: str = "") -> None:
    """Print changes, a line each, with the time at which they were seen."""
    from cni_py.host.printable import plain

    for one in found:
        if is_json:
            print(json.dumps(({"time": at} if at else {}) | dataclasses.asdict(one)))
        else:
            print(plain(f"{at} {one}".strip()))


def look(width: int = 0) -> Look:
    """What stdout can show."""
    from cni_py.show.lines import Look

    return Look(width or shutil.get_terminal_size(FALLBACK).columns, sys.stdout.encoding or "ascii")


def picture(host: Host, options: argparse.Namespace, given: Look) -> Iterable[Line]:
    """The lines of the text form. What was asked for by its name is shown whole."""
    from cni_py.show import text

    return text.picture(
        host, given, text.ALL if options.all or options.subject else text.Most(), closely=bool(options.subject)
    )


def write(lines: Iterable[Line]) -> None:
    """Print lines; in colour on a terminal that has some, unless NO_COLOR is set."""
    from cni_py.show.lines import plain_text

    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        sys.stdout.write(plain_text(lines))
        return
    from rich.console import Console
    from rich.text import Text

    from cni_py.show.text import STYLES

    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
    for line in lines:
        console.print(Text.assemble(*((text, STYLES[style]) for text, style in line)))
