"""tools/bootstrap: whatever became of an earlier run, the next one ends well or says what is missing.

It runs in a clone of its own, with an interpreter that makes virtual environments whose pip only writes down what it is asked.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lacking import need_root

ROOT = Path(__file__).parents[1]
ENOUGH_S = 300.0  # so that a hang fails: pip takes its time where another suite runs
WHOLE = ["venv", "wheel", "install", "install again"]
AGAIN = WHOLE[1:]  # the virtual environment stays

INTERPRETER = """#!/bin/sh
# $1 $2 are "-m venv", "-m pip" or "-c CODE". A step that is called $HANG never ends.
real={real} log={log}
begin() {{
    if [ "$1" = "${{HANG:-}}" ]; then
        touch $log.hangs
        sleep 60
    fi
    echo "$1" >>$log
}}
case "$*" in
"-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    begin venv
    echo whole >"$3/pip"
    ;;
"-m pip "*--version) [ -e "${{0%/bin/python}}/pip" ] ;;
"-m pip "*" wheel "*)
    begin wheel
    mkdir -p .cache/dist
    touch .cache/dist/cni_py.whl
    ;;
"-m pip "*--force-reinstall*) begin "install again" ;;
"-m pip "*" install "*) begin install ;;
*) exec $real "$@" ;;
esac
"""


@dataclass
class Clone:
    """A checkout, as far as the script looks at it."""

    path: Path
    python: Path
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        return [str(self.path / "tools/bootstrap"), "lab"]

    def environ(self, **more: str) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "PYTHON": str(self.python), **more}

    def run(self, *before: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*before, *self.command()],
            env=self.environ(**more),
            capture_output=True,
            text=True,
            timeout=ENOUGH_S,
            check=False,
        )

    def steps(self) -> list[str]:
        """Those of the runs since the last call."""
        found = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return found

    def interrupt(self, step: str, number: signal.Signals) -> None:
        """Run, and signal the whole group, as a terminal does, when it is at the step."""
        hangs = Path(f"{self.log}.hangs")
        with subprocess.Popen(
            self.command(), env=self.environ(HANG=step), stderr=subprocess.DEVNULL, start_new_session=True
        ) as script:
            end = time.monotonic() + ENOUGH_S
            while not hangs.exists():
                assert script.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)
            os.killpg(script.pid, number)
            assert script.wait(ENOUGH_S) != 0
        hangs.unlink()

    def well(self) -> list[str]:
        """Run; the steps that it took."""
        done = self.run()
        assert done.returncode == 0, done.stderr
        return self.steps()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    need_root()
    path, python, log = tmp_path / "clone", tmp_path / "python", tmp_path / "log"
    (path / "tools").mkdir(parents=True)
    shutil.copy2(ROOT / "tools/bootstrap", path / "tools")
    shutil.copytree(ROOT / "cni_py", path / "cni_py")
    python.write_text(INTERPRETER.format(real=os.path.realpath(sys.executable), log=log))
    python.chmod(0o755)
    return Clone(path, python, log)


def test_the_first_run_makes_all_and_the_second_keeps_the_virtual_environment(clone: Clone) -> None:
    done = clone.run()
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("cni-py: making a virtual environment in .cache/venv (")
    assert clone.steps() == WHOLE
    assert clone.well() == AGAIN
    assert not (clone.path / "build").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("step", WHOLE)
def test_a_run_that_is_interrupted_costs_the_next_nothing(clone: Clone, step: str, number: signal.Signals) -> None:
    clone.interrupt(step, number)
    clone.steps()
    assert clone.well() == WHOLE
    assert clone.well() == AGAIN


@pytest.mark.parametrize("step", ["install", "install again"])
def test_what_is_interrupted_later_is_made_anew_too(clone: Clone, step: str) -> None:
    clone.well()
    clone.interrupt(step, signal.SIGINT)
    clone.steps()
    assert clone.well() == WHOLE


def test_to_interrupt_what_changes_nothing_costs_nothing(clone: Clone) -> None:
    clone.well()
    clone.interrupt("wheel", signal.SIGINT)
    assert clone.well() == AGAIN


def test_a_clone_that_was_moved_gets_another_virtual_environment(clone: Clone) -> None:
    clone.well()
    clone.path = clone.path.rename(clone.path.with_name("elsewhere"))
    assert clone.well() == WHOLE
    assert clone.well() == AGAIN


def test_a_virtual_environment_without_pip_is_made_anew(clone: Clone) -> None:
    clone.well()
    (clone.path / ".cache/venv/pip").unlink()
    assert clone.well() == WHOLE


def test_a_virtual_environment_of_another_interpreter_is_made_anew(clone: Clone) -> None:
    clone.well()
    clone.python = clone.python.rename(clone.python.with_name("python-of-later"))
    assert clone.well() == WHOLE


def test_a_virtual_environment_that_nobody_completed_is_made_anew(clone: Clone) -> None:
    """Such as one of an earlier version of the script, or `python3 -m venv --without-pip`."""
    (clone.path / ".cache/venv/bin").mkdir(parents=True)
    (clone.path / ".cache/venv/bin/python").symlink_to(sys.executable)
    assert clone.well() == WHOLE


# Machines that lack something: in a mount namespace where it is covered by what nobody can execute

COVER = """
mount --make-rprivate /
for program in $COVERED; do
    where=$(command -v "$program") && mount --bind /dev/null "$(readlink -f "$where")"
