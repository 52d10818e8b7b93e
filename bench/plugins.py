"""Time our plugins beside the newest Go reference plugins: the chain of bridge with host-local, portmap, firewall and tuning.

    python3 bench/plugins.py --ours DIR --cni-py PROGRAM --go DIR [--rounds 30] [--json FILE]

Needs root; everything happens in namespaces of its own. There is a side for each way to run ours that this installation has
(direct, chain, warm: bench/sides.py), and one for the Go plugins with their fastest backends, each on a host of its own. All get
the same configuration: isGateway, ipMasq, hairpinMode, one TCP port, ingressPolicy same-bridge, a tuning that tunes nothing.
Results of one round of each are compared before anything is timed. Then they take turns, a round each: ADD of the whole chain,
DEL in reverse. Measured are

    IPv4 alone and dual stack, each idle and with every processor kept busy
    100 ADDs at once, then 100 DELs at once
    one more attachment on a host with 10 and on a host with 1,000 attachments, of 10 ports each
    VERSION, beside a bare interpreter

Times are of whole processes, from exec to exit: wall time (medians), and processor time of the process, of those that it waited
for, and of the service that it called (means). "chain" is the sum of a round's processes. Ratios are to Go.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import figures
import machine
import measures
import parts
from hosts import busy, enter_private_namespaces
from report import Chain, Growth, Report, printed
from sides import FAMILIES, Side, Times
from ways import Ways

BUSY_S = 1800
LOADS = ("idle", "busy")
FULL_FAMILY = "dual stack"  # of the measurement of growth


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="folder of our executables")
    parser.add_argument("--cni-py", required=True, help="our command, for its service")
    parser.add_argument("--go", required=True, help="folder of the newest Go plugins")
    parser.add_argument("--older-go", default="", help="folder of Debian's own Go plugins, for --more")
    parser.add_argument("--more", action="store_true", help="also ours with iptables, and Debian's own Go plugins")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--bursts", type=int, default=5, help="0: none")
    parser.add_argument("--burst-size", type=int, default=100)
    parser.add_argument(
        "--large", type=int, default=1000, help="attachments of the full host; 0: do not measure growth"
    )
    parser.add_argument("--small", type=int, default=10)
    parser.add_argument("--ports", type=int, default=10, help="of each attachment where growth is measured")
    parser.add_argument("--json", help="also write all figures to this file")
    found = parser.parse_args()
    for name in ("ours", "go", "cni_py", "older_go", "json"):  # the way to them is another one on a host
        setattr(found, name, os.path.abspath(getattr(found, name)) if getattr(found, name) else "")
    found.command = command(parser, found)
    return found


def command(parser: argparse.ArgumentParser, found: argparse.Namespace) -> str:
    """For people, without what `make bench` says itself."""
    words = []
    for name in ("families", "loads", "rounds", "bursts", "burst_size", "small", "large", "ports", "more"):
        value = getattr(found, name)
        if value != parser.get_default(name):
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *(f"'{one}'" if " " in str(one) else str(one) for one in values)]
    return f'make bench BENCH="{" ".join(words)}"' if words else "make bench"


def times_of(sides: list[Side]) -> dict[str, Times]:
    """By name, and forgotten by the sides."""
    found = {side.name: side.times for side in sides}
    for side in sides:
        side.times = {}
    return found


def measure_family(ways: Ways, family: str, asked: argparse.Namespace, report: Report) -> None:
    """One after the other and at once, idle and busy, and how VERSION does."""
    sides = ways.sides(family, asked.more)
    measures.compare(sides)
    for load in asked.loads:
        others = machine.Others()
        with busy(os.cpu_count() or 1 if load == "busy" else 0, BUSY_S):
            measures.rounds(sides, asked.rounds)
        found = figures.rows(times_of(sides), "go")
        report["chains"].append(
            Chain(
                family=family,
                load=load,
                rounds=asked.rounds,
                others=others.part(),
                rows=found,
            )
        )
        print(f"  {family}, {load}: done", file=sys.stderr)
    if asked.bursts:
        others = machine.Others()
        measures.bursts(sides, asked.burst_size, asked.bursts)
        found = figures.rows(times_of(sides), "go")
        report["bursts"].append(
            Chain(
                family=family, load=f"{asked.burst_size} at once", rounds=asked.bursts, others=others.part(), rows=found
            )
        )
    if not report["starts"]:
        bare = measures.starts(sides, machine.interpreter(ways.scripts), asked.rounds)
        times = {**times_of(sides), "python3 -I -S -c pass": {"bridge VERSION": bare}}
        report["starts"] = figures.rows(times, "python3 -I -S -c pass")
    for side in sides:
        if side.service is not None:
            side.service.end()


def measure_growth(ways: Ways, asked: argparse.Namespace) -> Growth:
    """Of ours alone."""

    def make() -> list[Side]:
        return [side for side in ways.sides(FULL_FAMILY) if side.name != "go"]

    hosts = measures.growth(make, (asked.small, asked.large), asked.ports, asked.rounds)
    found = []
    few, many = (times_of(sides) for sides in hosts.values())
    for name, times in many.items():
        found += figures.rows({name: times, "few": few[name]}, "few")
    return Growth(
        small=asked.small,
        large=asked.large,
        ports=asked.ports,
        rows=[row for row in found if row["side"] != "few"],
    )


def main() -> int:
    """Compare, then time, then print."""
    asked = options()
    enter_private_namespaces()
    ways = Ways(asked.ours, asked.cni_py, asked.go, asked.older_go)
    with tempfile.TemporaryDirectory() as scratch:
        ways.look(scratch)
        report = Report(
            machine={**machine.described(), **ways.versions()},
            date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            command=asked.command,
            load=[round(value, 1) for value in os.getloadavg()],
            absent=ways.absent,
            chains=[],
            bursts=[],
            starts=[],
            growth=None,
            parts={},
        )
        for way, reason in ways.absent.items():
            print(f"not measured: {way}: {reason}", file=sys.stderr)
        for family in asked.families:
            measure_family(ways, family, asked, report)
        interpreter = machine.interpreter(ways.scripts)
        report["parts"] = parts.measure(ways.scripts, interpreter, asked.families[0], asked.rounds, scratch)
        if asked.large:
            report["growth"] = measure_growth(ways, asked)
    print(printed(report))
    if asked.json:
        Path(asked.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
