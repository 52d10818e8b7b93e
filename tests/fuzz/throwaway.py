"""Runs fuzzed executions, each on a host of its own: functions to give to Node.python(), so they run inside a lab.

Every execution gets new network namespaces (host and container) and a mount namespace in which everything is read-only
but /proc and fresh /run and /var/lib/cni: whatever path it is made to use, it changes nothing that is not thrown away.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import snapshot
from keeper import CLONE_NEWNET, CLONE_NEWNS, MS_BIND, MS_PRIVATE, MS_REC, checked, libc, mount, setns
from node import die_with_parent
from pyroute2 import IPRoute

from tests.fuzz.cases import (
    DEVICE,
    DEVICE_MAC,
    HOST_VETH,
    IFNAME,
    LAN,
    NETNS,
    ON_A_PAIR,
    OTHER,
    POOL,
    Case,
    environment,
)

CALL_S = 20.0
CODES = {1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51, 999, *range(100, 128)}
MOUNT_ATTR_RDONLY, AT_RECURSIVE, AT_FDCWD = 0x1, 0x8000, -100  # linux/mount.h, linux/fcntl.h
SYS_MOUNT_SETATTR = 442  # asm-generic/unistd.h
# Left by design: see tests/faults/conftest.py; the locks.
PASSING = ("/run/cni-py/lock", "/run/cni-py/host-local", "/last_reserved_ip.", "/lock", "/run/netns")
SUCCEEDED, FAILED = "succeeded", "failed"


@dataclass(frozen=True)
class Verdict:
    """What is wrong with an execution ("" if nothing), and whether it succeeded: a fuzz in which all fail tests little."""

    complaint: str
    outcome: str


def judge_all(cases: Sequence[Case], processes: int = 2) -> list[Verdict]:
    """Judge every case, in a few processes."""
    pipes = []
    for number in range(processes):
        read, write = os.pipe()
        if os.fork() == 0:
            tell(write, lambda share=cases[number::processes]: [isolated(case) for case in share])  # type: ignore[misc]
        os.close(write)
        pipes.append(read)
    verdicts: list[Verdict | None] = [None] * len(cases)
    for number, read in enumerate(pipes):
        verdicts[number::processes] = answer(read)
    for _ in pipes:
        os.wait()
    return [verdict for verdict in verdicts if verdict is not None]


def isolated(case: Case) -> Verdict:
    """Judge one case in a child, which takes its namespaces with it."""
    read, write = os.pipe()
    if os.fork() == 0:
        tell(write, lambda: judge(case))
    os.close(write)
    verdict: Verdict = answer(read)
    os.wait()
    return verdict


def tell(write: int, call: Callable[[], object]) -> None:
    """The whole of a child: answer, and end."""
    try:
        die_with_parent()
        with open(write, "wb") as pipe:
            pipe.write(pickle.dumps(call()))
    except BaseException as error:  # noqa: BLE001  there is nobody above
        import traceback

        os.write(2, "".join(traceback.format_exception(error)).encode())
    finally:
        os._exit(0)


def answer(read: int) -> Any:
    with open(read, "rb") as pipe:
        return pickle.loads(pipe.read())


def judge(case: Case) -> Verdict:
    container, host = new_host()
    lay_out(case)
    before = state(container, host)
    try:
        done = run(case.program, case.environment, case.given)
    except subprocess.TimeoutExpired:
        return Verdict(f"took longer than {CALL_S} s", FAILED)
    complaint = complaint_about(done)
    if done.returncode and not complaint:
        complaint = difference(case, before, state(container, host))
    if complaint:
        said = (done.stdout + done.stderr).decode(errors="replace")
        complaint += f"\n  status {done.returncode}, {said}"
    return Verdict(complaint, FAILED if done.returncode else SUCCEEDED)


def run(program: str, variables: dict[str, str], given: bytes) -> subprocess.CompletedProcess[bytes]:
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run([program], env=environment, input=given, capture_output=True, timeout=CALL_S, check=False)


def complaint_about(done: subprocess.CompletedProcess[bytes]) -> str:
    """Against the protocol."""
    if b"Traceback" in done.stdout + done.stderr:
        return "an unhandled exception"
    if done.returncode not in (0, 1):
        return "an exit status that is neither 0 nor 1"
    try:
        told = json.loads(done.stdout) if done.stdout or done.returncode else {}
    except ValueError:
        return "stdout is no JSON"
    if not isinstance(told, dict):
        return "stdout is no JSON object"
    if not done.returncode:
        return ""
    if (
        type(told.get("code")) is not int
        or told["code"] not in CODES
        or not isinstance(told.get("msg"), str)
        or not told["msg"]
    ):
        return "not an error object of the specification"
    return "an internal error" if told["msg"].startswith("internal error") else ""


# The host of one case


def new_host() -> tuple[int, int]:
    """Leave the lab's host for an empty one; returns descriptors of the container's network namespace and of ours."""
    checked(libc.unshare(CLONE_NEWNS | CLONE_NEWNET), "unshare")
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    read_only = struct.pack("=4Q", MOUNT_ATTR_RDONLY, 0, 0, 0)  # struct mount_attr
    checked(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, read_only, len(read_only)), "mount_setattr")
    mount("proc", "/proc", "proc")
    for folder in ("/run", "/var/lib/cni"):
        mount("tmpfs", folder, "tmpfs")
    os.mkdir("/run/netns")
    with open(NETNS, "x"):
        mount("/proc/thread-self/ns/net", NETNS, flags=MS_BIND)
    checked(libc.unshare(CLONE_NEWNET), "unshare")
    return os.open(NETNS, os.O_RDONLY), os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def lay_out(case: Case) -> None:
    """What the host has before: another container's reservation, perhaps an attachment, and the spoiled files."""
    os.makedirs(POOL)
    os.mkfifo("/run/fifo")
    lay_links(os.path.basename(case.program))
    for path, content in (
        (f"{POOL}/192.0.2.200", f"{OTHER}\r\n{IFNAME}"),
        ("/run/resolv.conf", "nameserver 192.0.2.53\n"),
    ):
        with open(path, "x") as file:
            file.write(content)
    if case.attach is not None:
        bin_dir = os.path.dirname(case.program)
        run(case.program, environment("ADD", bin_dir), json.dumps(case.attach).encode())
    for path, spoiled in case.files.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as raw:
            raw.write(spoiled)


