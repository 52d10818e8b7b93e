"""Replay recorded cases: `replay.py DIRECTORY`, cases in on stdin, what differs out on stdout, one JSON list each.

Run as root in namespaces of its own (`unshare --net --mount`). Each world (a case, or all cases of one group in their order) is
a child with a new network namespace for the host, one for each container that its cases name, and with its own empty
/run and /var/lib; /etc is read only, or where a case writes there a layer over it. All of it ends with the child.

Most cases are run as the warm service runs a call: in a child of an interpreter that has all modules loaded, which saves most
of a call's processor time. One in EXECUTED is run by its executable.

A case:

    env      the whole environment besides PATH      stdin     an object, or text where it is no plain JSON
    setup    shell commands run before, on the host  exit      the exit status
    stdout   an object, or the text printed          code      of the error object printed
    volatile JSON paths in stdout whose values may be anything
    files    all files below {DATADIR} afterwards    probes    shell command run afterwards -> its lines
    ruleset  command that lists iptables' rules, and the file in rulesets/ that has its lines

{RESULT} in stdin is the result of the last ADD of the group; the other placeholders are those of World.names.
"""

from __future__ import annotations

import ctypes
import difflib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cni_py import run
from cni_py.serve import package

Case = dict[str, Any]

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
MS_RDONLY, MS_REMOUNT, MS_BIND = 0x1, 0x20, 0x1000  # linux/mount.h
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
ETC_CNI = "/etc/cni/"
TIMEOUT_S = 30
SETTLED_S = 5.0
STATE = re.compile(r"state [A-Z]+")
EXECUTED = 8
ANY_FAILURE = 999  # what Go answers for most failures
# What ours say instead, where the specification has a code (cni_py/errors.py); no client minds
SPECIFIC = (
    2,
    4,
    5,
    6,
    7,
)
RULESETS = Path(__file__).with_name("rulesets")
# Ours alone: without them what goes to [::1] is led to a container, and gets no answer (ports/iptables_rules.py)
BEYOND = [f"-A CNI-HOSTPORT-DNAT -d {destination} -j RETURN" for destination in ("::1/128", "fe80::/10")]
COUNTERS = re.compile(r"\[\d+:\d+\]")
HOST_VETH = re.compile(r"\bveth[0-9a-f]{8}\b")

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """A system call by its libc function."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def mount_tmpfs(path: str) -> None:
    call("mount", b"tmpfs", path.encode(), b"tmpfs", 0, None)


def mount_layer(path: str, folder: str) -> None:
    """Let changes below `path` go to `folder`, which is made."""
    for part in ("", "/upper", "/work"):
        os.mkdir(folder + part)
    options = f"lowerdir={path},upperdir={folder}/upper,workdir={folder}/work"
    call("mount", b"overlay", path.encode(), b"overlay", 0, options.encode())


class World:
    """Namespaces and folders of one group of cases; made in a process that ends with it."""

    def __init__(self, directory: str, texts: str) -> None:
        call("unshare", CLONE_NEWNS | CLONE_NEWNET)
        mount_tmpfs("/run")
        mount_tmpfs("/var/lib")
        for folder in ("/run/netns", "/run/data", "/run/scratch"):
            os.mkdir(folder)
        if ETC_CNI in texts:
            mount_layer("/etc", "/run/layer")
        self.names = {
            "{HOSTNS}": "/run/netns/host",
            "{NETNS}": "/run/netns/container",
            "{NETNS2}": "/run/netns/container2",
            "{GONE}": "/run/netns/gone",
            "{DATADIR}": "/run/data",
            "{TMP}": "/run/scratch",
            "{CNI_PATH}": directory,
        }
        self.directory = directory
        self.result: object = None
        self.pin("{HOSTNS}")
        host = os.open("/proc/self/ns/net", os.O_RDONLY)
        for name in ("{NETNS}", "{NETNS2}"):
            if name in texts:
                call("unshare", CLONE_NEWNET)
                self.pin(name)
                call("setns", host, CLONE_NEWNET)
        os.close(host)

    def pin(self, name: str) -> None:
        """Keep the namespace that this process is in as a file; addresses in it are usable at once."""
        Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
        Path(self.names[name]).touch()
        call("mount", b"/proc/self/ns/net", self.names[name].encode(), None, MS_BIND, None)

    def real(self, value: Any) -> Any:
        """`value` with what the placeholders in it stand for here."""
        if value == "{RESULT}":
            return self.result
        if isinstance(value, str):
            for name, text in self.names.items():
                value = value.replace(name, text)
            return value
        if isinstance(value, list):
            return [self.real(item) for item in value]
        if isinstance(value, dict):
            return {self.real(key): self.real(item) for key, item in value.items()}
        return value

    def replay(self, plugin: str, case: Case) -> list[str]:
        """Run one case; what differs from the record."""
        for command in case.get("setup", ()):
            self.shell(command)
        stdin = self.real(case["stdin"])
        text = (stdin if isinstance(stdin, str) else json.dumps(stdin, ensure_ascii=False)).encode()
        way = executed if case["number"] % EXECUTED == 0 else called
        done = way(f"{self.directory}/{plugin}", text, {"PATH": PATH, **self.real(case["env"])})
        answer = as_json(done.stdout.decode())
        if case["env"].get("CNI_COMMAND") == "ADD" and done.returncode == 0:
            self.result = as_json(done.stdout.decode())  # its own copy: compare_output() masks
        found = list(differences("exit", case["exit"], done.returncode))
        found += self.compare_output(case, answer)
        if "files" in case:
            found += differences("files", self.real(case["files"]), files_below(self.names["{DATADIR}"]))
        for command, lines in self.real(case.get("probes", {})).items():
            found += differences(command, lines, self.probed(command, lines))
        if "ruleset" in case:
            recorded = (RULESETS / case["ruleset"]["file"]).read_text().split("\n")
            now = COUNTERS.sub("[0:0]", self.shell(case["ruleset"]["command"])).split("\n")
            found += difflib.unified_diff(rules_of(recorded), rules_of(now), "recorded", "now", lineterm="", n=0)
        if found and done.stderr:
            found.append(f"stderr: {done.stderr.decode(errors='replace')[:500]}")
        return found

    def probed(self, command: str, recorded: list[str]) -> object:
        """What a command shows; where that is another state of a link, when the kernel has come to it: it does so by itself."""
        end = time.monotonic() + SETTLED_S
        while True:
            now = host_veths_masked(self.shell(command).split("\n"))
            same = STATE.sub("", json.dumps(now)) == STATE.sub("", json.dumps(recorded))
            if now == recorded or not same or time.monotonic() > end:
                return now
            time.sleep(0.02)

    def compare_output(self, case: Case, answer: object) -> Iterable[str]:
        if "code" in case:
            code = answer.get("code") if isinstance(answer, dict) else None
            as_recorded = code == case["code"] or (case["code"] == ANY_FAILURE and code in SPECIFIC)
            return [] if as_recorded else [f"code: recorded {case['code']}, now {code}: {answer}"]
        recorded = self.real(case["stdout"])
        for path in case.get("volatile", ()):
            mask(recorded, path)
            mask(answer, path)
        return differences("stdout", recorded, host_veths_masked(answer))

    def shell(self, command: str) -> str:
        done = subprocess.run(
            ["/bin/sh", "-c", self.real(command)],
            env={"PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
        return "\n".join(line.rstrip() for line in done.stdout.decode().rstrip("\n").split("\n"))


def executed(path: str, text: bytes, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """Run an executable."""
    return subprocess.run([path], input=text, env=env, capture_output=True, timeout=TIMEOUT_S, check=False)


def called(path: str, text: bytes, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """Run the same plugin in a child of this process."""
    streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    os.write(streams[0], text)
    os.lseek(streams[0], 0, os.SEEK_SET)
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(TIMEOUT_S)
            for number, fd in enumerate(streams):
                os.dup2(fd, number)
            os.environ.clear()
            os.environ.update(env)
            sys.argv = [path]
            run.main()  # which ends the process
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    said = []
    for fd in streams[1:]:
        os.lseek(fd, 0, os.SEEK_SET)
        with open(fd, "rb") as file:
            said.append(file.read())
    os.close(streams[0])
    return subprocess.CompletedProcess([path], os.waitstatus_to_exitcode(status), *said)


def as_json(text: str) -> object:
    """The object printed, else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def rules_of(lines: list[str]) -> list[str]:
    """Without comments, empty lines and BEYOND."""
    return [line for line in lines if line and not line.startswith("#") and line not in BEYOND]


