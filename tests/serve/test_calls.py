"""Calls through the warm service are as without it: results, errors, exit status, streams, and where they take place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab import Lab
from runtime import Network, Outcome, Plugins, mapping

from tests.faults.crowd import Job, run_all
from tests.warm import COMMAND, Warm, wait_until

pytestmark = pytest.mark.xdist_group("serve calls")  # one host for all

LOOPBACK: dict[str, object] = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}
BRIDGED: dict[str, object] = {"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": {"type": "other-ipam"}}
ENVIRONMENT = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "lo"}
AT_ONCE = 40
# What an IPAM plugin of others sees of the process that starts it
WITNESS = """#!/bin/sh
[ $CNI_COMMAND = ADD ] || exit 0
exec >"$SEEN"
umask; pwd; ls /mnt; readlink /proc/self/ns/*; env | sort; ls /proc/self/fd; cat; echo; grep ^Sig[^Q] /proc/self/status
echo seen >&2
exit 1
"""
# A network and a mount namespace of its own, and a root folder in which something is on /mnt
ELSEWHERE = """
mkdir -p /run/root && mount --rbind / /run/root && mount -t tmpfs t /run/root/mnt && mkdir /run/root/mnt/inside
exec chroot /run/root sh -c 'cd /run/netns && umask 027 && exec "$@"' sh "$@"
"""


def calls(warm: Warm, plugin: str, verb: str) -> int:
    """How many the service has run."""
    return sum(row["calls"] for row in warm.ask()["calls"] if (row["plugin"], row["verb"]) == (plugin, verb))


def ways(both: dict[str, Plugins], plugin: str) -> dict[str, list[str]]:
    """The command line of a plugin that goes direct, and those that ask the service."""
    python, native = (str(both[kind].directory / plugin) for kind in ("python", "native"))
    return {"direct": [python, "direct"], "python": [python], "native": [native]}


def test_a_chain_is_run_by_the_service(host: Lab, warm: Warm, launchers: Plugins) -> None:
    network = Network(host, launchers)
    before = calls(warm, "bridge", "ADD"), calls(warm, "portmap", "DEL")
    network.attach("c1", mapping(8080, 80))
    server = host.serve("c1", 80)
    assert host.fetch("client", "198.51.100.1", 8080).name == "c1"
    server.stop()
    network.detach("c1")
    assert (calls(warm, "bridge", "ADD"), calls(warm, "portmap", "DEL")) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(
    ("plugin", "conf", "more"),
    [
        ("bridge", "{", {}),
        ("bridge", "", {"CNI_COMMAND": "VERSION"}),
        ("bridge", "", {"CNI_COMMAND": ""}),
        ("loopback", json.dumps(LOOPBACK), {"CNI_NETNS": "/run/netns/none"}),
        ("loopback", json.dumps(LOOPBACK), {"CNI_ARGS": "A=" + "b" * 100_000, "CNI_COMMAND": "CHECK"}),
        ("static", json.dumps({**LOOPBACK, "args": "x" * 300_000}), {"ä": "ä=\n"}),
    ],
    ids=["json", "version", "banner", "netns", "variables", "stdin"],
)
def test_an_answer_is_the_same(
    host: Lab, warm: Warm, both: dict[str, Plugins], plugin: str, conf: str, more: dict[str, str]
) -> None:
    path = {"CNI_PATH": str(both["python"].directory)}
    answers = {}
    for way, words in ways(both, plugin).items():
        done = host["host"].run(words, env={**ENVIRONMENT, **path, **more}, input=conf)
        answers[way] = done.returncode, done.stdout, done.stderr
    assert answers["python"] == answers["native"] == answers["direct"]


def test_of_a_variable_that_comes_twice_the_first_counts(host: Lab, warm: Warm, both: dict[str, Plugins]) -> None:
    """execve(2) takes such an environment, and one with a text that is no variable."""
    before = calls(warm, "loopback", "VERSION")
    texts = [b"CNI_COMMAND=VERSION", b"CNI_COMMAND=ADD", b"CNI", b""]

    def start(words: list[str]) -> str:
        import ctypes
        import subprocess

        environment = (ctypes.c_char_p * (len(texts) + 1))(*texts, None)
        line = (ctypes.c_char_p * (len(words) + 1))(*map(str.encode, words), None)
        done = subprocess.run(
            ["true"], preexec_fn=lambda: ctypes.CDLL(None).execve(line[0], line, environment), stdout=-1, check=False
        )
        return done.stdout.decode()

    answers = {way: host["host"].python(start, words) for way, words in ways(both, "loopback").items()}
    assert '"supportedVersions"' in str(answers["direct"])
    assert answers["python"] == answers["native"] == answers["direct"]
    assert calls(warm, "loopback", "VERSION") == before + 1  # in Python it is told without the service


def test_a_call_takes_place_where_its_executable_is(
    host: Lab, warm: Warm, both: dict[str, Plugins], tmp_path: Path
) -> None:
    """Namespaces, root and working folder, umask, environment, descriptors, signals: all that a program started by it sees."""
    (tmp_path / "other-ipam").write_text(WITNESS)
    (tmp_path / "other-ipam").chmod(0o755)
    before = calls(warm, "bridge", "ADD")
    seen = {}
    for way, words in ways(both, "bridge").items():
        environ = {**ENVIRONMENT, "CNI_NETNS": "c1", "CNI_IFNAME": "eth7", "CNI_PATH": str(tmp_path)}
        environ["SEEN"] = str(tmp_path / way)
        elsewhere = ["unshare", "--net", "--mount", "--propagation=private", "sh", "-ec", ELSEWHERE, "sh", *words]
        done = host["host"].run(elsewhere, env=environ, input=json.dumps(BRIDGED))
        assert "seen" in done.stdout, done
        lines = (tmp_path / way).read_text().splitlines()
        seen[way] = [line for line in lines if not line.startswith(("SEEN=", "mnt:", "net:"))]  # a new one each
        assert "inside" in lines
        assert "/run/netns" in lines
        assert "0027" in lines
    assert seen["python"] == seen["native"] == seen["direct"]
    assert calls(warm, "bridge", "ADD") == before + 2, warm.ask()


def test_many_at_once(host: Lab, warm: Warm, native: Plugins) -> None:
    before = calls(warm, "static", "ADD")
    conf = {**LOOPBACK, "type": "static", "ipam": {"type": "static", "addresses": [{"address": "192.0.2.9/24"}]}}
    jobs = [
        Job(
            str(native.directory / "static"),
            json.dumps(conf).encode(),
            {**ENVIRONMENT, "CNI_CONTAINERID": f"n{number}", "CNI_PATH": "/"},
        )
        for number in range(AT_ONCE)
    ]
    outcomes = host["host"].python(run_all, jobs)
    assert isinstance(outcomes, list)
    assert {(outcome.status, outcome.stderr) for outcome in outcomes} == {(0, "")}
    assert all(Outcome.json.fget(outcome)["ips"] for outcome in outcomes)  # type: ignore[attr-defined]  # the property
    wait_until(lambda: calls(warm, "static", "ADD") == before + AT_ONCE, "some went direct")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_a_closed_stream_is_no_reason_to_fail(
    host: Lab, warm: Warm, both: dict[str, Plugins], closed: tuple[int, ...]
) -> None:
    answers = {}
    shut = " ".join(f"{fd}{'<' if fd == 0 else '>'}&-" for fd in closed)
    for way, words in ways(both, "loopback").items():
        done = host["host"].run(
            ["sh", "-c", f'"$@" {shut}', "sh", *words],
            env={**ENVIRONMENT, "CNI_PATH": "/"},
            input=json.dumps({**LOOPBACK, "cniVersion": "0.0.9"}),
        )
        answers[way] = done.returncode, done.stdout, done.stderr
    assert answers["python"] == answers["native"] == answers["direct"]


def test_the_service_holds_nothing_of_a_namespace(host: Lab, warm: Warm) -> None:
    """What it had open would be open in every child, and keep namespaces from ending."""
    status = f"/proc/{warm.pid}"
    listed = host["host"].run(
        ["sh", "-c", f"ls -l {status}/fd; ls {status}/task; cat {status}/net/netlink"], check=True
    )
    links = [line.partition(" -> ")[2] for line in listed.stdout.splitlines() if " -> " in line]
    kinds = {link.partition(":")[0] for link in links if not link.startswith("/")}
    assert kinds <= {"socket", "pipe", "anon_inode"}
    assert [link for link in links if link.startswith("anon_inode")] == ["anon_inode:inotify"]
    assert {link for link in links if link.startswith("/")} <= {"/dev/null", "/run/cni-py/serve.sock.lock"}
    owners = [line.split()[2] for line in listed.stdout.splitlines() if len(line.split()) == 10]
    assert str(warm.pid) not in owners


def test_its_status_for_people(host: Lab, warm: Warm, native: Plugins) -> None:
    host["host"].run([str(native.directory / "bridge")], env=ENVIRONMENT, input="{")
    told = host["host"].run([str(COMMAND), "serve", "--status"], check=True).stdout
    assert f"process {warm.pid}, up " in told
    assert [line.split()[:2] for line in told.splitlines() if line.startswith("bridge ")] != []
    nowhere = host["host"].run([str(COMMAND), "serve", "--status", "--socket", "/run/none"])
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert nowhere.stderr == "cni-py serve: no service answers at /run/none: No such file or directory\n"
