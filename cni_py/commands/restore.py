"""`cni-py restore`: put back what the packet filter lost of running attachments.

    lab/c1/eth0 portmap: restored: host: nft: publish tcp 8080 ...
    lab/c2/eth0 portmap: error: host port 8080/tcp is in use by lab/c3/eth0
    restored 1 of 5 attachments; 1 failed

portfwd's service runs it when the kernel reports that a table of ours was emptied; systemd or a firewall's hook may run it, too.
"""

import argparse

from cni_py.commands import outcome, restoration
from cni_py.commands.report import LACKING, Failure
from cni_py.errors import CniError
from cni_py.kernel.nf_tables import NftUnavailable

SUMMARY = "put back the nftables elements and iptables rules that somebody flushed"
DESCRIPTION = """\
Put back what nftables or iptables lost of running attachments, for example after `nft flush ruleset`: published ports,
masquerading, the spoof check and firewall's rules. Nothing else is changed: neither rules that are still there, nor links
and addresses.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's options."""
    parser = outcome.add_parser(commands, "restore", SUMMARY, DESCRIPTION)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the outcome for each plugin of each attachment as JSON")
    how.add_argument("--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Put back what is missing; returns the exit status."""
    outcome.need_root()
    try:
        found = outcome.tell(restoration.restore_all(), "restored", lines=not (options.json or options.quiet))
    except NftUnavailable as error:
        raise Failure(str(error), LACKING) from error
    except CniError as error:
        raise Failure(str(error)) from error
    if options.json:
        outcome.print_json(found)
    elif not options.quiet:
        restored = outcome.attachments(one for one in found if one.done)
        failed = outcome.attachments(one for one in found if one.errors)
        more = f"; {failed} failed" if failed else ""
        print(f"restored {restored} of {outcome.attachments(found)} attachments{more}")
    return outcome.status(found)
