"""Podman with its CNI backend on the throwaway host of containerd_host.py, with networks that it made itself.

    LAN client 192.0.2.9, 2001:db8:1::9 ---- lan0 192.0.2.1, 2001:db8:1::1 host ---- cni-podman1, 2 ... ---- containers

Podman keeps its images and containers in the host's own /run, its conflists in the host's own /etc/cni/net.d; the
containers end with the holder.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snapshot import difference

from tests.clients import docker_host, image
from tests.clients.containerd_host import CGROUPS, COMMAND_S, ContainerdHost, Failed, Namespaces, wait_for

FIXTURES = Path(__file__).resolve().parents[2] / "netns-fixtures"
NET_D = "/etc/cni/net.d"
SETTLE_S = 30.0  # podman cleans up behind a container that ended by itself; the kernel then ends its interfaces
# What a host keeps when all containers are gone: whom host-local served last, locks, what it remembers of a directory.
KEPT = re.compile(r"/last_reserved_ip\.\d+$|/lock$|^/run/cni-py/(host-local/.*/state|config\.json)$")

# Raising a container's limit above that of this process needs CAP_SYS_RESOURCE. Conmon gives the podman that cleans up
# behind a container these variables alone. Locks in shared memory would lie in the machine's /dev/shm.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
pids_limit = 0
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "{net_d}"
[engine]
cgroup_manager = "cgroupfs"
conmon_env_vars = ["PATH={PATH}", "LD_LIBRARY_PATH={LD_LIBRARY_PATH}"]
conmon_path = ["{debs}/usr/bin/conmon", "/usr/bin/conmon"]
events_logger = "file"
lock_type = "file"
runtime = "runc"
static_dir = "/run/podman-root/libpod"
tmp_dir = "/run/libpod"
[engine.runtimes]
runc = ["{debs}/usr/sbin/runc", "/usr/sbin/runc"]
"""
STORAGE_CONF = """\
[storage]
driver = "vfs"
graphroot = "/run/podman-root"
runroot = "/run/podman-run"
"""
NO_CNI = "cni support is not enabled in this build"  # podman's words, from 5.0 on
POLICY, TRUST_ALL = "/run/policy.json", '{"default": [{"type": "insecureAcceptAnything"}]}'

# Podman's cache of layers has a fixed place. containerd_host.py may have rebuilt /var/lib.
PRIVATE_CACHE = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from containerd_host import make_private
folder = Path("/var/lib/containers")
if folder.exists() or not Path("/run/rebuilt/_var_lib").exists():
    make_private(folder)
"""

TAKE = """
import json, sys; sys.path.insert(0, sys.argv[1])
import snapshot
snapshot.TREES = ("/run/cni-py", "/run/netns", "/var/lib/cni")
print(json.dumps(snapshot.take()))
"""


# Prints those of "ADDRESS PORT" that take a connection. Who does not within half a second, will not: all is on one machine.
REACHED = """
import select, socket, sys, time
pending = {}
poll = select.poll()
for text in sys.argv[1:]:
    address, port = text.split()
    stream = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    stream.setblocking(False)
    if stream.connect_ex((address, int(port))) in (0, 115):  # EINPROGRESS
        pending[stream.fileno()] = (stream, text)
        poll.register(stream, select.POLLOUT)
end = time.monotonic() + 0.5
# What there is at the end counts, too: this process may have been held up
while pending and ((found := poll.poll(max(0, end - time.monotonic()) * 1000)) or time.monotonic() < end):
    for fd, _ in found:
        stream, text = pending.pop(fd)
        poll.unregister(fd)
        if not stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            print(text)
