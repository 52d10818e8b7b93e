"""`cni-py gc` on a lab's host: what nobody owns goes, what anybody may own stays, byte by byte.

A host with healthy containers is described; then others are connected, and end in a way that leaves something; after gc the host
is as described.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import snapshot
from lab import Lab

from cni_py.attachment.naming import Attachment
from cni_py.host import census
from cni_py.iptables import goplugins
from tests import unprivileged
from tests.commands.hand import HOME, Hand, links, names, script
from tests.lacking import unavailable
from tests.portfwd.publisher import Publisher

COMMAND = Path(sys.executable).with_name("cni-py")
UNITS = Path(__file__).parents[2] / "conf"
CACHE, RESERVED, RECORDS = "/var/lib/cni/results", "/var/lib/cni/networks/lab", "/run/cni-py/attachments"


def run(lab: Lab, *words: str, status: int = 0) -> str:
    done = lab["host"].run([str(COMMAND), *words])
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def gc(lab: Lab, *options: str, status: int = 0) -> dict[str, list[dict[str, str]]]:
    """What `cni-py gc --json` says."""
    found: dict[str, list[dict[str, str]]] = json.loads(run(lab, "gc", "--json", *options, status=status))
    return found


def owners(lines: list[dict[str, str]]) -> set[str]:
    return {line["owner"] for line in lines if line["owner"]}


def state(lab: Lab) -> dict[str, object]:
    """Everything of the host that a container may leave something in."""
    host = lab["host"]
    chains = host.run(["nft", "-s", "list", "ruleset"], check=True).stdout
    lines = sorted(line.strip(" \t,}") for line in re.split(r"\n|, |\{ (?=.* : )", chains))
    folders = (CACHE, RESERVED, RECORDS, "/run/cni-py/published")
    files: dict[str, object] = {path: host.python(names, path) for path in folders}
    locks = [name for name in host.python(names, "/run/cni-py/lock") if name.startswith("attachment-")]
    return {**files, "locks": locks, "links": links(lab, "host"), "rules": lines}


def ended(hand: Hand, name: str, *, kept: bool = False) -> None:
    """The container ends, and nobody tells the plugins. Its links go, unless somebody has `kept` its namespace."""
    host, path = hand.lab["host"], f"/run/netns/{name}"
    ends = [] if kept else host.python(snapshot.ends_in, path)
    host.run(["ip", "netns", "delete", name], check=True)
    host.python(snapshot.await_end, ends)


def shell(lab: Lab, text: str) -> str:
    return lab["host"].run(["sh", "-ec", text], check=True).stdout


# A process that enters a namespace, or only has it open.
HOLD = """
import ctypes, os, time
fd = os.open("/run/netns/{name}", os.O_RDONLY)
if {enter}:
    assert ctypes.CDLL(None).setns(fd, 0) == 0
    os.close(fd)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def healthy(hand: Hand) -> Iterator[Hand]:
    """A container by its name alone, one by a process alone, one by an open descriptor alone."""
    for name, port in (("mounted", "8001:80"), ("process", "8002:80"), ("open", "8003:80")):
        hand.well("ADD", "lab", name, "--create-netns", "-p", port)
    holders = [
        hand.lab["host"].popen([sys.executable, "-c", HOLD.format(name=name, enter=enter)], stdout=subprocess.PIPE)
        for name, enter in (("process", True), ("open", False))
    ]
    for holder in holders:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
    ended(hand, "process", kept=True)
    ended(hand, "open", kept=True)
    yield hand
    for holder in holders:
        holder.kill()
        holder.communicate()


