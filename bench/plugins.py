"""Time our plugins beside the Go reference plugins: nerdctl's chain of bridge with host-local, portmap, firewall and tuning.

    python3 bench/plugins.py --ours DIR --go DIR [--rounds 30] [--json FILE]

Needs root; everything happens in namespaces of its own (unshare), with private /run and /var/lib/cni. There are three sides:
ours with nftables (the default), ours with iptables, and the Go plugins, which know iptables alone, each on a host of its own.
All get the same configuration and take turns, a round each: ADD of the whole chain (isGateway, ipMasq, hairpinMode, dual stack,
one TCP port, ingressPolicy same-bridge, a tuning that tunes nothing), DEL in reverse. Before anything is timed the results of one
round of each are compared. Times are of whole processes, from exec to exit, in milliseconds: medians, 90th percentiles, and
ratios of the medians to Go's. "chain" is the sum of a round's processes. The last row is a bare interpreter, in the same turns.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CLONE_NEWNET = 0x40000000  # linux/sched.h
LIBC = ctypes.CDLL(None, use_errno=True)
PRIVATE = "BENCH_PLUGINS_PRIVATE"
NETWORK = {
    "cniVersion": "1.0.0",
    "bridge": "bench0",
    "isGateway": True,
    "ipMasq": True,
    "hairpinMode": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8:2::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}
CHAIN = ("bridge", "portmap", "firewall", "tuning")
PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}

Times = dict[str, list[float]]


def enter_private_namespaces() -> None:
    """Start this program again in new network and mount namespaces, with nothing of the machine's state in sight."""
    if os.environ.get(PRIVATE) != "1":
        os.environ[PRIVATE] = "1"
        os.execvp("unshare", ["unshare", "-n", "-m", "--propagation", "private", sys.executable, *sys.argv])
    for folder in ("/run", "/var/lib/cni"):
        os.makedirs(folder, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    os.makedirs("/run/netns")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class Side:
    """One suite of plugins with its own network: its own bridge, addresses and state."""

    def __init__(self, name: str, folder: str, backend: str = "") -> None:
        self.name = name
        self.folder = folder
        self.backend = backend
        subprocess.run(["ip", "netns", "add", f"host-{name}"], check=True)
        self.host = os.open(f"/run/netns/host-{name}", os.O_RDONLY)
        self.times: Times = {}

    def config(self, plugin: str, previous: object) -> bytes:
        """The configuration as a runtime would hand it over."""
        config: dict[str, object] = {"cniVersion": "1.0.0", "name": f"bench-{self.name}", "type": plugin}
        if plugin == "bridge":
            config |= {**NETWORK, "bridge": f"{self.name}0"[:15]}
        elif plugin == "portmap":
            config["runtimeConfig"] = PORTS
        elif plugin == "firewall":
            config["ingressPolicy"] = "same-bridge"
        if self.backend and plugin != "tuning":
            config["ipMasqBackend" if plugin == "bridge" else "backend"] = self.backend
        if previous is not None:
            config["prevResult"] = previous
        return json.dumps(config).encode()

    def call(self, verb: str, plugin: str, container_id: str, previous: object = None) -> object:
        """Run one plugin and note how long it took; its result, None for verbs without."""
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container_id,
            "CNI_NETNS": f"/run/netns/{container_id}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": self.folder,
        }
        return self.timed(verb, plugin, environ, self.config(plugin, previous))

    def timed(self, verb: str, plugin: str, environ: dict[str, str], config: bytes) -> object:
        """Run the executable, note the milliseconds; the result of an ADD."""
        begun = time.perf_counter()
        done = subprocess.run(
            [f"{self.folder}/{plugin}"],
            env=environ,
            input=config,
            capture_output=True,
            timeout=60,
            check=False,
            preexec_fn=self.enter,
        )
        took = (time.perf_counter() - begun) * 1000
        if done.returncode:
            raise SystemExit(f"{self.name}: {plugin} {verb} failed: {done.stdout.decode()}{done.stderr.decode()}")
        self.times.setdefault(f"{plugin} {verb}", []).append(took)
        return json.loads(done.stdout) if verb == "ADD" else None

    def enter(self) -> None:
        """Go to the side's own host, so that nothing of another one is in its way."""
        if LIBC.setns(self.host, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    def round(self, number: int) -> dict[str, object]:
        """VERSION, then ADD and DEL of the chain for one new container; returns the last result."""
        container_id = f"{self.name}{number}"
        subprocess.run(["ip", "netns", "add", container_id], check=True)
        self.call("VERSION", "bridge", container_id)
        result: object = None
        for plugin in CHAIN:
            result = self.call("ADD", plugin, container_id, result)
        for plugin in reversed(CHAIN):
            self.call("DEL", plugin, container_id, result)
        for verb in ("ADD", "DEL"):
            took = sum(self.times[f"{plugin} {verb}"][-1] for plugin in CHAIN)
            self.times.setdefault(f"chain {verb}", []).append(took)
        subprocess.run(["ip", "netns", "del", container_id], check=True)
        assert isinstance(result, dict)
        return result


def comparable(result: dict[str, object]) -> object:
    """A result without what must differ between two networks: names and MACs."""
    interfaces = result["interfaces"]
    assert isinstance(interfaces, list)
    shape = [bool(interface.get("sandbox")) for interface in interfaces]
    return [shape, result["ips"], result.get("routes"), result.get("dns", {})]


def bare_python(times: Times) -> None:
    """The interpreter's own start, the floor of everything of ours that is direct."""
    begun = time.perf_counter()
    subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", "pass"], check=True)
    times.setdefault("python3 -I -S -c pass", []).append((time.perf_counter() - begun) * 1000)


def p90(values: list[float]) -> float:
    """The 90th percentile."""
    return sorted(values)[round(0.9 * (len(values) - 1))]


def measured(values: list[float], theirs: list[float]) -> dict[str, float]:
    """Median, 90th percentile, ratio of the medians."""
    middle = statistics.median(values)
    return {
        "ms": round(middle, 1),
        "p90_ms": round(p90(values), 1),
        "ratio": round(middle / statistics.median(theirs), 2),
    }


def table(sides: "list[Side]", bare: list[float]) -> list[dict[str, object]]:
    """One row a step: each side's figures beside those of the last one."""
    go = sides[-1].times
    steps = sorted(go, key=lambda step: (step.startswith("chain"), step.split()[1]))
    rows: list[dict[str, object]] = [
        {"step": step, **{side.name: measured(side.times[step], go[step]) for side in sides}} for step in steps
    ]
    version = go["bridge VERSION"]
    rows.append({"step": "python3 -I -S -c pass", "python": measured(bare, version)})
    return rows


def printed(rows: list[dict[str, object]], names: list[str]) -> None:
    """As a table."""
    print(f"{'step':22}" + "".join(f"{name + ' ms':>15}{'p90':>8}{'ratio':>7}" for name in names))
    for row in rows:
        cells = [row[name] for name in names if name in row] or [row["python"]]
        figures = [tuple(cell.values()) for cell in cells if isinstance(cell, dict)]
        print(f"{row['step']:22}" + "".join(f"{ms:>15}{high:>8}{ratio:>7}" for ms, high, ratio in figures))


def main() -> int:
    """Compare, then time, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="folder of our executables")
    parser.add_argument("--go", required=True, help="folder of the Go reference plugins")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    enter_private_namespaces()
    ours, theirs = os.path.abspath(options.ours), os.path.abspath(options.go)
    sides = [Side("nftables", ours, "nftables"), Side("iptables", ours, "iptables"), Side("go", theirs)]
    bare: Times = {}
    first = [comparable(side.round(0)) for side in sides]
    if any(result != first[-1] for result in first):
        raise SystemExit("results differ, nothing was timed:\n" + "\n".join(map(str, first)))
    for side in sides:
        side.times = {}
    for number in range(1, options.rounds + 1):
        turn = number % len(sides)
        for side in sides[turn:] + sides[:turn]:
            side.round(number)
        bare_python(bare)
    rows = table(sides, bare["python3 -I -S -c pass"])
    print(
        f"{options.rounds} rounds, interleaved; whole processes; results were equal before timing; ratios to Go's medians"
    )
    printed(rows, [side.name for side in sides])
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
