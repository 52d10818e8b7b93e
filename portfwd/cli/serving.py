"""The command line of `portfwd serve`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from cni_py.commands import report
from portfwd.cli import options
from portfwd.service import control, store
from portfwd.service.serve import DRAIN_S, LOG_LEVELS, Options, serve

EPILOG = """\
The other portfwd commands, portmap and portfwd-docker-proxy ask it over a Unix socket.
Mappings are kept on disk, and published again when the service starts.
exit status: 0 success, 1 failed (also: a service runs already), 2 usage, 3 the environment lacks something
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = report.Parser(
        prog="portfwd serve",
        description="Publish ports until a signal.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = top.add_argument
    add("--socket", default=control.socket_path(), metavar="PATH", help="the control socket (default: %(default)s)")
    add(
        "--state",
        default=store.state_dir(),
        metavar="DIR",
        help="the folder of mappings and other state (default: %(default)s)",
    )
    add(
        "--drain",
        type=options.seconds,
        default=DRAIN_S,
        metavar="S",
        help="seconds for running connections to end after a signal (default: %(default)g)",
    )
    add(
        "--ready-fd",
        type=_descriptor,
        default=-1,
        metavar="N",
        help="write a newline to this descriptor when all mappings are published",
    )
    add("--log-level", choices=LOG_LEVELS, default="info", help="how much is logged (default: %(default)s)")
    add("--take-over", action="store_true", help="replace a running service without losing a connection")
    add("--no-steer", action="store_true", help="load no BPF program: a long range takes a socket for each port")
    add("--no-redirect", dest="no_steer", action="store_true", help=argparse.SUPPRESS)  # its name before
    return top


def read(arguments: Sequence[str]) -> Options:
    """Read the command line; ends the process for a wrong one."""
    found = parser().parse_args(arguments)
    return Options(
        socket=os.path.abspath(found.socket),
        state=os.path.abspath(found.state),
        drain_s=found.drain,
        ready_fd=found.ready_fd,
        log_level=found.log_level,
        take_over=found.take_over,
        steer=not found.no_steer,
    )


def _descriptor(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a descriptor")
    return int(text)


def main(arguments: Sequence[str]) -> int:
    """`portfwd serve` with these arguments; the exit status."""
    return serve(read(arguments))