def test_only_what_is_dead_goes(healthy: Hand) -> None:
    hand, lab = healthy, healthy.lab
    assert gc(lab) == {"removed": [], "left": [], "failed": []}
    before = state(lab)
    for name, port in (("dead", "8011:80"), ("lost", "8012:80"), ("forgotten", "8013:80")):
        hand.well("ADD", "lab", name, "--create-netns", "-p", port)
        ended(hand, name)
    if hand.whose == "ours":
        hexes = set(lab["host"].python(names, RECORDS)) - set(before[RECORDS])  # type: ignore[call-overload]
        for one in hexes:
            if "dead" not in lab["host"].python(text_of, f"{RECORDS}/{one}/bridge.json"):
                shell(lab, f"rm -r {RECORDS}/{one}")
        shell(lab, f"rm {CACHE}/lab-forgotten-eth0")
    broken = state(lab)
    dry = gc(lab, "--dry-run")
    assert state(lab) == broken
    said = gc(lab)
    assert dry == said
    # Go's chains in iptables do not name the interface.
    assert {owner.split("/")[1] for owner in owners(said["removed"])} == {"dead", "lost", "forgotten"}
    assert (said["left"], said["failed"]) == ([], [])
    assert state(lab) == before
    assert gc(lab) == {"removed": [], "left": [], "failed": []}
    hand.check("lab", "mounted")


def text_of(path: str) -> str:
    return Path(path).read_text()


# Threads that keep a namespace which the first thread, after which the process is named, does not have, or not any more.
THREADS = """
import ctypes, os, threading, time
CLONE_NEWNS, CLONE_FS, CLONE_FILES = 0x20000, 0x200, 0x400
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
libc = ctypes.CDLL(None)
ready = threading.Semaphore(0)

def run(keep):
    keep()
    ready.release()
    time.sleep(600)

def mount():
    assert libc.unshare(CLONE_FS) == libc.unshare(CLONE_NEWNS) == 0
    assert libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
    open("/run/kept", "w").close()
    assert libc.mount(b"/run/netns/mount", b"/run/kept", None, MS_BIND, None) == 0

def descriptor():
    assert libc.unshare(CLONE_FILES) == 0
    os.open("/run/netns/descriptor", os.O_RDONLY)

def inside():
    fd = os.open("/run/netns/inside", os.O_RDONLY)
    assert libc.setns(fd, 0) == 0
    os.close(fd)

for keep in (mount, descriptor, inside):
    threading.Thread(target=run, args=(keep,)).start()
    ready.acquire()
print("ready", flush=True)
libc.pthread_exit(None)
"""


