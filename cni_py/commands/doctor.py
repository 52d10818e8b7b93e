"""`cni-py doctor`: what is wrong with this host for containers' networks, or will be, with the reason and the remedy.

    error: executables in /opt/cni/bin (executable-broken)
      bridge, portmap need /opt/old/bin/python3, which is gone
      why: each call of a runtime fails, also those that end containers
      do: run `cni-py install --bin-dir /opt/cni/bin` of an installation that is to stay

It looks, and changes nothing. The checks are in cni_py/doctor/, every code in docs/doctor.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cni_py.commands import outcome
from cni_py.commands.hosts import add_options, load
from cni_py.commands.report import FAILED, LACKING, USAGE, Failure
from cni_py.protocol.conflist import CONF_DIR

if TYPE_CHECKING:
    from cni_py.doctor.checks import Report
    from cni_py.doctor.values import Installation, Runtime

SUMMARY = "say what is wrong with this host, why it matters, and what to do"
DESCRIPTION = """\
Look at kernel, programs, sysctls, other firewalls, plugin directories, units of systemd, state on disk, and every network
configuration. Nothing is changed. What is found comes first, the worst at the top; then what is fine.

levels:
  error     containers or published ports do not work, or others may act as root
  warning   something will fail, or does not do what it seems to do
  note      worth knowing
"""
EPILOG = """\
examples:
  cni-py doctor
  cni-py doctor --brief
  cni-py doctor --json | jq -r '.findings[] | select(.level == "error") | .code'
  cni-py show --snapshot host.json; cni-py doctor --from host.json

A saved host has no files and programs, so checks that need them are listed as not looked at. So is what needs root.

exit status: 0 no errors (there may be warnings and notes), 1 errors, 2 wrong usage, 3 the saved host or the folder is not there
"""
WIDTHS = (40, 200)  # columns
SCHEMA = 1  # of --json


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's options."""
    parser = outcome.add_parser(commands, "doctor", SUMMARY, DESCRIPTION)
    parser.epilog = EPILOG
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print findings, checks and gaps as one JSON object")
    how.add_argument("--brief", action="store_true", help="leave out what is fine")
    how.add_argument("--schemas", action="store_true", help="print the paths of the JSON Schemas, for editors")
    add_options(parser)
    parser.add_argument(
        "--conf-dir",
        default=CONF_DIR,
        metavar="DIR",
        help="network configurations that are checked (default: %(default)s)",
    )
    parser.set_defaults(run=run, dry_run=True)  # its output is its purpose: see report.ended()


def run(options: argparse.Namespace) -> int:
    """Look, and print; returns the exit status."""
    if options.schemas:
        from cni_py.doctor import schemas

        print("\n".join(schemas.paths()))
        return 0
    if options.conf_dir != CONF_DIR and options.saved is not None:
        raise Failure("--conf-dir is a folder of this host: a saved host, --from, has none", USAGE)
    if options.conf_dir != CONF_DIR and not os.path.isdir(options.conf_dir):
        raise Failure(f"there is no folder {options.conf_dir}", LACKING)
    from cni_py.doctor import checks, everything, facts

    host = load(options)
    known = facts.collect(installation(options.conf_dir), conf_dir=options.conf_dir) if options.saved is None else None
    report = checks.diagnose(everything.CHECKS, host, known)
    if options.json:
        print(json.dumps(to_json(report), indent=1))
    else:
        tell(report, brief=options.brief)
    return FAILED if report.count("error") else 0


def to_json(report: Report) -> dict[str, object]:
    """The keys of --json: docs/doctor.md."""
    keys = ("level", "code", "subject", "what", "why", "do")
    return {
        "schema": SCHEMA,
        "findings": [{key: getattr(one, key) for key in keys} for one in report.findings],
        "fine": [{"subject": one.subject, "title": one.title, "codes": list(one.codes)} for one in report.fine],
        "gaps": list(report.gaps),
        "about": list(report.about),
    }


def tell(report: Report, *, brief: bool) -> None:
    """Print it for people."""
    from cni_py.doctor import text

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = min(max(shutil.get_terminal_size((100, 24)).columns, WIDTHS[0]), WIDTHS[1])
    for line in text.lines(report, width, colour=colour, brief=brief):
        print(line)


def installation(conf_dir: str) -> Installation:
    """What this installation would write, and where runtimes look."""
    from cni_py.commands import images, install, runtimes
    from cni_py.commands.launchers import launcher
    from cni_py.commands.report import Failure
    from cni_py.doctor.values import Installation
    from cni_py.run import MODULES

    launchers = {}
    for plugin in MODULES:
        try:
            launchers[plugin] = launcher(plugin)
        except Failure:
            continue  # the paths are too long for a launcher: then none is of this installation
    found, notes = runtimes.found(runtimes.ROOT, install.BIN_DIR)
    return Installation(
        launchers=launchers,
        image=images.place(),
        package=images.PACKAGE,
        runtimes=[described(one) for one in found],
        notes=notes,
        bin_dirs=[str(install.BIN_DIR)],
        key_notes=key_notes(conf_dir),
    )


def described(runtime: object) -> Runtime:
    """A runtime of commands/runtimes.py as a value of doctor's."""
    from cni_py.doctor.values import Runtime

    return Runtime(*(getattr(runtime, name) for name in ("name", "folders", "source", "without")))


def key_notes(conf_dir: str) -> dict[str, list[str]]:
    """By file: sentences on keys that are not known, or are there twice."""
    from cni_py.commands import keys
    from cni_py.errors import CniError
    from cni_py.protocol import conflist

    found = {}
    try:
        listed = conflist.files(conf_dir)
    except OSError:
        return {}
    for path in map(Path, listed):
        try:
            network = conflist.read(path)
        except CniError:
            continue  # doctor/configs.py tells
        found[str(path)] = [*keys.unknown(network), *keys.repeated(network)]
    return found
