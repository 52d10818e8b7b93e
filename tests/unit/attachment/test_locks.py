"""flock with a limit, and a lock file that goes when its subject goes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cni_py.attachment.locks import Lock
from cni_py.errors import TryAgainLater
from tests.lacking import need_root

HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def holder(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_wait_that_reaches_its_limit_is_code_11(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        with pytest.raises(TryAgainLater, match="the subject is locked") as caught, Lock(str(path), "the subject", 0.1):
            pass
        assert caught.value.code == 11
        process.communicate("")


def test_the_lock_comes_free_when_its_holder_dies(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        process.kill()
        with Lock(str(path), "the subject", 60):
            pass


def test_a_removed_lock_file_is_made_anew_by_the_next(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with Lock(path, "the subject", remove=True):
        assert os.path.exists(path)
    assert not os.path.exists(path)
    with Lock(path, "the subject", remove=True):
        assert os.path.exists(path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="cannot open the lock file"), Lock(str(tmp_path / "lock"), "the subject"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_without_root_of_the_machine_it_is_said_what_helps(tmp_path: Path) -> None:
    need_root()
    os.seteuid(65534)
    try:
        with (
            pytest.raises(Exception, match="mounts a file system of its own on /run"),
            Lock(str(tmp_path / "lock"), ""),
        ):
            pass
    finally:
        os.seteuid(0)


def test_a_lock_that_is_not_needed_is_gone_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = str(tmp_path / "file" / "lock")
    with Lock(path, "the subject", needed=False) as lock:
        assert lock.fd < 0
    with pytest.raises(Exception, match="cannot open the lock file"), Lock(path, "the subject"):
        pass


def test_without_waiting_a_held_lock_is_refused_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with Lock(path, "the subject"), pytest.raises(TryAgainLater), Lock(path, "the subject", 0):
        pass
