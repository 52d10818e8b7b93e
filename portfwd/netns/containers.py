"""Containers by the names that people gave them: nerdctl, Docker and podman are asked.

    nerdctl   /var/lib/nerdctl/HASH/names/NAMESPACE/NAME holds the ID; CNI plugins know the container as NAMESPACE-ID
    Docker    GET /containers/NAME/json at its socket (Docker Engine API); it uses no CNI, so it is asked for the namespace, too
    podman    `podman inspect`, which takes up to a second: commands ask it, the service does not

Each answer is bounded in size and time. A runtime that is absent or silent counts as one that knows no container.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")  # of docker, nerdctl and podman; an ID is one, too
ID = re.compile(r"[0-9a-f]{64}")
DOCKER_SOCKETS = ("/run/docker.sock", "/var/run/docker.sock")
NERDCTL = "/var/lib/nerdctl"
DOCKER_S = 1.0
PODMAN_S = 10.0
SILENT_S = 30.0  # how long a server is not asked again after it did not answer: clients of the service wait meanwhile
ANSWER_MAX = 4 << 20  # bytes
ID_MAX = 256  # bytes of a file that holds one


@dataclass(frozen=True, slots=True)
class Found:
    """A container: its ID as CNI plugins get it and, if it runs, the path of its namespace and a pid inside."""

    id: str
    netns: str = ""
    pid: int = 0


def named(name: str) -> list[Found]:
    """The containers of all runtimes of this host with that name, or an ID that begins so."""
    if not NAME.fullmatch(name):
        return []
    found = [*nerdctl(name), docker(name), podman(name)]
    return [one for one in found if one is not None]


def nerdctl(name: str) -> Iterator[Found]:
    """The containers with that name, of each containerd and each of its namespaces."""
    for home in (NERDCTL, f"{os.environ.get('XDG_DATA_HOME') or os.path.expanduser('~/.local/share')}/nerdctl"):
        try:
            files = sorted(Path(home).glob(f"*/names/*/{name}"))
        except OSError:
            continue
        for file in files:
            try:
                with file.open("rb") as opened:
                    container_id = opened.read(ID_MAX).decode("ascii", "replace").strip()
            except OSError:
                continue
            if ID.fullmatch(container_id):
                yield Found(f"{file.parent.name}-{container_id}")


def docker(name: str) -> Found | None:
    """A running container of Docker, by name or ID."""
    if not NAME.fullmatch(name):
        return None
    for path in docker_sockets():
        raw = get(path, f"/containers/{name}/json")
        if isinstance(raw, dict):
            pid, key = inside(raw, "State").get("Pid"), inside(raw, "NetworkSettings").get("SandboxKey")
            found = running(raw.get("Id"), key if isinstance(key, str) else "", pid)
            if found is not None:
                return found
    return None


def inside(raw: dict[str, object], name: str) -> dict[str, object]:
    """A field that is an object; an empty one when it is not."""
    part = raw.get(name)
    return part if isinstance(part, dict) else {}


def docker_sockets() -> Iterator[str]:
    """The sockets where Docker may listen, first that of DOCKER_HOST, as its own client has it."""
    kind, _, path = os.environ.get("DOCKER_HOST", "").partition("://")
    if kind == "unix" and path:
        yield path
    seen = set()
    own = os.environ.get("XDG_RUNTIME_DIR")
    for candidate in (*DOCKER_SOCKETS, *([f"{own}/docker.sock"] if own else [])):
        real = os.path.realpath(candidate)
        if real not in seen and os.path.exists(real):
            seen.add(real)
            yield candidate


def running(container_id: object, netns: str, pid: object) -> Found | None:
    """A container with its namespace; None when it has no namespace now."""
    if not isinstance(container_id, str) or not ID.fullmatch(container_id):
        return None
    number = pid if isinstance(pid, int) and not isinstance(pid, bool) and pid > 0 else 0
    if not (netns.startswith("/") and os.path.exists(netns)):
        netns = f"/proc/{number}/ns/net" if number else ""
    return Found(container_id, netns, number) if netns else None


_silent: dict[str, float] = {}  # servers that did not answer, and until when they are left alone


def get(path: str, what: str) -> object:
    """The JSON of a server on a Unix socket; None for any other answer, or none in time."""
    end = time.monotonic() + DOCKER_S
    if _silent.get(path, 0.0) > end - DOCKER_S:
        return None
    try:
        head, _, body = exchange(path, what, end).partition(b"\r\n\r\n")
        answer: object = json.loads(body) if head.split()[1:2] == [b"200"] else None
    except TimeoutError:
        _silent[path] = end + SILENT_S
        return None
    except (OSError, ValueError, RecursionError):
        return None
    return answer


def exchange(path: str, what: str, end: float) -> bytes:
    """All that the server sends until it closes, as HTTP/1.0 has it. OSError; TimeoutError at `end` (monotonic clock)."""
    request = f"GET {what} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"
    text = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(end - time.monotonic())
        sock.connect(path)
        sock.sendall(request.encode("ascii"))
        while len(text) < ANSWER_MAX:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            piece = sock.recv(1 << 16)
            if not piece:
                break
            text += piece
    return text


def podman(name: str) -> Found | None:
    """A running container of podman, by name or ID."""
    program = shutil.which("podman")
    if program is None or not NAME.fullmatch(name):
        return None
    form = "{{.Id}} {{.State.Pid}} {{.NetworkSettings.SandboxKey}}"
    try:
        done = subprocess.run(  # noqa: S603  a name of plain characters, and no shell
            [program, "container", "inspect", "--format", form, name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PODMAN_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = done.stdout.decode("utf-8", "replace").split() if done.returncode == 0 else []
    if len(words) < 2 or not words[1].isdecimal() or len(words[1]) > 10:
        return None
    return running(words[0], words[2] if len(words) > 2 else "", int(words[1]))
