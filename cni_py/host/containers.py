"""The containers of this host, as its runtimes tell: containerd, CRI-O, podman, docker.

Each runtime answers, is not there, or does not answer, which is a gap: its containers may run all the same, since none of these
runtimes ends them when it ends. What is asked, with time limits, and without effect on the runtime:

    containerd  the lists of its gRPC API, in every namespace of it: containers, tasks, sandboxes, leases
    CRI-O       the lists of the Container Runtime Interface
    podman      `podman ps --all`; it has no service
    docker      GET /containers/json on its socket

A runtime writes an ID down before it connects the container: containerd's CRI plugin takes a lease with the ID of the sandbox
(RunPodSandbox), CRI-O and podman enter it in their storage, nerdctl makes the container first. `Answers.known` has these, too;
so an ID that is in none of the answers, and was seen before they were asked for, is of a container that is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from cni_py.host import grpc
from cni_py.host.grpc import Message, NoAnswer
from cni_py.host.model import Container, Finding
from cni_py.kernel.processes import read

CONTAINERD = (
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/docker/containerd/containerd.sock",
)
# Of containerd's state: a folder for each namespace, in it one for each task. /run ends with the boot.
TASKS = "/run/containerd/io.containerd.runtime.v2.task"
CRIO = "/run/crio/crio.sock"
DOCKER = "/run/docker.sock"
STORAGE = (
    "/var/lib/containers/storage",
    "/run/containers/storage",
)  # of podman and CRI-O, unless a file says otherwise
STORAGE_CONF = ("/etc/containers/storage.conf", "/usr/share/containers/storage.conf")  # containers-storage.conf(5)
PROGRAM_S = 10.0  # podman waits for its locks
ANSWER_MAX = 1 << 26  # bytes
TASK_STATES = ("unknown", "created", "running", "stopped", "paused", "pausing")  # containerd.v1.types.Status
CRI_STATES = ("created", "running", "exited", "unknown")  # runtime.v1.ContainerState
DOCKERS = "moby"  # docker's namespace in containerd; docker itself knows more of these containers


@dataclass(frozen=True, slots=True)
class Answers:
    """What the runtimes said. `answered`: their names. `known`: every ID they know, also of containers in the making."""

    containers: tuple[Container, ...] = ()
    gaps: tuple[Finding, ...] = ()
    answered: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()

    @property
    def silent(self) -> frozenset[str]:
        """The runtimes that are there and do not answer."""
        return frozenset(gap.subject for gap in self.gaps)


Answer = tuple[list[Container], set[str]]  # containers, and IDs that are known besides


def containers() -> Answers:
    """Ask every runtime. It takes some milliseconds for those with a service; podman takes 0.1 s."""
    found: dict[str, Container] = {}
    known: set[str] = set()
    gaps: list[Finding] = []
    answered = set()
    for name, ask in RUNTIMES:
        try:
            answer = ask()
        except (NoAnswer, OSError, ValueError, HTTPException, subprocess.SubprocessError) as error:
            gaps.append(gap(name, error))
            continue
        if answer is None:
            continue
        answered.add(name)
        listed, more = answer
        known.update(more)
        for one in listed:
            found[one.id] = one
            known.update(cni_ids(one))
    return Answers(tuple(found.values()), tuple(gaps), frozenset(answered), frozenset(known))


def gap(name: str, error: Exception) -> Finding:
    """The sentence for a runtime that does not answer."""
    what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Finding(
        "note",
        "not-seen",
        name,
        f"{name} does not answer: {what or type(error).__name__}",
        why="its containers may run all the same; whether one of them exists cannot be said",
    )


def cni_ids(container: Container) -> tuple[str, ...]:
    """The IDs under which a CNI plugin may know the container: nerdctl puts containerd's namespace before it."""
    return (container.id, f"{container.namespace}-{container.id}") if container.namespace else (container.id,)


