"""`cni-py`: the commands of an operator. They run no plugins: container runtimes and cni-py-exec do."""

import argparse
import sys
from collections.abc import Sequence

from cni_py import __version__
from cni_py.commands import adopt, convert, install, report, restore, serve
from cni_py.commands.report import Failure, Parser, complain

DESCRIPTION = """\
Install the CNI plugins for the container runtimes of this host, and uninstall them; put back rules that a firewall flushed;
take over containers that the Go plugins connected; run a network's plugins in one process.

exit status: 0 success, 1 the operation failed, 2 wrong usage, 3 something is missing here (root, a folder, nf_tables),
130 interrupted
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
    convert.add_parser(commands)
    serve.add_parser(commands)
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