done
for stub in "$STUBS"/*; do
    [ -e "$stub" ] && { where=$(command -v "${stub##*/}") && mount --bind "$stub" "$(readlink -f "$where")"; }
done
exec "$@"
"""


def on_a_machine_without(clone: Clone, *programs: str, stubs: str = "/nowhere") -> subprocess.CompletedProcess[str]:
    before = ["unshare", "--mount", "sh", "-c", COVER, "machine"]
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return clone.run(*before, COVERED=" ".join(programs), STUBS=stubs, PATH=path)


def test_where_apt_is_not_known_it_names_what_to_install(clone: Clone) -> None:
    done = on_a_machine_without(clone, "apt-get", "nft", "sysctl", "setpriv")
    assert done.returncode == 3
    assert done.stderr == (
        "cni-py: please install these, and run this again: nft, sysctl, setpriv, unshare and nsenter "
        "(Debian's packages: nftables procps util-linux; only apt is known here)\n"
    )
    assert clone.steps() == []


def test_where_apt_is_not_known_it_goes_on_when_all_is_there(clone: Clone) -> None:
    """Whoever installed it: no database of packages is asked."""
    done = on_a_machine_without(clone, "apt-get", "dpkg", "dpkg-query")
    assert done.returncode == 0, done.stderr
    assert clone.steps() == WHOLE


APT = """#!/bin/sh
echo "apt-get $*" >>{log}
case "$*" in *install*) umount {nft} ;; esac
"""


@pytest.mark.parametrize("interrupted", [False, True])
def test_apt_is_asked_for_what_is_missing_alone(clone: Clone, tmp_path: Path, interrupted: bool) -> None:
    """After dpkg itself was interrupted, that is put right first: it refuses everything else."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    nft = os.path.realpath(shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "")
    for name, text in (("apt-get", APT), ("dpkg", '#!/bin/sh\necho "dpkg $*" >>{log}\n')):
        (stubs / name).write_text(text.format(log=clone.log, nft=nft))
        (stubs / name).chmod(0o755)
    if interrupted:
        (clone.path / ".cache").mkdir()
        (clone.path / ".cache/apt.unfinished").touch()
    done = on_a_machine_without(clone, "nft", stubs=str(stubs))
    assert done.returncode == 0, done.stderr
    assert "cni-py: installing nftables\n" in done.stderr
    install = "apt-get -qq -y --no-install-recommends --fix-broken install nftables"
    assert clone.steps() == [*["dpkg --configure -a"] * interrupted, "apt-get -qq update", install, *WHOLE]
    assert not (clone.path / ".cache/apt.unfinished").exists()
