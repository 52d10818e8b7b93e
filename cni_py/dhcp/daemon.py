"""`dhcp daemon`: the process. It takes the arguments of the Go plugins' daemon, and listens at the same socket.

SIGTERM, SIGINT    ends; the leases stay on disk, and the next daemon goes on with them
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from cni_py.dhcp.holder import say
from cni_py.dhcp.leases import Leases
from cni_py.dhcp.machine import Limits
from cni_py.dhcp.rpc import Service
from cni_py.dhcp.store import Store
from cni_py.ipam.dhcp import SOCKET
from cni_py.kernel import sd_notify
from cni_py.serve import sockets

STATE = "/var/lib/cni-py/dhcp"
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Seconds, of a duration as Go writes it: 10s, 1m30s, 500ms. ValueError."""
    parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"no duration: {text}")
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def parser() -> argparse.ArgumentParser:
    """The command line: the Go daemon's, and -statedir."""
    about = "Keep DHCP leases of containers."
    found = argparse.ArgumentParser(prog="dhcp daemon", allow_abbrev=False, add_help=False, description=about)
    add = found.add_argument
    add("-h", "-help", "--help", action="help", help="print this")
    add("-pidfile", "--pidfile", default="", metavar="PATH", help="write the process's number to this file")
    add("-hostprefix", "--hostprefix", default="", metavar="DIR", help="where the host's root is")
    add("-socketpath", "--socketpath", default=SOCKET, metavar="PATH", help="listen here (default: %(default)s)")
    add(
        *("-broadcast", "--broadcast"),
        nargs="?",
        const="true",
        default="false",
        choices=("true", "false", "1", "0"),
        help="ask servers to broadcast their answers",
    )
    for name, default, text in (
        ("timeout", "10s", "how long a server may take to acknowledge what it has offered"),
        ("resendmax", "62s", "the longest wait between two messages"),
        ("resendtimeout", "208s", "how long a lease is looked for"),
    ):
        add(
            f"-{name}", f"--{name}", type=duration, default=default, metavar="TIME", help=f"{text} (default: {default})"
        )
    add("-statedir", "--statedir", default=STATE, metavar="DIR", help="keep leases here (default: %(default)s)")
    return found


def main(arguments: Sequence[str]) -> int:
    """Run until a signal; the exit status."""
    options = parser().parse_args(arguments)
    if options.pidfile and not options.pidfile.startswith("/"):
        say(None, f'error writing pidfile "{options.pidfile}": path not absolute')
        return 1
    path = options.hostprefix + (options.socketpath or SOCKET)
    try:
        if "LISTEN_FDS" not in os.environ:
            refuse_taken(path)
        listener = sockets.listener(path)
        if listener.lock < 0:  # systemd's
            path = str(listener.sock.getsockname() or path)
        store = Store(Path(options.hostprefix + options.statedir, path.strip("/").replace("/", "-")))
        if options.pidfile:
            Path(options.pidfile).write_text(str(os.getpid()))
    except OSError as error:
        say(None, f"cannot run at {path}: {error.strerror or error}")
        return 1
    limits = Limits(options.timeout, options.resendmax, options.resendtimeout)
    is_broadcast = options.broadcast in ("true", "1")
    try:
        asyncio.run(run(listener, store, limits, options.hostprefix, is_broadcast))
    finally:
        listener.close()
        if options.pidfile:
            Path(options.pidfile).unlink(missing_ok=True)
    return 0


def refuse_taken(path: str) -> None:
    """OSError when another daemon, which may be the Go plugins', listens at the socket."""
    absent = FileNotFoundError, ConnectionRefusedError, NotADirectoryError
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, contextlib.suppress(*absent):
        sock.connect(path)
        raise OSError(errno.EADDRINUSE, "another daemon listens there")


async def run(listener: sockets.Listener, store: Store, limits: Limits, prefix: str, broadcast: bool) -> None:
    """Serve until a signal."""
    leases = Leases(store, limits, prefix=prefix, broadcast=broadcast)
    leases.resume()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    sock = socket.socket(fileno=os.dup(listener.sock.fileno()))
    # Not start_unix_server(), which would remove a socket file that is systemd's (Python 3.13)
    server = await asyncio.start_server(Service(leases).serve, sock=sock)
    watching = asyncio.create_task(leases.watch())
    sd_notify.notify(os.environ.get("NOTIFY_SOCKET", ""), "READY=1")
    await ended.wait()
    watching.cancel()
    server.close()
    leases.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
