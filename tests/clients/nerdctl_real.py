"""The real nerdctl on the throwaway host of containerd_host.py, under containerd 2 of Debian's testing suite.

nerdctl keeps what it has in the host's own /run; it finds our plugins in /opt/cni/bin, as it does anywhere.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tests.clients import docker_host, image
from tests.clients.containerd_host import ContainerdHost, Namespaces, wait_for

ROOT, STATE = "/run/nerdctl-root", "/run/nerdctl"
SETTINGS = f"""\
data_root = "{ROOT}"
address = "/run/containerd/containerd.sock"
snapshotter = "native"
cni_path = "/opt/cni/bin"
"""
# Of 5 s that a dead shim has for the hook of its container's end, a busy machine makes too few: nerdctl's reserver would live on.
# `nerdctl load` has containerd unpack an image, by the snapshotter that this names; its default is overlayfs.
SETTINGS_OF_CONTAINERD = """\
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "native"
[plugins."io.containerd.monitor.container.v1.restart"]
interval = "1s"
[timeouts]
"io.containerd.timeout.shim.load" = "30s"
"io.containerd.timeout.shim.cleanup" = "30s"
"""
OF_SUBNET = re.compile(r"\tchain (?:in|out)side_\S+ \{\n[^}]*\t\}\n\n?")
SETTLE_S = 5.0  # the kernel ends a namespace's interfaces some time after its last process

# Makes folders of the host its own. containerd_host.py may have rebuilt what they are in.
PRIVATE = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from containerd_host import make_private
for folder in map(Path, sys.argv[2:]):
    if not folder.exists() and Path("/run/rebuilt", str(folder.parent).replace("/", "_")).exists():
        folder.mkdir()
    else:
        make_private(folder)
"""


class Running(docker_host.Container):
    """A running container: its process as the host's pid namespace has it, the network it is in, its addresses there."""

    def __init__(self, host: NerdctlHost, name: str) -> None:
        self.name = name
        self.pid = host.nerdctl("inspect", "--format={{.State.Pid}}", name).strip()
        self.network = host.inside(self.pid)
        self.ip4, self.ip6 = ([*self.addresses(family), ""][0] for family in (4, 6))

    def addresses(self, family: int, ifname: str = "eth0") -> list[str]:
        """Those of an interface, link-local ones left out."""
        looked = self.network.run("ip", "-json", f"-{family}", "address", "show", "scope", "global", check=False)
        links = json.loads(looked.stdout or "[]")
        found = [entry for link in links if link.get("ifname") == ifname for entry in link["addr_info"]]
        return [entry["local"] for entry in found if entry]  # some iproute2 print {} for what the scope leaves out

    def default_routes(self) -> list[str]:
        routes = self.network.json("ip", "-json", "-4", "route", "show", "default")
        return [route["gateway"] for route in routes]

    def mac(self) -> str:
        (link,) = self.network.json("ip", "-json", "link", "show", "eth0")
        return str(link["address"])


