"""The demo in a chroot: what it makes is inside, and goes; the machine that the chroot is on does not notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lacking import need_root

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "netns-fixtures" / "demo.py"
ENOUGH_S = 90.0

# In a mount namespace of its own: an outer machine with an empty /run, and in it a chroot that shows the same files but /run.
# `bind`: its / is a mount point; `plain`: it is a folder; `bare`: that, without /proc.
MACHINE = """
set -eu
kind=$1 place=$2; shift 2
mount --make-rprivate /
mount -t tmpfs outer /run
mount -t tmpfs chroot "$place"
root=$place/root
mkdir "$root"
if [ "$kind" = bind ]; then
    mount --rbind / "$root"
else
    for entry in /*; do
        if [ -L "$entry" ]; then cp -a "$entry" "$root$entry"
        elif [ -d "$entry" ]; then
            mkdir "$root$entry"
            [ "$entry" = /run ] || [ "$kind $entry" = "bare /proc" ] || mount --rbind "$entry" "$root$entry"
        fi
    done
fi
mount -t tmpfs inner "$root/run"
grep -c . /proc/self/mountinfo >"$place/before"
find /run "$root/run" ! -path '*/mount*' >>"$place/before"
status=0
chroot "$root" "$@" || status=$?
grep -c . /proc/self/mountinfo >"$place/after"
find /run "$root/run" ! -path '*/mount*' >>"$place/after"
diff "$place/before" "$place/after" || status=99
exit $status
"""


def run_in_chroot(kind: str, place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    need_root()
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", MACHINE, "machine", kind, str(place), *command],
        capture_output=True,
        text=True,
        timeout=ENOUGH_S,
        check=False,
    )


@pytest.mark.parametrize("kind", ["bind", "plain"])
def test_demo_in_a_chroot_works_and_leaves_nothing_inside_or_outside(kind: str, tmp_path: Path) -> None:
    done = run_in_chroot(kind, tmp_path, sys.executable, str(DEMO))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("10 of 10 paths")
    assert done.stderr == ""


def test_demo_without_proc_says_so_in_one_line_and_does_nothing(tmp_path: Path) -> None:
    done = run_in_chroot("bare", tmp_path, sys.executable, str(DEMO))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "demo: there is no /proc here: mount -t proc proc /proc\n"


WHERE = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "netns-fixtures")!r})
from lab import Lab
inside = os.stat("/run")
with Lab.from_yaml("lan.yaml") as lab:
    root = lambda: (os.stat("/").st_dev, os.stat("/").st_ino, os.path.exists("/run/netns/c1"))
    here = (os.stat("/").st_dev, os.stat("/").st_ino)
    found = lab["host"].python(root)
    assert found == (*here, True), (found, here)
    lab["host"].run(["touch", "/run/netns/x", "/run/y"], check=True)
    assert not os.path.exists("/run/y")
"""


def test_programs_of_a_lab_in_a_chroot_stay_in_it(tmp_path: Path) -> None:
    """setns(2) leads to the root of the mount namespace, which is outside."""
    done = run_in_chroot("plain", tmp_path, sys.executable, "-c", WHERE)
    assert done.returncode == 0, done.stdout + done.stderr
