"""`cni-py restore`: elements and rules of running attachments that somebody removed are put back.

    lab/c1/eth0 portmap: put back: host: nft elements: publish tcp 8080 ...
    lab/c2/eth0 portmap: error: host port 8080/tcp is in use by lab/c3/eth0
    2 of 5 attachments needed something

portfwd's service runs it when the kernel tells that a table of ours was emptied; systemd or a firewall's hook may, too.
"""

import argparse
import os
from collections.abc import Callable

from cni_py.commands import restoration
from cni_py.commands.report import FAILED, LACKING, Failure, complain
from cni_py.commands.restoration import Restored
from cni_py.errors import CniError
from cni_py.kernel.nf_tables import NftUnavailable
from cni_py.protocol.gojson import encode

DESCRIPTION = """\
Put back what is missing of running attachments in nftables or iptables (after `nft flush ruleset`, say): published ports,
masquerading, spoof check, firewall's rules. What is there is left alone, and so are links and addresses.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's options."""
    parser = commands.add_parser(
        "restore",
        help="put back elements and rules that somebody flushed",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print what was found and done for each attachment as JSON")
    how.add_argument("--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Put back what is missing; returns the exit status."""
    if os.geteuid() != 0:
        raise Failure("this takes root (CAP_NET_ADMIN)", LACKING)
    done: list[Restored] = []
    try:
        for one in restoration.restore_all():
            done.append(one)
            _tell(one, (lambda _: None) if options.json or options.quiet else print)
    except NftUnavailable as error:
        raise Failure(str(error), LACKING) from error
    except CniError as error:
        raise Failure(str(error)) from error
    if options.json:
        print(encode({"attachments": [one.to_json() for one in done]}))
    elif not options.quiet:
        needy = {one.key.hex for one in done if one.put_back or one.errors}
        print(f"{len(needy)} of {len({one.key.hex for one in done})} attachments needed something")
    return FAILED if any(one.errors for one in done) else 0


def _tell(one: Restored, say: Callable[[str], None]) -> None:
    for error in one.errors:
        complain(f"{_who(one)}: error: {error}")
    for text in one.put_back:
        say(f"{_who(one)}: put back: {text}")
    if one.skipped:
        say(f"{_who(one)}: left out: {one.skipped}")


def _who(one: Restored) -> str:
    return f"{one.key.label} {one.plugin}"
