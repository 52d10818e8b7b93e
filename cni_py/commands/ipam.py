"""`cni-py ipam`: the addresses that host-local has given out on this host, whoever runs it, ours or the Go plugin.

    list      who holds which address since when
    stats     how full the pools are
    release   give an address back
    reserve   keep an address from containers: a reservation of its own form, which both host-locals honour

Changes are made under host-local's own lock.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import typing

from cni_py.commands import hosts, outcome
from cni_py.commands.report import LACKING, USAGE, Failure, complain, shortened
from cni_py.host.printable import plain

if typing.TYPE_CHECKING:
    from cni_py.host.model import Pool, Reservation

SUMMARY = "list, count, release and reserve the addresses of host-local"
DESCRIPTION = """\
The addresses that the IPAM plugin host-local has given out on this host, ours or the Go plugin's: the two share their files.
"""
EPILOG = """\
examples:
  cni-py ipam list                         every address, who holds it, since when
  cni-py ipam stats                        how full each network is
  cni-py ipam release 192.0.2.7            give back an address whose container is gone
  cni-py ipam reserve 192.0.2.9 --network web --for "the printer"

exit status: 0 success, 1 refused (the holder lives, the address is taken), 2 wrong usage, 3 not root, or no such network
"""
TEXT_MAX = 200  # bytes of --for
HEADS = ("NETWORK", "RANGE", "ADDRESSES", "FULL", "RESERVED", "NO LIVING HOLDER", "NOT KNOWN", "LAST GIVEN")
PERCENT_MAX = 1 << 17  # addresses of a pool of which a part means something: an IPv6 /64 is never full


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's options."""
    parser = outcome.add_parser(commands, "ipam", SUMMARY, DESCRIPTION)
    parser.epilog = EPILOG
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    listing = outcome.add_parser(
        acts, "list", "who holds which address since when", "List reserved addresses, each with its holder.\n"
    )
    stats = outcome.add_parser(acts, "stats", "how full the pools are", "Count the addresses of each network.\n")
    for one, run in ((listing, run_list), (stats, run_stats)):
        one.add_argument(
            "--json", action="store_true", help="print the pools as JSON, with the keys of `cni-py show --json`"
        )
        one.add_argument("--network", default="", metavar="NAME", help="only this network")
        hosts.add_options(one)
        one.set_defaults(run=run, asked=True)
    release = outcome.add_parser(acts, "release", "give an address back", RELEASE)
    release.add_argument("address", metavar="ADDRESS", help="the address, without prefix length")
    release.add_argument("--network", default="", metavar="NAME", help="needed if several networks have given it out")
    release.add_argument(
        "--force", action="store_true", help="also if its holder lives: another container may get it then"
    )
    release.set_defaults(run=run_release)
    reserve = outcome.add_parser(acts, "reserve", "keep an address from containers", RESERVE)
    reserve.add_argument("address", metavar="ADDRESS", help="the address, without prefix length")
    reserve.add_argument("--network", required=True, metavar="NAME", help="the network whose containers do not get it")
    reserve.add_argument(
        "--for", dest="purpose", required=True, metavar="TEXT", help="for whom; `cni-py ipam list` shows it"
    )
    reserve.set_defaults(run=run_reserve)


RELEASE = """\
Give an address back to its network. If its container lives, that is refused, since another container may get the address then.
"""
RESERVE = """\
Keep an address from containers. It stays reserved until `cni-py ipam release`, also over a restart of the machine and a GC.
"""


def pools(options: argparse.Namespace) -> list[Pool]:
    """The pools of this host, or of a saved one (--from); with --network that network's, which there must be. Failure 3."""
    found = live() if options.saved is None else list(hosts.load(options).pools)
    if options.network:
        found = [pool for pool in found if pool.network == options.network]
        if not found:
            raise Failure(f"no network {plain(options.network)} has addresses of host-local", LACKING)
    return found


def live() -> list[Pool]:
    """The pools of this host, with a verdict for each holder."""
    outcome.need_root()
    from cni_py.attachment.context import Kernel
    from cni_py.attachment.naming import Attachment
    from cni_py.commands.collection import look
    from cni_py.host import networks

    traces, verdicts, _ = look(Kernel(Attachment("", "", ""), ""))
    every = [trace for trace in traces.found.values() if trace.key.container_id]
    judged = {(trace.key.network, trace.key.container_id, trace.key.ifname): verdicts[trace.hex] for trace in every}
    _, known, gaps = networks.networks()
    found, more = networks.pools(known, judged)
    for gap in (*gaps, *more):
        complain(f"cni-py ipam: {gap}")
    return found


def run_list(options: argparse.Namespace) -> int:
    """Returns the exit status."""
    found = pools(options)
    if options.json:
        return print_json(found)
    rows: list[tuple[str, ...]] = [("NETWORK", "ADDRESS", "SINCE", "HOLDER", "STATE")]
    for pool in found:
        for one in pool.reservations:
            why = f": {one.reason}" if one.live != "alive" else ""
            rows.append((plain(pool.network), one.address, moment(one.since), holder(one), plain(f"{one.live}{why}")))
    table(rows)
    return 0


def run_stats(options: argparse.Namespace) -> int:
    """Returns the exit status."""
    found = pools(options)
    if options.json:
        return print_json(found)
    rows: list[tuple[str, ...]] = [HEADS]
    for pool in found:
        left = list(pool.reservations)
        for text, size in zip(pool.ranges, pool.sizes, strict=True):
            inside = [one for one in left if within(one.address, text)]
            left = [one for one in left if one not in inside]
            last = next((one for one in pool.last if within(one, text)), "-")
            rows.append((plain(pool.network), text, *counts(inside, size), last))
        if left or not pool.ranges:
            what = "outside of its ranges" if pool.ranges else "no configuration"
            rows.append((plain(pool.network), what, *counts(left, 0), "-"))
    table(rows)
    if any(one.live == "dead" for pool in found for one in pool.reservations):
        print("`cni-py gc` gives back the addresses without a living holder")
    return 0


