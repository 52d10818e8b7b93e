"""`cni-py show`: the container networks of this host, or of a saved model, as a picture.

Each form is a function of the model in show/: this module chooses one and prints it.
"""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Callable

from cni_py.commands import hosts
from cni_py.commands.report import FAILED, USAGE, Failure
from cni_py.commands.show_output import look, part, parts, picture, tell, write

if typing.TYPE_CHECKING:
    from cni_py.host.model import Host

SUMMARY = "show the container networks of this host"
DESCRIPTION = """\
Show the container networks of this host as a picture: bridges and their ports, containers with what runs in them, addresses,
published ports, masquerading, portfwd's mappings, pools of addresses, and what is wrong with them.

The picture is as wide as the terminal (COLUMNS), 40 to 200 columns. Colours: on a terminal only, and not with NO_COLOR.
"""
EPILOG = """\
examples:
  cni-py show                          the whole host
  cni-py show web                      one container, with more about it
  cni-py show cni-py --json            a network, every value, for programs
  cni-py show --svg > host.svg         a drawing
  cni-py show --html > host.html       a page for a browser: search, click for details
  cni-py show --serve                  that page live, at a URL that is printed
  cni-py show --dot | dot -Tsvg        a graph
  cni-py show --snapshot before.json   keep the host as it is now
  cni-py show --diff before.json       what has appeared, vanished and changed since
  cni-py show --watch                  draw anew whenever something changes
  cni-py show --from host.json         what --snapshot saved, here or elsewhere

exit status: 0 success; 1 the output could not be written, or the name is not known; 2 wrong usage, or a file that is not a
saved host; 3 something is missing here. --diff: 0 nothing differs, 1 something does. --watch and
--serve end on Ctrl-C with 130.
"""
ANYWHERE = "127.0.0.1:0"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "show",
        help=SUMMARY,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "subject",
        nargs="?",
        metavar="NETWORK|CONTAINER",
        help="show one alone: a network, a container (name or id, also its beginning), a namespace, a bridge or another link",
    )
    add("--all", action="store_true", help="list every container, port and finding; without it, long lists are cut")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", dest="form", action="store_const", const="json", help="print every value as JSON")
    forms.add_argument("--svg", dest="form", action="store_const", const="svg", help="print a drawing")
    forms.add_argument(
        "--html",
        dest="form",
        action="store_const",
        const="html",
        help="print the drawing and all that is known as one page, which fetches nothing: search, click for details",
    )
    forms.add_argument("--dot", dest="form", action="store_const", const="dot", help="print a graph for Graphviz")
    acts = parser.add_mutually_exclusive_group()
    acts.add_argument("--snapshot", metavar="FILE", help='save the host in FILE, for its owner alone ("-": stdout)')
    acts.add_argument("--diff", metavar="FILE", help="print what differs from the host that --snapshot saved in FILE")
    acts.add_argument(
        "--watch",
        action="store_true",
        help="follow the kernel's notifications: redraw, or print a line for each change where no terminal is",
    )
    acts.add_argument(
        "--serve",
        nargs="?",
        const=ANYWHERE,
        metavar="ADDRESS:PORT|unix:PATH",
        help="serve the page of --html for a browser on this host, live, and print its URL; on a loopback address or at a Unix "
        "socket alone (default: %(const)s, any free port)",
    )
    hosts.add_options(parser)
    parser.set_defaults(run=run, form="text", asked=True)


def run(options: argparse.Namespace) -> int:
    """Do what was asked for; returns the exit status."""
    refuse(options)
    if options.snapshot:
        return save(options)
    if options.diff:
        return compare(options)
    if options.watch:
        from cni_py.commands import show_watch

        return show_watch.run(options)
    if options.serve:
        from cni_py.commands import show_serve

        return show_serve.run(options)
    host = part(hosts.load(options), options.subject)
    if options.form == "text":
        write(picture(host, options, look()))
    elif options.form in ("svg", "html"):
        sys.stdout.buffer.write(
            form(options.form)(host).encode()
        )  # UTF-8, as they say of themselves, whatever the locale
    else:
        sys.stdout.buffer.write(form(options.form)(host).encode())  # UTF-8, whatever the locale: programs read it
    return 0


def refuse(options: argparse.Namespace) -> None:
    """Failure for options that say nothing together."""
    form = f"--{options.form}"
    for act, wrong in (
        ("--snapshot", options.snapshot and (options.subject or (options.form != "text" and form))),
        ("--diff", options.diff and options.form not in ("text", "json") and form),
        ("--watch", options.watch and (options.saved and "--from")),
        ("--watch", options.watch and options.form not in ("text", "json") and form),
        ("--serve", options.serve and options.form not in ("text", "html") and form),
    ):
        if wrong:
            raise Failure(f"{act} and {wrong} do not go together", USAGE)


def form(name: str) -> Callable[[Host], str]:
    """The function that makes a form as one text. The modules of the others are not loaded."""
    if name == "dot":
        from cni_py.show import dot

        return dot.dumps
    if name == "svg":
        from cni_py.show import svg

        return svg.svg
    if name == "html":
        from cni_py.show import page

        return page.page
    from cni_py.host import saved

    return saved.dumps


# Saved models


def save(options: argparse.Namespace) -> int:
    """--snapshot."""
    from cni_py.host import saved

    host = hosts.load(options, flows=True)
    if options.snapshot == "-":
        print(saved.dumps(host), end="")
        return 0
    try:
        saved.write(options.snapshot, host)
    except OSError as error:
        raise Failure(f"cannot write {options.snapshot}: {error.strerror or error}", FAILED) from error
    return 0


def compare(options: argparse.Namespace) -> int:
    """--diff: 0 where nothing differs."""
    from cni_py.show import diff

    if options.diff == "-" == options.saved:
        raise Failure("stdin can be read once: --diff and --from both name it", USAGE)
    before = hosts.load(argparse.Namespace(saved=options.diff))
    after = hosts.load(options)
    if options.subject:
        before, after = parts(before, after, options.subject)
    found = diff.changes(before, after)
    tell(found, is_json=options.form == "json")
    return FAILED if found else 0
