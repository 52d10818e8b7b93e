"""Which sides there are: what the installed plugins can, and whether the reference is there."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import machine
from hosts import Service
from sides import GO_BACKENDS, Side

SOCKET = "/run/cni-py/serve.sock"
START_S = 20.0
NO_GO = (
    "there are no Go plugins in {folder}: `make bench` unpacks Debian's package containernetworking-plugins of testing there, "
    "which needs apt and a reachable mirror; ours are timed without them, and there are no ratios"
)


@dataclass
class Ways:
    """The folders of each way, and why a way is not there."""

    ours: str
    cni_py: str
    go: str
    older_go: str = ""
    warm: str = ""
    scripts: str = ""  # executables that are Python, for the stopwatch
    absent: dict[str, str] = field(default_factory=dict)

    def look(self, scratch: str) -> None:
        """Ask the installation; a folder with native launchers is made below `scratch`."""
        self.scripts = self.ours if machine.interpreter(self.ours) else self.installed("python", scratch)[0]
        if not os.access(f"{self.ours}/chain", os.X_OK):
            self.absent["chain"] = "the installed plugins have no `chain`"
        if subprocess.run([self.cni_py, "serve", "--help"], capture_output=True, check=False).returncode:
            self.absent["warm"] = "cni-py has no command `serve`"
        else:
            self.warm = self.native(scratch)
        if not os.access(f"{self.go}/bridge", os.X_OK):
            self.absent["go"] = NO_GO.format(folder=self.go)

    def native(self, scratch: str) -> str:
        """The folder for the warm way."""
        folder, error = self.installed("native", scratch)
        if error:
            self.absent["native launcher"] = f"warm runs with the executables of direct: {error}"
        return folder

    def installed(self, launcher: str, scratch: str) -> tuple[str, str]:
        """A folder with executables of that kind; ours and the error, if they cannot be had."""
        folder = f"{scratch}/{launcher}"
        words = [
            self.cni_py,
            "install",
            f"--launcher={launcher}",
            "--bin-dir",
            folder,
            "--conf-dir",
            f"{scratch}/net.d",
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return (self.ours, done.stderr.strip()) if done.returncode else (folder, "")

    def sides(self, family: str, more: bool = False) -> list[Side]:
        """Each on a host of its own; the last one is what ratios are to. `more`: also iptables, ours and Debian's Go plugins."""
        found = [Side("direct", self.ours, family)]
        if "chain" not in self.absent:
            found.append(Side("chain", self.ours, family, one_plugin=True))
        if "warm" not in self.absent:
            found.append(warmed(Side("warm", self.warm, family), self.cni_py))
        if more:
            found.append(
                Side("iptables", self.ours, family, dict.fromkeys(("bridge", "portmap", "firewall"), "iptables"))
            )
        if more and os.access(f"{self.older_go}/bridge", os.X_OK):
            found.append(Side("older go", self.older_go, family))
        if "go" not in self.absent:
            found.append(Side("go", self.go, family, GO_BACKENDS))
        return found

    def versions(self) -> Mapping[str, str]:
        """Of what is compared."""
        said = subprocess.run([self.cni_py, "--version"], capture_output=True, text=True, check=False).stdout.split()
        found = {"cni-py": said[-1] if said else "unknown"}
        listed = Path(self.go, "../../../versions")  # of the packages, as tests/clients/fetch_debs.py writes them
        packages = dict(line.split() for line in listed.read_text().splitlines()) if listed.exists() else {}
        if "go" not in self.absent:
            found["Go plugins"] = packages.get("containernetworking-plugins", "of unknown version")
        return found


def warmed(side: Side, cni_py: str) -> Side:
    """With the service on its host."""
    side.service = Service(side.host, [cni_py, "serve"])
    end = time.monotonic() + START_S
    while not os.path.exists(SOCKET):  # this process is on the side's host
        if time.monotonic() > end or side.service.process.poll() is not None:
            raise SystemExit(f"`cni-py serve` has not made {SOCKET}")
        time.sleep(0.02)
    return side
