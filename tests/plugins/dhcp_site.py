"""A bridge of the lab's host with a DHCP server behind it, and the daemon, ours or the Go plugins'."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import Lab

from tests.clients import fetch_debs

WAIT_S = 30.0
HOST_NAME = "web"
ARGS = f"IgnoreUnknown=1;NERDCTL_CNI_DHCP_HOSTNAME={HOST_NAME}"
PROVIDE = [{"option": "host-name", "fromArg": "NERDCTL_CNI_DHCP_HOSTNAME"}]
NUMBERS = itertools.count(1)

UDHCPD = """\
start 192.0.2.50
end 192.0.2.50
interface {bridge}
lease_file {folder}/leases
pidfile {folder}/pid
min_lease 1
option subnet 255.255.255.0
option router 192.0.2.1
option lease {lease}
"""


def until(what: Callable[[], Any]) -> Any:
    """Wait for something that comes in its own time; what it is."""
    deadline = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < deadline, f"{what!r} did not come"
        time.sleep(0.05)
    return found


@dataclass
class Site:
    """`plugins`: where the main plugin is taken from; `ipam`: where dhcp is; `daemons`: where the daemon is."""

    lab: Lab
    debs: Path
    folder: Path
    plugins: Path
    ipam: Path
    daemons: Path
    number: int = field(default_factory=lambda: next(NUMBERS))
    server: subprocess.Popen[bytes] | None = None
    daemon: subprocess.Popen[bytes] | None = None
    containers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bridge, self.network = f"dhcp{self.number}", f"leased{self.number}"
        self.socket = f"/run/cni/{self.network}.sock"
        self.state = f"/var/lib/cni-py/dhcp/run-cni-{self.network}.sock"
        self.do(f"ip link add {self.bridge} type bridge; ip address add 192.0.2.1/24 dev {self.bridge}")
        self.do(f"ip link set {self.bridge} up")

    def close(self) -> None:
        for process in (self.server, self.daemon):
            if process is not None:
                process.kill()
                process.wait(WAIT_S)
        for name in self.containers:
            self.lab.remove(name)
        self.do(f"ip link delete {self.bridge}; rm -rf {self.state}")

    def do(self, script: str, node: str = "host") -> str:
        return self.lab[node].run(["sh", "-c", script], check=True).stdout

    def container(self) -> str:
        name = f"leased{self.number}-{len(self.containers)}"
        self.containers.append(name)
        self.lab.add_container(name)
        return name

    # Servers

    def dnsmasq(self, *options: str) -> None:
        """One address, 192.0.2.50."""
        common = f"--conf-file=/dev/null --keep-in-foreground --port=0 --interface={self.bridge} --bind-interfaces"
        leases = (
            f"--except-interface=lo --dhcp-range=192.0.2.50,192.0.2.50 --dhcp-leasefile={self.folder}/leases --no-ping"
        )
        words = f"{common} {leases} --user=root --group=root --pid-file= --dhcp-authoritative --log-facility=-".split()
        libraries = ":".join(fetch_debs.libraries(self.debs))
        self._serve([str(self.debs / "usr/sbin/dnsmasq"), *words, *options], LD_LIBRARY_PATH=libraries)

    def udhcpd(self, lease: int) -> None:
        """Leases of seconds."""
        conf = self.folder / "udhcpd.conf"
        conf.write_text(UDHCPD.format(bridge=self.bridge, folder=self.folder, lease=lease))
        (self.folder / "leases").touch()
        self._serve([str(fetch_debs.busybox(self.debs)), "udhcpd", "-f", str(conf)])

    def _serve(self, words: list[str], **env: str) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.server = self.lab["host"].popen(words, env=env, stdout=log, stderr=log)
        until(lambda: ":67 " in self.do("ss --no-header --listening --udp --numeric || true"))

    def leased(self) -> list[str]:
        """The addresses that dnsmasq has given out, with the names that it knows."""
        return [" ".join(line.split()[2:4]) for line in (self.folder / "leases").read_text().splitlines()]

    # The daemon

    def start(self, *options: str) -> None:
        """Start the daemon, and wait until it listens."""
        self.do(f"rm -f {self.socket}")
        words = [str(self.daemons / "dhcp"), "daemon", "-socketpath", self.socket, *options]
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = self.lab["host"].popen(words, stdout=log, stderr=log)
        until(lambda: self.lab["host"].python(listens, self.socket))

    def end(self, how: signal.Signals) -> None:
        """End the daemon, and wait for that. The process that was started becomes the daemon."""
        assert self.daemon is not None
        self.daemon.send_signal(how)
        self.daemon.wait(WAIT_S)
        self.daemon = None

    def kept(self) -> list[dict[str, Any]]:
        """The leases on disk."""
        return self.lab["host"].python(read_all, self.state)

    # Calls

    def conf(self, **ipam: object) -> dict[str, Any]:
        asked = {"type": "dhcp", "daemonSocketPath": self.socket, "provide": PROVIDE, **ipam}
        return {"cniVersion": "1.0.0", "name": self.network, "type": "bridge", "bridge": self.bridge, "ipam": asked}

    def run(
        self, verb: str, container: str, conf: dict[str, Any], *, plugin: str = "bridge", netns: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        env = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}" if netns is None else netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.ipam),
            "CNI_ARGS": ARGS,
        }
        directory = self.ipam if plugin == "dhcp" else self.plugins
        return self.lab["host"].run([str(directory / plugin)], env=env, input=json.dumps(conf), timeout_s=60)

    def well(self, verb: str, container: str, conf: dict[str, Any], **keys: Any) -> dict[str, Any]:
        done = self.run(verb, container, conf, **keys)
        assert done.returncode == 0, done.stdout + done.stderr + (self.folder / "daemon.log").read_text()
        return dict(json.loads(done.stdout or "{}"))


def listens(path: str) -> bool:
    """Whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) == 0


def read_all(folder: str) -> list[dict[str, Any]]:
    found = []
    for path in sorted(Path(folder).glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # the daemon has removed it meanwhile
            found.append(json.loads(path.read_text()))
    return found
