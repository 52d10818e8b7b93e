"""portfwd beside docker-proxy, rootlessport and socat: what each costs a connection, a byte, and a published port.

    python3 bench/publishers.py --portfwd PROGRAM --debs DIR [--rounds 7] [--json FILE]

Needs root; everything happens in namespaces of its own (unshare): a client, a host, a container. On the host each publisher
leads a port to the same server in the container. Before anything is timed it is checked that bytes arrive as they were sent.
They take turns, a round each; figures are medians of the rounds, and ratios of medians. `direct` is the client at the
container's own address, the limit of client, server and wire. docker-proxy, rootlessport and socat are Debian's. The congestion
control is reno, which a namespace may have: bbr, where the machine has it, would send by its clock, whoever relays. More on bulk
is measured by bulk.py.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from load import ECHO, LAST, SINK

PRIVATE = "BENCH_PUBLISHERS_PRIVATE"
LOAD = str(Path(__file__).with_name("load.py"))
HOST, CONTAINER = "198.51.100.1", "192.0.2.2"
SETUP = """
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.ip_local_port_range="1024 65535" net.ipv4.tcp_max_syn_backlog=8192
sysctl -qw net.ipv4.tcp_congestion_control=reno
ip netns add client; ip netns add container
for name in client container; do ip netns exec $name sysctl -qw net.ipv4.tcp_congestion_control=reno; done
ip link add lan type veth peer name eth0 netns client
ip link add web type veth peer name eth0 netns container
ip address add 198.51.100.1/24 dev lan; ip link set lan up
ip address add 192.0.2.1/24 dev web; ip link set web up
ip -n client address add 198.51.100.7/24 dev eth0; ip -n client link set eth0 up
ip -n client route add default via 198.51.100.1
ip -n container address add 192.0.2.2/24 dev eth0; ip -n container link set eth0 up
ip -n container route add default via 192.0.2.1; ip -n container link set lo up
ip netns exec client sysctl -qw net.ipv4.ip_local_port_range="1024 65535" net.ipv4.tcp_tw_reuse=1
"""
ROUND_TRIPS, CONNECTIONS, MEGABYTES = 2000, 800, 512
MANY = 1000  # ports, each published for itself
RANGE = (LAST - 9999, LAST)
START_S = 30.0
TARGETS = {  # DESIGN.md, "Measures": the figure, and what portfwd's ratio to docker-proxy must be
    "bulk MB/s": (">=", 1.0),
    "round trip us": ("<=", 1.0),
    "connections/s, 1 client": (">=", 1.0),
    "connections/s, 16 clients": (">=", 1.0),
    "memory of 1,000 ports kB": ("<=", 0.02),
}

Figures = dict[str, list[float]]


class DidNotStart(Exception):
    """A publisher says that it cannot, or nothing."""


def enter_private_namespaces() -> None:
    """Start this program again in new network and mount namespaces, with nothing of the machine's state in sight."""
    if os.environ.get(PRIVATE) != "1":
        os.environ[PRIVATE] = "1"
        namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvp("unshare", [*namespaces, "--propagation", "private", sys.executable, *sys.argv])
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    os.mkdir("/run/netns")
    subprocess.run(["sh", "-ec", SETUP], check=True)
    for _ in range(5):  # so that nothing of this process lies where a child wants descriptors 3 and 4
        os.open("/dev/null", os.O_RDONLY)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass
class Publisher:
    """One of them; `ports` lead to ECHO and SINK."""

    name: str
    address: str
    ports: tuple[int, ...]
    figures: Figures = field(default_factory=dict)
    sessions: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def note(self, what: str, value: float) -> None:
        """One more measurement."""
        self.figures.setdefault(what, []).append(value)

    def processes(self) -> list[int]:
        """All processes of its sessions."""
        sessions = {process.pid for process in self.sessions}
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and os.getsid(int(folder.name)) in sessions:
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def cpu_s(self) -> float:
        """Processor time of its processes, and of those that have ended."""
        total = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            own, reaped = sum(map(int, fields[11:13])), sum(map(int, fields[13:15]))
            total += own + (reaped if pid in {process.pid for process in self.sessions} else 0)
        return total / os.sysconf("SC_CLK_TCK")

    def memory_kb(self) -> float:
        """Proportional set size of its processes."""
        return sum(map(pss_kb, self.processes()))

    def end(self) -> None:
        """End what was started for it."""
        for process in self.sessions:
            process.send_signal(signal.SIGKILL)
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            process.wait()
        self.sessions.clear()


