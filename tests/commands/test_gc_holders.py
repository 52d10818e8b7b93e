"""`cni-py gc` and a namespace that nothing shows but the kernel's number for it; the same for a port that its container holds.

An interface that lies in its container as a whole (macvlan, tap) leaves nothing on the host that would tell that it lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_py.ipam.reservations import STAMP
from cni_py.kernel import nsid
from cni_py.kernel.rtnl import Rtnl
from tests.commands.hand import HOME, Hand
from tests.commands.test_gc import RECORDS, RESERVED, ended, gc, owners, run, shell

pytestmark = pytest.mark.ours_alone

# One process keeps nine namespaces, each in another way: in the first six /proc shows it, in the others nothing does.
HOLDER = """
import array, ctypes, os, socket, sys, threading
CLONE_NEWNS, CLONE_FS, CLONE_FILES, CLONE_NEWNET = 0x20000, 0x200, 0x400, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 0x1000, 0x4000, 0x40000, 2
libc = ctypes.CDLL(None)
kept = []

def well(status):
    assert status == 0

def opened(name):
    return os.open(f"/run/netns/{name}", os.O_RDONLY)

def inside(name):
    fd = opened(name)
    well(libc.setns(fd, CLONE_NEWNET))
    os.close(fd)

def process(name):
    if os.fork() == 0:
        inside(name)
        announce()
        sys.stdin.read()
        os._exit(0)
    await_child()

def thread(name):
    inside(name)

def descriptor(name):
    kept.append(opened(name))

def own_table(name):
    well(libc.unshare(CLONE_FILES))
    kept.append(opened(name))

def mount(name):
    open("/run/kept", "w").close()
    well(libc.mount(f"/run/netns/{name}".encode(), b"/run/kept", None, MS_BIND, None))

def mount_elsewhere(name):
    well(libc.unshare(CLONE_FS | CLONE_NEWNS))
    well(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    open("/run/other", "w").close()
    well(libc.mount(f"/run/netns/{name}".encode(), b"/run/other", None, MS_BIND, None))

def socket_made_in_it(name):
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    inside(name)
    kept.append(socket.socket())
    well(libc.setns(back, CLONE_NEWNET))
    os.close(back)

def on_its_way(name):
    fd = opened(name)
    pair = socket.socketpair()
    socket.send_fds(pair[0], [b"x"], [fd])
    os.close(fd)
    kept.append(pair)

def mounts_of_nobody(name):
    back = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    mount_elsewhere(name)
    kept.append(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY))
    well(libc.setns(back, CLONE_NEWNS))
    os.close(back)

done, child = threading.Semaphore(0), os.pipe()

def announce():
    os.write(child[1], b"x")

def await_child():
    os.read(child[0], 1)

def keep(way, name):
    way(name)
    done.release()
    threading.Event().wait()

for word in sys.argv[1:]:
    threading.Thread(target=keep, args=(globals()[word.partition("-")[0]], word), daemon=True).start()
    done.acquire()
print("ready", flush=True)
sys.stdin.read()
libc.umount2(b"/run/kept", MNT_DETACH)
"""
SEEN = ("process", "thread", "descriptor", "own_table", "mount", "mount_elsewhere")
UNSEEN = ("socket_made_in_it", "on_its_way", "mounts_of_nobody")
IPAM = {"type": "host-local", "ranges": [[{"subnet": "198.51.100.0/24"}]]}
# The links that every kernel has which runs these tests. Those of Debian's have more: `make test-kernels`.
KINDS: dict[str, dict[str, object]] = {
    "macvlan": {"master": "lan0"},
    "tap": {},
    "dummy": {},
    "vlan": {"master": "lan0", "vlanId": 7},
}


def add(hand: Hand, pairs: list[tuple[str, str]]) -> set[str]:
    """Connect containers to networks, all at once; the attachments' labels."""
    env = {"PYTHONPATH": str(HOME), "CNI_PATH": str(hand.bin_dir)}
    words = [sys.executable, "-m", "cni_py.commands.exec", "ADD"]
    calls = [
        hand.lab["host"].popen([*words, network, name, "--create-netns"], env=env, stdout=subprocess.DEVNULL)
        for network, name in pairs
    ]
    assert [call.wait() for call in calls] == [0] * len(calls)
    return {f"{network}/{name}/eth0" for network, name in pairs}


