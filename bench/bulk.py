"""Bulk TCP through portfwd, docker-proxy, rootlessport, a splice(2) loop in C, and without a publisher.

    python3 bench/bulk.py --portfwd PROGRAM [--beside PROGRAM] --debs DIR [--rounds 11] [--congestion NAME...] [--json FILE]

Needs root; everything happens in namespaces of its own, those of publishers.py: a client, a host, a container with a server.
Bytes go from a file in memory by sendfile(2) to a reader that discards them uncopied, so that the publisher is most of the work:
to the server (up) and from it (down), over 1 connection and over 8 at once. Before anything is timed it is checked that bytes
arrive as they were sent. The publishers take turns; figures are medians of the rounds. Processor time is that of the publisher's
threads, and of all processes of the path: on few processors the latter bounds the throughput. What the kernel does in softirq
counts for the process that it interrupts.

All of it once with the machine's congestion control and once with reno: bbr sends by a clock, about 1.5 GB/s of these
namespaces, whoever relays, so that processors are idle. reno and cubic send what the receiver has room for.

`splice in C` is splice.c, built with the machine's compiler: the limit of relays that splice. `--beside` is another portfwd,
such as the one before a change.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from load import ECHO, SINK, SOURCE, STREAMS_MAX
from publishers import (
    CONTAINER,
    HOST,
    LOAD,
    Bench,
    DidNotStart,
    Publisher,
    client,
    cpu_us,
    enter_private_namespaces,
    rows_of,
    show,
)

MEGABYTES = 1024  # of a round, of all connections together
PORTS = (ECHO, SINK, SOURCE)
SPLICE = "splice in C"
CONTROL = "/proc/sys/net/ipv4/tcp_congestion_control"


def compiled() -> str:
    """Build splice.c; "" and a line where there is no C compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        print(f"  {SPLICE}: left out, there is no C compiler")
        return ""
    program = f"{tempfile.mkdtemp(dir='/run')}/splice"
    subprocess.run([compiler, "-O2", "-o", program, str(Path(__file__).with_name("splice.c"))], check=True)
    return program


def begin(bench: Bench, beside: str) -> list[Publisher]:
    """Start what there is, each with ports that lead to ECHO, SINK and SOURCE."""
    found = [Publisher("direct", CONTAINER, PORTS)]

    def add(name: str) -> tuple[Publisher, list[tuple[int, int]]]:
        ports = tuple(8000 + 10 * len(found) + number for number in range(len(PORTS)))
        found.append(Publisher(name, HOST, ports))
        return found[-1], list(zip(ports, PORTS, strict=True))

    for name, program in (("portfwd", bench.portfwd), ("portfwd beside", beside)):
        if program:
            one, pairs = add(name)
            specs = [f"{HOST}:{port}:{target}" for port, target in pairs]
            one.sessions = [bench.start([program, "run", *specs, "--to", CONTAINER])]
    one, pairs = add("docker-proxy")
    one.sessions = [bench.docker_proxy(port, target) for port, target in pairs]
    one, pairs = add("rootlessport")
    try:
        one.sessions = [bench.rootlessport(*[(port, 1, target) for port, target in pairs])]
    except (DidNotStart, OSError) as error:
        print(f"  left out: {error}")
        found.remove(one)
    if program := compiled():
        one, pairs = add(SPLICE)
        one.sessions = [bench.start([program, HOST, str(port), CONTAINER, str(to)]) for port, to in pairs]
    time.sleep(1.0)
    return found


def control(name: str) -> None:
    """Have connections to come use this congestion control, in all namespaces."""
    for place in ([], ["ip", "netns", "exec", "client"], ["ip", "netns", "exec", "container"]):
        subprocess.run([*place, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={name}"], check=True)


def measure(one: Publisher, server: Publisher, name: str) -> None:
    """One round with a congestion control."""
    _, sink, source = one.ports
    for way, port in (("up", sink), ("down", source)):
        for clients in (1, STREAMS_MAX):
            case = f"{name}, {way}, {clients}"
            before, before_all, own = cpu_us(one), cpu_us(server), os.times()
            speed = float(client("streams", one.address, port, way, MEGABYTES, clients))
            spent_ms = (cpu_us(one) - before) / 1000
            client_ms = 1000 * (sum(os.times()[2:4]) - sum(own[2:4]))
            server_ms = (cpu_us(server) - before_all) / 1000
            one.note(f"{case}: MB/s", speed / 1e6)
            if one.sessions:
                one.note(f"{case}: its ms/GB", spent_ms * 1024 / MEGABYTES)
            one.note(f"{case}: all ms/GB", (spent_ms + client_ms + server_ms) * 1024 / MEGABYTES)


def main() -> int:
    """Check, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portfwd", required=True, help="our executable")
    parser.add_argument("--beside", default="", help="another portfwd, to compare with")
    parser.add_argument("--debs", required=True, help="folder in which Debian's packages are unpacked")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--congestion", nargs="+", help="instead of the machine's and reno")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    options.portfwd = os.path.abspath(options.portfwd)
    machines = os.environ.setdefault("BENCH_CONGESTION", Path(CONTROL).read_text().strip())
    enter_private_namespaces()
    names = options.congestion or list(dict.fromkeys([machines, "reno"]))
    bench = Bench(options)
    server = Publisher("server", CONTAINER, PORTS)
    server.sessions = [bench.start(["ip", "netns", "exec", "container", sys.executable, "-I", LOAD, "serve"])]
    found = begin(bench, options.beside and os.path.abspath(options.beside))
    try:
        for one in found:
            client("check", one.address, *one.ports[:2])
        for number in range(options.rounds):
            for name in names:
                control(name)
                for one in found[number % len(found) :] + found[: number % len(found)]:
                    measure(one, server, name)
    finally:
        for one in [*found, server]:
            one.end()
    rows = rows_of(found)
    show(rows)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
