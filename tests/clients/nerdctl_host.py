"""A lab's host that nerdctl runs containers on, as far as the network goes: a process in a new namespace, and its hooks.

client 198.51.100.7 ---- lan0 198.51.100.1 host ---- nerdctl0, br-... ---- containers
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conversation import CLIENT, HOST
from lab import Lab
from node import Node
from snapshot import difference

from tests.clients import nerdctl_neighbours as neighbours
from tests.clients import nerdctl_replay as nerdctl
from tests.clients.nerdctl_neighbours import Allocation
from tests.clients.nerdctl_replay import DEFAULT_NETWORK, Container, Json

HOST4, HOST6 = HOST[4], HOST[6]
CLIENT4, CLIENT6 = CLIENT[4], CLIENT[6]
LOCALHOST = "127.0.0.1"
BLOCKED_S = 0.3  # who does not answer within this, does not
SETTLE_S = 5.0  # the kernel ends a namespace's interfaces some time after its last process
# What a host keeps when all containers are gone: whom host-local served last, locks, settings read.
KEPT = re.compile(
    r"/last_reserved_ip\.\d+$|/lock$|/\.cni-concurrency\.lock$|^/run/cni-py/(host-local/.*/state|config\.json)$|^/run/netns/"
)


class Running:
    """A started container."""

    def __init__(self, host: NerdctlHost, container: Container, node: Node) -> None:
        self.host = host
        self.container = container
        self.node = node
        self.servers = [host.lab.serve(node.name, 80)]
        self.results: list[Json] = []
        self.is_up = False

    @property
    def name(self) -> str:
        return self.node.name

    def start(self) -> None:
        self.results = self.host.node.python(nerdctl.create_runtime, self.container, self.host.cni_path)
        self.is_up = True

    def address(self, network: int = 0, version: int = 4) -> str:
        """By the result of a network."""
        texts = [str(ip["address"]).partition("/")[0] for ip in self.results[network]["ips"]]
        return next(text for text in texts if (":" in text) == (version == 6))

    def addresses(self) -> dict[str, list[str]]:
        """By the kernel: those of each interface, link-local ones left out."""
        lines = self.run("ip", "-oneline", "address", "show", "scope", "global").splitlines()
        found: dict[str, list[str]] = {}
        for _, ifname, _, address, *_ in map(str.split, lines):
            found.setdefault(ifname, []).append(address)
        return found

    def default_routes(self) -> list[str]:
        lines = [self.run("ip", family, "route", "show", "default") for family in ("-4", "-6")]
        return [line.split()[2] for line in "".join(lines).splitlines()]

    def run(self, *command: str) -> str:
        return self.node.run(command, check=True).stdout

    def die(self) -> None:
        """The last process ends, and the namespace with it; nobody has been told."""
        for server in self.servers:
            server.stop()
        self.servers.clear()
        if self.name in self.host.lab.nodes:
            self.host.lab.remove(self.name)

    def reborn(self) -> None:
        """A new process is started in the place of one that has ended, or ends now, unseen; so does the port reserver."""
        self.die()
        self.node = self.host.lab.add_container(self.name)
        self.container = dataclasses.replace(self.container, pid=self.node.pid)
        self.host.node.python(nerdctl.stop_reserver, self.container)
        self.servers = [self.host.lab.serve(self.name, 80)]
        self.start()

    def stop(self) -> list[str]:
        """Its end as nerdctl sees it: see post_stop()."""
        self.die()
        return self.told()

    def told(self) -> list[str]:
        self.is_up = False
        return self.host.node.python(nerdctl.post_stop, self.container, self.host.cni_path)


class NerdctlHost:
    """The host, its networks and containers."""

    def __init__(self, lab: Lab, cni_path: Path, backend: str) -> None:
        self.lab = lab
        self.cni_path = cni_path
        self.backend = backend
        if backend != "nftables":
            self.switch_to(backend)
        self.count = 0

    @property
    def node(self) -> Node:
        return self.lab["host"]

    def switch_to(self, backend: str) -> None:
        """The administrator's choice for the whole host."""
        self.node.python(Path("/etc/cni-py/config.yaml").write_text, f"backend: {backend}\n")

    def create_network(self, name: str, *subnets: str, **options: Any) -> Json:
        return self.node.python(nerdctl.create_network, self.cni_path, name, *subnets, **options)

    def container(
        self, name: str, *ports: str, networks: tuple[str, ...] = (DEFAULT_NETWORK,), **asked: str
    ) -> Running:
        """`nerdctl create`: the process of a container, not yet started. nerdctl.Refused for a port that is taken."""
        published = [mapping for port in ports for mapping in self.node.python(nerdctl.publish, port)]
        self.count += 1
        container_id = hashlib.sha256(f"{name} {self.count}".encode()).hexdigest()
        node = self.lab.add_container(name)
        details = {"hostname": name, **asked}
        return Running(self, Container(container_id, node.pid, networks, tuple(published), **details), node)

    @contextlib.contextmanager
    def running(
        self, name: str, *ports: str, networks: tuple[str, ...] = (DEFAULT_NETWORK,), **asked: str
    ) -> Iterator[Running]:
        """A container with a web server on port 80; stopped at the end if the block did not."""
        run = self.container(name, *ports, networks=networks, **asked)
        try:
            run.start()
            yield run
        finally:
            run.die()
            if run.is_up:
                assert run.told() == []  # nerdctl would mend what we leave

    @contextlib.contextmanager
    def serving(self, who: str, port: int = 80, protocol: str = "tcp") -> Iterator[None]:
        """A server on the client, or one more in a container."""
        server = self.lab.serve(who, port, protocol)
        try:
            yield
        finally:
            server.stop()

    @contextlib.contextmanager
    def allocated(self, name: str, port: int) -> Iterator[Running]:
        """A container as Nomad connects it; its process has ended before Nomad disconnects it."""
        node = self.lab.add_container(name)
        mappings = [
            {"HostPort": port, "ContainerPort": 80, "Protocol": protocol, "HostIP": HOST4}
            for protocol in ("tcp", "udp")
        ]
        allocation = Allocation(str(uuid.uuid4()), node.pid, (neighbours.NOMAD,), tuple(mappings))
        run = Running(self, allocation, node)
        try:
            run.results = self.node.python(neighbours.nomad_setup, allocation, self.cni_path)
            yield run
        finally:
            run.die()
        self.node.python(neighbours.nomad_teardown, allocation, self.cni_path)

    def ask(self, who: str, address: str, port: int = 80, protocol: str = "tcp") -> str:
        """Who answers: "NAME saw ADDRESS"; or the error."""
        try:
            answer = self.lab.fetch(who, address, port, protocol)
        except OSError as error:
            return type(error).__name__
        return f"{answer.name} saw {answer.peer}"

    def is_blocked(self, who: str, address: str, port: int = 80) -> bool:
        try:
            self.lab.fetch(who, address, port, timeout_s=BLOCKED_S)
        except OSError:
            return True
        return False

    def run(self, *command: str) -> str:
        return self.node.run(command, check=True).stdout

    def state(self) -> dict[str, object]:
        """What no container may change for good."""
        found = self.lab.snapshot("host")
        files = found["files"]
        assert isinstance(files, dict)
        for top, tree in files.items():
            files[top] = {path: text for path, text in tree.items() if not KEPT.search(path)}
        return found

    def lines(self) -> list[str]:
        """The state, without host-local's index: that of a directory that was deleted is of no effect."""
        lines = json.dumps(self.state(), indent=1).splitlines()
        return [line for line in lines if "/run/cni-py/host-local/" not in line]

    def lines_listening(self, port: int) -> int:
        """How many sockets wait for clients on a port."""
        return len(self.run("ss", "-H", "-l", "-t", "-n", f"sport = :{port}").splitlines())

    def traces(self, run: Running) -> list[str]:
        """What still tells of a container, once the kernel has cleaned up."""
        texts = [ip["address"].partition("/")[0] for result in run.results for ip in result["ips"]]
        words = [re.compile(rf"(?<![\w.:]){re.escape(text)}(?![\w.:])") for text in texts]
        chains = [nerdctl.chain_name(name, run.container.full_id)[4:] for name in run.container.networks]
        words += [re.compile(text[:20]) for text in (run.container.id, *chains)]
        end = time.monotonic() + SETTLE_S
        while found := [line for line in self.lines() if any(word.search(line) for word in words)]:
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        return found

    def change_since(self, before: dict[str, object]) -> str:
        """What is different, once the kernel has cleaned up; empty when nothing is."""
        end = time.monotonic() + SETTLE_S
        while (change := difference(before, self.state())) and time.monotonic() < end:
            time.sleep(0.1)
        return change
