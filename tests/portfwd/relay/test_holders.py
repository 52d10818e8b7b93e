"""Who holds a port: real sockets of real processes, in network namespaces of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni_py.kernel import processes
from cni_py.nftables import ruleset
from portfwd.relay import holders
from portfwd.relay.holders import conflicts
from tests.lacking import need_root

if TYPE_CHECKING:
    from lab import Lab

ROOT = Path(__file__).parents[3]


class Inside:
    """Programs in one new network namespace, with lo up."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        self.holder = self._start(["unshare", "-n"], "-c", "print('ready', flush=True); input()")
        self.run("-c", "import subprocess; subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)")

    def _start(self, enter: list[str], *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*enter, sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def enter(self, *more: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", *more]

    def hold(self, code: str, *more: str) -> int:
        """The pid of a process there that runs `code` and keeps what it has, entered by way of `more`."""
        text = f"import os, socket\n{code}\nprint('ready', flush=True); input()"
        return self._start(self.enter(*more), "-c", text).pid

    def run(self, *arguments: str, before: tuple[str, ...] = ()) -> str:
        command = [*self.enter(*before), sys.executable, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=20).stdout.strip()

    def describe(self, protocol: str, ip: str, port: int, before: tuple[str, ...] = ()) -> str:
        code = "import sys; from portfwd.relay import holders as h; print(h.describe(sys.argv[1], sys.argv[2], int(sys.argv[3])))"
        return self.run("-c", code, protocol, ip, str(port), before=before)

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.communicate()


@pytest.fixture
def inside() -> Iterator[Inside]:
    need_root()
    namespace = Inside()
    try:
        yield namespace
    finally:
        namespace.close()


def named(pid: int) -> str:
    return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})"


def test_a_listener_is_named(inside: Inside) -> None:
    pid = inside.hold("one = socket.create_server(('127.0.0.1', 8080))")
    assert inside.describe("tcp", "0.0.0.0", 8080) == named(pid)
    assert inside.describe("tcp", "127.0.0.1", 8080) == named(pid)


def test_who_does_not_conflict_is_not_named(inside: Inside) -> None:
    inside.hold("one = socket.create_server(('127.0.0.1', 8080))")
    for protocol, ip, port in (("tcp", "127.0.0.2", 8080), ("tcp", "::", 8080), ("udp", "0.0.0.0", 8080)):
        assert inside.describe(protocol, ip, port) == holders.NOBODY
    assert inside.describe("tcp", "127.0.0.1", 8081) == holders.NOBODY


def test_a_socket_of_both_families_holds_an_ipv4_port(inside: Inside) -> None:
    pid = inside.hold("one = socket.create_server(('::', 8080), family=socket.AF_INET6, dualstack_ipv6=True)")
    assert inside.describe("tcp", "127.0.0.1", 8080) == named(pid)


def test_a_bound_udp_socket_is_named(inside: Inside) -> None:
    pid = inside.hold("one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); one.bind(('::1', 53))")
    assert inside.describe("udp", "::", 53) == named(pid)


def test_a_socket_that_only_keeps_the_port_is_named(inside: Inside) -> None:
    # podman binds and does not listen, which /proc/net/tcp does not show. Told by the kernel since Linux 6.8.
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    pid = inside.hold("one = socket.socket(); one.bind(('127.0.0.1', 8080))")
    assert inside.describe("tcp", "0.0.0.0", 8080) == (named(pid) if release >= (6, 8) else holders.NOBODY)


def test_the_parent_of_workers_that_share_a_socket_is_named(inside: Inside) -> None:
    pid = inside.hold("one = socket.create_server(('', 8080)); os.fork() or (os.read(0, 1), os._exit(0))")
    assert inside.describe("tcp", "0.0.0.0", 8080) == named(pid)


def test_a_connection_from_the_port_is_told_from_a_listener(inside: Inside) -> None:
    inside.hold("one = socket.create_server(('127.0.0.1', 80))")
    pid = inside.hold("two = socket.create_connection(('127.0.0.1', 80), source_address=('127.0.0.1', 5000))")
    assert inside.describe("tcp", "0.0.0.0", 5000) == f"{named(pid)}, for its connection to 127.0.0.1 port 80"


def test_what_has_been_closed_holds_nothing(inside: Inside) -> None:
    code = (
        "one = socket.create_server(('127.0.0.1', 80)); two = socket.create_connection(('127.0.0.1', 80));"
        "three, _ = one.accept(); three.close(); two.close(); one.close()"
    )
    inside.hold(code)  # what is left is in TIME_WAIT
    assert inside.describe("tcp", "127.0.0.1", 80) == holders.NOBODY


def test_a_process_in_another_pid_namespace_is_in_a_container(inside: Inside) -> None:
    inside.hold("one = socket.create_server(('', 8080))", "unshare", "--pid", "--fork", "--kill-child=KILL")
    text = inside.describe("tcp", "0.0.0.0", 8080)
    assert text.startswith("python")
    assert text.endswith(" in a container)")


def test_a_process_in_the_cgroup_of_a_container_is_named_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    full = "4f2a" * 16
    for path in (
        f"0::/system.slice/docker-{full}.scope",
        f"0::/machine.slice/libpod-{full}.scope/container",
        f"0::/kubepods.slice/kubepods-burstable.slice/cri-containerd-{full}.scope",
        f"12:pids:/docker/{full}",
    ):
        monkeypatch.setattr(processes, "read", {"/proc/7/cgroup": path + "\n"}.__getitem__)
        assert processes.container(7) == " in container 4f2a4f2a4f2a"