def has(hand: Hand, kind: str) -> bool:
    """Whether this kernel has such links."""
    host, keys = hand.lab["host"], KINDS[kind]
    words = [*(["link", "lan0"] if "master" in keys else []), "type", kind, *(["id", "9"] if "vlanId" in keys else [])]
    made = kind == "tap" or host.run(["ip", "link", "add", "try0", *words]).returncode == 0
    host.run(["ip", "link", "delete", "try0"])
    return made


@contextlib.contextmanager
def held(hand: Hand, *containers: str) -> Iterator[None]:
    """Something keeps each namespace, in the way that it is named after; its name goes. In the end nothing keeps them."""
    numbers = set(hand.lab["host"].python(known))
    holder = hand.lab["host"].popen(
        [sys.executable, "-c", HOLDER, *containers], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:  # which ends when its input does
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        for name in containers:
            ended(hand, name, kept=True)
        yield
    limit = time.monotonic() + 30
    while len(numbers & set(hand.lab["host"].python(known))) > len(numbers) - len(containers):
        assert time.monotonic() < limit, "the namespaces do not end"
        time.sleep(0.01)


def known() -> list[int]:
    return nsid.known(Rtnl())


def test_no_holder_is_taken_for_dead(hand: Hand) -> None:
    kinds = [kind for kind in KINDS if has(hand, kind)]
    for kind in kinds:
        hand.define(kind, plugins=[{"type": kind, **KINDS[kind], "ipam": IPAM}])
    places = [("macvlan", way) for way in (*SEEN, *UNSEEN)]
    places += [(kind, f"{way}-{kind}") for kind in kinds[1:] for way in UNSEEN]
    labels = add(hand, places)
    with held(hand, *(name for _, name in places)):
        assert gc(hand.lab) == {"removed": [], "left": [], "failed": []}
        assert not dead(hand)
    assert dead(hand) == labels
    said = gc(hand.lab)
    assert (owners(said["removed"]), said["left"], said["failed"]) == (labels, [], [])


def dead(hand: Hand) -> set[str]:
    """What `cni-py show` says is dead."""
    model = json.loads(run(hand.lab, "show", "--json"))
    return {
        f"{one['network']}/{one['container_id']}/{one['ifname']}"
        for one in model["attachments"]
        if one["live"] == "dead"
    }


def test_a_port_is_not_taken_from_who_lives_without_a_name(hand: Hand) -> None:
    """The container has a veth pair, or none and a published port through its record of portmap alone."""
    macvlan = [{"type": "macvlan", "master": "lan0", "ipam": IPAM}, hand.network["plugins"][1]]
    hand.define("whole", plugins=macvlan)
    for network, name, port in (("lab", "process", "8001:80"), ("whole", "on_its_way", "8002:80")):
        hand.well("ADD", network, name, "--create-netns", "-p", port)
    with held(hand, "process", "on_its_way"):
        for port in ("8001:80", "8002:80"):
            refused = hand("ADD", "lab", "next", "--create-netns", "-p", port)
            assert (refused.returncode, "is in use by" in refused.stderr) == (1, True), refused
    hand.well("ADD", "lab", "next", "--create-netns", "-p", "8001:80", "-p", "8002:80")


def test_what_another_host_may_have_is_left(hand: Hand) -> None:
    """This host is in a PID namespace of its own, and only files tell of the container: in a volume; of another machine."""
    hand.well("ADD", "lab", "web", "--create-netns")
    ended(hand, "web")
    shell(hand.lab, f"rm -r {RECORDS}; ip link delete cni0; nft flush ruleset")
    shell(hand.lab, "mkdir /run/volume; cp -a /var/lib/cni/. /run/volume; mount --bind /run/volume /var/lib/cni")
    left_because(hand, "volume")
    shell(hand.lab, "umount /var/lib/cni")
    machine = Path("/etc/machine-id")  # without one no file says which machine it is of
    if machine.exists() and machine.stat().st_size:
        hand.lab["host"].python(os.setxattr, f"{RESERVED}/192.0.2.2", STAMP, b"0123abcd/0")
        left_because(hand, "machine")
        hand.lab["host"].python(os.removexattr, f"{RESERVED}/192.0.2.2", STAMP)
    assert owners(gc(hand.lab)["removed"]) == {"lab/web/eth0"}


def left_because(hand: Hand, word: str) -> None:
    said = gc(hand.lab)
    assert (said["removed"], owners(said["left"])) == ([], {"lab/web/eth0"})
    assert all(word in line["why"] for line in said["left"])
