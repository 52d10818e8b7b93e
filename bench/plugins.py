"""Time our plugins beside the Go reference plugins: bridge with host-local, and portmap; VERSION, ADD and DEL.

    python3 bench/plugins.py --ours DIR --go DIR [--rounds 30] [--json FILE]

Needs root; everything happens in namespaces of its own (unshare), with private /run and /var/lib/cni. Both sides get the
same configuration and take turns, a round each: VERSION, ADD and DEL of bridge (isGateway, ipMasq, dual stack from
host-local), ADD and DEL of portmap (one TCP port). Before anything is timed the results of one round of both are compared.
Times are of whole processes, from exec to exit, in milliseconds: medians, 90th percentiles, and ours/Go ratios of the
medians. The last row is a bare interpreter, started in the same turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PRIVATE = "BENCH_PLUGINS_PRIVATE"
NETWORK = {
    "cniVersion": "1.0.0",
    "bridge": "bench0",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8:2::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}
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

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.folder = folder
        self.times: Times = {}

    def config(self, plugin: str, previous: object) -> bytes:
        """The configuration as a runtime would hand it over."""
        config: dict[str, object] = dict(NETWORK, name=f"bench-{self.name}", type=plugin, bridge=f"{self.name}0"[:15])
        if plugin == "portmap":
            config = {"cniVersion": "1.0.0", "name": f"bench-{self.name}", "type": "portmap", "runtimeConfig": PORTS}
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
            [f"{self.folder}/{plugin}"], env=environ, input=config, capture_output=True, timeout=60, check=False
        )
        took = (time.perf_counter() - begun) * 1000
        if done.returncode:
            raise SystemExit(f"{self.name}: {plugin} {verb} failed: {done.stdout.decode()}{done.stderr.decode()}")
        self.times.setdefault(f"{plugin} {verb}", []).append(took)
        return json.loads(done.stdout) if verb == "ADD" else None

    def round(self, number: int) -> dict[str, object]:
        """VERSION, ADD and DEL of both plugins for one new container; returns the last result."""
        container_id = f"{self.name}{number}"
        subprocess.run(["ip", "netns", "add", container_id], check=True)
        self.call("VERSION", "bridge", container_id)
        result = self.call("ADD", "bridge", container_id)
        result = self.call("ADD", "portmap", container_id, result)
        self.call("DEL", "portmap", container_id, result)
        self.call("DEL", "bridge", container_id, result)
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


def table(ours: Times, go: Times) -> list[dict[str, object]]:
    """One row a step: medians, 90th percentiles, ratio of the medians."""
    rows = []
    for step in ours:
        mine, theirs = ours[step], go.get(step, ours[step])
        rows.append(
            {
                "step": step,
                "ours_ms": round(statistics.median(mine), 1),
                "ours_p90_ms": round(p90(mine), 1),
                "go_ms": round(statistics.median(theirs), 1),
                "go_p90_ms": round(p90(theirs), 1),
                "ratio": round(statistics.median(mine) / statistics.median(theirs), 2),
            }
        )
    return rows


def main() -> int:
    """Compare, then time, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="folder of our executables")
    parser.add_argument("--go", required=True, help="folder of the Go reference plugins")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    enter_private_namespaces()
    ours, go = Side("ours", os.path.abspath(options.ours)), Side("go", os.path.abspath(options.go))
    bare: Times = {}
    mine, theirs = comparable(ours.round(0)), comparable(go.round(0))
    if mine != theirs:
        raise SystemExit(f"results differ, nothing was timed:\n  ours {mine}\n  Go   {theirs}")
    ours.times, go.times = {}, {}
    for number in range(1, options.rounds + 1):
        for side in (ours, go) if number % 2 else (go, ours):
            side.round(number)
        bare_python(bare)
    rows = table(ours.times, go.times) + table(bare, {})
    print(f"{options.rounds} rounds, interleaved; whole processes; results were equal before timing")
    print(f"{'step':24}{'ours ms':>10}{'p90':>8}{'Go ms':>10}{'p90':>8}{'ratio':>8}")
    for row in rows:
        print(
            f"{row['step']:24}{row['ours_ms']:>10}{row['ours_p90_ms']:>8}{row['go_ms']:>10}{row['go_p90_ms']:>8}{row['ratio']:>8}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