class NerdctlHost(ContainerdHost):
    """The host, as a context manager. `backend` is the administrator's choice for all plugins."""

    settings = SETTINGS_OF_CONTAINERD
    conflists = "/etc/cni/net.d"

    def __init__(self, debs: Path, plugins: Path, nerdctl: Path, archive: Path, backend: str) -> None:
        super().__init__(debs, plugins)
        self.archive = archive
        self.program = str(nerdctl)
        self.backend = backend
        self.environment["NERDCTL_TOML"] = "/run/nerdctl.toml"
        self.service = docker_host.Service(self)

    def start_containerd(self) -> None:
        self.run(sys.executable, "-I", "-c", PRIVATE, str(Path(__file__).parent), "/etc/cni-py", "/var/lib/cni-py")
        self.run("tee", "/etc/cni-py/config.yaml", given=f"backend: {self.backend}\n")
        self.run("tee", "/run/nerdctl.toml", given=SETTINGS)
        super().start_containerd()

    def __enter__(self) -> Self:
        """With its image."""
        super().__enter__()
        try:
            self.nerdctl("load", f"--input={self.archive}")
        except BaseException:
            self.close()
            raise
        return self

    def nerdctl(self, *words: str) -> str:
        """What it prints. Failed, with what it says."""
        return self.run(self.program, *words).stdout

    def refusal(self, *words: str) -> str:
        """What it says, when it does not do it."""
        done = self.run(self.program, *words, check=False)
        assert done.returncode, f"{words} was done: {done.stdout}"
        return done.stderr

    @contextlib.contextmanager
    def running(self, name: str, *options: str, ports: tuple[str, ...] = ("80",)) -> Iterator[Running]:
        """A container whose web server answers on the ports; removed at the end."""
        try:
            self.nerdctl("run", "--detach", f"--name={name}", *options, image.NAME, name, *ports)
            yield self.find(name)
        finally:
            self.remove(name)

    def find(self, name: str) -> Running:
        """A container, once its web server answers."""
        found = Running(self, name)
        wait_for(f"the server of {name}", lambda: not found.network.fetch("127.0.0.1", 80).startswith("!") or None)
        wait_for("the addresses of the bridges", self.has_settled)
        return found

    def remove(self, *names: str) -> None:
        self.run(self.program, "rm", "--force", *names, check=False)

    def status(self, name: str) -> str:
        return self.nerdctl("inspect", "--format={{.State.Status}}", name).strip()

    def network(self, name: str) -> dict[str, Any]:
        """What nerdctl knows of a network."""
        (found,) = json.loads(self.nerdctl("network", "inspect", name))
        assert isinstance(found, dict)
        return found

    def conflist(self, name: str) -> dict[str, Any]:
        """The file that nerdctl wrote for a network."""
        (path,) = self.run("find", self.conflists, "-name", f"nerdctl-{name}.conflist").stdout.split()
        found = json.loads(self.run("cat", path).stdout)
        assert isinstance(found, dict)
        return found

    def kill_containerd(self, *others: str) -> None:
        """kill -9 of containerd, and of processes that are named by pid, all at once."""
        daemon = self.started[-1]
        pids = self.run("pgrep", "--exact", "containerd").stdout.split()
        self.run("kill", "-KILL", *pids, *others)
        daemon.wait(10)

    def shim_of(self, container: Running) -> str:
        """The pid of the process that containerd watches a container by."""
        return self.run("ps", "-o", "ppid=", "-p", container.pid).stdout.strip()

    def left(self) -> dict[str, Any]:
        """What no container may leave: containerd_host.snapshot(), and what nerdctl holds for published ports.

        Without the chains of a subnet, which stay until the next `cni-py gc`.
        """
        found = self.snapshot()
        chains = "\n".join(found["ruleset"]) + "\n"
        elements = re.split(r"\n|, |= \{ ", OF_SUBNET.sub("", chains))  # in any order, and that decides where lines end
        found["ruleset"] = sorted({piece.strip(" \t,}") for piece in elements})
        found["files"] = [path for path in found["files"] if not path.endswith(".lock")]
        reservers = self.run("pgrep", "--full", "^sleep infinity$", check=False).stdout.split()
        found["port reservers"] = [*self.files(STATE), *reservers]
        return found

    def change_since(self, before: dict[str, Any]) -> dict[str, Any]:
        """What is different, once the kernel has cleaned up: by kind, what has gone and what has come."""
        end = time.monotonic() + SETTLE_S
        while (found := self.left()) != before and time.monotonic() < end:
            time.sleep(0.1)
        return {
            kind: (
                [entry for entry in before[kind] if entry not in now],
                [entry for entry in now if entry not in before[kind]],
            )
            for kind, now in found.items()
            if now != before[kind]
        }


def ask(place: Namespaces, address: str, port: int) -> str:
    """Who answers, "NAME PEER"; or "! ERROR"."""
    return docker_host.ask(place, address, port)
