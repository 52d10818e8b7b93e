"""What systemd hears of a service, the socket that it passes, and our units."""

from __future__ import annotations

import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.lacking import unavailable
from tests.portfwd.service.running import PORTFWD, WAIT_S, Service, raw

UNITS = Path(__file__).parents[3] / "conf"


class Manager:
    """Hears what a service tells its manager: at once, since the socket holds ten messages, and drops what comes then."""

    def __init__(self, address: str) -> None:
        self.heard = queue.SimpleQueue[list[str]]()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        while message := self.socket.recv(4096):
            self.heard.put(message.decode().split("\n"))

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.shutdown(socket.SHUT_RD)  # ends recv()
        self.listener.join()
        self.socket.close()

    def hear(self) -> list[str]:
        return self.heard.get(timeout=WAIT_S)

    def hear_until(self, word: str) -> list[str]:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            words = self.hear()
            if word in words:
                return words
        raise AssertionError(f"{word} was not said within {WAIT_S} s")


def test_systemd_hears_of_beginning_living_reloading_and_ending(idle: Service, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with manager:
        idle.start(env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"})
        ready = manager.hear()
        assert ready[0] == "READY=1"
        manager.hear_until("WATCHDOG=1")
        idle.ask("reload")
        manager.hear_until("RELOADING=1")
        assert manager.hear_until("READY=1")[0].startswith("MAINPID=")
        again = manager.hear_until("READY=1")
        assert again[1] != ready[1]  # the successor's own pid
        manager.hear_until("WATCHDOG=1")
        idle.await_successor()
        idle.end()
        manager.hear_until("STOPPING=1")


def test_the_managers_socket_may_be_an_abstract_one(idle: Service, tmp_path: Path) -> None:
    name = f"portfwd-test-{os.getpid()}"
    heard = tmp_path / "heard"
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); "
        f"s.bind('\\0{name}'); s.settimeout(10); print('.', flush=True); open({str(heard)!r}, 'wb').write(s.recv(4096))"
    )
    listener = idle.node.popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert listener.stdout is not None
        listener.stdout.read(1)
        idle.start(env={"NOTIFY_SOCKET": f"@{name}"})
        listener.wait(WAIT_S)
        assert heard.read_text().startswith("READY=1")
    finally:
        listener.kill()
        listener.communicate()


ACTIVATE = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_the_control_socket_may_come_from_systemd_which_keeps_it(idle: Service) -> None:
    idle.start(command=(sys.executable, "-c", ACTIVATE, idle.path))
    idle.publish(raw(8080))
    assert idle.ask("reload")["ok"] is True
    idle.await_successor()
    assert idle.names() == ["m8080"]
    idle.end()
    assert os.path.exists(idle.path)


MISLEAD = """
import os, socket, sys
os.dup2(os.open("/dev/null", 0) if sys.argv[1] == "file" else socket.socket(socket.AF_UNIX).detach(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("what", ["file", "socket"])
def test_a_descriptor_that_does_not_listen_is_no_reason_to_fail(idle: Service, what: str) -> None:
    idle.start(command=(sys.executable, "-c", MISLEAD, what))
    idle.publish(raw(8080))
    assert idle.names() == ["m8080"]
    idle.end()
    assert not os.path.exists(idle.path)


@pytest.mark.parametrize("unit", ["portfwd.service", "portfwd.socket", "cni-py-restore.service"])
def test_systemd_finds_no_fault_in_the_units(unit: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        unavailable("systemd-analyze is missing")
    for name in ("portfwd.service", "portfwd.socket", "cni-py-restore.service"):
        text = (UNITS / name).read_text().replace("/usr/local/bin/portfwd", PORTFWD)
        (tmp_path / name).write_text(text.replace("/opt/cni-py/bin/cni-py", str(Path(PORTFWD).with_name("cni-py"))))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "portfwd" in line or "cni-py" in line]
    assert not ours
