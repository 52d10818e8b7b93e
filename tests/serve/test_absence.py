"""Where nobody answers at the socket, or not in time, the executables go direct."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from lab import Lab
from runtime import Plugins

from tests.serve.test_calls import ENVIRONMENT, LOOPBACK, calls
from tests.warm import SOCKET, Warm


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
        return
    with Warm(host) as service:
        service.signal("STOP")
        try:
            run()
        finally:
            service.signal("CONT")
        assert calls(service, "loopback", "ADD") == 0
        assert service.ask()["refused"].get("a caller that did not wait so long", 2) == 2
