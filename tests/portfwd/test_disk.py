"""A disk that refuses: what a command could not do on it is not done here either, and the command can be repeated."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Lab

from cni_py import files
from portfwd.errors import PortfwdError
from portfwd.mapping import Mapping
from portfwd.service.registry import Registry
from portfwd.service.requests import Publish, Remove
from portfwd.service.store import Store
from tests.portfwd.publisher import SOCKET, await_socket, exchange, serving
from tests.portfwd.publisher import STATE as SERVED
from tests.portfwd.stage import started

HEX = "0123456789abcdef"
OWNER = f"attachment {HEX}"
STATE = "/run/disk"
FOLDER = Path(STATE, "mappings")
NOBODY = 65534
TAKEN = "for name in new kept; do mkdir -p taken/$name.json/by; done; mv mappings/kept.json away; mv taken/* mappings"
FAULTS = {  # what breaks the disk, what mends it, what is said, what cannot be done
    "read-only": (f"mount -o remount,ro {STATE}", f"mount -o remount,rw {STATE}", "Read-only file system", {*"prm"}),
    "full": ("dd if=/dev/zero of=filler bs=4k || :", "rm filler", "No space left on device", {*"pr"}),
    "replaced": ("mv mappings away; touch mappings", "rm mappings; mv away mappings", "Not a directory", {*"prm"}),
    "forbidden": ("", "", "Permission denied", {*"prm"}),
    "taken": (
        TAKEN,
        "rm -r mappings/new.json mappings/kept.json; mv away mappings/kept.json",
        "Is a directory",
        {*"prm"},
    ),
}


def mapping(name: str, port: int, target: int = 80, owner: str = "") -> Mapping:
    raw = {"id": name, "protocol": "tcp", "host_ips": ["127.0.0.1"], "first": port, "last": port, "owner": owner}
    return Mapping.from_json({**raw, "targets": [{"address": "127.0.0.1", "port": target}]})


KEPT, OTHER, CONTAINERS, NEW = (
    mapping("kept", 8080),
    mapping("other", 8081),
    mapping("owned", 8082, owner=OWNER),
    mapping("new", 8083),
)
ELSEWHERE = mapping("kept", 8080, 81)


def publish(registry: Registry, *mappings: Mapping, replace: bool = False) -> str:
    """What was wrong, "" for nothing."""
    return refusal(lambda: registry.publish(Publish(mappings, replace, may_fail=False), 0, []))


def remove(registry: Registry, *ids: str) -> str:
    return refusal(lambda: registry.remove(Remove(ids, "", 0.0), 0))


def refusal(command: Callable[[], object]) -> str:
    try:
        command()
    except PortfwdError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def disk() -> Iterator[None]:
    """A small one below STATE."""
    shell(f"mount -t tmpfs -o size=128k tmpfs {STATE}")
    try:
        yield
    finally:
        os.seteuid(0)
        shell(f"umount --lazy {STATE}")


def shell(script: str, uid: int = 0) -> None:
    """Break or mend the disk; then we are the user `uid`."""
    os.seteuid(0)
    subprocess.run(["sh", "-ec", f"mkdir -p {STATE}; cd {STATE}; {script}"], check=True, timeout=10)
    os.seteuid(uid)


def on_disk() -> set[Mapping]:
    return set(Store(STATE).load())


def with_a_broken_disk(breaks: str, mends: str, uid: int) -> dict[str, object]:
    """What every command says, and where disk and service disagree once the disk is mended."""
    attachment = Path(files.run_dir(), "attachments", HEX)
    attachment.mkdir(parents=True, exist_ok=True)  # it is there all the time, as when the container is connected again
    found: dict[str, object] = {}
    with disk():
        with started(STATE) as registry:
            assert not publish(registry, KEPT, OTHER, CONTAINERS)
            shell(breaks, uid)
            found["p"] = publish(registry, mapping("first", 8084), NEW)
            found["r"] = publish(registry, ELSEWHERE, replace=True)
            found["m"] = remove(registry, "other", "kept")
            found["served"] = set(registry.known().values()) - {CONTAINERS}
            found["DEL"] = registry.remove(Remove((), OWNER, 0.0), 0).get("notes", [])
            assert "owned" not in registry.known()
            shell(mends)
            registry.retry()
            found["differs"] = on_disk() ^ set(registry.known().values())
            again = [publish(registry, NEW), publish(registry, ELSEWHERE, replace=True)]
            found["again"] = [*again, remove(registry, *registry.known().keys() - {"kept"})]
        with started(STATE) as registry:
            found["restarted"] = set(registry.known().values())
        found["files"] = sorted(os.listdir(FOLDER))
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_command_that_a_disk_refuses_has_changed_nothing_and_can_be_repeated(machine: Lab, fault: str) -> None:
    breaks, mends, why, refused = FAULTS[fault]
    found = machine["host"].python(with_a_broken_disk, breaks, mends, NOBODY if fault == "forbidden" else 0)
    for command in "prm":
        assert bool(found[command]) == (command in refused), command
        assert command not in refused or "; nothing was changed, and the command can be repeated" in str(found[command])
    assert found["served"] == ({KEPT, OTHER} if "m" in refused else set())
    files_stay = fault not in ("full", "taken")  # of the container: its DEL goes on all the same
    assert found["DEL"] == (
        [f"the files of owned stay in {FOLDER} until they can be removed: {why}"] if files_stay else []
    )
    assert found["differs"] == set()
    assert found["again"] == ["", "", ""]
    assert found["restarted"] == {ELSEWHERE}
    assert found["files"] == ["kept.json"]


# A reload

SMALL = os.path.dirname(SOCKET)
FILL = f"dd if=/dev/zero of={SMALL}/filler bs=4k 2>/dev/null || :"


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def pid_and_ids() -> tuple[int, list[str]]:
    """Of the service that answers."""
    service = exchange(SOCKET, {"verb": "stats"})
    return service["service"]["pid"], sorted(service["mappings"])


def reloaded() -> tuple[dict[str, object], int, list[str]]:
    """The answer, the pid of who serves then, and what."""
    answer = exchange(SOCKET, {"verb": "reload"})
    await_socket(SOCKET)
    return answer, *pid_and_ids()


def reload_on_a_broken_disk(state: str) -> dict[str, object]:
    """The folder of the socket is full; then the folder of mappings is none."""
    found: dict[str, object] = {}
    first = pid_and_ids()[0]
    exchange(SOCKET, {"verb": "publish", "mappings": [KEPT.to_json()]})
    answer, second, found["full"] = reloaded()
    found["taken over"] = (answer.get("ok"), second != first)
    shell(f"mv {state}/mappings {state}/away; touch {state}/mappings")
    answer, third, found["unreadable"] = reloaded()
    found["refused"] = (answer.get("ok"), third == second)
    shell(f"rm {state}/mappings; mv {state}/away {state}/mappings")
    found["serves"] = listens(KEPT.first)
    return found


def test_a_reload_on_a_broken_disk_serves_on(machine: Lab) -> None:
    host = machine["host"]
    host.run(["sh", "-ec", f"mkdir -p {SMALL}; mount -t tmpfs -o size=64k tmpfs {SMALL}; {FILL}"], check=True)
    try:
        with serving(host):
            found = host.python(reload_on_a_broken_disk, SERVED)
    finally:
        host.run(["umount", "--lazy", SMALL], check=True)
    assert found == {
        "full": ["kept"],
        "taken over": (True, True),
        "unreadable": ["kept"],
        "refused": (False, True),
        "serves": True,
    }
