"""The image of the test containers: busybox-static and a web server that tells who asked whom.

    GET /  ->  one line: the server's name, the address it was asked from, and its own address

A page per port is served by busybox httpd; the answer comes from a CGI script, which finds its own end of the
connection in /proc/net/tcp6 (httpd tells a script the peer's address only). The first process is a
shell that ends on SIGTERM. The archive is a docker-archive, which `ctr image import` and `podman load` both take; its bytes
depend on busybox alone.
"""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import os
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

NAME = "cni-py.test/who:1"

INIT = """#!/bin/sh
# init NAME PORT...: serve NAME on every PORT until told to stop
trap 'exit 0' TERM INT
echo "$1" >/name
shift
for port; do
    httpd -f -p "$port" -h /www &
done
while :; do
    sleep 3600 &
    wait $!
done
"""

# One line of /proc/net/tcp6 (Documentation/networking/proc_net_tcp.rst) as "name remote local", all else is Python's.
WHO = """#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
read -r name </name
port=$(printf '%04X' "$REMOTE_PORT")
while read -r slot local remote state rest; do
    case "$remote $state" in *":$port 01") echo "$name $remote $local"; exit ;; esac
done </proc/net/tcp6
"""


@dataclass(frozen=True)
class Answer:
    """What the server said: its name, the source address it saw, and its own address."""

    name: str
    peer: str
    local: str

    @classmethod
    def parse(cls, line: str) -> Answer:
        name, remote, local = line.split()
        return cls(name, address_of(remote), address_of(local))


def address_of(end: str) -> str:
    """Return the address of an end in /proc/net/tcp6: four words in the machine's order; mapped addresses as IPv4."""
    digits = end.partition(":")[0]
    words = [int(digits[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, 32, 8)]
    address = ipaddress.IPv6Address(b"".join(words))
    return str(address.ipv4_mapped or address)


def write_archive(busybox: Path, archive: Path) -> None:
    layer = make_layer(busybox.read_bytes())
    layer_id = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "config": {"Entrypoint": ["/init"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_id}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [NAME], "Layers": [f"{layer_id}/layer.tar"]}]).encode()
    with tarfile.open(archive, "w") as tar:
        for name, content in ((f"{layer_id}/layer.tar", layer), (config_name, config), ("manifest.json", manifest)):
            add_file(tar, name, content)


def make_layer(busybox: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in ("bin", "www", "www/cgi-bin"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        add_file(tar, "bin/busybox", busybox, 0o755)
        for applet in ("sh", "httpd", "sleep", "true"):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        add_file(tar, "init", INIT.encode(), 0o755)
        # busybox httpd's page for a folder without index.html
        add_file(tar, "www/cgi-bin/index.cgi", WHO.encode(), 0o755)
    return buffer.getvalue()


def add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