def lay_links(plugin: str) -> None:
    """What the plugin of the case takes for granted."""
    with IPRoute() as ipr:
        if plugin == "macvlan":
            ipr.link("add", ifname=LAN, kind="bridge", state="up")
        if plugin == "host-device":
            ipr.link("add", ifname=DEVICE, kind="veth", address=DEVICE_MAC, peer={"ifname": "spare1"})
        if plugin in ON_A_PAIR:
            ipr.link("add", ifname=HOST_VETH, kind="veth", state="up", peer={"ifname": IFNAME, "net_ns_fd": NETNS})


def state(container: int, host: int) -> dict[str, set[str]]:
    """What a failed call may not add to. Bridges, forwarding and the empty tables are made to stay."""
    found = {"host": links()}
    setns(container, CLONE_NEWNET)
    found["container"] = links()
    setns(host, CLONE_NEWNET)
    found["elements"] = elements()
    found["files"] = files("/run") | files("/var/lib/cni")
    return found


def links() -> set[str]:
    messages = snapshot.dump(snapshot.RTM_GETLINK)
    names = {link["index"]: link.get("ifname") for link in messages}
    known = {name: link for name, link in snapshot.links(messages, names).items() if link["kind"] != "bridge"}
    addresses = {entry for entry in snapshot.addresses(names) if entry.split()[0] in known}
    return addresses | {f"{name} {link['kind']} {link['alias']} {link['master']}" for name, link in known.items()}


def elements() -> set[str]:
    """All elements but the one that tells the version of our tables' layout, which is part of them."""
    listed = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, timeout=CALL_S, check=True)
    found = set()
    for entry in json.loads(listed.stdout)["nftables"]:
        for kind in ("set", "map"):
            held = entry.get(kind, {"name": "layout"})
            if held["name"] != "layout":
                found |= {f"{held['name']} {json.dumps(element)}" for element in held.get("elem", [])}
    return found


def files(top: str) -> set[str]:
    found = set()
    for folder, _, names in os.walk(top):
        for path in (os.path.join(folder, name) for name in names):
            if not any(part in path for part in PASSING) and os.path.isfile(path):
                with open(path, "rb") as file:
                    found.add(f"{path} {file.read(200)!r}")
    return found


def difference(case: Case, before: dict[str, set[str]], after: dict[str, set[str]]) -> str:
    """Against all or nothing: what a failed call added; or took away, where it is not DEL or GC, and not what was spoilt."""
    lines = []
    for what, had in before.items():
        has = after[what]
        # A DEL or GC that fails has given the device back all the same
        back = {entry for entry in has if case.verb in ("DEL", "GC") and entry.startswith(f"{DEVICE} ")}
        lines += [f"left in {what}: {entry}" for entry in sorted(has - had - back)]
        gone = sorted(had - has) if case.verb not in ("DEL", "GC") else []
        lines += [f"lost from {what}: {entry}" for entry in gone if entry.split(" ")[0] not in case.files]
    return "\n".join(lines)