def containerd() -> Answer | None:
    """containerd, with all its sockets (k3s and others bring their own)."""
    paths = list(sockets(CONTAINERD))
    if not paths:
        if any(os.scandir(folder.path) for folder in folders(TASKS)):
            raise NoAnswer("it is not running, and has left containers running")
        return None
    others = running("containerd")[len(paths) :]
    if others:
        raise NoAnswer(f"there is another one (process {others[-1]}), with a socket at a place that is not known")
    found: list[Container] = []
    known: set[str] = set()
    for path in paths:
        for space in Message(grpc.call(path, "/containerd.services.namespaces.v1.Namespaces/List")).all(1):
            listed, more = in_namespace(path, space.text(1))
            found += listed
            known |= more
    return found, known


def running(program: str) -> list[int]:
    """The processes of that name on this host: in our network namespace, since a container may be a host by itself (kind)."""
    own = os.readlink("/proc/self/ns/net")
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        try:
            if read(f"/proc/{pid}/comm") == f"{program}\n" and os.readlink(f"/proc/{pid}/ns/net") == own:
                found.append(pid)
        except OSError:
            continue  # it has ended, or is not ours to look at
    return found


def in_namespace(path: str, name: str) -> Answer:
    """The containers of one of containerd's namespaces. NoAnswer, ValueError."""

    def ask(method: str, request: bytes = b"") -> Message:
        return Message(grpc.call(path, f"/containerd.services.{method}", request, (("containerd-namespace", name),)))

    tasks = {task.text(1) or task.text(2): task for task in ask("tasks.v1.Tasks/List").all(1)}
    known = {lease.text(1) for lease in ask("leases.v1.Leases/List").all(1)}
    try:
        known |= {sandbox.text(1) for sandbox in ask("sandbox.v1.Store/List").all(1)}
    except NoAnswer:
        pass  # containerd 1.6 has no sandboxes of this kind
    found = []
    for one in ask("containers.v1.Containers/List").all(1):
        task = tasks.get(one.text(1))
        state = "created" if task is None else word(TASK_STATES, task.number(4))
        labels = one.map(2)
        found.append(
            Container(
                id=one.text(1),
                runtime="docker" if name == DOCKERS else "containerd",
                name=name_in(labels),
                image=one.text(3),
                pid=task.number(3) if task is not None else 0,
                running=state in ("running", "paused", "pausing"),
                pod=labels.get("io.kubernetes.pod.name", ""),
                networks=networks_in(labels.get("nerdctl/networks", "")),
                namespace=name,
                state=state,
            )
        )
    return found, known


def name_in(labels: dict[str, str]) -> str:
    """A container's name: nerdctl's, or "namespace/pod" and "namespace/pod/container" of Kubernetes."""
    if own := labels.get("nerdctl/name"):
        return own
    kube = [labels.get(f"io.kubernetes.{part}.name", "") for part in ("pod", "container")]
    return "/".join(filter(None, (labels.get("io.kubernetes.pod.namespace", ""), *kube)))


def networks_in(label: str) -> tuple[str, ...]:
    """nerdctl's label: a list in JSON."""
    try:
        names = json.loads(label) if label else []
    except ValueError:
        return ()
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def crio() -> Answer | None:
    """CRI-O."""
    for path in sockets((CRIO,)):
        found = []
        pods = {}
        for pod in Message(grpc.call(path, "/runtime.v1.RuntimeService/ListPodSandbox")).all(1):
            pods[pod.text(1)] = pod.one(2)
            name = f"{pod.one(2).text(3)}/{pod.one(2).text(1)}"
            ready = pod.number(3) == 0  # SANDBOX_READY
            state = "running" if ready else "exited"
            found.append(Container(pod.text(1), "cri-o", name, running=ready, pod=pod.one(2).text(1), state=state))
        for one in Message(grpc.call(path, "/runtime.v1.RuntimeService/ListContainers")).all(1):
            pod = pods.get(one.text(2), Message(b""))
            state = word(CRI_STATES, one.number(6))
            name = "/".join(filter(None, (pod.text(3), pod.text(1), one.one(3).text(1))))
            running = state == "running"
            found.append(
                Container(one.text(1), "cri-o", name, one.one(4).text(1), 0, running, pod.text(1), state=state)
            )
        return found, set(stored())
    return None