@pytest.mark.ours_alone
def test_what_a_thread_alone_keeps_is_seen(lab: Lab) -> None:
    host = lab["host"]
    for name in KEPT:
        host.run(["ip", "netns", "add", name], check=True)
    keys = {name: f"net:[{host.python(inode, f'/run/netns/{name}')}]" for name in KEPT}
    holder = host.popen([sys.executable, "-c", THREADS], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    for name in KEPT:
        host.run(["ip", "netns", "delete", name], check=True)
    entered, hidden = host.python(taken)
    holder.kill()
    holder.communicate()
    assert {name: entered.get(key) for name, key in keys.items()} == dict.fromkeys(KEPT, True)
    assert not hidden


KEPT = ("mount", "descriptor", "inside")


def inode(path: str) -> int:
    return Path(path).stat().st_ino


def taken() -> tuple[dict[str, bool], str]:
    """Key of each namespace that is found -> whether it was entered; and what is hidden."""
    seen = census.take()
    return {space.key: bool(space.interfaces) for space in seen.spaces}, seen.hidden


@pytest.mark.ours_alone
def test_an_add_is_left_alone_until_it_is_killed(hand: Hand, tmp_path: Path) -> None:
    lab = hand.lab
    for one in hand.bin_dir.iterdir():
        (tmp_path / one.name).symlink_to(one)
    script(tmp_path / "stuck", "touch /run/begun; read line < /run/stuck")
    shell(lab, "mkfifo /run/stuck")
    before = state(lab)
    conf = {**hand.network["plugins"][0], "name": "lab", "cniVersion": "1.0.0", "ipam": {"type": "stuck"}}
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(tmp_path),
    }
    call = lab["host"].popen([str(tmp_path / "bridge")], env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert call.stdin is not None
    call.stdin.write(json.dumps(conf).encode())
    call.stdin.close()
    shell(lab, "until [ -e /run/begun ]; do sleep 0.01; done")
    assert shell(lab, f"ls {RECORDS}/*/bridge.adding")
    assert gc(lab) == {"removed": [], "left": [], "failed": []}
    call.kill()
    call.wait()
    (removed,) = gc(lab)["removed"]
    assert removed["owner"] == "lab/c1/eth0"
    assert "killed" in removed["why"]
    shell(lab, "echo 1<>/run/stuck; rm /run/stuck /run/begun; ip link delete cni0")
    assert state(lab) == {**before, CACHE: []}


def test_what_is_not_proved_is_listed_and_left(hand: Hand) -> None:
    """A reservation of which nothing tells the namespace; an operator's; a folder that cannot be understood."""
    lab = hand.lab
    hand.well("ADD", "lab", "c1")
    for name, content in (("192.0.2.77", "0123abc\\r\\neth0"), ("192.0.2.78", "operator: printer"), ("note", "x")):
        shell(lab, f"printf '{content}' > {RESERVED}/{name}")
    shell(lab, f"mkdir -p {RECORDS}/0123456789abcdef; echo '{{' > {RECORDS}/0123456789abcdef/bridge.json")
    before = state(lab)
    said = gc(lab)
    assert (said["removed"], said["failed"]) == ([], [])
    damaged, left = sorted(said["left"], key=lambda line: line["owner"])
    assert damaged["owner"] == "0123456789abcdef"
    assert "cannot be read" in damaged["what"]
    assert (left["owner"], left["what"]) == ("lab/0123abc/eth0", "address 192.0.2.77")
    assert "nothing tells" in left["why"]
    assert state(lab) == before
    done = lab["host"].run([str(COMMAND), "gc", "--network", "other"])
    assert (done.returncode, done.stdout) == (0, "removed 0 things\n")
    assert done.stderr.startswith('cni-py gc: note: no network "other" in /etc/cni/net.d: there are: lab')


LIMITS = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}


def test_a_whole_chain(hand: Hand) -> None:
    """firewall and bandwidth, too; the first container makes what all share."""
    lab = hand.lab
    hand.define("lonely", plugins=[{"type": "loopback"}])
    more = [{"type": "firewall"}, {"type": "bandwidth", **LIMITS}, {"type": "tuning", "mtu": 1400}]
    hand.define("whole", plugins=[*hand.network["plugins"][:2], *more])
    hand.well("ADD", "whole", "alive", "--create-netns", "-p", "8001:80")
    before = [state(lab), lab["host"].run(["iptables-save"]).stdout.count("192.0.2.")]
    hand.well("ADD", "whole", "dead", "--create-netns", "-p", "8011:80", "-p", "8053:53/udp")
    hand.well("ADD", "lonely", "dead", "--ifname", "lo")
    hand.well("ADD", "whole", "kept", "--create-netns")
    ended(hand, "dead")
    said = gc(lab)
    assert {line["owner"].split("/")[1] for line in said["removed"]} == {"dead"}
    assert (said["left"], said["failed"]) == ([], [])
    hand.well("DEL", "whole", "kept")
    assert [state(lab), lab["host"].run(["iptables-save"]).stdout.count("192.0.2.")] == before


HOSTPORTS = """
table ip cni_hostport {{
  chain hostports {{
    tcp dport 8011 dnat to {dead}:80 comment "dead"
    tcp dport 8001 dnat to {alive}:80 comment "mounted"
    tcp dport 8099 dnat to 192.0.2.99:80 comment "other"
  }}
}}
table inet cni_plugins_masquerade {{
  chain masq_checks {{
    ip saddr {dead} masquerade comment "{mark}, net: lab, if: eth0, id: dead"
    ip saddr 192.0.2.99 masquerade comment "0123456789abcdef-0123456789abcdef"
  }}
}}
"""


