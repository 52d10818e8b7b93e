"""Where a command has its model of the host from: the kernel, or a file (`--from`)."""

from __future__ import annotations

import argparse
import typing

from cni_py.commands.report import LACKING, USAGE, Failure

if typing.TYPE_CHECKING:
    from cni_py.host.model import Host


def add_options(parser: argparse.ArgumentParser, option: str = "--from") -> None:
    """--from FILE; `explain`, where --from names a client, calls the option otherwise."""
    parser.add_argument(
        option,
        dest="saved",
        metavar="FILE",
        help='read the host from FILE, which `cni-py show --snapshot FILE` wrote ("-": stdin), instead of looking at this one',
    )


def load(options: argparse.Namespace, *, flows: bool = False) -> Host:
    """The host that a command is about. `flows`: with its tracked connections. Failure when it cannot be looked at or read."""
    saved: str | None = options.saved
    if saved is None:
        return _collected(flows)
    from cni_py.host.saved import Unreadable, read

    try:
        return read(saved)
    except OSError as error:
        raise Failure(f"cannot read {saved}: {error.strerror}", LACKING) from error
    except (Unreadable, ValueError) as error:  # ValueError: a path with a null byte
        raise Failure(f"{'stdin' if saved == '-' else saved}: {error}", USAGE) from error


def _collected(flows: bool) -> Host:
    try:
        from cni_py.host.collect import collect

        return collect(flows=flows)
    except ImportError as error:  # pyroute2, which the wheel depends on
        raise Failure(f"a Python package is missing: {error}", LACKING) from error
    except OSError as error:  # nothing of this host can be seen without its /proc
        raise Failure(
            f"this host cannot be looked at: {error.filename or 'netlink'}: {error.strerror}", LACKING
        ) from error
