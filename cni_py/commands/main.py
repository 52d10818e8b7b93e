"""`cni-py`: what an operator does with the suite. Plugins are not run from here: runtimes run them, and cni-py-exec does."""

import argparse
import sys
from collections.abc import Sequence

from cni_py import __version__
from cni_py.commands import adopt, install, report, restore
from cni_py.commands.report import Failure, Parser, complain

DESCRIPTION = """\
Put the CNI plugins where container runtimes find them, and take them away again; put back what a firewall flushed;
take over containers that the Go plugins connected.

exit status: 0 well, 1 the operation failed, 2 usage, 3 the environment lacks something
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top: argparse.ArgumentParser = Parser(
        prog="cni-py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"cni-py {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    install.add_parsers(commands)
    restore.add_parser(commands)
    adopt.add_parser(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    report.open_streams()
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except Failure as failure:
        complain(f"cni-py {options.command}: {failure}")
        status = failure.status
    except KeyboardInterrupt:
        status = 130
    return report.ended(f"cni-py {options.command}", status, asked=getattr(options, "dry_run", False))


if __name__ == "__main__":
    sys.exit(main())