def podman() -> Answer | None:
    """podman of the same user. Where it never ran it is not run, as it would make its folders."""
    program = shutil.which("podman")
    if program is None or not any(map(os.path.isdir, storage())):
        return None
    command = [program, "ps", "--all", "--format", "json"]
    done = subprocess.run(  # noqa: S603  # no word of it is from outside
        command, capture_output=True, timeout=PROGRAM_S, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        raise NoAnswer(done.stderr.decode("utf-8", "replace").strip().partition("\n")[0] or "it failed")
    found = [
        Container(
            id=str(one.get("Id", "")),
            runtime="podman",
            name=", ".join(strings(one.get("Names"))),
            image=str(one.get("Image", "")),
            pid=integer(one.get("Pid")),
            running=one.get("State") in ("running", "paused"),
            pod=str(one.get("PodName") or ""),
            networks=strings(one.get("Networks")),
            state=str(one.get("State", "")),
        )
        for one in objects(done.stdout or b"[]")
    ]
    return found, set(stored())


def docker() -> Answer | None:
    """docker: its HTTP API, without a version, as the oldest and the newest understand."""
    for path in sockets((DOCKER,)):
        with LocalHTTP(path) as http:
            http.request("GET", "/containers/json?all=1")
            reply = http.getresponse()
            text = reply.read(ANSWER_MAX)
            if reply.status != 200:
                raise NoAnswer(f"it answers {reply.status}")
        return [of_docker(one) for one in objects(text)], set()
    return None


def of_docker(one: dict[str, object]) -> Container:
    """An entry of docker's list. It has no pid: that takes a request for each container."""
    settings = one.get("NetworkSettings")
    networks = settings.get("Networks") if isinstance(settings, dict) else None
    return Container(
        id=str(one.get("Id", "")),
        runtime="docker",
        name=", ".join(name.lstrip("/") for name in strings(one.get("Names"))),
        image=str(one.get("Image", "")),
        running=one.get("State") in ("running", "paused", "restarting"),
        networks=tuple(networks) if isinstance(networks, dict) else (),
        state=str(one.get("State", "")),
    )


class LocalHTTP(HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=grpc.CALL_S)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def __enter__(self) -> LocalHTTP:
        return self

    def __exit__(self, *_ended: object) -> None:
        self.close()


RUNTIMES: tuple[tuple[str, Callable[[], Answer | None]], ...] = (
    ("containerd", containerd),
    ("cri-o", crio),
    ("podman", podman),
    ("docker", docker),  # last: it knows the names of those that containerd lists as "moby"
)


def stored() -> Iterator[str]:
    """The IDs in the storage that CRI-O and podman share: a container is entered there before it is connected."""
    for top in storage():
        for folder in folders(top):
            if folder.name.endswith("-containers"):
                for name in ("containers.json", "volatile-containers.json"):
                    try:
                        text = Path(folder.path, name).read_bytes()
                    except FileNotFoundError:
                        continue
                    yield from (str(one.get("id", "")) for one in objects(text or b"[]"))


def storage() -> tuple[str, ...]:
    """The folders in which podman and CRI-O keep containers: the usual ones, and those of the configuration that counts."""
    import tomllib

    for path in (os.environ.get("CONTAINERS_STORAGE_CONF", ""), *STORAGE_CONF):
        try:
            section = tomllib.loads(Path(path).read_text()).get("storage") if path else None
        except (OSError, ValueError):
            continue
        if isinstance(section, dict):
            stated = (section.get("graphroot"), section.get("runroot"))
            return (*STORAGE, *(folder for folder in stated if isinstance(folder, str) and folder))
    return STORAGE


def sockets(paths: Iterable[str]) -> Iterator[str]:
    """Those of the paths that are sockets."""
    for path in paths:
        try:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                yield path
        except (FileNotFoundError, NotADirectoryError):
            continue


def folders(path: str) -> list[os.DirEntry[str]]:
    """The folders in a folder; none if there is none."""
    try:
        return [entry for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def objects(text: bytes) -> list[dict[str, object]]:
    """The objects of a list in JSON. ValueError."""
    listed = json.loads(text)
    if listed is None:
        return []  # podman's word for none
    if not isinstance(listed, list):
        raise ValueError("its answer is no list")
    return [one for one in listed if isinstance(one, dict)]


def strings(value: object) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def word(words: tuple[str, ...], number: int) -> str:
    return words[number] if number < len(words) else "unknown"