def test_tables_of_newer_go_plugins(healthy: Hand) -> None:
    """Debian 12's do not make them. A rule of which nothing tells whose it is stays."""
    hand, lab = healthy, healthy.lab
    dead, alive = (
        str(hand.json("ADD", "lab", name, "--create-netns")["ips"][0]["address"]).partition("/")[0]
        for name in ("dead", "alive")
    )
    marked = HOSTPORTS.format(dead=dead, alive=alive, mark=goplugins.mark_of(Attachment("lab", "dead", "eth0")))
    assert lab["host"].run(["nft", "-f", "-"], input=marked).returncode == 0
    ended(hand, "dead")
    said = gc(lab)
    assert {line["owner"].split("/")[-2 if line["owner"].endswith("eth0") else -1] for line in said["removed"]} == {
        "dead"
    }
    (left,) = said["left"]
    assert left["owner"] == "other"
    rules = lab["host"].run(["nft", "list", "ruleset"]).stdout
    assert [mark in rules for mark in ('comment "dead"', "id: dead", 'comment "mounted"', 'comment "other"')] == [
        False,
        False,
        True,
        True,
    ]


def test_an_address_that_has_a_new_owner(healthy: Hand) -> None:
    """The DEL of the first was lost, somebody released its address, and the next container has it: only the first goes."""
    hand, lab = healthy, healthy.lab
    hand.well("ADD", "lab", "first", "--create-netns", "-p", "8011:80")
    ended(hand, "first")
    shell(lab, f"cd {RESERVED}; rm $(grep -l first *) last_reserved_ip.*")
    before = set(lab["host"].python(names, CACHE))
    hand.well("ADD", "lab", "next", "--create-netns", "-p", "8012:80")
    said = gc(lab)
    assert {line["owner"].split("/")[1] for line in said["removed"]} == {"first"}
    assert said["left"] == []
    assert set(lab["host"].python(names, CACHE)) == before - {"lab-first-eth0"} | {"lab-next-eth0"}
    hand.check("lab", "next")
    assert gc(lab) == {"removed": [], "left": [], "failed": []}


@pytest.mark.ours_alone
def test_relays_of_a_lost_record(hand: Hand) -> None:
    """portfwd serves [::1], and knows of the container as long as nobody tells it."""
    lab = hand.lab
    service = Publisher(lab["host"])
    try:
        for name, port in (("alive", "8001:80"), ("dead", "8011:80")):
            hand.well("ADD", "lab", name, "--create-netns", "-p", port)
        shell(lab, f"rm -r {RECORDS} {CACHE}/lab-dead-eth0 {RESERVED}/*.3 {RESERVED}/*::3")
        ended(hand, "dead")
        both = {one["first"] for one in service.ask("list")["mappings"]}
        said = gc(lab)
        assert both == {8001, 8011}
        assert owners(said["removed"]) == {"lab/dead/eth0"}
        assert {one["first"] for one in service.ask("list")["mappings"]} == {8001}
    finally:
        service.end()


DAMAGE = """
cd /var/lib/cni/networks/lab
: > 192.0.2.70
printf 'old\\r\\neth0' > 192.0.2.71
test ! -s /etc/machine-id || python3 -c 'import os; os.setxattr("192.0.2.71", "user.cni_py.boot",
    open("/etc/machine-id").read(64).strip().encode() + b"/another")'
ln -s /etc/passwd 192.0.2.72
printf ' ' > 192.0.2.73
printf '%04000d' 7 > 192.0.2.74
"""


