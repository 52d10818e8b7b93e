"""A person at the prompt of a lab's host, who runs cni-py-exec."""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from lab import Lab

import cni_py

HOME = Path(cni_py.__file__).resolve().parent.parent
NETWORK: dict[str, Any] = {
    "name": "lab",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8:42::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "loopback"},
    ],
}


@dataclass(slots=True)
class Hand:
    """A person at the host's prompt."""

    lab: Lab
    whose: str  # the plugins
    bin_dir: Path
    conf: Path  # of `network`
    network: dict[str, Any]

    def __call__(self, *words: str) -> CompletedProcess[str]:
        return self.lab["host"].run(
            [sys.executable, "-m", "cni_py.commands.exec", *words],
            env={"PYTHONPATH": str(HOME), "CNI_PATH": str(self.bin_dir)},
        )

    def well(self, *words: str) -> str:
        done = self(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def check(self, *words: str) -> None:
        """CHECK of published ports is content; not asked of Go's portmap, which looks for its IPv4 rules in ip6tables."""
        if self.whose == "ours":
            assert "everything is as ADD made it" in self.well("CHECK", *words)

    def json(self, *words: str) -> Any:
        return json.loads(self.well(*words, "--json"))

    def write(self, path: str, text: str) -> None:
        self.lab["host"].python(write, path, text)

    def define(self, name: str, **keys: object) -> None:
        """Another network in the conf directory."""
        self.write(f"/etc/cni/net.d/60-{name}.conflist", json.dumps({**self.network, "name": name, **keys}))

    def cache(self) -> list[str]:
        return self.lab["host"].python(names, "/var/lib/cni/results")


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def names(path: str) -> list[str]:
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def links(lab: Lab, node: str) -> list[str]:
    return sorted(lab[node].python(link_names))


def link_names() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def read(path: str) -> str:
    return Path(path).read_text()


def script(path: Path, body: str) -> None:
    """A plugin in sh."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
