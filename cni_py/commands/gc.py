"""`cni-py gc`: remove what no living attachment owns.

lab/web/eth0: removed record of bridge (3 operations): its network namespace is gone
lab/web/eth0: removed address 192.0.2.7: its network namespace is gone
lab/db/eth0: left address 192.0.2.9: podman does not answer, and may have the container
"""

import argparse
from pathlib import Path

from cni_py.commands import outcome
from cni_py.commands.report import FAILED, complain, counted, shortened
from cni_py.errors import CniError
from cni_py.host.printable import plain
from cni_py.protocol import conflist
from cni_py.protocol.gojson import encode

SUMMARY = "remove what no living container owns: interfaces, rules, addresses, records"
DESCRIPTION = """\
Remove what containers that no longer exist have left on this host: interfaces, nftables elements, iptables chains, published
ports, reserved addresses, attachment records, entries of libcni's cache. What the Go plugins left is removed, too.

A container is dead only if that is proved: its network namespace exists no more, or the runtime that made it answers that there
is no such container and no process is left in its namespace. Neither a clock nor a pid decides. What cannot be proved is listed
with the reason, and left. Containers that are being connected meanwhile are not disturbed.
"""
EPILOG = """\
examples:
  cni-py gc --dry-run             what would be removed, and why
  cni-py gc                       remove it
  cni-py gc --network web --json  one network's, as JSON
  systemctl enable --now cni-py-gc.timer

exit status: 0 nothing failed (also when something was left), 1 something could not be removed, 2 wrong usage, 3 not root
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's options."""
    parser = outcome.add_parser(commands, "gc", SUMMARY, DESCRIPTION)
    parser.epilog = EPILOG
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed; change nothing")
    parser.add_argument("--json", action="store_true", help="print what was removed, left, and failed as JSON")
    parser.add_argument("--network", default="", metavar="NAME", help="only what belongs to this network")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Collect; returns the exit status."""
    outcome.need_root()
    from cni_py.commands.collection import collect

    found = []
    verb = "would remove" if options.dry_run else "removed"
    for item in collect(options.network, dry_run=options.dry_run):
        found.append(item)
        deed = verb if item.deed == "removed" else "cannot remove" if item.deed == "failed" else "left"
        line = plain(f"{shortened(item.owner)}: {deed} {item.what}: {item.why}".removeprefix(": "))
        if item.deed == "failed":
            complain(f"cni-py gc: {line}")
        elif not options.json:
            print(line)
    if options.network and not found:
        note_unknown(options.network)
    counts = {deed: sum(item.deed == deed for item in found) for deed in ("removed", "left", "failed")}
    if options.json:
        print(encode({deed: [item.to_json() for item in found if item.deed == deed] for deed in counts}))
    else:
        more = f"; left {counts['left']}, whose owners may live" if counts["left"] else ""
        print(f"{verb} {counted(counts['removed'], 'thing')}{more}")
    return FAILED if counts["failed"] else 0


def note_unknown(network: str) -> None:
    """Say that there is no such network: its name may be mistyped. One that was removed has nothing left, which is well."""
    try:
        conflist.find(Path(conflist.CONF_DIR), network)
    except conflist.NoSuchNetwork as error:
        complain(f"cni-py gc: note: {error}")
    except CniError:
        return