def cpu_us(publisher: Publisher) -> float:
    """What its threads have had of processors: the first field of schedstat, in nanoseconds (proc_pid_schedstat(5))."""
    files = [path for pid in publisher.processes() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(path.read_text().split()[0]) for path in files) / 1000


def pss_kb(pid: int) -> int:
    """See proc(5), smaps_rollup."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


class Bench:
    """The publishers, started in turn."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.portfwd: str = options.portfwd
        self.debs = Path(options.debs).resolve()
        self.rounds: int = options.rounds
        libraries = [str(path) for top in ("usr/lib", "lib") for path in sorted((self.debs / top).glob("*-linux-gnu*"))]
        self.libraries = {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}

    def start(
        self, words: Sequence[str], *, stdin: bytes = b"", descriptors: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        """A program in a session of its own; it has `descriptors` as 3, 4 and so on."""

        def place() -> None:
            for number, fd in enumerate(descriptors, 3):
                os.dup2(fd, number)

        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=place,  # noqa: PLW1509  there are no threads here
            pass_fds=range(3, 3 + len(descriptors)),
            env=self.libraries,
        )
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        return process

    def docker_proxy(
        self, port: int, target: int, protocol: str = "tcp", host_ip: str = HOST
    ) -> subprocess.Popen[bytes]:
        """One process per port, as dockerd starts it."""
        ends = [
            "-host-ip",
            host_ip,
            "-host-port",
            str(port),
            "-container-ip",
            CONTAINER,
            "-container-port",
            str(target),
        ]
        read, write = os.pipe()
        process = self.start([str(self.debs / "usr/sbin/docker-proxy"), "-proto", protocol, *ends], descriptors=[write])
        os.close(write)
        answer = os.read(read, 100)
        os.close(read)
        if not answer.startswith(b"0"):
            raise DidNotStart(f"docker-proxy: {answer.decode()}")
        return process

    def socat(self, port: int, target: int) -> subprocess.Popen[bytes]:
        """One process per port, and one per connection."""
        listen = f"TCP4-LISTEN:{port},bind={HOST},reuseaddr,fork,backlog=4096,nodelay"
        return self.start([str(self.debs / "usr/bin/socat"), listen, f"TCP4:{CONTAINER}:{target},nodelay"])

    def rootlessport(self, *spans: tuple[int, int, int]) -> subprocess.Popen[bytes]:
        """podman's: one pair of processes per container. Its configuration comes on standard input, two descriptors say when."""
        folder = tempfile.mkdtemp(dir="/run")
        mappings = [
            {"host_ip": "", "host_port": first, "container_port": target, "range": count, "protocol": "tcp"}
            for first, count, target in spans
        ]
        config = {
            "Mappings": mappings,
            "NetNSPath": "/run/netns/container",
            "ExitFD": 3,
            "ReadyFD": 4,
            "TmpDir": folder,
        }
        config |= {"ChildIP": CONTAINER, "ContainerID": f"bench{spans[0][0]}", "RootlessCNI": True}
        exit_read, _ = os.pipe()  # when the other end is closed it ends; so with this process
        read, write = os.pipe()
        program = str(self.debs / "usr/lib/podman/rootlessport")
        process = self.start([program], stdin=json.dumps(config).encode(), descriptors=[exit_read, write])
        os.close(write)
        if not select.select([read], [], [], START_S)[0] or not os.read(read, 1):
            raise DidNotStart(f"rootlessport with {sum(count for _, count, _ in spans)} ports")
        return process

    def serve(self, *options: str) -> subprocess.Popen[bytes]:
        """`portfwd serve`, ready."""
        state = tempfile.mkdtemp(dir="/run")  # what one run published is not the next one's
        process = self.start([self.portfwd, "serve", "--log-level", "error", "--state", state, *options])
        end = time.monotonic() + START_S
        while subprocess.run([self.portfwd, "ls"], capture_output=True, check=False).returncode:
            assert time.monotonic() < end, "portfwd did not start"
        return process

    def publish(self, *specs: str) -> None:
        """Publish through the service."""
        subprocess.run([self.portfwd, "publish", *specs, "--to", CONTAINER], check=True, capture_output=True)


