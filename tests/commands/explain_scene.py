"""A host with published ports for `cni-py explain`: what each client really gets, and what explain says of it.

    client ── lan0 ─ host ─ cni0 ── a1 (8080, 8083, 8085, 8053/udp), a2, gone (8086: a namespace without processes)
                          └ cni1 ── b1 (8082, by iptables)

relaying() adds portfwd, and r1 on cni0 (8084, by portfwd alone).
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from conversation import CLIENT, HOST
from lab import Lab
from node import Background, Node
from probe import plain
from runtime import Plugins

from cni_py.commands.main import main as command
from cni_py.explain import question, walk
from cni_py.explain.walk import Explained
from cni_py.explain.way import Way
from cni_py.host import collect
from tests.commands.hand import Hand, write
from tests.portfwd.publisher import Publisher

# Within the lab an answer takes under a millisecond. Those who are said to get one may take longer, on a busy machine.
SILENCE_S, PATIENCE_S = 0.3, 20.0
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
PLACES = {"lan": "client", "host": "host", "loopback": "host"}
CONTAINERS = {  # whose clients are in which container, by the one that serves
    "a1": {"neighbour": "a2", "other-bridge": "b1", "itself": "a1"},
    "b1": {"other-bridge": "a1", "itself": "b1"},
    "r1": {"neighbour": "a1", "other-bridge": "b1", "itself": "r1"},
}
Place = tuple[str, int]  # kind of client, family
INSIDE = {"tcp": 80, "udp": 53}


def network(name: str, bridge: str, subnets: Sequence[str], **portmap: object) -> dict[str, object]:
    ipam = {
        "type": "host-local",
        "ranges": [[dict(zip(("subnet", "rangeStart"), one.split(), strict=False))] for one in subnets],
    }
    connect = {"type": "bridge", "bridge": bridge, "isGateway": True, "ipMasq": True, "hairpinMode": True}
    routes = {"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
    publish = {"type": "portmap", "capabilities": {"portMappings": True}, **portmap}
    return {"cniVersion": "1.0.0", "name": name, "plugins": [{**connect, "ipam": {**ipam, **routes}}, publish]}


LAB = network("lab", "cni0", ["192.0.2.0/24", "2001:db8:42::/64"], ports={"8083/tcp": {"allow": ["203.0.113.0/24"]}})
LAB2 = network("lab2", "cni1", ["203.0.113.0/24", "2001:db8:43::/64"], backend="iptables")
LAB3 = network(
    "lab3", "cni0", ["192.0.2.0/24 192.0.2.100", "2001:db8:42::/64 2001:db8:42::100"], userlandProxy="always"
)


@dataclass(slots=True)
class Attempt:
    """A client's attempt to reach a server."""

    node: Node
    address: str
    port: int
    protocol: str = "tcp"
    source_port: int = 0