def counts(listed: list[Reservation], size: int) -> tuple[str, ...]:
    """The numbers of a range, which has `size` addresses to give (0: not known)."""
    lives = [one.live for one in listed]
    part = f"{100 * len(lives) / size:.0f} %" if 0 < size <= PERCENT_MAX else "-"
    numbers = (len(lives), lives.count("dead"), lives.count("unknown"))
    return (f"{size:,}" if size else "-", part, *(f"{number:,}" for number in numbers))


def print_json(found: list[Pool]) -> int:
    print(json.dumps({"pools": [dataclasses.asdict(pool) for pool in found]}, indent=2))
    return 0


def table(rows: list[tuple[str, ...]]) -> None:
    """Rows in columns, the first of them the heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())


def moment(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def holder(one: Reservation) -> str:
    """Who holds an address, for people."""
    return plain(shortened(f"{one.container_id} {one.ifname}".strip())) or "-"


def run_release(options: argparse.Namespace) -> int:
    """Give an address back; returns the exit status."""
    address = canonical(options.address)
    listed = [(pool, one) for pool in live() for one in pool.reservations if one.address == address]
    found = [(pool, one) for pool, one in listed if options.network in ("", pool.network)]
    if not found:
        elsewhere = ", ".join(plain(pool.network) for pool, _ in listed)
        raise Failure(f"{address} is not reserved" + (f" there, but in {elsewhere}" if elsewhere else ""))
    if len(found) > 1:
        names = ", ".join(plain(pool.network) for pool, _ in found)
        raise Failure(f"{address} is reserved in {names}: --network says which is meant", USAGE)
    pool, one = found[0]
    if one.live == "alive" and is_attachment(one) and not options.force:
        raise Failure(
            f"{holder(one)} has {address}, and lives ({plain(one.reason)}); --force gives it back all the same"
        )
    from cni_py.errors import CniError
    from cni_py.ipam import reservations

    who = content(one)
    try:
        with reservations.Pool(pool.folder) as held:
            if held.holder_of(packed(address)) != who:
                raise Failure(f"{address} has got another holder meanwhile; nothing was changed")
            held.release(who, [address])
    except CniError as error:
        raise Failure(str(error)) from error
    print(f"released {address} of network {plain(pool.network)}, which {holder(one)} had")
    return 0


def run_reserve(options: argparse.Namespace) -> int:
    """Reserve an address; returns the exit status."""
    address = canonical(options.address)
    text = " ".join(options.purpose.split())
    if not text or not text.isprintable() or len(os.fsencode(text)) > TEXT_MAX:
        raise Failure(f"--for takes a line of text, of at most {TEXT_MAX} bytes", USAGE)
    outcome.need_root()
    from cni_py.errors import CniError
    from cni_py.host import networks
    from cni_py.ipam import reservations

    _, known, _ = networks.networks()
    found, gaps = networks.pools(known, {})
    folders = [pool for pool in found if pool.network == options.network]
    if not folders:
        reason = f": {'; '.join(gaps)}" if gaps else "; `cni-py ipam stats` lists those there are"
        raise Failure(f"no network {plain(options.network)} has addresses of host-local{reason}", LACKING)
    refuse_outside(address, folders)
    who = reservations.OPERATOR + os.fsencode(text)
    for pool in folders:
        try:
            with reservations.Pool(pool.folder, make=True) as held:
                if not held.is_free(packed(address)):
                    has = plain(
                        shortened(held.holder_of(packed(address)).decode("utf-8", "replace").replace("\r\n", " "))
                    )
                    raise Failure(f"{address} is reserved already, for {has or 'nobody: its file is empty'}")
                held.reserve(address, who)
        except CniError as error:
            raise Failure(str(error)) from error
    print(f"reserved {address} of network {plain(options.network)} for {text}")
    return 0


def refuse_outside(address: str, found: list[Pool]) -> None:
    """Failure for an address that the network never gives out. Nothing is known of a network without a configuration."""
    texts = [text for pool in found for text in pool.ranges]
    inside = any(within(address, text) for text in texts)
    if texts and not inside:
        raise Failure(f"{address} is in none of the network's ranges: {', '.join(texts)}")


def within(address: str, text: str) -> bool:
    """Whether an address is in a range, "192.0.2.2-192.0.2.254"."""
    first, last = (packed(end) for end in text.split("-"))
    ip = packed(address)
    return len(ip) == len(first) and first <= ip <= last


def is_attachment(one: Reservation) -> bool:
    """Whether a container holds the address, and not an operator."""
    from cni_py.ipam import reservations

    return not os.fsencode(one.container_id).startswith(reservations.OPERATOR)


def content(one: Reservation) -> bytes:
    """The file's content, as reservations.holder() makes it."""
    from cni_py.ipam import reservations

    return reservations.holder(one.container_id, one.ifname)


def canonical(text: str) -> str:
    """An address as files are named. Failure 2 for what is none."""
    from cni_py.addr import ip_text

    return ip_text(packed(text))


def packed(text: str) -> bytes:
    """The bytes of an address. Failure 2."""
    from cni_py.addr import parse_ip

    try:
        return parse_ip(text)
    except ValueError as error:
        raise Failure(f"{plain(text)} is not an IP address: {error}", USAGE) from error
