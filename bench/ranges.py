"""10,000 ports of TCP and of UDP: what they cost portfwd, with sk_lookup and without, and docker-proxy.

    python3 bench/ranges.py --portfwd PROGRAM --debs DIR [--rounds 7] [--json FILE]

Needs root; everything happens in namespaces of its own, those of publishers.py: a client, a host, a container with a server.
Start is the time until `portfwd publish` is back; memory is PSS, which leaves out what the kernel has for sockets and maps.
New connections and UDP flows come one after the other, through the first and the last port, in turns; `a port of its own` is one
beside the ranges that portfwd has a socket for, `direct` the server itself. Processor time is that of the publisher's processes.
docker-proxy has a process for each port: SOME are started, and times and memory of all are those of SOME times 10,000 / SOME.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from load import ECHO, FIRST, LAST
from publishers import (
    CONTAINER,
    HOST,
    LOAD,
    Bench,
    Publisher,
    client,
    cpu_us,
    enter_private_namespaces,
    rows_of,
    show,
    timed,
)

PORTS = LAST - FIRST + 1
SOME = 100
COUNT = 800  # connections, or flows, of a round
PROTOCOLS = ("tcp", "udp")
SINGLE = 8001
OTHER = "198.51.100.2"  # the host's, where docker-proxy has the same ports


def start_of(bench: Bench, one: Publisher, *options: str) -> None:
    """What a range costs a service that has nothing else."""
    for protocol in PROTOCOLS:
        one.sessions = [bench.serve(*options)]
        before = one.memory_kb()
        spec = f"{HOST}:{FIRST}-{LAST}:{FIRST}-{LAST}/{protocol}"
        one.note(f"start of 10,000 {protocol} ports ms", timed(lambda spec=spec: bench.publish(spec)))  # type: ignore[misc]
        one.note(f"memory of 10,000 {protocol} ports kB", one.memory_kb() - before)
        open_now = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in one.processes())
        one.note(f"descriptors, 10,000 {protocol} ports", open_now)
        one.end()


def start_of_docker(bench: Bench, one: Publisher) -> None:
    """The same for as many processes as there are ports, from SOME of them."""
    for protocol in PROTOCOLS:
        begun = time.perf_counter()
        one.sessions = [bench.docker_proxy(port, port, protocol) for port in range(LAST - SOME + 1, LAST + 1)]
        each_ms = (time.perf_counter() - begun) / SOME * 1000
        one.note(f"start of 10,000 {protocol} ports ms", each_ms * PORTS)
        one.note(f"memory of 10,000 {protocol} ports kB", one.memory_kb() / SOME * PORTS)
        one.end()


def speed(one: Publisher, where: str, port: int, server: Publisher) -> None:
    """New connections and flows through a port, and what they cost the processes of `server`."""
    for what, mode in (("connection", ("connect", port, 1, COUNT)), ("UDP flow", ("flows", port, COUNT))):
        before = cpu_us(server)
        words = (mode[0], one.address, *mode[1:])
        one.note(f"{what}s/s, {where} port", float(client(*words)))
        if server.sessions:
            one.note(f"CPU us/{what}, {where} port", (cpu_us(server) - before) / COUNT)


def measure(bench: Bench) -> list[Publisher]:
    """All of it."""
    names = ("portfwd", "portfwd --no-steer", "docker-proxy", "a port of its own", "direct")
    ours, sockets, docker, single, direct = found = [Publisher(name, HOST, (0, 0)) for name in names]
    direct.address = CONTAINER
    try:
        for _ in range(3):
            for one, options in ((sockets, ("--no-steer",)), (ours, ())):
                start_of(bench, one, *options)
        start_of_docker(bench, docker)
        ours.sessions = [bench.serve()]
        bench.publish(*[f"{HOST}:{FIRST}-{LAST}:{FIRST}-{LAST}/{how}" for how in PROTOCOLS])
        bench.publish(*[f"{HOST}:{SINGLE}:{ECHO}/{how}" for how in PROTOCOLS])
        docker.address = OTHER
        docker.sessions = [bench.docker_proxy(port, port, how, OTHER) for port in (FIRST, LAST) for how in PROTOCOLS]
        turns = [(ours, ours), (docker, docker), (single, ours), (direct, direct)]
        for number in range(bench.rounds):
            for where, port in (("first", FIRST), ("last", LAST)):
                for one, server in turns if number % 2 else reversed(turns):
                    speed(one, where, SINGLE if one is single else port, server)
    finally:
        for one in found:
            one.end()
    return found


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portfwd", required=True, help="our executable")
    parser.add_argument("--debs", required=True, help="folder in which Debian's packages are unpacked")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    options.portfwd = os.path.abspath(options.portfwd)
    enter_private_namespaces()
    subprocess.run(["ip", "address", "add", f"{OTHER}/24", "dev", "lan"], check=True)
    server = subprocess.Popen(
        ["ip", "netns", "exec", "container", sys.executable, "-I", LOAD, "serve"], stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    rows = rows_of(measure(Bench(options)))
    show(rows)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
