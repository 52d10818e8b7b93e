"""`cni-py`: the commands of an operator. They run no plugins: container runtimes and cni-py-exec do."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from cni_py import __version__
from cni_py.commands import completion, manual, report
from cni_py.commands.report import USAGE, Failure, Parser, complain

DESCRIPTION = "Container networks of this host: see them, mend them, install the plugins that make them."
STATUS = """\
exit status: 0 success, 1 the operation failed, 2 wrong usage, 3 something is missing here (root, a folder, nf_tables),
130 interrupted
"""
GROUPS = {  # every command, in the order in which it is listed
    "look": ("show", "explain", "doctor"),
    "mend": ("restore", "gc", "ipam"),
    "work inside": ("enter",),
    "install": ("install", "uninstall", "adopt", "convert"),
    "run": ("serve",),
    "this program": ("completion", "man"),
}
HERE = ("completion", "man")  # their parsers are made of those of the others
SHARED = {"uninstall": "install"}  # two commands of one module


class Top(Parser):
    """Lists its commands in groups."""

    def format_help(self) -> str:
        """The usage, the commands by group, the options, the exit status."""
        known = manual.subcommands(self)
        if not known:  # one of the commands
            return super().format_help()
        lines = [self.format_usage(), DESCRIPTION, ""]
        for title, names in GROUPS.items():
            lines += [title, *(f"  {name:<12}{known[name][1]}" for name in names if name in known), ""]
        lines += [
            "`cni-py COMMAND --help` and `cni-py man COMMAND` tell more. cni-py-exec runs a network's plugins by hand,"
        ]
        lines += ["portfwd publishes ports without NAT.", "", STATUS.rstrip()]
        return "\n".join(lines) + "\n"


def parser(only: str = "") -> argparse.ArgumentParser:
    """The command line, with all commands or with one.

    A command loads what it works with, which takes as long as the work of most: a run has the modules of its own command alone.
    """
    top: argparse.ArgumentParser = Top(prog="cni-py", description=DESCRIPTION, epilog=STATUS)
    top.add_argument("--version", action="version", version=f"cni-py {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    names = [only] if only else [name for group in GROUPS.values() for name in group]
    for module in dict.fromkeys(SHARED.get(name, name) for name in names if name not in HERE):
        importlib.import_module(f"cni_py.commands.{module}").add_parser(commands)
    completion.add_parser(commands, {"cni-py": parser, "cni-py-exec": by_hand})
    manual.add_parser(commands, lambda: (parser(), by_hand()))
    return top


def by_hand() -> argparse.ArgumentParser:
    """The command line of cni-py-exec."""
    from cni_py.commands import exec as command

    return command.parser()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    report.open_streams()
    words = sys.argv[1:] if arguments is None else arguments
    known = {name for group in GROUPS.values() for name in group}
    top = parser(words[0] if words and words[0] in known else "")
    options = top.parse_args(words)
    if options.command is None:
        top.print_help()
        return report.ended("cni-py", USAGE, asked=True)
    try:
        status: int = options.run(options)
    except Failure as failure:
        complain(f"cni-py {options.command}: {failure}")
        status = failure.status
    except KeyboardInterrupt:
        status = 130
    asked = getattr(options, "asked", False) or getattr(options, "dry_run", False)
    return report.ended(f"cni-py {options.command}", status, asked=asked)


if __name__ == "__main__":
    sys.exit(main())