def client(*words: object) -> str:
    """Run load.py at the client."""
    command = ["ip", "netns", "exec", "client", sys.executable, "-I", LOAD, *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def measure(publisher: Publisher) -> None:
    """One round."""
    echo, sink = publisher.ports
    publisher.note("round trip us", float(client("rtt", publisher.address, echo, ROUND_TRIPS)))
    for clients in (1, 16):
        name = f"connections/s, {clients} client{'s' if clients > 1 else ''}"
        publisher.note(name, float(client("connect", publisher.address, echo, clients, CONNECTIONS)))
    before = publisher.cpu_s()
    publisher.note("bulk MB/s", float(client("bulk", publisher.address, sink, MEGABYTES)) / 1e6)
    publisher.note("CPU s/GB", (publisher.cpu_s() - before) / (MEGABYTES / 1024))


def traffic(bench: Bench) -> list[Publisher]:
    """What connections and bytes cost."""
    found = [
        Publisher("direct", CONTAINER, (ECHO, SINK)),
        Publisher("portfwd", HOST, (8001, 9001)),
        Publisher("docker-proxy", HOST, (8002, 9002)),
        Publisher("rootlessport", HOST, (8003, 9003)),
        Publisher("socat", HOST, (8004, 9004)),
    ]
    try:
        by_name = {one.name: one for one in found}
        by_name["portfwd"].sessions = [bench.serve()]
        bench.publish(f"{HOST}:8001:{ECHO}", f"{HOST}:9001:{SINK}")
        by_name["docker-proxy"].sessions = [bench.docker_proxy(8002, ECHO), bench.docker_proxy(9002, SINK)]
        by_name["rootlessport"].sessions = [bench.rootlessport((8003, 1, ECHO), (9003, 1, SINK))]
        by_name["socat"].sessions = [bench.socat(8004, ECHO), bench.socat(9004, SINK)]
        time.sleep(0.5)
        for one in found:
            print(f"  {one.name}: bytes arrive as sent; the server sees {client('check', one.address, *one.ports)}")
        for number in range(bench.rounds):
            for one in found[number % len(found) :] + found[: number % len(found)]:
                measure(one)
    finally:
        for one in found:
            one.end()
    return found


def last_port(bench: Bench) -> Publisher:
    """New connections through the only port, and through the last of 10,000."""
    found = Publisher("portfwd", HOST, (8001, RANGE[1]), sessions=[bench.serve()])
    try:
        bench.publish(f"{HOST}:8001:{ECHO}")
        subprocess.run(
            [bench.portfwd, "publish", f"{HOST}:{RANGE[0]}-{RANGE[1]}:{RANGE[0]}-{RANGE[1]}", "--to", CONTAINER],
            check=True,
            capture_output=True,
        )
        for number in range(2 * bench.rounds):
            for port in found.ports if number % 2 else reversed(found.ports):
                name = "connections/s, the only port" if port == 8001 else "connections/s, last of 10,000 ports"
                found.note(name, float(client("connect", HOST, port, 1, CONNECTIONS)))
    finally:
        found.end()
    return found


def ports(bench: Bench) -> list[Publisher]:
    """What published ports cost while nobody uses them."""
    found = [Publisher(name, HOST, (0, 0)) for name in ("portfwd", "docker-proxy", "rootlessport")]
    ours, docker, rootless = found
    try:
        ours.sessions = [bench.serve()]
        bench.publish(f"{HOST}:8001:80")
        ours.note("memory of 1 port kB", ours.memory_kb())
        bench.publish(*[f"{HOST}:{port}:80" for port in range(30000, 30000 + MANY - 1)])
        ours.note("memory of 1,000 ports kB", ours.memory_kb())
        ours.note(
            "start of a 10,000-port range ms",
            timed(lambda: bench.publish(f"{HOST}:{RANGE[0]}-{RANGE[1]}:{RANGE[0]}-{RANGE[1]}")),
        )
        ours.note("memory with 10,000 ports more kB", ours.memory_kb())
        ours.end()
        docker.sessions = [bench.docker_proxy(8002, 80)]
        docker.note("memory of 1 port kB", docker.memory_kb())
        begun = time.perf_counter()
        docker.sessions += [bench.docker_proxy(port, 80) for port in range(31000, 31000 + MANY - 1)]
        each_ms = (time.perf_counter() - begun) / (MANY - 1) * 1000
        docker.note("memory of 1,000 ports kB", docker.memory_kb())
        docker.note("start of a 10,000-port range ms", each_ms * 10_000)
        docker.end()
        rootless.sessions = [bench.rootlessport((8003, 1, 80))]
        rootless.note("memory of 1 port kB", rootless.memory_kb())
        rootless.end()
        rootless.sessions = [bench.rootlessport((32000, MANY, 80))]
        rootless.note("memory of 1,000 ports kB", rootless.memory_kb())
        rootless.end()
        begun = time.perf_counter()
        try:
            rootless.sessions = [bench.rootlessport((*RANGE[:1], 10_000, RANGE[0]))]
            rootless.note("start of a 10,000-port range ms", (time.perf_counter() - begun) * 1000)
        except DidNotStart as error:
            print(f"  did not start: {error}")
    finally:
        for one in found:
            one.end()
    return found


def timed(work: Callable[[], None]) -> float:
    """How many milliseconds it takes."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def rows_of(publishers: Sequence[Publisher]) -> list[dict[str, object]]:
    """One row for each figure and publisher, with portfwd's ratio to it."""
    ours = next(one for one in publishers if one.name == "portfwd")
    rows: list[dict[str, object]] = []
    for what in ours.figures:
        for one in publishers:
            if what in one.figures:
                values = sorted(one.figures[what])
                median = statistics.median(values)
                ratio = round(statistics.median(ours.figures[what]) / median, 3) if median and one is not ours else None
                p90 = round(values[round(0.9 * (len(values) - 1))], 2)
                rows.append(
                    {"figure": what, "publisher": one.name, "median": round(median, 2), "p90": p90, "ratio": ratio}
                )
    return rows


def show(rows: Sequence[dict[str, object]]) -> None:
    """The table, with what is asked of the ratio to docker-proxy."""
    print(f"\n{'figure':36}{'publisher':16}{'median':>12}{'p90':>12}  portfwd's ratio to it")
    for row in rows:
        ratio = row["ratio"]
        verdict = ""
        if row["publisher"] == "docker-proxy" and str(row["figure"]) in TARGETS and isinstance(ratio, float):
            sign, limit = TARGETS[str(row["figure"])]
            met = ratio >= limit if sign == ">=" else ratio <= limit
            verdict = f"   target {sign} {limit}: {'met' if met else 'NOT met'}"
        print(f"{row['figure']:36}{row['publisher']:16}{row['median']:>12}{row['p90']:>12}  {ratio or ''}{verdict}")


def main() -> int:
    """Check, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portfwd", required=True, help="our executable")
    parser.add_argument("--debs", required=True, help="folder in which Debian's packages are unpacked")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--last", action="store_true", help="only new connections through the last of 10,000 ports")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    options.portfwd = os.path.abspath(options.portfwd)
    enter_private_namespaces()
    server = subprocess.Popen(
        ["ip", "netns", "exec", "container", sys.executable, "-I", LOAD, "serve"], stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    bench = Bench(options)
    # First: ended connections keep numbers of ports for a minute
    idle = rows_of(ports(bench)) if not options.last else []
    rows = rows_of(traffic(bench)) if not options.last else []
    rows += rows_of([last_port(bench)]) + idle
    show(rows)
    print("\ndocker-proxy's start of a range is that of 999 processes, one after the other, times 10,000/999")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