def host_veths_masked(value: object) -> object:
    return json.loads(HOST_VETH.sub("vethXXXXXXXX", json.dumps(value)))


def mask(value: Any, path: str) -> None:
    """Replace what is at `path` ($.a[1].b) if it is there: its presence is all that counts."""
    *parents, last = [int(part) if part.isdigit() else part for part in re.findall(r"\w+", path)]
    try:
        for part in parents:
            value = value[part]
        value[last] = f"<{last}>" if value[last] else value[last]
    except (KeyError, IndexError, TypeError):
        return


def differences(what: str, recorded: object, now: object) -> Iterable[str]:
    if recorded != now:
        yield f"{what}: recorded {json.dumps(recorded)}, now {json.dumps(now)}"


def files_below(top: str) -> dict[str, str]:
    """Path below `top` -> content, of every file."""
    return {
        str(path.relative_to(top)): path.read_bytes().decode(errors="replace")
        for path in Path(top).rglob("*")
        if path.is_file()
    }


def replay_group(directory: str, plugin: str, cases: list[Case]) -> list[list[str]]:
    """Run cases in a world of their own, in a child process; for each, what differs."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        found: list[list[str]] = []
        try:
            world = World(directory, json.dumps(cases))
            found += (world.replay(plugin, case) for case in cases)
        except BaseException as error:  # noqa: BLE001  whatever it is, the parent reports it
            found += [[f"replay.py: {error!r}"]] * (len(cases) - len(found))
        finally:
            with open(writing, "w") as pipe:
                json.dump(found, pipe)
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        answer: list[list[str]] = json.load(pipe)
    os.waitpid(child, 0)
    return answer


def main(directory: str, plugin: str) -> None:
    """Replay the cases on stdin; print what differs, case by case."""
    call("mount", b"/etc", b"/etc", None, MS_BIND, None)
    call("mount", None, b"/etc", None, MS_BIND | MS_REMOUNT | MS_RDONLY, None)
    groups: dict[str, list[Case]] = {}
    package.load()
    for number, case in enumerate(json.load(sys.stdin)):
        case["number"] = number
        groups.setdefault(case.get("group") or f"alone: {case['name']}", []).append(case)
    found: dict[str, list[str]] = {}
    for cases in groups.values():
        answers = replay_group(directory, plugin, cases)
        found.update((case["name"], answer) for case, answer in zip(cases, answers, strict=True))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
