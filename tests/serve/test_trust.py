"""Who may ask the service, whom the executables believe, and that whatever comes instead they go direct."""

from __future__ import annotations

import json
import os
import socket
import sys
import time

import pytest
from lab import Lab
from runtime import Plugins

from cni_py import warm as protocol
from cni_py.serve.service import DRAIN_S
from cni_py.serve.sockets import BACKLOG
from tests.serve.test_calls import ENVIRONMENT, LOOPBACK, calls
from tests.warm import SOCKET, UNIT, Warm

pytestmark = pytest.mark.xdist_group("serve trust")  # one host for all

NOBODY = 65534
SETPRIV = ["setpriv", "--bounding-set=-all,+net_admin,+sys_admin,+dac_override,+sys_chroot", "--"]
OTHERS = {
    "fewer capabilities": SETPRIV,
    "another pid namespace": ["unshare", "--pid", "--fork", "--mount-proc"],
    "another user namespace": ["unshare", "--user", "--map-root-user"],
}
# Takes the socket's place in a mount namespace of its own, then runs a plugin; says how many connections brought data.
FALSE_SERVICE = """
import os, socket, subprocess, sys
folder = os.path.dirname(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=777", "tmpfs", folder], check=True)
said, told = os.pipe()
child = os.fork()
if child == 0:
    os.setresuid(65534, 65534, 65534)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    os.write(told, b"x")
    connection, _ = listener.accept()
    os.write(told, b"data" if connection.recv(1) else b"none")
    os._exit(0)
os.read(said, 1)
status = subprocess.run(sys.argv[2:], stdin=0).returncode
os.waitpid(child, 0)
print("", status, os.read(said, 4).decode())
"""


@pytest.fixture
def loopback(launchers: Plugins) -> tuple[list[str], dict[str, str]]:
    """A command line and an environment."""
    return [str(launchers.directory / "loopback")], {**ENVIRONMENT, "CNI_PATH": "/"}


@pytest.mark.parametrize("why", OTHERS)
def test_others_go_direct(host: Lab, warm: Warm, loopback: tuple[list[str], dict[str, str]], why: str) -> None:
    words, environ = loopback
    before = calls(warm, "loopback", "ADD")
    done = host["host"].run([*OTHERS[why], *words], env=environ, input=json.dumps(LOOPBACK))
    assert done.returncode == 0 or why == "another user namespace", done.stdout
    assert done.stdout.startswith("{")
    status = warm.ask()
    assert any(why in reason for reason in status["refused"]), status
    assert calls(warm, "loopback", "ADD") == before


def test_a_service_of_another_user_gets_nothing(host: Lab, loopback: tuple[list[str], dict[str, str]]) -> None:
    words, environ = loopback
    elsewhere = ["unshare", "--mount", "--propagation=private", sys.executable, "-c", FALSE_SERVICE, SOCKET, *words]
    done = host["host"].run(elsewhere, env=environ, input=json.dumps(LOOPBACK))
    assert done.stdout.endswith(" 0 none\n"), done


def test_another_user_is_not_served(host: Lab, warm: Warm) -> None:
    """Also where the file's mode would let it."""

    def ask() -> bytes:
        os.chmod(os.path.dirname(SOCKET), 0o711)
        os.chmod(SOCKET, 0o666)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return exchange(request(b"?"))

    assert host["host"].python(ask) == b""
    assert f"a caller of another user, {NOBODY}" in warm.ask()["refused"]


def request(plugin: bytes = b"loopback", home: bytes = b"/nowhere", magic: bytes = protocol.MAGIC) -> bytes:
    body = b"\0".join((plugin, home, b"22", b"CNI_COMMAND=ADD"))
    return magic + len(body).to_bytes(4, sys.byteorder) + body


def exchange(data: bytes, rights: bytes = b"") -> bytes:
    """All that the service answers, to data with these descriptors."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(SOCKET)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        answer = b""
        try:
            sock.sendmsg([data], control)
            sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(4096):
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            pass
        return answer


def test_nonsense_is_refused(host: Lab, warm: Warm) -> None:
    six = (0).to_bytes(4, sys.byteorder) * len(protocol.FDS)
    nonsense = {
        "a launcher of another version": request(magic=b"cni-py\0\2"),
        "a launcher of another installation, in /nowhere": request(),
        f"a request of {1 << 31} bytes": protocol.MAGIC + (1 << 31).to_bytes(4, sys.byteorder),
        "half a request": request()[:-1],
    }
    for data in (*nonsense.values(), b"", b"\0" * 100_000, request()[:5], request(plugin=b"")):
        assert host["host"].python(exchange, data, six) == protocol.MAGIC
    assert host["host"].python(exchange, request()) == protocol.MAGIC
    refused = warm.ask()["refused"]
    assert nonsense.keys() | {"0 descriptors"} <= refused.keys(), refused


def test_who_says_nothing_is_not_waited_for_forever(host: Lab, warm: Warm) -> None:
    def idle() -> float:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(25)
            sock.connect(SOCKET)
            assert sock.recv(64) == protocol.MAGIC
            sock.send(request()[:5])
            begun = time.monotonic()
            assert sock.recv(1) == b""
            return time.monotonic() - begun

    assert host["host"].python(idle) < 20


def test_the_units_agree_with_the_executables() -> None:
    socket_unit = UNIT.with_suffix(".socket").read_text()
    assert f"\nListenStream={SOCKET}\n" in socket_unit
    assert f"\nBacklog={BACKLOG}\n" in socket_unit
    stop_s = int(UNIT.read_text().partition("TimeoutStopSec=")[2].split()[0])
    assert stop_s > DRAIN_S
