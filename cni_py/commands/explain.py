"""`cni-py explain`: which clients reach a published port, and why the others do not."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys

from cni_py.commands import hosts
from cni_py.commands.report import FAILED, LACKING, USAGE, Failure
from cni_py.host.printable import plain

DESCRIPTION = """\
Say for each kind of client whether it reaches a port, and follow the packets of the first that does not, hop by hop: address,
rules of every table, route, bridge, interface, program, and the way back. Nothing is sent and nothing is changed: the answer is
computed from the addresses, routes, rules and sockets of this host and of its containers. With --trace a real packet is sent, or
waited for, and the rules that the kernel says it met are printed, with conntrack's events, and whether that is what was computed.
"""
EPILOG = """\
examples:
  cni-py explain 8080                         which clients reach port 8080 of this host
  cni-py explain 53/udp --from lan            the way of a datagram from another machine
  cni-py explain 192.0.2.2:80 --from web2     from one container to another one
  cni-py explain [::1]:8080 --detailed        every rule that is looked at
  cni-py explain 8080 --model host.json       on a host that `cni-py show --snapshot host.json` has saved
  cni-py explain 8080 --trace                 one real packet of this host, and the rules that it meets
  cni-py explain 8080 --trace --from web2     the same from inside a container
  cni-py explain 8080 --trace --live --from lan --timeout 60   the next packet that another machine sends

exit status: 0 every client that the port is published for (with --from: the client) is answered, 1 one is not, 2 wrong usage,
3 it cannot be said; with --trace the same of the packet that was sent, with --live 0 a packet came, 1 none did, 130 Ctrl-C
"""
COUNT_MAX, SECONDS_MAX = 50, 86400
STATUS = {"answers": 0, "fails": FAILED, "unknown": LACKING}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "explain",
        help="which clients reach a published port, and why the others do not",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "port",
        metavar="PORT|ADDRESS:PORT[/udp]",
        help="a port of this host, or of an address of this host or of a container; /udp and /sctp name the protocol",
    )
    parser.add_argument(
        "--from",
        dest="client",
        metavar="CLIENT",
        help="only this client: lan, host, loopback, neighbour, other-bridge, itself, the name or id of "
        "a container, or an address; ADDRESS:PORT for one whose own port is fixed, so that tracked flows of it count",
    )
    hosts.add_options(parser, "--model")
    parser.add_argument(
        "--trace",
        action="store_true",
        help="send one real packet (by this host, if --from does not say otherwise), and print what the kernel does with it",
    )
    parser.add_argument("--live", action="store_true", help="with --trace: send nothing, wait for a packet to the port")
    parser.add_argument("--count", type=_count, metavar="N", help="with --live: end after N connections (1)")
    parser.add_argument("--timeout", type=_seconds, metavar="S", help="with --live: seconds to wait (30)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--minimal", action="store_true", help="the table and the verdict, without the way")
    kind.add_argument("--detailed", action="store_true", help="every rule that is looked at")
    kind.add_argument("--json", action="store_true", help="print JSON (docs/explain.md lists the keys)")
    parser.set_defaults(run=run, asked=True)


def _count(text: str) -> int:
    """How many connections are waited for. ArgumentTypeError."""
    if text.isascii() and text.isdecimal() and 0 < int(text) <= COUNT_MAX:
        return int(text)
    raise argparse.ArgumentTypeError(f'"{text}" is not a number between 1 and {COUNT_MAX}')


def _seconds(text: str) -> float:
    """How long. ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if 0 < value <= SECONDS_MAX:
        return value
    raise argparse.ArgumentTypeError(f'"{text}" is not a time between 0 and {SECONDS_MAX} seconds')


def run(options: argparse.Namespace) -> int:
    """Answer; the exit status is the verdict."""
    from cni_py.explain import question, text, walk
    from cni_py.explain.whom import Unknown

    try:
        asked = question.parse(options.port)
    except ValueError as error:
        raise Failure(str(error), USAGE) from error
    if options.live and not options.trace:
        raise Failure("--live waits for packets to trace: it needs --trace", USAGE)
    if not options.live and (options.count or options.timeout):
        raise Failure("--count and --timeout say how long --live waits: they need it", USAGE)
    if options.trace:
        from cni_py.commands import explain_trace

        return explain_trace.run(options, asked)
    host = hosts.load(options, flows=True)
    try:
        answer = walk.explain(host, asked, options.client or "")
    except Unknown as error:
        raise Failure(f"--from {options.client}: {error}", USAGE) from error
    except ValueError as error:
        if options.saved is None:
            raise
        raise Failure(f"{options.saved} cannot be followed: {error}", USAGE) from error
    if options.json:
        print(json.dumps(text.as_json(answer), indent=1))
        return STATUS[answer.verdict]
    detail = text.MINIMAL if options.minimal else text.DETAILED if options.detailed else text.NORMAL
    print(text.render(host, answer, detail=detail, width=_width(), colour=_colour()), end="")
    for gap in host.gaps:
        print(f"note: {plain(gap.what)}", file=sys.stderr)
    return STATUS[answer.verdict]


def _width() -> int:
    """Of the terminal, COLUMNS, or 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def _colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
