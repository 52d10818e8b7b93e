"""`cni-py adopt`: records for containers that the Go plugins connected, before ours take their place.

podman/4f5e/eth0 bridge: adopted: host: add veth veth1a2b3c4d (...)
podman/4f5e/eth0 firewall: left out: it has a record
3 parts of 2 attachments adopted
"""

import argparse
import os
from pathlib import Path

from cni_py.commands.adoption import Adopted, adopt_all
from cni_py.commands.report import FAILED, LACKING, Failure, complain
from cni_py.protocol import cache
from cni_py.protocol.gojson import encode

DESCRIPTION = """\
Write attachment records for running containers that the Go plugins connected, from libcni's cache and what the kernel
shows. Nothing of their networks is changed. Afterwards a DEL removes all of it also without namespace and result.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's options."""
    parser = commands.add_parser(
        "adopt",
        help="take over containers that the Go plugins connected",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be adopted")
    parser.add_argument(
        "--json", action="store_true", help="print what was found for each plugin of each attachment as JSON"
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=cache.RESULTS_DIR,
        metavar="DIR",
        help="libcni's cache (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Adopt; returns the exit status."""
    if os.geteuid() != 0:
        raise Failure("this takes root (CAP_NET_ADMIN)", LACKING)
    if not options.cache_dir.is_dir():
        raise Failure(f"there is no cache of libcni in {options.cache_dir}", LACKING)
    done = []
    for one in adopt_all(cache.everything(options.cache_dir), dry_run=options.dry_run):
        done.append(one)
        if not options.json:
            _tell(one)
    if options.json:
        print(encode({"attachments": [one.to_json() for one in done]}))
    else:
        parts = [one for one in done if one.found]
        said = "would be adopted" if options.dry_run else "adopted"
        print(f"{len(parts)} parts of {len({one.key.hex for one in parts})} attachments {said}")
    return FAILED if any(one.error for one in done) else 0


def _tell(one: Adopted) -> None:
    who = f"{one.key.label} {one.plugin}".rstrip()
    for text in one.found:
        print(f"{who}: adopted: {text}")
    if one.skipped:
        print(f"{who}: left out: {one.skipped}")
    if one.error:
        complain(f"{who}: error: {one.error}")