"""


class NoCni(Exception):
    """This podman cannot use CNI, however it is configured."""


class PodmanHost(ContainerdHost):
    """The host of the picture above, as a context manager."""

    def __init__(self, debs: Path, plugins: Path) -> None:
        super().__init__(debs, plugins)
        self.debs = debs
        self.networks = ["podman"]  # the one that podman always has

    def start_containerd(self) -> None:
        """Podman needs none, and has no daemon of its own: only write what it reads. NoCni when it was built without."""
        containers_conf = CONTAINERS_CONF.format(debs=self.debs, net_d=NET_D, **self.environment)
        for variable, text in (("CONTAINERS_CONF", containers_conf), ("CONTAINERS_STORAGE_CONF", STORAGE_CONF)):
            path = f"/run/{variable.lower()}"
            self.run("tee", path, given=text)
            self.environment[variable] = path
        self.run("tee", POLICY, given=TRUST_ALL)
        self.run(sys.executable, "-I", "-c", PRIVATE_CACHE, str(Path(__file__).parent))
        looked = self.run("podman", "info", "--format={{.Host.NetworkBackend}}", check=False)
        if looked.returncode and NO_CNI in looked.stderr:
            raise NoCni(f"{self.run('podman', '--version').stdout.strip()} was built without CNI")
        if looked.stdout.strip() != "cni":
            raise Failed(f"podman's network backend is not CNI: {looked.stdout}{looked.stderr}")

    def podman(self, *arguments: str) -> str:
        return self.run("podman", *arguments).stdout.strip()

    def load(self, archive: Path) -> None:
        self.podman("load", f"--signature-policy={POLICY}", f"--input={archive}")

    def create_network(self, name: str, *options: str) -> None:
        self.podman("network", "create", *options, name)
        self.networks.append(name)

    def conflist(self, network: str) -> dict[str, Any]:
        found = self.json("cat", f"{NET_D}/{network}.conflist")
        assert isinstance(found, dict)
        return found

    def run_command(self, name: str, *options: str, ports: tuple[int, ...] = (80,)) -> list[str]:
        """The command that starts a container with a web server on the ports, and ends when it runs."""
        start = ["podman", "run", "--detach", f"--name={name}", f"--cgroup-parent=/{self.cgroup}", *options]
        return [*start, image.NAME, name, *map(str, ports)]

    @contextlib.contextmanager
    def running(self, name: str, *options: str, ports: tuple[int, ...] = (80,)) -> Iterator[Container]:
        """A container that answers; removed at the end."""
        try:
            self.run(*self.run_command(name, *options, ports=ports))
            yield self.container(name)
        finally:
            self.remove(name)

    @contextlib.contextmanager
    def several(self, containers: dict[str, tuple[str, ...]]) -> Iterator[dict[str, Container]]:
        """Containers by name, started and removed side by side."""
        try:
            self.at_once([self.run_command(name, *options) for name, options in containers.items()])
            yield self.containers(*containers)
        finally:
            self.at_once([["podman", "rm", "--force", "--ignore", "--time=5", name] for name in containers])

    def container(self, name: str) -> Container:
        return self.containers(name)[name]

    def containers(self, *names: str) -> dict[str, Container]:
        """Those that run, once their servers do and the addresses of the bridges can be used."""
        lines = self.podman("inspect", "--format={{.Name}} {{.State.Pid}}", *names).splitlines()
        found = {name: Container(self, name, pid) for name, pid in map(str.split, lines)}
        for container in found.values():
            wait_for(f"the servers of {container.name}", container.listens)
        wait_for("the addresses of the bridges", self.has_settled)
        return found

    def remove(self, *names: str) -> None:
        """With their ports; those that are gone already do not matter."""
        self.podman("rm", "--force", "--ignore", "--time=5", *names)

    def at_once(self, commands: list[list[str]]) -> None:
        """Run commands side by side; all must succeed."""
        started = [self.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for command in commands]
        said = [process.communicate(timeout=2 * COMMAND_S)[0] for process in started]
        assert [text for text, process in zip(said, started, strict=True) if process.returncode] == []

    def warm_up(self) -> dict[str, Any]:
        """Have a container come and go on every network. Returns the state, with all that is shared and stays."""
        with self.running("first", f"--network={','.join(self.networks)}", "--publish=8079:80"):
            pass
        return self.state()

    def state(self) -> dict[str, Any]:
        """All that a container may leave."""
        found: dict[str, Any] = self.json(sys.executable, "-I", "-c", TAKE, str(FIXTURES))
        for top, tree in found["files"].items():
            found["files"][top] = {path: text for path, text in tree.items() if not KEPT.search(path)}
        found["nftables"] = blocks(found["nftables"])
        found["containers"] = self.podman("ps", "--all", "--format={{.Names}}").split()
        found["cgroups"] = sorted(str(path) for path in CGROUPS.glob(f"*/{self.cgroup}/libpod-*"))
        return found

    def change_since(self, before: dict[str, Any], *but: str) -> str:
        """What is different, once podman and the kernel have cleaned up; "" when nothing is. `but` are keys left out."""

        def part(state: dict[str, Any]) -> dict[str, object]:
            return {key: value for key, value in state.items() if key not in but}

        end = time.monotonic() + SETTLE_S
        while (change := difference(part(before), part(self.state()))) and time.monotonic() < end:
            time.sleep(0.2)
        return change


def blocks(ruleset: list[str]) -> dict[str, list[str]]:
    """The lines of each set and chain: their order in a table is that of their making."""
    found: dict[str, list[str]] = {}
    table, block = "", list[str]()
    for line in ruleset:
        if line.startswith("table"):
            table = line
        elif re.match(r"\t\w.*{$", line):
            block = found[f"{table} {line.strip()}"] = []
        elif line.strip(" \t}"):
            block.append(line.strip())
    return found


class Container(docker_host.Container):
    """A running container: the network it is in, and its addresses there."""

    def __init__(self, host: PodmanHost, name: str, pid: str) -> None:
        self.name = name
        self.pid = pid
        self.network = host.inside(pid)

    def addresses(self, ifname: str = "eth0") -> list[str]:
        """With their prefix lengths, as the kernel has them."""
        links = self.network.json("ip", "-json", "address")
        found = [entry for link in links if link["ifname"] == ifname for entry in link["addr_info"]]
        return [f"{entry['local']}/{entry['prefixlen']}" for entry in found if entry["scope"] == "global"]

    def ip(self, version: int = 4) -> str:
        """The first address of an IP version."""
        found = [ipaddress.ip_interface(address) for address in self.addresses()]
        return next(str(address.ip) for address in found if address.version == version)

    def mac(self) -> str:
        return str(self.network.json("ip", "-json", "link", "show", "dev", "eth0")[0]["address"])

    def gateways(self) -> list[str]:
        """Those of its default routes."""
        routes = [self.network.json("ip", "-json", family, "route", "show", "default") for family in ("-4", "-6")]
        return [str(route["gateway"]) for found in routes for route in found]

    def listens(self) -> bool | None:
        return ":80 " in self.network.run("ss", "--listening", "--tcp", "--numeric", "--no-header").stdout or None


def reached(place: Namespaces, *ends: tuple[str, int]) -> list[tuple[str, int]]:
    """Those of the ends (address, TCP port) that answer at once, all asked at the same time."""
    asked = [f"{address} {port}" for address, port in ends]
    answered = place.run(sys.executable, "-I", "-S", "-c", REACHED, *asked).stdout.splitlines()
    return [end for end, text in zip(ends, asked, strict=True) if text in answered]
