"""A child that is killed before any change that it makes: the runtime sees the full result or an error, and DEL removes the rest.

tests/faults does this to processes of their own, at every point; here are a few, since the plugins are the same.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab
from runtime import Plugins
from snapshot import difference

import cni_py
from tests.faults.trial import host_of
from tests.plugins.bridge_network import BridgeNetwork
from tests.serve.test_ends import LOST
from tests.warm import SOCKET, Warm

INJECT = Path(__file__).parent.parent / "faults/inject.py"
EACH = 8  # of the points one in so many
# The service, whose children load inject.py before the plugin begins
SERVE = """
import sys
sys.path.append(sys.argv[1])
from cni_py.serve import call, service
begin = call.begin
def sabotaged(sock):
    begin(sock)
    exec(open(sys.argv[2]).read(), {"__name__": "inject"})
call.begin = sabotaged
sys.exit(service.main(sys.argv[3]))
"""


@pytest.fixture
def sabotaged(host: Lab) -> Iterator[Warm]:
    home = str(Path(cni_py.__file__).resolve().parent.parent)
    with Warm(host, (os.path.realpath(sys.executable), "-IS", "-c", SERVE, home, str(INJECT), SOCKET)) as service:
        yield service


@pytest.fixture
def net(host: Lab, native: Plugins) -> Iterator[BridgeNetwork]:
    network = BridgeNetwork(host, native)
    yield network
    network.close()


@pytest.mark.parametrize("how", ["kill", "fail"])
def test_a_child_that_goes_wrong_anywhere(net: BridgeNetwork, sabotaged: Warm, how: str) -> None:
    conf = net.conf(ipMasq=True)
    net.warm(conf)
    told = net.well("ADD", conf, CNI_TEST_FAULT="change:0:count").stderr.splitlines()
    net.well("DEL", conf)
    points = [line for line in told if line.startswith("change ")]
    assert len(points) > EACH
    before = state(net)
    for number, point in list(enumerate(points, 1))[::EACH]:
        outcome = net.run("ADD", conf, CNI_TEST_FAULT=f"change:{number}:{how}")
        answer = json.loads(outcome.stdout)  # one, and whole
        assert ("code" in answer) == bool(outcome.status), point
        if how == "kill" and outcome.status:
            assert answer["msg"] == LOST, point
        net.well("DEL", conf)
        changed = difference(before, state(net))
        assert not changed, f"{point}\n{changed}"
    assert sum(row["calls"] for row in sabotaged.ask()["calls"]) >= 2 * len(points) // EACH


def state(net: BridgeNetwork) -> dict[str, object]:
    found = net.state()
    host = found["host"]
    assert isinstance(host, dict)
    return {**found, "host": host_of(host)}
