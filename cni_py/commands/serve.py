"""`cni-py serve`: start the warm service, or ask it what it has done."""

import argparse
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import cni_py
from cni_py import run, warm
from cni_py.commands import launchers, outcome
from cni_py.commands.report import FAILED, Failure

SUMMARY = "the warm service: run the calls of plugins without starting an interpreter for each"
HELP = """\
Load all plugins, and fork a process for each call that a plugin's executable hands over. Where the service is not there, or
cannot take a call, the executables run as without it. conf/cni-py.service and conf/cni-py.socket are for systemd.

signals: SIGTERM ends it after the calls that run; SIGHUP loads the package anew

examples:
  cni-py serve
  cni-py serve --status
  cni-py serve --status --json
"""
# A process without what this command has loaded is smaller, and so each fork of it is quicker.
START = "import sys; sys.path.append({home!r}); from cni_py.serve.service import main; sys.exit(main(sys.argv[1]))"
STATUS_S = 5.0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The subcommand."""
    parser = outcome.add_parser(commands, "serve", SUMMARY, HELP)
    add = parser.add_argument
    place = run.service_socket()
    add("--socket", type=os.path.abspath, default=place, metavar="PATH", help="where it listens (default: %(default)s)")
    add("--status", action="store_true", help="print what the running service has done")
    add("--json", action="store_true", help="with --status: as JSON")
    parser.set_defaults(run=serve)


def serve(options: argparse.Namespace) -> int:
    """Print the status, or become the service; returns the exit status. Failure."""
    if not options.status:
        become_service(options.socket)
    found = status(options.socket)
    print(json.dumps(found, indent=2) if options.json else described(found))
    return 0


def become_service(path: str) -> NoReturn:
    """Replace this process by the service."""
    home = str(Path(cni_py.__file__).resolve().parent.parent)
    python = launchers.interpreter()
    os.execv(python, [python, "-IS", "-c", START.format(home=home), path])  # noqa: S606  no words of others


def status(path: str) -> dict[str, Any]:
    """What the service at `path` says. Failure when there is none."""
    body = b"\0".join((warm.STATUS, b"", b"0"))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(STATUS_S)
            sock.connect(path)
            sock.sendall(warm.MAGIC + len(body).to_bytes(4, sys.byteorder) + body)
            with sock.makefile("rb") as stream:
                text = stream.read()[len(warm.MAGIC) + warm.REPLY_HEAD :]
        return dict(json.loads(text))
    except OSError as error:
        raise Failure(f"no service answers at {path}: {error.strerror or error}", FAILED) from error
    except ValueError as error:
        raise Failure(f"the service at {path} answers nothing that we know: another version?", FAILED) from error


def described(found: dict[str, Any]) -> str:
    """The status for people."""
    lines = [
        f"cni-py serve {found['version']}, process {found['pid']}, up {found['uptime_s']} s, running {found['running']}",
        f"{'plugin':12} {'verb':8} {'calls':>8} {'failed':>8} {'crashed':>8} {'p50 ms':>8} {'p99 ms':>8}",
    ]
    for row in found["calls"]:
        numbers = " ".join(f"{row[key]:>8}" for key in ("calls", "failed", "crashed", "p50_ms", "p99_ms"))
        lines.append(f"{row['plugin']:12} {row['verb']:8} {numbers}")
    lines += [f"went direct: {count} ({why})" for why, count in sorted(found["refused"].items())]
    return "\n".join(lines)