@dataclass(slots=True)
class Scene:
    """The lab, and what runs in it."""

    lab: Lab
    hand: Hand
    servers: dict[tuple[str, int], Background] = field(default_factory=dict)
    veth: dict[str, str] = field(default_factory=dict)  # the host's ends
    mac: dict[str, str] = field(default_factory=dict)

    @classmethod
    def build(cls, lab: Lab, plugins: Plugins, folder: object) -> Scene:
        from pathlib import Path

        path = Path(str(folder)) / "lab.conflist"
        path.write_text(json.dumps(LAB))
        scene = cls(lab, Hand(lab, plugins.whose, plugins.directory, path, LAB))
        for conf in (LAB, LAB2, LAB3):
            scene.hand.write(f"/etc/cni/net.d/50-{conf['name']}.conflist", json.dumps(conf))
        published = ["8080:80", "8053:53/udp", "8083:80", "127.0.0.1:8085:80"]
        scene.hand.well("ADD", "lab", "a1", *(word for text in published for word in ("-p", text)))
        scene.hand.well("ADD", "lab", "a2")
        scene.hand.well("ADD", "lab2", "b1", "-p", "8082:80")
        scene.hand.well("ADD", "lab", "gone", "--create-netns", "-p", "8086:80")
        # So that it can ask a container's own address
        lab["client"].run(["ip", "route", "add", "192.0.2.0/24", "via", HOST[4]], check=True)
        for name in ("a1", "a2", "b1"):
            scene.serve(name)
            text = (
                lab[name].run(["cat", "/sys/class/net/eth0/iflink", "/sys/class/net/eth0/address"], check=True).stdout
            )
            index, scene.mac[name] = text.split()
            links = lab["host"].run(["ip", "-o", "link"], check=True).stdout.splitlines()
            scene.veth[name] = next(
                line.split(":")[1].split("@")[0].strip() for line in links if line.startswith(f"{index}:")
            )
        return scene

    def serve(self, name: str, port: int = 80, address: str = "") -> None:
        """A server on TCP, and one on UDP port 53 beside the usual one."""
        self.stop(name, port)
        self.servers[name, port] = self.lab.serve(name, port, address=address)
        if port == 80 and (name, 53) not in self.servers:
            self.servers[name, 53] = self.lab.serve(name, 53, "udp")

    def stop(self, name: str, port: int) -> None:
        server = self.servers.pop((name, port), None)
        if server is not None:
            server.stop()
            self.lab.background.remove(server)

    def shell(self, node: str, script: str, *, careful: bool = True) -> None:
        """Run a script; {v1}, {v2} are the host's ends of a1's and a2's pairs, {m1} and {m2} the MAC addresses inside."""
        for word, value in (
            ("v1", self.veth["a1"]),
            ("v2", self.veth["a2"]),
            ("m1", self.mac["a1"]),
            ("m2", self.mac["a2"]),
        ):
            script = script.replace(f"{{{word}}}", value)
        self.lab[node].run(["sh", "-ec" if careful else "-c", script], check=careful)

    def mend(self, answer: Explained) -> None:
        """Run the command that the answer ends with."""
        assert answer.shown is not None
        assert answer.shown.deciding is not None
        text = answer.shown.deciding.mend.partition("   #")[0]
        if text == "cni-py restore":
            self.restore()
        else:
            self.shell("host", text)

    @contextlib.contextmanager
    def relaying(self) -> Iterator[Relays]:
        """portfwd runs, and relays for a container."""
        relays = Relays(self)
        relays.start()
        self.lab.add_container("r1")
        self.hand.well("ADD", "lab3", "r1", "-p", "8084:80")
        self.serve("r1")
        try:
            yield relays
        finally:
            relays.stop()

    def restore(self) -> None:
        """What `cni-py restore` puts back."""
        assert self.lab["host"].python(command, ["restore"]) == 0

    def explain(self, text: str, asked: str = "") -> Explained:
        """As `cni-py explain TEXT --from ASKED` on the lab's host."""
        return self.lab["host"].python(explained, text, asked)

    def really(self, attempts: Mapping[Place, Attempt], awaited: Set[Place]) -> dict[Place, str]:
        """What each client gets: "NAME PEER LOCAL", or "" for nothing in time."""
        return self.lab["host"].python(try_all, attempts, awaited)

    def attempts(self, text: str, server: str) -> dict[Place, Attempt]:
        """All kinds of clients, each to the address of the host that it uses, or to the one in `text`."""
        asked = question.parse(text)
        found = {}
        for kind, name in {**PLACES, **CONTAINERS[server]}.items():
            for family in (4, 6):
                own = LOOPBACK if kind == "loopback" else HOST
                address = asked.address or own[family]
                if (":" in address) == (family == 6) and (not asked.address or kind != "loopback"):
                    found[kind, family] = Attempt(self.lab[name], address, asked.port, asked.protocol)
        return found


@dataclass(slots=True)
class Relays:
    """portfwd's service, which can be stopped and started."""

    scene: Scene
    service: Publisher | None = None

    def start(self) -> None:
        if self.service is None:
            self.service = Publisher(self.scene.lab["host"])
            self.scene.restore()  # it publishes what records say by itself, but not before it answers

    def stop(self) -> None:
        if self.service is not None:
            self.service.end()
            self.service = None


def explained(text: str, asked: str) -> Explained:
    """Runs in the host."""
    return walk.explain(collect.collect(flows=True), question.parse(text), asked)


def places(answer: Explained) -> dict[Place, Way]:
    return {(way.kind, way.family): way for way in answer.ways}


def try_all(attempts: Mapping[Place, Attempt], awaited: Set[Place]) -> dict[Place, str]:
    """All attempts at once: a socket belongs to the namespace in which it was made, so that one process serves them all."""
    waiting: dict[socket.socket, Place] = {}
    for place, attempt in attempts.items():
        attempt.node.enter_network()
        kind = socket.SOCK_STREAM if attempt.protocol == "tcp" else socket.SOCK_DGRAM
        client = socket.socket(socket.AF_INET6 if ":" in attempt.address else socket.AF_INET, kind)
        client.setblocking(False)
        if attempt.source_port:
            client.bind(("", attempt.source_port))
        with contextlib.suppress(BlockingIOError, OSError):
            client.connect((attempt.address, attempt.port))
        waiting[client] = place
    return answers(waiting, awaited)


def answers(waiting: dict[socket.socket, Place], awaited: Set[Place]) -> dict[Place, str]:
    found = dict.fromkeys(waiting.values(), "")
    texts = dict.fromkeys(waiting, b"")
    unsent = set(waiting)
    begun = time.monotonic()
    while waiting and (left := begun + limit(waiting, awaited) - time.monotonic()) > 0:
        readable, writable, _ = select.select(waiting, unsent & waiting.keys(), [], left)
        for client in writable:
            unsent.discard(client)
            with contextlib.suppress(OSError):
                client.send(b"GET / HTTP/1.0\r\n\r\n")
        for client in readable:
            try:
                chunk = client.recv(4096)
            except OSError:
                chunk = b""
            texts[client] += chunk
            if not chunk or client.type == socket.SOCK_DGRAM:
                found[waiting.pop(client)] = texts[client].decode().rpartition("\r\n\r\n")[2].strip()
    return found


def limit(waiting: Mapping[socket.socket, Place], awaited: Set[Place]) -> float:
    return PATIENCE_S if awaited & set(waiting.values()) else SILENCE_S


__all__ = ["CLIENT", "HOST", "Attempt", "Place", "Scene", "places", "plain", "write"]
