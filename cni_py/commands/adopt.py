"""`cni-py adopt`: write records for containers that the Go plugins connected, before our plugins take their place.

podman/4f5e/eth0 bridge: adopted: host: add veth veth1a2b3c4d (...)
podman/4f5e/eth0 firewall: skipped: it has a record already
adopted 1 attachment (1 record)
"""

import argparse
from pathlib import Path

from cni_py.commands import outcome
from cni_py.commands.adoption import adopt_all
from cni_py.commands.report import LACKING, Failure, counted
from cni_py.protocol import cache

SUMMARY = "take over running containers that the Go plugins connected"
DESCRIPTION = """\
Write attachment records for running containers that the Go plugins connected, from libcni's cache and from what the kernel
shows. Nothing of their networks is changed. After that a DEL removes everything of such a container, even when its network
namespace and the cached result are lost.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's options."""
    parser = outcome.add_parser(commands, "adopt", SUMMARY, DESCRIPTION)
    parser.add_argument("--dry-run", action="store_true", help="print what would be adopted; write nothing")
    parser.add_argument(
        "--json", action="store_true", help="print the outcome for each plugin of each attachment as JSON"
    )
    parser.add_argument(
        "--cache-dir", type=Path, default=cache.RESULTS_DIR, metavar="DIR", help="libcni's cache (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Adopt what can be; returns the exit status."""
    outcome.need_root()
    if not options.cache_dir.is_dir():
        raise Failure(f"{options.cache_dir} does not exist: libcni's cache is needed (--cache-dir)", LACKING)
    verb = "would adopt" if options.dry_run else "adopted"
    every = adopt_all(cache.everything(options.cache_dir), dry_run=options.dry_run)
    found = outcome.tell(every, verb, lines=not options.json)
    if options.json:
        outcome.print_json(found)
    else:
        adopted = [one for one in found if one.done]
        attachments = counted(outcome.attachments(adopted), "attachment")
        print(f"{verb} {attachments} ({counted(len(adopted), 'record')})")
    return outcome.status(found)
