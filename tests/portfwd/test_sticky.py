"""Random ports that stay: after a restart of the service, while they are free; and the file that tells them."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from node import Node

from portfwd.cli import options
from portfwd.errors import PortfwdError, Usage
from portfwd.mapping import Mapping, Target
from portfwd.service import portfile
from tests.conftest import need_root
from tests.portfwd.publisher import PORTFWD, serving

FILE = "/run/ports"  # in a node of a lab /run is its own
TO = ("--to", "127.0.0.1")


@pytest.fixture(scope="module")
def host() -> Iterator[Node]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        yield lab["host"]


def portfwd(host: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return host.run([str(PORTFWD), *words])


def lines(host: Node) -> list[int]:
    return [int(line) for line in host.run(["cat", FILE], check=True).stdout.split()]


def is_there(host: Node) -> bool:
    return host.python(os.path.lexists, FILE)


def holding(host: Node, port: int) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    script = (
        f"import socket, sys; s = socket.create_server(('127.0.0.1', {port})); print('.', flush=True); sys.stdin.read()"
    )
    process = host.popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    process.stdout.read(1)
    return process


def test_random_ports_stay_while_they_are_free_and_the_file_tells_them(host: Node) -> None:
    both = ("publish", "80", "53/udp", "8080:81", *TO, "--name", "web", "--sticky", "--port-file", FILE)
    with serving(host):
        assert portfwd(host, *both).returncode == 0
        exact, tcp, udp = lines(host)
        assert exact == 8080
        assert portfwd(host, "rm", "web-1", "web-2").returncode == 0
        assert is_there(host)
        assert portfwd(host, "rm", "web-3").returncode == 0
        assert not is_there(host)
        assert portfwd(host, "publish", "53/udp", "80", *TO, "--sticky", "web", "--port-file", FILE).returncode == 0
        assert sorted(lines(host)) == sorted([tcp, udp])
    with holding(host, tcp) as holder, serving(host) as service:  # somebody was faster after a restart
        (now,) = (one["first"] for one in service.ask("list")["mappings"] if one["protocol"] == "tcp")
        assert now != tcp
        assert sorted(lines(host)) == sorted([now, udp])
        assert service.ask("sticky", name="web")["ports"] == {"80/tcp": now, "53/udp": udp}
        holder.communicate()
        service.ask("remove", ids=[one["id"] for one in service.ask("list")["mappings"]])
        with holding(host, now) as other:
            done = portfwd(host, "publish", "80", *TO, "--sticky", "web")
            other.communicate()
        moved = int(done.stdout.split()[1].partition("/")[0])
        assert (
            f"note: web gets port {moved} instead of {now}: port {now}/tcp on 0.0.0.0 is in use by python"
            in done.stderr
        )
        service.publish("127.0.0.1", 8090, ("127.0.0.1", 80), sticky="web")  # a second one does not displace the first
        assert service.ask("sticky", name="web")["ports"]["80/tcp"] == moved


def end_run() -> None:
    """End `portfwd run`; inside the node, where there is one."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and b"portfwd\0run\0" in Path(f"/proc/{name}/cmdline").read_bytes():
            os.kill(int(name), signal.SIGINT)


def test_run_keeps_its_port_too_and_removes_the_file(host: Node) -> None:
    ports = set()
    for _ in range(2):
        pipe = subprocess.PIPE
        words = ["run", "80", *TO, "--sticky", "runner", "--port-file", FILE]
        with host.popen([str(PORTFWD), *words], stdout=pipe, stderr=pipe) as process:
            assert process.stdout is not None
            said = process.stdout.readline().decode()
            ports.update(lines(host))
            assert f"  {lines(host)[0]}/tcp on " in said
            host.python(end_run)
            process.communicate(timeout=10)
        assert not is_there(host)
    assert len(ports) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("80", "--sticky"), "--sticky needs a name"),
        (("80", "--sticky=../x"), "does not begin with a letter"),
        (("80", "--sticky=a/b"), "cannot be the name of a sticky port"),
        (("--sticky", "80", "81"), "SPECs stand before --sticky"),
        (("8080:80", "--sticky", "web"), "--sticky is for random ports"),
    ],
)
def test_a_sticky_name_that_cannot_be_meant_is_refused(words: tuple[str, ...], sentence: str) -> None:
    parser = argparse.ArgumentParser()
    options.add_to(parser)
    with pytest.raises(Usage, match=sentence):
        options.read(parser.parse_args([*words, *TO]))


def mapping(path: Path, port: int, line: int = 0) -> Mapping:
    target = (Target("127.0.0.1", 80),)
    return Mapping("m", "tcp", ("127.0.0.1",), port, port, target, port_file=str(path), port_line=line)


def test_a_port_file_replaces_a_link_and_nothing_that_is_not_its_own(tmp_path: Path) -> None:
    path, victim = tmp_path / "ports", tmp_path / "victim"
    victim.write_text("something\n")
    path.symlink_to(victim)
    portfile.remove(str(path))
    assert path.is_symlink()  # not ours to remove
    with portfile.PortFile(str(path)) as file:
        file.write([mapping(path, 1), mapping(path, 2)])
    assert (victim.read_text(), path.read_text(), path.is_symlink()) == ("something\n", "1\n2\n", False)
    portfile.change(mapping(path, 3, 1))
    assert path.read_text() == "1\n3\n"
    path.unlink()
    os.mkfifo(path)
    for refused in (path, victim, tmp_path):
        with pytest.raises(PortfwdError):
            portfile.PortFile(str(refused))
        with pytest.raises(PortfwdError):
            portfile.remove(str(refused))
    with pytest.raises(PortfwdError, match="has no line for port 4"):
        portfile.change(mapping(tmp_path / "gone", 4))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ports", "victim"]
