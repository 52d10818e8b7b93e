"""What one ADD and one DEL cost when the host is empty and when it is full.

    python3 bench/scale.py --ours DIR [--small 10] [--large 1000] [--ports 10] [--rounds 20] [--json FILE]

Needs root; everything happens in namespaces of its own. Containers with one attachment each (bridge with host-local, dual
stack, masquerade; portmap with `--ports` ports, never two in a row) are connected until `--small` are there; then one more
is connected and disconnected `--rounds` times; then the same at `--large`. Times are of whole processes in milliseconds,
medians; the ratio is large/small.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from plugins import Side, enter_private_namespaces

PORTS_FROM = 10000


class FullHost(Side):
    """One network that is filled up."""

    def __init__(self, folder: str, ports: int) -> None:
        super().__init__("scale", folder)
        self.ports = ports

    def config(self, plugin: str, previous: object, number: int = 0) -> bytes:
        """As in bench/plugins.py, with a larger pool and more ports."""
        config = json.loads(super().config(plugin, previous))
        if plugin == "bridge":
            config["ipam"]["ranges"] = [[{"subnet": "198.18.0.0/15"}], [{"subnet": "2001:db8:2::/64"}]]
        else:
            first = PORTS_FROM + 2 * self.ports * number
            config["runtimeConfig"]["portMappings"] = [
                {"hostPort": first + 2 * place, "containerPort": 80 + place, "protocol": "tcp"}
                for place in range(self.ports)
            ]
        return json.dumps(config).encode()

    def step(self, verb: str, plugin: str, number: int, previous: object = None) -> object:
        """One call for container `number`."""
        config = self.config(plugin, previous, number)
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": f"c{number}",
            "CNI_NETNS": f"/run/netns/c{number}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": self.folder,
        }
        return self.timed(verb, plugin, environ, config)

    def add(self, number: int) -> object:
        """A new container and the chain's ADD."""
        subprocess.run(["ip", "netns", "add", f"c{number}"], check=True)
        return self.step("ADD", "portmap", number, self.step("ADD", "bridge", number))

    def delete(self, number: int, result: object) -> None:
        """The chain's DEL."""
        self.step("DEL", "portmap", number, result)
        self.step("DEL", "bridge", number, result)
        subprocess.run(["ip", "netns", "del", f"c{number}"], check=True)


def measure(host: FullHost, number: int, rounds: int) -> dict[str, float]:
    """Medians of ADD and DEL of one more attachment."""
    host.times = {}
    for _ in range(rounds):
        host.delete(number, host.add(number))
    return {step: statistics.median(values) for step, values in host.times.items()}


def main() -> int:
    """Fill, measure, fill, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="folder of our executables")
    parser.add_argument("--small", type=int, default=10)
    parser.add_argument("--large", type=int, default=1000)
    parser.add_argument("--ports", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    enter_private_namespaces()
    host = FullHost(os.path.abspath(options.ours), options.ports)
    found = []
    filled = 0
    for size in (options.small, options.large):
        while filled < size:
            host.add(filled)
            filled += 1
        found.append(measure(host, filled, options.rounds))
    small, large = found
    rows = [
        {
            "step": step,
            "small_ms": round(small[step], 1),
            "large_ms": round(large[step], 1),
            "ratio": round(large[step] / small[step], 2),
        }
        for step in small
    ]
    print(
        f"{options.rounds} rounds at {options.small} and at {options.large} attachments with {options.ports} ports each"
    )
    print(f"{'step':16}{'small ms':>10}{'large ms':>10}{'ratio':>8}")
    for row in rows:
        print(f"{row['step']:16}{row['small_ms']:>10}{row['large_ms']:>10}{row['ratio']:>8}")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