@pytest.mark.parametrize(
    ("comm", "words", "expected"),
    [
        ("nginx", ["nginx: master process /usr/sbin/nginx"], "nginx"),
        ("docker-proxy", ["/usr/bin/docker-proxy", "-proto", "tcp"], "docker-proxy"),
        ("systemd-resolve", ["/lib/systemd/systemd-resolved"], "systemd-resolved"),
        ("portfwd-docker-", ["/usr/bin/python3", "/usr/bin/portfwd-docker-proxy"], "portfwd-docker-proxy"),
        ("python3", ["python3", "-u", "/srv/app.py", "-v"], "python3 app.py"),
        ("python3.11", ["python3", "-I", "-m", "http.server", "80"], "python3.11 -m http.server"),
        ("python3", ["python3", "-c", "import this"], "python3"),
        ("python3", [], "python3"),
        ("", [], "a process"),
        ("a\x1b[31m\nb", [], "a[31mb"),
        ("bash", ["bash", "x" * 200], f"bash {'x' * 59}"),
    ],
)
def test_a_process_is_named_as_people_know_it(
    comm: str, words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"/proc/7/comm": comm + "\n", "/proc/7/cmdline": "\0".join([*words, ""])}
    monkeypatch.setattr(processes, "read", files.__getitem__)
    assert processes.name(7) == expected


def test_to_who_may_not_look_the_user_is_named(inside: Inside) -> None:
    inside.hold("one = socket.create_server(('', 8080))")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")
    look = "from portfwd.relay import holders; print(holders.describe('tcp', '0.0.0.0', 8080))"
    # The checkout and its virtual environment may lie below a folder that is root's alone.
    python = [os.path.realpath(sys.executable), "-I", "-S", "-c", f"import sys; sys.path.append(sys.argv[1]); {look}"]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "portfwd", Path(folder, "portfwd"))
        shutil.copytree(ROOT / "cni_py", Path(folder, "cni_py"))
        Path(folder).chmod(0o755)
        command = [*inside.enter(*nobody), *python, folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/", timeout=20)
    assert done.stdout.strip() == "a process of user root"


def test_a_port_that_portmap_publishes_is_named(lab: Lab) -> None:
    def published() -> list[object]:
        from cni_py.attachment.naming import Attachment
        from cni_py.kernel.nf_tables import Nft
        from cni_py.ports.claims import Claimant, claim
        from cni_py.ports.draft import Draft
        from cni_py.ports.mapping import Mapping

        nft = Nft()
        try:
            ruleset.ensure_table(nft)
            draft, who = Draft(nft), Claimant(Attachment("net", "c1", "eth0"), {})
            ip, here = bytes((10, 0, 0, 2)), bytes((127, 0, 0, 1))
            for mapping in (Mapping("tcp", None, 80, ip, 80), Mapping("udp", here, 53, ip, 53)):
                claim(draft, who, mapping)
            nft.transaction(draft.changes())
        finally:
            nft.close()
        asked = [("tcp", "0.0.0.0", 80), ("tcp", "198.51.100.1", 80), ("udp", "127.0.0.1", 53), ("udp", "0.0.0.0", 53)]
        asked += [("udp", "127.0.0.2", 53), ("tcp", "::", 80), ("tcp", "0.0.0.0", 81)]
        free = [(protocol, ip) for protocol in ("tcp", "udp") for ip in ("198.51.100.1", "::")]
        return [*map(holders.describe, *zip(*asked, strict=True)), *(holders.taken(one, [ip]) for one, ip in free)]

    told = "a port that portmap publishes for net/c1/eth0 (network/container/interface)"
    assert lab["host"].python(published) == [told] * 4 + [holders.NOBODY] * 3 + [{80}, set(), {53}, set()]


def test_asking_where_nothing_was_ever_published_is_harmless(inside: Inside) -> None:
    code = "from portfwd.relay import holders; print(repr(holders.by_portmap('tcp', '::1', 80)))"
    assert inside.run("-c", code) == "''"


def test_taken_ports_are_those_of_sockets(inside: Inside) -> None:
    inside.hold(
        "one = socket.create_server(('127.0.0.1', 80)); two = socket.create_server(('::1', 81), family=socket.AF_INET6)"
    )
    code = "from portfwd.relay.holders import taken; print(taken('tcp', ('0.0.0.0',)), sorted(taken('tcp', ('::', '0.0.0.0'))))"
    assert inside.run("-c", code) == "{80} [80, 81]"


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        ("0.0.0.0", "0.0.0.0", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("::", "::1", True),
        ("::1", "::", True),
        ("::1", "::2", False),
        ("::", "0.0.0.0", True),
        ("::", "127.0.0.1", True),
        ("::1", "127.0.0.1", False),
        ("0.0.0.0", "::", False),
        ("127.0.0.1", "::1", False),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("::ffff:127.0.0.1", "0.0.0.0", True),
        ("::ffff:127.0.0.1", "::", False),
    ],
)
def test_addresses_conflict_as_bind_sees_it(held: str, wanted: str, expected: bool) -> None:
    assert conflicts(held, wanted) is expected