@pytest.mark.ours_alone
def test_reservations_of_nobody(hand: Hand) -> None:
    """Of a call that was killed, and of an earlier boot. What is no file of host-local's stays, and keeps the address."""
    lab = hand.lab
    machine_id = Path("/etc/machine-id")  # without one nobody can say of which boot a file is
    known = machine_id.exists() and machine_id.stat().st_size > 0
    hand.well("ADD", "lab", "c1", "--create-netns")
    before = state(lab)
    shell(lab, DAMAGE)
    held = {
        one["address"]: one["live"]
        for one in json.loads(run(lab, "ipam", "list", "--json"))["pools"][0]["reservations"]
    }
    assert [held[f"192.0.2.{number}"] for number in (2, 70, 71, 72, 73)] == [
        "alive",
        "dead",
        "dead" if known else "unknown",
        "unknown",
        "unknown",
    ]
    assert max(map(len, run(lab, "ipam", "list").splitlines())) < 1000
    assert max(map(len, run(lab, "gc", "--dry-run").splitlines())) < 1000
    dry = gc(lab, "--dry-run")
    said = gc(lab)
    assert said == dry
    assert {line["what"] for line in said["removed"]} == {
        f"address 192.0.2.{number} of network lab" for number in (70, 71)[: 1 + known]
    }
    shell(
        lab,
        "rm -f /var/lib/cni/networks/lab/192.0.2.71 /var/lib/cni/networks/lab/192.0.2.72 /var/lib/cni/networks/lab/192.0.2.7[34]",
    )
    assert state(lab) == before
    assert gc(lab) == {"removed": [], "left": [], "failed": []}


@pytest.mark.ours_alone
def test_it_disturbs_no_add(hand: Hand) -> None:
    """gc, again and again, while containers are connected: each is complete in the end."""
    lab = hand.lab
    crowd = [f"n{number}" for number in range(6)]
    shell(lab, "for name in " + " ".join(crowd) + "; do ip netns add $name; done")
    env = {"PYTHONPATH": str(HOME), "CNI_PATH": str(hand.bin_dir)}
    calls = [
        lab["host"].popen(
            [sys.executable, "-m", "cni_py.commands.exec", "ADD", "lab", name, "-p", f"{9000 + number}:80"],
            env=env,
            stdout=subprocess.DEVNULL,
        )
        for number, name in enumerate(crowd)
    ]
    rounds = 0
    while any(call.poll() is None for call in calls):
        said = json.loads(run(lab, "gc", "--json"))
        assert said == {"removed": [], "left": said["left"], "failed": []}
        rounds += 1
    assert rounds
    assert [call.returncode for call in calls] == [0] * len(crowd)
    for name in crowd:
        hand.check("lab", name)


@pytest.mark.ours_alone
def test_what_cannot_be_removed_is_an_error(hand: Hand) -> None:
    """The record lists an operation on a file that is immutable by a mount: the address stays reserved, the rest goes."""
    lab = hand.lab
    hand.well("ADD", "lab", "web", "--create-netns", "-p", "8011:80")
    ended(hand, "web")
    shell(lab, f"mount --bind {RESERVED} {RESERVED}; mount -o remount,ro,bind {RESERVED}")
    said = gc(lab, status=1)
    assert said["failed"]
    assert {line["owner"] for line in said["failed"]} == {"lab/web/eth0"}
    assert lab["host"].python(names, CACHE) == ["lab-web-eth0"]
    shell(lab, f"umount {RESERVED}")
    assert owners(gc(lab)["removed"]) == {"lab/web/eth0"}
    assert lab["host"].python(names, RECORDS) == []


def test_it_needs_root(lab: Lab) -> None:
    done = lab["host"].run([*unprivileged.python(lab["host"]), "-m", "cni_py.commands.main", "gc"])
    assert (done.returncode, "root" in done.stderr) == (3, True)


@pytest.mark.parametrize("unit", ["cni-py-gc.service", "cni-py-gc.timer"])
def test_systemd_finds_no_fault_in_the_units(unit: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        unavailable("systemd-analyze is missing")
    for name in ("cni-py-gc.service", "cni-py-gc.timer"):
        (tmp_path / name).write_text((UNITS / name).read_text().replace("/opt/cni-py/bin/cni-py", str(COMMAND)))
    words = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert not [line for line in done.stderr.splitlines() if "cni-py" in line]
