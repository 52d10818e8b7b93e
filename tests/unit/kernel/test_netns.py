"""cni_py.kernel.netns: what counts as a network namespace, and going into one."""

import errno
import os
import posix
import socket
import subprocess
from pathlib import Path

import pytest

from cni_py.errors import InvalidNetns
from cni_py.kernel import netns

HERE = "/proc/self/ns/net"


def new_netns() -> int:
    """A descriptor of a fresh namespace, which lives as long as the descriptor."""
    with subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; read x"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        fd = netns.open_netns(f"/proc/{holder.pid}/ns/net")
        holder.communicate(b"\n")
    return fd


def test_a_path_of_a_network_namespace_is_opened_and_not_inherited() -> None:
    fd = netns.open_netns(HERE)
    assert not os.get_inheritable(fd)
    assert os.path.samestat(os.fstat(fd), os.stat(HERE))
    os.close(fd)


def test_a_link_to_a_namespace_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "web"
    link.symlink_to(HERE)
    os.close(netns.open_netns(str(link)))


@pytest.mark.parametrize("path", ["/nonexistent/web", "/proc/4194305/ns/net", ""])
def test_a_missing_path_is_left_to_the_caller_to_judge(path: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        netns.open_netns(path)
    assert caught.value.filename == path


def test_the_namespace_of_a_process_that_is_dead_but_not_reaped_is_missing() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(FileNotFoundError):
        netns.open_netns(f"/proc/{pid}/ns/net")
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/", "it is a directory"),
        ("/dev/null", "it is a character device"),
        ("/proc/self/ns/mnt", "it is a mount namespace"),
        ("/proc/self/ns/user", "it is a user namespace"),
        (__file__, "it is an ordinary file"),
        (__file__ + "/net", "Not a directory"),
        ("/proc/self/ns/net\0", "there is a null byte in it"),
    ],
)
def test_what_is_no_network_namespace_is_called_by_its_name(path: str, what: str) -> None:
    with pytest.raises(InvalidNetns) as caught:
        netns.open_netns(path)
    assert (caught.value.code, caught.value.details) == (8, what)
    assert f'"{path}"' in caught.value.msg


def test_a_fifo_does_not_block_and_a_socket_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidNetns, match="a FIFO"):
        netns.open_netns(str(tmp_path / "fifo"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(InvalidNetns, match="a socket"):
            netns.open_netns(str(tmp_path / "socket"))


def test_no_descriptor_is_left_open_by_a_refusal() -> None:
    before = os.listdir("/proc/self/fd")
    for path in ("/proc/self/ns/mnt", __file__, "/nonexistent"):
        with pytest.raises((InvalidNetns, FileNotFoundError)):
            netns.open_netns(path)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.netns
def test_entering_a_namespace_and_coming_back() -> None:
    home, other = netns.open_netns(HERE), new_netns()
    descriptors = os.listdir("/proc/self/fd")
    with netns.Enter(other):
        assert os.path.samestat(os.stat(HERE), os.fstat(other))
    assert os.path.samestat(os.stat(HERE), os.fstat(home))
    assert os.listdir("/proc/self/fd") == descriptors


@pytest.mark.netns
def test_an_exception_inside_brings_the_process_back() -> None:
    home, other = netns.open_netns(HERE), new_netns()
    with pytest.raises(KeyError), netns.Enter(other):
        raise KeyError
    assert os.path.samestat(os.stat(HERE), os.fstat(home))


@pytest.mark.netns
def test_what_cannot_be_entered_says_why_and_leaves_the_process_where_it_was() -> None:
    home = netns.open_netns(HERE)
    descriptors = os.listdir("/proc/self/fd")
    for fd, number in ((os.open("/", os.O_RDONLY), errno.EINVAL), (99, errno.EBADF)):
        with pytest.raises(OSError, match=r"namespace|Invalid|Bad") as caught, netns.Enter(fd):
            pass
        assert caught.value.errno == number
    assert len(os.listdir("/proc/self/fd")) == len(descriptors) + 1  # the directory above
    assert os.path.samestat(os.stat(HERE), os.fstat(home))


@pytest.mark.netns
def test_entering_does_not_load_the_package_ctypes() -> None:
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(os.path.dirname(netns.__file__)))!r})
from cni_py.kernel import netns
with netns.Enter(netns.open_netns("/proc/self/ns/net")):
    pass
assert "ctypes" not in sys.modules, "ctypes"
"""
    subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", code], check=True)


def test_a_python_that_has_setns_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(posix, "setns", lambda fd, kind: calls.append((fd, kind)), raising=False)
    netns.setns(7)
    assert calls == [(7, netns.CLONE_NEWNET)]


@pytest.mark.netns
def test_cookies_and_descriptors_tell_namespaces_apart() -> None:
    home, other = netns.open_netns(HERE), new_netns()
    assert netns.cookie(home) == netns.cookie(netns.open_netns(HERE)) > 0
    assert netns.cookie(other) not in (0, netns.cookie(home))
    assert netns.same_namespace(home, netns.open_netns(HERE))
    assert not netns.same_namespace(home, other)
