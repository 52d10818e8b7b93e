"""Time `cni-py restore` on a host with many containers: after a flush, after a deleted bridge, and with nothing to do.

    python3 bench/restoring.py --ours DIR --cni-py PROGRAM [--attachments 1000] [--ports 2] [--rounds 5] [--json FILE]

Needs root; everything happens in namespaces of its own. As many containers as asked for are connected by the plugin chain (dual
stack, masquerading, ingressPolicy same-bridge, published ports). Each round damages the host in each way, runs `cni-py restore`,
and compares the nftables ruleset and the links with what they were before. Printed are the wall and processor time of the whole
process, the least of the rounds and the mean.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import measures
from hosts import Call, enter_private_namespaces
from sides import Side

BRIDGE = "bench0"
SHOWN = 30
DETECTION_S = 3.0  # until the kernel has found that nobody has the last link-local addresses
DAMAGES: Mapping[str, Sequence[str]] = {
    "nothing": (),
    "nft flush ruleset": ("nft", "flush", "ruleset"),
    "ip link delete": ("ip", "link", "delete", BRIDGE),
}


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="folder of our executables")
    parser.add_argument("--cni-py", required=True, help="our command")
    parser.add_argument("--attachments", type=int, default=1000)
    parser.add_argument("--ports", type=int, default=2, help="of each attachment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--damages", nargs="+", choices=DAMAGES, default=list(DAMAGES))
    parser.add_argument("--json", help="also write all figures to this file")
    found = parser.parse_args()
    for name in ("ours", "cni_py", "json"):  # the way to them is another one on a host
        setattr(found, name, os.path.abspath(getattr(found, name)) if getattr(found, name) else "")
    return found


def state(side: Side) -> list[object]:
    """The ruleset, its elements one a line, and the links and addresses without what is numbered anew."""
    # The comment in local_links is the index of the bridge
    text = re.sub(r'comment "\d+ filtered', 'comment "filtered', side.host.run("nft", "-s", "list", "ruleset"))
    found: list[object] = [sorted(line.strip(" \t,}") for line in re.split(r"\n|, |\{ (?=.* : )", text))]
    for kind in ("link", "addr"):
        links = json.loads(side.host.run("ip", "-j", kind))
        for link in links:
            link.pop("ifindex", None)
        found.append(sorted(links, key=lambda link: str(link["ifname"])))
    return found


def settled(side: Side, wanted: list[object]) -> bool:
    """Whether the state is that, within the seconds that link-local addresses take."""
    for _ in range(30):
        if state(side) == wanted:
            return True
        time.sleep(0.1)
    return False


def difference(before: list[object], after: list[object]) -> str:
    """The first few lines of it."""
    then, now = (json.dumps(one, indent=1).splitlines() for one in (before, after))
    return "\n".join(list(difflib.unified_diff(then, now, lineterm="", n=2))[:SHOWN])


def main() -> int:
    """Fill the host, then damage and restore it."""
    asked = options()
    enter_private_namespaces()
    side = Side("chain", asked.ours, "dual stack", one_plugin=True)
    begun = time.monotonic()
    measures.fill(side, asked.ports, asked.attachments)
    print(f"{asked.attachments} containers connected in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    time.sleep(DETECTION_S)
    before = state(side)
    environ = {"PATH": os.environ["PATH"]}
    restore = Call(asked.cni_py, environ, b"", "restore", ("restore", "--quiet"))
    figures: dict[str, list[tuple[float, float]]] = {}
    for _ in range(asked.rounds):
        for name in asked.damages:
            words = DAMAGES[name]
            if words:
                side.host.run(*words)
            spent, _ = side.host.call(restore)
            figures.setdefault(name, []).append((spent.wall_ms, spent.cpu_ms))
            if not settled(side, before):
                raise SystemExit(f"after {name} not all came back:\n{difference(before, state(side))}")
    print(f"{'lost by':<20} {'wall ms':>10} {'mean':>8} {'cpu ms':>10} {'mean':>8}")
    for name, found in figures.items():
        columns = [(min(one), sum(one) / len(one)) for one in zip(*found, strict=True)]
        (wall, wall_mean), (cpu, cpu_mean) = columns
        print(f"{name:<20} {wall:>10.0f} {wall_mean:>8.0f} {cpu:>10.0f} {cpu_mean:>8.0f}")
    if asked.json:
        Path(asked.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
