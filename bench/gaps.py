"""How long a published port does not answer when its rules, bridge or address are removed, with `cni-py restore --watch`.

    python3 bench/gaps.py --ours DIR --cni-py PROGRAM [--debs DIR] [--rounds 5] [--backend iptables]

Needs root; everything happens in namespaces of its own. A client on the LAN connects without a pause; printed is the longest time
between two answers, the median and the worst of the rounds. `--debs` is the folder of tests/clients/fetch_debs.py: then firewalld
runs on the host as well, and reloads. With `--backend iptables` firewalld and our plugins use iptables.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "netns-fixtures"))

from firewalld import Firewalld
from lab import Lab
from outage import Client, serving
from runtime import ALL, Network, Plugins, mapping

WEB, HOST4 = 8080, "198.51.100.1"
CALM_S = 12.0  # after which somebody who removes something is answered at once again
DAMAGES = ("true", "nft flush ruleset", "ip address delete 192.0.2.1/24 dev cni0", "ip link delete cni0")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, type=Path, help="folder of our executables")
    parser.add_argument("--cni-py", required=True, type=Path, help="our command")
    parser.add_argument("--debs", type=Path, help="folder with firewalld")
    parser.add_argument("--backend", choices=("nftables", "iptables"), default="nftables")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def gap_ms(lab: Lab, damage: Callable[[], object]) -> float:
    """The longest gap around one damage."""
    with Client(lab, "client", HOST4, WEB) as client:
        damage()
        client.await_answers()
    return client.gap_ms


def measure(lab: Lab, name: str, damage: Callable[[], object], rounds: int) -> None:
    """Print a line."""
    found = []
    for _ in range(rounds):
        found.append(gap_ms(lab, damage))
        time.sleep(CALM_S)
    print(f"{name:<45} {statistics.median(found):8.0f} {max(found):8.0f}", flush=True)


def main() -> int:
    """Measure each way."""
    asked = options()
    with Lab.from_yaml("lan.yaml") as lab, tempfile.TemporaryDirectory() as folder:
        host = lab["host"]
        host.run(["mkdir", "-p", "/etc/cni-py"], check=True)
        host.run(["tee", "/etc/cni-py/config.yaml"], input=f"backend: {asked.backend}\n", check=True)
        Network(lab, Plugins("ours", asked.ours.absolute(), ALL)).attach("c1", mapping(WEB, 80))
        command = [str(asked.cni_py.absolute()), "restore", "--watch"]
        watching = host.popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert watching.stdout is not None
        watching.stdout.readline()
        print(f"{'removed by':<45} {'ms':>8} {'worst':>8}")
        with serving(lab, "c1", 80):
            for damage in DAMAGES:
                measure(lab, damage, lambda: host.run(damage.split(), check=True), asked.rounds)  # noqa: B023
            if asked.debs:
                with Firewalld(lab, asked.debs.absolute(), Path(folder), asked.backend) as firewalld:
                    for words in ("--reload", "--complete-reload"):
                        measure(lab, f"firewall-cmd {words}", lambda: firewalld.ask(words), asked.rounds)  # noqa: B023
        watching.terminate()
        watching.communicate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
