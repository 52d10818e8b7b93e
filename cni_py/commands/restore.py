"""`cni-py restore`: put back what running attachments lost, once or whenever something goes.

    lab/c1/eth0 portmap: restored: host: nft: publish tcp 8080 ...
    lab/c2/eth0 portmap: error: host port 8080/tcp is in use by lab/c3/eth0
    restored 1 of 5 attachments; 1 failed

`--watch` is a service (conf/cni-py-restore.service). Where it does not run, portfwd's service runs the command when the kernel
reports that a table of ours was emptied; a firewall's hook may run it, too.
"""

import argparse

from cni_py.commands import outcome
from cni_py.commands.report import FAILED, LACKING, Failure, complain
from cni_py.errors import CniError, TryAgainLater
from cni_py.kernel.nf_tables import NftUnavailable
from cni_py.restore import restoration

SUMMARY = "put back the rules, bridges and addresses of running containers that somebody removed"
DESCRIPTION = """\
Put back what running containers lost, for example after `nft flush ruleset`: published ports, masquerading, the spoof check and
firewall's rules in nftables or iptables, its sources in firewalld's zones, ports that portfwd relays, a deleted bridge with its
ports, the gateway's address.
What is still there is not changed. A port that was put into another bridge, and an address that was replaced by another one of
its subnet, stay as they are.

With --watch it waits for the kernel's notifications, and firewalld's, and puts back what goes at that moment.

exit status: 0 all that was missing is back, 1 something could not be put back, 3 root or nftables is missing

examples:
  cni-py restore                              put back what is missing now
  cni-py restore --json                       the same, for programs
  cni-py restore --watch                      until SIGTERM or Ctrl-C; conf/cni-py-restore.service runs it
  ExecStartPost=/opt/cni-py/bin/cni-py restore --quiet     in the unit of a firewall that flushes all rules
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's options."""
    parser = outcome.add_parser(commands, "restore", SUMMARY, DESCRIPTION)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the outcome for each plugin of each attachment as JSON")
    how.add_argument("--quiet", action="store_true", help="print errors only")
    how.add_argument(
        "--watch", action="store_true", help="stay, and put back at once what the kernel reports as removed"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Put back what is missing; returns the exit status."""
    outcome.need_root()
    if options.watch:
        return watch()
    lines, mended, unread = not (options.json or options.quiet), list[str](), list[str]()
    try:
        outcomes = restoration.restore_all(mended=mended, unread=unread)
        for words in mended if lines else ():
            print(f"restored: {words}")
        found = outcome.tell(outcomes, "restored", lines=lines)
        for words in unread:
            complain(f"error: {words}")
    except NftUnavailable as error:
        raise Failure(str(error), LACKING) from error
    except CniError as error:
        raise Failure(str(error)) from error
    if options.json:
        outcome.print_json(found, tables=mended, unreadable=unread)
    elif not options.quiet:
        restored = outcome.attachments(one for one in found if one.done)
        failed = outcome.attachments(one for one in found if one.errors)
        more = f"; {failed} failed" if failed else ""
        print(f"restored {restored} of {outcome.attachments(found)} attachments{more}")
    return FAILED if unread else outcome.status(found)


def watch() -> int:
    """Watch until a signal; returns the exit status. Failure."""
    from cni_py.restore import watch as watching

    try:
        watching.watch(print, complain)
    except TryAgainLater as error:
        raise Failure("`cni-py restore --watch` runs already") from error
    except NftUnavailable as error:
        raise Failure(str(error), LACKING) from error
    except CniError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"the kernel gives no notifications: {error.strerror}", LACKING) from error
    return 0
