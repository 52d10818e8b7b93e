"""What `cni-py adopt` and `cni-py restore` share: an outcome for each plugin of each attachment, printed as lines or as JSON."""

import argparse
import os
from collections.abc import Iterable

from cni_py.commands.report import FAILED, LACKING, Failure, complain
from cni_py.protocol.gojson import encode
from cni_py.restore.outcome import Outcome


def add_parser(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    """The subcommand's parser, without options."""
    return commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def need_root() -> None:
    """Failure 3 without root."""
    if os.geteuid() != 0:
        raise Failure("this needs root (CAP_NET_ADMIN)", LACKING)


def tell(outcomes: Iterable[Outcome], deed: str, *, lines: bool) -> list[Outcome]:
    """Print each outcome as soon as it is there, and return all. `deed` is the verb, in the past; errors go to stderr.

    Without `lines` only errors are printed.
    """
    seen = []
    for one in outcomes:
        seen.append(one)
        who = f"{one.key.label} {one.plugin}".rstrip()
        for text in one.done if lines else ():
            print(f"{who}: {deed}: {text}")
        if one.skipped and lines:
            print(f"{who}: skipped: {one.skipped}")
        for error in one.errors:
            complain(f"{who}: error: {error}")
    return seen


def print_json(outcomes: Iterable[Outcome], **more: list[str]) -> None:
    """All outcomes as one JSON object, in which there may be more."""
    print(encode({"attachments": [one.to_json() for one in outcomes], **more}))


def attachments(outcomes: Iterable[Outcome]) -> int:
    """How many attachments the outcomes are of."""
    return len({one.key.hex for one in outcomes})


def status(outcomes: Iterable[Outcome]) -> int:
    """The exit status: 1 if anything failed."""
    return FAILED if any(one.errors for one in outcomes) else 0
