"""Where nobody answers at the socket, or not in time, the executables go direct."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
from lab import Lab
from runtime import Plugins

from cni_py.commands import main, serve
from tests.serve.test_calls import ENVIRONMENT, LOOPBACK, calls
from tests.warm import COMMAND, SOCKET, Warm


@pytest.mark.parametrize("what", ["nobody listens", "a file", "it is stopped"])
def test_without_a_service_that_answers_it_goes_direct(host: Lab, both: dict[str, Plugins], what: str) -> None:
    """Both kinds at once, since they wait for one that is stopped."""
    path = Path(SOCKET)

    def spoil() -> None:
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if what == "a file":
            path.touch()
        else:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))

    script = 'for each in "$@"; do $each <"$CONF" & jobs="$jobs $!"; done; for one in $jobs; do wait $one || exit; done'
    words = [str(both[kind].directory / "loopback") for kind in both]
    environ = {**ENVIRONMENT, "CNI_PATH": "/", "CONF": "/run/conf"}
    host["host"].run(["tee", "/run/conf"], input=json.dumps(LOOPBACK), check=True)

    def run() -> None:
        host["host"].run(["sh", "-c", script, "sh", *words], env=environ, check=True)

    if what != "it is stopped":
        host["host"].python(spoil)
        run()
        host["host"].run(["rm", SOCKET], check=True)
        return
    with Warm(host) as service:
        service.signal("STOP")
        try:
            run()
        finally:
            service.signal("CONT")
        assert calls(service, "loopback", "ADD") == 0
        assert service.ask()["refused"].get("a caller that did not wait so long", 2) == 2


def test_a_file_that_is_no_socket_keeps_its_place(host: Lab) -> None:
    for name in ("/run/letter", "/run/socket.new"):
        path = name.removesuffix(".new")
        words = [str(COMMAND), "serve", "--socket", path]
        done = host["host"].run(["sh", "-c", f"echo dear >{name} && exec timeout 9 $@", "sh", *words])
        assert (done.returncode, f"cannot listen at {path}: {name} is there" in done.stderr) == (1, True), done
        assert host["host"].run(["cat", name]).stdout == "dear\n"


PASSING = """
import os, socket, sys
fd = {"file": lambda: os.open("/dev/null", 0), "idle": lambda: socket.socket(socket.AF_UNIX).detach(),
      "tcp": lambda: socket.create_server(("127.0.0.1", 0)).detach(), "nothing": lambda: os.open("/", 0)}[sys.argv[1]]()
os.dup2(fd, 3)
os.set_inheritable(3, sys.argv[1] != "nothing")
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("what", ["file", "idle", "tcp", "nothing"])
def test_what_is_passed_must_listen(host: Lab, launchers: Plugins, what: str) -> None:
    for words in ([str(COMMAND), "serve"], [str(launchers.directory / "dhcp"), "daemon"]):
        done = host["host"].run(["timeout", "9", sys.executable, "-c", PASSING, what, *words])
        assert done.returncode == 1
        assert done.stderr.endswith("descriptor 3, which LISTEN_FDS announces, is no Unix socket that listens\n")
        assert done.stderr.count("\n") == 1


def test_a_socket_may_be_named_from_the_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "become_service", asked.append)
    assert main.main(["serve", "--socket", "here.sock"]) == 1  # nobody has become the service
    assert asked == [str(tmp_path / "here.sock")]
